"""What a picture without regions was before graphs knew them: one reading of format 2 against the graph of format 1.

Stable Diffusion 1.5, 2.1 and XL in little: their published settings with few channels, random weights.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models.region_graphs import first_graph, fused
from perfusion.base.attention import installed, layer_table
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import End, Graph, UNet
from perfusion.export.weights import save

CONFIGS = Path(__file__).parents[1] / "data" / "base_models"
SIDE, TOKENS, STEPS, TEXT_DIM, POOLED_DIM = 16, 9, 20, 24, 20
LITTLE: dict[str, Any] = {"layers_per_block": 1, "norm_num_groups": 8, "cross_attention_dim": TEXT_DIM}
STRUCTURES: dict[str, dict[str, Any]] = {
    "sd15": {"block_out_channels": (16, 16, 32, 32), "attention_head_dim": 4},
    "sd21": {"block_out_channels": (16, 16, 32, 32), "attention_head_dim": (1, 2, 4, 4)},
    "sdxl": {
        "block_out_channels": (16, 16, 32), "attention_head_dim": (1, 2, 4),
        "transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": POOLED_DIM + 6 * 8,
    },
}  # fmt: skip

NAMES = (
    "sample", "timestep", "encoder_hidden_states",
    "key_hidden_states", "key_gate", "value_gate", "concept_keys", "concept_values",
)  # fmt: skip

Arrays = dict[str, np.ndarray]
Predict = Callable[[Arrays], np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """A small UNet, what it reads, and the schedule of its noise."""

    name: str
    unet: Any
    conditions: dict[str, int]
    scheduler: dict[str, Any]

    def feeds(self, readings: int = 1) -> Arrays:
        """Noise for every input: two rows, the first without a concept, the second with two."""
        random = np.random.default_rng(0)
        width = layer_table(self.unet)[-1].key_slice.stop

        def normal(*shape: int) -> np.ndarray:
            return random.normal(size=shape).astype(np.float32)

        gate = abs(normal(2, readings * TOKENS, 2))
        gate[0] = 0
        maps = random.random((2, readings, SIDE, SIDE)).astype(np.float32)
        given: Arrays = {
            "sample": normal(2, 4, SIDE, SIDE),
            "timestep": np.full(2, 981, np.float32),
            "encoder_hidden_states": normal(2, readings * TOKENS, TEXT_DIM),
            "key_hidden_states": normal(2, readings * TOKENS, TEXT_DIM),
            "key_gate": gate,
            "value_gate": gate,
            "concept_keys": normal(2, width),
            "concept_values": normal(2, width),
            "regions": maps / maps.sum(1, keepdims=True),
        }
        sizes = {"text_embeds": normal(2, POOLED_DIM), "time_ids": np.full((2, 6), 64, np.float32)}
        return given | {name: sizes[name] for name in self.conditions}

    def graph(self) -> Graph:
        """The UNet's graph, as a bundle of format 2 has it."""
        latents = ("batch", 4, "height", "width")
        dims: dict[str, tuple[str | int, ...]] = {
            "sample": latents,
            "timestep": ("batch",),
            "regions": ("batch", "regions", "height", "width"),
        }
        ends = []
        for name, feed in self.feeds().items():
            usual = (("concepts" if name.startswith("concept_") else "batch"), *feed.shape[1:])
            if feed.ndim == 3:
                usual = ("batch", "tokens", "concepts" if name.endswith("_gate") else TEXT_DIM)
            ends.append(End(name=name, dims=dims.get(name, usual)))
        return Graph(
            name="unet",
            module=UNet(self.unet, tuple(self.conditions)),
            inputs=tuple(ends),
            outputs=(End(name="out_sample", dims=latents),),
            example={"batch": 2, "concepts": 3, "tokens": 35, "regions": 5, "height": 16, "width": 24},
        )

    def drawn(self, predict: Predict, feeds: Arrays) -> np.ndarray:
        """The latents after 20 steps with guidance, from the noise of the first row."""
        scheduler = diffusers.DDIMScheduler.from_config(self.scheduler, clip_sample=False)
        scheduler.set_timesteps(STEPS)
        latents = torch.from_numpy(feeds["sample"][:1])
        for timestep in scheduler.timesteps:
            sample = latents.repeat(2, 1, 1, 1).numpy()
            call = feeds | {"sample": sample, "timestep": np.full(2, float(timestep), np.float32)}
            plain, conditional = torch.from_numpy(predict(call))
            noise_pred = plain + 4 * (conditional - plain)
            latents = scheduler.step(noise_pred[None], timestep, latents).prev_sample
        return latents.numpy()


@pytest.fixture(scope="module", params=STRUCTURES)
def structure(request) -> Structure:
    config = json.loads((CONFIGS / f"{request.param}.json").read_text())
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config["unet"] | LITTLE | STRUCTURES[request.param])
    return Structure(
        name=request.param,
        unet=unet.eval().requires_grad_(False),
        conditions={"text_embeds": POOLED_DIM, "time_ids": 6} if request.param == "sdxl" else {},
        scheduler=config["scheduler"],
    )


def by_torch(graph: Graph) -> Predict:
    @torch.no_grad()
    def predict(feeds: Arrays) -> np.ndarray:
        noise_pred = graph.module(*(torch.from_numpy(feeds[end.name]) for end in graph.inputs))
        return np.asarray(noise_pred)

    return predict


def decibels(found: np.ndarray, expected: np.ndarray) -> float:
    """Of latents: their peak against their distance."""
    error = float(np.mean((found.astype(np.float64) - expected) ** 2))
    return float(20 * np.log10(np.ptp(expected)) - 10 * np.log10(max(error, 1e-30)))


def test_one_reading_in_torch_is_the_unet_without_regions(structure):
    """Over 20 steps; it differs by rounding: torch's fused attention against products written out."""
    graph, feeds = structure.graph(), structure.feeds()
    with installed(structure.unet):
        found = structure.drawn(by_torch(graph), feeds)
        expected = structure.drawn(by_torch(first_graph(graph)), feeds)
        edited, plain = (by_torch(graph)(feeds | {"value_gate": k * feeds["value_gate"]}) for k in (1, 0))
    assert decibels(found, expected) >= 90
    assert np.abs(edited - plain).max() > 1e-2, "a concept that hardly shows would prove nothing"


@pytest.mark.slow
def test_one_reading_of_an_exported_graph_is_format_1_bit_for_bit(structure, open_session, tmp_path):
    """Over 20 steps in float32, run by ONNX Runtime on a processor."""
    second, feeds = structure.graph(), structure.feeds()
    latents = []
    with installed(structure.unet):
        for graph in (first_graph(second), second):
            path = tmp_path / f"{len(graph.inputs)}.onnx"
            save(to_onnx(graph), path)
            session = open_session(path)

            def predict(call: Arrays, graph: Graph = graph, session: Any = session) -> np.ndarray:
                taken = {end.name: call[end.name] for end in graph.inputs}
                if graph is not second:
                    taken["timestep"] = taken["timestep"][:1]
                return np.asarray(session.run(None, taken)[0])

            latents.append(structure.drawn(predict, feeds))
        many = structure.feeds(readings=3)
        found, expected = predict(many), by_torch(second)(many)
    np.testing.assert_array_equal(*latents)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


class ReadingByReading:
    """Attention with regions, computed otherwise: every reading alone, by torch's fused kernel, one place at a time."""

    def __init__(self, keys: slice = slice(0), values: slice = slice(0)) -> None:
        self.keys, self.values = keys, values

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: None = None,
        *,
        key_hidden_states: Tensor,
        key_gate: Tensor,
        value_gate: Tensor,
        concept_keys: Tensor,
        concept_values: Tensor,
        maps: Tensor,
    ) -> Tensor:
        hidden = hidden_states
        if encoder_hidden_states is None:
            return self.attended(attn, hidden, attn.to_k(hidden), attn.to_v(hidden))
        key = attn.to_k(key_hidden_states) + key_gate @ concept_keys[:, self.keys]
        value = attn.to_v(encoder_hidden_states) + value_gate @ concept_values[:, self.values]
        side = int(hidden.shape[1] ** 0.5)
        covered = SIDE // side
        out = torch.zeros_like(hidden)
        for reading in range(maps.shape[1]):
            own = slice(reading * TOKENS, (reading + 1) * TOKENS)
            read = self.attended(attn, hidden, key[:, own], value[:, own], bias=False)
            for place in range(side * side):
                top, left = covered * (place // side), covered * (place % side)
                share = maps[:, reading, top : top + covered, left : left + covered].mean((1, 2))
                out[:, place] += share[:, None] * read[:, place]
        return out + attn.to_out[0].bias

    @staticmethod
    def attended(attn: Any, hidden: Tensor, key: Tensor, value: Tensor, *, bias: bool = True) -> Tensor:
        heads = [
            states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for states in (attn.to_q(hidden), key, value)
        ]
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        projection = attn.to_out[0]
        return F.linear(attended, projection.weight, projection.bias if bias else None)


@pytest.mark.parametrize("readings", [2, 3])
def test_many_readings_are_each_read_alone_and_weighed_place_by_place(structure, readings):
    feeds, other = structure.feeds(readings), copy.deepcopy(structure.unet)
    layers = {layer.name: layer for layer in layer_table(other)}
    for name, attention in other.named_modules():
        if name.endswith((".attn1", ".attn2")):
            layer = layers.get(name)
            attention.set_processor(
                ReadingByReading(layer.key_slice, layer.value_slice) if layer else ReadingByReading()
            )
    tensors = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
    sample, timestep, states, *edit = (tensors.pop(name) for name in NAMES)
    with torch.no_grad():
        expected = other(
            sample, timestep, states,
            added_cond_kwargs={name: tensors.pop(name) for name in structure.conditions} or None,
            cross_attention_kwargs=dict(zip((*NAMES[3:], "maps"), (*edit, tensors["regions"]), strict=True)),
        ).sample.numpy()  # fmt: skip
    with installed(structure.unet):
        found = by_torch(structure.graph())(feeds)
        turned = by_torch(structure.graph())(feeds | {"regions": np.roll(feeds["regions"], 1, axis=1)})
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)
    assert np.abs(turned - expected).max() > 1e-3


def test_the_fused_form_is_the_same_where_regions_do_not_overlap_and_not_elsewhere(structure):
    """One softmax with log m, measured by benchmarks/region_step.py, against the softmax of each reading."""
    soft, graph = structure.feeds(readings=2), structure.graph()
    halves = np.zeros_like(soft["regions"])
    halves[:, 0, :, : SIDE // 2], halves[:, 1, :, SIDE // 2 :] = 1, 1
    distances = []
    for feeds in (soft | {"regions": halves}, soft):
        with installed(structure.unet):
            exact = by_torch(graph)(feeds)
            with fused(structure.unet):
                distances.append(np.abs(by_torch(graph)(feeds) - exact).max())
    assert distances[0] < 2e-5 < 1e-4 < distances[1]
