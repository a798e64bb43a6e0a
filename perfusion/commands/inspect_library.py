"""perfusion-inspect of a folder of concepts: a line for each, and the reason for each that cannot be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfusion.concept.card import extract
from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import FILE_SETTINGS
from perfusion.errors import ConceptError

__all__ = ["concept_files", "library_facts", "library_table"]

_COLUMNS = ("file", "token", "superclass", "base", *FILE_SETTINGS, "kB")


def concept_files(folder: Path) -> list[Path]:
    """The files of a folder that are concepts by their name, and the cards, which other pictures lie beside."""
    return sorted([*folder.glob("*.safetensors"), *filter(_is_card, folder.glob("*.png"))])


def _is_card(path: Path) -> bool:
    try:
        extract(path.read_bytes())
    except (ConceptError, OSError):
        return False
    return True


def library_facts(folder: Path, files: Sequence[Path]) -> dict[str, Any]:
    """All of a folder's `concept_files` for a program; every file is checked as when it is loaded."""
    concepts, broken = list[dict[str, Any]](), list[dict[str, Any]]()
    for path in files:
        try:
            concept = Concept.load(path)
        except ConceptError as error:
            broken.append({"path": str(path), "error": str(error)})
            continue
        concepts.append(
            {
                "path": str(path),
                "bytes": path.stat().st_size,
                "token": concept.token,
                "superclass": concept.superclass,
                "base": concept.base,
                "base_fingerprint": concept.base_fingerprint,
                **{setting: getattr(concept, setting) for setting in FILE_SETTINGS},
            }
        )  # fmt: skip
    return {"kind": "library", "path": str(folder), "concepts": concepts, "broken": broken}


def library_table(facts: dict[str, Any]) -> str:
    """The same for a reader, in columns."""
    rows = [_COLUMNS, *(_row(concept) for concept in facts["concepts"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines += [f"broken: {file['error']}" for file in facts["broken"]]
    tokens = Counter(concept["token"] for concept in facts["concepts"])
    shared = [token for token, count in tokens.items() if count > 1]
    if shared:
        lines.append(
            f"{', '.join(shared)}: several files have this token; give each its own where you load them"
        )
    count = len(facts["concepts"])
    head = f"{facts['path']}: {count} concept{'' if count == 1 else 's'}, {len(facts['broken'])} broken"
    return "\n".join([head, *(f"  {line}".rstrip() for line in lines)])


def _row(concept: dict[str, Any]) -> tuple[str, ...]:
    name, size = Path(concept["path"]).name, concept["bytes"] / 1000
    return (
        name,
        concept["token"],
        concept["superclass"],
        concept["base"],
        *(f"{concept[setting]:g}" for setting in FILE_SETTINGS),
        f"{size:.1f}",
    )
