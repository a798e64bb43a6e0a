"""Contact sheets: pictures in a grid, each with its caption below it. Needs Pillow."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet", "text_width", "wrapped", "write_line"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GAP, SIZE, LINE = 4, 11, 13
"""Pixels between pictures, of the captions' letters and from line to line."""
SPACE = 0.35
"""Of the letters' size between two words. The font's own space is so narrow in small letters that words touch."""
INK = "#202020"


def contact_sheet(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    *,
    columns: int = 8,
    scale: int = 1,
    lines: int | None = None,
    heading: str = "",
) -> Image.Image:
    """Pictures of one size in rows of `columns`, enlarged `scale` times, with their captions.

    Args:
        lines: how many a caption may take, and what is longer is cut; None: as many as the longest takes.
        heading: a sentence above all of them.
    """
    font = ImageFont.load_default(SIZE)
    width, height = pictures[0].width * scale, pictures[0].height * scale
    cut = [wrapped(caption, width, font)[:lines] for caption in captions]
    below = max(map(len, cut)) * LINE + GAP if any(captions) else 0
    rows = -(-len(pictures) // columns)
    across = columns * (width + GAP) + GAP
    head = wrapped(heading, across - 2 * GAP, font) if heading else []
    above = len(head) * LINE + GAP if head else 0
    sheet = Image.new("RGB", (across, above + rows * (height + below + GAP) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(head):
        write_line(draw, (GAP, GAP + number * LINE), line, font)
    for index, (picture, caption) in enumerate(zip(pictures, cut, strict=True)):
        left = GAP + index % columns * (width + GAP)
        top = above + GAP + index // columns * (height + below + GAP)
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, top))
        for number, line in enumerate(caption):
            write_line(draw, (left, top + height + 1 + number * LINE), line, font)
    return sheet


def write_line(
    draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, font: Font, fill: str = INK
) -> None:
    """Write words to the right of a corner, with a space between them that can be seen."""
    left, top = corner
    for word in text.split():
        draw.text((round(left), top), word, fill=fill, font=font)
        left += font.getlength(word) + _space(font)


def text_width(text: str, font: Font) -> float:
    """The pixels that `write_line` takes for a text."""
    words = text.split()
    return sum(font.getlength(word) for word in words) + _space(font) * max(0, len(words) - 1)


def wrapped(text: str, width: float, font: Font) -> list[str]:
    """A text in lines of at most a width, broken at spaces; a word that is too long stays whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", font) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines or [""]


def _space(font: Font) -> float:
    return max(font.getlength(" "), SPACE * float(getattr(font, "size", SIZE)))
