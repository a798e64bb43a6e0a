# .venv/bin/python examples/6_two_concepts.py [FILE]
"""Two things in one picture: each has a region that reads its own sentence. In the lower row the same seeds without."""

import sys
from pathlib import Path

from PIL import Image

from perfusion.contact_sheet import contact_sheet
from perfusion.runtime import Region, Runtime

HAT_LEFT = [Region("<gold-hat>", box=(0, 0, 0.5, 1))]  # left, top, right, bottom
PICTURES = (
    ("a photo of a <pink-cake> next to a <gold-hat> on grass", "auto", 3),
    ("a photo of a {car} and a <pink-cake> on a street", "auto", 0),  # braces: a thing that is no concept
    ("a photo of a <gold-hat> next to a {tree} on grass", "auto", 2),
    ("a photo of a <pink-cake> and a <gold-hat> in the snow", HAT_LEFT, 0),
)
"""Prompt, regions, and the seed, chosen by eye among three or four for the upper row."""


def main(output: Path) -> None:
    """Draw every prompt with its regions and without."""
    upper, lower = list[Image.Image](), list[Image.Image]()
    with Runtime() as runtime:
        for name in ("pink-cake", "gold-hat"):
            runtime.load_concept(name, bias=0.6)
        for prompt, regions, seed in PICTURES:
            upper.append(runtime.generate(prompt, seed=seed, regions=regions))
            lower.append(runtime.generate(prompt, seed=seed, regions=None))
    captions = [f"{prompt}{', box for the hat' if box is HAT_LEFT else ''}" for prompt, box, _ in PICTURES]
    captions += ["without regions" for _ in PICTURES]
    output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet([*upper, *lower], captions, columns=len(PICTURES), scale=2).save(output)
    print(output)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples/two_concepts.png"))
