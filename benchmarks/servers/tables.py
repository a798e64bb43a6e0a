"""python -m benchmarks.servers.tables [--write]: what docs/serving.md says of the records of serving and soak."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.page_block import PageBlock
from benchmarks.record import RECORDS, ROOT

__all__ = ["PAGE", "block", "in_page"]

PAGE = ROOT / "docs" / "serving.md"

Row = Mapping[str, Any]


def block(records: Path = RECORDS) -> str:
    """The paragraphs of all records that there are."""
    texts = {"serving": _pocket, "serving-sd15": _true_size, "soak": _soak}
    paragraphs = [
        _paragraph(record, texts)
        for record in map(_read, sorted(records.glob("*.json")))
        if record["benchmark"] in texts
    ]
    return "\n".join([*paragraphs, ""]) if paragraphs else "Nothing of this was measured yet.\n"


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _paragraph(record: Mapping[str, Any], texts: Mapping[str, Callable[[Row], str]]) -> str:
    machine = record["machine"]
    return f"{texts[record['benchmark']](record['rows'][0])} ({machine['processor']}, {machine['cores']} cores)\n"


def _pocket(row: Row) -> str:
    return (
        f"The embedded model, {row['clients']} clients with {row['clients']} concepts at "
        f"`--batch-size {row['batch']}`: {row['pictures_a_second']:.2f} pictures a second, "
        f"{row['share_of_batch']:.2f} times those of {row['batch']} equal pictures in one call; at "
        f"`--batch-size 1` the same clients got {row['at_batch_size_1']:.2f} a second. A call of the UNet held "
        f"{row['mean_pictures_a_call']:.1f} pictures of {row['mean_concepts_a_call']:.1f} concepts at "
        f"{row['mean_steps_a_call']:.1f} different steps in the mean. The longest wait was "
        f"{row['longest_over_mean_wait']:.2f} times the mean. The first preview came at step "
        f"{row['first_preview_step']}. A request took {row['overhead_ms']:.1f} ms more than its picture alone, "
        f"which takes {row['alone_ms']:.0f} ms in four steps; {row['overhead_outside_graphs_ms']:.1f} ms where the "
        "time in the model's graphs is left out, which wavers."
    )


def _true_size(row: Row) -> str:
    return (
        f"At Stable Diffusion 1.5's size (random weights, {row['size']} pixels, {row['steps']} steps), "
        f"{row['clients']} clients: {row['share_of_batch']:.2f} times the pictures of one call of {row['batch']}, "
        f"and {row['pictures_a_second'] / row['at_batch_size_1']:.2f} times those at `--batch-size 1`."
    )


def _soak(row: Row) -> str:
    early, late = row["memory_mb"][-1]
    return (
        f"A soak of {row['minutes']:.0f} minutes with {row['clients']} clients who draw, cancel, go away, send "
        f"rubbish and swap concepts, and one kill -9 in the middle: {row['pictures']} pictures, each at most "
        f"{row['most_levels']} of 255 from its exact one; {len(row['faults'])} wrong answers; memory from {early} to "
        f"{late} MB after the second start."
    )


_PLACE = PageBlock(page=PAGE, command="benchmarks.servers.tables", text=block)
in_page = _PLACE.in_page

if __name__ == "__main__":
    _PLACE.main()
