"""How a concept's tensors are stored: as float32, float16, or 8-bit integers with a scale for every block.

An int8 tensor `x` of shape (rows, n) comes with `x.scale` of shape (rows, blocks), where `blocks` divides n:
number k of a row stands for x[k] · scale[k // (n / blocks)]. The shapes alone say how long a block is, so a
reader needs to know nothing about the base model's layers.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from perfusion.errors import ConceptError

__all__ = ["SCALE", "STORAGES", "narrow", "stored_as", "widen"]

STORAGES = ("float16", "float32", "int8")
SCALE = ".scale"  # suffix of the tensor that holds an int8 tensor's scales

_ALWAYS_FLOAT32 = (
    "dual",
    "energy",
)  # half precision would lose the cancellation that keeps s small elsewhere
_NEVER_INT8 = ("direction", *_ALWAYS_FLOAT32)
_DIRECTION_TOLERANCE = 2e-3  # of direction · dual = 1; a reader refuses 1e-2
_LONG_BLOCK = 640  # of the targets: SDXL's layers are 640 or 1280 wide, SD1.5's a multiple of 320
_SHORT_BLOCK = 64  # of the encodings, where a few large numbers would cost their neighbours precision
_LEVELS = 127

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


def narrow(tensors: Mapping[str, Float32], storage: str) -> dict[str, Array]:
    """A concept's tensors as `storage` keeps them, the widest numbers first, which keeps all of them aligned.

    `dual` and `energy` stay float32. `direction` becomes float16, unless its product with `dual` would suffer.
    Under int8 so does the word embedding of a base with one text encoder: of all tensors it is the one whose
    rounding shows most in pictures (10 dB), and it is small. With two encoders, SDXL's, the room is needed:
    its file has to stay below 100 KiB.

    Raises:
        ConceptError: `storage` is unknown, or a number does not fit it.
    """
    if storage not in STORAGES:
        raise ConceptError(f"The storage is {storage!r}, expected one of {list(STORAGES)}.")
    stored: dict[str, Array] = {}
    for name, array in tensors.items():
        if storage == "float32" or name in _ALWAYS_FLOAT32:
            stored[name] = array
        elif name == "direction":
            stored[name] = _narrowed_direction(array, tensors["dual"])
        elif storage == "float16" or (name == "embeddings.0" and "embeddings.1" not in tensors):
            stored[name] = _halved(name, array)
        else:
            longest = _LONG_BLOCK if name.startswith("target_") else _SHORT_BLOCK
            stored[name], stored[name + SCALE] = _quantised(name, array, longest)
    return dict(sorted(stored.items(), key=lambda item: -item[1].dtype.itemsize))


def widen(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """A file's tensors as floating-point numbers, the scales applied and gone.

    Raises:
        ConceptError: a dtype where it is not allowed, scales that are missing, superfluous, misshapen or not
            positive finite numbers.
    """
    for name in _ALWAYS_FLOAT32:
        if name in tensors and tensors[name].dtype.name != "float32":
            raise ConceptError(
                f"Tensor {name!r} is {tensors[name].dtype.name}, expected float32. Write the file again."
            )
    wide: dict[str, Array] = {}
    for name, array in tensors.items():
        owner = name.removesuffix(SCALE)
        if owner == name:
            wide[name] = (
                _dequantised(name, array, tensors.get(name + SCALE)) if array.dtype == np.int8 else array
            )
        elif owner not in tensors or tensors[owner].dtype != np.int8:
            raise ConceptError(f"Tensor {name!r} belongs to no int8 tensor {owner!r}. Write the file again.")
    return wide


def stored_as(tensors: Mapping[str, Array]) -> str:
    """The storage that a file's tensors were written with, by the dtype of its largest ones."""
    return tensors["target_values"].dtype.name


def _halved(name: str, array: Float32) -> Array:
    """The array as float16, unless numbers would become infinite by it."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        raise ConceptError(
            f"Tensor {name!r} reaches {abs(array).max():g}, and float16 ends at 65504. Save with "
            "storage='float32'."
        )
    return half


def _narrowed_direction(direction: Float32, dual: Float32) -> Array:
    """float16, where that leaves i* · w* at 1: the dual of a badly conditioned base amplifies the rounding."""
    with np.errstate(over="ignore"):
        half = direction.astype(np.float16)
    products = np.einsum("rd,rd->r", half, dual, dtype=np.float64)
    return half if (abs(products - 1) <= _DIRECTION_TOLERANCE).all() else direction


def _quantised(name: str, array: Float32, longest: int) -> tuple[npt.NDArray[np.int8], Float32]:
    """8-bit integers and the scale of each block: half a step, 1/254 of the block's largest number, is lost at most.

    (rows, n) -> (rows, n) int8 and (rows, blocks).
    """
    rows, width = array.shape
    blocks = array.astype(np.float64).reshape(rows, -1, _block(width, longest))
    largest = abs(blocks).max(axis=2)
    # Rounded up to 16 significant bits, 127 times the scale is exact: what was read is written the same again.
    fraction, exponent = np.frexp(largest / _LEVELS)
    scale = np.ldexp(np.ceil(np.ldexp(fraction, 16)), exponent - 16)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.finfo(np.float32).tiny, scale)
    if _LEVELS * scale.max() > np.finfo(np.float32).max:
        raise ConceptError(f"Tensor {name!r} reaches {largest.max():g}, too much for int8. Save as float32.")
    integers = np.rint(blocks / scale[..., None]).astype(np.int8).reshape(rows, width)
    return integers, scale.astype(np.float32)


def _block(width: int, longest: int) -> int:
    """The longest block that divides a row and is a multiple of 64, or the whole row where there is none."""
    fitting = [length for length in range(64, longest + 1, 64) if width % length == 0]
    return fitting[-1] if fitting else width


def _dequantised(name: str, array: Array, scale: Array | None) -> Float32:
    """The numbers that 8-bit integers stand for."""
    if name in _NEVER_INT8:
        raise ConceptError(f"Tensor {name!r} is int8, expected floating-point numbers. Write the file again.")
    if scale is None:
        raise ConceptError(f"Tensor {name!r} is int8 and lacks {name + SCALE!r}. Write the file again.")
    if scale.dtype.name != "float32":
        raise ConceptError(
            f"Tensor {name + SCALE!r} is {scale.dtype.name}, expected float32. Write the file again."
        )
    shape = array.shape
    if len(shape) != 2 or scale.ndim != 2 or scale.shape[0] != shape[0] or shape[1] % scale.shape[1]:
        raise ConceptError(
            f"Tensor {name + SCALE!r} has shape {scale.shape}, expected (rows, blocks) with as many rows as {name!r} "
            f"of {shape} and a number of blocks that divides its width. Write the file again."
        )
    if not ((scale > 0) & (scale < np.inf)).all():  # NaN fails this too
        raise ConceptError(
            f"Tensor {name + SCALE!r} holds a scale that is not a positive number. Write the file again."
        )
    with np.errstate(over="ignore"):  # what overflows is refused where a concept is made
        wide = array.reshape(*scale.shape, -1) * scale[..., None]
    return np.asarray(wide.reshape(shape), dtype=np.float32)
