"""The sample sheet of the embedded model: fixed prompts, drawn by the runtime."""

from __future__ import annotations

from pathlib import Path

from perfusion.contact_sheet import contact_sheet
from perfusion.files import writing

__all__ = ["PROMPTS", "draw_sheet"]

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


def draw_sheet(path: Path, seeds: int = 2) -> None:
    """Every one of PROMPTS with its own seeds, as the runtime draws them without any setting; nothing is selected."""
    from perfusion.runtime import Runtime

    prompts = [prompt for prompt in PROMPTS for _ in range(seeds)]
    with Runtime() as runtime:
        pictures = runtime.generate(prompts, seed=list(range(len(prompts))))
    with writing(path) as file:
        contact_sheet(pictures, prompts).save(file, "PNG", optimize=True)
