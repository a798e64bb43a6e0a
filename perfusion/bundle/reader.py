"""The bundle: a folder of graphs, and bundle.json with everything the runtime must know about them.

Nothing is guessed from a file's name or a graph's shape: dimensions, token ids, factors and the order of the
layers stand in bundle.json, with the size and checksum of every file.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perfusion.bundle.control_entry import read_controlnets
from perfusion.bundle.description import Bundle, Decoder, Defaults, LatentRGB, Layer, TextEncoder, UNet
from perfusion.bundle.fields import Fields
from perfusion.bundle.names import FORMAT, FORMAT_VERSIONS, MANIFEST, SAMPLERS, TAKE_KARRAS
from perfusion.bundle.noise_model import NoiseModel
from perfusion.errors import BundleError, PerfusionError
from perfusion.files import sha256_of

__all__ = ["read_bundle"]

_MOST_BYTES = 1 << 20  # a bundle.json of SDXL's 70 layers has 15 KB
_MOST_ENCODERS = 2
_TIME_IDS = 6  # original height and width, crop's top and left, target height and width

_FileOf = Callable[[Fields, str], Path]
"""A file named by a field, when it is among those that the bundle lists."""


def read_bundle(folder: Path | str, *, verify: bool = True) -> Bundle:
    """Read and check a bundle. `verify` compares checksums too, about a second a gigabyte.

    Raises:
        BundleError: not a bundle, another format version, a wrong or missing value, a link that leads out of the
            folder, or a file that is missing or has another size or checksum.
    """
    folder = Path(os.path.abspath(folder))  # the same place when the process changes its folder
    manifest = _manifest(folder)
    _check_links(folder)
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
    if version not in FORMAT_VERSIONS:
        known = " or ".join(map(str, FORMAT_VERSIONS))
        raise BundleError(
            f"{path} is of format version {version}, expected {known}. "
            + ("Update perfusion-edge." if version > max(FORMAT_VERSIONS) else "Export the bundle again.")
        )
    return manifest


def _check_links(folder: Path) -> None:
    """Nothing in the folder is a link to somewhere else: a graph may read files that bundle.json does not list."""
    roots = [os.path.realpath(folder)]
    if (
        folder.parent.name == "snapshots"
    ):  # the hub's cache, whose snapshots are links to the files of one repository
        roots.append(os.path.realpath(folder.parent.parent / "blobs"))
    for path in folder.rglob("*"):
        target = Path(os.path.realpath(path))
        if path.is_symlink() and not any(target.is_relative_to(root) for root in roots):
            raise BundleError(
                f"{path} is a link that leads out of the bundle's folder, expected a file. Copy the bundle with the "
                "files themselves, as cp -rL does."
            )


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


def _loras(manifest: Fields) -> tuple[str, ...]:
    if "made_from" not in manifest or "loras" not in (made_from := manifest.inner("made_from")):
        return ()
    return tuple(entry.text("file") for entry in made_from.inners("loras"))


def _checksum(path: Path) -> str:
    try:
        return sha256_of(path)
    except PerfusionError as error:
        raise BundleError(str(error)) from error


def _bundle(folder: Path, manifest: Fields) -> Bundle:
    """The manifest's values, each of its kind, and what must agree between them."""
    files = manifest.inner("files")
    checksums = {name: files.inner(name).text("sha256") for name in files.names()}

    def file(fields: Fields, name: str) -> Path:
        value = fields.file(name)
        if value not in checksums:
            raise BundleError(f"{fields.where}: {name!r} is {value!r}, which is not among its 'files'.")
        return folder / value

    encoders, scheduler = manifest.inners("text_encoders"), manifest.inner("scheduler")
    unet, vae = manifest.inner("unet"), manifest.inner("vae")
    if len(encoders) > _MOST_ENCODERS:
        raise BundleError(
            f"{manifest.where} has {len(encoders)} text encoders, and this version draws with one or two. "
            "Update perfusion-edge."
        )
    controlnets = read_controlnets(manifest, file)
    bundle = Bundle(
        folder=folder,
        format_version=manifest.whole("format_version"),
        base=manifest.text("base"),
        base_fingerprint=_fingerprint(manifest),
        precision=manifest.text("precision"),
        text_dim=manifest.whole("text_dim", least=1),
        tokenizer=file(manifest, "tokenizer"),
        text_encoders=tuple(_text_encoder(entry, index, file) for index, entry in enumerate(encoders)),
        unet=_unet(unet, file),
        decoder=_decoder(vae, file),
        key_projections=file(manifest, "key_projections") if "key_projections" in manifest else None,
        noise_model=_noise_model(scheduler),
        defaults=_defaults(manifest.inner("defaults"), _sampler(scheduler)),
        force_zeros_for_empty_prompt=manifest.truth("force_zeros_for_empty_prompt", default=False),
        loras=_loras(manifest),
        checksums=checksums,
        controlnets=controlnets,
        controlnet=next(iter(controlnets.values())) if len(controlnets) == 1 else None,
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


def _text_encoder(entry: Fields, index: int, file: _FileOf) -> TextEncoder:
    encoder = TextEncoder(
        name="text_encoder" if index == 0 else f"text_encoder_{index + 1}",
        file=file(entry, "file"),
        hidden_size=entry.whole("hidden_size", least=1),
        vocab_size=entry.whole("vocab_size", least=1),
        context_length=entry.whole("context_length", least=3),
        bos_token_id=entry.whole("bos_token_id"),
        eos_token_id=entry.whole("eos_token_id"),
        pad_token_id=entry.whole("pad_token_id"),
        tokenizer=file(entry, "tokenizer") if "tokenizer" in entry else None,
        output=entry.text("output", default="last_hidden_state"),
        pooled_output=entry.text("pooled_output") if "pooled_output" in entry else None,
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(encoder, name) >= encoder.vocab_size:
            raise BundleError(
                f"{entry.where}: {name!r} is {getattr(encoder, name)}, expected an id below "
                f"{encoder.vocab_size}."
            )
    return encoder


def _unet(entry: Fields, file: _FileOf) -> UNet:
    conditions = entry.inner("conditions") if "conditions" in entry else Fields({}, entry.where)
    if unknown := set(conditions.names()) - set(_CONDITIONS):
        raise BundleError(
            f"{entry.where}: the UNet asks for {', '.join(sorted(unknown))}, and this version knows "
            f"{', '.join(_CONDITIONS)}. Update perfusion-edge."
        )
    return UNet(
        file=file(entry, "file"),
        in_channels=entry.whole("in_channels", least=1),
        size_multiple=entry.whole("size_multiple", least=1),
        layers=tuple(_layer(one) for one in entry.inners("layers")),
        conditions={name: conditions.whole(name, least=1) for name in conditions.names()},
    )


_CONDITIONS = ("text_embeds", "time_ids", "timestep_cond")
"""SDXL's pooled encodings and sizes, LCM's guidance scale."""


def _layer(entry: Fields) -> Layer:
    return Layer(
        name=entry.text("name"),
        key_dim=entry.whole("key_dim", least=1),
        value_dim=entry.whole("value_dim", least=1),
    )


def _decoder(entry: Fields, file: _FileOf) -> Decoder:
    return Decoder(
        file=file(entry, "decoder"),
        downscale=entry.whole("downscale", least=1),
        scaling_factor=entry.number("scaling_factor", above=0),
        encoder=file(entry, "encoder") if "encoder" in entry else None,
        latent_rgb=_latent_rgb(entry) if "latent_rgb" in entry else None,
    )


def _latent_rgb(entry: Fields) -> LatentRGB:
    found = entry.inner("latent_rgb")
    channels = entry.whole("latent_channels", least=1)
    return LatentRGB(
        weight=np.array(found.table("weight", rows=channels, columns=3), np.float32),
        bias=np.array(found.numbers("bias", 3), np.float32),
    )


def _noise_model(entry: Fields) -> NoiseModel:
    """The scheduler settings that describe the base model, without a sampler's own preferences."""
    for name in ("trained_betas", "thresholding"):
        if entry.is_set(name):
            raise BundleError(
                f"{entry.where}: {name!r} is set, which this version cannot follow. Use another base."
            )
    values = {name: read(entry, name) for name, read in _NOISE.items()}
    values |= {name: read(entry, name) for name, read in _NOISE_OPTIONS.items() if name in entry}
    try:
        return NoiseModel(**values)
    except ValueError as error:
        raise BundleError(
            f"{entry.where}: {error}. Export the bundle again; a base model that was trained otherwise cannot be used."
        ) from error


def _sampler(entry: Fields) -> str:
    """The name of the scheduler that the base model comes with."""
    sampler = entry.text("sampler", default="ddim")
    if sampler not in SAMPLERS:
        raise BundleError(
            f"{entry.where}: 'sampler' is {sampler!r}, expected one of {', '.join(SAMPLERS)}. "
            "Update perfusion-edge."
        )
    karras = entry.truth("use_karras_sigmas", default=False) and sampler in TAKE_KARRAS
    return f"{sampler}_karras" if karras else sampler


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
    "rescale_betas_zero_snr": Fields.truth,
    "original_inference_steps": Fields.whole,
    "timestep_scaling": Fields.number,
}


def _defaults(entry: Fields, scheduler: str) -> Defaults:
    return Defaults(
        width=entry.whole("width", least=1),
        height=entry.whole("height", least=1),
        guidance_scale=entry.number("guidance_scale"),
        num_inference_steps=entry.whole("num_inference_steps", least=1),
        scheduler=scheduler,
    )


def _check_agreement(bundle: Bundle, manifest: Fields, vae: Fields) -> None:
    """Numbers that stand in two places are equal, and the defaults can be served."""
    channels = vae.whole("latent_channels", least=1)
    if channels != bundle.unet.in_channels:
        raise BundleError(
            f"{manifest.where}: the UNet reads {bundle.unet.in_channels} channels and the latents have "
            f"{channels}. Only text-to-image models can be drawn with; inpainting and depth models cannot."
        )
    given = sum(encoder.hidden_size for encoder in bundle.text_encoders)
    if given != bundle.text_dim:
        many = "encoder gives" if len(bundle.text_encoders) == 1 else "encoders give"
        raise BundleError(
            f"{manifest.where}: the text {many} {given} numbers a token and the UNet reads {bundle.text_dim}. "
            "Export the bundle again."
        )
    _check_conditions(bundle, manifest.where)
    for name in ("width", "height"):
        size = getattr(bundle.defaults, name)
        if size % bundle.size_step:
            raise BundleError(
                f"{manifest.where}: the default {name} is {size}, expected a multiple of {bundle.size_step}. "
                "Export the bundle again."
            )


def _check_conditions(bundle: Bundle, where: str) -> None:
    """What the UNet asks for besides encodings can be given."""
    pooled = sum(encoder.pooled_output is not None for encoder in bundle.text_encoders)
    if "text_embeds" in bundle.unet.conditions and pooled != 1:
        raise BundleError(
            f"{where}: the UNet asks for pooled text encodings, and {pooled} text encoders give them, expected "
            "one. Export the bundle again."
        )
    if bundle.unet.conditions.get("time_ids", _TIME_IDS) != _TIME_IDS:
        raise BundleError(
            f"{where}: the UNet asks for {bundle.unet.conditions['time_ids']} sizes, and this version gives "
            f"{_TIME_IDS}: it draws with base models, not with refiners. Use another base."
        )
    lengths = {encoder.context_length for encoder in bundle.text_encoders}
    if len(lengths) > 1:
        raise BundleError(
            f"{where}: the text encoders read prompts of {' and '.join(map(str, sorted(lengths)))} tokens, "
            "expected the same length. Export the bundle again."
        )
