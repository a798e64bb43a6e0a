"""Our pictures against diffusers', and the edit against the formula written into a torch model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from perfusion import Concept
from perfusion.bundle.description import Layer
from perfusion.concept.edit import edited_projection
from perfusion.runtime import Runtime
from perfusion.runtime.sampling.noise import initial_noise

PROMPT = "a photo of <cat> on a beach"


def levels(picture: Any) -> np.ndarray:
    """A PIL picture as numbers."""
    return np.asarray(picture, np.int16)


def decibels(found: Any, expected: Any) -> float:
    """Peak signal to noise of two pictures of 8 bits."""
    error = np.mean((levels(found) - levels(expected)).astype(np.float64) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def same(one: Any, other: Any) -> bool:
    return np.array_equal(levels(one), levels(other))


def drawn(runtime: Runtime, prompt: str, **options: Any) -> np.ndarray:
    """The last latents, (channels, height, width)."""
    *_, last = runtime.denoise(prompt, **options)
    return last.latents[0]


def distance(found: Any, expected: Any) -> float:
    """Relative L2."""
    difference = np.asarray(found) - np.asarray(expected)
    return float(np.linalg.norm(difference) / np.linalg.norm(np.asarray(expected)))


def theirs(
    pipeline: Any, scheduler: str = "ddim", seed: int = 0, output_type: str = "pil", **call: Any
) -> Any:
    """diffusers' picture, from our noise and with its own scheduler."""
    config = pipeline.scheduler
    if scheduler == "euler":
        pipeline.scheduler = EulerDiscreteScheduler.from_config(config.config)
    try:
        size = {"height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0, **call}
        noise = initial_noise(seed, (1, 4, size["height"] // 4, size["width"] // 4))
        return pipeline(latents=torch.from_numpy(noise), output_type=output_type, **size).images[0]
    finally:
        pipeline.scheduler = config


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # diffusers' Euler and numpy 2
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},  # how turbo models are drawn, by the pages they come with
        {"guidance_scale": 7.5, "negative_prompt": "a dog at night"},
        {"num_inference_steps": 1},
        {"num_inference_steps": 13, "width": 48, "height": 24},
    ],
    ids=str,
)
def test_the_picture_equals_that_of_diffusers(runtime, toy_pipeline, scheduler, options):
    found = runtime.generate("a photo of a cat on a beach", seed=7, scheduler=scheduler, **options)
    expected = theirs(toy_pipeline, scheduler, 7, prompt="a photo of a cat on a beach", **options)
    assert levels(expected).std() > 5, "a flat picture would prove nothing"
    assert decibels(found, expected) >= 50
    latents = drawn(runtime, "a photo of a cat on a beach", seed=7, scheduler=scheduler, **options)
    call = {"prompt": "a photo of a cat on a beach", "output_type": "latent", **options}
    assert distance(latents, theirs(toy_pipeline, scheduler, 7, **call)) < 1e-5


@pytest.mark.parametrize("prompt", ["", "A CAT, two dogs; кошка!"])
def test_any_text_gives_diffusers_picture(runtime, toy_pipeline, prompt):
    assert decibels(runtime.generate(prompt), theirs(toy_pipeline, prompt=prompt)) >= 50


class EditedProjection(torch.nn.Module):
    """A `to_k` or `to_v` in whose last row, the prompt's, the formula is evaluated in float64."""

    def __init__(self, base: torch.nn.Linear, targets: np.ndarray, edit: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.base, self.targets, self.edit = base, targets, edit
        self.out_features = base.out_features

    def forward(self, encodings: torch.Tensor) -> torch.Tensor:
        answer = self.base(encodings)
        weight = self.base.weight.numpy()
        answer[-1] = torch.from_numpy(
            edited_projection(encodings[-1].numpy(), weight, self.targets, **self.edit)
        )
        return answer


class SuperclassKeys(torch.nn.Module):
    """A `to_k` under the global lock: the prompt's row reads the superclass prompt, unedited."""

    def __init__(self, base: torch.nn.Linear, superclass: torch.Tensor) -> None:
        super().__init__()
        self.base, self.superclass = base, superclass

    def forward(self, encodings: torch.Tensor) -> torch.Tensor:
        return self.base(torch.cat([encodings[:-1], self.superclass]))


@contextmanager
def edited_model(
    pipeline: Any,
    layers: Sequence[Layer],
    concepts: list[Concept],
    strength: float = 1.0,
    superclass: torch.Tensor | None = None,
) -> Iterator[None]:
    """The pipeline's UNet with the concepts written into its projections."""
    edit = {
        name: np.concatenate([getattr(one, name) for one in concepts])
        for name in ("direction", "dual", "energy")
    }
    for name in ("bias", "temperature"):
        edit[name] = np.concatenate([np.full(one.rows, getattr(one, name)) for one in concepts])
    edit["strength"] = np.full(len(edit["energy"]), strength)
    modules = [pipeline.unet.get_submodule(layer.name) for layer in layers]
    originals = [(module.to_k, module.to_v) for module in modules]
    start = 0
    for module in modules:
        part = slice(start, start := start + module.to_v.out_features)  # keys are as wide as values here
        values, keys = (
            np.concatenate([getattr(one, name)[:, part] for one in concepts])
            for name in ("target_values", "target_keys")
        )
        module.to_v = EditedProjection(module.to_v, values, edit)
        if superclass is None:
            module.to_k = EditedProjection(module.to_k, keys, edit)
        else:
            module.to_k = SuperclassKeys(module.to_k, superclass)
    try:
        yield
    finally:
        for module, (to_k, to_v) in zip(modules, originals, strict=True):
            module.to_k, module.to_v = to_k, to_v


@torch.no_grad()
def encoded(pipeline: Any, *pieces: str | Concept) -> torch.Tensor:
    """(1, 77, text_dim) encodings of texts and concepts, by a text encoder whose table got the concepts' words."""
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    table = encoder.get_input_embeddings()
    words = table.weight
    ids = [tokenizer.bos_token_id]
    for piece in pieces:
        if isinstance(piece, Concept):
            ids += range(len(words), len(words) + piece.rows)
            words = torch.cat([words, torch.from_numpy(piece.embeddings[0].copy())])
        else:
            ids += tokenizer(piece).input_ids[1:-1]
    ids += [tokenizer.eos_token_id] * (77 - len(ids))
    encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(words))
    try:
        return encoder(torch.tensor([ids])).last_hidden_state
    finally:
        encoder.set_input_embeddings(table)


def embeds(pipeline: Any, *pieces: str | Concept) -> dict[str, Any]:
    """What diffusers takes in the place of prompts; and latents out, which are finer than pictures."""
    prompt, negative = encoded(pipeline, *pieces), encoded(pipeline)
    return {"prompt_embeds": prompt, "negative_prompt_embeds": negative, "output_type": "latent"}


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_concept_is_the_formula_in_every_layer(
    runtime, bundle, toy_pipeline, make_concept, guidance_scale, strength, rows
):
    concept = make_concept(rows=rows)
    call = {**embeds(toy_pipeline, "a photo of", concept, "on a beach"), "guidance_scale": guidance_scale}
    plain = encoded(toy_pipeline, "a photo of cat on a beach")
    # a second row has the last padding of the prompt with one token less for its partner
    plain = plain if rows == 1 else plain[:, [*range(4), 76, *range(4, 76)]]
    call["prompt_embeds"] = strength * call["prompt_embeds"] + (1 - strength) * plain
    base = theirs(toy_pipeline, **call)
    with edited_model(toy_pipeline, bundle.unet.layers, [concept], strength):
        expected = theirs(toy_pipeline, **call)
    runtime.load_concept(concept, strength=strength)
    found = drawn(runtime, PROMPT, guidance_scale=guidance_scale)
    assert distance(found, expected) < 1e-5
    assert distance(base, expected) > 1e-2, "an edit that hardly shows would prove nothing"


def test_two_concepts_in_one_picture_are_solved_together(runtime, bundle, toy_pipeline, make_concept):
    cat, dog = make_concept(0), make_concept(1, token="<dog>", bias=-0.2)
    call = embeds(toy_pipeline, "a", cat, "and a", dog)
    with edited_model(toy_pipeline, bundle.unet.layers, [cat, dog]):
        expected = theirs(toy_pipeline, **call)
    with edited_model(toy_pipeline, bundle.unet.layers, [cat]):
        one_only = theirs(toy_pipeline, **call)
    runtime.load_concept(dog)
    runtime.load_concept(cat)
    assert distance(drawn(runtime, "a <cat> and a <dog>", regions=None), expected) < 1e-5
    assert distance(one_only, expected) > 1e-2


@pytest.mark.parametrize("superclass", ["cat", "teddy bear"])
def test_the_global_lock_takes_keys_from_the_superclass_prompt(
    runtime, bundle, toy_pipeline, make_concept, superclass
):
    concept = make_concept(superclass=superclass)
    written_out = encoded(toy_pipeline, "a photo of", superclass, "on a beach")
    # "teddy bear" has a token more than the concept: skip "teddy", and read the last padding twice
    keys = written_out if superclass == "cat" else written_out[:, [*range(4), *range(5, 77), 76]]
    call = embeds(toy_pipeline, "a photo of", concept, "on a beach")
    with edited_model(toy_pipeline, bundle.unet.layers, [concept], superclass=keys):
        expected = theirs(toy_pipeline, **call)
    runtime.load_concept(concept)
    assert distance(drawn(runtime, PROMPT, lock="global"), expected) < 1e-5
    assert distance(drawn(runtime, PROMPT, lock="local"), expected) > 1e-3


def test_an_unloaded_token_is_plain_text_with_a_warning(runtime, toy_pipeline, make_concept, caplog):
    runtime.load_concept(make_concept())
    runtime.unload_concept("<cat>")
    assert not caplog.records
    assert decibels(runtime.generate(PROMPT), theirs(toy_pipeline, prompt=PROMPT)) >= 50
    assert [record.getMessage() for record in caplog.records] == [
        "no concept named <cat> is loaded, so it is read as plain text"
    ]


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("superclass", ["cat", "teddy bear"])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_strength_leads_from_the_superclass_to_the_concept_without_a_jump(
    runtime, make_concept, lock, superclass, rows
):
    runtime.load_concept(make_concept(superclass=superclass, rows=rows))
    for end in (0.0, 1.0):
        runtime.set_concept("<cat>", strength=end)
        there = drawn(runtime, PROMPT, lock=lock)
        runtime.set_concept("<cat>", strength=abs(end - 1e-6))
        assert distance(drawn(runtime, PROMPT, lock=lock), there) < 1e-5


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("superclass", ["cat", "teddy bear"])
def test_strength_0_is_the_base_models_picture_of_the_superclass(runtime, make_concept, lock, superclass):
    base = runtime.generate(PROMPT.replace("<cat>", superclass))
    runtime.load_concept(make_concept(superclass=superclass), strength=0)
    assert same(runtime.generate(PROMPT, lock=lock), base)
    runtime.set_concept("<cat>", strength=1)
    assert not same(runtime.generate(PROMPT, lock=lock), base)
