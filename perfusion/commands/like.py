"""perfusion-generate --like: what a picture file says of its drawing, as arguments of the command."""

import argparse
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.concept.settings import DEFAULT_GATES, SETTINGS
from perfusion.errors import ConceptError, RequestError

if TYPE_CHECKING:
    from perfusion.runtime import Runtime

__all__ = ["add_like", "follow", "tell_differences"]

_log = logging.getLogger(__name__)

_ARGUMENTS: Mapping[str, tuple[str, Any]] = {
    "negative_prompt": ("negative_prompt", ""),
    "scheduler": ("scheduler", None),
    "steps": ("num_inference_steps", None),
    "guidance_scale": ("guidance_scale", None),
    "guidance_rescale": ("guidance_rescale", None),
    "width": ("width", None),
    "height": ("height", None),
    "seed": ("seed", 0),
    "whole": ("whole", None),
    "lock": ("lock", None),
    "gates": ("gates", DEFAULT_GATES),
    "image_strength": ("image_strength", None),
    "control_scale": ("control_scale", None),
    "controlnet": ("controlnet", None),
}
"""By the argument the setting that it is taken from, and its default."""

_MACHINE = ("version", "bundle", "provider", "provider_version", "precision", "threads", "exact")
_CONCEPT_FILES = (".safetensors", ".png")


def add_like(add: Callable[..., object]) -> None:
    """The options of settings in picture files."""
    add(
        "--like", type=Path, metavar="PICTURE",
        help="draw this picture again, by the settings in its file; other options take the place of its own",
    )  # fmt: skip
    add("--library", type=Path, metavar="DIR", help="where --like looks for concepts and embeddings")
    add("--no-settings", action="store_true", help="write no prompt and no settings into the picture's file")


def follow(args: argparse.Namespace) -> dict[str, Any]:
    """Fill the arguments from the picture of --like, where they have their defaults; its settings.

    Raises:
        RequestError: it carries no settings, or a concept, picture or mask of it is not at hand.
    """
    from perfusion.runtime.picture_settings import read_settings

    settings = read_settings(args.like)
    if settings is None:
        raise RequestError(
            f"{args.like} carries no settings of perfusion-edge: another program wrote it, or it was saved again "
            "by one that drops them. Give --prompt."
        )
    args.prompts = args.prompts or [settings["prompt"]]
    for name, (setting, default) in _ARGUMENTS.items():
        if getattr(args, name) == default:
            setattr(args, name, settings.get(setting, default))
    args.plain_prompts = args.plain_prompts or settings["prompt_syntax"] == "plain"
    for name in ("image", "mask", "control_image"):
        if settings.get(name) and getattr(args, name) is None:
            option, noun = name.replace("_", "-"), name.replace("_", " ")
            raise RequestError(f"{args.like} was drawn with a {noun} of its own. Give it with --{option}.")
    _follow_regions(args, settings["regions"])
    args.concepts = _concepts(args, settings["concepts"])
    args.embeddings = _embeddings(args, settings.get("embeddings", {}))
    return settings


def tell_differences(settings: Mapping[str, Any], runtime: "Runtime") -> None:
    """Warn of what differs here from where a picture was drawn, so that its pixels may."""
    from perfusion.runtime.picture_settings import settings_of

    here = settings_of(runtime, "")
    for name in _MACHINE:
        if settings.get(name) != here[name]:
            _log.warning("the %s of the picture is %s, and here it is %s, so its pixels may differ",
                         name.replace("_", " "), settings.get(name), here[name])  # fmt: skip


def _follow_regions(args: argparse.Namespace, regions: Any) -> None:
    if args.regions or args.no_regions:
        return
    if regions is None:
        args.no_regions, args.whole = True, None
    elif not isinstance(regions, str):
        if any(region["mask"] for region in regions):
            raise RequestError(f"{args.like} has regions with masks. Give them with --region.")
        args.regions = [(region["word"], region["box"] and tuple(region["box"]), None) for region in regions]


def _concepts(args: argparse.Namespace, concepts: Mapping[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The concepts of a picture, by their hashes, under their tokens and with their settings."""
    missing = {concept["sha256"]: (token, concept) for token, concept in concepts.items()}
    matches: list[tuple[Path, dict[str, Any]]] = []
    for digest, path in _candidates(args):
        if digest in missing:
            token, concept = missing.pop(digest)
            matches.append((path, {"token": token, **{name: concept[name] for name in SETTINGS}}))
    if missing:
        raise RequestError(
            "The picture has concepts that are not at hand: "
            + ", ".join(f"{token} (SHA-256 {digest[:12]}…)" for digest, (token, _) in missing.items())
            + ". Give their files with --concept, or the folder that they are in with --library."
        )
    return matches


def _embeddings(args: argparse.Namespace, hashes: Mapping[str, str]) -> list[tuple[Path, str | None]]:
    """The embeddings of a picture, by their hashes, under their words."""
    paths = [path for path, _ in args.embeddings]
    paths += [path for path in _library(args) if path.suffix.lower() == ".safetensors"] if hashes else []
    by_hash = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path for path in reversed(paths) if _is_small(path)
    }
    if missing := [
        f"{word} (SHA-256 {sha256[:12]}…)" for word, sha256 in hashes.items() if sha256 not in by_hash
    ]:
        raise RequestError(
            f"The picture has embeddings that are not at hand: {', '.join(missing)}. Give their files with "
            "--embedding, or the folder that they are in with --library."
        )
    matches: list[tuple[Path, str | None]] = [(by_hash[sha256], word) for word, sha256 in hashes.items()]
    return matches + [(path, word) for path, word in args.embeddings if path not in dict(matches)]


def _is_small(path: Path) -> bool:
    """Whether a file may be an embedding; others are not worth hashing."""
    from perfusion.concept.embedding_file import MOST_BYTES

    return path.is_file() and path.stat().st_size <= MOST_BYTES


def _library(args: argparse.Namespace) -> list[Path]:
    """All files in the folder of --library."""
    if args.library is None:
        return []
    if not args.library.is_dir():
        raise RequestError(f"The library {args.library} is no folder, expected one with concept files.")
    return sorted(args.library.rglob("*"))


def _candidates(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    from perfusion.bundle.reader import read_bundle
    from perfusion.concept.concept_file import Concept
    from perfusion.embedded import bundle_path
    from perfusion.hub import local_bundle, local_concept
    from perfusion.runtime.picture_settings import concept_hash

    bundle = read_bundle(local_bundle(args.bundle or bundle_path()), verify=False)
    paths = [bundle.find_concept(local_concept(path)) for path, _ in args.concepts]
    paths += [path for path in _library(args) if path.suffix.lower() in _CONCEPT_FILES]
    for path in [*paths, *bundle.samples.values()]:
        try:
            yield concept_hash(Concept.load(path)), path
        except ConceptError:  # a picture, or a file of something else
            continue
