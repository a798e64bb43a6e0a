"""A sweep as pictures: the grid of everything drawn, and the plot of both similarities."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from perfusion.contact_sheet import text_width, wrapped, write_line
from perfusion.sweep.front import Point
from perfusion.sweep.ranges import varied

__all__ = ["grid", "plot", "ticks"]

INK, PALE, FRONT, STAR = "#202020", "#b8b8b8", "#1f6fb4", "#d1342f"
LOCK_COLOURS = {"local": "#1f6fb4", "global": "#2f9e44"}
GAP, MARGIN, WIDEST = 4, 8, 240


def grid(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str], *, marked: int | None = None
) -> Image.Image:
    """Pictures of one size in rows, each with its label, below the columns' labels.

    Args:
        rows: a label and a picture for every column.
        columns: their labels.
        marked: the column whose label is set off.
    """
    font = ImageFont.load_default(12)
    first = rows[0][1][0]
    side = min(WIDEST, round(max(text_width(label, font) for label, _ in rows))) + 2 * MARGIN
    heads = [wrapped(label, first.width, font) for label in columns]
    line = 15
    top = line * max(len(head) for head in heads) + 2 * GAP
    sheet = Image.new(
        "RGB",
        (side + len(columns) * (first.width + GAP) + GAP, top + len(rows) * (first.height + GAP) + GAP),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        left = side + column * (first.width + GAP) + GAP
        for number, text in enumerate(head):
            colour = STAR if column == marked else INK
            write_line(draw, (left, GAP + number * line), text, font, colour)
    for number, (label, pictures) in enumerate(rows):
        y = top + number * (first.height + GAP)
        for index, text in enumerate(wrapped(label, side - MARGIN, font)):
            write_line(draw, (MARGIN, y + index * line), text, font)
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (side + column * (first.width + GAP) + GAP, y))
    return sheet


def plot(points: Sequence[Point], *, size: tuple[int, int] = (760, 560)) -> Image.Image:
    """Image similarity to the right, text similarity upwards; the front joined, the recommended point in red.

    Bars are standard errors. Drawn at three times the size and brought down, so that lines are smooth.
    """
    scale = 3
    canvas = Image.new("RGB", (size[0] * scale, size[1] * scale), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(13 * scale)
    left, top, right, bottom = (edge * scale for edge in (78, 24, size[0] - 24, size[1] - 58))
    x_range = _range([p.image - p.image_error for p in points] + [p.image + p.image_error for p in points])
    y_range = _range([p.text - p.text_error for p in points] + [p.text + p.text_error for p in points])

    def place(image: float, text: float) -> tuple[float, float]:
        x = left + (image - x_range[0]) / (x_range[1] - x_range[0]) * (right - left)
        y = bottom - (text - y_range[0]) / (y_range[1] - y_range[0]) * (bottom - top)
        return x, y

    draw.rectangle((left, top, right, bottom), outline=PALE, width=scale)
    for value in ticks(*x_range):
        x, _ = place(value, y_range[0])
        draw.line((x, bottom, x, bottom + 4 * scale), fill=PALE, width=scale)
        draw.text((x, bottom + 7 * scale), f"{value:g}", fill=INK, font=font, anchor="mt")
    for value in ticks(*y_range):
        _, y = place(x_range[0], value)
        draw.line((left - 4 * scale, y, left, y), fill=PALE, width=scale)
        draw.text((left - 7 * scale, y), f"{value:g}", fill=INK, font=font, anchor="rm")
    draw.text(
        ((left + right) / 2, bottom + 28 * scale), "image similarity (0 the base's, 1 the subject's)",
        fill=INK, font=font, anchor="mt",
    )  # fmt: skip
    draw.text((left, top - 19 * scale), "text similarity (cosine)", fill=INK, font=font)
    front = sorted((point for point in points if point.on_front), key=lambda point: point.image)
    if len(front) > 1:
        draw.line([place(point.image, point.text) for point in front], fill=FRONT, width=2 * scale)
    fields = tuple(name for name in varied([point.setting for point in points]) if name != "lock")
    for point in points:
        _dot(draw, point, place, scale)
        x, y = place(point.image, point.text)
        label = ", ".join(part.split()[-1] for part in point.setting.label(fields).split(", "))
        colour = STAR if point.recommended else INK
        draw.text((x + 5 * scale, y - 4 * scale), label, fill=colour, font=font, anchor="lb")
    _legend(draw, points, (right, top), scale, font)
    return canvas.resize(size, Image.Resampling.LANCZOS)


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """The round numbers of a range, at most so many: multiples of 1, 2 or 5 times a power of ten."""
    step, numbers = 10.0 ** math.floor(math.log10((high - low) / most)), list[float]()
    for by in (1, 2, 5, 10):
        first, last = math.ceil(low / (step * by)), math.floor(high / (step * by))
        numbers = [round(step * by * number, 12) for number in range(first, last + 1)]
        if len(numbers) <= most:
            break
    return numbers


def _dot(draw: ImageDraw.ImageDraw, point: Point, place: object, scale: int) -> None:
    """One point with the bars of its errors."""
    assert callable(place)
    x, y = place(point.image, point.text)
    (x0, y0), (x1, y1) = (
        place(point.image + sign * point.image_error, point.text + sign * point.text_error)
        for sign in (-1, 1)
    )
    draw.line((x0, y, x1, y), fill=PALE, width=scale)
    draw.line((x, y0, x, y1), fill=PALE, width=scale)
    radius = (6 if point.recommended else 4) * scale
    colour = STAR if point.recommended else LOCK_COLOURS[point.setting.lock]
    draw.ellipse(
        (x - radius, y - radius, x + radius, y + radius), fill=colour if point.on_front else "white",
        outline=colour, width=2 * scale,
    )  # fmt: skip


def _legend(
    draw: ImageDraw.ImageDraw, points: Sequence[Point], corner: tuple[float, float], scale: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:  # fmt: skip
    """What the colours mean, at the upper right; labels at the points are the varied numbers."""
    entries = [("recommended", STAR)]
    entries += [
        (f"{lock} lock", LOCK_COLOURS[lock]) for lock in dict.fromkeys(p.setting.lock for p in points)
    ]
    x, y = corner[0] - 130 * scale, corner[1] + 8 * scale
    for number, (text, colour) in enumerate(entries):
        at = y + number * 18 * scale
        draw.ellipse((x, at + 3 * scale, x + 9 * scale, at + 12 * scale), fill=colour)
        draw.text((x + 15 * scale, at), text, fill=INK, font=font)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A little beyond the values on both sides; never empty."""
    low, high = min(values), max(values)
    space = 0.08 * (high - low) or 0.05
    return low - space, high + space
