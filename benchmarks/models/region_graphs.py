"""Graphs beside ours: that of format 1, which knew no regions, and the one with fused attention."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from perfusion.base.attention import ConceptAttnProcessor
from perfusion.export.graph_modules import End, Graph, UNet

__all__ = ["first_graph", "fused"]

EDIT = ("key_hidden_states", "key_gate", "value_gate", "concept_keys", "concept_values")


class FirstUNet(UNet):
    """The UNet of format 1: no regions, and one timestep for the whole batch."""

    def forward(  # type: ignore[override]
        self, sample: Tensor, timestep: Tensor, states: Tensor, *edit_and_conditions: Tensor
    ) -> Tensor:
        """The predicted noise (batch, channels, height, width), as ONNX calls it: `timestep` is (1,)."""
        conditions = dict(zip(self.conditions, edit_and_conditions[len(EDIT) :], strict=True))
        noise_pred: Tensor = self.unet(
            sample,
            timestep,
            states,
            added_cond_kwargs=conditions or None,
            cross_attention_kwargs=dict(zip(EDIT, edit_and_conditions, strict=False)),
            return_dict=False,
        )[0]
        return noise_pred


def first_graph(graph: Graph) -> Graph:
    """A UNet's graph as format 1 had it."""
    ends = [end for end in graph.inputs if end.name != "regions"]
    ends[1] = End(name="timestep", dims=(1,))
    example = {name: size for name, size in graph.example.items() if name != "regions"}
    assert isinstance(graph.module, UNet)
    return replace(
        graph,
        module=FirstUNet(graph.module.unet, graph.module.conditions),
        inputs=tuple(ends),
        example=example,
    )


class FusedAttnProcessor(ConceptAttnProcessor):
    """One softmax over all readings, with log m added to the scores: docs/method.md, *Regions*."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, regions: Tensor | None = None
    ) -> Tensor:
        """As `ConceptAttnProcessor.attend`; `regions` is (batch, readings, positions)."""
        if regions is None:
            return super().attend(query, key, value, mask)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        # (batch, positions, readings, 1), never log 0
        share = regions.clamp_min(1e-30).log().transpose(1, 2)[:, None, :, :, None]
        probabilities = (scores.unflatten(-1, (regions.shape[1], -1)) + share).flatten(-2).softmax(-1)
        attended: Tensor = probabilities @ value
        return attended


@contextmanager
def fused(unet: Any, active: bool = True) -> Iterator[None]:
    """Fused attention for the length of a with block, where it is `active`; the processors are installed before."""
    processors: Sequence[tuple[Any, Any]] = [
        (module, module.processor)
        for module in unet.modules()
        if isinstance(getattr(module, "processor", None), ConceptAttnProcessor)
    ]
    try:
        for module, own in processors if active else ():
            module.set_processor(FusedAttnProcessor(own.key_slice, own.value_slice, own.original, own.level))
        yield
    finally:
        for module, own in processors:
            module.set_processor(own)
