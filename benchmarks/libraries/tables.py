"""python -m benchmarks.libraries.tables [--write]: what docs/providers.md says of the records of providers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page_block import PageBlock
from benchmarks.record import RECORDS, ROOT

__all__ = ["PAGE", "block", "in_page", "lines"]

PAGE = ROOT / "docs" / "providers.md"
_MISSING = "–"
_DISK = "on the disk"
_LIBRARIES = {  # and the columns of the table
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO, float32",
    "openvino bf16": "OpenVINO, bf16",
    "openvino fp16": "OpenVINO, fp16",
    "torch": "torch",
    "stable-diffusion.cpp f16": "stable-diffusion.cpp, f16",
    "stable-diffusion.cpp f32": "stable-diffusion.cpp, f32",
}

Row = Mapping[str, Any]
Rows = Sequence[Row]


def block(records: Path = RECORDS) -> str:
    """The tables of all records that there are."""
    texts = [_text(json.loads(path.read_text())) for path in sorted(records.glob("providers-*.json"))]
    return "\n".join(texts) if texts else "Nothing of this was measured yet.\n"


def _text(record: Mapping[str, Any]) -> str:
    """A machine's sentence and table."""
    rows: Rows = record["rows"]
    machine, versions = record["machine"], record["versions"]
    (facts,) = _rows(rows, what="processor")
    packages = [
        f"{title} {versions[name]}"
        for name, title in (("onnxruntime", "ONNX Runtime"), ("openvino", "OpenVINO"), ("torch", "torch"))
    ]
    packages += sorted({row["package"] for row in _rows(rows, what="step") if "package" in row})
    flags = ", ".join(f"`{flag}`" for flag in facts["flags"])
    missing = "" if "avx512_bf16" in facts["flags"] else "; no `avx512_bf16`"
    sentence = (
        f"{machine['processor']}, {machine['cores']} cores ({flags}{missing}), {', '.join(packages)}, "
        f"{record['date']}:"
    )
    absent = [f"\n{row['library']} took no part: {row['absent']}.\n" for row in rows if row.get("absent")]
    return "\n".join([sentence, "", *_table(rows), *absent, *_notes(rows), ""])


def _table(rows: Rows) -> list[str]:
    """A line for each thing that was measured, a column for each library that was."""
    cells = lines(rows)
    measured = [line for title, line in cells.items() if title != _DISK]
    columns = [name for name in _LIBRARIES if any(line.get(name) for line in measured)]
    head = ["", *(_LIBRARIES[name] for name in columns)]
    body = [[title, *(line.get(name, _MISSING) for name in columns)] for title, line in cells.items()]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def lines(rows: Rows) -> dict[str, dict[str, str]]:
    """The table by its lines' titles and the libraries."""
    threads = sorted({row["threads"] for row in _rows(rows, what="picture")}, reverse=True)
    table = {
        f"a picture of the embedded model, {_counted(count, 'thread')}": _cells(
            rows, "seconds", "s", what="picture", threads=count
        )
        for count in threads
    }
    table["changing its concept"] = _cells(
        rows, "swap_ms", "ms", what="picture", threads=max(threads, default=0)
    )
    for concepts in (1, 4):
        title = f"a step at Stable Diffusion 1.5's size, {_counted(concepts, 'concept')}"
        table[title] = _cells(rows, "seconds", "s", what="step", model="sd15", concepts=concepts)
    table["the same without concepts"] = {
        **_cells(rows, "seconds", "s", what="step", model="sd15", library="torch, no concepts", concepts=1),
        **_cells(rows, "step_seconds", "s", what="step", model="sd15", concepts=0),
    }
    first = {"what": "first result"}
    table["first picture of the embedded model in a new process"] = _starts(
        rows, "seconds", "s", model="pocket", **first
    )
    table["first step at Stable Diffusion 1.5's size in a new process"] = _starts(
        rows, "seconds", "s", model="sd15", **first
    )
    table["its peak memory"] = _starts(rows, "peak_memory_mb", "MB", model="sd15", **first)
    table[_DISK] = _installs(rows)
    return {title: cells for title, cells in table.items() if cells}


def _cells(rows: Rows, key: str, unit: str, **facts: Any) -> dict[str, str]:
    """A number of each library, with its unit."""
    return {
        row["library"].partition(",")[0]: f"{_short(row[key])} {unit}" for row in _rows(rows, **facts) if key in row
        if row["library"] in _LIBRARIES or facts.get("library") == row["library"]
    }  # fmt: skip


def _starts(rows: Rows, key: str, unit: str, **facts: Any) -> dict[str, str]:
    """Cold and warm with OpenVINO, the only start that there is with the others."""
    cells = _cells(rows, key, unit, start="only", **facts)
    cold, warm = (_cells(rows, key, unit, start=start, **facts) for start in ("cold", "warm"))
    return cells | {name: f"{cold[name]}, then {number}" for name, number in warm.items()}


def _short(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _installs(rows: Rows) -> dict[str, str]:
    """What each library takes on the disk; one build of stable-diffusion.cpp has both precisions."""
    sizes = {row["package"]: f"{row['mb']} MB" for row in _rows(rows, what="install")}
    return {
        library: sizes[package]
        for library in _LIBRARIES
        for package in ("onnxruntime", "openvino", "torch", "stable-diffusion-cpp-python")
        if package in sizes and library.split()[0].replace(".", "-") in package
    }


def _notes(rows: Rows) -> list[str]:
    """What compiling takes in memory, and what more rows at once bring."""
    memory = [
        f"{row['over_weights']} ({row['model']}, {row['compiled']})"
        for row in _rows(rows, what="compile memory")
    ]
    batch = [
        f"{row['a_row_of_two_over_it']} ({row['model']}, {row['rows']} rows)"
        for row in _rows(rows, what="rows at once")
    ]  # fmt: skip
    notes = []
    if memory:
        notes.append(f"Peak memory above the library's own, for each byte of weights: {', '.join(memory)}.")
    if batch:
        notes.append(
            f"Rows computed at once, by how much each is faster than one of two: {', '.join(batch)}."
        )
    return [f"\n{note}" for note in notes]


def _rows(rows: Rows, **facts: Any) -> list[Row]:
    """Those with these facts."""
    return [row for row in rows if facts.items() <= row.items()]


def _counted(count: int, noun: str) -> str:
    words = {1: "one", 2: "two", 4: "four", 8: "eight", 16: "sixteen"}
    return f"{words.get(count, count)} {noun}{'s' if count > 1 else ''}"


_PLACE = PageBlock(page=PAGE, command="benchmarks.libraries.tables", text=block)
in_page = _PLACE.in_page

if __name__ == "__main__":
    _PLACE.main()
