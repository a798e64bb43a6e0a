"""The bundle: a folder of graphs, and bundle.json with everything the runtime must know about them.

Nothing is guessed from a file's name or a graph's shape: dimensions, token ids, factors and the order of the
layers stand in bundle.json, with the size and checksum of every file.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.errors import BundleError, ConceptError, PerfusionError
from perfusion.files import sha256_of
from perfusion.runtime.fields import Fields
from perfusion.runtime.schedulers import NoiseModel

__all__ = ["Bundle", "Decoder", "Defaults", "Layer", "TextEncoder", "UNet", "read_bundle"]

MANIFEST = "bundle.json"
FORMAT = "perfusion-bundle"
FORMAT_VERSION = 1

_MOST_BYTES = 1 << 20  # a bundle.json of SDXL's 70 layers has 15 KB


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """One text encoder's graph and the ids it knows."""

    file: Path
    hidden_size: int
    vocab_size: int
    context_length: int
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int


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

    @property
    def key_width(self) -> int:
        """Σ d_K: the length of one row of target keys."""
        return sum(layer.key_dim for layer in self.layers)

    @property
    def value_width(self) -> int:
        """Σ d_V: the length of one row of target values."""
        return sum(layer.value_dim for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """The VAE's decoder: latents divided by `scaling_factor` in, pictures `downscale` times as large out."""

    file: Path
    downscale: int
    scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a request leaves open."""

    width: int
    height: int
    guidance_scale: float
    num_inference_steps: int


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What bundle.json says, checked."""

    folder: Path
    base: str  # family: pocket, sd15, sd21
    base_fingerprint: str
    precision: str
    text_dim: int
    tokenizer: Path
    text_encoder: TextEncoder
    unet: UNet
    decoder: Decoder
    key_projections: Path | None  # (Σ d_K, text_dim): for concepts that come without target keys
    noise_model: NoiseModel
    defaults: Defaults

    @property
    def size_step(self) -> int:
        """Pictures' width and height, in pixels, are multiples of this."""
        return self.decoder.downscale * self.unet.size_multiple

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
        if path.exists() or not self.samples:
            return path
        if str(name) in self.samples:
            return self.samples[str(name)]
        known = ", ".join(self.samples)
        raise ConceptError(f"{name}: no such file, and no sample concept of that name; there is {known}.")


def read_bundle(folder: Path | str, *, verify: bool = True) -> Bundle:
    """Read and check a bundle. `verify` compares checksums too, about a second a gigabyte.

    Raises:
        BundleError: not a bundle, another format version, a wrong or missing value, or a file that is missing
            or has another size or checksum.
    """
    folder = Path(folder)
    manifest = _manifest(folder)
    _check_files(folder, manifest.inner("files"), verify)
    return _bundle(folder, manifest)


def _manifest(folder: Path) -> Fields:
    """bundle.json as a JSON object of our format and version."""
    path = folder / MANIFEST
    if not path.is_file():
        found = "holds no bundle.json" if folder.is_dir() else "is not a folder"
        raise BundleError(f"{folder} {found}, so it is not a bundle. Make a bundle with perfusion-export.")
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    if len(data) > _MOST_BYTES:
        raise BundleError(f"{path} is larger than {_MOST_BYTES} bytes, so it is not a bundle's.")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON ({error}). Export the bundle again.") from error
    manifest = Fields(values, str(path))
    if "format" not in manifest or manifest.text("format") != FORMAT:
        raise BundleError(f"{path} does not say that its format is {FORMAT!r}, so it is not a bundle's.")
    version = manifest.whole("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path} is of format version {version}, expected {FORMAT_VERSION}. "
            + ("Update perfusion-edge." if version > FORMAT_VERSION else "Export the bundle again.")
        )
    return manifest


def _check_files(folder: Path, files: Fields, verify: bool) -> None:
    """Every file listed is there, with its size and, if asked, its checksum."""
    for name in files.names():
        path = folder / files.checked_file(name)
        entry = files.inner(name)
        size, checksum = entry.whole("bytes"), entry.text("sha256")
        if not path.is_file():
            raise BundleError(f"{folder} misses the file {name}. Export the bundle again, or copy it whole.")
        if path.stat().st_size != size:
            raise BundleError(
                f"{path} has {path.stat().st_size} bytes, expected {size}. "
                "It was cut or changed: take an undamaged copy, or export the bundle again."
            )
        if verify and _checksum(path) != checksum:
            raise BundleError(
                f"{path} does not have the checksum that bundle.json gives. "
                "It was damaged or changed: take an undamaged copy, or export the bundle again."
            )


def _checksum(path: Path) -> str:
    try:
        return sha256_of(path)
    except PerfusionError as error:
        raise BundleError(str(error)) from error


def _bundle(folder: Path, manifest: Fields) -> Bundle:
    """The manifest's values, each of its kind, and what must agree between them."""
    listed = set(manifest.inner("files").names())

    def file(fields_: Fields, name: str) -> Path:
        value = fields_.file(name)
        if value not in listed:
            raise BundleError(f"{fields_.where}: {name!r} is {value!r}, which is not among its 'files'.")
        return folder / value

    encoders = manifest.inners("text_encoders")
    if len(encoders) != 1:
        raise BundleError(
            f"{manifest.where} has {len(encoders)} text encoders, and this version draws with one. "
            "Update perfusion-edge."
        )
    unet, vae = manifest.inner("unet"), manifest.inner("vae")
    bundle = Bundle(
        folder=folder,
        base=manifest.text("base"),
        base_fingerprint=_fingerprint(manifest),
        precision=manifest.text("precision"),
        text_dim=manifest.whole("text_dim", least=1),
        tokenizer=file(manifest, "tokenizer"),
        text_encoder=_text_encoder(encoders[0], file(encoders[0], "file")),
        unet=UNet(
            file=file(unet, "file"),
            in_channels=unet.whole("in_channels", least=1),
            size_multiple=unet.whole("size_multiple", least=1),
            layers=tuple(_layer(one) for one in unet.inners("layers")),
        ),
        decoder=Decoder(
            file=file(vae, "decoder"),
            downscale=vae.whole("downscale", least=1),
            scaling_factor=vae.number("scaling_factor", above=0),
        ),
        key_projections=file(manifest, "key_projections") if "key_projections" in manifest else None,
        noise_model=_noise_model(manifest.inner("scheduler")),
        defaults=_defaults(manifest.inner("defaults")),
    )
    _check_agreement(bundle, manifest, vae)
    return bundle


def _fingerprint(manifest: Fields) -> str:
    value = manifest.text("base_fingerprint")
    if not re.fullmatch("[0-9a-f]{64}", value):
        raise BundleError(
            f"{manifest.where}: 'base_fingerprint' is {value[:70]!r}, expected 64 hexadecimal digits."
        )
    return value


def _text_encoder(entry: Fields, file: Path) -> TextEncoder:
    encoder = TextEncoder(
        file=file,
        hidden_size=entry.whole("hidden_size", least=1),
        vocab_size=entry.whole("vocab_size", least=1),
        context_length=entry.whole("context_length", least=3),
        bos_token_id=entry.whole("bos_token_id"),
        eos_token_id=entry.whole("eos_token_id"),
        pad_token_id=entry.whole("pad_token_id"),
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(encoder, name) >= encoder.vocab_size:
            raise BundleError(
                f"{entry.where}: {name!r} is {getattr(encoder, name)}, expected an id below "
                f"{encoder.vocab_size}."
            )
    return encoder


def _layer(entry: Fields) -> Layer:
    return Layer(
        name=entry.text("name"),
        key_dim=entry.whole("key_dim", least=1),
        value_dim=entry.whole("value_dim", least=1),
    )


def _noise_model(entry: Fields) -> NoiseModel:
    """The scheduler settings that describe the base model, without a sampler's own preferences."""
    for name in ("trained_betas", "thresholding", "rescale_betas_zero_snr"):
        if entry.is_set(name):
            raise BundleError(
                f"{entry.where}: {name!r} is set, which this version cannot follow. Use another base."
            )
    values = {name: read(entry, name) for name, read in _NOISE.items()}
    values |= {name: read(entry, name) for name, read in _NOISE_OPTIONS.items() if name in entry}
    try:
        return NoiseModel(**values)
    except ValueError as error:
        raise BundleError(f"{entry.where}: {error}. Export the bundle again.") from error


_NOISE: Mapping[str, Callable[[Fields, str], Any]] = {
    "num_train_timesteps": Fields.whole,
    "beta_start": Fields.number,
    "beta_end": Fields.number,
    "beta_schedule": Fields.text,
    "prediction_type": Fields.text,
}
_NOISE_OPTIONS: Mapping[str, Callable[[Fields, str], Any]] = {
    "timestep_spacing": Fields.text,
    "steps_offset": Fields.whole,
    "set_alpha_to_one": Fields.truth,
    "clip_sample": Fields.truth,
    "clip_sample_range": Fields.number,
}


def _defaults(entry: Fields) -> Defaults:
    return Defaults(
        width=entry.whole("width", least=1),
        height=entry.whole("height", least=1),
        guidance_scale=entry.number("guidance_scale"),
        num_inference_steps=entry.whole("num_inference_steps", least=1),
    )


def _check_agreement(bundle: Bundle, manifest: Fields, vae: Fields) -> None:
    """Numbers that stand in two places are equal, and the defaults can be served."""
    channels = vae.whole("latent_channels", least=1)
    if channels != bundle.unet.in_channels:
        raise BundleError(
            f"{manifest.where}: the UNet reads {bundle.unet.in_channels} channels and the latents have "
            f"{channels}. Only text-to-image models can be drawn with; inpainting and depth models cannot."
        )
    if bundle.text_encoder.hidden_size != bundle.text_dim:
        raise BundleError(
            f"{manifest.where}: the text encoder gives {bundle.text_encoder.hidden_size} numbers a token and "
            f"the UNet reads {bundle.text_dim}. Export the bundle again."
        )
    for name in ("width", "height"):
        size = getattr(bundle.defaults, name)
        if size % bundle.size_step:
            raise BundleError(
                f"{manifest.where}: the default {name} is {size}, expected a multiple of {bundle.size_step}. "
                "Export the bundle again."
            )
