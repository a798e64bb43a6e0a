"""Graphs that compute in float16, and what in them must stay in float32 because it overflows.

Float16 ends at 65504. A module is exported in half as it is, which leaves a graph without the casts that a conversion
of a float32 graph would add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from perfusion.base.attention import ConceptAttnProcessor
from perfusion.base.base_model import BaseModel
from perfusion.embedded import is_embedded
from perfusion.errors import ExportError
from perfusion.export.graph_modules import End, Graph

__all__ = ["KEPT", "Kept", "check_places", "in_half", "kept_places"]

ATTENTION = "attention"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Something that computes in float32 in a float16 bundle, with the reason."""

    place: str
    """A graph ("vae_decoder"), a module of one ("unet.mid_block"), or the scores of a graph's attention layers
    ("unet.attention")."""
    applies: Callable[[BaseModel], bool]
    reason: str


def _has_xl_vae(base: BaseModel) -> bool:
    """Whether the VAE is SDXL's as first published; the one that was repaired for float16 says so itself."""
    # the setting's default is true, so that SD1's and SD2's VAEs say it as well, and they do not overflow
    return len(base.text_encoders) == 2 and bool(base.vae.config.get("force_upcast", True))


def _is_pocket(base: BaseModel) -> bool:
    return is_embedded(base.family)


def _upcasts_attention(base: BaseModel) -> bool:
    return bool(base.unet.config.get("upcast_attention"))


KEPT = (
    Kept(place="vae_decoder", applies=_has_xl_vae, reason="activations of SDXL's VAE pass 65504"),
    Kept(place="vae_encoder", applies=_has_xl_vae, reason="activations of SDXL's VAE pass 65504"),
    Kept(place="vae_encoder", applies=_is_pocket, reason="a convolution of pocket's encoder gives 1 400 000"),
    Kept(
        place=f"unet.{ATTENTION}",
        applies=_upcasts_attention,
        reason="attention scores of SD2.1 pass 65504, and its settings say so (upcast_attention)",
    ),
)


def kept_places(base: BaseModel, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The places that stay in float32 in a float16 bundle of ``base``: those of `KEPT` that apply, and ``more``."""
    known = [kept.place for kept in KEPT if kept.applies(base)]
    return tuple(dict.fromkeys([*known, *more]))


def check_places(graphs: Sequence[Graph], places: Sequence[str]) -> None:
    """Raise `ExportError` for a place that is in none of the graphs."""
    for place in places:
        name, _, path = place.partition(".")
        graph = next((graph for graph in graphs if graph.name == name), None)
        if graph is None:
            names = ", ".join(graph.name for graph in graphs)
            raise ExportError(f"keep in float32: {place!r} names no graph; expected one of {names}")
        _module_at(graph, path)


def in_half(graph: Graph, places: Sequence[str]) -> Graph:
    """``graph`` with float16 ends and weights, but for the timestep and what ``places`` keep in float32."""
    own = [
        place.partition(".")[2]
        for place in places
        if place == graph.name or place.startswith(f"{graph.name}.")
    ]
    paths = [path for path in own if path != ATTENTION]
    modules = [_module_at(graph, path) for path in paths] + _sinusoids(graph.module)
    widened = {id(tensor) for module in modules for tensor in module.parameters()}
    kept = {name for name, tensor in graph.module.named_parameters() if id(tensor) in widened}

    @contextmanager
    def around() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_in_float32(modules))
            if ATTENTION in own:
                stack.enter_context(_upcast_attention(graph.module))
            yield

    return replace(
        graph,
        inputs=tuple(_halved(end) for end in graph.inputs),
        outputs=tuple(_halved(end) for end in graph.outputs),
        weight_dtype=lambda name: torch.float32 if name in kept else torch.float16,
        around=around,
    )


def _halved(end: End) -> End:
    # float16 has timesteps near 1000 to the half only, and samplers may ask for others
    stays = end.dtype != torch.float32 or end.name == "timestep"
    return end if stays else replace(end, dtype=torch.float16)


def _module_at(graph: Graph, path: str) -> nn.Module:
    """The graph's module, or the part of the model in it that ``path`` names."""
    if not path or path == ATTENTION:
        return graph.module
    (model,) = graph.module.children()
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        some = ", ".join(f"{graph.name}.{name}" for name, _ in model.named_children())
        raise ExportError(
            f"keep in float32: {graph.name} has no module {path!r}; expected {graph.name}, {graph.name}.{ATTENTION}, "
            f"or a module such as {some}"
        ) from error


def _sinusoids(module: nn.Module) -> list[nn.Module]:
    """SDXL's embedding of sizes: in float32 whatever it reads, and then joined with float16, which ONNX does not."""
    return [part for name, part in module.named_modules() if name.endswith("add_time_proj")]


@contextmanager
def _in_float32(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Each module reads and gives float16 and computes in float32."""
    handles = []
    for module in modules:
        handles.append(module.register_forward_pre_hook(_widen, with_kwargs=True))
        handles.append(module.register_forward_hook(_narrow))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _widen(module: nn.Module, inputs: Any, keywords: Any) -> Any:
    return _cast(inputs, torch.float16, torch.float32), _cast(keywords, torch.float16, torch.float32)


def _narrow(module: nn.Module, inputs: Any, output: Any) -> Any:
    return _cast(output, torch.float32, torch.float16)


def _cast(value: Any, found: torch.dtype, wanted: torch.dtype) -> Any:
    """``value`` with every tensor of one type in it as another; containers of the kinds that modules pass."""
    if isinstance(value, Tensor):
        return value.to(wanted) if value.dtype == found else value
    if isinstance(value, dict):
        return {key: _cast(part, found, wanted) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_cast(part, found, wanted) for part in value)
    return value


class _UpcastAttnProcessor(ConceptAttnProcessor):
    """Scores and their softmax in float32, as diffusers does where ``upcast_attention`` is set."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, regions: Tensor | None = None
    ) -> Tensor:
        attended = super().attend(query.float(), key.float(), value.float(), mask, regions)
        return attended.to(query.dtype)


@contextmanager
def _upcast_attention(module: nn.Module) -> Iterator[None]:
    """Every attention layer of ``module`` with a `_UpcastAttnProcessor` in the place of the one it has."""
    layers = [part for part in module.modules() if isinstance(part, Attention)]
    found: list[tuple[Attention, Any]] = [(layer, layer.processor) for layer in layers]
    for layer, processor in found:
        if isinstance(processor, ConceptAttnProcessor):
            layer.set_processor(
                _UpcastAttnProcessor(processor.key_slice, processor.value_slice, level=processor.level)
            )
    try:
        yield
    finally:
        for layer, processor in found:
            layer.set_processor(processor)
