"""Concepts made of what other programs learned, with the base model they were learned on at hand."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perfusion import __version__
from perfusion.base.attention import key_projections, value_projections
from perfusion.base.base_model import BaseModel
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import gate, project, similarity
from perfusion.concept.settings import ConceptSettings
from perfusion.errors import ConceptError
from perfusion.training.covariance import RIDGE, cached_second_moment, inverse, load_captions
from perfusion.training.foreign import Checkpoint, read_checkpoint, read_textual_inversion
from perfusion.training.initial_edit import concept_prompt, placeholder_encodings
from perfusion.training.templates import TEMPLATES, as_tensors, check_superclass, check_token

__all__ = ["ImportOptions", "from_checkpoint", "from_textual_inversion"]

logger = logging.getLogger(__name__)

Float64 = npt.NDArray[np.float64]

MAX_ROWS = 4
"""Vectors of a textual inversion; each takes one slot of an exported model, and those have few."""
MAX_CONDITION = 100.0
"""Of the gates of a textual inversion's vectors on each other: beyond it their targets cancel in large numbers."""
FOREIGN_BIAS = 0.7
"""What both re-implementations draw with; their temperature of 0.15 is ours."""
MAX_RESIDUAL = 0.02
"""How far locked keys may be from what the base model's key projections can make; rounding is below 0.001."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a foreign file does not say."""

    superclass: str
    """What kind of thing it is, in the base model's words."""
    token: str = ""
    """The word that will stand for it; empty: the file's own name for it, or else the superclass, in brackets."""
    captions: Path | None = None
    """For a textual inversion: captions for the second moment, as in training."""
    gated: bool = False
    """For a textual inversion: let it be edited as a trained concept is, at the price of exactness."""
    position: int | None = None
    """For targets that differ with the position in the prompt: the position to take."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Edit:
    """Directions with their duals and energies, and the encodings whose keys and values are the targets."""

    direction: Float64  # (rows, text_dim)
    dual: Float64  # (rows, text_dim)
    energy: Float64  # (rows,)
    stand_in: Float64  # (rows, text_dim)
    bias: float = ConceptSettings.bias
    temperature: float = ConceptSettings.temperature
    deviation: float = 0.0


def from_textual_inversion(
    path: str | Path,
    base: BaseModel,
    options: ImportOptions,
    say: Callable[[str], None] = logger.info,
) -> Concept:
    """A concept that draws what the textual inversion draws.

    A textual inversion is a word and edits nothing: h(e) = W e. A concept must have a direction, which the
    projection takes out of every encoding. It gets the one that encodings use least, v, the last eigenvector of their
    second moment, and targets of 0: h(e) = W e − W v ⟨v, e⟩, for keys and values of every layer, at any bias and
    strength. How long v ⟨v, e⟩ is beside e is said; for the embedded model it is a millionth.

    With `options.gated` the edit is the method's own, and bias and strength are sliders as for a trained concept:
    i* are the words' mean encodings and the targets such that h(i*) = W i* exactly, in every layer. For another
    encoding e the edit is off by W (Xᵀ g(s(e)) − Iᵀ c(e)), with c the coefficients that the projection takes out; bias
    and temperature are those that make this least over the training templates. Keys are its own, not its superclass's.

    Raises:
        ConceptError: the file cannot be read, is for another text encoder, or its vectors cannot be told apart.
        TrainingError: the superclass, the token or the captions cannot be used.
    """
    inversion = read_textual_inversion(Path(path), encoders=len(base.text_encoders))
    token = _token(base, options, inversion.name)
    check_superclass(base, options.superclass)
    _check_words(Path(path), base, inversion.embeddings)
    embeddings = [table.to(_device(base)) for table in inversion.embeddings]
    moment = cached_second_moment(base, load_captions(base, options.captions), say)
    encodings = _template_encodings(base, embeddings)
    if options.gated:
        direction = _array(placeholder_encodings(base, embeddings))
        edit = _gated(Path(path), encodings, direction, inverse(moment))
    else:
        edit = _idle(encodings, moment, rows=len(embeddings[0]))
    say(f"plain textual inversion is met within {edit.deviation:.2g} of the encodings' length")
    # locked keys are W_K times the stand-in, so a base that derives them anew finds the same ones
    concept = _concept(base, options, token, edit, inversion.embeddings)
    facts = {"imported": "textual inversion", "deviation": f"{edit.deviation:.3g}"}
    return replace(concept, bias=edit.bias, temperature=edit.temperature, training=facts)


def from_checkpoint(path: str | Path, base: BaseModel, options: ImportOptions) -> Concept:
    """A concept from a checkpoint of perfusion-pytorch or Key-Locked-Rank-One-Editing.

    Direction, covariance, learned word, keys and values are the file's. The superclass's encoding is not in it and is
    found as the encoding that the locked keys were made of; where this base model makes no such keys, the checkpoint
    is another base's or its layers are in another order.

    Raises:
        ConceptError: the file cannot be read or does not fit the base model.
        TrainingError: the superclass or the token cannot be used.
    """
    path = Path(path)
    token = _token(base, options, "")
    check_superclass(base, options.superclass)
    checkpoint = read_checkpoint(path, options.position)
    if len(base.text_encoders) != 1:
        raise ConceptError(f"{path} has a word for one text encoder, and the base model has two.")
    _check_words(path, base, (checkpoint.embeddings,))
    if len(checkpoint.direction) != base.text_dim:
        raise ConceptError(
            f"{path} has a direction of {len(checkpoint.direction)} numbers, this base model's encodings have "
            f"{base.text_dim}. Give the base model it was trained on (--model)."
        )
    keys, values, encoding = _fitted(path, base, checkpoint)
    direction = _array(checkpoint.direction[None])
    dual, energy = _dual(direction, checkpoint.inverse_moment)
    if not energy[0] > 0:
        raise ConceptError(
            f"{path}: its direction has energy {energy[0]:g} under 'C_inv', expected more than 0."
        )
    edit = _Edit(direction=direction, dual=dual, energy=energy, stand_in=encoding[None])
    concept = _concept(base, options, token, edit, (checkpoint.embeddings,))
    facts = {"imported": "checkpoint"} | (
        {} if options.position is None else {"position": str(options.position)}
    )
    concept = replace(
        concept,
        target_keys=_single(keys[None]),
        target_values=_single(values[None]),
        bias=FOREIGN_BIAS,
        training=facts,
    )
    _warn_if_closed(path, base, concept)
    return concept


def _token(base: BaseModel, options: ImportOptions, name: str) -> str:
    """The word that stands for the concept, checked."""
    visible = "".join(character for character in re.sub(r"[<>\s]+", "-", name) if character.isprintable())
    plain = visible.strip("-") or "-".join(options.superclass.lower().split())
    token = options.token or f"<{plain[:62]}>"
    check_token(base, token)
    return token


def _check_words(path: Path, base: BaseModel, embeddings: tuple[Tensor, ...]) -> None:
    widths, expected = tuple(table.shape[1] for table in embeddings), base.hidden_sizes
    if widths != expected:
        raise ConceptError(
            f"{path} has word embeddings of {' + '.join(map(str, widths))} numbers, this base model takes "
            f"{' + '.join(map(str, expected))}. Give the base model it was trained on (--model)."
        )
    if len(embeddings[0]) > MAX_ROWS:
        raise ConceptError(
            f"{path} has {len(embeddings[0])} vectors, expected at most {MAX_ROWS}: each takes a slot of an exported "
            "model. Use a textual inversion of fewer vectors."
        )


def _dual(direction: Float64, inverse_moment: Tensor) -> tuple[Float64, Float64]:
    """w* = C⁻¹ i* / n (rows, text_dim) and n (rows,)."""
    raised = direction @ _array(inverse_moment)
    energy = (raised * direction).sum(-1)
    return raised / energy[:, None], energy


@torch.no_grad()
def _template_encodings(base: BaseModel, embeddings: list[Tensor]) -> Float64:
    """Every token's encoding in every training template with the concept in it, (templates * tokens, text_dim)."""
    prompts = [concept_prompt(base, template, len(embeddings[0])) for template in TEMPLATES]
    hidden = base.encode(as_tensors(prompts, _device(base)), embeddings, pooled=False).hidden
    return _array(hidden.flatten(0, 1))


def _idle(encodings: Float64, moment: Tensor, rows: int) -> _Edit:
    """An edit along the directions that encodings use least, with targets of nothing.

    Those of the captions and of the templates alike: captions may leave out the padding, and lack the word.
    """
    variances, vectors = np.linalg.eigh(_array(moment) + encodings.T @ encodings / len(encodings))
    direction = np.ascontiguousarray(vectors[:, :rows].T)  # in ascending order of variance
    ridge = RIDGE * variances.mean()
    energy = 1 / (np.maximum(variances[:rows], 0) + ridge)  # eigenvectors are their own duals
    deviation = float(np.linalg.norm(encodings @ direction.T) / np.linalg.norm(encodings))
    return _Edit(
        direction=direction,
        dual=direction,
        energy=energy,
        stand_in=np.zeros_like(direction),
        deviation=deviation,
    )


def _gated(path: Path, encodings: Float64, direction: Float64, inverse_moment: Tensor) -> _Edit:
    """The edit whose gate changes encodings least: the best bias and temperature of a grid."""
    dual, energy = _dual(direction, inverse_moment)
    similarities = similarity(encodings, dual)
    removed = project(encodings, direction, dual, energy) - encodings
    best: _Edit | None = None
    for bias in np.linspace(0.3, 1.0, 15):
        for temperature in np.linspace(0.05, 0.3, 11):
            stand_in = _stand_in(direction, dual, bias, temperature)
            if stand_in is None:
                continue
            change = removed + gate(similarities, bias, temperature) @ stand_in
            deviation = float(np.linalg.norm(change) / np.linalg.norm(encodings))
            if best is None or deviation < best.deviation:
                settings = {"bias": round(float(bias), 4), "temperature": round(float(temperature), 4)}
                best = _Edit(
                    direction=direction,
                    dual=dual,
                    energy=energy,
                    stand_in=stand_in,
                    deviation=deviation,
                    **settings,
                )
    if best is None:
        raise ConceptError(
            f"{path}: its {len(direction)} vectors encode so much alike that no gate tells them apart. Import it "
            "without a gate, or use a textual inversion of fewer vectors."
        )
    return best


def _stand_in(direction: Float64, dual: Float64, bias: float, temperature: float) -> Float64 | None:
    """X with Σ_j g_j(i_k) x_j = i_k for every row k: what passes the gates at i* is i* again. None where they cannot
    tell the rows apart. (rows, text_dim)."""
    gates = gate(similarity(direction, dual), bias, temperature)
    if np.linalg.cond(gates) > MAX_CONDITION:
        return None
    return np.asarray(np.linalg.solve(gates, direction), dtype=np.float64)


def _concept(
    base: BaseModel, options: ImportOptions, token: str, edit: _Edit, embeddings: tuple[Tensor, ...]
) -> Concept:
    """A concept whose targets are the base's own keys and values of the edit's stand-in."""
    return Concept(
        token=token,
        superclass=options.superclass,
        base=base.family,
        base_fingerprint=base.fingerprint,
        direction=_single(edit.direction),
        dual=_single(edit.dual),
        energy=_single(edit.energy),
        superclass_encoding=_single(edit.stand_in),
        embeddings=tuple(_single(_array(table)) for table in embeddings),
        target_values=_single(edit.stand_in @ _array(value_projections(base.unet)).T),
        target_keys=_single(edit.stand_in @ _array(key_projections(base.unet)).T),
        created_with=f"perfusion-edge {__version__}",
    )


def _fitted(path: Path, base: BaseModel, checkpoint: Checkpoint) -> tuple[Float64, Float64, Float64]:
    """Keys (Σ d_K,) and values (Σ d_V,) in the order of the base's layers, and the encoding that made the keys."""
    weight = _array(key_projections(base.unet))
    best: tuple[float, Float64, Float64, Float64] | None = None
    for order in _orders(base, checkpoint):
        keys, values = (_in_order(targets, order) for targets in (checkpoint.keys, checkpoint.values))
        fits = [len(key) for key in keys] == [layer.key_dim for layer in base.layers]
        if not fits or [len(value) for value in values] != [layer.value_dim for layer in base.layers]:
            continue
        stacked = np.concatenate(keys)
        encoding = np.asarray(np.linalg.lstsq(weight, stacked, rcond=None)[0], dtype=np.float64)
        length = float(np.linalg.norm(stacked)) or 1.0
        residual = float(np.linalg.norm(weight @ encoding - stacked)) / length
        if best is None or residual < best[0]:
            best = (residual, stacked, np.concatenate(values), encoding)
    if best is None:
        raise ConceptError(
            f"{path} has {len(checkpoint.keys)} key and {len(checkpoint.values)} value targets, and their widths "
            f"are not those of this base model's {len(base.layers)} cross-attention layers. "
            "Give the base model it was trained on (--model)."
        )
    residual, stacked, joined, encoding = best
    if residual > MAX_RESIDUAL:
        raise ConceptError(
            f"{path}: its locked keys differ by {residual:.0%} from any that this base model makes; they are another "
            "base model's, or its layers are in an unknown order. Give the base model it was trained on (--model)."
        )
    return stacked, joined, encoding


def _orders(base: BaseModel, checkpoint: Checkpoint) -> list[list[Any]]:
    """How the base's layers may be called, or in which order they may stand, in a checkpoint."""
    names = [layer.name for layer in base.layers]
    if isinstance(checkpoint.keys, Mapping):
        return [[_original_name(base, name) for name in names]]
    # diffusers counts the middle block last; the original implementations run through it between down and up
    passed = sorted(range(len(names)), key=lambda at: ("down", "mid", "up").index(names[at].split("_")[0]))
    return [list(range(len(names))), [passed.index(at) for at in range(len(names))]]


def _in_order(targets: Mapping[str, Tensor] | tuple[Tensor, ...], order: list[Any]) -> list[Float64]:
    if isinstance(targets, Mapping):
        return (
            [_array(targets[name]) for name in order if name in targets] if len(targets) == len(order) else []
        )
    return [_array(targets[at]) for at in order] if len(targets) == len(order) else []


def _original_name(base: BaseModel, name: str) -> str:
    """A cross-attention layer's name in the original (LDM) layout: input_blocks.1.1.transformer_blocks.0.attn2."""
    layers = int(base.unet.config.layers_per_block)
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.(.+)", name)
    if match is None:
        return name.replace("mid_block.attentions.0.", "middle_block.1.")
    block, place = int(match[2]), int(match[3])
    if (
        match[1] == "down"
    ):  # input block 0 is the first convolution; each level ends with a block that shrinks
        return f"input_blocks.{1 + block * (layers + 1) + place}.1.{match[4]}"
    return f"output_blocks.{block * (layers + 1) + place}.1.{match[4]}"


def _warn_if_closed(path: Path, base: BaseModel, concept: Concept) -> None:
    """Say so when the concept's own word does not open its gate: some checkpoints keep another token's encoding."""
    tables = [torch.from_numpy(table.copy()).to(_device(base)) for table in concept.embeddings]
    own = float(similarity(_array(placeholder_encodings(base, tables)), concept.dual)[0, 0])
    if own < concept.bias - concept.temperature:
        logger.warning(
            "%s: its word has a similarity of %.2f with its own direction, so its gate stays nearly closed; lower the "
            "bias when drawing (about %.2f), or train the concept again",
            path, own, max(own, 0.0),
        )  # fmt: skip


def _device(base: BaseModel) -> torch.device:
    device: torch.device = next(base.text_encoder.parameters()).device
    return device


def _array(tensor: Tensor) -> Float64:
    return tensor.detach().cpu().double().numpy()


def _single(array: Float64) -> npt.NDArray[np.float32]:
    """As a file holds it; numbers beyond float32 become infinite, which a concept refuses."""
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
