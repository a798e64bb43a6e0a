"""Contact sheets: pictures in a grid, each with its caption below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

__all__ = ["contact_sheet"]

GAP, LINE = 4, 11


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int = 8,
    scale: int = 1,
    lines: int = 2,
) -> Image.Image:
    """Pictures of one size in rows of `columns`, enlarged `scale` times, with their captions."""
    width, height = pictures[0].width * scale, pictures[0].height * scale
    below = lines * LINE + GAP if lines else 0
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + below + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + index % columns * (width + GAP)
        top = GAP + index // columns * (height + below + GAP)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(textwrap.wrap(caption, max(8, width // 6))[:lines]):
            draw.text((left + 1, top + height + 1 + number * LINE), line, fill="black")
    return sheet
