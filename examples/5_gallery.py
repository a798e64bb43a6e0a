# .venv/bin/python examples/5_gallery.py [FILE]
"""Three concepts in new places: what each learned from on the left, what the embedded model draws with it beside."""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from perfusion.runtime import Runtime

SUBJECTS = Path(__file__).parent / "subjects"
SCENES = ("on grass", "in the snow", "at sunset", "in the mountains", "at night")
SEEDS = {
    "gold-hat": (0, 0, 3, 3, 3),
    "pink-cake": (1, 5, 4, 3, 5),
    "school-bus": (0, 0, 6, 0, 0),
}
"""Concept → the seed for each scene, chosen by eye among seven."""
SIDE, GAP, HEAD = 200, 8, 40


def main(output: Path) -> None:
    """Draw all of them and lay them out, a row a concept."""
    size = ((len(SCENES) + 1) * (SIDE + GAP) - GAP, HEAD + len(SEEDS) * (SIDE + GAP) - GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(19)
    for column, title in enumerate(("one of its five pictures", *SCENES)):
        middle = column * (SIDE + GAP) + SIDE // 2
        draw.text((middle, HEAD // 2), title, fill="black", font=font, anchor="mm")
    with Runtime() as runtime:
        for row, (name, seeds) in enumerate(SEEDS.items()):
            token = runtime.load_concept(name).token
            prompts = [f"a photo of a {token} {scene}" for scene in SCENES]
            learned_from = Image.open(SUBJECTS / name / "4.png").convert("RGB")
            for column, picture in enumerate((learned_from, *runtime.generate(prompts, seed=seeds))):
                place = (column * (SIDE + GAP), HEAD + row * (SIDE + GAP))
                sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), place)
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, optimize=True)
    print(f"{output}: {', '.join(SEEDS)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/examples/gallery.png"))
