"""perfusion-convert: a concept file in another storage or inside a picture, or one made of another program's file."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.base.model_arguments import MODEL_ARGUMENTS, add_model_arguments, model_options
from perfusion.commands import check_outputs, parser, run
from perfusion.concept.settings import FILE_SETTINGS
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from perfusion.concept.concept_file import Concept

NAME = "perfusion-convert"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _convert(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        NAME,
        "Write a concept in another storage or as a picture card, or make one of a textual inversion or of a "
        "checkpoint of perfusion-pytorch or Key-Locked-Rank-One-Editing.",
    )
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--concept", type=Path, metavar="FILE", help="a concept file or a card")
    source.add_argument(
        "--textual-inversion", type=Path, metavar="FILE", help="learned embeddings (.safetensors, .pt, .bin)"
    )
    source.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint of another implementation (.pt, .ckpt)"
    )
    command.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="concept file to write, or card (.png)"
    )
    command.add_argument(
        "--storage",
        choices=("float16", "float32", "int8"),
        help="(default: a concept file's own; float16 for files of other programs)",
    )
    command.add_argument(
        "--token", default="", help="the concept's word (default: the file's, or the superclass)"
    )
    for name in FILE_SETTINGS:
        command.add_argument(
            f"--{name}", type=float, metavar=name[0].upper(), help="the file's default from now on"
        )
    command.add_argument(
        "--no-keys", action="store_true", help="leave the keys out; the runtime derives them"
    )
    command.add_argument(
        "--picture", type=Path, metavar="FILE", help="for a card: the picture to carry the concept"
    )
    foreign = command.add_argument_group("for files of other programs")
    foreign.add_argument("--superclass", help='what kind of thing it is: "cat", "teddy bear"')
    add_model_arguments(foreign)
    foreign.add_argument(
        "--captions", type=Path, metavar="FILE", help="captions for the second moment, one a line"
    )
    foreign.add_argument(
        "--gated", action="store_true", help="a textual inversion with bias and strength, a little less exact"
    )
    foreign.add_argument(
        "--position", type=int, metavar="N", help="for a checkpoint with targets by position: the one to take"
    )
    command.add_argument("--json", action="store_true", help="print what was written as JSON")
    return command


_FOREIGN = ("superclass", *MODEL_ARGUMENTS, "captions", "gated", "position")
"""Options for files of other programs."""
_INVERSION, _CHECKPOINT = ("captions", "gated"), ("position",)
"""Those that only one kind of them takes."""


def _convert(args: argparse.Namespace) -> int:
    from perfusion.concept.concept_file import storage_of
    from perfusion.hub import local_concept

    sources = {"--textual-inversion": args.textual_inversion, "--checkpoint": args.checkpoint}
    args.concept = args.concept and local_concept(args.concept)
    # a concept or a picture may become the card it was, and nothing else what it is made of
    check_outputs([("--output", args.output)], [*sources.items(), ("--captions", args.captions)])
    settings = {name: getattr(args, name) for name in FILE_SETTINGS}
    concept = replace(
        _opened(args) if args.concept else _import(args),
        **{name: value for name, value in settings.items() if value is not None},
    )
    storage = args.storage or (storage_of(args.concept.read_bytes()) if args.concept else "float16")
    concept.save(args.output, storage, keys=not args.no_keys, picture=args.picture or _own_picture(args))
    size = args.output.stat().st_size
    if args.json:
        facts = {
            "output": str(args.output), "bytes": size, "token": concept.token, "superclass": concept.superclass,
            "base": concept.base, "storage": storage,
            **{name: getattr(concept, name) for name in FILE_SETTINGS}, "training": dict(concept.training),
        }  # fmt: skip
        print(json.dumps(facts))
    else:
        print(f"{args.output}: {concept.token} for a {concept.superclass}, {storage}; {size / 1000:.1f} kB")
    return 0


def _opened(args: argparse.Namespace) -> Concept:
    """The concept of `--concept`, under another word where one was given."""
    from perfusion.concept.concept_file import Concept

    _refuse(args, _FOREIGN, "is for files of other programs; a concept file says all that itself.")
    concept = Concept.load(args.concept)
    return replace(concept, token=args.token) if args.token else concept


def _own_picture(args: argparse.Namespace) -> Path | None:
    """The card that becomes another card: its picture stays."""
    from perfusion.concept.card import is_card

    if args.concept is None or args.output.suffix.lower() != ".png":
        return None
    with open(args.concept, "rb") as file:
        return args.concept if is_card(file.read(8)) else None


def _refuse(args: argparse.Namespace, names: Sequence[str], reason: str) -> None:
    """Refuse options that would have no effect."""
    for name in names:
        value = getattr(args, name)
        if value or (value == 0 and value is not False):  # 0 is a position
            raise RequestError(f"--{name.replace('_', '-')} {reason}")


def _import(args: argparse.Namespace) -> Concept:
    """A concept made of a foreign file with its base model."""
    if args.checkpoint:
        _refuse(
            args, _INVERSION, "is for textual inversions; a checkpoint has a covariance and gates of its own."
        )
    else:
        _refuse(args, _CHECKPOINT, "is for checkpoints; a textual inversion has no targets by position.")
    if not args.superclass:
        raise RequestError(
            'The file does not say what kind of thing it shows. Give it with --superclass, such as "cat".'
        )
    from perfusion.base.base_model import load_base
    from perfusion.training.interchange import ImportOptions, from_checkpoint, from_textual_inversion

    options = ImportOptions(
        superclass=args.superclass, token=args.token, captions=args.captions, gated=args.gated,
        position=args.position,
    )  # fmt: skip
    base = load_base(args.model, config=args.config, options=model_options(args))
    if args.checkpoint:
        return from_checkpoint(args.checkpoint, base, options)

    def say(line: str) -> None:
        if not args.quiet:
            print(f"{NAME}: {line}", file=sys.stderr, flush=True)

    return from_textual_inversion(args.textual_inversion, base, options, say)


if __name__ == "__main__":
    sys.exit(main())
