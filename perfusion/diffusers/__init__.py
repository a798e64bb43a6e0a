"""Concepts inside a diffusers pipeline: put in with one line, used as words of any prompt, taken out without a trace.

    import perfusion.diffusers
    handle = perfusion.diffusers.apply(pipeline, "cat.safetensors")
    picture = pipeline("a photo of <cat> on a beach").images[0]
    handle.set("<cat>", bias=0.6)
    handle.remove()

The pipeline's own code runs throughout. While it encodes a prompt its tokenizers and text encoders know the concepts'
words; the edit of these encodings is computed as in `perfusion.runtime`, in numpy, and kept. When the UNet is then
called, the rows of its batch are recognised by their encodings, and those of a prompt with a concept get the edit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from perfusion.base.attention import install, level_count, region_levels, uninstall
from perfusion.concept.bank import ConceptBank
from perfusion.concept.concept_file import Concept
from perfusion.concept.layout import Regions
from perfusion.concept.phases import noise_share
from perfusion.concept.prompt_syntax import DEFAULT_SYNTAX, check_syntax
from perfusion.concept.settings import DEFAULT_GATES, ConceptSettings, SettingChanges, check_gates, check_lock
from perfusion.diffusers.calls import Call
from perfusion.diffusers.parts import base_of, check_processors, check_same_parts, readers_of, unet_of
from perfusion.diffusers.prompts import PromptReader
from perfusion.diffusers.rows import PromptRows
from perfusion.errors import ConceptError, ModelError
from perfusion.hub import local_concept

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["AppliedConcepts", "apply"]

Concepts = str | Path | Concept | Iterable[str | Path | Concept]


def apply(
    pipeline: Any, concepts: Concepts = (), *, lock: str | None = None, gates: str = DEFAULT_GATES,
    regions: Regions = None, prompt_syntax: str = DEFAULT_SYNTAX,
) -> AppliedConcepts:  # fmt: skip
    """Put concepts into a pipeline of Stable Diffusion 1.x, 2.x or XL; it is then called exactly as before.

    `concepts`: files, or `Concept`s, one or several. `lock` ("local", "global"): where keys come from, by default
    what the concepts' files say. `gates` ("similarity", "coordinates"): with "coordinates" a word opens the gate of
    its own concept and not those of concepts that resemble it. `regions`: None, and each prompt is read once; "auto",
    and things that a prompt names side by side get their own parts of the picture, as in `perfusion.runtime`; or a list
    of `perfusion.concept.regions.Region`, which every prompt must then hold. `prompt_syntax` ("weights", "plain"):
    prompts have weights such as ``(cat:1.3)``, ``BREAK`` and ``<lora:name:strength>``, as in `perfusion.runtime`; with
    "plain" all of that is text. Prompts of a pipeline by others, which may have a syntax of its own, are left to it.

    Prompts may name several concepts, a batch may name others in every prompt, and so may negative prompts. Rows
    without a concept are the base model's. The returned handle is a context manager that removes the concepts.

    Raises:
        ModelError: no such pipeline, one that has concepts already, or one whose attention is changed in a way that
            leaves no place for them (IP-Adapter, fused projections, offloaded or compiled beforehand).
        ConceptError: a broken file, a concept of another base model, a token that is taken.
        RequestError: an unknown lock, kind of gates or syntax.
    """
    applied = AppliedConcepts(pipeline, lock=lock, gates=gates, regions=regions, prompt_syntax=prompt_syntax)
    for concept in [concepts] if isinstance(concepts, str | Path | Concept) else concepts:
        applied.load(concept)
    applied._install()
    return applied


class AppliedConcepts:
    """Concepts in a pipeline, from `apply`. Settings hold from the next time that a prompt is encoded."""

    def __init__(
        self, pipeline: Any, *, lock: str | None = None, gates: str = DEFAULT_GATES, regions: Regions = None,
        prompt_syntax: str = DEFAULT_SYNTAX,
    ) -> None:  # fmt: skip
        self._unet = unet_of(pipeline)
        self._readers = readers_of(pipeline)
        self._bank = ConceptBank(base_of(pipeline, self._unet, self._readers))
        self._rows = PromptRows()
        self._reading = PromptReader(self._readers, self._bank, self._rows)
        self._pipelines: list[tuple[Any, Any, Any]] = []  # with the method that was theirs, and ours
        self._hook: Any = None
        self._removed = False
        self._first = pipeline
        self.lock = lock
        self.gates = gates
        self.regions = regions
        self.prompt_syntax = prompt_syntax

    def __enter__(self) -> AppliedConcepts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The concepts by their token."""
        return self._bank.concepts

    @property
    def lock(self) -> str | None:
        """Where keys come from: "local", "global", or None for what the concepts' files say."""
        return self._lock

    @lock.setter
    def lock(self, lock: str | None) -> None:
        if lock is not None:
            check_lock(lock)
        self._lock = lock

    @property
    def gates(self) -> str:
        """What a gate reads: "similarity" or "coordinates"."""
        return self._gates

    @gates.setter
    def gates(self, gates: str) -> None:
        check_gates(gates)
        self._gates = gates

    @property
    def prompt_syntax(self) -> str:
        """How prompts are read: "weights" or "plain"."""
        return self._prompt_syntax

    @prompt_syntax.setter
    def prompt_syntax(self, syntax: str) -> None:
        check_syntax(syntax)
        self._prompt_syntax = syntax

    def load(
        self,
        concept: str | Path | Concept,
        *,
        token: str | None = None,
        **settings: Unpack[SettingChanges],
    ) -> Concept:
        """One concept more, also by its name on the hub; `token` gives it another word, `settings` are as in `set`.

        Raises:
            ConceptError: a broken file, a concept of another base model, a token that is taken.
            RequestError: a setting out of its range.
            ModelError: the concepts have been removed.
        """
        self._check_applied()
        loaded = concept if isinstance(concept, Concept) else Concept.load(local_concept(concept))
        if token is not None:
            loaded = replace(loaded, token=token)
        if any(reader.knows(loaded.token) for reader in self._readers):
            raise ConceptError(
                f"{loaded.token} is a word of the pipeline's tokenizer already. Give the concept another token."
            )
        self._bank.load(loaded, **settings)
        return loaded

    def unload(self, token: str) -> None:
        """Take one concept out. Raises RequestError when there is none of this token, ModelError after `remove`."""
        self._check_applied()
        self._bank.unload(token)

    def set(self, token: str, **settings: Unpack[SettingChanges]) -> ConceptSettings:
        """Change how a concept is used from the next encoding of a prompt on; returns the settings now in force.

        `bias` β: lower lets more of the concept through. `temperature` τ: the sharpness of that border. `strength`:
        from 0, at which the word is read as its superclass and the picture is the base model's, to 1. `start`: the
        share of the noise levels, from 0 to below 1, at which the superclass is still drawn.

        Raises:
            RequestError: no such concept, or a setting out of its range.
            ModelError: the concepts have been removed.
        """
        self._check_applied()
        return self._bank.change(token, **settings)

    def also(self, pipeline: Any) -> None:
        """Let a second pipeline around the same UNet and text encoders (image-to-image, inpainting) know the words.

        Raises:
            ModelError: it is made of other parts, or the concepts have been removed.
        """
        self._check_applied()
        check_same_parts(pipeline, self._unet, self._readers)
        if all(pipeline is not known for known, _, _ in self._pipelines):
            self._wrap(pipeline)

    def remove(self) -> None:
        """Leave the pipeline as it was before `apply`, bit for bit. Doing it twice is doing it once."""
        for pipeline, before, ours in self._pipelines:
            attributes = vars(pipeline)
            if attributes.get("encode_prompt") is ours:
                del attributes["encode_prompt"]
                if before is not None:
                    attributes["encode_prompt"] = before
        self._pipelines = []
        self._removed = True
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            uninstall(self._unet)
        self._rows.clear()

    def _check_applied(self) -> None:
        """A handle of nothing would take changes and let them have no effect."""
        if self._removed:
            raise ModelError("The concepts have been removed from the pipeline. Apply them again.")

    def _install(self) -> None:
        install(self._unet)
        self._hook = self._unet.register_forward_pre_hook(self._before_unet, with_kwargs=True)
        self._wrap(self._first)

    def _wrap(self, pipeline: Any) -> None:
        """Stand before the pipeline's encode_prompt, by an attribute of this one object."""
        original = pipeline.encode_prompt
        before = vars(pipeline).get("encode_prompt")

        @functools.wraps(original)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            call = Call(pipeline=pipeline, method=original, args=args, kwargs=kwargs)
            return self._reading.encode(call, self.lock, self.gates, self.regions, self.prompt_syntax)

        vars(pipeline)["encode_prompt"] = encode_prompt
        self._pipelines.append((pipeline, before, encode_prompt))

    def _before_unet(self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Give the rows of the batch whose prompts hold concepts their edit."""
        positional, options = args[:2], {**dict(zip(_UNET_ARGUMENTS, args[2:], strict=False)), **kwargs}
        states = options.get("encoder_hidden_states")
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        feeds = (
            self._rows.feeds(states, lambda: self._share(timestep), _size(args, kwargs))
            if isinstance(states, torch.Tensor)
            else None
        )
        if feeds is None:
            return None
        check_processors(unet, applied=True)
        options["encoder_hidden_states"] = feeds.inputs["encoder_hidden_states"]
        edit: dict[str, Any] = {
            name: tensor for name, tensor in feeds.inputs.items() if name != "encoder_hidden_states"
        }
        if feeds.regions is not None:
            edit["regions"] = region_levels(feeds.regions, level_count(unet))
        options["cross_attention_kwargs"] = {**(options.get("cross_attention_kwargs") or {}), **edit}
        if feeds.pooled:
            conditions = dict(options["added_cond_kwargs"])
            conditions["text_embeds"] = feeds.with_pooled(conditions["text_embeds"])
            options["added_cond_kwargs"] = conditions
        return positional, options

    def _share(self, timestep: Any) -> float:
        """How many of the noise levels lie behind a timestep, from pure noise on."""
        levels = int(self._first.scheduler.config.num_train_timesteps)
        return noise_share(float(torch.as_tensor(timestep).max()), levels)


def _size(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of the latents that the UNet is called with."""
    height, width = (args[0] if args else kwargs["sample"]).shape[-2:]
    return int(height), int(width)


_UNET_ARGUMENTS = (
    "encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask", "cross_attention_kwargs",
    "added_cond_kwargs",
)  # fmt: skip
"""What UNet2DConditionModel.forward takes by position behind the sample and the timestep."""
