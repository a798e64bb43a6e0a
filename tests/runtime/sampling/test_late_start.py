"""A concept may come in late: its superclass arranges the picture, and it takes over from some noise level on."""

from typing import Any

import numpy as np
import pytest

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.noise_model import NoiseModel
from perfusion.errors import RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.sampling.schedulers import make_schedule

PROMPT = "a photo of <cat> on a beach"
STEPS = 10  # DDIM's evenly spaced ones: evaluation i stands at a share of about i / 10


def latents(runtime: Runtime, prompt: Any = PROMPT, **options: Any) -> list[np.ndarray]:
    """After every step."""
    options = {"num_inference_steps": STEPS, "scheduler": "ddim", "seed": 3} | options
    return [step.latents for step in runtime.denoise(prompt, **options)]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> list[bool]:
    return [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]


@pytest.fixture
def cat(runtime, make_concept) -> Runtime:
    runtime.load_concept(make_concept())
    return runtime


def at(start: float, token: str = "<cat>") -> dict[str, Any]:
    return {"concept_settings": {token: {"start": start}}}


@pytest.mark.parametrize("lock", ["local", "global"])
def test_until_its_start_the_superclass_is_drawn_and_then_the_concept(cat, lock):
    plain = latents(cat, lock=lock, concept_settings={"<cat>": {"strength": 0.0}})
    late = latents(cat, lock=lock, **at(0.35))
    assert same(late, plain) == [True] * 4 + [False] * 6  # the fifth evaluation stands at 0.4
    image = cat.generate(PROMPT, seed=3, num_inference_steps=STEPS, scheduler="ddim", lock=lock, **at(0.35))
    (finished,) = list(
        cat.denoise(PROMPT, seed=3, num_inference_steps=STEPS, scheduler="ddim", lock=lock, **at(0.35))
    )[-1].pictures()
    np.testing.assert_array_equal(np.asarray(image), np.asarray(finished))


def test_a_start_of_0_is_none(cat):
    whole = latents(cat)
    assert all(same(latents(cat, **at(0.0)), whole))
    assert not any(same(latents(cat, **at(0.35)), whole))


def test_a_start_that_is_set_holds_from_the_next_picture_on(cat):
    late = latents(cat, **at(0.35))
    assert cat.set_concept("<cat>", start=0.35).start == 0.35
    assert all(same(latents(cat), late))
    cat.set_concept("<cat>", bias=0.5)
    assert cat.set_concept("<cat>").start == 0.35


def test_every_picture_of_a_batch_has_its_own_start(cat):
    starts = [0.0, 0.35, 0.65, 0.35]
    together = latents(
        cat, [PROMPT] * 4, seed=[1, 2, 3, 4], concept_settings=[{"<cat>": {"start": one}} for one in starts]
    )
    for row, start in enumerate(starts):
        alone = latents(cat, seed=row + 1, **at(start))
        np.testing.assert_allclose(together[-1][row : row + 1], alone[-1], atol=2e-5)


def test_two_concepts_of_one_prompt_come_in_one_after_the_other(cat, make_concept):
    cat.load_concept(make_concept(1, token="<dog>", superclass="dog"))
    prompt = "a <cat> and a <dog> in the snow"
    settings = {"<cat>": {"start": 0.65}, "<dog>": {"start": 0.25}}
    both = latents(cat, prompt, concept_settings=settings)
    neither = {"<cat>": {"strength": 0.0}, "<dog>": {"strength": 0.0}}
    only_dog = {"<cat>": {"strength": 0.0}, "<dog>": {"start": 0.25}}
    assert same(both, latents(cat, prompt, concept_settings=neither)) == [True] * 3 + [False] * 7
    assert same(both, latents(cat, prompt, concept_settings=only_dog)) == [True] * 7 + [False] * 3


def test_a_start_of_a_concept_that_the_prompt_does_not_name_changes_nothing(cat):
    without = latents(cat, "a photo of a dog")
    cat.set_concept("<cat>", start=0.5)
    assert all(same(latents(cat, "a photo of a dog"), without))


def test_a_longer_superclass_makes_room_for_itself(runtime, make_concept):
    """With the superclass in its place the prompt needs one part more than with the concept."""
    runtime.load_concept(make_concept(superclass="teddy bear"))
    length = runtime.bundle.text_encoder.context_length - 2
    prompt = "a " * (length - 1) + "<cat>"
    found = latents(runtime, prompt, **at(0.35))
    plain = latents(runtime, prompt, concept_settings={"<cat>": {"strength": 0.0}})
    assert same(found, plain) == [True] * 4 + [False] * 6


@pytest.mark.parametrize("start", [-0.1, 1, 1.0, float("nan"), "0.5", True])
def test_a_start_out_of_its_range_is_refused(cat, start):
    with pytest.raises(RequestError, match=r"start is .*, expected 0 \(from the beginning\) to below 1"):
        cat.set_concept("<cat>", start=start)
    with pytest.raises(RequestError, match="start is"):
        latents(cat, **at(start))


def test_a_start_after_the_last_step_is_refused_before_the_first(cat):
    assert len(latents(cat, num_inference_steps=4, **at(0.74))) == 4
    with pytest.raises(
        RequestError, match=r"start is 0.8, and the last of the steps stands at 0.75.*more steps"
    ):
        cat.denoise(PROMPT, num_inference_steps=4, scheduler="ddim", **at(0.8))


def test_a_picture_that_is_drawn_over_begins_where_its_noise_does(cat):
    from PIL import Image

    image = Image.new("RGB", (32, 32), "tan")
    over: dict[str, Any] = {"image": image, "image_strength": 0.5}
    # half of the noise levels lie behind the first step that is left
    assert all(same(latents(cat, **over, **at(0.35)), latents(cat, **over)))
    assert not all(same(latents(cat, **over, **at(0.65)), latents(cat, **over)))


@pytest.mark.parametrize("start", [0.1, 0.2, 0.3, 0.45, 0.6, 0.7])
def test_a_start_at_the_level_of_a_step_comes_in_with_it(start):
    """1 − 0.8 is not quite 0.2."""
    model = NoiseModel(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    schedule = make_schedule("ddim", model, 20)
    (at_its_level,) = np.flatnonzero(schedule.timesteps == round(1000 * (1 - start)))
    assert schedule.share(int(at_its_level)) == start


def test_graphs_are_made_ready_for_the_rows_of_every_phase(runtime, make_concept, provider):
    """Prompts that are equally long only until a concept comes in are read in one call until then."""
    length = runtime.bundle.text_encoder.context_length - 2
    # the second is one part until <bear> comes in
    prompts = ["a <dog>", "<cat> " + "a " * (length - 4) + "<bear>"]
    asked: list[int] = []
    with Runtime(runtime.bundle.folder, provider=provider, threads=1, batch_size=2) as pairs:
        pairs.load_concept(make_concept(rows=3))
        pairs.load_concept(make_concept(1, rows=3, token="<dog>", superclass="dog"))
        pairs.load_concept(make_concept(2, rows=2, token="<bear>", superclass="bear"))
        admit = pairs._graphs.admit

        def noting(size: CallSize) -> None:
            asked.append(size.concepts)
            admit(size)

        pairs._graphs.admit = noting  # type: ignore[method-assign]
        latents(pairs, prompts, seed=[1, 2])
        latents(pairs, prompts, seed=[1, 2], **at(0.35, "<bear>"))
    assert list(dict.fromkeys(asked)) == [5, 6]
