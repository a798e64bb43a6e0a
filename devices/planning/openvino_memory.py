"""What compiling a bundle for OpenVINO takes, which is more than computing with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfusion.devices.planning.memory_plan import MIB, graph_costs, workload_of

if TYPE_CHECKING:
    from perfusion.bundle.description import Bundle

__all__ = ["compile_memory"]

# Together what the embedded UNet took and one of Stable Diffusion 1.5's size, see docs/providers.md.
_COMPILER = 128 * MIB  # what compiling sets up, whatever the graph
_PEAK = 3.1  # bytes for a byte of weights in float32: as they are read, as they are computed with, and to be stored


def compile_memory(bundle: Bundle) -> int:
    """Bytes that compiling the UNet, the largest graph, takes at its peak, the library itself not counted.

    Raises:
        BundleError: a graph that cannot be read or followed.
    """
    costs = graph_costs(bundle.unet.file, "unet", workload_of(bundle, bundle.usual_call))
    return _COMPILER + int(_PEAK * costs.weights * (2 if bundle.precision == "fp16" else 1))
