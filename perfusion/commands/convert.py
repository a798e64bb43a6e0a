"""perfusion-convert: a concept file in another storage or inside a picture, or one made of another program's file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.commands import parser, run

if TYPE_CHECKING:
    from perfusion.concept import Concept

NAME = "perfusion-convert"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _convert(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    made = parser(
        NAME,
        "Write a concept in another storage or as a picture card, or make one of a textual inversion or of a "
        "checkpoint of perfusion-pytorch or Key-Locked-Rank-One-Editing.",
    )
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--concept", type=Path, metavar="FILE", help="a concept file or a card")
    source.add_argument(
        "--textual-inversion", type=Path, metavar="FILE", help="learned embeddings (.safetensors, .pt, .bin)"
    )
    source.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint of another implementation (.pt, .ckpt)"
    )
    made.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="concept file to write, or card (.png)"
    )
    made.add_argument("--storage", default="float16", choices=("float16", "float32", "int8"))
    made.add_argument("--no-keys", action="store_true", help="leave the keys out; the runtime derives them")
    made.add_argument(
        "--picture", type=Path, metavar="FILE", help="for a card: the picture to carry the concept"
    )
    foreign = made.add_argument_group("for files of other programs")
    foreign.add_argument("--superclass", help='what kind of thing it is: "cat", "teddy bear"')
    foreign.add_argument(
        "--model", type=Path, metavar="DIR", help="its base model (default: the embedded pocket model)"
    )
    foreign.add_argument(
        "--token", default="", help="the concept's word (default: the file's, or the superclass)"
    )
    foreign.add_argument(
        "--captions", type=Path, metavar="FILE", help="captions for the second moment, one a line"
    )
    foreign.add_argument(
        "--gated", action="store_true", help="a textual inversion with bias and strength, a little less exact"
    )
    foreign.add_argument(
        "--position", type=int, metavar="N", help="for a checkpoint with targets by position: the one to take"
    )
    made.add_argument("--json", action="store_true", help="print what was written as JSON")
    return made


def _convert(args: argparse.Namespace) -> int:
    concept = _read(args) if args.concept else _import(args)
    concept.save(args.output, args.storage, keys=not args.no_keys, picture=args.picture)
    size = args.output.stat().st_size
    if args.json:
        facts = {
            "output": str(args.output), "bytes": size, "token": concept.token, "superclass": concept.superclass,
            "base": concept.base, "storage": args.storage, "bias": concept.bias,
            "temperature": concept.temperature, "training": dict(concept.training),
        }  # fmt: skip
        print(json.dumps(facts))
    else:
        print(
            f"{args.output}: {concept.token} for a {concept.superclass}, {args.storage}; {size / 1000:.1f} kB"
        )
    return 0


def _read(args: argparse.Namespace) -> Concept:
    """The concept of `--concept`, refusing options that would have no effect on it."""
    from perfusion.concept import Concept
    from perfusion.errors import RequestError

    for name in ("superclass", "model", "token", "captions", "gated", "position"):
        if getattr(args, name) not in (None, "", False):
            raise RequestError(
                f"--{name} is for files of other programs; a concept file says all that itself."
            )
    return Concept.load(args.concept)


def _import(args: argparse.Namespace) -> Concept:
    """A concept made of a foreign file with its base model."""
    from perfusion.errors import RequestError

    if not args.superclass:
        raise RequestError(
            'The file does not say what kind of thing it shows. Give it with --superclass, such as "cat".'
        )
    from perfusion.base import load_base
    from perfusion.training.interchange import ImportOptions, from_checkpoint, from_textual_inversion

    options = ImportOptions(
        superclass=args.superclass, token=args.token, captions=args.captions, gated=args.gated,
        position=args.position,
    )  # fmt: skip
    base = load_base(args.model)
    if args.checkpoint:
        return from_checkpoint(args.checkpoint, base, options)

    def say(line: str) -> None:
        if not args.quiet:
            print(f"{NAME}: {line}", file=sys.stderr, flush=True)

    return from_textual_inversion(args.textual_inversion, base, options, say)


if __name__ == "__main__":
    sys.exit(main())
