"""The settings of the families as they were published, for files that hold weights alone.

One folder a family under ``settings/``, laid out as diffusers lays out a model without its weights, and CLIP's
vocabulary once for all of them: its merges, from which the words and their ids follow.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.errors import ModelError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

__all__ = ["clip_merges", "clip_tokenizer", "clip_vocabulary", "family_settings", "is_shipped"]

_SETTINGS = Path(__file__).parent / "settings"
_MERGES = _SETTINGS / "clip_merges.txt.gz"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def family_settings(path: Path, kind: str, prediction: str | None) -> Path:
    """The folder of settings for the checkpoint ``path``.

    Args:
        kind: sd15, sd21 or sdxl.
        prediction: what the UNet predicts, where the file or the user says so. Files of 2.x must: half of them predict
            the velocity of pictures of 768 pixels and half the noise of those of 512, which no tensor tells.

    Raises:
        ModelError: of 2.x, and nobody says what it predicts.
    """
    if kind == "sd21":
        if prediction is None:
            raise ModelError(
                f"{path}: a checkpoint of Stable Diffusion 2.x does not tell what its UNet predicts. Say so with "
                "--prediction v_prediction (models of 768 pixels) or --prediction epsilon (models of 512), or give "
                "the folder of its settings with --config."
            )
        return _SETTINGS / ("sd21" if prediction == "v_prediction" else "sd21_base")
    return _SETTINGS / kind


def is_shipped(folder: Path) -> bool:
    """Whether a folder of settings is one of ours, which has no vocabulary of its own."""
    return folder.parent == _SETTINGS


def clip_merges() -> list[tuple[str, str]]:
    """CLIP's merges of bytes into words, the most frequent first."""
    with gzip.open(_MERGES, "rt", encoding="utf-8") as file:
        pairs = (line.split() for line in file)
        return [(left, right) for left, right in pairs]


def clip_vocabulary(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's words with their ids: all bytes, all bytes at the end of a word, the merges, and the two ends."""
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(left + right for left, right in merges)]
    return {word: index for index, word in enumerate([*words, _START, _END])}


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer with the settings in ``folder`` (tokenizer_config.json), which says what it pads with."""
    from transformers import CLIPTokenizer

    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    merges = clip_merges()
    return CLIPTokenizer(
        vocab=clip_vocabulary(merges),
        merges=merges,
        pad_token=settings["pad_token"],
        model_max_length=settings["model_max_length"],
    )


def _letters() -> list[str]:
    """A printable letter for each byte, in the order of CLIP's ids: those that are printable themselves come first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + number) for number in range(others))]
