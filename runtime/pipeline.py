"""Runtime: a bundle, the concepts loaded into it, and the loop that turns noise into pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from perfusion.concept import Concept
from perfusion.conditioning import PromptState, unet_feeds
from perfusion.errors import ConceptError, PerfusionError, RequestError
from perfusion.runtime.bank import Bank, Settings
from perfusion.runtime.bundle import Bundle, read_bundle
from perfusion.runtime.graphs import Graphs
from perfusion.runtime.latents import initial_noise
from perfusion.runtime.pictures import as_pictures
from perfusion.runtime.prompts import PromptEncoder
from perfusion.runtime.request import Options, Request, make_request
from perfusion.runtime.schedulers import Schedule, make_schedule
from perfusion.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

__all__ = ["Runtime", "Step"]

Array = NDArray[np.float32]
Texts = str | list[str] | tuple[str, ...]
Seeds = int | list[int] | tuple[int, ...]

_MAX_THREADS = 1024  # onnxruntime starts as many as it is told to, and never returns from millions


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Where a batch of pictures stands after one denoising step."""

    index: int  # from 0
    total: int
    timestep: float
    _latents: Array
    _clean: Array
    _decode: Callable[[Array], list[Image]]

    @property
    def latents(self) -> Array:
        """A copy of the latents, (pictures, channels, height, width)."""
        return self._latents.copy()

    def preview(self) -> list[Image]:
        """The pictures as the model now believes they will be; every call decodes anew."""
        return self._decode(self._clean)

    def pictures(self) -> list[Image]:
        """The latents decoded as they are: after the last step the finished pictures."""
        return self._decode(self._latents)


class Runtime:
    """Draws pictures with one bundle and any number of concepts. Not for several threads at once.

        runtime = Runtime()
        runtime.load_concept("cat.safetensors")
        picture = runtime.generate("a photo of <cat> on a beach", seed=0)

    A picture depends on its prompt, seed, size, steps, guidance, scheduler and on the settings of the
    concepts its prompt names, and on nothing else: not on other loaded concepts, nor on what else is in its
    batch.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        *,
        provider: str = "auto",
        threads: int | None = None,
        batch_size: int = 1,
        verify: bool = True,
    ) -> None:
        """Open a bundle, by default the embedded pocket model's.

        `provider`: "cpu", "cuda", or "auto" for the better one there is. `threads`: CPU threads, by default
        what onnxruntime sees fit. `verify`: compare the checksums of the bundle's files.

        `batch_size`: pictures in one call of the UNet. With 1 a picture has the same bits in every batch,
        because it is computed alone; more is faster on a GPU (up to 15% on a CPU, nothing for a large model),
        and equality then rests on the provider's kernels.

        Raises:
            BundleError: the bundle is incomplete, damaged or of another format.
            DeviceError: onnxruntime or the provider is missing.
            RequestError: an argument that makes no sense.
        """
        if (threads is not None and threads < 1) or batch_size < 1:
            raise RequestError(f"threads is {threads} and batch_size {batch_size}; both are at least 1.")
        if threads is not None and threads > _MAX_THREADS:
            raise RequestError(f"threads is {threads}, expected at most {_MAX_THREADS}.")
        self.bundle: Bundle = read_bundle(_default_bundle() if bundle is None else bundle, verify=verify)
        self._batch_size = batch_size
        self._bank = Bank(self.bundle)
        self._tokenizer = PromptTokenizer(self.bundle.tokenizer, self.bundle.text_encoder)
        self._graphs = Graphs(self.bundle, provider, threads)
        self._prompts = PromptEncoder(self._tokenizer, self._bank, self._graphs)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the graphs' memory back. The runtime draws nothing afterwards."""
        self._graphs.close()

    @property
    def provider(self) -> str:
        """What the graphs run on: "cpu" or "cuda"."""
        return self._graphs.provider

    @property
    def concepts(self) -> Mapping[str, Concept]:
        """The loaded concepts by their token."""
        return self._bank.concepts

    def load_concept(
        self,
        concept: str | Path | Concept,
        *,
        token: str | None = None,
        bias: float | None = None,
        temperature: float | None = None,
        strength: float | None = None,
    ) -> Concept:
        """Make a concept's token a word in prompts; `token` gives it another one.

        A name that is no file's is looked for among the sample concepts that came with the bundle.

        Settings are as in `set_concept`; unless given they are the file's own, and a strength of 1.

        Raises:
            ConceptError: the file is broken, the concept is for another base model, or its token is taken.
            RequestError: a setting out of its range.
        """
        loaded = concept if isinstance(concept, Concept) else Concept.load(self.bundle.find_concept(concept))
        if token is not None:
            loaded = replace(loaded, token=token)
        if self._tokenizer.knows(loaded.token):
            raise ConceptError(
                f"{loaded.token} is a word of the base model's own. Load the concept under another token."
            )
        self._bank.load(loaded, bias=bias, temperature=temperature, strength=strength)
        return loaded

    def set_concept(
        self,
        token: str,
        *,
        bias: float | None = None,
        temperature: float | None = None,
        strength: float | None = None,
    ) -> Settings:
        """Change how a loaded concept is used from the next picture on; returns the settings now in force.

        `bias` β: lower lets more of the concept through (.4 to 1 is useful). `temperature` τ: the sharpness
        of that border. `strength`: from 0, at which
        the word is read as its superclass and the picture is the base model's, to 1.

        Raises:
            RequestError: no such concept is loaded, or a setting is out of its range.
        """
        return self._bank.change(token, bias=bias, temperature=temperature, strength=strength)

    def unload_concept(self, token: str) -> None:
        """Forget a concept; its token is plain text again. Raises RequestError when it is not loaded."""
        self._bank.unload(token)

    @overload
    def generate(self, prompt: str, *, seed: int = 0, **options: Unpack[Options]) -> Image: ...
    @overload
    def generate(
        self, prompt: str, *, seed: list[int] | tuple[int, ...], **options: Unpack[Options]
    ) -> list[Image]: ...
    @overload
    def generate(
        self, prompt: list[str] | tuple[str, ...], *, seed: Seeds = 0, **options: Unpack[Options]
    ) -> list[Image]: ...
    def generate(self, prompt: Texts, *, seed: Seeds = 0, **options: Unpack[Options]) -> Image | list[Image]:
        """Draw one picture, or for a list of prompts or of seeds a list of pictures, one for each.

        Options: `negative_prompt`, `width`, `height`, `num_inference_steps`, `guidance_scale`, `scheduler`
        ("ddim", "euler"), `lock` ("local", "global": where keys come from; by default what the concepts'
        files say), `gates` ("raw", "gram": with "gram" a word opens the gate of its own concept and not those
        of concepts that resemble it).

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
        """
        for step in self.denoise(prompt, seed=seed, **options):
            last = step
        pictures = last.pictures()
        single = not isinstance(prompt, list | tuple) and not isinstance(seed, list | tuple)
        return pictures[0] if single else pictures

    def denoise(self, prompt: Texts, *, seed: Seeds = 0, **options: Unpack[Options]) -> Iterator[Step]:
        """The generator below `generate`: a `Step` after each step, for progress, preview and early stop.

        The request is checked, and the prompts are encoded with the concepts as they are now, before the
        first step.

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
        """
        request = make_request(self.bundle, prompt, seed, **options)
        schedule = make_schedule(request.scheduler, self.bundle.noise_model, request.num_inference_steps)
        return self._steps(request, schedule, self._prompts.states(request))

    def _steps(self, request: Request, schedule: Schedule, states: list[list[PromptState]]) -> Iterator[Step]:
        """The denoising loop over a batch; `states` has the rows of each picture."""
        downscale, channels = self.bundle.decoder.downscale, self.bundle.unet.in_channels
        shape = (1, channels, request.height // downscale, request.width // downscale)
        latents = np.concatenate([initial_noise(seed, shape) for seed in request.seeds])
        latents = latents * np.float32(schedule.initial_scale)
        starts = range(0, len(states), self._batch_size)
        feeds = [
            unet_feeds([row for rows in states[at : at + self._batch_size] for row in rows]) for at in starts
        ]
        for index, timestep in enumerate(schedule.timesteps):
            predictions = [
                _predict(self._graphs, latents[at : at + self._batch_size], timestep, feed, request)
                for at, feed in zip(starts, feeds, strict=True)
            ]
            clean, noise = schedule.clean_and_noise(index, latents, np.concatenate(predictions))
            latents = schedule.mix(index, clean, noise)
            if not np.isfinite(latents).all():
                raise PerfusionError(
                    f"Step {index + 1} gave numbers that are not finite. Lower the guidance scale; if that "
                    "does not help and the bundle is of precision fp16, export it as fp32."
                )
            yield Step(
                index=index, total=len(schedule), timestep=float(timestep),
                _latents=latents, _clean=clean, _decode=self._decode,
            )  # fmt: skip

    def _decode(self, latents: Array) -> list[Image]:
        """Latents to pictures, one at a time: a decoder needs the most memory of all graphs."""
        with np.errstate(all="ignore"):  # what overflows here is refused below
            scaled = latents / np.float32(self.bundle.decoder.scaling_factor)
        samples = (self._graphs.run("vae_decoder", latent_sample=one[None])["sample"] for one in scaled)
        return [picture for sample in samples for picture in as_pictures(_finite(sample))]


def _predict(
    graphs: Graphs, latents: Array, timestep: np.float32, feeds: Mapping[str, Array], request: Request
) -> Array:
    """The UNet's prediction for some pictures, (pictures, channels, height, width), guided when asked for."""
    rows = np.repeat(latents, 2, axis=0) if request.guided else latents
    outputs = graphs.run("unet", sample=rows, timestep=np.asarray([timestep], np.float32), **feeds)
    noise_pred = outputs["out_sample"]
    if not request.guided:
        return noise_pred
    unconditional, conditional = noise_pred[0::2], noise_pred[1::2]
    return unconditional + np.float32(request.guidance_scale) * (conditional - unconditional)


def _finite(sample: Array) -> Array:
    if not np.isfinite(sample).all():
        raise PerfusionError(
            "The decoder gave numbers that are not finite. Lower the guidance scale; if that does not help and "
            "the bundle is of precision fp16, export it as fp32."
        )
    return sample


def _default_bundle() -> Path:
    from perfusion.pocket import bundle_path

    return bundle_path()
