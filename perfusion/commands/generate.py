"""perfusion-generate: draw pictures with a bundle and any number of concepts."""

import argparse
import itertools
import json
import logging
import secrets
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, check_outputs, parser, run, say, told_waits
from perfusion.commands.drawing_arguments import (
    at_least_one,
    concept_argument,
    count_argument,
    embedding_argument,
    memory_argument,
    picture_argument,
    png_argument,
    seed_argument,
)
from perfusion.commands.like import add_like, follow, tell_differences
from perfusion.commands.picture_files import check_replaceable, numbered
from perfusion.commands.provider_arguments import add_provider
from perfusion.commands.region_arguments import add_regions, check_regions, region_masks, regions_of
from perfusion.concept.settings import DEFAULT_GATES, GATES, LOCKS
from perfusion.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from PIL.Image import Image

    from perfusion.runtime import Runtime

_Job = tuple[str, int]
"""A prompt and a seed."""

__all__ = ["main"]

_NAME = "perfusion-generate"
_log = logging.getLogger(__name__)
_MOST_OF_A_GRID = 1000  # they lie in memory together
_RANDOM_SEEDS = 10**6  # short enough to be typed again
_SCHEDULERS = (  # the runtime's; asking it would import numpy before --help is shown
    "ddim", "plms", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "heun", "heun_karras",
    "lcm",
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-generate --help`."""
    return run(_NAME, lambda: _generate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME, "Draw pictures from a prompt, with concepts as words of their own. Needs no torch."
    )
    _add_content(command.add_argument)
    _add_drawing(command.add_argument)
    _add_machine(command.add_argument)
    _add_output(command.add_argument)
    add_like(command.add_argument)
    return command


def _add_content(add: "Callable[..., object]") -> None:
    """What to draw, and with which model and concepts."""
    add(
        "--prompt", action="append", default=[], dest="prompts", metavar="TEXT",
        help='what to draw, such as "a photo of <cat> on a beach" (can be repeated)',
    )  # fmt: skip
    add(
        "--plain-prompts", action="store_true",
        help="brackets, BREAK and <lora:name:strength> in prompts are text; without it (word:1.3), ((word)) and [word] "
        "are weights, BREAK begins a new part, and the tag is the strength of a concept",
    )  # fmt: skip
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="a folder of perfusion-export, or a name on the hub (default: the embedded model)",
    )
    add(
        "--concept",
        type=concept_argument,
        action="append",
        default=[],
        dest="concepts",
        metavar="FILE[:bias=B,temperature=T,strength=S,start=S]",
        help="a concept file, or the name of a sample (school-bus); its token is then a word; token=<dog> gives it "
        "another one (can be repeated)",
    )
    add(
        "--embedding", type=embedding_argument, action="append", default=[], dest="embeddings", metavar="FILE[=WORD]",
        help="a textual inversion as .safetensors; the file's name, or WORD, is then a word of prompts and of the "
        "negative prompt (can be repeated)",
    )  # fmt: skip
    add("--negative-prompt", default="", metavar="TEXT", help="what to move away from")
    add("--image", type=Path, metavar="FILE", help="a picture to draw over, in place of noise alone")
    add(
        "--image-strength",
        type=float,
        metavar="S",
        help="how far to draw over it, to 1 (default: 0.8, with a mask 1)",
    )
    add("--mask", type=Path, metavar="FILE", help="where to draw over it: light is drawn, dark is kept")
    add(
        "--control-image", type=Path, metavar="FILE",
        help="a picture for the bundle's ControlNet, ready to be read: edges, depths, a pose",
    )  # fmt: skip
    add("--control-scale", type=float, metavar="S", help="how much it counts, 0 to 2 (default: 1)")
    add("--controlnet", metavar="NAME", help="which ControlNet of the bundle, where it has several")


def _add_drawing(add: "Callable[..., object]") -> None:
    """How to draw it."""
    add("--scheduler", choices=_SCHEDULERS, help="(default: the bundle's own)")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the bundle's own)")
    add(
        "--guidance-scale",
        type=float,
        metavar="G",
        help="how closely to follow the prompt; 1 is twice as fast",
    )
    add(
        "--guidance-rescale",
        type=float,
        metavar="R",
        help="from 0 to 1: how much of guidance's contrast to take back",
    )
    add("--width", type=int, metavar="PIXELS", help="(default: the bundle's own)")
    add("--height", type=int, metavar="PIXELS", help="(default: the bundle's own)")
    add(
        "--seed", type=seed_argument, default=0, metavar="N|random",
        help="of each prompt's first picture (default: %(default)s)",
    )  # fmt: skip
    add(
        "--count",
        type=count_argument,
        default=1,
        metavar="N",
        help="pictures a prompt, with seeds from --seed on",
    )
    add_regions(add)
    add("--lock", choices=LOCKS, help="where keys come from (default: what the concepts say)")
    add(
        "--gates",
        choices=GATES,
        default=DEFAULT_GATES,
        help="with coordinates a word opens its own concept's gate and no like concept's (default: %(default)s)",
    )


def _add_machine(add: "Callable[..., object]") -> None:
    """What to draw it on."""
    add_provider(add)
    add(
        "--memory",
        type=memory_argument,
        default="auto",
        metavar="auto|low|GB",
        help="how much may be used (default: %(default)s)",
    )
    add("--threads", type=at_least_one, metavar="N", help="CPU threads (default: all there are)")


def _add_output(add: "Callable[..., object]") -> None:
    """What to write and say."""
    add(
        "--explain",
        type=png_argument,
        metavar="HEATMAP.png",
        help="also show how far each token opens each concept's gate: a table, and a picture in this file",
    )
    add("--grid", action="store_true", help="all pictures on one sheet, instead of OUT-0001, OUT-0002, ...")
    add("--json", action="store_true", help="print what was drawn as JSON")
    add(
        "--output", type=picture_argument, required=True, metavar="OUT",
        help="a .png, .jpg or .webp file; several are numbered, OUT-0001, OUT-0002, ..., behind those that are there",
    )  # fmt: skip
    add("--force", action="store_true", help="replace a file that is no drawing of this command, too")


def _generate(args: argparse.Namespace) -> int:
    original = follow(args) if args.like else None
    if not args.prompts:
        raise RequestError("There is no --prompt, expected one, or a picture to draw again with --like.")
    if args.seed is None:
        args.seed = secrets.randbelow(_RANDOM_SEEDS)
        say(f"{_NAME}: seed {args.seed}")  # else nobody could draw it again
    jobs = [(prompt, args.seed + index) for prompt in args.prompts for index in range(args.count)]
    _check(args, jobs)
    from perfusion.runtime import Runtime
    from perfusion.runtime.picture_settings import save

    with (
        told_waits(_NAME, quiet=args.quiet),
        Runtime(
            args.bundle,
            provider=args.provider,
            threads=args.threads,
            memory=args.memory,
            precision=args.precision,
            controlnet=args.controlnet,
        ) as runtime,
    ):
        for path, settings in args.concepts:
            runtime.load_concept(path, **settings)
        for path, word in args.embeddings:
            runtime.load_embedding(path, word=word)
        if original:
            tell_differences(original, runtime)
        began = time.perf_counter()
        options = _options(args)
        pictures = _drawings(runtime, args, jobs, options)
        paths = _saved(args, pictures, _settings(runtime, args, jobs, options), len(jobs))
        facts: dict[str, Any] = {"seconds": round(time.perf_counter() - began, 3)}
        facts["concepts"] = _used(runtime, args.prompts)
        facts["embeddings"] = _used_embeddings(runtime, args)
        facts |= {"provider": runtime.provider, "provider_reason": runtime.provider_reason}
        explained = (
            runtime.explain(
                args.prompts[0],
                lock=args.lock,
                gates=args.gates,
                regions=regions_of(args),
                prompt_syntax=_syntax(args),
            )
            if args.explain
            else None
        )
    if explained is not None:
        save(explained.picture(), args.explain)
        facts["explanation"] = explained.as_dict()
        if not args.quiet:
            print(explained.text(), file=sys.stderr)
    if args.json:
        files = paths * len(jobs) if args.grid else paths
        facts["pictures"] = [
            {"path": str(path), "prompt": prompt, "seed": seed}
            for path, (prompt, seed) in zip(files, jobs, strict=True)
        ]
        print(json.dumps(facts))
    return 0


def _used(runtime: "Runtime", prompts: list[str]) -> dict[str, Any]:
    """The settings of the concepts that some prompt names."""
    from perfusion.concept.words import named

    tokens = dict.fromkeys(token for prompt in prompts for token in named(prompt, runtime.concepts))
    if tokens and (absent := ", ".join(token for token in runtime.concepts if token not in tokens)):
        _log.warning("the prompt does not name %s, so nothing of it is drawn", absent)
    return {token: asdict(runtime.set_concept(token)) for token in tokens}


def _used_embeddings(runtime: "Runtime", args: argparse.Namespace) -> dict[str, str]:
    """The embeddings that some prompt names, with the SHA-256 of their files."""
    texts = [*args.prompts, args.negative_prompt]
    present = {
        embedding.word: embedding.sha256 for text in texts for embedding in runtime.embeddings.named(text)
    }
    if absent := ", ".join(word for word in runtime.embeddings if word not in present):
        _log.warning("neither a prompt nor the negative prompt names %s, so nothing comes of it", absent)
    return present


def _check(args: argparse.Namespace, jobs: "Sequence[_Job]") -> None:
    """Refuse, before anything is drawn, what could not be written or shown."""
    if args.explain and len(args.prompts) > 1:
        raise RequestError(
            f"--explain shows one prompt, and there are {len(args.prompts)}. Give one of them."
        )
    check_regions(args)
    if args.grid and len(jobs) > _MOST_OF_A_GRID:
        raise RequestError(
            f"{len(jobs)} pictures are too many for one sheet, at most {_MOST_OF_A_GRID}. Leave --grid out."
        )
    names = (
        [args.output] if args.grid or len(jobs) == 1 else itertools.islice(numbered(args.output), len(jobs))
    )
    outputs = [*(("--output", path) for path in names), ("--explain", args.explain)]
    sources = [("--concept", path) for path, _ in args.concepts]
    sources += [("--embedding", path) for path, _ in args.embeddings]
    sources += [("--image", args.image), ("--mask", args.mask), ("--control-image", args.control_image)]
    check_outputs(outputs, [*sources, *region_masks(args)])
    for _, path in outputs:
        if path is not None and not args.force:
            check_replaceable(path)


def _drawings(
    runtime: "Runtime", args: argparse.Namespace, jobs: "Sequence[_Job]", options: Any
) -> "Iterator[Image]":
    """The pictures one by one, with a line of progress a step."""
    # what cannot be drawn is refused here, before the first picture
    runtime.denoise(args.prompts, seed=jobs[-1][1], **options)
    with Progress(1, "drawing", quiet=args.quiet) as progress:
        for index, (prompt, seed) in enumerate(jobs):
            for step in runtime.denoise(prompt, seed=seed, **options):
                progress.total = step.total * len(jobs)
                progress.update(step.total * index + step.index + 1)
            yield from step.pictures()


def _settings(
    runtime: "Runtime", args: argparse.Namespace, jobs: "Sequence[_Job]", options: Any
) -> "Iterator[dict[str, Any] | None]":
    """What each picture's file says of its drawing; a sheet of several says nothing."""
    from perfusion.runtime.picture_settings import settings_of

    if args.no_settings or (args.grid and len(jobs) > 1):
        yield from [None] * len(jobs)
        return
    yield from (settings_of(runtime, prompt, seed, **options) for prompt, seed in jobs)


def _options(args: argparse.Namespace) -> Any:
    """The options of a drawing."""
    from perfusion.picture_input import as_rgb, mask_of, open_picture

    choices = {
        "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale,
        "guidance_rescale": args.guidance_rescale, "scheduler": args.scheduler, "lock": args.lock,
        "width": args.width, "height": args.height, "gates": args.gates,
        "image": args.image and as_rgb(open_picture(args.image)), "image_strength": args.image_strength,
        "mask": args.mask and mask_of(open_picture(args.mask)), "negative_prompt": args.negative_prompt,
        "whole": args.whole, "control_scale": args.control_scale,
        "control_image": args.control_image and as_rgb(open_picture(args.control_image)),
    }  # fmt: skip
    options: Any = {name: value for name, value in choices.items() if value is not None}
    options["regions"] = regions_of(args)
    options["prompt_syntax"] = _syntax(args)
    return options


def _syntax(args: argparse.Namespace) -> str:
    return "plain" if args.plain_prompts else "weights"


def _saved(
    args: argparse.Namespace,
    pictures: "Iterator[Image]",
    settings: "Iterator[dict[str, Any] | None]",
    count: int,
) -> list[Path]:
    """Where the pictures are, each written as soon as it is drawn; told also when Ctrl-C ends the drawing."""
    from perfusion.runtime.picture_settings import save
    from perfusion.runtime.pictures import grid

    if args.grid:
        pictures = iter([grid(list(pictures))])
    names = iter([args.output]) if args.grid or count == 1 else numbered(args.output)
    paths: list[Path] = []
    try:
        for picture in pictures:
            path = next(names)
            save(picture, path, next(settings))
            paths.append(path)
    finally:
        if paths and not args.json:
            print("\n".join(map(str, paths)))
    return paths


if __name__ == "__main__":
    raise SystemExit(main())
