"""The settings that a picture file carries: as text that other programs read, and exactly, as JSON.

The text is the `parameters` of A1111's web UI. The JSON says all that decides the pixels, and no time, so equal
pictures are equal files. A PNG has both as text chunks; JPEG and WebP have them in their Exif data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from perfusion import __version__
from perfusion.concept.settings import ConceptSettings, SettingChanges
from perfusion.errors import PictureError
from perfusion.files import writing
from perfusion.runtime.request import Options, Request, make_request

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from perfusion.concept.concept_file import Concept
    from perfusion.runtime.pipeline import Runtime

__all__ = [
    "FORMATS",
    "SAMPLERS",
    "concept_hash",
    "is_marked",
    "parameters_text",
    "read_settings",
    "save",
    "settings_of",
    "settings_of_request",
    "write",
]

Settings = Mapping[str, Any]
"""What `settings_of` returns, as JSON has it."""

_log = logging.getLogger(__name__)

_PROGRAM = "perfusion-edge"
_KEY = "perfusion-edge"  # of the PNG chunk with the JSON
_FORMAT = 1
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_DESCRIPTION, _SOFTWARE, _EXIF_IFD, _USER_COMMENT = 0x010E, 0x0131, 0x8769, 0x9286  # Exif tags
_BYTE, _UNDEFINED = 1, 7  # types of Exif values
_UTF16 = b"UNICODE\0"  # how a user comment says that UTF-16 follows
_MOST_EXIF = 65_000  # bytes; a JPEG has 65,533 for them
_LIBRARIES = {
    "cpu": "onnxruntime", "cuda": "onnxruntime", "trt": "tensorrt", "trt-rtx": "tensorrt_rtx",
    "openvino": "openvino",
}  # fmt: skip
SAMPLERS = {
    "ddim": "DDIM", "plms": "PLMS", "euler": "Euler", "euler_ancestral": "Euler a", "dpmpp_2m": "DPM++ 2M",
    "heun": "Heun", "lcm": "LCM",
}  # fmt: skip
"""A1111's names of our schedulers, but for their Karras variants."""


def settings_of(
    runtime: Runtime, prompt: str, seed: int = 0, *, exact: bool = True, **options: Unpack[Options]
) -> dict[str, Any]:
    """All that decides the pixels of one picture, with the concepts as they are loaded now.

    `exact`: whether it is computed alone. `options` are those of `Runtime.generate`.

    Raises:
        RequestError: a prompt, seed or option that cannot be served.
    """
    request = make_request(runtime.bundle, prompt, seed, **options)
    return settings_of_request(runtime, request, exact=exact)


def settings_of_request(runtime: Runtime, request: Request, *, exact: bool = True) -> dict[str, Any]:
    """`settings_of` the one picture of a request that was checked before, such as `Job.request`."""
    prompt, provider = request.prompts[0], runtime.provider
    library = provider.partition(":")[0]  # before the name of a device
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "version": __version__,
        "prompt": prompt,
        "prompt_syntax": request.prompt_syntax,
        "concepts": _concepts(runtime, prompt, request),
        "embeddings": _embeddings(runtime, prompt, request),
        "regions": _regions(request.regions[0]),
        "base": runtime.bundle.base,
        "base_fingerprint": runtime.bundle.base_fingerprint,
        "bundle": _hash_of(sorted(runtime.bundle.checksums.items())),
        "provider": provider,
        "provider_version": str(
            getattr(sys.modules.get(_LIBRARIES.get(library, "")), "__version__", "unknown")
        ),
        "precision": runtime.precision,
        "threads": runtime.threads or _cores(),
        "exact": exact,
        "seed": request.seeds[0],
        "negative_prompt": request.negative_prompts[0],
    }
    for name in ("width", "height", "num_inference_steps", "guidance_scale", "guidance_rescale", "scheduler", "lock",
                 "gates", "whole"):  # fmt: skip
        facts[name] = getattr(request, name)
    pictures_of = {"image": request.images, "mask": request.masks, "control_image": request.control_images}
    for name, pictures in pictures_of.items():
        facts[name] = _picture_hash(pictures[0]) if pictures else None
    facts["image_strength"] = request.image_strength if request.images else None
    facts["control_scale"] = request.control_scale if request.controlled else None
    controlnet = runtime.bundle.controlnet if request.controlled else None
    facts["controlnet"] = controlnet and controlnet.name
    return facts


def concept_hash(concept: Concept) -> str:
    """SHA-256 of what a concept file says, but for its token: a concept is known under any name, and in a card."""
    known = _hashes.get(concept)
    if known is None:
        data = replace(concept, token="<concept>").to_bytes("float32")
        known = _hashes[concept] = hashlib.sha256(data).hexdigest()
    return known


# A concept never changes, and a server asks for its hash with every picture.
_hashes: WeakKeyDictionary[Concept, str] = WeakKeyDictionary()


@cache
def _cores() -> int:
    """Asked once: a session keeps its threads, and to read the bounds of a container takes a millisecond."""
    from perfusion.devices.system import cores

    return cores(Path("/"))


def parameters_text(settings: Settings) -> str:
    """The `parameters` text of A1111's web UI."""
    scheduler = settings["scheduler"]
    lines = [settings["prompt"]]
    if settings["negative_prompt"]:
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    sampler = scheduler.removesuffix("_karras")
    values = {
        "Steps": settings["num_inference_steps"],
        "Sampler": SAMPLERS.get(sampler, sampler),
        "Schedule type": "Karras" if scheduler.endswith("_karras") else "Automatic",
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{settings['width']}x{settings['height']}",
        "Model hash": settings["bundle"][:10],
        "Model": settings["base"],
    }
    if settings["image_strength"] is not None:
        values["Denoising strength"] = settings["image_strength"]
    if settings.get("controlnet"):  # pictures of older versions say nothing of it
        values["ControlNet 0"] = f"Model: {settings['controlnet']}, Weight: {settings['control_scale']}"
    if hashes := [f"{token}: {concept['sha256'][:12]}" for token, concept in settings["concepts"].items()]:
        values["Lora hashes"] = ", ".join(hashes)
    # pictures of older versions name none
    if hashes := [f"{word}: {sha256[:12]}" for word, sha256 in settings.get("embeddings", {}).items()]:
        values["TI hashes"] = ", ".join(hashes)
    values["Version"] = f"{_PROGRAM} {settings['version']}"
    return "\n".join([*lines, ", ".join(f"{name}: {_quoted(value)}" for name, value in values.items())])


def save(picture: Image, path: Path | str, settings: Settings | None = None) -> None:
    """Write a picture file, whole or not at all, in the format of its name.

    Raises:
        PictureError: the name ends in no format that is written.
        PerfusionError: the file cannot be written.
    """
    path = Path(path)
    picture_format = FORMATS.get(path.suffix.lower())
    if picture_format is None:
        raise PictureError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(FORMATS)}.")
    with writing(path) as file:
        write(picture, file, picture_format, settings)


def write(
    picture: Image, file: IO[bytes], picture_format: str, settings: Settings | None = None, quality: int = 95
) -> None:
    """Encode a picture as "PNG", "JPEG" or "WEBP", with its settings and the mark of this program."""
    from PIL.PngImagePlugin import PngInfo

    software = f"{_PROGRAM} {__version__}"
    if picture_format != "PNG":
        picture.save(file, format=picture_format, exif=_exif(software, settings), quality=quality)
        return
    chunks = PngInfo()
    chunks.add_text("Software", software)
    if settings is not None:
        chunks.add_text("parameters", parameters_text(settings))
        chunks.add_text(_KEY, _as_json(settings))
    picture.save(file, format="PNG", pnginfo=chunks)


def is_marked(picture: Image) -> bool:
    """Whether a picture's file was written by `write`."""
    software = picture.info.get("Software") or picture.getexif().get(_SOFTWARE)
    return str(software).startswith(f"{_PROGRAM} ")


def read_settings(source: Path | str | IO[bytes]) -> dict[str, Any] | None:
    """The settings that a picture file carries; None where it carries none of ours. Nothing is decoded.

    Pillow bounds the text of a PNG before it inflates it.

    Raises:
        PictureError: it is no picture, or its settings are damaged or of a later version.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as picture:
            text = picture.info.get(_KEY) or picture.getexif().get(_DESCRIPTION)
            ours = is_marked(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"The picture cannot be read, expected a PNG, JPEG or WebP file: {error}."
        ) from error
    if not ours or not text:
        return None
    try:
        settings = json.loads(text)
        known = settings["format"] == _FORMAT
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PictureError(
            "The settings in this picture are damaged. Ask for the picture again, as a file."
        ) from error
    if not known:
        raise PictureError(
            f"The settings in this picture are of format {settings['format']!r}, expected {_FORMAT}. "
            "Update perfusion-edge."
        )
    return dict(settings)


def _exif(software: str, settings: Settings | None) -> bytes:
    from PIL.Image import Exif

    exif = Exif()
    exif[_SOFTWARE] = software
    bare = bytes(exif.tobytes())
    if settings is None:
        return bare
    exif[_DESCRIPTION] = _as_json(settings)
    comment = _UTF16 + parameters_text(settings).encode("utf-16-be")
    exif[_EXIF_IFD] = {_USER_COMMENT: comment}
    encoded = _undefined(bytes(exif.tobytes()), len(comment))
    if len(encoded) > _MOST_EXIF:
        _log.warning(
            "the settings are too long for this kind of picture and are left out; a PNG has room for them"
        )
        return bare
    return encoded


def _undefined(exif: bytes, length: int) -> bytes:
    """Exif data whose user comment is of the type UNDEFINED, as the standard has it. Pillow writes BYTE, which piexif,
    and with it A1111's web UI and sd-prompt-reader, does not read."""
    byte, undefined = (struct.pack(">HHL", _USER_COMMENT, kind, length) for kind in (_BYTE, _UNDEFINED))
    return exif.replace(byte, undefined, 1)


def _by_name(changes: Mapping[str, float] | SettingChanges | ConceptSettings) -> dict[str, Any]:
    return asdict(changes) if isinstance(changes, ConceptSettings) else dict(changes)


def _concepts(runtime: Runtime, prompt: str, request: Request) -> dict[str, Any]:
    from perfusion.concept.prompt_syntax import parse_prompt
    from perfusion.concept.words import named

    concepts = runtime.concepts
    parsed, changes = parse_prompt(prompt, concepts, request.prompt_syntax), request.settings[0]
    return {
        token: {
            "sha256": concept_hash(concepts[token]),
            "superclass": concepts[token].superclass,
            **asdict(runtime.set_concept(token)),
            **_by_name(changes.get(token, {})),
            **parsed.changes.get(token, {}),
        }
        for token in named(parsed.text.text, concepts)
    }


def _embeddings(runtime: Runtime, prompt: str, request: Request) -> dict[str, str]:
    """The SHA-256 of the files of the embeddings that prompt and negative prompt name, by their words."""
    from perfusion.concept.prompt_syntax import parse_prompt

    parsed = (
        parse_prompt(text, runtime.concepts, request.prompt_syntax)
        for text in (prompt, request.negative_prompts[0])
    )
    embeddings = [embedding for each in parsed for embedding in runtime.embeddings.named(each.text.text)]
    return {embedding.word: embedding.sha256 for embedding in embeddings}


def _regions(regions: Any) -> Any:
    if regions is None or isinstance(regions, str):
        return regions
    from perfusion.picture_input import mask_of, open_picture

    return [
        {
            "word": region.word,
            "box": region.box and list(region.box),
            "mask": None if region.mask is None else _picture_hash(mask_of(open_picture(region.mask))),
        }
        for region in regions
    ]


def _picture_hash(picture: Image) -> str:
    return hashlib.sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()


def _hash_of(value: Any) -> str:
    return hashlib.sha256(_as_json(value).encode()).hexdigest()


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(char in text for char in ",\n:") else text
