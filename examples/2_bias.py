# .venv/bin/python examples/2_bias.py
"""One file, a whole range of pictures: the gate's bias goes from the training pictures' look to the plain prompt's."""

from pathlib import Path

from perfusion.pocket.sheet import contact_sheet
from perfusion.runtime import Runtime

OUTPUT = Path("build/examples/bias.png")
BIASES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
PROMPTS = ("a photo of a <school-bus> in the snow", "a photo of a <school-bus> in a forest")

with Runtime() as runtime:
    runtime.load_concept("school-bus")
    pictures, captions = [], []
    for prompt in PROMPTS:
        for bias in BIASES:
            runtime.set_concept("<school-bus>", bias=bias)  # no rebuild: numbers that are inputs of the graph
            pictures.append(runtime.generate(prompt, seed=1))
            captions.append(f"bias {bias}")
OUTPUT.parent.mkdir(parents=True, exist_ok=True)
contact_sheet(pictures, captions, columns=len(BIASES), lines=1).save(OUTPUT)
print(f"{OUTPUT}: {' / '.join(PROMPTS)}")
