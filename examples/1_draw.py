# .venv/bin/python examples/1_draw.py
"""Draw with the embedded model and the sample concept: the runtime needs numpy and onnxruntime, never torch."""

from pathlib import Path

from perfusion.runtime import Runtime

OUTPUT = Path("build/examples")
OUTPUT.mkdir(parents=True, exist_ok=True)

with Runtime() as runtime:
    concept = runtime.load_concept("school-bus")  # a sample that came with the bundle; or a path of your own
    print(
        f"{concept.token} is a {concept.superclass}, {concept.rows} row of {concept.target_values.size} values"
    )
    prompt = f"a photo of a {concept.token} on a beach"
    for step in runtime.denoise(prompt, seed=0):  # the loop below generate(): preview it, or leave it early
        print(f"step {step.index + 1} of {step.total}, timestep {step.timestep:.0f}")
    step.pictures()[0].save(OUTPUT / "school-bus.png")
    runtime.generate("a photo of a bus on a beach", seed=0).save(OUTPUT / "bus.png")
print(f"{OUTPUT}/school-bus.png is the concept, {OUTPUT}/bus.png the same seed without it")
