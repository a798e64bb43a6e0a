"""Models, bundles and concepts by their names on the hub: ``owner/name``, ``owner/name@revision``, ``hf://…``.

A path that exists is a path, whatever it looks like. Of what is named, only the files that are needed are fetched, by
huggingface_hub: with its token, its cache, its offline switch, and going on where a fetch broke off.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perfusion.errors import HubError
from perfusion.files import cache_folder

__all__ = [
    "HubName",
    "hub_name",
    "local_bundle",
    "local_concept",
    "local_controlnet",
    "local_lora",
    "local_model",
    "local_settings",
    "local_shared",
    "local_vae",
    "origin_of",
    "parse_name",
]

logger = logging.getLogger(__name__)

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(
    rf"(?P<mark>hf:/{{1,2}}(?:models/)?)?(?P<repo>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+?))?(?:/(?P<file>[^@]+))?"
)
_FILES = (".safetensors", ".png", ".json", ".onnx", ".ckpt", ".pt", ".bin")
_BUNDLE = ("bundle.json", "*.json", "*.onnx", "*.onnx.data", "*.safetensors", "concepts/*")
_INDEX = "model_index.json"
_SETTINGS = (_INDEX, "perfusion.json", "captions.txt", "*/*.json", "*/*.txt")
_MODEL = (*_SETTINGS, "*/*.safetensors")
_VAE = ("config.json", "vae/config.json", "diffusion_pytorch_model*.safetensors", "vae/*.safetensors")
_CONTROLNET = ("config.json", "*.safetensors")
_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32)(?=[.-])|(?<=index)\.(fp16|bf16|fp32)(?=\.json)")
_SPARE = 256 << 20
"""Bytes that a fetch leaves free on the disk."""


@dataclass(frozen=True, kw_only=True)
class HubName:
    """What a name says: a repository, and perhaps a revision and one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}{f'/{self.file}' if self.file else ''}"


def hub_name(name: str | Path) -> HubName | None:
    """What ``name`` stands for on the hub; None for a path, above all for one that exists.

    Without ``hf://`` it must be an owner and a name, and no name of a file.
    """
    if Path(name).exists():
        return None
    return parse_name(name.as_posix() if isinstance(name, Path) else name)


def parse_name(text: str) -> HubName | None:
    """The same without a look at the disk."""
    match = _NAME.fullmatch(text)
    if match is None or (not match["mark"] and (match["file"] or text.endswith(_FILES))):
        return None
    return HubName(repo=match["repo"], revision=match["revision"], file=match["file"])


def local_model(path: str | Path) -> Path:
    """The path of a base model: a diffusers folder, in the hub's cache where it is named by its id, or one file.

    Raises:
        HubError: it is not there, cannot be reached, or the disk is too small; also below.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    if name.file or not _names(name, [_INDEX]):
        return _fetch_file(_with_file(name, "models"))
    return _fetch(name, _MODEL)


def local_settings(path: str | Path) -> Path:
    """The folder of a base model's settings and tokenizers, without its weights."""
    name = hub_name(path)
    return Path(path) if name is None else _fetch(name, _SETTINGS)


def local_vae(path: str | Path) -> Path:
    """A VAE's file or folder, or the folder of a model with one."""
    name = hub_name(path)
    if name is None:
        return Path(path)
    return _fetch_file(name) if name.file else _fetch(name, _VAE)


def local_lora(path: str | Path) -> Path:
    """A LoRA's file: the one that is named, or the only one at the top of its repository."""
    name = hub_name(path)
    return Path(path) if name is None else _fetch_file(_with_file(name, "LoRAs"))


def local_bundle(path: str | Path) -> Path:
    """A bundle's folder. What is fetched are files and no links: no runtime follows a graph's link to its weights."""
    name = hub_name(path)
    if name is None:
        return Path(path)
    place = (
        cache_folder() / "hub" / name.repo.replace("/", "--") / (name.revision or "main").replace("/", "--")
    )
    return _fetch(name, _BUNDLE, place)


def local_concept(path: str | Path) -> Path:
    """A concept's file: the one that is named, or the only one at the top of its repository."""
    name = hub_name(path)
    return Path(path) if name is None else _fetch_file(_with_file(name, "concepts", "*.png"))


def local_shared(path: str | Path) -> Path:
    """A bundle's folder or a concept's file, whichever a repository holds."""
    name = hub_name(path)
    if name is not None and not name.file and _names(name, _BUNDLE[:1]):
        return local_bundle(path)
    return local_concept(path)


def _with_file(name: HubName, kind: str, *further: str) -> HubName:
    """The name with its file: the only .safetensors at the top of the repository, or else of `further` patterns."""
    if name.file:
        return name
    names = [file for file in _names(name, ["*.safetensors", *further]) if "/" not in file]
    files = [file for file in names if file.endswith(".safetensors")] or names
    if len(files) != 1:
        there = ", ".join(files) or "none"
        raise HubError(
            f"{name} holds {len(files)} files that may be {kind} ({there}). Name one: hf://{name}/FILE."
        )
    return replace(name, file=files[0])


def local_controlnet(path: str | Path) -> Path:
    """The path of a ControlNet: a diffusers folder, in the hub's cache where it is named by its id, or one file."""
    name = hub_name(path)
    if name is None:
        return Path(path)
    return _fetch_file(name) if name.file else _fetch(name, _CONTROLNET)


def _fetch_file(name: HubName) -> Path:
    """One file, in the hub's cache."""
    assert name.file is not None
    path = _fetch(name, [name.file]) / name.file
    if not path.is_file():
        raise HubError(f"{name}: the hub cannot be reached, and the cache has not this file.")
    return path


def origin_of(path: Path) -> str | None:
    """``owner/name@commit`` of what lies in the hub's cache, None for any other path."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            repo = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
            return f"{repo}@{folder.name}"
    return None


def _fetch(name: HubName, patterns: Sequence[str], place: Path | None = None) -> Path:
    """The folder with the files of a repository that fit some patterns."""
    try:
        files = _needed(_listed(name, patterns, place))
    except _UnreachableError:
        return _cached(name, patterns, place)
    names = [file.filename for file in files]
    if not names or (patterns is _BUNDLE and _BUNDLE[0] not in names):
        raise HubError(f"{name} has no file like {', '.join(patterns[:3])}. Is it what was meant?")
    missing = [file for file in files if file.will_download]
    if missing:
        size = sum(file.file_size for file in missing)
        free = _check_room(name, size, place)
        count = f"{len(missing)} file{'s' if len(missing) > 1 else ''}"
        logger.warning(
            "%s is no path here; fetching %s, %.1f MB, from the hub; %.0f GB are free",
            name, count, size / 1e6, free / 1e9,
        )  # fmt: skip
    return Path(_ask(name, allow_patterns=names, local_dir=place))


def _cached(name: HubName, patterns: Sequence[str], place: Path | None = None) -> Path:
    """The folder of what was fetched before, told by its first file: huggingface_hub would miss what was left out."""
    return Path(_ask(name, allow_patterns=patterns[0], local_dir=place, local_files_only=True))


def _names(name: HubName, patterns: Sequence[str]) -> list[str]:
    """The files of some patterns in order, by the hub or by the cache."""
    try:
        return sorted(file.filename for file in _listed(name, patterns))
    except _UnreachableError:
        folder = _cached(name, patterns)
        paths = [path for pattern in patterns for path in folder.rglob(pattern)]
        return sorted(path.relative_to(folder).as_posix() for path in paths)


def _listed(name: HubName, patterns: Sequence[str], place: Path | None = None) -> list[Any]:
    """What the hub has of some patterns, with sizes; from the cache where the hub is not to be asked."""
    files: list[Any] = _ask(name, allow_patterns=list(patterns), local_dir=place, dry_run=True)
    return files


def _needed(files: Iterable[Any]) -> list[Any]:
    """Without the parts that no concept needs, and without a second copy of weights in another precision."""
    listed = list(files)
    names = {file.filename for file in listed}

    def needed(file: str) -> bool:
        part, slash, _ = file.partition("/")
        if slash and f"{part}/" != "concepts/" and part not in _PARTS and _INDEX in names:
            return False
        plain = _VARIANT.sub("", file)
        return plain == file or plain not in names

    return [file for file in listed if needed(file.filename)]


def _check_room(name: HubName, size: int, place: Path | None) -> int:
    """The bytes that are free where it will lie. Raises `HubError` where they are too few."""
    from huggingface_hub import constants

    folder = (place or Path(constants.HF_HUB_CACHE)).absolute()
    disk = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(disk).free
    if free < size + _SPARE:
        raise HubError(
            f"{name}: {size / 1e9:.1f} GB are to be fetched, and {disk} has {free / 1e9:.1f} GB free. Make room, or "
            "set HF_HOME to a larger disk."
        )
    return free


class _UnreachableError(HubError):
    """The hub gives no answer, or is switched off: what is in the cache may do."""


def _ask(name: HubName, **options: Any) -> Any:
    """huggingface_hub's `snapshot_download`, its errors as one sentence."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ModuleNotFoundError as error:
        raise HubError(
            f"{name} is no path here, and the hub needs a package: install perfusion-edge[hub]."
        ) from error
    where = "No such folder is here, and the hub"
    try:
        return snapshot_download(name.repo, revision=name.revision, **options)
    except Exception as error:  # of the transport, of the repository, of the disk
        cause = error.__cause__ or error
        if isinstance(cause, errors.GatedRepoError):
            sentence = "its owner asks for consent. Give it on its page, then log in with hf auth login."
        elif isinstance(cause, errors.RepositoryNotFoundError):
            sentence = f"{where} knows no such repository for you. Check the name; a private one needs hf auth login."
        elif isinstance(cause, errors.HfHubHTTPError):
            sentence = f"{where} answers: {(str(cause).strip().splitlines() or ['nothing'])[0].rstrip('.')}."
        else:
            raise _UnreachableError(
                f"{name}: {where} cannot be reached or is switched off (HF_HUB_OFFLINE); the cache has nothing of it."
            ) from error
        raise HubError(f"{name}: {sentence}") from error
