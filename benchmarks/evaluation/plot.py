"""The plot: image similarity against text similarity, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.evaluation.figures import Interval
from perfusion.sweep import ticks

__all__ = ["Mark", "scatter"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 930, 480, 62, 360, 20, 52
COLOURS = (
    "#9ca3af", "#111827", "#2563eb", "#15803d", "#7c3aed", "#0891b2", "#be185d", "#a16207", "#475569", "#65a30d",
    "#c2410c", "#dc2626", "#0d9488", "#9333ea", "#4d7c0f",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A method: one point, or several on a line."""

    title: str
    points: tuple[tuple[Interval, Interval], ...]
    """Image and text similarity."""
    labels: tuple[str, ...] = ()
    """Beside the points, such as biases."""
    dashed: bool = False
    barred: int = 0
    """The point with bars; none where there is no such point."""
    like: str = ""
    """The title of the mark whose colour it has; empty: its own."""


def scatter(marks: Sequence[Mark], *, across: str, up: str) -> str:
    """The whole file. Bars are 95 % intervals over the subjects."""
    xs = [x for mark in marks for x, _ in mark.points]
    ys = [y for mark in marks for _, y in mark.points]
    low_x, high_x = _range([v for i in xs for v in (i.mean, i.low, i.high)])
    low_y, high_y = _range([v for i in ys for v in (i.mean, i.low, i.high)])

    def place(x: float, y: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return (
            round(LEFT + wide * (x - low_x) / (high_x - low_x), 1),
            round(TOP + high * (high_y - y) / (high_y - low_y), 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        *_axes(low_x, high_x, low_y, high_y, place, across, up),
    ]
    colours = [mark.title for mark in marks if not mark.like]
    for number, mark in enumerate(marks):
        colour = COLOURS[colours.index(mark.like or mark.title) % len(COLOURS)]
        parts += _drawn(mark, colour, place)
        top = TOP + 14 + 19 * number
        parts.append(f'<circle cx="{WIDTH - RIGHT + 16}" cy="{top - 4}" r="4.5" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 27}" y="{top}">{escape(mark.title)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _drawn(mark: Mark, colour: str, place: object) -> list[str]:
    assert callable(place)
    spots, parts = [place(x.mean, y.mean) for x, y in mark.points], list[str]()
    if len(spots) > 1:
        line = " ".join(f"{x},{y}" for x, y in spots)
        dash = ' stroke-dasharray="5 4"' if mark.dashed else ""
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>')
    if 0 <= mark.barred < len(spots):
        x, y = mark.points[mark.barred]
        for start, end in (
            ((x.low, y.mean), (x.high, y.mean)),
            ((x.mean, y.low), (x.mean, y.high)),
        ):
            (x0, y0), (x1, y1) = place(*start), place(*end)
            parts.append(
                f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{colour}" stroke-opacity="0.45"/>'
            )
    for at, (x, y) in enumerate(spots):
        parts.append(f'<circle cx="{x}" cy="{y}" r="4.5" fill="{colour}"/>')
        if at < len(mark.labels):
            parts.append(
                f'<text x="{x + 6}" y="{y - 6}" font-size="10" fill="{colour}">{escape(mark.labels[at])}</text>'
            )
    return parts


def _axes(
    low_x: float, high_x: float, low_y: float, high_y: float, place: object, across: str, up: str
) -> list[str]:
    assert callable(place)
    parts = list[str]()
    for value in ticks(low_x, high_x):
        x, bottom = place(value, low_y)
        parts.append(f'<line x1="{x}" y1="{TOP}" x2="{x}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{value:g}</text>')
    for value in ticks(low_y, high_y):
        left, y = place(low_x, value)
        parts.append(f'<line x1="{left}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4}" text-anchor="end">{value:g}</text>')
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
    parts.append(
        f'<text x="16" y="{middle_y}" text-anchor="middle" transform="rotate(-90 16 {middle_y})">{escape(up)}</text>'
    )
    return parts


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin
