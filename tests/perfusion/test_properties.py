"""The fifteen properties that a correct implementation of docs/method.md shows, each under its number.

Here they are asked of what training and drawing really feed a UNet: the keys and values that arrive at every
cross-attention layer of four tiny base models, which have the structures of pocket, of Stable Diffusion 1.5 (noise),
of 2.1 (velocity, linear projections) and of XL (two text encoders). The oracle is the covariance form in float64.
What of a property does not depend on the base model is tested where the code is:

 1  test_edit::test_no_concept_is_the_base_model, test_condition::test_with_every_strength_zero_...,
    test_attention::test_closed_gates_change_no_bit; through an engine tests/export/test_graphs.py
 2  test_edit, from test_the_gate_has_the_known_values_... to test_an_infinite_bias_leaves_...
 3  test_edit::test_with_the_similarity_as_its_gate_... (two)
 4  test_edit::test_a_projected_encoding_..., test_projecting_twice_..., test_scaling_the_covariance_...
 5  test_edit::test_the_edit_is_affine_..., test_attention::test_the_output_is_affine_in_the_values_...
 6  test_families::test_true_architectures_have_their_known_layers_family_and_trained_numbers, test_true_size
 7  test_rank_one::test_direction_after_n_constant_inputs_..., test_direction_stands_still_in_evaluation
 8  test_edit, from test_the_gram_matrix_... to test_subtracting_correlated_concepts_...
 9  test_condition::test_under_the_global_lock_... (two), test_diffusers::test_the_global_lock_takes_keys_...
10  test_edit::test_rows_of_a_batch_are_independent_..., test_attention::test_a_row_of_a_batch_is_what_it_is_alone
11  test_edit::test_half_precision_encodings_move_the_similarity_...
12  test_covariance (in float32)
13  test_train::test_mask_of_ones_is_the_mean_squared_error_..., test_no_gradient_where_the_mask_is_zero_...
14  test_concept::test_a_saved_concept_projects_exactly_as_before, test_concept_refusals, test_bank
15  test_edit::test_the_gates_share_falls_with_the_bias
"""

import copy
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from perfusion.attention import installed, key_projections
from perfusion.bank import EditRows
from perfusion.base import BaseModel, load_base
from perfusion.concept import Concept
from perfusion.conditioning import conditioned, unet_feeds
from perfusion.edit import project
from perfusion.pocket.architecture import build_pipeline
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.covariance import inverse, load_captions, second_moment
from perfusion.training.loop import Run, optimise
from perfusion.training.objective import masked_error
from perfusion.training.prompts import as_tensors, check_superclass, input_ids
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.start import concept_prompt, start_edit, superclass_encoding

PROMPT, SUBJECT = "a good photo of a {} on grass", 6  # the gap stands behind the start and five words


# The four base models


def shaped_pipeline(velocity: bool) -> Any:
    """Stable Diffusion 1.5, or 2.1 with `velocity`, in small: the innermost level has no attention."""
    from diffusers import DDIMScheduler, PNDMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    pipeline, width = build_pipeline("tiny"), 48 if velocity else 32
    torch.manual_seed(width)
    pipeline.text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pipeline.tokenizer), hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2,
            num_attention_heads=2, hidden_act="gelu" if velocity else "quick_gelu",
            bos_token_id=0, eos_token_id=2, pad_token_id=1,
        )
    )  # fmt: skip
    pipeline.unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=(1, 2) if velocity else 2,
        norm_num_groups=4,
        use_linear_projection=velocity,
    )
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    pipeline.scheduler = (
        DDIMScheduler(prediction_type="v_prediction", **schedule) if velocity else PNDMScheduler(**schedule)
    )
    return pipeline


@pytest.fixture(scope="session", params=["pocket", "sd15", "sd21", "sdxl"])
def base(request, tmp_path_factory, tiny_model) -> BaseModel:
    if request.param == "sdxl":
        return request.getfixturevalue("tiny_xl_base")
    pipeline = (
        build_pipeline("tiny") if request.param == "pocket" else shaped_pipeline(request.param == "sd21")
    )
    norm = pipeline.text_encoder.final_layer_norm  # untrained, it would leave C without full rank
    generator = torch.Generator().manual_seed(0)
    norm.weight.data.uniform_(0.5, 1.5, generator=generator)
    norm.bias.data.normal_(generator=generator)  # the large part that real encodings have in common
    folder = tmp_path_factory.mktemp(request.param) / "model"
    pipeline.save_pretrained(folder)
    (folder / "perfusion.json").write_text(json.dumps({"family": f"tiny{request.param}"}))
    shutil.copy(tiny_model / "captions.txt", folder)
    return load_base(folder)


@dataclass(frozen=True, kw_only=True)
class World:
    """A base model with what the covariance form needs, in float64."""

    base: BaseModel
    covariance: np.ndarray  # (text_dim, text_dim), with the ridge of the method
    prompt: Any  # Encodings of PROMPT with a cat in it
    start: RankOneEdit  # of a cat; tests work on copies

    def edit(self, **options: Any) -> RankOneEdit:
        """A fresh edit in evaluation mode, with random values."""
        edit = copy.deepcopy(self.start).eval()
        edit.target_values.data.normal_(generator=torch.Generator().manual_seed(0))
        for name, value in options.items():
            setattr(edit, name, value)
        return edit

    def rows(self, *nouns: str, **settings: Any) -> EditRows:
        """Concepts in the directions of some nouns, with random targets."""
        random = np.random.default_rng([len(noun) + ord(noun[0]) for noun in nouns])
        direction = np.concatenate([self.encode(noun).hidden[:, SUBJECT] for noun in nouns])
        raised = np.linalg.solve(self.covariance, direction.T.astype(np.float64)).T
        energy = (raised * direction).sum(1)
        width = sum(layer.value_dim for layer in self.base.layers)
        many = (len(nouns), width)
        usual = {
            "slots": tuple((f"<{noun}{at}>", 0) for at, noun in enumerate(nouns)),
            "direction": direction,
            "dual": raised / energy[:, None],
            "energy": energy,
            "bias": np.linspace(0.7, 0.5, len(nouns)),
            "temperature": np.full(len(nouns), 0.15),
            "strength": np.ones(len(nouns)),
            "keys": random.normal(size=many).astype(np.float32),
            "values": random.normal(size=many).astype(np.float32),
        }
        return EditRows(**(usual | settings))

    @torch.no_grad()
    def encode(self, noun: str, template: str = PROMPT) -> Any:
        subject = check_superclass(self.base, noun) if noun else ([],) * len(self.base.text_encoders)
        prompt = input_ids(self.base, template, subject)
        return self.base.encode(as_tensors([prompt], torch.device("cpu")))

    def similarity(self, encodings: Any, direction: Any) -> np.ndarray:
        """s_j(e) = <i_j, e> / <i_j, i_j>, (..., J)."""
        raised = np.linalg.solve(self.covariance, np.float64(direction).T)
        return np.float64(encodings) @ raised / np.einsum("jd,dj->j", np.float64(direction), raised)

    def orthogonal(self, encodings: Any, direction: Any) -> np.ndarray:
        """Encodings without the span of the directions: whitened by Cholesky, the span taken out by QR."""
        factor = np.linalg.cholesky(self.covariance)
        span, _ = np.linalg.qr(np.linalg.solve(factor, np.float64(direction).T))
        white = np.linalg.solve(factor, np.float64(encodings).T)
        return (factor @ (white - span @ (span.T @ white))).T


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def world(base, cache) -> World:
    moment = second_moment(base, load_captions(base, None)).numpy()
    ridge = 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment))
    start, _ = start_edit(base, check_superclass(base, "cat"), config(), lambda _: None)
    made = World(base=base, covariance=moment + ridge, prompt=None, start=start)
    return replace(made, prompt=made.encode("cat"))


def config(**options: Any) -> TrainingConfig:
    usual = {
        "superclass": "cat",
        "steps": 2,
        "batch_size": 2,
        "crops": 1,
        "precision": "fp32",
        "masks": "none",
        "select": "last",
    }
    return TrainingConfig(**(usual | options))


# What arrives at the attention


@dataclass(frozen=True, kw_only=True)
class Seen:
    keys: list[np.ndarray]  # of each cross-attention layer, (batch, tokens, key_dim)
    values: list[np.ndarray]
    output: np.ndarray

    def __getitem__(self, rows: Any) -> "Seen":
        return Seen(
            keys=[key[rows] for key in self.keys],
            values=[value[rows] for value in self.values],
            output=self.output[rows],
        )

    @property
    def all(self) -> list[np.ndarray]:
        return [*self.keys, *self.values]


@contextmanager
def listening(unet: Any, names: list[str]) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The keys and values handed to the attention inside the named layers, whoever made them."""
    heard: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    inside: list[str] = []
    attend = F.scaled_dot_product_attention

    def record(query, key, value, *arguments, **options):
        if inside:
            heard[inside[0]] = tuple(one.transpose(1, 2).flatten(2).double().numpy() for one in (key, value))
        return attend(query, key, value, *arguments, **options)

    hooks = []
    for name in names:
        module = unet.get_submodule(name)
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: inside.clear()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", record)
        yield heard
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def observe(base: BaseModel, states: Any, pooled: Any = None, unet: Any = None, **edit: Any) -> Seen:
    """One call of the UNet; with an edit through our processors, without one through diffusers' own."""
    states = torch.as_tensor(states)
    edit = {name: torch.as_tensor(value).detach() for name, value in edit.items()}
    unet, names = unet or base.unet, [layer.name for layer in base.layers]
    size = base.unet.config.sample_size
    noisy = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    if pooled is None and len(base.text_encoders) == 2:
        pooled = torch.ones(1, base.text_encoders[1].config.projection_dim)
    if pooled is not None:
        pooled = pooled.expand(len(states), -1)
    options = base.unet_conditions(pooled, len(states)) | ({"cross_attention_kwargs": edit} if edit else {})

    def call() -> Any:
        return unet(noisy.expand(len(states), -1, -1, -1), torch.tensor(500), states, **options).sample

    with listening(unet, names) as heard:
        if edit:
            with installed(unet):
                output = call()
        else:
            output = call()
    return Seen(
        keys=[heard[name][0] for name in names],
        values=[heard[name][1] for name in names],
        output=output.double().numpy(),
    )


def drawn(base: BaseModel, *states: Any, **changes: Any) -> Seen:
    """What drawing feeds the UNet for some prompts."""
    feeds = {name: torch.from_numpy(array) for name, array in unet_feeds(states).items()} | changes
    return observe(base, feeds.pop("encoder_hidden_states"), **feeds)


def trained(base: BaseModel, edit: RankOneEdit, tokens: Any) -> Seen:
    """What training feeds the UNet for some encodings (tokens, text_dim)."""
    made = edit(torch.as_tensor(tokens, dtype=torch.float32)[None], edit.direction)
    gates = {"key_gate": made.gate, "value_gate": made.gate}
    targets = {"concept_keys": edit.target_keys, "concept_values": edit.target_values}
    return observe(base, made.encodings.detach(), **gates, **targets)[0]


def expected(
    base: BaseModel, states: np.ndarray, gates: Any = None, keys: Any = 0.0, values: Any = 0.0
) -> Any:
    """W e + gate · o* of every layer in float64: keys, then values."""

    def projected(name: str, targets: Any) -> Iterator[np.ndarray]:
        first = 0
        for layer in base.layers:
            weight = base.unet.get_submodule(f"{layer.name}.{name}").weight.double().numpy()
            columns = slice(first, first + len(weight))  # counted here, not asked of the layer table
            first += len(weight)
            yield states @ weight.T + (
                0 if gates is None else gates @ np.asarray(targets, np.float64)[:, columns]
            )

    return [*projected("to_k", keys), *projected("to_v", values)]


def same(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


def identical(found: Seen, wanted: Seen) -> bool:
    return all(map(np.array_equal, found.all, wanted.all)) and np.array_equal(found.output, wanted.output)


def sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


# 1


def test_a_row_without_a_concept_is_the_base_models_bit_for_bit(world):
    rows = world.rows("cat")
    texts = [world.encode(*text).hidden[0] for text in (("dog",), ("", "{}"), ("cat",), ("cat",))]
    uses = [rows.none(), rows.none(), replace(rows, strength=np.zeros(1)), rows]
    states = [conditioned(text.numpy(), use) for text, use in zip(texts, uses, strict=True)]
    found, plain = drawn(world.base, *states), observe(world.base, torch.stack(texts))
    assert identical(found[:3], plain[:3])
    assert not any(np.allclose(a, b, atol=1e-2) for a, b in zip(found[3].all, plain[3].all, strict=True))


# 2


@pytest.mark.parametrize(
    "bias, temperature, opened", [(0.75, 0.1, 0.92414), (0.7, 0.15, 0.88080), (0.6, 0.5, None)]
)
def test_the_own_direction_becomes_its_target_and_an_orthogonal_one_hardly_moves(
    world, bias, temperature, opened
):
    edit = world.edit(bias=bias, temperature=temperature)
    own = edit.direction[0].numpy()
    apart = world.orthogonal(world.prompt.hidden[0, :1], edit.direction)[0]
    gates = sigmoid(np.array([[1 - bias], [-bias]]) / temperature)
    assert opened is None or gates[0, 0] == pytest.approx(opened, abs=1e-5)
    targets = edit.target_keys.numpy(), edit.target_values.detach().numpy()
    wanted = expected(world.base, np.stack([0 * apart, apart]), gates, *targets)
    same(trained(world.base, edit, np.stack([own, apart])).all, wanted)
    rows = world.rows("cat", bias=np.full(1, bias), temperature=np.full(1, temperature))
    tokens = np.stack([rows.direction[0], world.orthogonal(rows.direction + 1, rows.direction)[0]])
    wanted = expected(world.base, np.stack([0 * apart, tokens[1]]), gates, rows.keys, rows.values)
    same(drawn(world.base, conditioned(tokens, rows))[0].all, wanted)


def test_an_infinite_bias_leaves_the_projection_and_nothing_of_the_own_direction(world):
    edit = world.edit(bias=math.inf)
    tokens = np.stack([edit.direction[0], world.prompt.hidden[0, 1]])
    wanted = np.stack([0 * tokens[0], world.orthogonal(tokens[1:], edit.direction)[0]])
    same(trained(world.base, edit, tokens).all, expected(world.base, wanted))


def test_the_gate_is_half_open_where_similarity_equals_the_bias_and_nowhere_else(world):
    hidden = world.prompt.hidden[:, :9]
    similarity = world.similarity(hidden[0], world.start.direction)[:, 0]
    for at, bias in enumerate(similarity):
        edit = world.edit(bias=float(bias))
        gate = edit(hidden, edit.direction).gate[0, :, 0].detach().numpy()
        assert gate[at] == pytest.approx(0.5, abs=1e-4)
        np.testing.assert_array_equal((gate > 0.5)[similarity > bias + 1e-4], True)
        np.testing.assert_array_equal((gate < 0.5)[similarity < bias - 1e-4], True)


# 3


@pytest.mark.parametrize("targets", ["any", "the base's own"])
def test_with_the_similarity_as_its_gate_the_unet_is_one_whose_weights_were_edited(world, targets):
    """ROME's Ŵ = W + (o* − W i*) w*ᵀ, written into a second UNet that diffusers runs."""
    rows, edited = world.rows("cat"), copy.deepcopy(world.base.unet)
    if targets != "any":
        own = expected(world.base, rows.direction)
        half = len(own) // 2
        keys, values = (np.float32(np.hstack(part)) for part in (own[:half], own[half:]))
        rows = replace(rows, keys=keys, values=values)
    for layer in world.base.layers:
        for name, target in (
            ("to_k", rows.keys[:, layer.key_slice]),
            ("to_v", rows.values[:, layer.value_slice]),
        ):
            weight = edited.get_submodule(f"{layer.name}.{name}").weight
            rank_one = (target[0] - weight.double().numpy() @ rows.direction[0])[:, None] * rows.dual
            weight.data.add_(torch.from_numpy(rank_one).float())
    hidden = world.prompt.hidden
    gate = torch.from_numpy(world.similarity(hidden, rows.direction)).float()
    found = drawn(world.base, conditioned(hidden[0].numpy(), rows), key_gate=gate, value_gate=gate)
    wanted = observe(world.base, hidden, unet=edited if targets == "any" else None)
    same([*found.all, found.output], [*wanted.all, wanted.output], 2e-5)


# 4


def test_what_training_projects_is_orthogonal_to_the_direction_and_stays(world):
    edit = world.edit()
    once = edit(world.prompt.hidden, edit.direction).encodings.detach()
    assert np.abs(world.similarity(world.prompt.hidden, edit.direction)).max() > 0.4
    assert np.abs(world.similarity(once, edit.direction)).max() < 1e-5
    torch.testing.assert_close(edit(once, edit.direction).encodings, once, rtol=0, atol=5e-5)
    same([once[0].double().numpy()], [world.orthogonal(world.prompt.hidden[0], edit.direction)])


def test_the_projection_for_drawing_is_orthogonal_in_the_measure_of_real_encodings(world):
    rows = world.rows("cat", "dog")
    e_perp = project(world.prompt.hidden[0].numpy(), rows.direction, rows.dual, rows.energy)
    scale = np.linalg.norm(rows.dual, axis=1).max() * np.abs(e_perp).max()
    assert np.abs(world.similarity(e_perp, rows.direction)).max() < 1e-12 * max(1.0, 10 * scale)


@pytest.mark.parametrize("scale", [1e-6, 7.0, 1e6])
def test_scaling_the_covariance_changes_no_key_and_no_value(world, scale):
    plain = world.edit()
    scaled = world.edit(inverse_moment=plain.inverse_moment / scale)
    tokens = world.prompt.hidden[0]
    same(trained(world.base, scaled, tokens).all, trained(world.base, plain, tokens).all, 1e-6)


# 5


def test_keys_and_values_are_affine_in_their_targets_with_the_gate_as_slope(world):
    rows = world.rows("cat", "dog")
    states = world.prompt.hidden[0].numpy()
    gates = sigmoid((world.similarity(states, rows.direction) - rows.bias) / rows.temperature)
    step = world.rows("dog", "cat").values
    seen = [
        drawn(
            world.base,
            conditioned(states, replace(rows, values=rows.values + k * step, keys=rows.keys - k * step)),
        )
        for k in (0, 1, 5)
    ]
    for k, moved in ((1, seen[1]), (5, seen[2])):
        slopes = [(a[0] - b[0]) / k for a, b in zip(moved.all, seen[0].all, strict=True)]
        same(slopes, expected(world.base, 0 * states, gates, -step, step))


def step_once(world: World, gradient: str = "ema", accumulate: int = 1, **shifts: Any) -> tuple[float, Any]:
    """The first step of a training whose start is moved by `shifts`: its loss, and the edit with its gradients."""
    edit = world.edit(gradient=gradient).train()
    for name, parameter in edit.named_parameters():
        parameter.data.add_(shifts.get(name.replace(".", "_"), 0.0))
    size, generator = world.base.unet.config.sample_size, torch.Generator().manual_seed(5)
    latents = torch.randn(2, 4, size, size, generator=generator)
    mask = torch.rand(2, 1, size, size, generator=generator)
    settings = config(steps=1, batch_size=3, direction_gradient=gradient, accumulate=accumulate)
    losses: list[float] = []
    with installed(world.base.unet):
        optimise(world.base, Run.begin(edit, settings), latents, mask, settings, losses.append)
    return losses[0], edit


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradients_of_a_training_step_are_the_slopes_of_its_loss(world, accumulate):
    _, edit = step_once(world, accumulate=accumulate)
    for name, parameter in edit.named_parameters():
        slope, size = parameter.grad, float(parameter.grad.norm())
        step = 0.1 if name == "target_values" else 0.01
        shifts = ({name.replace(".", "_"): sign * step / size * slope} for sign in (1, -1))
        up, down = (step_once(world, **shift)[0] for shift in shifts)
        assert (up - down) / (2 * step) == pytest.approx(size, rel=0.02), name


# 6


@dataclass(frozen=True, kw_only=True)
class Training:
    concept: Concept
    digests: tuple[list[str], list[str]]  # of every part of the base model, before and after
    seen: list[np.ndarray]  # the mean encoding of the concept's token at every step


@pytest.fixture(scope="session")
def training(world, tmp_path_factory) -> Training:
    """Three steps on two pictures of noise."""
    folder, seen = tmp_path_factory.mktemp("pictures"), []
    for index in range(2):
        noise = np.random.default_rng(index).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    follow, before = RankOneEdit.follow, digests(world.base)

    def watched(self, concept):
        seen.append(concept.detach().double().numpy().copy())
        return follow(self, concept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RankOneEdit, "follow", watched)
        concept = train_concept(folder, config(steps=3), model=world.base)
    return Training(concept=concept, digests=(before, digests(world.base)), seen=seen)


def digests(base: BaseModel) -> list[str]:
    """sha256 of the names and bytes of each part's weights."""
    found = []
    for part in base.parts:
        digest = hashlib.sha256()
        for name, weight in sorted(part.state_dict().items()):
            digest.update(name.encode() + weight.contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def test_training_moves_the_words_and_the_values_and_no_other_bit(world, training):
    before, after = training.digests
    assert before == after
    concept, start = training.concept, world.start
    assert np.array_equal(concept.target_keys, start.target_keys.numpy()), "o*_K is locked"
    encoding = superclass_encoding(world.base, check_superclass(world.base, "cat")).double()
    keys = encoding @ key_projections(world.base.unet).double().T
    np.testing.assert_allclose(concept.target_keys[0], keys, atol=1e-5)
    learned = (*concept.embeddings, concept.target_values)
    for found, was in zip(learned, (*start.embeddings, start.target_values), strict=True):
        assert np.abs(found - was.detach().numpy()).min() > 0, "all of them are trained"
    count = sum(parameter.numel() for parameter in start.parameters() if parameter.requires_grad)
    assert count == sum(world.base.hidden_sizes) + sum(layer.value_dim for layer in world.base.layers)


# 7


def test_the_direction_is_the_moving_average_of_what_training_saw(world, training):
    """i* = .99^N i0 + Σ .01 · .99^(N−k) x_k, once a step, and not once more."""
    count = len(training.seen)
    assert count == 3
    wanted = 0.99**count * world.start.direction.double().numpy()
    wanted += sum(0.01 * 0.99 ** (count - 1 - k) * x for k, x in enumerate(training.seen))
    np.testing.assert_allclose(training.concept.direction, wanted, atol=1e-6)
    assert np.abs(wanted - world.start.direction.numpy()).max() > 1e-4


def test_straight_through_is_a_hundred_times_the_averages_gradient_down_to_the_word(world):
    """Of the part that runs through the direction, which `detach` leaves out; the forward pass is the same."""
    gradients, losses = {}, []
    for mode in ("detach", "ema", "straight_through"):
        loss, edit = step_once(world, mode)
        losses.append(loss)
        gradients[mode] = [table.grad for table in edit.embeddings]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for none, share, whole in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(
            whole - none, 100 * (share - none), rtol=0, atol=5e-3 * float((whole - none).abs().max())
        )
        assert float((whole - none).norm()) > 0.01 * float(none.norm())


# 8


@pytest.mark.parametrize("nouns", [("cat",), ("cat", "dog"), ("cat", "dog", "car", "hat")])
def test_several_concepts_are_solved_together_in_every_layer(world, nouns):
    rows = world.rows(*nouns)
    states = world.prompt.hidden[0].numpy()
    gates = sigmoid((world.similarity(states, rows.direction) - rows.bias) / rows.temperature)
    wanted = expected(world.base, world.orthogonal(states, rows.direction), gates, rows.keys, rows.values)
    same(drawn(world.base, conditioned(states, rows))[0].all, wanted)
    if len(nouns) == 1:  # the single formula
        single = states - world.similarity(states, rows.direction) * rows.direction
        same(wanted, expected(world.base, single, gates, rows.keys, rows.values), 1e-10)
    else:  # the cheap form is something else
        cheap = states - world.similarity(states, rows.direction) @ rows.direction
        assert np.abs(cheap - world.orthogonal(states, rows.direction)).max() > 0.05


def test_the_order_of_concepts_changes_no_key_and_no_value(world):
    rows = world.rows("cat", "dog", "car")
    states = world.prompt.hidden[0].numpy()
    plain = drawn(world.base, conditioned(states, rows))
    for order in itertools.permutations(range(3)):
        at = list(order)
        moved = {name: value[at] for name, value in vars(rows).items() if name != "slots"}
        turned = EditRows(slots=tuple(rows.slots[index] for index in at), **moved)
        same(drawn(world.base, conditioned(states, turned)).all, plain.all, 2e-6)


def test_two_copies_of_a_concept_take_its_direction_out_once(world):
    rows = world.rows("cat")
    stored = {name: np.repeat(value, 2, axis=0) for name, value in vars(rows).items() if name != "slots"}
    stored |= {name: stored[name].astype(np.float32) for name in ("direction", "dual", "energy")}
    states = world.prompt.hidden[0].numpy()
    twice = drawn(world.base, conditioned(states, EditRows(slots=(("<a>", 0), ("<b>", 0)), **stored)))
    gates = 2 * sigmoid((world.similarity(states, rows.direction) - rows.bias) / rows.temperature)
    wanted = expected(world.base, world.orthogonal(states, rows.direction), gates, rows.keys, rows.values)
    same(twice[0].all, wanted, 2e-5)


def test_the_rows_of_a_concept_are_solved_together_in_training(world):
    directions = torch.from_numpy(world.rows("cat", "dog").direction)
    edit = world.edit(direction=directions)
    found = edit(world.prompt.hidden, directions).encodings[0].detach().numpy()
    same([found], [world.orthogonal(world.prompt.hidden[0], directions)], 2e-5)


# 9


def test_under_the_global_lock_keys_are_the_superclass_prompts_and_values_do_not_notice(world):
    rows, states = world.rows("cat"), world.prompt.hidden[0].numpy()
    superclass = world.encode("dog").hidden
    found = drawn(world.base, conditioned(states, rows, "global", superclass[0].numpy()))
    local = drawn(world.base, conditioned(states, rows))
    assert all(map(np.array_equal, found.keys, observe(world.base, superclass).keys))
    assert all(map(np.array_equal, found.values, local.values))
    moved = replace(rows, keys=-rows.keys, values=-rows.values)
    other = drawn(world.base, conditioned(states + 1, moved, "global", superclass[0].numpy()))
    assert all(map(np.array_equal, other.keys, found.keys))
    assert not any(map(np.array_equal, other.values, found.values))


# 10


def test_a_row_of_a_batch_is_the_same_row_run_alone(world):
    prompts = [world.encode(noun).hidden[0].numpy() for noun in ("cat", "dog", "car")]
    concepts = world.rows("cat"), world.rows("dog", "hat"), world.rows("car").none()
    states = [conditioned(one, rows) for one, rows in zip(prompts, concepts, strict=True)]
    together = drawn(world.base, *states)
    for at, state in enumerate(states):
        alone = drawn(world.base, state)
        same([*together[at : at + 1].all, together[at : at + 1].output], [*alone.all, alone.output], 3e-6)


def test_the_same_vector_has_the_same_key_and_value_at_every_position(world):
    states = np.random.default_rng(0).normal(size=(77, world.base.text_dim)).astype(np.float32)
    states[40] = states[3] = world.prompt.hidden[0, SUBJECT]
    edit = world.edit()
    for seen in (
        drawn(world.base, conditioned(states, world.rows("cat")))[0],
        trained(world.base, edit, states),
    ):
        same([one[40] for one in seen.all], [one[3] for one in seen.all], 1e-6)


# 11


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 5e-5), (torch.bfloat16, 5e-4)])
@pytest.mark.parametrize("width", [768, 1024, 2048])
def test_half_precision_inputs_move_the_similarity_by_their_rounding_alone(width, dtype, bound):
    """Data of unit scale, C = 1; the gate is read back through its logit at a temperature that keeps it open."""
    generator = torch.Generator().manual_seed(width)
    hidden, direction = (torch.randn(count, width, generator=generator) for count in (77, 1))
    nothing = torch.zeros(1, 1)
    edit = RankOneEdit(
        embeddings=[nothing], target_keys=nothing, target_values=nothing, direction=direction,
        inverse_moment=torch.eye(width), bias=0.5, temperature=1.0,
    ).eval()  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        made = edit(hidden[None].to(dtype), direction)
    assert made.gate.dtype == made.encodings.dtype == torch.float32
    exact = hidden.double() @ direction.double().T / direction.double().square().sum()
    moved = (torch.logit(made.gate.double()[0]) + 0.5 - exact).abs().max()
    assert 0 < float(moved) <= bound


def test_gate_and_projection_do_not_notice_autocast(world):
    edit = world.edit()
    plain = edit(world.prompt.hidden, edit.direction)
    with torch.autocast("cpu", torch.bfloat16):
        cast = edit(world.prompt.hidden, edit.direction)
    assert torch.equal(cast.gate, plain.gate)
    assert torch.equal(cast.encodings, plain.encodings)


# 12


def test_the_covariance_depends_on_the_tokens_alone(base, monkeypatch):
    """With encodings in float64, which a row's neighbours do not round."""
    precise = load_base(base.folder, torch.float64)
    captions = load_captions(base, None)[:60]
    moments = []
    for order, batch in ((1, 128), (-1, 128), (1, 17)):
        monkeypatch.setattr("perfusion.training.covariance.BATCH", batch)
        moments.append(second_moment(precise, captions[::order]))
    for other in moments[1:]:
        torch.testing.assert_close(other, moments[0], rtol=1e-10, atol=1e-10)
    assert torch.equal(moments[0], moments[0].T)
    assert float(torch.linalg.eigvalsh(moments[0]).min()) > 0
    forms = []
    for caption in captions:
        ids = [tokenizer(caption, return_tensors="pt").input_ids for tokenizer in base.tokenizers]
        tokens = precise.encode(ids).hidden[0].detach()
        forms.append(torch.einsum("td,de,te->t", tokens, inverse(moments[0], ridge=0.0), tokens))
    assert float(torch.cat(forms).mean()) == pytest.approx(base.text_dim, rel=1e-6)


# 13


def test_only_the_ratios_within_a_mask_matter_and_what_it_hides_has_no_gradient():
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(2, 2, 4, 8, 8, generator=generator)
    output.requires_grad_()
    mask = torch.rand(2, 1, 8, 8, generator=generator)
    mask[:, :, 3:] = 0
    wanted = (mask * (output - target) ** 2).sum() / (4 * mask.sum())
    for scale in (1e-6, 1.0, 1e6):
        loss = masked_error(output, target, scale * mask)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=0)
        (slope,) = torch.autograd.grad(loss, output)
        assert torch.count_nonzero(slope[:, :, 3:]) == 0
        assert torch.count_nonzero(slope[:, :, :3]) == slope[:, :, :3].numel()


def test_only_the_ratios_matter_also_beside_an_empty_mask():
    output, target = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    mask[1] = 0
    plain, faint = (masked_error(output, target, scale * mask) for scale in (1.0, 0.01))
    torch.testing.assert_close(faint, plain, rtol=1e-5, atol=0)


# 14


@pytest.mark.parametrize("storage, tolerance", [("float32", 0.0), ("float16", 5e-3)])
def test_a_saved_concept_gives_the_keys_and_values_it_gave(world, training, tmp_path, storage, tolerance):
    concept = training.concept
    concept.save(tmp_path / "cat.safetensors", storage)
    states = world.prompt.hidden[0].numpy()
    before, after = (
        drawn(world.base, conditioned(states, concept_rows(one)))
        for one in (concept, Concept.load(tmp_path / "cat.safetensors"))
    )
    same(after.all, before.all, tolerance)
    assert np.array_equal(before.output, after.output) == (storage == "float32")


def concept_rows(concept: Concept, bias: float = 0.75) -> EditRows:
    """A concept's rows at τ = .15."""
    return EditRows(
        slots=((concept.token, 0),), direction=concept.direction, dual=concept.dual, energy=concept.energy,
        bias=np.full(1, bias), temperature=np.full(1, 0.15), strength=np.ones(1),
        keys=np.asarray(concept.target_keys), values=concept.target_values,
    )  # fmt: skip


# 15


def test_the_concepts_share_of_keys_and_values_falls_with_the_bias(world, training):
    ids = concept_prompt(world.base, PROMPT, 1)
    tables = [torch.from_numpy(table.copy()) for table in training.concept.embeddings]
    with torch.no_grad():
        states = world.base.encode(as_tensors([ids], torch.device("cpu")), tables).hidden[0].numpy()
    without, *seen = (
        drawn(world.base, conditioned(states, concept_rows(training.concept, bias)))
        for bias in (math.inf, *np.linspace(0.4, 1.1, 8))
    )
    shares = [
        [
            np.linalg.norm(one - other, axis=-1).mean()
            for one, other in zip(each.all, without.all, strict=True)
        ]
        for each in seen
    ]
    assert (np.diff(shares, axis=0) < 0).all()


@pytest.mark.slow  # a dozen pictures
def test_pictures_resemble_the_subject_less_as_the_bias_rises():
    from perfusion.pocket import model_path
    from perfusion.pocket.judge import Judge
    from perfusion.runtime import Runtime

    judge, subjects = Judge(threads=1), Path(__file__).parents[2] / "examples" / "subjects"
    subject = judge([Image.open(path) for path in sorted((subjects / "pink-cake").glob("*.png"))]).embeddings
    likeness = []
    with Runtime(threads=1) as runtime:
        concept = runtime.load_concept(model_path() / "concepts" / "pink-cake.safetensors")
        prompts = [f"a photo of a {concept.token} {place}" for place in ("on a beach", "in the snow")]
        for bias in (0.4, 0.75, 1.1):
            runtime.set_concept(concept.token, bias=bias)
            pictures = [
                runtime.generate(prompt, seed=seed, num_inference_steps=8)
                for prompt in prompts
                for seed in (0, 1)
            ]
            likeness.append(float((judge(pictures).embeddings @ subject.T).mean()))
    assert likeness[0] > likeness[-1], likeness
