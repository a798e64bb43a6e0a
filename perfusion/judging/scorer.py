"""Scorers: models that put pictures and prompts into one space, where the cosine says how alike they are.

No torch here; `perfusion.judging.clip_scorer` has a scorer that needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from perfusion.errors import ModelError
from perfusion.onnx_runtime import import_onnxruntime, session_options

__all__ = ["OnnxScorer", "Scorer", "open_session", "picture_array", "unit"]

Float32 = npt.NDArray[np.float32]

_PIECE = 32


class Scorer(Protocol):
    """What a scorer can do. All embeddings have length one, so a dot product is a cosine."""

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Float32:
        """Embeddings (n, dim) of pictures of any size."""
        ...

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Embeddings (n, dim) of prompts."""
        ...


class OnnxScorer:
    """A folder with two ONNX graphs and a tokenizer, such as the one of the embedded model.

        image.onnx      pictures (n, 3, size, size) float32 in [−1, 1] → embeddings (n, dim), and more
        text.onnx       input_ids (n, length) int64 → embeddings (n, dim)
        tokenizer.json  of the `tokenizers` library

    Args:
        folder: where the three lie.
        threads: of onnxruntime; None: its own choice.

    Raises:
        ModelError: one of the files is missing, or is something else.
        DeviceError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path, *, threads: int | None = None) -> None:
        self._folder = folder
        for name in ("image.onnx", "text.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise ModelError(
                    f"{folder} has no {name}, expected a scorer's folder with image.onnx, text.onnx and tokenizer.json."
                )
        self._image = open_session(folder / "image.onnx", threads)
        self._text = open_session(folder / "text.onnx", threads)
        self._size = self._side("image.onnx", self._image, "pictures", rank=4)
        self._length = self._side("text.onnx", self._text, "input_ids", rank=2)
        self._tokenizer = self._open_tokenizer(folder / "tokenizer.json")

    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Float32:
        """Embeddings (n, dim) of pictures of any size, brought to the size the graph takes."""
        arrays = [picture_array(picture, self._size) for picture in pictures]
        return self._embed(self._image, "pictures", arrays)

    def embed_texts(self, texts: Sequence[str]) -> Float32:
        """Embeddings (n, dim) of prompts; what is longer than the graph reads is cut off."""
        rows = [np.asarray(encoding.ids, np.int64) for encoding in self._tokenizer.encode_batch(list(texts))]
        return self._embed(self._text, "input_ids", rows)

    def _embed(self, session: Any, name: str, rows: Sequence[npt.NDArray[Any]]) -> Float32:
        pieces = [np.stack(rows[start : start + _PIECE]) for start in range(0, len(rows), _PIECE)]
        return unit(np.concatenate([session.run(["embeddings"], {name: piece})[0] for piece in pieces]))

    def _side(self, file: str, session: Any, name: str, rank: int) -> int:
        """The last dimension of a graph's one input, once the graph's ends are what they should be."""
        inputs, outputs = session.get_inputs(), [end.name for end in session.get_outputs()]
        shapes = {end.name: list(end.shape) for end in inputs}
        shape = shapes.get(name, [])
        if (
            set(shapes) != {name}
            or len(shape) != rank
            or not isinstance(shape[-1], int)
            or "embeddings" not in outputs
        ):
            raise ModelError(
                f"{self._folder / file} takes {shapes} and gives {', '.join(outputs)}, expected {name} of {rank} "
                "dimensions, the last one fixed, and embeddings. It is another program's graph."
            )
        return int(shape[-1])

    def _open_tokenizer(self, path: Path) -> Any:
        """A tokenizer that frames, cuts and pads to the text graph's length, with CLIP's end token as padding."""
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise ModelError(f"{path} is not a tokenizer: {error}. Copy the scorer again.") from error
        tokenizer.enable_truncation(self._length)
        padding = tokenizer.padding or {}
        ids = tokenizer.encode("").ids
        if not ids:
            raise ModelError(f"{path} puts no end token after a text, expected a tokenizer of CLIP's form.")
        pad_id = int(padding.get("pad_id", ids[-1]))
        tokenizer.enable_padding(
            length=self._length, pad_id=pad_id, pad_token=tokenizer.id_to_token(pad_id) or "[PAD]"
        )
        return tokenizer


def unit(embeddings: npt.NDArray[Any]) -> Float32:
    """The rows (n, dim), each of length one; a row of zeros stays."""
    rows = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def picture_array(picture: Image.Image, size: int) -> Float32:
    """A picture as (3, size, size) in [−1, 1]; one that is not square is squeezed, as the graph was taught."""
    image = picture.convert("RGB")
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)


def open_session(path: Path, threads: int | None) -> Any:
    """An onnxruntime session of a scorer's graph, on the CPU.

    Args:
        threads: None: OMP_NUM_THREADS, or without it onnxruntime's own choice.

    Raises:
        ModelError: not a graph that can be run.
        DeviceError: onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime(
        'Scoring pictures by ONNX graphs needs onnxruntime. pip install "perfusion-edge[cpu]".'
    )
    options = session_options(onnxruntime, threads or int(os.environ.get("OMP_NUM_THREADS") or 0))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other base
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{path} is not a graph that can be run: {first.rstrip('.')}.") from error
