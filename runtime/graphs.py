"""The graphs of a bundle on one provider, by their names in the bundle."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfusion.errors import DeviceError, RequestError
from perfusion.runtime.bundle import Bundle
from perfusion.runtime.sessions import Graph, choose_provider

__all__ = ["Graphs"]

Array = NDArray[np.float32]

_log = logging.getLogger(__name__)

_TEXT_INPUTS = ("input_ids", "concept_embeddings")
_UNET_INPUTS = (
    "sample", "timestep", "encoder_hidden_states", "key_hidden_states",
    "key_gate", "value_gate", "concept_keys", "concept_values",
)  # fmt: skip


class Graphs:
    """What a runtime computes with: every graph of a bundle, to be run by name."""

    def __init__(self, bundle: Bundle, provider: str = "auto", threads: int | None = None) -> None:
        """Open the graphs.

        Raises:
            BundleError: a graph cannot be opened, or has other ends than the bundle says.
            RequestError: no such provider.
            DeviceError: the provider could not be had.
        """
        self._bundle = bundle
        self.provider, self._opened = _opened(bundle, provider, threads)

    def run(self, name: str, **feeds: NDArray[Any]) -> dict[str, Array]:
        """Run the graph `name` ("text_encoder", "unet", "vae_decoder"); all its outputs, in float32.

        Raises:
            RequestError: the runtime is closed.
            BundleError: an input of a shape the graph does not take.
            PerfusionError: the graph failed, for example for lack of memory.
        """
        if not self._opened:
            raise RequestError("This runtime is closed. Open another one.")
        return self._opened[name].run(**feeds)

    def close(self) -> None:
        """Give the graphs' memory back; nothing runs afterwards."""
        self._opened = {}


def _opened(bundle: Bundle, provider: str, threads: int | None) -> tuple[str, dict[str, Graph]]:
    """The provider, and the graphs on it; with "auto" the CPU where CUDA turns out not to work."""
    chosen = choose_provider(provider)
    try:
        return chosen, _open(bundle, chosen, threads)
    except DeviceError as error:
        if provider != "auto" or chosen == "cpu":
            raise
        _log.warning("%s Drawing on the CPU.", error)
        return "cpu", _open(bundle, "cpu", threads)


def _open(bundle: Bundle, provider: str, threads: int | None) -> dict[str, Graph]:
    return {
        "text_encoder": Graph(bundle.text_encoder.file, _TEXT_INPUTS, "last_hidden_state", provider, threads),
        "unet": Graph(bundle.unet.file, _UNET_INPUTS, "out_sample", provider, threads),
        "vae_decoder": Graph(bundle.decoder.file, ("latent_sample",), "sample", provider, threads),
    }
