"""How a concept's tensors are stored: as float32, float16, or 8-bit integers with a scale for every block.

An int8 tensor `x` of shape (rows, n) comes with `x.scale` of shape (rows, blocks), where `blocks` divides n:
number k of a row stands for x[k] · scale[k // (n / blocks)]. The shapes alone say how long a block is, so a
reader needs to know nothing about the base model's layers.

`dual` is kept in 24 bits beside them: an int16 tensor, `dual.fine` of int8 and `dual.scale` of shape (rows, 1), where
number k of a row stands for (256 · dual[k] + dual.fine[k]) · scale. Its product with an encoding cancels almost to
nothing, which half precision loses.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from perfusion.errors import ConceptError

__all__ = ["FINE", "SCALE", "STORAGES", "narrow", "stored_as", "widen"]

STORAGES = ("float16", "float32", "int8")
SCALE = ".scale"  # suffix of the tensor that holds an integer tensor's scales
FINE = ".fine"  # suffix of the tensor that holds the lowest 8 of 24 bits

_NEVER_HALF = ("dual", "energy")
_NEVER_INT8 = ("direction", *_NEVER_HALF)
_DIRECTION_TOLERANCE = 2e-3  # of direction · dual = 1; a reader refuses 1e-2
_LONG_BLOCK = 640  # of the targets: SDXL's layers are 640 or 1280 wide, SD1.5's a multiple of 320
_SHORT_BLOCK = 64  # of the encodings, where a few large numbers would cost their neighbours precision
_LEVELS = 127
_FINE_LEVELS = 32767 * 256

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]


def narrow(tensors: Mapping[str, Float32], storage: str) -> dict[str, Array]:
    """A concept's tensors as `storage` keeps them, the widest numbers first, which keeps all of them aligned.

    `energy` stays float32, and so does `dual`, which int8 keeps in 24 bits. `direction` becomes float16, unless its
    product with `dual` would suffer. Under int8 so does the word embedding of a base with one text encoder: of all
    tensors it is the one whose rounding shows most in pictures (10 dB), and it is small. With two encoders, SDXL's, the
    room is needed: its file has to stay below 100,000 bytes.

    Raises:
        ConceptError: `storage` is unknown, or a number does not fit it.
    """
    if storage not in STORAGES:
        raise ConceptError(f"The storage is {storage!r}, expected one of {list(STORAGES)}.")
    stored: dict[str, Array] = {}
    for name, array in tensors.items():
        if name == "dual" and storage == "int8":
            stored |= _split(name, array)
        elif storage == "float32" or name in _NEVER_HALF:
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
    for name in _NEVER_HALF:
        allowed = ("float32", "int16") if name == "dual" else ("float32",)
        if name in tensors and tensors[name].dtype.name not in allowed:
            raise ConceptError(
                f"Tensor {name!r} is {tensors[name].dtype.name}, expected {' or '.join(allowed)}. Write the file again."
            )
    wide: dict[str, Array] = {}
    for name, array in tensors.items():
        suffix = next((ending for ending in (SCALE, FINE) if name.endswith(ending)), None)
        if suffix is not None:
            _check_owner(
                name, name.removesuffix(suffix), ("int16",) if suffix == FINE else ("int8", "int16"), tensors
            )
        elif array.dtype == np.int16:
            wide[name] = _joined(name, array, tensors.get(name + FINE), tensors.get(name + SCALE))
        elif array.dtype == np.int8:
            wide[name] = _dequantised(name, array, tensors.get(name + SCALE))
        else:
            wide[name] = array
    return wide


def _check_owner(name: str, owner: str, kinds: tuple[str, ...], tensors: Mapping[str, Array]) -> None:
    """Refuse a tensor that only tells how to read another, where that one is missing or tells all itself."""
    if owner not in tensors or tensors[owner].dtype.name not in kinds:
        raise ConceptError(
            f"Tensor {name!r} belongs to no {' or '.join(kinds)} tensor {owner!r}. Write the file again."
        )


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


def _split(name: str, array: Float32) -> dict[str, Array]:
    """24-bit integers as their upper 16 and their lower 8 bits, and the scale of each row, a power of two: so what was
    read is written the same again. (rows, n) -> (rows, n) int16, (rows, n) int8 and (rows, 1)."""
    largest = abs(array.astype(np.float64)).max(axis=1, keepdims=True)
    exponent = np.ceil(np.log2(np.maximum(largest / _FINE_LEVELS, np.finfo(np.float32).tiny)))
    scale = np.exp2(exponent)
    integers = np.rint(array / scale).astype(np.int32)
    fine = ((integers + 128) & 255) - 128
    upper = (integers - fine) >> 8
    return {
        name: upper.astype(np.int16),
        name + FINE: fine.astype(np.int8),
        name + SCALE: scale.astype(np.float32),
    }


def _joined(name: str, array: Array, fine: Array | None, scale: Array | None) -> Float32:
    """The numbers that 24-bit integers stand for."""
    if name != "dual":
        raise ConceptError(f"Tensor {name!r} is int16, which only 'dual' may be. Write the file again.")
    if fine is None or fine.dtype != np.int8 or fine.shape != array.shape:
        raise ConceptError(
            f"Tensor {name!r} is int16 and lacks {name + FINE!r} of int8 in the same shape. Write the file again."
        )
    return _scaled(name, 256 * array.astype(np.int32) + fine, scale)


def _block(width: int, longest: int) -> int:
    """The longest block that divides a row and is a multiple of 64, or the whole row where there is none."""
    fitting = [length for length in range(64, longest + 1, 64) if width % length == 0]
    return fitting[-1] if fitting else width


def _dequantised(name: str, array: Array, scale: Array | None) -> Float32:
    """The numbers that 8-bit integers stand for."""
    if name in _NEVER_INT8:
        raise ConceptError(f"Tensor {name!r} is int8, expected floating-point numbers. Write the file again.")
    return _scaled(name, array, scale)


def _scaled(name: str, array: Array, scale: Array | None) -> Float32:
    """Integers (rows, n) times the scales of their blocks (rows, blocks)."""
    if scale is None:
        kind = "int8" if array.dtype == np.int8 else "int16"
        raise ConceptError(f"Tensor {name!r} is {kind} and lacks {name + SCALE!r}. Write the file again.")
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
        wide = array.reshape(*scale.shape, -1).astype(np.float32) * scale[..., None]
    return np.asarray(wide.reshape(shape), dtype=np.float32)
