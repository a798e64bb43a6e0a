"""Named tensors and string metadata as bytes: the safetensors layout, read strictly and written one way.

    8 bytes     length of the header, unsigned, little-endian
    header      JSON, UTF-8: {"__metadata__": {name: text}, name: {"dtype", "shape", "data_offsets"}, ...}
    data        the tensors, little-endian, row-major, without gaps

The metadata's `sha256` is that of the data: a bit that flips among the tensors would else be another valid number.
The safetensors library reads what `pack` writes and writes what `unpack` reads. It is not used here for two
reasons: its metadata comes in a different order on every run, so equal concepts would not be equal files; and
its messages name neither what was expected nor what to do.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from perfusion.errors import ConceptError

__all__ = ["DIGEST", "MAX_HEADER_BYTES", "pack", "unpack"]

DIGEST = "sha256"
"""The metadata's name for the SHA-256 of all bytes behind the header, 64 lower-case hex digits."""
MAX_HEADER_BYTES = 64 * 1024
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNMENT = 8  # the header is padded with spaces so that the tensors start at a multiple of this
_AGAIN = "Copy or train the concept again."


def pack(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Lay out float32, float16, int16 and int8 tensors in the order given, with their checksum: equal input, equal
    bytes.

    Raises:
        ConceptError: the header does not fit `MAX_HEADER_BYTES`.
    """
    layout: dict[str, Any] = {}
    pieces: list[bytes] = []
    end = 0
    for name, tensor in tensors.items():
        dtype = _NAMES[tensor.dtype.newbyteorder("<")]
        piece = np.ascontiguousarray(tensor, dtype=_DTYPES[dtype]).tobytes()
        layout[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + len(piece)]}
        end += len(piece)
        pieces.append(piece)
    body = b"".join(pieces)
    metadata = {**metadata, DIGEST: hashlib.sha256(body).hexdigest()}
    header = {"__metadata__": dict(sorted(metadata.items())), **layout}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ConceptError(
            f"The metadata takes {len(text)} bytes, expected at most {MAX_HEADER_BYTES}. "
            "Shorten the training facts."
        )
    return b"".join([len(text).to_bytes(8, "little"), text, body])


def unpack(data: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """The tensors, as read-only views of `data`, and the metadata. Nothing is allocated by a header's word.

    Raises:
        ConceptError: anything but a well-formed layout that covers `data` to the last byte, or tensors whose checksum
            is not the metadata's. Files of older writers have none, and are taken as they are.
    """
    text, body = _split(data)
    header = _parse(text)
    metadata = _metadata(header.pop("__metadata__", None))
    spans = {name: _span(name, entry) for name, entry in header.items()}
    _cover(spans, len(body))
    _check_digest(metadata.get(DIGEST), body)
    tensors = {
        name: np.frombuffer(body, dtype, count=math.prod(shape), offset=begin).reshape(shape)
        for name, (dtype, shape, begin, _) in spans.items()
    }
    return tensors, metadata


_Span = tuple[np.dtype[Any], tuple[int, ...], int, int]


def _split(data: bytes) -> tuple[bytes, memoryview]:
    """The header's bytes and the tensors' bytes."""
    if len(data) < 8:
        raise ConceptError(
            f"The file has {len(data)} bytes, expected at least 8: it is empty or cut off. {_AGAIN}"
        )
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        _refuse_pickle(data)
        raise ConceptError(
            f"The header claims {length} bytes, expected at most {MAX_HEADER_BYTES}. This is no concept "
            "file; give one that perfusion-train wrote."
        )
    if 8 + length > len(data):
        raise ConceptError(
            f"The header claims {length} bytes, but only {len(data) - 8} follow: it is cut off. {_AGAIN}"
        )
    return data[8 : 8 + length], memoryview(data)[8 + length :]


def _refuse_pickle(data: bytes) -> None:
    """Name what torch.save and pickle write. Asked only of what cannot be ours: 80 02 also begins a length."""
    if data[:4] == b"PK\x03\x04" or (data[0] == 0x80 and data[1] in (2, 3, 4, 5)):
        raise ConceptError(
            "This is a pickle, as torch.save writes it, expected safetensors. Pickles can run code and are "
            "never opened; save the concept with Concept.save."
        )


def _parse(text: bytes) -> dict[str, Any]:
    """The header as a dictionary, refusing what JSON readers disagree about: doubled names, NaN, Infinity."""
    if text[:1] != b"{":
        raise ConceptError(f"The header begins with {bytes(text[:1])!r}, expected '{{'. {_AGAIN}")
    try:
        header = json.loads(
            text.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ConceptError(
            f"The header is not valid JSON ({error}): the file is damaged. {_AGAIN}"
        ) from error
    assert isinstance(header, dict)  # it begins with a brace
    return header


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) != len(pairs):
        names = [name for name, _ in pairs]
        raise ConceptError(f"The header names something twice: {names!r:.200}. {_AGAIN}")
    return header


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _metadata(metadata: Any) -> dict[str, str]:
    """The metadata, checked to be text that can be written again."""
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConceptError(
            "The header has no metadata of names and strings: some other safetensors file. Give one that "
            "perfusion-train wrote."
        )
    try:
        "".join([*metadata, *metadata.values()]).encode()
    except UnicodeEncodeError as error:
        raise ConceptError(
            f"The metadata is not valid Unicode ({error.reason}): the file is damaged. {_AGAIN}"
        ) from error
    return metadata


def _span(name: str, entry: Any) -> _Span:
    """A tensor's dtype, shape, begin and end, consistent with each other."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ConceptError(
            f"Tensor {name!r:.100} is described by {entry!r:.100}, expected dtype, shape, data_offsets. {_AGAIN}"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ConceptError(
            f"Tensor {name!r:.100} has dtype {dtype!r:.40}, expected one of {sorted(_DTYPES)}. {_AGAIN}"
        )
    if not _are_counts(shape) or 0 in shape or len(shape) > 2:
        raise ConceptError(
            f"Tensor {name!r:.100} has shape {shape!r:.100}, expected one or two positive numbers. {_AGAIN}"
        )
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ConceptError(
            f"Tensor {name!r:.100} has data_offsets {offsets!r:.100}, expected [begin, end]. {_AGAIN}"
        )
    begin, end = offsets
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != expected:
        raise ConceptError(
            f"Tensor {name!r:.100} of shape {shape!r:.100} has {end - begin} bytes by its data_offsets, "
            f"expected {expected}: the header is damaged. {_AGAIN}"
        )
    return _DTYPES[dtype], tuple(shape), begin, end


def _are_counts(values: Any) -> bool:
    """A list of whole numbers such as a file could have; True and False are none."""
    if not isinstance(values, list) or not values:
        return False
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _cover(spans: Mapping[str, _Span], size: int) -> None:
    """Refuse tensors that overlap, leave gaps, or end elsewhere than the file."""
    reached = 0
    for name, (_, _, begin, end) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            raise ConceptError(
                f"Tensor {name!r:.100} begins at byte {begin}, expected {reached}: gap or overlap. {_AGAIN}"
            )
        if end > size:
            raise ConceptError(
                f"Tensor {name!r:.100} ends at byte {end} of {size}: the file is cut off. {_AGAIN}"
            )
        reached = end
    if reached != size:
        raise ConceptError(
            f"{size - reached} bytes follow the last tensor, expected none: the file is damaged. {_AGAIN}"
        )


def _check_digest(expected: str | None, body: memoryview) -> None:
    """Refuse tensors that are not those that were written."""
    digest = hashlib.sha256(body).hexdigest()
    if expected not in (None, digest):
        raise ConceptError(
            f"The tensors have SHA-256 {digest[:12]}…, expected {expected:.12}…: they were damaged, or changed by a "
            f"program that left the old checksum. {_AGAIN}"
        )
