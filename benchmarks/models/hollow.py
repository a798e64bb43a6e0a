"""The graphs of published models, without their weights: what benchmarks/plan.py plans on every device.

A memory plan reads shapes, never numbers, so that the plan of a model of several gigabytes needs none of them: the
modules are built from the published settings in tests/data/base_models with parameters that are one number seen under
the right shape, and go through the exporter. A graph takes some hundred kilobytes; onnxruntime cannot run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.models import CONFIGS, VAE
from benchmarks.models.kept import EXPORTER, kept
from perfusion.base.attention import installed, layer_table
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import (
    End,
    Graph,
    PenultimateEncoder,
    PoolingEncoder,
    TextEncoder,
    UNet,
    VAEDecoder,
)
from perfusion.files import writing

__all__ = ["hollow_model", "save_hollow", "unet_graph"]


def hollow(module: nn.Module) -> nn.Module:
    """The module, made on "meta", with zeros that take no memory for its parameters."""
    for part in module.modules():
        for name, weight in list(part._parameters.items()):
            if weight is not None:
                zeros = torch.zeros(1, dtype=weight.dtype).expand(weight.shape)
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None and buffer.device.type == "meta":
                part._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        positions = getattr(part, "position_ids", None)
        if isinstance(positions, torch.Tensor):
            part.position_ids = torch.arange(positions.shape[-1]).expand(1, -1)
    return module.eval()


def graphs(name: str) -> Iterator[Graph]:
    """The graphs that drawing with a base model needs, as `perfusion.export.graph_modules` makes them."""
    config = json.loads((CONFIGS / f"{name}.json").read_text())
    encoders = config["text_encoders"]
    for index, settings in enumerate(encoders):
        yield _text_encoder(settings, index, len(encoders))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config["unet"])
        vae = AutoencoderKL(**VAE)
    with installed(unet):
        yield unet_graph(hollow(unet), encoders)
    yield Graph(
        name="vae_decoder",
        module=VAEDecoder(hollow(vae)),
        inputs=(End(name="latent_sample", dims=("batch", 4, "height", "width")),),
        outputs=(End(name="sample", dims=("batch", 3, "picture_height", "picture_width")),),
        example={"batch": 2, "height": 4, "width": 6},
    )


def _text_encoder(settings: dict[str, Any], index: int, count: int) -> Graph:
    kind = CLIPTextModelWithProjection if index else CLIPTextModel
    with torch.device("meta"):
        encoder = kind(CLIPTextConfig(**settings))
    hollow(encoder)
    width = settings["hidden_size"]
    module: nn.Module = TextEncoder(encoder)
    state = "last_hidden_state"
    if count == 2:
        module = PoolingEncoder(encoder, settings["eos_token_id"]) if index else PenultimateEncoder(encoder)
        state = "penultimate_hidden_state"
    pooled = (End(name="text_embeds", dims=("batch", settings["projection_dim"])),) if index else ()
    return Graph(
        name=("text_encoder", "text_encoder_2")[index],
        module=module,
        inputs=(
            End(name="input_ids", dims=("batch", 77), dtype=torch.int64),
            End(name="concept_embeddings", dims=("concepts", width)),
        ),
        outputs=(End(name=state, dims=("batch", 77, width)), *pooled),
        example={"batch": 2, "concepts": 3},
    )


def unet_graph(unet: Any, encoders: list[dict[str, Any]]) -> Graph:
    """A UNet's graph; `encoders` are the settings of the text encoders, two of them for SDXL."""
    width = unet.config.cross_attention_dim
    keys = layer_table(unet)[-1].key_slice.stop
    conditions = {"text_embeds": encoders[1]["projection_dim"], "time_ids": 6} if len(encoders) == 2 else {}
    latents = ("batch", 4, "height", "width")
    return Graph(
        name="unet",
        module=UNet(unet, tuple(conditions)),
        inputs=(
            End(name="sample", dims=latents),
            End(name="timestep", dims=("batch",)),
            End(name="encoder_hidden_states", dims=("batch", "tokens", width)),
            End(name="key_hidden_states", dims=("batch", "tokens", width)),
            End(name="key_gate", dims=("batch", "tokens", "concepts")),
            End(name="value_gate", dims=("batch", "tokens", "concepts")),
            End(name="concept_keys", dims=("concepts", keys)),
            End(name="concept_values", dims=("concepts", keys)),
            End(name="regions", dims=("batch", "regions", "height", "width")),
            *(End(name=one, dims=("batch", size)) for one, size in conditions.items()),
        ),
        outputs=(End(name="out_sample", dims=latents),),
        example={"batch": 2, "concepts": 3, "tokens": 35, "regions": 5, "height": 16, "width": 24},
        widens=True,
    )


def save(model: ir.Model, path: Path) -> None:
    """Write the graph; its larger weights are said to lie in a file that does not exist."""
    for value in model.graph.initializers.values():
        held = value.const_value
        if held is not None and held.nbytes > 4096:
            value.const_value = ir.ExternalTensor(
                "none", 0, held.nbytes, held.dtype, shape=ir.Shape(held.shape.numpy()), name=str(value.name)
            )
    with writing(path) as file:
        file.write(ir.serde.serialize_model(model).SerializeToString())


def save_hollow(name: str, folder: Path) -> None:
    """Write a model's graphs into a folder."""
    for graph in graphs(name):
        save(to_onnx(graph), folder / f"{graph.name}.onnx")


def hollow_model(name: str) -> Path:
    """The folder with a model's graphs: those of an earlier run, or exported now, which takes some minutes."""
    made_from = (*EXPORTER, Path(__file__), CONFIGS / f"{name}.json")
    return kept(name, lambda folder: save_hollow(name, folder), made_from)
