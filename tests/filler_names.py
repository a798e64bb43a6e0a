"""Names that say nothing: participles and fillers, counted among all names that are bound.

python -m tests.filler_names     their share, and how many each file has

A binding is every place where a name gets a value: an assignment, a loop, a comprehension, `with ... as`, an argument
of a function. A name that lives longer than three lines should be a noun of the field: `noise_pred`, `mask`.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.rooms import ROOT, python_files

FOLDERS = ("perfusion", "export", "runtime", "devices", "recipes")
FILLERS = frozenset(
    ("found", "one", "made", "kept", "given", "wanted", "read", "asked", "drawn", "taken", "held")
)


def bindings(tree: ast.AST) -> Iterable[str]:
    """Every name that a syntax tree binds, once for each place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def count(root: Path = ROOT) -> dict[Path, tuple[Counter[str], int]]:
    """File → its filler names with their numbers, and the number of all its bindings."""
    counted = {}
    for path in (path for folder in FOLDERS for path in python_files(root / folder)):
        names = Counter(bindings(ast.parse(path.read_text(encoding="utf-8"))))
        fillers = Counter({name: number for name, number in names.items() if name in FILLERS})
        counted[path] = (fillers, names.total())
    return counted


def share(counted: dict[Path, tuple[Counter[str], int]]) -> float:
    """The share of filler names among all bindings, 0 to 1."""
    return sum(fillers.total() for fillers, _ in counted.values()) / sum(
        total for _, total in counted.values()
    )


def report(counted: dict[Path, tuple[Counter[str], int]]) -> str:
    """The share, and a line for each file that has filler names, most of them first."""
    worst = sorted(counted.items(), key=lambda item: (-item[1][0].total(), item[0]))
    lines = [
        f"{fillers.total():4} {path.relative_to(ROOT)}: "
        + ", ".join(f"{name} {number}" for name, number in fillers.most_common())
        for path, (fillers, _) in worst
        if fillers
    ]
    return "\n".join([f"{share(counted):.2%} of all bindings are filler names", *lines])


if __name__ == "__main__":
    print(report(count()))
