"""Who draws: the product's runtime for concept files, diffusers' pipeline for everything else, from the same noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.evaluation.ablations import edited
from benchmarks.evaluation.baselines import IDENTIFIER
from benchmarks.evaluation.merging import merged_projections
from benchmarks.evaluation.methods import Method, Setting
from benchmarks.evaluation.models import base_model, drawing_runtime, own_copy, pipeline_of
from benchmarks.evaluation.plan import Plan
from perfusion.base.attention import install
from perfusion.concept.concept_file import Concept
from perfusion.concept.phases import noise_share
from perfusion.errors import RequestError
from perfusion.runtime.sampling.noise import initial_noise
from perfusion.training.templates import as_tensors, input_ids
from recipes.pocket.subjects import Subject

__all__ = [
    "Artist",
    "Job",
    "PipelineArtist",
    "RuntimeArtist",
    "Trained",
    "artist_for",
    "in_groups",
    "loaded_pipeline",
]

BATCH = 8
Trained = Mapping[Subject, Path]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture: a prompt in the method's own words."""

    text: str
    seed: int
    setting: Setting


class Artist(Protocol):
    """Draws with the weights of one method."""

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        """One picture a job."""
        ...

    def close(self) -> None:
        """Leave everything that is shared as it was."""
        ...


def artist_for(method: Method | None, weights: Trained, settings: Sequence[Setting], plan: Plan) -> Artist:
    """The artist of a method with weights of one or two subjects; without a method the base model's pipeline."""
    steps = plan.num_inference_steps
    if method is None:
        return PipelineArtist(pipeline_of(base_model()), steps)
    if method.artist == "runtime":
        return RuntimeArtist(method, weights, settings, steps)
    if method.fixed_gate:
        ((subject, folder),) = weights.items()
        return GateArtist(method.name, subject, folder, steps)
    pipeline = loaded_pipeline(method, weights)
    if not method.starts:
        return PipelineArtist(pipeline, steps)
    plain = {f"{IDENTIFIER} ": ""} if method.scales else {one.token: one.noun for one in weights}
    return TurningArtist(pipeline, steps, plain)


class RuntimeArtist:
    """Every setting is a word of its own, so that several of them are drawn in one call."""

    def __init__(
        self, method: Method | None, weights: Trained, settings: Sequence[Setting], steps: int
    ) -> None:
        self.runtime, self.steps, self.tokens = drawing_runtime(), steps, list[str]()
        for subject, folder in weights.items():
            assert method is not None
            for setting in settings:
                token = method.word(subject, setting)
                path = folder / "concept.safetensors"
                self.runtime.load_concept(
                    path, token=token, bias=setting.bias, strength=setting.scale, start=setting.start
                )
                self.tokens.append(token)

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return in_groups(jobs, lambda job: job.setting.lock, self._drawn)

    def _drawn(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return self.runtime.generate(
            [job.text for job in jobs], seed=[job.seed for job in jobs], num_inference_steps=self.steps,
            lock=jobs[0].setting.lock or None, regions=None,  # as every method is drawn here
        )  # fmt: skip

    def close(self) -> None:
        for token in self.tokens:
            self.runtime.unload_concept(token)


class PipelineArtist:
    """diffusers' StableDiffusionPipeline, with what a method has changed about its parts."""

    def __init__(self, pipeline: Any, steps: int) -> None:
        self.pipeline, self.steps = pipeline, steps

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for start in range(0, len(jobs), BATCH):
            part = jobs[start : start + BATCH]
            pictures += self.pipeline(
                latents=noise_of([job.seed for job in part]), num_inference_steps=self.steps,
                guidance_scale=base_model().guidance_scale, **self.conditions([job.text for job in part]),
            ).images  # fmt: skip
        return pictures

    def conditions(self, texts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline is told of the prompts."""
        return {"prompt": list(texts)}

    def close(self) -> None:
        pass


class TurningArtist(PipelineArtist):
    """Adapters whose scale is turned, all of them alike, and they or a learned word coming in late, as diffusers'
    callback allows.

    Args:
        plain: what stands in the base model's own words for what was learned.
    """

    def __init__(self, pipeline: Any, steps: int, plain: Mapping[str, str]) -> None:
        super().__init__(pipeline, steps)
        self.plain, self.setting = plain, Setting()
        self.names = list(getattr(pipeline.unet, "peft_config", ()))

    def draw(self, jobs: Sequence[Job]) -> list[Image.Image]:
        return in_groups(jobs, lambda job: job.setting, self._drawn)

    def _drawn(self, jobs: Sequence[Job]) -> list[Image.Image]:
        self.setting = jobs[0].setting
        return super().draw(jobs)

    def conditions(self, texts: Sequence[str]) -> dict[str, Any]:
        """Until its start the adapters are off and the prompt is in the base model's words."""
        start, whole = self.setting.start, self._encoded(texts)
        self._scaled(0.0 if start else self.setting.scale)
        if not start:
            return {"prompt_embeds": whole[0], "negative_prompt_embeds": whole[1]}
        plain = self._encoded([self._in_plain_words(text) for text in texts])

        def after(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            levels, times = pipeline.scheduler.config.num_train_timesteps, pipeline.scheduler.timesteps
            if index + 1 == len(times) or noise_share(float(times[index + 1]), levels) < start:
                return {}
            self._scaled(self.setting.scale)
            return {"prompt_embeds": torch.cat([whole[1], whole[0]])}

        return {
            "prompt_embeds": plain[0], "negative_prompt_embeds": plain[1], "callback_on_step_end": after,
            "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
        }  # fmt: skip

    def _in_plain_words(self, text: str) -> str:
        for learned, plain in self.plain.items():
            text = text.replace(learned, plain)
        return text

    def _encoded(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Of the prompts and of as many empty ones."""
        states, negative = self.pipeline.encode_prompt(list(texts), torch.device("cpu"), 1, True)
        return states, negative

    def _scaled(self, scale: float) -> None:
        if self.names:
            self.pipeline.set_adapters(self.names, [scale] * len(self.names))


class GateArtist(PipelineArtist):
    """A concept whose gate is another than the logistic one, which no runtime has."""

    def __init__(self, kind: str, subject: Subject, folder: Path, steps: int) -> None:
        unet = own_copy(base_model().unet)
        install(unet)
        super().__init__(pipeline_of(base_model(), unet), steps)
        self.kind, self.token = kind, subject.token
        self.concept = Concept.load(folder / "concept.safetensors")

    @torch.no_grad()
    def conditions(self, texts: Sequence[str]) -> dict[str, Any]:
        """Encodings with the edit where a prompt holds the word, and gates that are closed in the unguided rows."""
        parts = [self._row(text) for text in texts]
        states, gates = (torch.stack(column) for column in zip(*parts, strict=True))
        empty = self._row("")[0].expand_as(states)
        gate = torch.cat([torch.zeros_like(gates), gates])
        keys, values = self.concept.target_keys, self.concept.target_values
        return {
            "prompt_embeds": states, "negative_prompt_embeds": empty,
            "cross_attention_kwargs": {
                "key_gate": gate, "value_gate": gate, "concept_keys": torch.from_numpy(np.array(keys)),
                "concept_values": torch.from_numpy(np.array(values)),
            },
        }  # fmt: skip

    def _row(self, text: str) -> tuple[Tensor, Tensor]:
        """(tokens, text_dim) and (tokens, 1) of one prompt."""
        base, has_token = base_model(), self.token in text
        words = [base.vocab_size] if has_token else []
        prompt = input_ids(base, text.replace(self.token, "{}", 1) if has_token else text + "{}", [words])
        table = [torch.from_numpy(np.array(self.concept.embeddings[0]))]
        hidden = base.encode(as_tensors([prompt], torch.device("cpu")), table).hidden.float()
        if not has_token:
            return hidden[0], hidden.new_zeros(hidden.shape[1], 1)
        dual, direction = (
            torch.from_numpy(np.array(one)) for one in (self.concept.dual, self.concept.direction)
        )
        states, gate = edited(self.kind, hidden, dual, direction, torch.tensor([prompt.last]))
        return states[0], gate[0]


def in_groups(
    jobs: Sequence[Job], key: Callable[[Job], Any], draw: Callable[[Sequence[Job]], list[Image.Image]]
) -> list[Image.Image]:
    """What is drawn of jobs of one key at a time, in the jobs' own order."""
    pictures = dict[int, Image.Image]()
    for value in dict.fromkeys(map(key, jobs)):
        rows = [row for row, job in enumerate(jobs) if key(job) == value]
        pictures |= dict(zip(rows, draw([jobs[row] for row in rows]), strict=True))
    return [pictures[row] for row in range(len(jobs))]


def noise_of(seeds: Sequence[int]) -> Tensor:
    """The noise that pictures of these seeds start from, as the runtime draws it. (pictures, channels, h, w)."""
    unet = base_model().unet.config
    shape = (1, int(unet.in_channels), int(unet.sample_size), int(unet.sample_size))
    return torch.from_numpy(np.concatenate([initial_noise(seed, shape) for seed in seeds]))


def loaded_pipeline(method: Method, weights: Trained) -> Any:
    """A pipeline with a baseline's weights, by diffusers' own loaders where there are some.

    Raises:
        RequestError: two subjects of a method that cannot put them into one picture.
    """
    with _quietly():
        return _loaded(method, weights)


def _loaded(method: Method, weights: Trained) -> Any:
    base = base_model()
    if len(weights) > 1 and not method.combines:
        raise RequestError(f"{method.name} cannot put two separately trained subjects into one picture")
    if method.name == "textual-inversion":
        pipeline = _pipeline_with_words(base.unet)
        for subject, folder in weights.items():
            pipeline.load_textual_inversion(
                load_file(folder / "learned_embeds.safetensors"), token=subject.token
            )
        return pipeline
    unet = own_copy(base.unet)
    if method.name.startswith("lora"):
        pipeline, names = pipeline_of(base, unet), list[str]()
        for subject, folder in weights.items():
            names.append(subject.name.replace("-", "_"))
            pipeline.load_lora_weights(folder, adapter_name=names[-1])
        pipeline.set_adapters(names)
        return pipeline
    if method.name == "custom-diffusion":
        states = {s: load_file(f / "custom_diffusion.safetensors") for s, f in weights.items()}
        words = {subject: state.pop("modifier_token").float() for subject, state in states.items()}
        unet.load_state_dict(merged_projections(base, states, words), strict=False)
        pipeline = _pipeline_with_words(unet)
        for subject, word in words.items():
            pipeline.load_textual_inversion({subject.token: word}, token=subject.token)
        return pipeline
    ((_, folder),) = weights.items()
    state = load_file(folder / "diffusion_pytorch_model.fp16.safetensors")
    unet.load_state_dict({name: value.float() for name, value in state.items()})
    return pipeline_of(base, unet)


@contextmanager
def _quietly() -> Iterator[None]:
    """diffusers and transformers tell at every load that a text encoder has no adapter, and how new words begin; peft
    warns of a second adapter, which is what a pair is made of."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels_before = [(part, part.get_verbosity()) for part in (of_diffusers, of_transformers)]
    try:
        for part, _ in levels_before:
            part.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
            yield
    finally:
        for part, level in levels_before:
            part.set_verbosity(level)


def _pipeline_with_words(unet: Any) -> Any:
    """A pipeline whose tokenizer and text encoder may be given new words."""
    base = base_model()
    return pipeline_of(
        base, unet, text_encoder=own_copy(base.text_encoder), tokenizer=own_copy(base.tokenizer)
    )
