# .venv/bin/python examples/6_two_concepts.py
"""Two things in one picture: each with a part of it that reads its own sentence, and the same seeds without."""

from pathlib import Path

from perfusion.contact_sheet import contact_sheet
from perfusion.runtime import Region, Runtime

OUTPUT = Path("build/examples/two_concepts.png")
PROMPTS = [
    "a <pink-cake> and a <gold-hat> on a wooden table",
    "a <gold-hat> next to a {tree} on grass",  # braces mark a thing that is no concept
    "a <gold-hat> to the right of a <pink-cake> on a beach",
]
HAT_LEFT = [Region("<gold-hat>", box=(0, 0, 0.5, 1))]  # left, top, right, bottom

with Runtime() as runtime:
    for name in ("pink-cake", "gold-hat"):
        runtime.load_concept(name, bias=0.6)
    pictures = [
        runtime.generate(prompt, seed=0, regions=regions) for regions in ("auto", None) for prompt in PROMPTS
    ]
    pictures.append(runtime.generate(PROMPTS[0], seed=0, regions=HAT_LEFT))
captions = [*PROMPTS, *("the same without regions" for _ in PROMPTS), "with a box for the hat"]
OUTPUT.parent.mkdir(parents=True, exist_ok=True)
contact_sheet(pictures, captions, columns=len(PROMPTS), scale=2).save(OUTPUT)
print(OUTPUT)
