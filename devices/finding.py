"""One thing that is wrong with a machine, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Level"]

Level = Literal["stop", "warning", "note"]
"""Drawing is not possible; it is slower or may fail; good to know."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    name: str  # a short name for programs
    level: Level
    text: str  # what was found
    remedy: str  # what to do
