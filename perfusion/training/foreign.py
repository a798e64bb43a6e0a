"""Files of other programs: textual inversions, and the checkpoints of the two public re-implementations of the method.

What stands in them is only read here; `perfusion.training.interchange` makes concepts of it. Checkpoints are pickles,
opened with torch's weights-only reader, which builds tensors and containers and calls nothing else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perfusion.base.loading import first_line
from perfusion.errors import ConceptError

__all__ = ["Checkpoint", "TextualInversion", "read_checkpoint", "read_textual_inversion"]

_MAX_BYTES = 256 * 1024 * 1024
_PAIRS = (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1"))
"""SDXL's two tables in one file: the names of most programs, and those of diffusers' DreamBooth scripts."""
_GENERIC = ("*", "emb_params", *_PAIRS[0], *_PAIRS[1])
"""Names that say nothing about what was learned."""
_GLOBAL = re.compile(r"GLOBAL (\S+)")


@dataclass(frozen=True, kw_only=True, eq=False)
class TextualInversion:
    """Learned words, and nothing about keys or values."""

    name: str  # what the file calls it; "" where it says nothing
    embeddings: tuple[Tensor, ...]  # (rows, hidden) float32 for each text encoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """One concept as another implementation of the method keeps it. All tensors float64."""

    embeddings: Tensor  # (1, hidden)
    direction: Tensor  # (text_dim,)
    inverse_moment: Tensor  # (text_dim, text_dim), on the scale of E[e eᵀ] as far as the file tells it
    keys: (
        Mapping[str, Tensor] | tuple[Tensor, ...]
    )  # (d_K,) by the layer's name, or in the order of its modules
    values: Mapping[str, Tensor] | tuple[Tensor, ...]  # (d_V,) likewise


def read_textual_inversion(path: Path, encoders: int = 1) -> TextualInversion:
    """Read the forms in use: diffusers' {token: tensor}, "emb_params", two tables by their names, "string_to_param".

    Args:
        encoders: of the base model. diffusers' script for SDXL writes two files for its two, learned_embeds and
            learned_embeds_2: both are read, whichever is given.

    Raises:
        ConceptError: the file cannot be read, holds something else, or its other half is missing.
    """
    name, tables = _learned_word(path)
    if len(tables) == 1 and encoders == 2:
        name, tables = _both_halves(path)
    rows = [_matrix(path, table) for table in tables]
    if len({len(row) for row in rows}) != 1:
        raise ConceptError(
            f"{path} has {' and '.join(str(len(row)) for row in rows)} vectors for its two text encoders, expected as "
            "many for one as for the other. Give a whole file."
        )
    return TextualInversion(name=name, embeddings=tuple(rows))


def _learned_word(path: Path) -> tuple[str, list[Any]]:
    """What a file calls its word, "" where it says nothing; and the word's tables, one or two."""
    content = _read(path)
    if "string_to_param" in content:
        name, tables = str(content.get("name") or ""), dict(content["string_to_param"])
    else:
        name, tables = "", {key: value for key, value in content.items() if isinstance(value, Tensor)}
    for pair in _PAIRS:
        if set(tables) == set(pair):
            return name, [tables[half] for half in pair]
    if len(tables) != 1:
        raise ConceptError(
            f"{path} holds {sorted(map(str, content))!r:.200}, expected one learned word: a token with its tensor, "
            "'emb_params', or 'clip_l' with 'clip_g'. Give the file of a textual inversion."
        )
    ((key, table),) = tables.items()
    return name or ("" if key in _GENERIC else str(key)), [table]


def _both_halves(path: Path) -> tuple[str, list[Any]]:
    """The word of two files that differ by a "_2", in the order of the text encoders."""
    stem, steps = re.fullmatch(r"(.*?)((?:-steps-\d+)?)", path.stem).groups()  # type: ignore[union-attr]
    first = path.with_name(stem.removesuffix("_2") + steps + path.suffix)
    second = path.with_name(stem.removesuffix("_2") + "_2" + steps + path.suffix)
    missing = next((half for half in (first, second) if not half.is_file()), None)
    if missing is not None:
        raise ConceptError(
            f"{path} has a word for one text encoder, and this base model has two. The other half belongs beside it "
            f"as {missing.name}: copy both, or give one file with both."
        )
    (name, tables), (other, further) = _learned_word(first), _learned_word(second)
    if name != other:
        raise ConceptError(f"{first} holds {name!r} and {second} {other!r}, expected one word in both.")
    return name, [*tables, *further]


def read_checkpoint(path: Path, position: int | None = None) -> Checkpoint:
    """Read a checkpoint of perfusion-pytorch or of Key-Locked-Rank-One-Editing, told apart by their names.

    Args:
        position: for the second, which trains a target for every position of a prompt: the one to take.

    Raises:
        ConceptError: the file cannot be read, is neither, or holds what a concept file has no place for.
    """
    tensors = _read(path)
    if {"embed_params", "key_value_params", "C_inv"} <= set(tensors):
        return _from_module_list(path, tensors)
    if {"target_input", "target_output", "embedding", "C_inv"} <= set(tensors):
        return _from_named_targets(path, tensors, position)
    raise ConceptError(
        f"{path} holds {sorted(map(str, tensors))!r:.200}, expected a checkpoint of perfusion-pytorch (embed_params, "
        "key_value_params, C_inv) or of Key-Locked-Rank-One-Editing (target_input, target_output, embedding, C_inv)."
    )


def _from_module_list(path: Path, tensors: Mapping[str, Any]) -> Checkpoint:
    """perfusion-pytorch: a pair of direction and target for every edited projection, keys and values in turn."""
    pairs = tensors["key_value_params"]
    if not (
        isinstance(pairs, list) and pairs and len(pairs) % 2 == 0 and all(_is_pair(pair) for pair in pairs)
    ):
        raise ConceptError(
            f"{path}: 'key_value_params' is no list of pairs, keys and values in turn. Save it again, with every "
            "cross-attention layer wired up."
        )
    if tensors["embed_params"] is None:
        raise ConceptError(
            f"{path} lacks the learned word ('embed_params' is empty): its embedding was not wrapped when it was "
            "saved. Nothing can stand for it; save it again."
        )
    words = _matrix(path, tensors["embed_params"])
    concepts = {len(words), *(len(tensor) for pair in pairs for tensor in pair)}
    if concepts != {1}:
        raise ConceptError(
            f"{path} holds {max(concepts)} merged concepts, expected one. Convert each from its own checkpoint."
        )
    directions = torch.stack([pair[0][0].double() for pair in pairs])
    mean = directions.mean(0)
    if not float((directions - mean).norm(dim=1).max()) <= 1e-3 * float(mean.norm()):
        raise ConceptError(
            f"{path}: its layers have different directions, and a concept has one for all. They were not trained "
            "together; train the concept again."
        )
    return Checkpoint(
        embeddings=words.double(),
        direction=mean,
        inverse_moment=_square(path, tensors["C_inv"], len(mean)),
        keys=tuple(pair[1][0].double() for pair in pairs[::2]),
        values=tuple(pair[1][0].double() for pair in pairs[1::2]),
    )


def _from_named_targets(path: Path, tensors: Mapping[str, Any], position: int | None) -> Checkpoint:
    """Key-Locked-Rank-One-Editing: targets by the layer's name, one for every position of a prompt."""
    words = [_matrix(path, table) for table in dict(tensors["embedding"]["string_to_param"]).values()]
    if len(words) != 1 or len(words[0]) != 1:
        raise ConceptError(
            f"{path} has {sum(map(len, words))} learned vectors and one direction for all of them; a concept has a "
            "direction for each. Only a checkpoint with one vector can be converted."
        )
    direction = tensors["target_input"].double()
    keys: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    length = 1
    for name, target in tensors["target_output"].items():
        match = re.fullmatch(r"(.+)\.(to_k|to_v)\.target_output", name)
        if match is None:
            raise ConceptError(f"{path} has a target {name!r:.100}, expected one of 'to_k' or 'to_v'.")
        length = len(target)
        (keys if match[2] == "to_k" else values)[match[1]] = _at(path, target.double(), position)
    # their covariance is summed over all positions of a caption and divided by the captions
    moment = _square(path, tensors["C_inv"], len(direction)) * length
    return Checkpoint(
        embeddings=words[0].double(), direction=direction, inverse_moment=moment, keys=keys, values=values
    )


def _at(path: Path, target: Tensor, position: int | None) -> Tensor:
    """The target (width,) at one position of (positions, width)."""
    if bool((target == target[0]).all()):
        return target[0]
    if position is None:
        raise ConceptError(
            f"{path} has a target for each of {len(target)} positions in a prompt, and a concept has one for all. Give "
            "the position its word was trained at (--position 5 for 'a photo of a *', counting the start token as 0): "
            "what it learned for other places is lost."
        )
    if not 0 <= position < len(target):
        raise ConceptError(f"{path}: the position is {position}, expected 0 to {len(target) - 1}.")
    return target[position]


def _read(path: Path) -> Mapping[str, Any]:
    """The names and tensors of a safetensors file or of a pickle, the latter by torch's weights-only reader."""
    try:
        if not path.is_file():
            raise ConceptError(f"{path} is not a file. Give the file to convert.")
        if path.stat().st_size > _MAX_BYTES:
            raise ConceptError(
                f"{path} has more than {_MAX_BYTES} bytes; it is a whole model and no concept."
            )
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        with torch.serialization.safe_globals(
            [torch.nn.ParameterDict]
        ):  # a container; it is built, not called
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (ConceptError, MemoryError):
        raise
    except pickle.UnpicklingError as error:  # what torch says advises to let the file run its code
        forbidden = _GLOBAL.search(str(error))
        reason = (
            f"wants to call {forbidden[1].rstrip('.')}"
            if forbidden
            else "holds more than tensors, or is damaged"
        )
        raise ConceptError(
            f"{path} cannot be read: it is a pickle that {reason}, and a pickle can run code. Expected safetensors, or "
            "a pickle of nothing but tensors."
        ) from error
    except Exception as error:  # the readers raise a dozen kinds for a damaged file
        raise ConceptError(
            f"{path} cannot be read: {first_line(error):.200}. Expected safetensors, or a pickle of tensors alone."
        ) from error
    if not isinstance(content, Mapping):
        raise ConceptError(f"{path} holds a {type(content).__name__}, expected names with tensors.")
    return content


def _is_pair(pair: Any) -> bool:
    """A direction (concepts, text_dim) and a target (concepts, width)."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    return all(isinstance(tensor, Tensor) and tensor.dim() == 2 and tensor.numel() > 0 for tensor in pair)


def _matrix(path: Path, tensor: Any) -> Tensor:
    """A learned word as (rows, hidden) float32."""
    if (
        not isinstance(tensor, Tensor)
        or not tensor.is_floating_point()
        or not 1 <= tensor.dim() <= 2
        or not tensor.numel()
    ):
        raise ConceptError(f"{path}: its learned word is no vector or table of floating-point numbers.")
    rows = tensor.detach().float().reshape(-1, tensor.shape[-1])
    if not bool(torch.isfinite(rows).all()):
        raise ConceptError(f"{path}: its learned word holds NaN or infinity. Train it again.")
    return rows


def _square(path: Path, tensor: Any, dim: int) -> Tensor:
    """C⁻¹ as (dim, dim) float64."""
    if not isinstance(tensor, Tensor) or tensor.shape != (dim, dim):
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ConceptError(f"{path}: 'C_inv' is {shape}, expected {(dim, dim)} to go with its direction.")
    return tensor.double()
