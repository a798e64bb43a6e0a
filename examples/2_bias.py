# .venv/bin/python examples/2_bias.py
"""One file, a whole range of pictures: the gate's bias trades the training pictures' look for the prompt's."""

from pathlib import Path

from perfusion.contact_sheet import contact_sheet
from perfusion.runtime import Runtime

OUTPUT = Path("build/examples/bias.png")
BIASES = (0.4, 0.6, 0.75, 0.9, 1.0, 1.1)
PROMPTS = ("a photo of a <pink-cake> in a forest", "a <pink-cake> at night")

with Runtime() as runtime:
    runtime.load_concept("pink-cake")
    pictures, captions = [], []
    for prompt in PROMPTS:
        for bias in BIASES:
            runtime.set_concept("<pink-cake>", bias=bias)  # no rebuild: numbers that are inputs of the graph
            pictures.append(runtime.generate(prompt, seed=3))
            captions.append(f"bias {bias}")
OUTPUT.parent.mkdir(parents=True, exist_ok=True)
contact_sheet(pictures, captions, columns=len(BIASES), lines=1).save(OUTPUT)
print(f"{OUTPUT}: {' / '.join(PROMPTS)}")
