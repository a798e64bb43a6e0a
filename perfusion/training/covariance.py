"""The second moment of the text encodings, C = E[e eᵀ]: what tells the concept's direction from everything else.

Computed once per text encoder from captions and kept in the user's cache folder. C of one encoder is worthless for
another, so the cache's key holds the encoder's weights and the captions.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from perfusion.base import BaseModel, encode
from perfusion.errors import PerfusionError, TrainingError
from perfusion.files import writing

__all__ = ["cache_folder", "cached_second_moment", "inverse", "load_captions", "second_moment"]

logger = logging.getLogger(__name__)

RIDGE = 1e-6
"""Added to the diagonal, times the mean eigenvalue. Condition numbers reach 1e10; from 1e-2 on the gate leaks."""
BATCH = 128
MIN_CAPTIONS = 100


def load_captions(base: BaseModel, path: Path | None) -> list[str]:
    """Captions, one a line: the user's file, or `captions.txt` of the base model's folder."""
    source = path or base.folder / "captions.txt"
    if not source.is_file():
        raise TrainingError(
            f"{source}: no captions. The second moment of the text encodings is computed from captions like the "
            "prompts to come; give a text file with one a line (--captions FILE)"
        )
    try:
        lines = [line.strip() for line in source.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{source}: cannot be read as UTF-8 text ({error})") from error
    if len(lines) < MIN_CAPTIONS:
        raise TrainingError(
            f"{source}: {len(lines)} captions, expected at least {MIN_CAPTIONS}; thousands are better"
        )
    return lines


@torch.no_grad()
def second_moment(base: BaseModel, captions: Sequence[str], *, count_padding: bool = False) -> torch.Tensor:
    """C over the captions' tokens: start, words and the first end token, each once a caption.

    Args:
        count_padding: count the padding too. CLIP pads with its end token, so its encodings resemble the end's.

    Returns:
        (text_dim, text_dim) float64, symmetric.
    """
    tokenizer: Any = base.tokenizer
    device = next(base.text_encoder.parameters()).device
    total = torch.zeros(base.text_dim, base.text_dim, dtype=torch.float64)
    count = 0
    for start in range(0, len(captions), BATCH):
        batch = list(captions[start : start + BATCH])
        ids = tokenizer(
            batch, padding="max_length", max_length=base.context_length, truncation=True, return_tensors="pt"
        ).input_ids.to(device)
        encodings = encode(base.text_encoder, ids).double().cpu()
        tokens = (
            encodings.flatten(0, 1)
            if count_padding
            else encodings[real_tokens(ids.cpu(), tokenizer.eos_token_id)]
        )
        total += tokens.T @ tokens
        count += len(tokens)
    moment = total / count
    return (moment + moment.T) / 2


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
            "the second moment of the text encodings is not positive; the captions or the encoder are broken"
        )
    result = torch.cholesky_inverse(factor)
    return (result + result.T) / 2


def cache_folder() -> Path:
    """Where computed moments are kept: $PERFUSION_CACHE, or `perfusion-edge` in the user's cache folder."""
    own = os.environ.get("PERFUSION_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "perfusion-edge"
    except RuntimeError:  # a user without a home, as containers have
        return Path(tempfile.gettempdir()) / "perfusion-edge"


def cache_key(base: BaseModel, captions: Sequence[str]) -> str:
    """A fingerprint of everything the moment depends on: the encoder's weights, the tokenizer and the captions."""
    digest = hashlib.sha256(b"second moment, format 1\n")
    for name, value in sorted(base.text_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    tokenizer: Any = base.tokenizer
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update("\n".join(captions).encode())
    return digest.hexdigest()


def cached_second_moment(
    base: BaseModel, captions: Sequence[str], say: Callable[[str], None] = logger.info
) -> torch.Tensor:
    """`second_moment`, read from the cache when it was computed before. A cache that cannot be used costs only time."""
    path = cache_folder() / f"second-moment-{cache_key(base, captions)[:32]}.safetensors"
    try:
        moment = deserialise(path.read_bytes())["second_moment"]
        if moment.shape == (base.text_dim, base.text_dim) and bool(torch.isfinite(moment).all()):
            return moment
        logger.warning("%s is damaged; it is computed again", path)
    except FileNotFoundError:
        pass
    except (
        Exception
    ) as error:  # safetensors raises its own kind for a damaged file; nothing is lost by starting over
        logger.warning("%s cannot be read (%s); it is computed again", path, error)
    say(
        f"computing the second moment of the text encodings from {len(captions)} captions, once for this model"
    )
    moment = second_moment(base, captions)
    try:
        with writing(path) as file:
            file.write(serialise({"second_moment": moment}))
    except PerfusionError as error:
        logger.warning("the second moment is not kept for next time: %s", error)
    return moment
