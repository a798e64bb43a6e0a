"""Train one concept: pictures in, a `Concept` out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perfusion import __version__
from perfusion.base.attention import installed
from perfusion.base.base_model import BaseModel
from perfusion.base.model_options import ModelOptions
from perfusion.concept.concept_file import Concept
from perfusion.errors import TrainingError
from perfusion.hub import origin_of
from perfusion.judging.scorer import Scorer
from perfusion.judging.selection import Selection
from perfusion.training.config import TrainingConfig
from perfusion.training.covariance import caption_file
from perfusion.training.draw import draw
from perfusion.training.initial_edit import initial_edit, suited_to
from perfusion.training.loss_log import LossLog
from perfusion.training.object_boxes import locate_objects
from perfusion.training.objective import Noising
from perfusion.training.parallel import check_step, share, world
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement, frozen_on_device, open_base, weight_sizes
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.samples import Samples, encode_pictures, find_objects
from perfusion.training.segment import check_segmenter
from perfusion.training.snapshot_choice import choose, find_scorer
from perfusion.training.state import Checkpoint, identity_of
from perfusion.training.templates import check_superclass, check_token
from perfusion.training.training_loop import Run, optimise
from perfusion.training.training_pictures import load_picture
from perfusion.training.trial import Trial, try_out
from perfusion.training.work_folder import WorkFolder

__all__ = ["TrainingResult", "train", "train_concept"]

logger = logging.getLogger(__name__)

Report = Callable[[int, float], None]
"""Called after every step with the number of steps done and the running mean of the loss, see `Run.loss`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingResult:
    """A trained concept and what is known of its making."""

    concept: Concept
    loss: float
    """The running mean at the end; the last value counts 5 %."""
    selection: Selection | None = None
    """The scores of the snapshots, where a choice was made."""
    picture: Image.Image | None = None
    """A drawing of the concept, where one was asked for."""
    trial: Trial | None = None
    """A verdict and a sheet, where they were asked for."""


def train_concept(
    images: str | Path,
    config: TrainingConfig,
    *,
    model: str | Path | BaseModel | None = None,
    model_config: str | Path | None = None,
    report: Report | None = None,
    say: Callable[[str], None] = logger.info,
) -> Concept:
    """Teach the base model what the pictures show; `train` without what goes with the concept.

    Returns:
        The concept, in memory. The base model is as it was, and so is torch's own random generator.
    """
    return train(images, config, model=model, model_config=model_config, report=report, say=say).concept


def train(
    images: str | Path,
    config: TrainingConfig,
    *,
    model: str | Path | BaseModel | None = None,
    model_config: str | Path | None = None,
    model_options: ModelOptions | None = None,
    report: Report | None = None,
    say: Callable[[str], None] = logger.info,
    work: WorkFolder | None = None,
    resume: bool = False,
    picture: bool = False,
    trial: bool = False,
    losses: LossLog | None = None,
) -> TrainingResult:
    """Teach the base model what the pictures show.

    Args:
        images: folder with a few pictures of one object.
        config: how to train; its superclass says what kind of thing the object is.
        model: diffusers folder, single-file checkpoint or an opened base model; None: the embedded pocket model.
        model_config: for a single file, the folder with its settings, see `load_base`.
        model_options: what the caller knows of the model better than its files.
        report: called after every step.
        say: called with a line about what is done before and after the steps.
        work: where an unfinished training is kept, every `config.save_every` steps; None: nowhere. What another
            training left there is dropped. It is the caller's to `finish` when the concept is written.
        resume: go on from what is kept in `work` instead, bit for bit as if nothing had come between (on a CPU, with
            the same number of threads); begins at the beginning when there is nothing.
        picture: draw one with the concept, for its card.
        losses: told the loss of every step.
        trial: try the concept out: draw with it and without it, judge, and make a sheet. Where the thing is seen too
            seldom at full strength, the concept gets a strength of its own, see `Trial`.

    Returns:
        The concept and what goes with it, in memory. The base model is as it was, and so is torch's own random
        generator. In a training of several processes only the first one chooses among snapshots and keeps them.

    Raises:
        TrainingError: the pictures, the superclass or the options cannot be used, the memory does not suffice, or what
            is kept belongs to another training.
        ModelError: the base model, the segmenter or the scorer cannot be used.
        DeviceError: the device asked for is not there.
        PerfusionError: what is to be kept cannot be written.
    """
    if not world().main:
        report, say, picture, trial, losses = None, logger.debug, False, False, None
    with work.locked() if work is not None and world().main else nullcontext():
        paths = find_pictures(Path(images))
        masks = "auto" if config.masks == "clipseg" else config.masks
        pictures = [load_picture(path, masks) for path in paths]
        placement = Placement.pick(config.device, config.precision)
        base = (
            model
            if isinstance(model, BaseModel)
            else open_base(model, model_config, config, placement, model_options)
        )
        config = suited_to(base, config)
        subject = _check(base, config)
        device = placement.device
        scorer = find_scorer(base, config, device, say) if world().main else None
        keeper = _Keeper(base, config, paths, work)
        if resume:
            keeper.open(say)
        try:
            with frozen_on_device(base, device, checkpointing=config.checkpointing):
                if config.checkpointing or device.type == "cuda":
                    say(_sizes(base, checkpointing=config.checkpointing))
                edit, keeper.super_encoding = initial_edit(base, subject, config, say)
                pictures = locate_objects(base, pictures, subject, config, placement, say)
                say(f"encoding {len(pictures)} pictures in {config.crops} variants each")
                samples = encode_pictures(base, pictures, config, placement)
                run = Run.begin(edit.to(device).train(), config, placement)
                keeper.begin(run, say)
                check_step(run.step, device)
                samples = find_objects(base, pictures, samples, subject, config, placement, say)
                with installed(base.unet):
                    optimise(
                        base, run, samples.latents, samples.masks, config, _after(keeper, run, report, losses)
                    )
                result = _finished(base, keeper, run, samples, scorer, config, say)
                if trial:
                    say("drawing with the concept and without it, to see what was learned")
                    names = [path.name for path in paths]
                    judged = try_out(base, result.concept, samples, names, config, placement, say)
                    result = replace(
                        result, trial=judged, concept=replace(result.concept, strength=judged.strength)
                    )
                if picture:
                    result = replace(result, picture=_portrait(base, result.concept, config, placement))
                return result
        except torch.OutOfMemoryError as error:
            raise TrainingError(_memory_advice(config)) from error


def _check(base: BaseModel, config: TrainingConfig) -> tuple[list[int], ...]:
    """Refuse now what would fail after minutes; the superclass's token ids for each text encoder."""
    check_token(base, config.token)
    subject = check_superclass(base, config.superclass)
    Noising.of(base)
    share(range(config.batch_size))
    if config.segmenter is not None:
        check_segmenter(config.segmenter)
    if config.rows > 2:
        logger.warning("%d rows wrecked the backgrounds of small models; one is usually best", config.rows)
    return subject


def _after(
    keeper: _Keeper, run: Run, report: Report | None, losses: LossLog | None
) -> Callable[[float], None]:
    """What follows every step."""

    def after(loss: float) -> None:
        if losses:
            losses.add(run.step, loss, run.loss)
        keeper.keep(run)
        if report:
            report(run.step, run.loss)

    return after


def _finished(
    base: BaseModel, keeper: _Keeper, run: Run, samples: Samples, scorer: Scorer | None, config: TrainingConfig,
    say: Callable[[str], None],
) -> TrainingResult:  # fmt: skip
    """The concept of the last step, or of the best one."""
    run.edit.eval()
    concept, selection = keeper.concept(run, config.steps), None
    if scorer is not None and len(keeper.snapshots) > 1:
        say(f"drawing with {len(keeper.snapshots)} snapshots, to choose one")
        selection = choose(base, keeper.snapshots, samples, scorer, config, run.placement)
        say(selection.why)
        best = selection.best.step
        facts = {**concept.training, "chosen_step": str(best)}
        concept = replace(keeper.snapshots[best], training=facts)
    return TrainingResult(concept=concept, loss=run.loss, selection=selection)


def _portrait(base: BaseModel, concept: Concept, config: TrainingConfig, placement: Placement) -> Image.Image:
    """One picture of the concept, for its card."""
    prompt, steps = f"a photo of a {concept.token}", base.num_inference_steps
    return draw(base, concept, [prompt], [config.seed], num_inference_steps=steps, placement=placement)[0]


class _Keeper:
    """The snapshots of a training, and its state in the work folder if it has one."""

    def __init__(
        self, base: BaseModel, config: TrainingConfig, paths: list[Path], work: WorkFolder | None
    ) -> None:
        self.base, self.config, self.pictures, self.work = base, config, len(paths), work
        self.super_encoding: Tensor = torch.empty(0)
        self.snapshots: dict[int, Concept] = {}
        self.identity: dict[str, str] = {}
        self._saved: Checkpoint | None = None
        if work is not None:
            work.check()
            # the scorer has no part in what is learned, and a large one would take long to read
            # and a training may go on on another GPU of the machine
            counted = replace(
                config,
                scorer=None,
                captions=caption_file(base, config.captions),
                device=config.device.partition(":")[0],
            )
            schedule = json.dumps(dict(base.scheduler), sort_keys=True, default=str)
            self.identity = identity_of(counted, paths, base.fingerprint, noise_schedule=schedule)

    def open(self, say: Callable[[str], None]) -> None:
        """Read and check the state to go on from; before anything expensive is done for another training's."""
        if self.work is None:
            return
        saved = self.work.load_state(self.identity, free=("steps", "select", "scorer"))
        if saved is None:
            say(f"nothing to resume in {self.work.path}; beginning at the beginning")
            return
        step = int(saved.facts["step"])
        if step > self.config.steps:
            raise TrainingError(
                f"{self.work.state_path}: the training that is kept has done {step} steps, and --steps asks for "
                f"{self.config.steps}; give as many or more, or start over without --resume."
            )
        self._saved = saved

    def begin(self, run: Run, say: Callable[[str], None]) -> None:
        """Bring the run to where the saved one stood, or make room for it."""
        saved, self._saved = self._saved, None  # as large as the edit, and of no further use
        if self.work is None:
            return
        if saved is None:
            if world().main:
                self.work.start_over(say)
            return
        run.restore(saved)
        self.snapshots = self.work.concepts(up_to=run.step)
        say(f"going on after step {run.step} of {self.config.steps}")

    def keep(self, run: Run) -> None:
        """Every so many steps and after the last: the concept as it is, then the state to go on from."""
        if run.step % self.config.save_every and run.step < self.config.steps:
            return
        self.snapshots[run.step] = concept = self.concept(run, run.step)
        if self.work is not None and world().main:
            self.work.save_concept(concept, run.step)
            self.work.save_state(self.identity, run.facts(), **run.parts())

    def concept(self, run: Run, steps: int) -> Concept:
        """The edit as it is now, trained for `steps` steps."""
        facts = {
            "steps": str(steps), "seed": str(self.config.seed), "pictures": str(self.pictures),
            "batch_size": str(self.config.batch_size),
        }  # fmt: skip
        origin = origin_of(self.base.folder)
        facts |= {} if origin is None else {"base_model": origin}
        facts |= {"base_file": self.base.folder.name} if self.base.folder.is_file() else {}
        return as_concept(self.base, run.edit, self.super_encoding, self.config, facts)


@torch.no_grad()
def as_concept(
    base: BaseModel, edit: RankOneEdit, super_encoding: Tensor, config: TrainingConfig, facts: dict[str, str]
) -> Concept:
    """The edit as a concept."""
    dual, energy = edit.dual(edit.direction)

    def array(tensor: Tensor) -> np.ndarray:
        return tensor.detach().cpu().float().numpy()

    return Concept(
        token=config.token,
        superclass=config.superclass,
        base=base.family,
        base_fingerprint=base.fingerprint,
        direction=array(edit.direction),
        dual=array(dual),
        energy=array(energy),
        superclass_encoding=array(super_encoding),
        embeddings=tuple(array(table) for table in edit.embeddings),
        target_values=array(edit.target_values),
        target_keys=array(edit.target_keys),
        created_with=f"perfusion-edge {__version__}",
        training=facts,
    )


def _sizes(base: BaseModel, *, checkpointing: bool) -> str:
    """What the weights take, which is what is known of the memory beforehand."""
    sizes = weight_sizes(base, checkpointing=checkpointing)
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in sizes.items())
    return f"weights during the steps: {sum(sizes.values()) / 1e9:.2f} GB ({parts}); activations come on top"


def _memory_advice(config: TrainingConfig) -> str:
    """What to do when the device's memory is full."""
    shortage = f"The device has not enough memory for {config.batch_size} samples a step"
    if config.accumulate > 1:
        shortage += f" in {config.accumulate} parts"
    remedies = [] if config.checkpointing else ["--checkpointing"]
    if config.accumulate < config.batch_size:
        remedies.append(f"--accumulate {min(config.batch_size, 2 * config.accumulate)}")
    remedies.append("a smaller --batch-size" if config.batch_size > 1 else "a smaller base model")
    return f"{shortage}. Give {' or '.join(remedies)}."
