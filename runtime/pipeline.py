"""Runtime: a bundle, the concepts loaded into it, and pictures drawn with both."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.concept.bank import Changes
from perfusion.concept.concept_file import Concept
from perfusion.concept.settings import DEFAULT_GATES, ConceptSettings, SettingChanges
from perfusion.errors import ConceptError, RequestError
from perfusion.runtime.compute.backend import Backend
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.explanation import Explanation, explain
from perfusion.runtime.request import Options, Request, make_request
from perfusion.runtime.sampling.course import Phase
from perfusion.runtime.sampling.loop import call_slices, decode, draw
from perfusion.runtime.sampling.schedule import Schedule
from perfusion.runtime.sampling.schedulers import make_schedule
from perfusion.runtime.step import Step
from perfusion.runtime.stopping import Stop, Stops
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.layout import AUTO, Regions
from perfusion.runtime.text.prompt_encoder import PromptEncoder, PromptSpec

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

__all__ = ["Runtime"]

Array = NDArray[np.float32]
Texts = str | list[str] | tuple[str, ...]
Seeds = int | list[int] | tuple[int, ...]
Callback = Callable[[Step], object]
"""Called with every step; what returns False stops the drawing."""

_MAX_PICTURES = 4096  # in one call of the UNet
_MAX_THREADS = 1024  # onnxruntime starts as many as it is told to, and never returns from millions


class Runtime:
    """Draws pictures with one bundle and any number of concepts.

        runtime = Runtime()
        runtime.load_concept("cat.safetensors")
        picture = runtime.generate("a photo of <cat> on a beach", seed=0)

    A picture depends on its prompts, seed, size, steps, guidance, scheduler and on the settings of the
    concepts its prompt names, and on nothing else: not on other loaded concepts, nor on what else is in its
    batch.

    Several threads may use one runtime. Calls of `generate` then come one after another, each with the concepts as
    they were when its turn came; the steps of several `denoise` generators may alternate. `set_concept`,
    `load_concept`, `unload_concept` and `cancel` never wait for a picture.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        provider: str | Backend = "auto",
        threads: int | None = None,
        memory: str | float = "auto",
        batch_size: int = 1,
        verify: bool = True,
        cuda_graph: bool = False,
    ) -> None:
        """Open a bundle, by default the embedded pocket model's.

        `provider`: "cpu", "cuda", "trt", "trt-rtx", "auto" for the best there is, or a backend, such as a
        `MockBackend` in a test. `threads`: CPU threads, by
        default what onnxruntime sees fit. `memory`: "auto", "low", or gigabytes that may be used. `verify`: compare
        the checksums of the bundle's files.

        `batch_size`: pictures in one call of the UNet. With 1 a picture has the same bits in every batch,
        because it is computed alone; more is faster on a GPU (up to 15% on a CPU, nothing for a large model),
        and equality then rests on the provider's kernels.

        `cuda_graph`: with "cuda", record the UNet's calls once for each size and replay them (docs/providers.md).

        Raises:
            BundleError: the bundle is incomplete, damaged or of another format.
            DeviceError: onnxruntime or the provider is missing, or the memory is too small.
            RequestError: an argument that makes no sense.
        """
        for name, value, most in (
            ("threads", threads, _MAX_THREADS),
            ("batch_size", batch_size, _MAX_PICTURES),
        ):
            if not (value is None and name == "threads") and not (type(value) is int and 1 <= value <= most):
                raise RequestError(f"{name} is {value!r}, expected a whole number from 1 to {most}.")
        self.bundle: Bundle = read_bundle(_default_bundle() if bundle is None else bundle, verify=verify)
        self._batch_size = batch_size
        self._bank = Bank(self.bundle)
        self._graphs = Graphs(self.bundle, provider, threads, memory, cuda_graph=cuda_graph)
        self._prompts = PromptEncoder(self.bundle, self._bank, self._graphs)
        self._feeds = Feeds(self.bundle)
        self._turn = threading.RLock()  # the graphs are for one thread at a time
        self._stops = Stops()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the graphs' memory back, once the picture that another thread draws is done. Nothing is drawn
        afterwards."""
        with self._turn:
            self._graphs.close()
            self._prompts.forget()
            self._feeds.forget()

    @property
    def provider(self) -> str:
        """What the graphs run on: "cpu", "cuda", "trt" or "trt-rtx"."""
        return self._graphs.provider

    @property
    def provider_reason(self) -> str:
        """Why it is that one."""
        return self._graphs.reason

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The loaded concepts by their token."""
        return self._bank.concepts

    def load_concept(
        self,
        concept: str | Path | Concept,
        *,
        token: str | None = None,
        **settings: Unpack[SettingChanges],
    ) -> Concept:
        """Make a concept's token a word in prompts; `token` gives it another one.

        A name that is no file's is looked for among the sample concepts that came with the bundle.

        `settings` are as in `set_concept`; those that are left out are the file's own.

        Raises:
            ConceptError: the file is broken, the concept is for another base model, or its token is taken.
            RequestError: a setting out of its range.
        """
        loaded = concept if isinstance(concept, Concept) else Concept.load(self.bundle.find_concept(concept))
        if token is not None:
            loaded = replace(loaded, token=token)
        if self._prompts.knows(loaded.token):
            raise ConceptError(
                f"{loaded.token} is a word of the base model's own. Load the concept under another token."
            )
        self._bank.load(loaded, **settings)
        return loaded

    def set_concept(self, token: str, **settings: Unpack[SettingChanges]) -> ConceptSettings:
        """Change how a loaded concept is used from the next picture on; returns the settings now in force.

        `bias` β: lower lets more of the concept through (.4 to 1 is useful). `temperature` τ: the sharpness of that
        border. `strength`: from 0, at which the word is read as its superclass and the picture is the base model's,
        to 1. `start`: the share of the noise levels, from 0 to below 1, at which the superclass is still drawn: the
        base model arranges the picture, and the concept comes in afterwards (.15 to .45 where a prompt names several
        things).

        Raises:
            RequestError: no such concept is loaded, or a setting is out of its range.
        """
        return self._bank.change(token, **settings)

    def unload_concept(self, token: str) -> None:
        """Forget a concept; its token is plain text again. Raises RequestError when it is not loaded."""
        concept = self.concepts.get(token)
        self._bank.unload(token)
        if concept is not None:
            self._prompts.forget_concept(concept)
        self._feeds.forget_concept(token)

    @overload
    def generate(
        self,
        prompt: str,
        *,
        seed: int = 0,
        count: None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> Image: ...
    @overload
    def generate(
        self,
        prompt: str,
        *,
        seed: list[int] | tuple[int, ...],
        count: None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> list[Image]: ...
    @overload
    def generate(
        self,
        prompt: list[str] | tuple[str, ...],
        *,
        seed: Seeds = 0,
        count: None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> list[Image]: ...
    @overload
    def generate(
        self,
        prompt: Texts,
        *,
        seed: Seeds = 0,
        count: int,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> list[Image]: ...
    def generate(
        self,
        prompt: Texts,
        *,
        seed: Seeds = 0,
        count: int | None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> Image | list[Image]:
        """Draw one picture; for a list of prompts or of seeds a list of pictures, one for each.

        `count`: that many pictures of each prompt, with seeds from its own on. `callback`: called after each step;
        it stops the drawing by returning False.

        Options: `negative_prompt`, `width`, `height`, `num_inference_steps`, `guidance_scale`, `guidance_rescale`,
        `scheduler` (one of `perfusion.runtime.SCHEDULERS`; by default the bundle's own), `image`, `image_strength`
        and `mask` (draw over a picture, or over a part of it), `concept_settings` (settings for these pictures only:
        ``{"<cat>": {"bias": 0.5}}``, or a list with one such for each prompt), `lock` ("local", "global": where
        keys come from; by default what the concepts' files say), `gates` ("similarity", "coordinates": with
        "coordinates" a word opens the gate of its own concept and not those of concepts that resemble it), `regions`
        ("auto": things that the prompt puts side by side, concepts and words in braces, get bands of the picture that
        read their own sentence; None: the prompt is read once; or a list of `Region` for the things), `whole` (from 0
        to below 1, the share of the picture that reads the whole prompt with the superclasses; 0.3 is much).

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
            CancelledError: the callback returned False, or `cancel` was called.
        """
        stop = self._stops.begin()  # before its turn: what waits can be cancelled too
        with self._turn:
            for step in self._start(prompt, seed, count, options, stop):
                if callback is not None and callback(step) is False:
                    stop.ask()
            pictures = step.pictures(stop.check)
        single = count is None and not isinstance(prompt, list | tuple) and not isinstance(seed, list | tuple)
        return pictures[0] if single else pictures

    def denoise(
        self, prompt: Texts, *, seed: Seeds = 0, count: int | None = None, **options: Unpack[Options]
    ) -> Iterator[Step]:
        """The generator below `generate`: a `Step` after each step, for progress, preview and early stop.

        The request is checked, and the prompts are encoded with the concepts as they are now, before the
        first step. It may be left at any step, and several may be under way. `cancel` ends it with `CancelledError`,
        also before its first step and after its last.

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
            CancelledError: `cancel` was called before the prompts were encoded.
        """
        stop = self._stops.begin()
        with self._turn:
            steps = self._start(prompt, seed, count, options, stop)
        return self._turns(steps, stop)

    def cancel(self) -> None:
        """Stop what is being drawn, within one step; its caller gets `CancelledError`. For any thread.

        What waits for its turn is stopped too, and a `denoise` that has made no step yet; what is asked for later
        is not.
        """
        self._stops.ask_all()

    def explain(
        self,
        prompt: str,
        *,
        concept_settings: Changes | None = None,
        lock: str | None = None,
        gates: str = DEFAULT_GATES,
        regions: Regions = AUTO,
    ) -> Explanation:
        """How much of each concept every token of a prompt holds, and how far it opens the concept's gate.

        Of a prompt whose things have regions of their own, `readings` holds the same for each reading.

        Raises:
            RequestError: a prompt or an option that cannot be served.
        """
        request = make_request(self.bundle, prompt, 0, lock=lock, gates=gates, regions=regions)
        with self._turn:
            bank = self._bank.adjusted(concept_settings)
            layout = self._prompts.layout(prompt, request.regions[0], bank.words(), request)
            return explain(self._prompts, bank, layout, lock, gates)

    def _start(
        self, prompt: Texts, seed: Seeds, count: int | None, options: Options, stop: Stop
    ) -> Iterator[Step]:
        """Check a request and encode its prompts; its steps."""
        stop.check()
        request = make_request(self.bundle, prompt, seed, count, **options)
        schedule = make_schedule(request.scheduler, self.bundle.noise_model, request.num_inference_steps)
        if request.images:
            schedule.last_part(request.image_strength)  # what it refuses is refused before the first step
        specs = self._prompts.specs(request)
        schedule.check_start(max(spec.start for spec in specs))
        admit = self._admission(request, specs)
        admit()
        phases = list[list[Phase]]()
        for spec in specs:
            stop.check()
            phases.append(
                [Phase(start=phase.start, rows=self._prompts.encode(phase, request)) for phase in spec.phases]
            )
        return self._steps(request, schedule, phases, stop, admit)

    def _admission(self, request: Request, specs: list[PromptSpec]) -> Callable[[], None]:
        """What makes the graphs ready for a request, or refuses it; again where another one came between."""
        starts = {phase.start for spec in specs for phase in spec.phases}
        concepts = [
            {token: rows for spec in now[group] for token, rows in spec.slots.items()}
            for now in ([spec.at(start) for spec in specs] for start in starts)
            for group in call_slices([spec.shape for spec in now], self._batch_size)
        ]
        size = CallSize(
            width=request.width,
            height=request.height,
            batch=min(self._batch_size, len(specs)),
            guided=request.guided,
            concepts=max(sum(slots.values()) for slots in concepts),
            tokens=max(phase.tokens for spec in specs for phase in spec.phases),
            readings=max(phase.shape[1] for spec in specs for phase in spec.phases),
            image=bool(request.images),
        )
        return partial(self._graphs.admit, size)

    def _steps(
        self,
        request: Request,
        schedule: Schedule,
        phases: Sequence[Sequence[Phase]],
        stop: Stop,
        admit: Callable[[], None],
    ) -> Iterator[Step]:
        drawn = draw(
            self.bundle, self._graphs, self._feeds, request, schedule, phases,
            batch_size=self._batch_size, check=stop.check,
        )  # fmt: skip
        decode = partial(self._decode, admit=admit)
        while True:
            admit()
            state = next(drawn, None)
            if state is None:
                return
            yield Step(
                index=state.index, total=state.total, timestep=state.timestep,
                _latents=state.latents, _clean=state.clean, _decode=decode,
                _latent_rgb=self.bundle.decoder.latent_rgb,
            )  # fmt: skip

    def _turns(self, steps: Iterator[Step], stop: Stop) -> Iterator[Step]:
        """Steps of a generator, each a turn of its own: between two of them its caller does what it likes."""
        while True:
            with self._turn:
                stop.check()
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _decode(
        self, latents: Array, check: Callable[[], None] | None, *, admit: Callable[[], None]
    ) -> list[Image]:
        """Latents to pictures, as a turn of its own; where nothing else stops it, `cancel` does from now on."""
        check = check or self._stops.begin().check
        with self._turn:
            admit()
            return decode(self.bundle, self._graphs, latents, check)


def _default_bundle() -> Path:
    from perfusion.embedded import bundle_path

    return bundle_path()
