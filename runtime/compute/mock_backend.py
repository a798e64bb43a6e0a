"""A backend whose answers a test writes: what httpx's MockTransport is to HTTP, this is to the graphs of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.runtime.compute.backend import Backend, OpenGraph

__all__ = ["GraphCall", "MockBackend"]

Array = NDArray[np.float32]


@dataclass(frozen=True)
class GraphCall:
    """One call of a graph: its name, such as "unet", and its inputs by name (docs/graph.md has their shapes)."""

    graph: str
    feeds: Mapping[str, NDArray[Any]]
    _real: OpenGraph | None = None

    def compute(self) -> dict[str, Array]:
        """The outputs by name, as the backend behind the mock computes them. Raises ValueError where there is none."""
        if self._real is None:
            raise ValueError("There is no backend behind this mock: give MockBackend one as `behind`.")
        return self._real.run(**self.feeds)


class MockBackend:
    """Answers the calls of a bundle's graphs by a function.

    Hand it to a runtime in place of a provider's name, and an application is tested without a model, or a model is
    watched while it draws::

        def answer(call):
            calls.append(call.graph)
            return call.compute()

        backend = MockBackend(answer, behind=make_backend(read_bundle(folder), "cpu"))
        runtime = Runtime(folder, provider=backend)
    """

    provider = "mock"
    precision = None

    def __init__(
        self, answer: Callable[[GraphCall], Mapping[str, Array]], *, behind: Backend | None = None
    ) -> None:
        """`answer`: from a call to the graph's outputs by name. `behind`: what `GraphCall.compute` computes with; it is
        closed with this backend."""
        self._answer = answer
        self._behind = behind
        self.planned = behind is not None and behind.planned

    def open(self, name: str) -> OpenGraph:
        return _MockGraph(name, self._answer, None if self._behind is None else self._behind.open(name))

    def admit(self, size: CallSize) -> None:
        """Refuses what the backend behind refuses."""
        if self._behind is not None:
            self._behind.admit(size)

    def free_memory(self) -> int | None:
        """That of the backend behind; without one nobody can tell."""
        return None if self._behind is None else self._behind.free_memory()

    def close(self) -> None:
        if self._behind is not None:
            self._behind.close()


class _MockGraph:
    """One graph of a `MockBackend`."""

    def __init__(
        self, name: str, answer: Callable[[GraphCall], Mapping[str, Array]], real: OpenGraph | None
    ) -> None:
        self._name, self._answer, self._real = name, answer, real

    def run(self, **feeds: NDArray[Any]) -> dict[str, Array]:
        return dict(self._answer(GraphCall(self._name, feeds, self._real)))

    def tile(self, height: int, width: int) -> int | None:
        return None if self._real is None else self._real.tile(height, width)

    def close(self) -> None:
        if self._real is not None:
            self._real.close()
