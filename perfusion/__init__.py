"""Personalised text-to-image with gated rank-1 edits: train one concept, export one base, run it anywhere.

A concept is a file of tens of kilobytes that adds one visual idea to a frozen text-to-image model:

    from perfusion import Concept
    concept = Concept.load("cat.safetensors")

`perfusion.training` makes such files (torch), `perfusion.export` turns a base model into graphs (torch,
onnx), and `perfusion.runtime` draws with both (numpy and onnxruntime, never torch).
"""

from typing import TYPE_CHECKING, Any

from perfusion.errors import PerfusionError

if TYPE_CHECKING:
    from perfusion.concept.concept_file import Concept

__version__ = "0.1.0"
__all__ = ["Concept", "PerfusionError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import numpy with the first use of `Concept`, so that `--help` of a command does not."""
    if name == "Concept":
        from perfusion.concept.concept_file import Concept

        return Concept
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
