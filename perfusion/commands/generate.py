"""perfusion-generate: draw pictures with a bundle and any number of concepts."""

import argparse
import json
import logging
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, check_outputs, parser, run
from perfusion.concept.settings import DEFAULT_GATES, GATES, LOCKS, SETTINGS
from perfusion.files import writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

    from perfusion.runtime import Runtime

__all__ = ["main"]

_NAME = "perfusion-generate"
_log = logging.getLogger(__name__)
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_MOST_PICTURES = 1000  # they lie in memory together
_SCHEDULERS = (  # the runtime's; asking it would import numpy before --help is shown
    "ddim", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "heun", "heun_karras", "lcm",
)  # fmt: skip
_PROVIDERS = ("auto", "cpu", "cuda", "trt", "trt-rtx")

# A setting's value holds no path separator, so that C:\cats\a=b.safetensors is a path and nothing else; a word in angle
# brackets may hold anything. A comma before digits alone is a decimal one, to be told and not to be taken for a path.
_SETTING = r"\w+=(?:<[^<>\s]*>|[^,:/\\]*(?:,\d+(?!\w*=))*)"
_SPEC = re.compile(rf"(?P<path>.+?):(?P<settings>{_SETTING}(?:,{_SETTING})*)", re.DOTALL)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-generate --help`."""
    return run(_NAME, lambda: _generate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    made = parser(_NAME, "Draw pictures from a prompt, with concepts as words of their own. Needs no torch.")
    _add_content(made.add_argument)
    _add_drawing(made.add_argument)
    _add_machine(made.add_argument)
    _add_output(made.add_argument)
    return made


def _add_content(add: "Callable[..., object]") -> None:
    """What to draw, and with which model and concepts."""
    add("--prompt", required=True, help='what to draw, such as "a photo of <cat> on a beach"')
    add("--bundle", type=Path, metavar="DIR", help="an exported model (default: the embedded pocket model)")
    add(
        "--concept",
        type=_concept,
        action="append",
        default=[],
        dest="concepts",
        metavar="FILE[:bias=B,temperature=T,strength=S,start=S]",
        help="a concept file, or the name of a sample (school-bus); its token is then a word; token=<dog> gives it "
        "another one (can be repeated)",
    )
    add("--negative-prompt", default="", metavar="TEXT", help="what to move away from")
    add("--image", type=Path, metavar="FILE", help="a picture to draw over, in place of noise alone")
    add(
        "--image-strength",
        type=float,
        metavar="S",
        help="how far to draw over it, to 1 (default: 0.8, with a mask 1)",
    )
    add("--mask", type=Path, metavar="FILE", help="where to draw over it: light is drawn, dark is kept")


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
    add("--seed", type=int, default=0, metavar="N", help="of the first picture (default: %(default)s)")
    add("--count", type=_count, default=1, metavar="N", help="pictures, with seeds from --seed on")
    add("--lock", choices=LOCKS, help="where keys come from (default: what the concepts say)")
    add(
        "--gates",
        choices=GATES,
        default=DEFAULT_GATES,
        help="with coordinates a word opens its own concept's gate and no like concept's (default: %(default)s)",
    )


def _add_machine(add: "Callable[..., object]") -> None:
    """What to draw it on."""
    add("--provider", choices=_PROVIDERS, default="auto", help="(default: %(default)s)")
    add(
        "--memory",
        type=_memory,
        default="auto",
        metavar="auto|low|GB",
        help="how much may be used (default: %(default)s)",
    )
    add("--threads", type=_at_least_one, metavar="N", help="CPU threads (default: all there are)")


def _add_output(add: "Callable[..., object]") -> None:
    """What to write and say."""
    add(
        "--explain",
        type=_png,
        metavar="HEATMAP.png",
        help="also show how far each token opens each concept's gate: a table, and a picture in this file",
    )
    add("--grid", action="store_true", help="all pictures on one sheet, instead of OUT-0, OUT-1, ...")
    add("--json", action="store_true", help="print what was drawn as JSON")
    add("--output", type=_picture, required=True, metavar="OUT", help="a .png, .jpg or .webp file")


def _generate(args: argparse.Namespace) -> int:
    paths = _paths(args.output, 1 if args.grid else args.count)
    read = [
        *(("--concept", path) for path, _ in args.concepts),
        ("--image", args.image),
        ("--mask", args.mask),
    ]
    check_outputs([*(("--output", path) for path in paths), ("--explain", args.explain)], read)
    from perfusion.concept.words import named
    from perfusion.runtime import Runtime
    from perfusion.runtime.pictures import grid

    seeds = [args.seed + index for index in range(args.count)]
    with Runtime(args.bundle, provider=args.provider, threads=args.threads, memory=args.memory) as runtime:
        for path, settings in args.concepts:
            runtime.load_concept(path, **settings)
        began = time.perf_counter()
        pictures = _draw(runtime, args, seeds)
        seconds = time.perf_counter() - began
        used = {token: asdict(runtime.set_concept(token)) for token in named(args.prompt, runtime.concepts)}
        if used and (absent := ", ".join(token for token in runtime.concepts if token not in used)):
            _log.warning("the prompt does not name %s, so nothing of it is drawn", absent)
        facts: dict[str, Any] = {"prompt": args.prompt, "concepts": used, "seconds": round(seconds, 3)}
        facts |= {"provider": runtime.provider, "provider_reason": runtime.provider_reason}
        explanation = runtime.explain(args.prompt, lock=args.lock, gates=args.gates) if args.explain else None
    for path, picture in zip(paths, [grid(pictures)] if args.grid else pictures, strict=True):
        _write(path, picture)
    if explanation is not None:
        _write(args.explain, explanation.picture())
        facts["explanation"] = explanation.as_dict()
        if not args.quiet:
            print(explanation.text(), file=sys.stderr)
    if args.json:
        files = paths * len(seeds) if args.grid else paths
        written = [{"path": str(path), "seed": seed} for path, seed in zip(files, seeds, strict=True)]
        print(json.dumps({**facts, "pictures": written}))
    else:
        print("\n".join(map(str, paths)))
    return 0


def _draw(runtime: "Runtime", args: argparse.Namespace, seeds: list[int]) -> "list[Image]":
    """The pictures, with a line of progress a step."""
    given = {
        "num_inference_steps": args.steps, "guidance_scale": args.guidance_scale,
        "guidance_rescale": args.guidance_rescale, "scheduler": args.scheduler, "lock": args.lock,
        "width": args.width, "height": args.height, "gates": args.gates,
        "image": args.image, "image_strength": args.image_strength, "mask": args.mask,
    }  # fmt: skip
    options: Any = {name: value for name, value in given.items() if value is not None}
    steps = runtime.denoise(args.prompt, seed=seeds, negative_prompt=args.negative_prompt, **options)
    with Progress(1, "drawing", quiet=args.quiet) as progress:
        for step in steps:
            progress.total = step.total
            progress.update(step.index + 1)
    return step.pictures()


def _write(path: Path, picture: "Image") -> None:
    """One picture in the format of its file's name, whole or not at all."""
    kind = _FORMATS[path.suffix.lower()]
    with writing(path) as file:
        picture.save(file, format=kind, **({} if kind == "PNG" else {"quality": 95}))


def _paths(output: Path, count: int) -> list[Path]:
    """OUT itself for one picture, OUT-0, OUT-1, ... for more."""
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def _concept(spec: str) -> tuple[Path, dict[str, Any]]:
    """FILE:bias=0.6,strength=1 as a path and settings."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        return Path(spec), {}
    settings: dict[str, Any] = {}
    for setting in re.findall(_SETTING, match["settings"]):
        name, _, value = setting.partition("=")
        if name in settings or name not in (*SETTINGS, "token"):
            problem = "is given twice" if name in settings else "is no setting"
            raise argparse.ArgumentTypeError(
                f"{name!r} {problem} in {spec!r}; use {', '.join(SETTINGS)} or token"
            )
        settings[name] = value if name == "token" else _number(name, value)
    return Path(match["path"]), settings


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        point = f" with a point, {value.replace(',', '.')}" if value.count(",") == 1 else ""
        raise argparse.ArgumentTypeError(f"{name} is {value!r}, expected a number{point}") from None


def _at_least_one(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return value


def _count(text: str) -> int:
    value = _at_least_one(text)
    if value > _MOST_PICTURES:
        raise argparse.ArgumentTypeError(f"{text} pictures are too many at once, at most {_MOST_PICTURES}")
    return value


def _memory(text: str) -> str | float:
    if text in ("auto", "low"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither auto nor low nor a number of gigabytes"
        ) from None


def _png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    return path


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} does not end in one of {', '.join(_FORMATS)}")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
