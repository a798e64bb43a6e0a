"""The rooms of the package and the arrows between them, as its import statements say.

python -m tests.rooms            the drawing that ARCHITECTURE.md shows, and the numbers of rooms, arrows and circles
python -m tests.rooms --write    puts the drawing into ARCHITECTURE.md
python -m tests.rooms FOLDER     the drawing of another checkout

A room is a folder or a single module at the top of `perfusion/`. An arrow leads from a room to another that it imports
from, anywhere in its files, also inside functions and for types alone.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("perfusion", "export", "runtime", "devices")
PAGE = ROOT / "ARCHITECTURE.md"
DRAWING = re.compile(r"(?<=<!-- python -m tests.rooms --write -->\n```\n).*?(?=```)", re.DOTALL)

ROOMS = (
    *(
        "commands",
        "fleet",
        "serving",
        "sharing",
        "sweep",
        "training",
        "export",
        "diffusers",
        "judging",
        "runtime",
        "devices",
        "tensorrt",
    ),
    *("base", "perfusion", "concept", "bundle", "pocket"),
    *(
        "contact_sheet",
        "embedded",
        "hub",
        "files",
        "locking",
        "numerals",
        "onnx_runtime",
        "picture_input",
        "shell",
        "errors",
    ),
)
"""The rooms from top to bottom: who imports from whom."""

Arrows = Mapping[str, set[str]]
"""Room or module → those that it imports from."""


def python_files(folder: Path) -> list[Path]:
    """The Python files below a folder, each once: links are followed by nobody."""
    links = {path for path in folder.iterdir() if path.is_symlink()}
    return [path for path in sorted(folder.rglob("*.py")) if not links & set(path.parents)]


def module_name(path: Path, root: Path = ROOT) -> str:
    """The one name a file is imported by: `perfusion.runtime.text.tokenizer` for runtime/text/tokenizer.py."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts if parts[0] == "perfusion" else ("perfusion", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package, by name."""
    files = [path for folder in FOLDERS for path in python_files(root / folder)]
    return {module_name(path, root): path for path in files}


def imports(path: Path) -> set[str]:
    """Every name that the import statements of a file take, in full, also those inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import means another package behind a link"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_arrows(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """The arrows between modules: each imported name is a module itself, or comes from the one before its last dot."""
    arrows = {}
    for module, path in files.items():
        targets = {name if name in files else name.rpartition(".")[0] for name in imports(path)}
        arrows[module] = targets & set(files) - {module}
    return arrows


def room_of(module: str) -> str:
    """`runtime` for perfusion.runtime.text.tokenizer; the package's own file is the room `perfusion`."""
    return module.split(".")[1] if "." in module else module


def room_arrows(root: Path = ROOT) -> dict[str, set[str]]:
    """The arrows between the rooms of a checkout."""
    between_modules = module_arrows(modules(root))
    arrows: dict[str, set[str]] = {room_of(module): set() for module in between_modules}
    for module, targets in between_modules.items():
        arrows[room_of(module)] |= {room_of(target) for target in targets} - {room_of(module)}
    return arrows


def reachable(arrows: Arrows, start: str) -> set[str]:
    """Everything that can be reached along arrows; the start itself only where it lies on a circle."""
    visited: set[str] = set()
    border = set(arrows[start])
    while border:
        visited |= border
        border = {target for room in border for target in arrows[room]} - visited
    return visited


def circles(arrows: Arrows) -> list[set[str]]:
    """Groups of rooms or modules in which each can be reached from each."""
    reach = {room: reachable(arrows, room) for room in arrows}
    groups = {
        frozenset(other for other in reach[room] if room in reach[other])
        for room in arrows
        if room in reach[room]
    }
    return sorted((set(group) for group in groups), key=sorted)


def upwards(arrows: Arrows, order: Sequence[str]) -> list[tuple[str, str]]:
    """The arrows that lead from a room to one above it."""
    place = {room: index for index, room in enumerate(order)}
    return [
        (room, target)
        for room in order
        for target in sorted(arrows[room])
        if target in place and place[target] < place[room]
    ]


def from_top_to_bottom(arrows: Arrows) -> list[str]:
    """The rooms in an order in which as few arrows as possible lead upwards: none but those within circles."""
    depth = {room: len(reachable(arrows, room) | {room}) for room in arrows}
    order = sorted(arrows, key=lambda room: (-depth[room], room))
    for circle in circles(arrows):
        first = min(map(order.index, circle))
        best = min(permutations(sorted(circle)), key=lambda rooms: len(upwards(arrows, rooms)))
        order = [room for room in order if room not in circle]
        order[first:first] = best
    return order


def drawing(arrows: Arrows, order: Sequence[str]) -> str:
    """A row a room, from top to bottom: a mark where it imports from the room of the column's number."""
    width = max(map(len, order)) + 3
    lines = [" " * width + "".join(f"{number:3}" for number in range(1, len(order) + 1))]
    for number, room in enumerate(order, 1):
        marks = ("\\" if target == room else "x" if target in arrows[room] else "." for target in order)
        lines.append(f"{number:2} {room}".ljust(width) + "".join(f"{mark:>3}" for mark in marks))
    return "\n".join(lines) + "\n"


def summary(arrows: Arrows, order: Sequence[str]) -> str:
    """How many rooms, arrows, upward arrows and circles there are, and which the last two are."""
    up = [f"{room} -> {target}" for room, target in upwards(arrows, order)]
    groups = [" ".join(sorted(circle)) for circle in circles(arrows)]
    return (
        f"{len(arrows)} rooms, {sum(map(len, arrows.values()))} arrows, "
        f"{len(up)} of them upwards ({', '.join(up) or 'none'}), {len(groups)} circles ({'; '.join(groups) or 'none'})"
    )


def main(arguments: Sequence[str]) -> None:
    """Print the drawing and the numbers, or put the drawing into the page."""
    root = next((Path(word) for word in arguments if word != "--write"), ROOT)
    arrows = room_arrows(root)
    order = ROOMS if set(ROOMS) == set(arrows) else from_top_to_bottom(arrows)
    if "--write" in arguments:
        page = PAGE.read_text(encoding="utf-8")
        page = DRAWING.sub(lambda _: drawing(arrows, order), page)
        PAGE.write_text(page, encoding="utf-8", newline="\n")
        return
    between_modules = module_arrows(modules(root))
    print(drawing(arrows, order))
    print(summary(arrows, order))
    print("the same of modules:", summary(between_modules, from_top_to_bottom(between_modules)))


if __name__ == "__main__":
    main(sys.argv[1:])
