"""The fifteen properties that a correct implementation of docs/method.md shows, each under its number.

Here they are asked of what training and drawing really feed a UNet: the keys and values that arrive at every
cross-attention layer of four tiny base models, which have the structures of pocket, of Stable Diffusion 1.5 (noise),
of 2.1 (velocity, linear projections) and of XL (two text encoders). The oracle is the covariance form in float64.
What of a property does not depend on the base model is tested where the code is, under the same marker.

pytest -m "property(number=8)"     everything about the eighth property

 1  without a concept, or at strength 0, a row is the base model's bit for bit
 2  at its own direction the edit gives its target times the gate, and an orthogonal encoding hardly moves
 3  with the similarity as its gate the edit is the closed rank-1 form, a change of the weights
 4  what is projected is orthogonal to the direction, projecting twice is projecting once, C's scale does not matter
 5  keys and values are affine in their targets, and the gate is the slope
 6  training moves the word and the values and nothing else, in the numbers known of the true architectures
 7  the direction is the moving average of what training saw
 8  several concepts are solved together: their order does not matter, and a copy is taken out once
 9  under the global lock keys are those of the superclass's prompt, and values do not notice
10  a row of a batch is the row computed alone, at every position
11  half precision moves the similarity by its rounding alone
12  C is the second moment of the tokens, whatever their order and batch
13  a mask weighs the loss, only its ratios matter, and there is no gradient where it is zero
14  a saved concept draws as before
15  the concept's share falls with the bias
"""

import copy
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from perfusion.base.attention import installed
from perfusion.base.base_model import BaseModel, load_base
from perfusion.concept.bank import EditRows
from perfusion.concept.concept_file import Concept
from perfusion.concept.conditioning import unet_feeds
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.covariance import load_captions, second_moment
from perfusion.training.initial_edit import initial_edit
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.templates import as_tensors, check_superclass, input_ids
from recipes.pocket.architecture import build_pipeline

PROMPT = "a good photo of a {} on grass"


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

    def equals(self, other: "Seen") -> bool:
        """Bit for bit."""
        return all(map(np.array_equal, [*self.all, self.output], [*other.all, other.output]))


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


@dataclass(frozen=True, kw_only=True)
class World:
    """A base model with what the covariance form needs, in float64."""

    base: BaseModel
    covariance: np.ndarray  # (text_dim, text_dim), with the ridge of the method
    prompt: Any  # Encodings of "a good photo of a cat on grass"
    subject = 6  # where in it the cat stands, behind the start and five words
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
        direction = np.concatenate([self.encode(noun).hidden[:, self.subject] for noun in nouns])
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

    def gates(self, states: Any, rows: EditRows) -> np.ndarray:
        """σ((s − β) / τ), (tokens, J)."""
        return 1 / (1 + np.exp((rows.bias - self.similarity(states, rows.direction)) / rows.temperature))

    def rows_of(self, concept: Concept, bias: float = 0.75) -> EditRows:
        """A concept's rows at τ = .15."""
        return EditRows(
            slots=((concept.token, 0),), direction=concept.direction, dual=concept.dual, energy=concept.energy,
            bias=np.full(1, bias), temperature=np.full(1, 0.15), strength=np.ones(1),
            keys=np.asarray(concept.target_keys), values=concept.target_values,
        )  # fmt: skip

    def config(self, **options: Any) -> TrainingConfig:
        """A training of two steps on what it is given, in float32."""
        return config(**options)

    @torch.no_grad()
    def observe(self, states: Any, pooled: Any = None, unet: Any = None, **edit: Any) -> Seen:
        """One call of the UNet; with an edit through our processors, without one through diffusers' own."""
        base, states = self.base, torch.as_tensor(states)
        edit = {name: torch.as_tensor(value).detach() for name, value in edit.items()}
        unet, names = unet or base.unet, [layer.name for layer in base.layers]
        size = base.unet.config.sample_size
        noisy = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
        if pooled is None and len(base.text_encoders) == 2:
            pooled = torch.ones(1, base.text_encoders[1].config.projection_dim)
        if pooled is not None:
            pooled = pooled.expand(len(states), -1)
        options = base.unet_conditions(pooled, len(states)) | (
            {"cross_attention_kwargs": edit} if edit else {}
        )

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

    def drawn(self, *states: Any, **changes: Any) -> Seen:
        """What drawing feeds the UNet for some prompts."""
        feeds = {name: torch.from_numpy(array) for name, array in unet_feeds(states).items()} | changes
        return self.observe(feeds.pop("encoder_hidden_states"), **feeds)

    def trained(self, edit: RankOneEdit, tokens: Any) -> Seen:
        """What training feeds the UNet for some encodings (tokens, text_dim)."""
        made = edit(torch.as_tensor(tokens, dtype=torch.float32)[None], edit.direction)
        gates = {"key_gate": made.gate, "value_gate": made.gate}
        targets = {"concept_keys": edit.target_keys, "concept_values": edit.target_values}
        return self.observe(made.encodings.detach(), **gates, **targets)[0]

    def expected(self, states: np.ndarray, gates: Any = None, keys: Any = 0.0, values: Any = 0.0) -> Any:
        """W e + gate · o* of every layer in float64: keys, then values."""

        def projected(name: str, targets: Any) -> Iterator[np.ndarray]:
            first = 0
            for layer in self.base.layers:
                weight = self.base.unet.get_submodule(f"{layer.name}.{name}").weight.double().numpy()
                columns = slice(first, first + len(weight))  # counted here, not asked of the layer table
                first += len(weight)
                yield states @ weight.T + (
                    0 if gates is None else gates @ np.asarray(targets, np.float64)[:, columns]
                )

        return [*projected("to_k", keys), *projected("to_v", values)]

    def same(self, found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 1e-5) -> None:
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def world(base, cache) -> World:
    moment = second_moment(base, load_captions(base, None)).numpy()
    ridge = 1e-6 * np.trace(moment) / len(moment) * np.eye(len(moment))
    start, _ = initial_edit(base, check_superclass(base, "cat"), config(), lambda _: None)
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


# What training makes


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
