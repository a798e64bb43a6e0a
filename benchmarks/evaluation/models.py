"""The models of a process, each opened once: the base model, the runtime, the scorers, a diffusers pipeline."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation.plan import Plan, pictures_of
from perfusion.base.base_model import BaseModel, load_base
from perfusion.embedded import scorer_path
from perfusion.judging.pocket_scorer import PocketScorer
from perfusion.judging.scorer import OnnxScorer
from perfusion.runtime import Runtime
from perfusion.training import TrainingConfig
from perfusion.training.initial_edit import suited_to
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement
from perfusion.training.samples import Samples, encode_pictures
from perfusion.training.training_pictures import load_picture
from recipes.pocket.subjects import Subject

__all__ = [
    "base_model",
    "config_of",
    "drawing_runtime",
    "pipeline_of",
    "pocket_scorer",
    "samples_of",
    "text_scorer",
    "threads",
]


def threads() -> int:
    """What this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


@functools.cache
def base_model() -> BaseModel:
    """The embedded model, frozen. Nobody changes it: whoever trains its weights takes a copy."""
    return load_base(None)


@functools.cache
def drawing_runtime() -> Runtime:
    """The embedded bundle."""
    return Runtime(threads=threads())


@functools.cache
def pocket_scorer() -> PocketScorer:
    """Embeddings of pictures, and what is seen in them."""
    return PocketScorer(threads=threads())


@functools.cache
def text_scorer() -> OnnxScorer:
    """The same scorer's embeddings of texts beside those of pictures."""
    return OnnxScorer(scorer_path(), threads=threads())


def pipeline_of(base: BaseModel, unet: Any = None, **parts: Any) -> Any:
    """diffusers' pipeline around the base model's parts, or around others in their place."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler: Any = DDIMScheduler.from_config(dict(base.scheduler))
    own = {"text_encoder": base.text_encoder, "tokenizer": base.tokenizer}
    pipeline: Any = StableDiffusionPipeline(
        unet=base.unet if unet is None else unet, vae=base.vae, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False, **(own | parts),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def own_copy(part: Any) -> Any:
    """A copy that may be trained or changed."""
    made: torch.nn.Module = copy.deepcopy(part)
    return made


def config_of(plan: Plan, subject: Subject, pictures: Path, **options: Any) -> TrainingConfig:
    """Perfusion's options for this plan: what is not said is the product's default."""
    defaults: dict[str, Any] = {
        "superclass": subject.noun, "token": subject.token, "masks": pictures / "masks", "steps": plan.steps,
        "batch_size": plan.batch_size, "crops": plan.crops, "save_every": plan.save_every,
    }  # fmt: skip
    return suited_to(base_model(), TrainingConfig(**(defaults | options)))


def samples_of(plan: Plan, work: Path, subject: Subject) -> Samples:
    """A subject's pictures as every method learns them: the same crops, mirrored ones and masks."""
    folder = pictures_of(work, subject)
    config = config_of(plan, subject, folder)
    pictures = [load_picture(path, config.masks) for path in find_pictures(folder)]
    return encode_pictures(base_model(), pictures, config, Placement.pick("cpu"))
