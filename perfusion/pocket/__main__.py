"""The recipe of the embedded model: python -m perfusion.pocket train --work DIR

One command trains what is not trained yet and continues where it was stopped:
the autoencoder, its decoder once more, the UNet with the text encoder, then the files that ship.
"""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from perfusion.commands import parser, run

NAME = "python -m perfusion.pocket"


def _parser() -> argparse.ArgumentParser:
    made = parser(NAME, __doc__ or "")
    parts = made.add_subparsers(dest="part", required=True, metavar="PART")
    sprites = parts.add_parser(
        "sprites", help="fetch the openly licensed pictures and build the atlases anew"
    )
    sprites.add_argument("--sources", type=Path, default=Path("sprite-sources"), metavar="DIR")
    subject = parts.add_parser("subject", help="compose the pictures of a held-out subject, as in examples/")
    subject.add_argument("--noun", required=True)
    subject.add_argument("--style", default="emojione", choices=("emojione", "fxemoji"))
    subject.add_argument("--output", type=Path, required=True, metavar="DIR")
    for name, text in (
        ("train", "train whatever is not trained yet, then pack"),
        ("vae", "train the autoencoder"),
        ("unet", "train the UNet and the text encoder"),
        ("decoder", "sharpen the decoder; needs nothing but the autoencoder"),
        ("scorer", "train a judge of pictures on the same world; nothing else needs it"),
    ):
        part = parts.add_parser(name, help=text)
        part.add_argument(
            "--work", type=Path, required=True, metavar="DIR", help="checkpoints and sample sheets"
        )
        part.add_argument(
            "--minutes", type=float, default=170, help="stop, ready to be continued, after this long"
        )
        part.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        part.add_argument("--threads", type=int, default=0, metavar="N", help="CPU threads (default: all)")
        part.add_argument("--vae-steps", type=int, metavar="N")
        part.add_argument("--decoder-steps", type=int, metavar="N")
        part.add_argument("--unet-steps", type=int, metavar="N")
    pack = parts.add_parser("pack", help="write the model folder and its bundle from the checkpoints")
    pack.add_argument("--work", type=Path, required=True, metavar="DIR")
    for part in (parts.choices["train"], pack):
        part.add_argument(
            "--output", type=Path, metavar="DIR", help="default: the embedded model's own folder"
        )
    return made


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(NAME, lambda: _body(_parser().parse_args(argv)))


def _body(args: argparse.Namespace) -> int:
    if not args.quiet:
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        logging.getLogger("perfusion").setLevel(logging.INFO)
    if args.part == "sprites":
        from perfusion.pocket.sprites import DATA, HELD_OUT_STYLES, TRAINING_STYLES, build_atlas

        build_atlas(TRAINING_STYLES, args.sources).save(DATA / "sprites.webp")
        build_atlas(HELD_OUT_STYLES, args.sources).save(DATA / "held_out.webp")
        return 0
    if args.part == "subject":
        from perfusion.pocket.subjects import save

        save(args.noun, args.style, args.output)
        return 0
    from perfusion.pocket import model_path
    from perfusion.pocket.recipe import pack

    if args.part == "pack":
        pack(args.work, args.output or model_path())
        return 0
    if _train(args) and args.part == "train":
        pack(args.work, args.output or model_path())
    return 0


def _train(args: argparse.Namespace) -> bool:
    """The trainings asked for; True when everything is trained to the end."""
    import time

    import torch

    from perfusion.pocket.recipe import run_decoder, run_scorer, run_unet, run_vae
    from perfusion.pocket.train_scorer import ScorerConfig
    from perfusion.pocket.train_unet import UnetConfig
    from perfusion.pocket.train_vae import VaeConfig
    from perfusion.training.train import pick_device

    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device).type
    args.work.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * args.minutes
    if args.part == "scorer":
        return run_scorer(args.work, ScorerConfig(), args.minutes, device)
    done = True
    if args.part in ("train", "vae"):
        config = VaeConfig()
        config = replace(config, steps=args.vae_steps or config.steps)
        done = run_vae(args.work, config, args.minutes, device)
    if done and args.part in ("train", "decoder"):
        config = VaeConfig(decoder_only=True, adam_lr=5e-4, muon_lr=0.008, seed=1)
        config = replace(config, steps=args.decoder_steps or config.steps)
        done = run_decoder(args.work, config, (ends - time.monotonic()) / 60, device)
    if done and args.part in ("train", "unet"):
        unet = UnetConfig()
        unet = replace(unet, steps=args.unet_steps or unet.steps)
        done = run_unet(args.work, unet, (ends - time.monotonic()) / 60, device)
    return done


if __name__ == "__main__":
    sys.exit(main())
