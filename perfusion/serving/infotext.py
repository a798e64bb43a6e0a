"""The `parameters` text that A1111's web UI and its kin write into pictures, read back."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from perfusion.runtime import SCHEDULERS
from perfusion.runtime.picture_settings import SAMPLERS

__all__ = ["WEBUI_SAMPLERS", "fields_like", "parameters_of", "settings_like", "webui_scheduler"]

WEBUI_SAMPLERS = {
    SAMPLERS[name.removesuffix("_karras")] + " Karras" * name.endswith("_karras"): name for name in SCHEDULERS
}
"""Our schedulers by A1111's names."""

# It begins with a letter, never with blanks: a line of nothing but blanks would take a time that grows with its square.
_FIELD = re.compile(r'(\w[\w \-/]{0,60}):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_FIELDS = {
    "prompt": "Prompt", "negative_prompt": "Negative prompt", "steps": "Steps", "cfg_scale": "CFG scale",
    "seed": "Seed", "sampler_name": "Sampler", "scheduler": "Schedule type", "denoising_strength": "Denoising strength",
}  # fmt: skip
"""A1111's names of a field in its API and in its text."""
_NEGATIVE = "Negative prompt:"
_MOST_TEXT = 1 << 16  # characters
_LEAST_FIELDS = 3  # in the last line, as the web UI itself asks


def parameters_of(text: str) -> dict[str, str]:
    """The fields of such a text: `Prompt`, `Negative prompt`, `Steps`, `Sampler` and whatever else it has."""
    lines = text[:_MOST_TEXT].strip().split("\n")
    fields = [(match[1], _unquoted(match[2])) for match in _FIELD.finditer(lines[-1])]
    if len(fields) < _LEAST_FIELDS:
        fields = []
    else:
        lines = lines[:-1]
    starts = [number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)]
    split = starts[0] if starts else len(lines)
    negative = "\n".join(lines[split:]).removeprefix(_NEGATIVE).strip()
    return {"Prompt": "\n".join(lines[:split]).strip(), "Negative prompt": negative} | dict(fields)


def settings_like(text: str) -> dict[str, Any]:
    """What of such a text this program can draw with, by its own names."""
    fields = parameters_of(text)
    settings: dict[str, Any] = {"prompt": fields["Prompt"], "negative_prompt": fields["Negative prompt"]}
    for name, own, kind in (("Steps", "num_inference_steps", int), ("Seed", "seed", int),
                            ("CFG scale", "guidance_scale", float)):  # fmt: skip
        try:
            settings[own] = kind(fields[name])
        except (KeyError, ValueError):
            pass
    if match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", fields.get("Size", "")):
        settings |= {"width": int(match[1]), "height": int(match[2])}
    scheduler = webui_scheduler(
        {"sampler_name": fields.get("Sampler"), "scheduler": fields.get("Schedule type")}
    )
    return settings | ({"scheduler": scheduler} if scheduler in SCHEDULERS else {})


def fields_like(text: str) -> dict[str, Any]:
    """What of such a text A1111's txt2img reads, by the names of its fields."""
    fields = parameters_of(text)
    width, _, height = fields.get("Size", "").partition("x")
    values = {name: fields.get(label) for name, label in _FIELDS.items()} | {"width": width, "height": height}
    return {name: value for name, value in values.items() if value}


def webui_scheduler(fields: Mapping[str, Any]) -> str | None:
    """Our scheduler of A1111's sampler and scheduler; None where neither is chosen, the sampler itself where it is none
    of ours."""
    sampler = str(fields.get("sampler_name") or fields.get("sampler_index") or "")
    if sampler in ("", "Automatic", "automatic", "None"):
        return None
    name = WEBUI_SAMPLERS.get(sampler, sampler)
    is_karras = str(fields.get("scheduler") or "").lower() == "karras"
    return f"{name}_karras" if is_karras and f"{name}_karras" in SCHEDULERS else name


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
