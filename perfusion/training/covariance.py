"""The second moment of the text encodings, C = E[e eᵀ]: what tells the concept's direction from everything else.

Computed once per text encoder from captions and kept in the user's cache folder. C of one encoder is worthless for
another, so a cache file is found by the encoder's structure, its tokenizer and the captions, and taken if the encoder
has the weights that it was computed with. They are compared on a sample, within what storing them in 16 bits
changes: the same model in half precision needs no second computation.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from perfusion.base.base_model import BaseModel
from perfusion.errors import PerfusionError, TrainingError
from perfusion.files import cache_folder, writing
from perfusion.training.captions import generate_captions

__all__ = ["cached_second_moment", "caption_file", "inverse", "load_captions", "second_moment"]

logger = logging.getLogger(__name__)

RIDGE = 1e-6
"""Added to the diagonal, times the mean eigenvalue. Condition numbers reach 1e10; from 1e-2 on the gate leaks."""
BATCH = 128
MIN_CAPTIONS = 100
TRIM_WIDTH = 512
"""Encoders at least this wide read only as much of the padding as the longest caption of a batch leaves: nothing sees
what comes after it, and it costs four times the captions. It does move the last bit, and narrow encoders take seconds
anyway, so these keep the numbers that concepts for them were trained with."""
SAMPLED = 512
"""Weights of each tensor that are compared, about."""
SAME_WEIGHTS = 2.0**-8
"""How far a weight may be off, as a share of itself and of its tensor's usual size: bfloat16 rounds by half of that."""
SAY_EVERY = 15.0
"""Seconds between two lines about the progress."""


def caption_file(base: BaseModel, path: Path | None) -> Path | None:
    """Where the captions are read: the user's file, or `captions.txt` beside the model's settings; None: our corpus."""
    source = (base.source or base.folder) / "captions.txt"
    return path or (source if source.is_file() else None)


def load_captions(base: BaseModel, path: Path | None) -> list[str]:
    """Captions, one a line, from `caption_file`, or our own corpus."""
    source = caption_file(base, path)
    if source is None:
        return generate_captions()
    if not source.is_file():
        raise TrainingError(
            f"{source}: no such file; --captions expects a text file with one caption a line, like the prompts to "
            "come. Without it the captions that ship with us are used."
        )
    try:
        lines = [line.strip() for line in source.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{source}: cannot be read as UTF-8 text ({error}).") from error
    if len(lines) < MIN_CAPTIONS:
        raise TrainingError(
            f"{source}: {len(lines)} captions, expected at least {MIN_CAPTIONS}; thousands are better."
        )
    return lines


@torch.no_grad()
def second_moment(
    base: BaseModel,
    captions: Sequence[str],
    *,
    count_padding: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """C over the captions' tokens: start, words and the first end token, each once a caption.

    With two text encoders it is that of their encodings side by side, which is what the keys and values read.

    Args:
        count_padding: count the padding too. CLIP pads with its end token, so its encodings resemble the end's.
        progress: called after every batch with the captions done and how many there are.

    Returns:
        (text_dim, text_dim) float64, symmetric.
    """
    device = next(base.text_encoder.parameters()).device
    trim = base.text_dim >= TRIM_WIDTH and not count_padding
    if trim:  # captions of a length come together
        captions = sorted(captions, key=len)
    ends = [int(tokenizer.eos_token_id) for tokenizer in base.tokenizers]
    total = torch.zeros(base.text_dim, base.text_dim, dtype=torch.float64)
    count = 0
    for start in range(0, len(captions), BATCH):
        ids = caption_ids(base, captions[start : start + BATCH])
        # two tokenizers agree on the end but for captions with many exclamation marks, SDXL's second padding token
        real = torch.stack([real_tokens(*pair) for pair in zip(ids, ends, strict=True)]).any(0)
        length = int(real.sum(1).max()) if trim else real.shape[1]
        hidden = base.encode([row[:, :length].to(device) for row in ids], pooled=False).hidden
        encodings = hidden.double().cpu()
        tokens = encodings.flatten(0, 1) if count_padding else encodings[real[:, :length]]
        total += tokens.T @ tokens
        count += len(tokens)
        if progress:
            progress(min(start + BATCH, len(captions)), len(captions))
    moment = total / count
    return (moment + moment.T) / 2


def caption_ids(base: BaseModel, captions: Sequence[str]) -> list[torch.Tensor]:
    """Padded token ids for each text encoder, (captions, tokens) int64; what is too long is cut."""
    options = {"padding": "max_length", "max_length": base.context_length, "truncation": True}
    tokenizers: tuple[Any, ...] = base.tokenizers
    return [tokenizer(list(captions), return_tensors="pt", **options).input_ids for tokenizer in tokenizers]


def real_tokens(ids: torch.Tensor, eos: int) -> torch.Tensor:
    """Everything up to and with the first end token. (batch, tokens) bool."""
    ends = (ids == eos).long()
    return ends.cumsum(1) - ends == 0


def inverse(moment: torch.Tensor, ridge: float = RIDGE) -> torch.Tensor:
    """C⁻¹ by Cholesky with a tiny ridge, float64. Raises `TrainingError` when C is not positive."""
    dim = len(moment)
    lifted = moment + ridge * moment.trace() / dim * torch.eye(dim, dtype=moment.dtype)
    factor, failed = torch.linalg.cholesky_ex(lifted)
    if int(failed) or not bool(torch.isfinite(factor).all()):
        raise TrainingError(
            "The second moment of the text encodings is not positive; the captions or the encoder are broken."
        )
    result = torch.cholesky_inverse(factor)
    return (result + result.T) / 2


def cache_key(base: BaseModel, captions: Sequence[str], *, count_padding: bool = False) -> str:
    """A fingerprint of what must be the same to the bit: the encoders' shapes, the tokenizers and the captions."""
    digest = hashlib.sha256(b"second moment, format 2\n")
    for text_encoder, tokenizer in zip(base.text_encoders, base.tokenizers, strict=True):
        for name, value in sorted(text_encoder.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update("\n".join(captions).encode())
    if count_padding:
        digest.update(b"\0padding counted")
    return digest.hexdigest()


def weight_sample(base: BaseModel) -> torch.Tensor:
    """Some weights of each tensor of the text encoders, evenly spread, and under each the root mean square of all of
    its tensor's. (2, n) float32."""
    pieces = []
    for text_encoder in base.text_encoders:
        for _, value in sorted(text_encoder.state_dict().items()):
            flat = value.detach().flatten().cpu().float()
            some = flat[:: len(flat) // SAMPLED | 1]  # an odd stride, so that no column is passed over
            pieces.append(torch.stack([some, flat.square().mean().sqrt().expand_as(some)]))
    return torch.cat(pieces, dim=1)


def same_weights(sample: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two samples differ by no more than storing one of the models in 16 bits does."""
    if sample.shape != other.shape:
        return False
    (weights, usual), (their_weights, their_usual) = sample, other
    near = (weights - their_weights).abs() <= SAME_WEIGHTS * (weights.abs() + usual)
    return bool((near & ((usual - their_usual).abs() <= SAME_WEIGHTS / 4 * usual)).all())


def cached_second_moment(
    base: BaseModel,
    captions: Sequence[str],
    say: Callable[[str], None] = logger.info,
    *,
    count_padding: bool = False,
) -> torch.Tensor:
    """`second_moment`, read from the cache when it was computed before. A cache that cannot be used costs only time.

    Processes that compute the same moment at once write the same file, each as a whole: the last one stays.
    """
    key = cache_key(base, captions, count_padding=count_padding)[:32]
    sample = weight_sample(base)
    for path in sorted(cache_folder().glob(f"second-moment-{key}-*.safetensors")):
        moment = read_moment(path, base.text_dim, sample)
        if moment is not None:
            return moment
    say(
        f"computing the second moment of the text encodings from {len(captions)} captions, once for this model"
    )
    moment = second_moment(base, captions, count_padding=count_padding, progress=saying(say))
    weights = hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:8]
    try:
        with writing(cache_folder() / f"second-moment-{key}-{weights}.safetensors") as file:
            file.write(serialise({"second_moment": moment, "weight_sample": sample}))
    except PerfusionError as error:
        logger.warning("the second moment is not kept for next time: %s", error)
    return moment


def read_moment(path: Path, dim: int, sample: torch.Tensor) -> torch.Tensor | None:
    """The moment in a cache file; None where it cannot be used, or is that of other weights than the sample's."""
    try:
        tensors = deserialise(path.read_bytes())
        moment, weights = tensors["second_moment"], tensors["weight_sample"]
        if moment.shape == (dim, dim) and bool(torch.isfinite(moment).all()):
            return moment if same_weights(sample, weights) else None
        logger.warning("%s is damaged; it is computed again", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # safetensors raises its own kind; nothing is lost by starting over
        logger.warning("%s cannot be read (%s); it is computed again", path, error)
    return None


def saying(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """Progress in lines, for what takes minutes with a large encoder on a CPU; nothing is said of what is quick."""
    began = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last >= SAY_EVERY:
            last = now
            left = (now - began) / done * (total - done)
            say(f"{done} of {total} captions encoded, about {_duration(left)} left")

    return progress


def _duration(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 90 else f"{round(seconds / 60)} min"
