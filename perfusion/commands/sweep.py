"""perfusion-sweep: draw one concept with many settings, see the front, and choose."""

import argparse
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, check_outputs, parser, run, say, told_waits
from perfusion.commands.drawing_arguments import at_least_one
from perfusion.commands.provider_arguments import add_provider
from perfusion.commands.region_arguments import add_regions, check_regions, region_masks, regions_of
from perfusion.concept.settings import FILE_SETTINGS, LOCKS, SETTINGS, ConceptSettings
from perfusion.embedded import is_embedded
from perfusion.errors import ModelError, RequestError
from perfusion.files import cache_folder, writing
from perfusion.hub import hub_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from perfusion.concept.concept_file import Concept
    from perfusion.judging.probes import Probes
    from perfusion.judging.scorer import Scorer
    from perfusion.runtime import Runtime
    from perfusion.sweep import Setting, Sweep

__all__ = ["main", "open_judges", "subject_pictures"]

_NAME = "perfusion-sweep"
_CHOICE = "[,".join(name.upper() for name in FILE_SETTINGS) + "]" * (len(FILE_SETTINGS) - 1)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-sweep --help`."""
    return run(_NAME, lambda: _sweep(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME,
        "Draw the same prompts and seeds with every combination of bias, temperature, strength, start and lock: "
        "from the pictures' look to the prompt's words, without training anything again. With pictures of the subject "
        "both are measured, and the best settings can be written into the concept file.",
    )
    add = command.add_argument
    add(
        "--concept", action="append", required=True, dest="concepts", metavar="FILE",
        help="a concept file or the name of a sample (can be repeated: all get the same settings)",
    )  # fmt: skip
    add("--prompt", action="append", required=True, dest="prompts", metavar="TEXT", help="(can be repeated)")
    add("--plain-prompts", action="store_true", help="brackets and BREAK in prompts are text, no weights")
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="a folder of perfusion-export, or a name on the hub (default: the embedded model)",
    )
    add(
        "--bias", type=_values, metavar="A:B:N",
        help="a number, some (0.5,0.7) or a range of N (default: 0.4:1:7)",
    )  # fmt: skip
    add("--temperature", type=_values, metavar="A:B:N", help="likewise (default: the first concept's own)")
    add("--strength", type=_values, metavar="A:B:N", help="likewise (default: the first concept's own)")
    add(
        "--start", type=_values, metavar="A:B:N",
        help="likewise, the share of the noise levels that the superclass draws first (default: 0)",
    )  # fmt: skip
    add("--lock", choices=[*LOCKS, "both"], help="(default: the first concept's own)")
    add("--seed", type=int, default=0, metavar="N", help="of the first picture (default: %(default)s)")
    add("--count", type=at_least_one, default=2, metavar="N", help="seeds a prompt (default: %(default)s)")
    add("--steps", type=at_least_one, metavar="N", help="denoising steps (default: the bundle's own)")
    add("--guidance-scale", type=float, metavar="G", help="(default: the bundle's own)")
    add_regions(add)
    add(
        "--images", type=Path, action="append", default=[], metavar="DIR",
        help="pictures of the subject, to measure likeness (repeat it once for each concept)",
    )  # fmt: skip
    add("--masks", type=Path, metavar="DIR", help="masks of the first --images: only the object is compared")
    add(
        "--scorer",
        type=Path,
        metavar="DIR",
        help="a CLIP model or scorer (default: pocket's own, for pocket)",
    )
    add("--grid", type=Path, metavar="PNG", help="write every picture on one labelled sheet")
    add("--plot", type=Path, metavar="PNG", help="write the plot of both similarities with its front")
    add("--csv", type=Path, metavar="FILE", help="write the table")
    add("--json", action="store_true", help="print the table as JSON")
    add(
        "--choose", nargs="?", const="recommended", metavar=_CHOICE,
        help="write the recommended settings, or these, into the concept file as its defaults",
    )  # fmt: skip
    add(
        "--work", type=Path, metavar="DIR",
        help="keep the pictures there for sweeps to come (default: in the cache, until the sweep is done)",
    )  # fmt: skip
    add_provider(add)
    add("--batch-size", type=at_least_one, default=8, metavar="N", help="pictures kept at once (default: 8)")
    return command


def _sweep(args: argparse.Namespace) -> int:
    _check(args)
    chosen: dict[str, Any] | None = _chosen(args.choose)
    from perfusion.runtime import Runtime

    with (
        told_waits(_NAME, quiet=args.quiet),
        Runtime(args.bundle, provider=args.provider, precision=args.precision) as runtime,
    ):
        concepts = [runtime.load_concept(name) for name in args.concepts]
        files = [_own_file(runtime, name) for name in args.concepts] if args.choose else []
        judges = open_judges(args.scorer, runtime) if args.images else None
        result = _drawn(args, runtime, concepts, judges)
    if chosen is None and args.choose and result.recommended is not None:
        best = result.recommended.setting
        chosen = {name: getattr(best, name) for name in (*FILE_SETTINGS, "lock")}
    if chosen:
        for path in files:
            _write_defaults(path, chosen)
    _tell(args, result, chosen)
    if result.points and result.recommended is None:
        problem = (
            f"{_NAME}: No setting is recommended: with each most pictures show texture or something else"
        )
        say(f"{problem}; look at a --grid, and train again.")
        return int(args.choose == "recommended")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would come to nothing, before anything is drawn."""
    outputs = [(f"--{name}", getattr(args, name)) for name in ("grid", "plot", "csv")]
    check_outputs(outputs, [*(("--concept", Path(name)) for name in args.concepts), *region_masks(args)])
    check_regions(args)
    if len(args.images) not in (0, len(args.concepts)):
        raise RequestError(
            f"There are {len(args.images)} folders of pictures for {len(args.concepts)} concepts; give --images "
            "once for each concept, or not at all."
        )
    if not args.images and (args.plot or args.csv or args.choose == "recommended"):
        raise RequestError(
            "Nothing can be measured without pictures of the subject. Give --images DIR, or draw a --grid."
        )
    if not args.images and (args.masks or args.scorer):
        raise RequestError(
            "--masks and --scorer are for measuring. Give --images DIR too, or leave them out."
        )
    if not (args.images or args.grid or args.work or args.choose):
        raise RequestError(
            "Nothing would be left of the pictures. Give --grid PNG, --images DIR to measure them, or --work DIR."
        )
    for name in [name for name in SETTINGS if name not in FILE_SETTINGS]:
        usual = getattr(ConceptSettings, name)
        if args.choose == "recommended" and {*(getattr(args, name) or [usual])} != {usual}:
            raise RequestError(
                f"A concept file has no {name} of its own, so none can be chosen. Leave --{name} out, or give --choose "
                f"{_CHOICE}."
            )


def _own_file(runtime: "Runtime", name: str) -> Path:
    """A concept's file, into which something is to be written; not a bundle's sample, which is everybody's."""
    if hub_name(name):
        raise RequestError(
            f"{name} lies on the hub. Fetch its file, and give --choose with that; then share it again."
        )
    path = runtime.bundle.find_concept(name)
    if path.resolve().is_relative_to(runtime.bundle.folder.resolve()):
        raise RequestError(
            f"{name} is a sample that came with the bundle. Copy {path}, and give --choose with your copy."
        )
    return path


def _drawn(
    args: argparse.Namespace,
    runtime: "Runtime",
    concepts: "Sequence[Concept]",
    judges: "tuple[Scorer, Probes] | None",
) -> "Sweep":
    """The sweep itself, with its sheets and tables written before the work folder goes."""
    from perfusion.sweep import Drawings, identity, sweep

    for token in (concept.token for concept in concepts):
        if not any(token in prompt for prompt in args.prompts):
            raise RequestError(f"No prompt names {token}, so its settings would change nothing.")
    for prompt in args.prompts:
        if not any(concept.token in prompt for concept in concepts):
            raise RequestError(f"The prompt {prompt!r} names no concept, such as {concepts[0].token}.")
    settings = _settings(args, concepts[0])
    scorer, probes = judges or (None, None)
    choices = {"num_inference_steps": args.steps, "guidance_scale": args.guidance_scale, "whole": args.whole}
    options: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    options["regions"] = regions_of(args)
    if args.plain_prompts:
        options["prompt_syntax"] = "plain"
    seeds = [args.seed + index for index in range(args.count)]
    subjects = [
        subject_pictures(folder, args.masks if index == 0 else None)
        for index, folder in enumerate(args.images)
    ]
    with _work_folder(args.work, identity(runtime, options)) as folder, _progress(args.quiet) as report:
        drawings = Drawings(folder, runtime, options, batch_size=args.batch_size)
        result = sweep(
            drawings, prompts=args.prompts, seeds=seeds, settings=settings, scorer=scorer, probes=probes,
            subjects=subjects, report=report,
        )  # fmt: skip
        _write(args, result)
    return result


def _settings(args: argparse.Namespace, first: "Concept") -> "tuple[Setting, ...]":
    from perfusion.sweep import BIASES, all_settings

    own = {name: (value,) for name, value in vars(first.settings).items()}
    told = {name: getattr(args, name) for name in SETTINGS if getattr(args, name)}
    locks = {"both": LOCKS, None: (first.lock,)}.get(args.lock, (args.lock,))
    return all_settings(**{**own, "bias": BIASES, **told, "lock": locks})


def subject_pictures(folder: Path, masks: Path | None) -> "list[Image]":
    """A subject's pictures, cut to the object where a mask or an alpha channel says where it is."""
    from perfusion.judging.selection import cut_to_mask
    from perfusion.training.picture_folder import find_pictures
    from perfusion.training.training_pictures import load_picture

    samples = [load_picture(path, masks or "auto") for path in find_pictures(folder)]
    return [cut_to_mask(sample.image, sample.mask) for sample in samples]


def open_judges(folder: Path | None, runtime: "Runtime") -> "tuple[Scorer, Probes]":
    """The scorer that was given, or pocket's for pocket, and the probes that go with it."""
    from perfusion.judging.probes import open_probes

    if folder is None and is_embedded(runtime.bundle.base):
        from perfusion.embedded import scorer_path

        folder = scorer_path()
    if folder is None:
        raise RequestError(
            f"No scorer is known for {runtime.bundle.base}. Give --scorer DIR, a CLIP model's folder, or leave "
            "--images out and look at a --grid."
        )
    if not folder.is_dir():
        raise RequestError(
            f"{folder}: no such folder; --scorer expects a CLIP model's, or that of a scorer with its image.onnx."
        )
    scorer = _scorer(folder)
    return scorer, open_probes(folder, scorer, runtime.bundle.base)


def _scorer(folder: Path) -> "Scorer":
    from perfusion.judging.scorer import OnnxScorer

    if (folder / "image.onnx").is_file():
        return OnnxScorer(folder)
    try:
        import torch

        from perfusion.training.snapshot_choice import open_scorer
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{folder} has no image.onnx; a CLIP model's folder is read by the package {error.name}. Install "
            "perfusion-edge[train], or give a scorer of ONNX graphs."
        ) from error
    return open_scorer(folder, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _write(args: argparse.Namespace, result: "Sweep") -> None:
    from perfusion.sweep import plot

    sheets: dict[Path | None, Callable[[], Image]] = {
        args.grid: result.grid,
        args.plot: lambda: plot(result.points),
    }
    for path, draw in sheets.items():
        if path is not None:
            with writing(path) as file:
                draw().save(file, "PNG", optimize=True)
    if args.csv:
        with writing(args.csv, "w") as file:
            file.write(_csv(result))


def _rows(result: "Sweep") -> list[dict[str, Any]]:
    rows = []
    for point in result.points:
        values = asdict(point)
        rows.append({**values.pop("setting"), **values})
    return rows


def _csv(result: "Sweep") -> str:
    rows, text = _rows(result), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _tell(args: argparse.Namespace, result: "Sweep", chosen: dict[str, Any] | None) -> None:
    """The table, for a program or a reader."""
    if args.json:
        facts = {
            "prompts": args.prompts,
            "seeds": list(result.seeds),
            "points": _rows(result),
            "chosen": chosen,
        }
        print(json.dumps(facts, indent=1))
        return
    if result.points:
        print("  ".join([*(f"{name:>6}" for name in SETTINGS), "  lock   image    text  shown"]))
    for point in result.points:
        marks = "*" * point.on_front + " recommended" * point.recommended
        numbers = [f"{getattr(point.setting, name):{max(6, len(name))}.3g}" for name in SETTINGS]
        numbers += [f"{point.setting.lock:>6}", f"{point.image:6.3f}", f"{point.text:6.3f}"]
        numbers.append("     " if point.shown is None else f"{point.shown:5.0%}")
        print("  ".join([*numbers, marks]).rstrip())
    for path in (args.grid, args.plot, args.csv):
        if path is not None:
            print(path)
    if chosen:
        print(
            f"{', '.join(args.concepts)}: " + ", ".join(f"{name} {value}" for name, value in chosen.items())
        )


def _write_defaults(path: Path, chosen: dict[str, Any]) -> None:
    """The same file, storage, picture and all, with other defaults."""
    from perfusion.concept.card import is_card
    from perfusion.concept.concept_file import Concept, storage_of

    concept, data = Concept.load(path), path.read_bytes()
    picture = path if is_card(data) else None
    replace(concept, **chosen).save(path, storage_of(data), picture=picture)


def _chosen(text: str | None) -> dict[str, Any] | None:
    """BIAS[,TEMPERATURE[,STRENGTH]] as settings; None for the recommended ones, or none at all."""
    if text in (None, "recommended"):
        return None
    try:
        values = _values(str(text))
    except argparse.ArgumentTypeError as error:
        raise RequestError(f"--choose: {error}.") from error
    if len(values) > len(FILE_SETTINGS):
        raise RequestError(f"--choose {text}: expected {_CHOICE}, such as 0.7,0.15.")
    chosen = dict(zip(FILE_SETTINGS, values, strict=False))
    ConceptSettings().merged(chosen)  # refuses numbers out of their range
    return chosen


@contextmanager
def _work_folder(user_folder: Path | None, name: str) -> Iterator[Path]:
    """The user's own folder; or one in the cache, where an interrupted sweep finds its pictures again, and which
    goes when the sweep is done."""
    if user_folder is not None:
        yield user_folder
        return
    cached = cache_folder() / "sweeps" / name[:32]
    yield cached
    shutil.rmtree(cached, ignore_errors=True)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that learns its length with the first report."""
    bars: list[Progress] = []

    def report(done: int, total: int) -> None:
        if not bars:
            bars.append(Progress(total, "drawing", quiet).__enter__())
        bars[0].update(done)

    try:
        yield report
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)


def _values(text: str) -> tuple[float, ...]:
    from perfusion.sweep.ranges import parse_values

    try:
        return parse_values(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    raise SystemExit(main())
