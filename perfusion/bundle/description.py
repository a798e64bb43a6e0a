"""What a bundle says about its model, as values that were checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.guidance import is_guided
from perfusion.bundle.names import FORMAT_VERSION, UNET_INPUTS, UNET_INPUTS_1
from perfusion.bundle.noise_model import NoiseModel
from perfusion.errors import ConceptError, RequestError

__all__ = ["Bundle", "ControlNet", "Decoder", "Defaults", "LatentRGB", "Layer", "TextEncoder", "UNet"]


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """One text encoder's graph and the ids it knows."""

    name: str = "text_encoder"  # the graph's
    file: Path
    hidden_size: int
    vocab_size: int
    context_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    tokenizer: Path | None = None  # None: the bundle's
    output: str = "last_hidden_state"  # the graph's output with the encodings
    pooled_output: str | None = None  # and the one with one vector a prompt, where there is one


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One cross-attention layer: how many numbers its `to_k` and `to_v` give."""

    name: str
    key_dim: int
    value_dim: int


@dataclass(frozen=True, kw_only=True)
class UNet:
    """The UNet's graph and its layers, in the order in which concepts' keys and values lie side by side."""

    file: Path
    in_channels: int
    size_multiple: int  # latent height and width are multiples of this
    layers: tuple[Layer, ...]
    conditions: Mapping[str, int] = field(default_factory=dict)  # further inputs, (batch, width) each

    @property
    def key_width(self) -> int:
        """Σ d_K: the length of one row of target keys."""
        return sum(layer.key_dim for layer in self.layers)

    @property
    def value_width(self) -> int:
        """Σ d_V: the length of one row of target values."""
        return sum(layer.value_dim for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class ControlNet:
    """A ControlNet's graph, and the second graph of the UNet, which takes what it gives."""

    name: str
    file: Path
    unet_file: Path
    residuals: int  # that the one gives and the other takes
    conditions: tuple[str, ...] = ()  # of the UNet's, those that it reads too


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentRGB:
    """A picture's colours read off its latents: rgb = latents @ weight + bias, in [-1, 1], fitted at export."""

    weight: NDArray[np.float32]  # (latent channels, 3)
    bias: NDArray[np.float32]  # (3,)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The VAE's decoder: latents divided by `scaling_factor` in, pictures `downscale` times as large out."""

    file: Path
    downscale: int
    scaling_factor: float
    encoder: Path | None = None  # the way back: pictures in, the mean of their latents out
    latent_rgb: LatentRGB | None = None


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request leaves open."""

    width: int
    height: int
    guidance_scale: float
    num_inference_steps: int
    scheduler: str = "ddim"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What bundle.json says, checked."""

    folder: Path
    base: str  # family: pocket, sd15, sd21, sdxl
    base_fingerprint: str
    precision: str
    text_dim: int
    tokenizer: Path
    text_encoders: tuple[TextEncoder, ...]  # their encodings stand side by side in text_dim
    unet: UNet
    decoder: Decoder
    key_projections: Path | None  # (Σ d_K, text_dim): for concepts that come without target keys
    noise_model: NoiseModel
    defaults: Defaults
    format_version: int = FORMAT_VERSION
    force_zeros_for_empty_prompt: bool = False  # an empty negative prompt is zeros, not an encoded empty text
    loras: tuple[str, ...] = ()  # names of the files that were added to its weights
    checksums: Mapping[str, str] = field(
        default_factory=dict
    )  # SHA-256 of its files, named from the folder on
    controlnets: Mapping[str, ControlNet] = field(default_factory=dict)  # by name
    controlnet: ControlNet | None = None  # the one that draws: where there is only one, it

    @property
    def text_encoder(self) -> TextEncoder:
        """The first text encoder, in most models the only one."""
        return self.text_encoders[0]

    @property
    def has_regions(self) -> bool:
        """Whether the UNet takes several readings of a prompt, each for its regions, and a timestep for each row."""
        return self.format_version >= 2

    @property
    def unet_inputs(self) -> tuple[str, ...]:
        """The UNet's inputs, in the graph's order."""
        return (*(UNET_INPUTS if self.has_regions else UNET_INPUTS_1), *self.unet.conditions)

    @property
    def size_step(self) -> int:
        """Pictures' width and height, in pixels, are multiples of this."""
        return self.decoder.downscale * self.unet.size_multiple

    def is_guided(self, guidance_scale: float | None = None) -> bool:
        """Whether each picture has an unconditional row at this scale, by default the bundle's own."""
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        return is_guided(scale, reads_scale="timestep_cond" in self.unet.conditions)

    @property
    def usual_call(self) -> CallSize:
        """The call for one picture of the bundle's own size, with one concept."""
        return CallSize(
            width=self.defaults.width,
            height=self.defaults.height,
            guided=self.is_guided(),
            tokens=self.text_encoder.context_length,
        )

    def with_controlnet(self, name: str) -> Bundle:
        """The same bundle, drawing with the ControlNet of a name.

        Raises:
            RequestError: there is none of that name.
        """
        if name not in self.controlnets:
            raise RequestError(
                f"There is no ControlNet {name!r:.80} in this bundle; it has {', '.join(self.controlnets) or 'none'}. "
                "Export it again with perfusion-export --controlnet."
            )
        return replace(self, controlnet=self.controlnets[name])

    @property
    def samples(self) -> dict[str, Path]:
        """The concepts that came with the bundle, by name: the files in its folder `concepts`."""
        return {path.stem: path for path in sorted(self.folder.glob("concepts/*.safetensors"))}

    def find_concept(self, name: str | Path) -> Path:
        """The concept file meant by a path, or by the name of a sample that came with the bundle.

        Raises:
            ConceptError: there is neither such a file nor such a sample.
        """
        path = Path(name)
        if path.is_file() or (path.suffix and not self.samples):
            return path
        if str(name) in self.samples:
            return self.samples[str(name)]
        if path.exists():
            return path
        known = ", ".join(self.samples)
        samples = (
            f"no sample concept of that name; there is {known}"
            if known
            else "this bundle has no sample concepts"
        )
        raise ConceptError(
            f"{name}: no such file, and {samples}. Give a concept file such as cat.safetensors."
        )
