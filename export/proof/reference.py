"""The numbers that a graph is held against: the torch module's own, computed in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from perfusion.export.graph_modules import Graph

__all__ = ["answers", "in_float32"]


def answers(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What the module gives for ``inputs``, all computed in float32 whatever the weights are stored as."""
    inputs = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs)
    with torch.no_grad(), in_float32(graph):
        made = graph.module(*inputs)
    return made if isinstance(made, tuple) else (made,)


@contextmanager
def in_float32(graph: Graph) -> Iterator[None]:
    """Compute in float32 with weights of 16 bits, which lose nothing by it.

    A UNet's are widened one module at a time, just before the module needs them: at no moment are all of them there
    twice. Other modules ask for their own precision in other ways and are widened whole; they are small beside it.
    """
    if not graph.widens:
        graph.module.float()
        yield
        return
    handles = []
    for module in graph.module.modules():
        if any(tensor.dtype != torch.float32 for tensor in module.parameters(recurse=False)):
            widening = _Widening()
            handles.append(module.register_forward_pre_hook(widening.enter))
            handles.append(module.register_forward_hook(widening.leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Widening:
    """The hooks of one module: its weights in float32 while its forward runs."""

    def __init__(self) -> None:
        self.stored: dict[str, nn.Parameter | None] = {}

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self.stored = dict(module._parameters)
        for name, tensor in self.stored.items():
            if tensor is not None:
                module._parameters[name] = nn.Parameter(tensor.float(), requires_grad=False)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module._parameters.update(self.stored)
        self.stored = {}
