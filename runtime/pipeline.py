"""Runtime: a bundle, the concepts loaded into it, and pictures drawn with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, overload

from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.concept.bank import Changes
from perfusion.concept.concept_file import Concept
from perfusion.concept.embedding_file import Embedding
from perfusion.concept.layout import AUTO, Regions
from perfusion.concept.learned_words import LearnedWords
from perfusion.concept.prompt_syntax import DEFAULT_SYNTAX
from perfusion.concept.settings import DEFAULT_GATES, ConceptSettings, SettingChanges
from perfusion.errors import ConceptError, RequestError
from perfusion.hub import local_bundle
from perfusion.runtime.compute.backend import Backend
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank, open_concept, open_embedding
from perfusion.runtime.drawing_parts import DrawingParts
from perfusion.runtime.explanation import Explanation, explain
from perfusion.runtime.preparation import Preparation
from perfusion.runtime.queueing.drawing_queue import DrawingQueue
from perfusion.runtime.queueing.job import Job
from perfusion.runtime.request import Options, check_order, make_request
from perfusion.runtime.step import Step
from perfusion.runtime.stopping import Stop, Stops
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

__all__ = ["Runtime"]

Texts = str | list[str] | tuple[str, ...]
Seeds = int | list[int] | tuple[int, ...]
Callback = Callable[[Step], object]
"""Called with every step; what returns False stops the drawing."""

_MAX_PICTURES = 4096  # in one call of the UNet
_MAX_WAITING = 65536  # jobs, each a few kilobytes without its picture
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
        precision: str = "fp32",
        queue_size: int = 256,
        controlnet: str | None = None,
    ) -> None:
        """Open a bundle, by default the embedded pocket model's: a folder, or its name on the hub (`owner/name`).

        `provider`: "cpu", "cuda", "trt", "trt-rtx", "openvino" (or "openvino:GPU" and the like), "auto" for the best
        there is, or a backend, such as a `MockBackend` in a test. `threads`: CPU threads, by default what the
        library sees fit. `memory`: "auto", "low", or gigabytes that may be used. `verify`: compare the checksums of the
        bundle's files.

        `batch_size`: pictures in one call of the UNet. With 1 a picture has the same bits in every batch,
        because it is computed alone; more is faster on a GPU (up to 15% on a CPU, nothing for a large model),
        and equality then rests on the provider's kernels.

        `cuda_graph`: with "cuda", record the UNet's calls once for each size and replay them (docs/providers.md).

        `precision`: with "openvino", compute in "bf16" or "fp16", where the device has instructions for it.

        `queue_size`: how many jobs of `submit` may wait; the one after them is refused.

        `controlnet`: the name of the bundle's ControlNet that reads control images, where there are several.

        Raises:
            BundleError: the bundle is incomplete, damaged or of another format.
            DeviceError: onnxruntime or the provider is missing, or the memory is too small.
            RequestError: an argument that makes no sense.
        """
        for name, value, most in (
            ("threads", threads, _MAX_THREADS),
            ("batch_size", batch_size, _MAX_PICTURES),
            ("queue_size", queue_size, _MAX_WAITING),
        ):
            if not (value is None and name == "threads") and not (type(value) is int and 1 <= value <= most):
                raise RequestError(f"{name} is {value!r}, expected a whole number from 1 to {most}.")
        self.bundle: Bundle = read_bundle(
            _default_bundle() if bundle is None else local_bundle(bundle), verify=verify
        )
        if controlnet is not None:
            self.bundle = self.bundle.with_controlnet(controlnet)
        self._batch_size = batch_size
        self._threads = threads
        self._bank = Bank(self.bundle)
        self._graphs = Graphs(
            self.bundle, provider, threads, memory, cuda_graph=cuda_graph, precision=precision
        )
        self._prompts = PromptEncoder(self.bundle, self._bank, self._graphs)
        self._feeds = Feeds(self.bundle)
        self._preparation = Preparation(self.bundle, self._graphs, self._prompts)
        self._stops = Stops()
        self._parts = DrawingParts(self.bundle, self._graphs, self._feeds, self._preparation, self._stops)
        self._queue = DrawingQueue(self._parts, batch_size=batch_size, capacity=queue_size)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the graphs' memory back, once the picture that another thread draws is done. Jobs of `submit` are
        cancelled. Nothing is drawn afterwards."""
        self._queue.close()
        with self._parts.turn:
            self._graphs.close()
            self._prompts.forget()
            self._feeds.forget()

    @property
    def provider(self) -> str:
        """What the graphs run on: "cpu", "cuda", "trt", "trt-rtx", "openvino", or with its device "openvino:GPU"."""
        return self._graphs.provider

    @property
    def precision(self) -> str | None:
        """What OpenVINO computes in; None with the others, which compute as the graphs were exported."""
        return self._graphs.precision

    @property
    def provider_reason(self) -> str:
        """Why it is that one."""
        return self._graphs.reason

    @property
    def threads(self) -> int | None:
        """CPU threads; None where onnxruntime chooses."""
        return self._threads

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The loaded concepts by their token."""
        return self._bank.concepts

    def load_concept(
        self,
        concept: str | Path | bytes | BinaryIO | Concept,
        *,
        token: str | None = None,
        **settings: Unpack[SettingChanges],
    ) -> Concept:
        """Make a concept's token a word in prompts; `token` gives it another one.

        `concept`: a file, its bytes, an opened file, the name of a sample that came with the bundle, or
        its name on the hub.

        `settings` are as in `set_concept`; those that are left out are the file's own.

        Raises:
            ConceptError: the file is broken, the concept is for another base model, or its token is taken.
            RequestError: a setting out of its range.
        """
        loaded = open_concept(concept, self.bundle)
        if token is not None:
            loaded = replace(loaded, token=token)
        if loaded.token in self._bank.learned:
            raise ConceptError(
                f"{loaded.token} is the word of an embedding. Load the concept under another token, or unload that."
            )
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

    @property
    def embeddings(self) -> LearnedWords:
        """The loaded embeddings by their word."""
        return self._bank.learned

    def load_embedding(
        self, embedding: str | Path | bytes | BinaryIO | Embedding, *, word: str | None = None
    ) -> Embedding:
        """Make an embedding (a textual inversion) a word of prompts and of negative prompts, in any case.

        `embedding`: a safetensors file, its bytes, or an opened file. `word`: by default the file's name, as in A1111's
        web UI: ``EasyNegative.safetensors`` is ``EasyNegative``.

        Raises:
            ConceptError: the file is broken or a pickle, was made for another base model, or its word is taken.
        """
        loaded = open_embedding(embedding, word)
        self._bank.load_embedding(loaded)
        return loaded

    def unload_embedding(self, word: str) -> None:
        """Forget an embedding; its word is plain text again. Raises RequestError when it is not loaded."""
        self._bank.unload_embedding(word)

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
        and `mask` (draw over a picture, or over a part of it), `control_image` and `control_scale` (what the bundle's
        ControlNet reads, and how much it counts), `concept_settings` (settings for these pictures only:
        ``{"<cat>": {"bias": 0.5}}``, or a list with one such for each prompt), `lock` ("local", "global": where
        keys come from; by default what the concepts' files say), `gates` ("similarity", "coordinates": with
        "coordinates" a word opens the gate of its own concept and not those of concepts that resemble it), `regions`
        ("auto": things that the prompt puts side by side, concepts and words in braces, get bands of the picture that
        read their own sentence; None: the prompt is read once; or a list of `Region` for the things), `whole` (from 0
        to below 1, the share of the picture that reads the whole prompt with the superclasses; 0.3 is much),
        `prompt_syntax` ("weights": prompts have weights such as ``(cat:1.3)`` and ``[cat]``, ``BREAK`` and
        ``<lora:name:strength>``; "plain": all of that is text).

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
            CancelledError: the callback returned False, or `cancel` was called.
        """
        stop = self._stops.begin()  # before its turn: what waits can be cancelled too
        with self._parts.turn:
            for step in self._start(prompt, seed, count, options, stop):
                if callback is not None and callback(step) is False:
                    stop.ask()
            pictures = step.pictures(stop.check)
        single = count is None and not isinstance(prompt, list | tuple) and not isinstance(seed, list | tuple)
        return pictures[0] if single else pictures

    def submit(
        self,
        prompt: str,
        *,
        seed: int = 0,
        exact: bool = False,
        priority: float = 0,
        client: str = "",
        deadline: float | None = None,
        callback: Callback | None = None,
        **options: Unpack[Options],
    ) -> Job:
        """Order one picture, and go on at once: `job.result()` waits for it, and so does `await job`.

        Up to `batch_size` pictures of different jobs share each call of the UNet, whatever their concepts, settings,
        schedulers and seeds, and whatever step each is at, where their size agrees and all or none have guidance. A
        picture joins at the next step and leaves when it is done. In a bundle of format version 1 all pictures of a
        call stand at the same step.

        The concepts are those loaded now. `options` are those of `generate`.

        `exact`: draw it alone, with the bits that `generate` gives with ``batch_size=1``; otherwise the last bits
        depend on what shares its calls. `priority`: higher ones go first. `client`: whose it is; the clients of one
        priority take turns. `deadline`: seconds after which it is cancelled. `callback`: called with each `Step`, in
        the thread that draws; it cancels the job by returning False.

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
            BusyError: `queue_size` jobs wait already.
        """
        check_order(prompt, seed, priority, deadline)
        return self._queue.submit(
            self._preparation.draft(prompt, seed, None, options), self._stops.begin(), exact=exact,
            priority=priority, client=client, deadline=deadline, callback=callback,
        )  # fmt: skip

    @property
    def queue(self) -> DrawingQueue:
        """The jobs of `submit`: how many wait and are drawn, and what the calls of the UNet held."""
        return self._queue

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
        with self._parts.turn:
            steps = self._start(prompt, seed, count, options, stop)
        return self._turns(steps, stop)

    def count_tokens(self, prompt: str, *, prompt_syntax: str = DEFAULT_SYNTAX) -> int:
        """How many tokens of a prompt the text encoder reads, without start, end and padding. Nothing is computed.

        Raises:
            RequestError: a prompt that cannot be served.
        """
        return self._prompts.length(prompt, prompt_syntax)

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
        prompt_syntax: str = DEFAULT_SYNTAX,
    ) -> Explanation:
        """How much of each concept every token of a prompt holds, and how far it opens the concept's gate.

        Of a prompt whose things have regions of their own, `readings` holds the same for each reading.

        Raises:
            RequestError: a prompt or an option that cannot be served.
        """
        request = make_request(
            self.bundle, prompt, 0, lock=lock, gates=gates, regions=regions, prompt_syntax=prompt_syntax
        )
        with self._parts.turn:
            bank, text = self._prompts.parse(prompt, concept_settings, prompt_syntax, self._bank.adjusted())
            layout = self._prompts.layout(text, request.regions[0], bank.words(), request)
            return explain(self._prompts, bank, layout, lock, gates)

    def _start(
        self, prompt: Texts, seed: Seeds, count: int | None, options: Options, stop: Stop
    ) -> Iterator[Step]:
        """Check a request and encode its prompts; its steps."""
        stop.check()
        draft = self._preparation.draft(prompt, seed, count, options)
        return self._parts.begin(draft, stop, self._batch_size)

    def _turns(self, steps: Iterator[Step], stop: Stop) -> Iterator[Step]:
        """Steps of a generator, each a turn of its own: between two of them its caller does what it likes."""
        while True:
            with self._parts.turn:
                stop.check()
                step = next(steps, None)
            if step is None:
                return
            yield step


def _default_bundle() -> Path:
    from perfusion.embedded import bundle_path

    return bundle_path()
