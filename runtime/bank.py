"""The bank of a bundle: which concepts are let in, and where their locked keys come from.

Nothing is compiled and no graph changes when a concept comes or goes; loading one costs reading its file.
"""

from typing import Any

from numpy.typing import NDArray

from perfusion.bank import Base, ConceptBank, EditRows, Settings
from perfusion.errors import BundleError
from perfusion.runtime.bundle import Bundle

__all__ = ["Bank", "EditRows", "Settings"]


class Bank(ConceptBank):
    """Concepts by their token, each checked against a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        kept = bundle.key_projections is not None
        super().__init__(
            Base(
                noun="bundle",
                family=bundle.base,
                fingerprint=bundle.base_fingerprint,
                text_dim=bundle.text_dim,
                hidden_sizes=(bundle.text_encoder.hidden_size,),
                key_width=bundle.unet.key_width,
                value_width=bundle.unet.value_width,
                key_projections=(lambda: _read_projections(bundle)) if kept else None,
            )
        )


def _read_projections(bundle: Bundle) -> NDArray[Any]:
    """(Σ d_K, text_dim) float16"""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    assert bundle.key_projections is not None
    expected = (bundle.unet.key_width, bundle.text_dim)
    try:
        tensors = load_file(bundle.key_projections)
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{bundle.key_projections} cannot be read: {error}. Export the bundle again."
        ) from error
    found = tensors.get("key_projections")
    if found is None or found.shape != expected:
        raise BundleError(
            f"{bundle.key_projections} holds {None if found is None else found.shape}, expected a tensor "
            f"'key_projections' of {expected}. Export the bundle again."
        )
    return found
