"""bundle.json: all that a runtime must know about the graphs beside it, so that it never guesses."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from perfusion import __version__
from perfusion.base.base_model import BaseModel
from perfusion.base.loading import read_index
from perfusion.bundle.names import FORMAT, FORMAT_VERSION, KEY_PROJECTIONS, TOKENIZER
from perfusion.errors import ModelError
from perfusion.export.convert import OPSET
from perfusion.export.graph_modules import conditions_of, downscale, size_multiple
from perfusion.export.half import kept_places
from perfusion.files import sha256_of
from perfusion.hub import origin_of

__all__ = [
    "SAMPLER_OF_CLASS",
    "file_table",
    "make_manifest",
    "scheduler_settings",
]

_SCHEDULER_SETTINGS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "use_karras_sigmas": False,
    "rescale_betas_zero_snr": False,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
"""What a bundle says about the noise schedule; the value is for schedulers that do not know the setting."""

_KNOWN = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}
_REFUSED = ("trained_betas", "thresholding", "use_flow_sigmas")
"""Settings that no runtime here follows: a schedule without a name, one that latent models do not use, and flow."""

SAMPLER_OF_CLASS = {
    "DDIMScheduler": "ddim",
    "PNDMScheduler": "plms",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "HeunDiscreteScheduler": "heun",
    "LCMScheduler": "lcm",
}
"""What the runtime calls a scheduler of diffusers; models that name another are drawn with DDIM."""

_NO_OTHER_SIGMAS = {"use_exponential_sigmas": False, "use_beta_sigmas": False}
_FOLLOWED: Mapping[str, Mapping[str, Any]] = {
    "PNDMScheduler": {"skip_prk_steps": True, "rescale_betas_zero_snr": False},
    "EulerDiscreteScheduler": {
        **_NO_OTHER_SIGMAS,
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
    },
    "DPMSolverMultistepScheduler": {
        **_NO_OTHER_SIGMAS,
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
        "lambda_min_clipped": -math.inf,
        "use_lu_lambdas": False,
        "variance_type": None,
    },
    "HeunDiscreteScheduler": {**_NO_OTHER_SIGMAS, "clip_sample": False, "rescale_betas_zero_snr": False},
}
"""What the runtime draws with, of the settings that bundle.json does not carry or that the class does not read."""

_log = logging.getLogger(__name__)


def make_manifest(
    base: BaseModel,
    *,
    files: Mapping[str, Mapping[str, Any]],
    parity: Mapping[str, float],
    precision: str,
    resolution: int | None = None,
    opset: int = OPSET,
    keep_fp32: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of bundle.json (docs/graph.md). Raises `ModelError` for settings that no runtime knows."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "base": base.family,
        "base_fingerprint": base.fingerprint,
        "precision": precision,
        "kept_fp32": list(kept_places(base, keep_fp32)) if precision == "fp16" else [],
        "text_dim": base.text_dim,
        "tokenizer": TOKENIZER,
        "text_encoders": [_text_encoder(base, index) for index in range(len(base.text_encoders))],
        "force_zeros_for_empty_prompt": _forces_zeros(base),
        "unet": _unet(base),
        "vae": _vae(base),
        "key_projections": KEY_PROJECTIONS,
        "scheduler": scheduler_settings(base),
        "defaults": _defaults(base, resolution),
        "files": {name: dict(files[name]) for name in sorted(files)},
        "parity": dict(parity),
        "versions": _versions(opset),
        **({"made_from": made_from} if (made_from := _made_from(base)) else {}),
    }


def _made_from(base: BaseModel) -> dict[str, Any]:
    """Where the model came from, as far as its name tells, and what went into it beside its own files."""
    content: dict[str, Any] = {}
    if origin := origin_of(base.folder):
        content["model"] = origin
    if base.folder.is_file():
        content["file"] = base.folder.name
    if base.skipped_layers:
        content["clip_skip"] = base.skipped_layers + 1
    if base.loras:
        content["loras"] = [
            {"file": lora.path.name, "scale": lora.scale, "sha256": sha256_of(lora.path)}
            for lora in base.loras
        ]
    return content


def file_table(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The size and sha256 of each of ``names``, paths relative to ``folder``."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names
    }


def scheduler_settings(base: BaseModel) -> dict[str, Any]:
    """The noise schedule in the words of diffusers, complete."""
    config = base.scheduler
    if "beta_schedule" not in config:  # our defaults would be a schedule that the model never saw
        raise ModelError(
            f"{base.folder}: its scheduler has no betas, as those of flow matching have none, expected one of a model "
            "that predicts noise or v, such as DDIMScheduler. Use another base model"
        )
    for name in _REFUSED:
        if config.get(name):
            raise ModelError(f"{base.folder}: its scheduler sets {name}, which the runtime does not follow")
    settings = {name: config.get(name, meaning) for name, meaning in _SCHEDULER_SETTINGS.items()}
    for name, known in _KNOWN.items():
        if settings[name] not in known:
            raise ModelError(
                f"{base.folder}: its scheduler's {name} is {settings[name]!r}, expected {' or '.join(known)}"
            )
    return {"sampler": _sampler(base), **settings}


def _sampler(base: BaseModel) -> str:
    """The runtime's name for the model's scheduler, with a warning where the runtime draws otherwise."""
    name = base.scheduler_class
    sampler = SAMPLER_OF_CLASS.get(name, "ddim")
    otherwise = [
        f"{setting} {base.scheduler[setting]!r}"
        for setting, followed in _FOLLOWED.get(name, {}).items()
        if base.scheduler.get(setting, followed) != followed
    ]
    if name not in SAMPLER_OF_CLASS or otherwise:
        _log.warning(
            "%s: its scheduler is %s, which the runtime does not have. The bundle draws with %s, so its pictures "
            "differ from those of diffusers' pipeline.",
            base.folder,
            " with ".join([name, *([" and ".join(otherwise)] if otherwise else [])]),
            sampler,
        )
    return sampler


def _forces_zeros(base: BaseModel) -> bool:
    """Whether the pipeline reads an empty negative prompt as zeros: SDXL's do unless model_index.json says not."""
    if len(base.text_encoders) == 1 or base.source is None:
        return False
    return bool(read_index(base.source).get("force_zeros_for_empty_prompt", True))


def _text_encoder(base: BaseModel, index: int) -> dict[str, Any]:
    tokenizer, words = base.tokenizers[index], base.vocab_sizes[index]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        if not isinstance(value, int) or not 0 <= value < words:
            raise ModelError(
                f"{base.folder}: the tokenizer's {name} is {value}, expected an id below {words}, "
                "the size of the text encoder's vocabulary"
            )
    alone = len(base.text_encoders) == 1
    return {
        "file": "text_encoder_2.onnx" if index else "text_encoder.onnx",
        "hidden_size": base.hidden_sizes[index],
        "vocab_size": words,
        "context_length": base.context_length,
        **ids,
        "output": "last_hidden_state" if alone else "penultimate_hidden_state",
        **({"pooled_output": "text_embeds"} if index else {}),
    }


def _unet(base: BaseModel) -> dict[str, Any]:
    return {
        "file": "unet.onnx",
        "in_channels": int(base.unet.config.in_channels),
        "sample_size": int(base.unet.config.sample_size),
        "size_multiple": size_multiple(base.unet),
        "conditions": conditions_of(base),
        "layers": [
            {"name": layer.name, "key_dim": layer.key_dim, "value_dim": layer.value_dim}
            for layer in base.layers
        ],
    }


def _vae(base: BaseModel) -> dict[str, Any]:
    config = base.vae.config
    if config.get("shift_factor") or config.get("latents_mean"):
        raise ModelError(f"{base.folder}: its VAE shifts the latents, expected a scaling factor only")
    return {
        "decoder": "vae_decoder.onnx",
        "encoder": "vae_encoder.onnx",
        "latent_channels": int(config.latent_channels),
        "downscale": downscale(base.vae),
        "scaling_factor": float(config.scaling_factor),
    }


def _defaults(base: BaseModel, resolution: int | None) -> dict[str, Any]:
    own = int(base.unet.config.sample_size) * downscale(base.vae)
    side = own if resolution is None else resolution
    step = size_multiple(base.unet) * downscale(base.vae)
    if side % step or side <= 0:
        raise ModelError(
            f"resolution {side} does not fit this model: the sides of its pictures are multiples of {step} "
            f"pixels; the nearest is {max(step, round(side / step) * step)}"
        )
    return {
        "width": side,
        "height": side,
        "guidance_scale": base.guidance_scale,
        "num_inference_steps": base.num_inference_steps,
    }


def _versions(opset: int) -> dict[str, str | int]:
    packages = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
    # asked of the modules: onnxruntime comes from distributions of several names
    versions = {name: str(import_module(name).__version__) for name in packages}
    return {"perfusion-edge": __version__, "opset": opset, **versions}
