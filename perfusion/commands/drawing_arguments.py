"""Types of perfusion-generate's arguments: from what is typed to paths, numbers and settings."""

import argparse
import re
from pathlib import Path
from typing import Any

from perfusion.concept.settings import SETTINGS
from perfusion.numerals import decimal

__all__ = [
    "at_least_one",
    "concept_argument",
    "count_argument",
    "embedding_argument",
    "memory_argument",
    "picture_argument",
    "png_argument",
    "seed_argument",
]

_MOST_PICTURES = 10_000  # of a prompt

# A setting's value holds no path separator, so that C:\cats\a=b.safetensors is a path and nothing else; a word in angle
# brackets may hold anything. A comma before digits alone is a decimal one.
_SETTING = r"\w+=(?:<[^<>\s]*>|[^,:/\\]*(?:,\d+(?!\w*=))*)"
_SPEC = re.compile(rf"(?P<path>.+?):(?P<settings>{_SETTING}(?:,{_SETTING})*)", re.DOTALL)


def concept_argument(spec: str) -> tuple[Path, dict[str, Any]]:
    """FILE:bias=0.6,strength=1 as a path and settings."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return Path(spec), {}
    settings: dict[str, Any] = {}
    for setting in re.findall(_SETTING, match["settings"]):
        name, _, value = setting.partition("=")
        if name in settings or name not in (*SETTINGS, "token"):
            problem = "is given twice" if name in settings else "is no setting"
            raise argparse.ArgumentTypeError(
                f"{name!r} {problem} in {spec!r}; use {', '.join(SETTINGS)} or token"
            )
        settings[name] = value if name == "token" else _number(name, value)
    return Path(match["path"]), settings


def embedding_argument(spec: str) -> tuple[Path, str | None]:
    """FILE or FILE=word as a path and the word."""
    path, equals, word = spec.rpartition("=")
    if not equals or Path(spec).exists():
        return Path(spec), None
    return Path(path), word


def _number(name: str, value: str) -> float:
    try:
        return decimal(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name} is {value!r}, expected a number") from None


def at_least_one(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def count_argument(text: str) -> int:
    value = at_least_one(text)
    if value > _MOST_PICTURES:
        raise argparse.ArgumentTypeError(f"{text} pictures are too many at once, at most {_MOST_PICTURES}")
    return value


def seed_argument(text: str) -> int | None:
    """A seed; None for one that nobody chose."""
    if text == "random":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor random") from None


def memory_argument(text: str) -> str | float:
    if text in ("auto", "low"):
        return text
    try:
        return decimal(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither auto nor low nor a number of gigabytes"
        ) from None


def png_argument(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return path


def picture_argument(text: str) -> Path:
    from perfusion.runtime.picture_settings import FORMATS

    path = Path(text)
    if path.suffix.lower() not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in one of {', '.join(FORMATS)}")
    return path
