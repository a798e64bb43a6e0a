# .venv/bin/python examples/3_batch.py
"""A different concept in every picture of one batch, and one picture without any."""

from pathlib import Path

from perfusion.contact_sheet import contact_sheet
from perfusion.runtime import Runtime

OUTPUT = Path("build/examples/batch.png")
PROMPTS = [
    "a photo of a <school-bus> on grass",
    "a photo of a <gold-hat> on grass",
    "a photo of a <pink-cake> on grass",
    "a photo of a bus on grass",
]

with Runtime() as runtime:
    for name in ("school-bus", "gold-hat", "pink-cake"):
        runtime.load_concept(name)
    pictures = runtime.generate(PROMPTS, seed=[3, 3, 3, 3])
OUTPUT.parent.mkdir(parents=True, exist_ok=True)
contact_sheet(pictures, PROMPTS, columns=len(PROMPTS)).save(OUTPUT)
print(OUTPUT)
