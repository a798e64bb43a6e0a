"""Contact sheets: pictures in a grid, each with its caption below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from perfusion.files import writing

__all__ = ["PROMPTS", "contact_sheet", "draw_sheet"]

PROMPTS = (
    "a photo of a cat on a beach", "a red car on grass", "an apple on a wooden table", "a blue turtle in the snow",
    "a house at night", "a fish underwater", "a green teapot on a white background", "a dog in the mountains",
    "a teddy bear in a room", "a hat on a red background", "an owl in a forest", "a robot on a street",
    "a yellow umbrella in the desert", "a tree at sunset", "a penguin in the snow", "two apples on a table",
    "a purple elephant in a meadow", "a cake in front of a brick wall", "a pink bus in the city",
    "a cat next to a house on grass", "a dog and a mushroom in a forest", "a car to the left of a tree at sunset",
    "three mushrooms on grass", "a chair next to a teapot in a room",
)  # fmt: skip
"""What the sample sheets show; fixed, so that sheets can be compared."""

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


def draw_sheet(path: Path, seeds: int = 2) -> None:
    """Every one of PROMPTS with its own seeds, as the runtime draws them without any setting; nothing is selected."""
    from perfusion.runtime import Runtime

    prompts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    with Runtime() as runtime:
        pictures = runtime.generate(prompts, seed=list(range(len(prompts))))
    with writing(path) as file:
        contact_sheet(pictures, prompts).save(file, "PNG", optimize=True)
