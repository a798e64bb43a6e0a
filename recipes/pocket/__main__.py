"""The recipe of the embedded model: python -m recipes.pocket train --work DIR

One command trains what is not trained yet and continues where it was stopped:
the autoencoder, the UNet with the text encoder, the scorer of pictures, then the files that ship.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from perfusion.commands import parser, run

NAME = "python -m recipes.pocket"
SHIPS = 2
"""The edition that is the embedded model."""


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, __doc__ or "")
    parts = made.add_subparsers(dest="part", required=True, metavar="PART")
    sprites = parts.add_parser(
        "sprites", help="fetch the openly licensed pictures and build the atlases anew"
    )
    sprites.add_argument("--sources", type=Path, default=Path("sprite-sources"), metavar="DIR")
    subjects = parts.add_parser("subjects", help="compose the held-out subjects of examples/subjects")
    subjects.add_argument("--output", type=Path, required=True, metavar="DIR")
    subject = parts.add_parser("subject", help="compose the pictures of one held-out noun and style")
    subject.add_argument("--noun", required=True)
    subject.add_argument("--style", default="emojione", choices=("emojione", "fxemoji"))
    subject.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, text in (
        ("train", "train whatever is not trained yet, then pack"),
        ("vae", "train the autoencoder"),
        ("unet", "train the UNet and the text encoder"),
        ("scorer", "train the scorer of pictures; needs nothing"),
    ):
        part = parts.add_parser(name, help=text)
        part.add_argument(
            "--work", type=Path, required=True, metavar="DIR", help="checkpoints and sample sheets"
        )
        part.add_argument(
            "--minutes", type=float, default=170, help="stop, ready to be continued, after this long"
        )
        part.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        part.add_argument(
            "--threads",
            type=int,
            default=0,
            metavar="N",
            help="CPU threads (default: all); a training goes on exactly with as many",
        )
        part.add_argument("--vae-steps", type=int, metavar="N")
        part.add_argument("--unet-steps", type=int, metavar="N")
        part.add_argument("--scorer-steps", type=int, metavar="N")
    pack = parts.add_parser("pack", help="write the model folder and its bundle from the checkpoints")
    pack.add_argument("--work", type=Path, required=True, metavar="DIR")
    for name in ("train", "vae", "unet"):
        parts.choices[name].add_argument(
            "--start-from", type=Path, metavar="DIR",
            help="a model that `pack` wrote, to begin with where there is no checkpoint yet",
        )  # fmt: skip
    for name in ("train", "vae", "unet", "scorer", "pack"):
        parts.choices[name].add_argument(
            "--edition", type=int, default=SHIPS, choices=(1, 2), help=f"{SHIPS} is what ships"
        )
    for part in (parts.choices["train"], pack):
        part.add_argument(
            "--output",
            type=Path,
            metavar="DIR",
            help=f"default: the embedded model's own folder, for edition {SHIPS}",
        )
        part.add_argument(
            "--scorer-output",
            type=Path,
            metavar="DIR",
            help=f"default: the scorer's own folder, for edition {SHIPS}",
        )
    samples = parts.add_parser("samples", help="train the sample concepts of a model that is packed")
    samples.add_argument("--model", type=Path, metavar="DIR", help="default: the embedded model")
    sheet = parts.add_parser(
        "sheet", help="draw the fixed prompts, two seeds each, with the model as it ships"
    )
    sheet.add_argument("--output", type=Path, required=True, metavar="FILE")
    return made


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _body(_parser().parse_args(argv)))


def _body(args: argparse.Namespace) -> int:
    if not args.quiet:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        for name in ("perfusion", "recipes"):
            logging.getLogger(name).setLevel(logging.INFO)
    if args.part == "sprites":
        _build_atlases(args.sources)
        return 0
    if args.part in ("subject", "subjects"):
        from recipes.pocket.subjects import save, save_all

        if args.part == "subjects":
            save_all(args.output)
        else:
            save(args.noun, args.style, args.output)
        return 0
    if args.part == "samples":
        from perfusion.embedded import model_path
        from recipes.pocket.samples import train_samples

        train_samples(args.model or model_path())
        return 0
    if args.part == "sheet":
        from recipes.pocket.sheet import draw_sheet

        draw_sheet(args.output)
        return 0
    if args.part == "pack" or (_train(args) and args.part == "train" and _has_folder(args)):
        _pack(args)
    return 0


def _has_folder(args: argparse.Namespace) -> bool:
    """Whether it is known where the model goes; the log says so where it is not."""
    known = args.edition == SHIPS or args.output is not None
    if not known:
        logging.getLogger("recipes").info(
            "trained; pack --edition %d --output DIR writes the model", args.edition
        )
    return known


def _build_atlases(sources: Path) -> None:
    from recipes.pocket.drawings import QUALITY, build_drawings
    from recipes.pocket.sprites import DATA, HELD_OUT_STYLES, TRAINING_STYLES, build_atlas

    build_atlas(TRAINING_STYLES, sources).save(DATA / "sprites.webp")
    build_drawings(sources).save(DATA / "sprites2.webp", quality=QUALITY)
    build_atlas(HELD_OUT_STYLES, sources).save(DATA / "held_out.webp")


def _pack(args: argparse.Namespace) -> None:
    from perfusion.embedded import model_path, scorer_path
    from perfusion.errors import ModelError
    from recipes.pocket.editions import EDITIONS
    from recipes.pocket.recipe import pack, pack_scorer

    if args.edition != SHIPS and not args.output:
        raise ModelError(f"Only edition {SHIPS} has a folder of its own; name one for this with --output.")
    edition = EDITIONS[args.edition]
    pack(args.work, edition, args.output or model_path())
    if args.edition == SHIPS or args.scorer_output:
        pack_scorer(args.work, edition, args.scorer_output or scorer_path())


def _train(args: argparse.Namespace) -> bool:
    """The trainings asked for; True when everything is trained to the end."""
    import time

    import torch

    from perfusion.training.placement import Placement
    from recipes.pocket.editions import EDITIONS
    from recipes.pocket.recipe import run_scorer, run_unet, run_vae
    from recipes.pocket.weights import read_packed

    if args.threads:
        torch.set_num_threads(args.threads)
    device, edition = Placement.pick(args.device).device.type, EDITIONS[args.edition]
    args.work.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    done, packed = True, None
    if args.part != "scorer" and args.start_from:
        packed = read_packed(args.start_from, edition.family)
    if args.part in ("train", "vae"):
        vae = replace(edition.vae, steps=args.vae_steps or edition.vae.steps)
        done = run_vae(args.work, edition, vae, args.minutes, device, packed)
    if done and args.part in ("train", "unet"):
        unet = replace(edition.unet, steps=args.unet_steps or edition.unet.steps)
        done = run_unet(args.work, edition, unet, (ends - time.monotonic()) / 60, device, packed)
    if done and args.part in ("train", "scorer"):
        scorer = replace(edition.scorer, steps=args.scorer_steps or edition.scorer.steps)
        done = run_scorer(args.work, edition, scorer, (ends - time.monotonic()) / 60, device)
    return done


if __name__ == "__main__":
    sys.exit(main())
