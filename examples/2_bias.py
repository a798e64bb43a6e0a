# .venv/bin/python examples/2_bias.py
"""One file, several settings: the gate's bias trades the training pictures' look for the prompt's.

On the embedded model only the concept's own word opens the gate, so the way is short: up to a bias of 0.75 the pictures
hardly differ, then the moon comes back, and at 1.1 the cake is almost a plain one. `strength` leads there too, more
evenly.
"""

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
