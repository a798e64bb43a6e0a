"""What perfusion-export prints of what it did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perfusion.export import Exported
    from perfusion.tensorrt.engines import EngineOutcome

__all__ = ["as_json", "as_lines"]


def as_json(
    folder: Path, exported: Exported | None, outcomes: Sequence[EngineOutcome], **further: Any
) -> str:
    """All of it for a program to read; `further` are fields of their own."""
    result: dict[str, Any] = {"output": str(folder)}
    if exported is not None:
        manifest = exported.manifest
        names = ("base", "base_fingerprint", "precision", "defaults", "parity")
        result |= {"bytes": exported.size, **{name: manifest[name] for name in names}}
    if outcomes:
        result["engines"] = [_engine_json(one) for one in outcomes]
    return json.dumps(result | further, indent=1)


def as_lines(
    exported: Exported | None, outcomes: Sequence[EngineOutcome], removed: Sequence[Path]
) -> list[str]:
    """A line for the bundle and for each engine."""
    lines = []
    if exported is not None:
        worst = max(exported.parity.values())
        lines.append(
            f"{exported.folder}: {exported.manifest['base']}, {exported.manifest['precision']}, "
            f"{exported.size / 1e6:.1f} MB; largest difference from torch {worst:.1e}"
        )
    for one in outcomes:
        how = f"built in {one.seconds:.1f} s" if one.built else "was there and fits"
        why = f" ({one.reasons[0]})" if one.built and one.reasons else ""
        lines.append(f"{one.engine.file}: {one.engine.bytes / 1e6:.1f} MB, {how}{why}")
    return [*lines, *(f"{path}: removed" for path in removed)]


def _engine_json(outcome: EngineOutcome) -> dict[str, Any]:
    engine = outcome.engine
    return {
        "file": str(engine.file),
        "bytes": engine.bytes,
        "sha256": engine.sha256,
        "built": outcome.built,
        "seconds": round(outcome.seconds, 1),
        "reasons": list(outcome.reasons),
        "key": engine.key.to_json(),
    }
