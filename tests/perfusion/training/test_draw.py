"""Pictures drawn while training are those that the runtime draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from perfusion.base.base_model import load_base
from perfusion.concept.concept_file import Concept
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.draw import _row, draw


def psnr(first: Image.Image, second: Image.Image) -> float:
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return float(10 * np.log10(255**2 / (float(np.mean(difference**2)) + 1e-9)))


def test_pictures_are_the_runtimes_for_the_same_prompt_seed_and_steps() -> None:
    from perfusion.runtime import Runtime

    base = load_base(None)
    with Runtime() as runtime:
        name = sorted(runtime.bundle.samples)[0]
        concept = runtime.load_concept(name)
        prompts, seeds = (
            [f"a photo of a {concept.token} on a beach", f"a {concept.superclass} in the snow"],
            [3, 8],
        )
        expected = runtime.generate(prompts, seed=seeds, num_inference_steps=4, lock="local")
        base_only = runtime.generate(
            f"a photo of a {concept.superclass} on a beach", seed=3, num_inference_steps=4
        )
    found = draw(base, concept, prompts, seeds, num_inference_steps=4)
    assert min(psnr(one, other) for one, other in zip(found, expected, strict=True)) > 40
    assert psnr(found[0], base_only) < 30, "the concept did something"


@pytest.mark.parametrize("superclass", ["cake", "teddy bear"], ids=["one word", "two words"])
@pytest.mark.parametrize("strength", [0.6, 0.0])
def test_a_weaker_concept_is_drawn_as_the_runtime_draws_it(strength: float, superclass: str) -> None:
    from perfusion.runtime import Runtime

    base = load_base(None)
    with Runtime() as runtime:
        sample = runtime.load_concept("pink-cake")
        runtime.unload_concept(sample.token)
        concept = replace(sample, superclass=superclass)
        runtime.load_concept(concept, strength=strength)
        prompt = f"a photo of a {concept.token} on a beach"
        expected = runtime.generate(prompt, seed=3, num_inference_steps=4, lock="local")
    weak, full = (
        draw(base, replace(concept, strength=value), [prompt], [3], num_inference_steps=4)[0]
        for value in (strength, 1.0)
    )
    assert psnr(weak, expected) > 40
    assert psnr(full, expected) < 30


def test_both_text_encoders_are_read_at_both_ends_of_a_strength(tiny_xl_base, pictures) -> None:
    options = TrainingConfig(superclass="cat", steps=2, batch_size=2, crops=1, masks="none")
    concept = train_concept(pictures, options, model=tiny_xl_base)
    (plain,) = draw(tiny_xl_base, concept, ["a cat"], [0], num_inference_steps=2)
    none, half, full = (
        np.asarray(
            draw(tiny_xl_base, replace(concept, strength=value), ["a <cat>"], [0], num_inference_steps=2)[0]
        )
        for value in (0.0, 0.5, 1.0)
    )
    assert np.array_equal(none, np.asarray(plain))
    assert not np.array_equal(half, none) and not np.array_equal(half, full)
    rows = [
        _row(tiny_xl_base, replace(concept, strength=value), "a <cat>").pooled for value in (0.0, 0.5, 1.0)
    ]
    off, middle, on = [pooled for pooled in rows if pooled is not None]
    assert torch.allclose(middle, (off + on) / 2, atol=1e-6) and not torch.allclose(off, on, atol=1e-4)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_xl_base"])
def test_a_picture_does_not_depend_on_its_batch_nor_on_stored_keys(which, request, pictures) -> None:
    base = request.getfixturevalue(which)
    options = TrainingConfig(superclass="cat", steps=2, batch_size=2, crops=1, masks="none")
    concept = train_concept(pictures, options, model=base)
    bare = Concept.from_bytes(concept.to_bytes("float32", keys=False))
    prompts = ["a <cat>", "a cat", "my <cat> on a beach"]
    together = draw(base, concept, prompts, [0, 1, 2], num_inference_steps=2)
    alone = [
        draw(base, bare, [prompt], [seed], num_inference_steps=2)[0] for seed, prompt in enumerate(prompts)
    ]
    assert min(psnr(one, other) for one, other in zip(together, alone, strict=True)) > 45
    assert together[0].size == (base.resolution, base.resolution)
    assert base.unet.attn_processors.keys()
