"""perfusion-evaluate: how well concepts of your own are drawn, in numbers and on a page."""

import argparse
import html
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import Progress, parser, run, told_waits
from perfusion.commands.drawing_arguments import at_least_one
from perfusion.commands.provider_arguments import add_provider
from perfusion.errors import RequestError
from perfusion.files import writing

if TYPE_CHECKING:
    from perfusion.concept.concept_file import Concept
    from perfusion.sweep.evaluation import PairScores, SubjectScores

__all__ = ["main"]

_NAME = "perfusion-evaluate"
_FILES = (".safetensors", ".png")


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-evaluate --help`."""
    return run(_NAME, lambda: _evaluate(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME,
        "Draw each of your concepts in six places, and compare: with the subject's own pictures (likeness), with the "
        "prompt, with the plain word, and two in one picture. Writes a page with a plot and sheets.",
    )
    add = command.add_argument
    add(
        "--subjects", type=Path, required=True, metavar="DIR",
        help="a folder with one folder of pictures for each subject, with masks/ in it where you have some",
    )  # fmt: skip
    add(
        "--concepts", type=Path, metavar="DIR",
        help="their concept files, named like the folders: red-mug.safetensors for red-mug/ (default: --subjects)",
    )  # fmt: skip
    add(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="a folder of perfusion-export, or a name on the hub (default: the embedded model)",
    )
    add(
        "--scorer",
        type=Path,
        metavar="DIR",
        help="a CLIP model or scorer (default: pocket's own, for pocket)",
    )
    add("--count", type=at_least_one, default=2, metavar="N", help="seeds a prompt (default: %(default)s)")
    add("--steps", type=at_least_one, metavar="N", help="denoising steps (default: the bundle's own)")
    add("--no-pairs", action="store_true", help="draw no two concepts in one picture")
    add_provider(add)
    add("--json", action="store_true", help="print the numbers as JSON")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="where index.html, scores.json and the sheets go",
    )
    return command


def _evaluate(args: argparse.Namespace) -> int:
    folders = _subjects(args.subjects, args.concepts or args.subjects)
    from perfusion.commands.sweep import open_judges, subject_pictures
    from perfusion.runtime import Runtime
    from perfusion.sweep.evaluation import Evaluator

    with (
        told_waits(_NAME, quiet=args.quiet),
        Runtime(args.bundle, provider=args.provider, precision=args.precision) as runtime,
    ):
        scorer, probes = open_judges(args.scorer, runtime)
        options = {} if args.steps is None else {"num_inference_steps": args.steps}
        evaluator = Evaluator(runtime, scorer, probes, seeds=range(args.count), options=options)
        concepts = _opened(folders)
        neighbours = [] if args.no_pairs else list(zip(concepts, list(concepts)[1:], strict=False))
        scores, pairs = [], []
        with Progress(len(concepts) + len(neighbours), "evaluating", args.quiet) as progress:
            for number, (name, concept) in enumerate(concepts.items(), 1):
                folder = args.subjects / name
                masks = folder / "masks" if (folder / "masks").is_dir() else None
                scores.append(evaluator.subject(name, concept, subject_pictures(folder, masks)))
                progress.update(number)
            for number, (first, second) in enumerate(neighbours, len(concepts) + 1):
                pairs.append(evaluator.pair(concepts[first], concepts[second]))
                progress.update(number)
    _write(args.output, scores, pairs)
    _tell(args, scores, pairs)
    return 0


def _subjects(folder: Path, files: Path) -> dict[str, Path]:
    """The concept file of each folder of pictures.

    Raises:
        RequestError: there is no such folder, none in it, or one without a concept.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder, expected one with a folder of pictures for each subject.")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise RequestError(f"{folder} has no folders in it, expected one with pictures for each subject.")
    matches = {name: next(_candidates(files, name), None) for name in names}
    missing = [name for name, path in matches.items() if path is None]
    if missing:
        raise RequestError(
            f"{files} has no concept for {', '.join(missing)}, expected {missing[0]}.safetensors. Train it, or give "
            "--concepts."
        )
    return {name: path for name, path in matches.items() if path is not None}


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    yield from (path for suffix in _FILES if (path := folder / f"{name}{suffix}").is_file())


def _opened(paths: dict[str, Path]) -> "dict[str, Concept]":
    """The concepts by their subjects' names. Raises `RequestError` where two have one token."""
    from perfusion.concept.concept_file import Concept

    concepts: dict[str, Concept] = {}
    for name, path in paths.items():
        concept = Concept.load(path)
        twin = next((other for other, known in concepts.items() if known.token == concept.token), None)
        if twin is not None:
            raise RequestError(
                f"{name} and {twin} have the same token, {concept.token}. Give one another: perfusion-convert --token."
            )
        concepts[name] = concept
    return concepts


def _write(folder: Path, scores: "Sequence[SubjectScores]", pairs: "Sequence[PairScores]") -> None:
    """The sheets, the numbers, and last the page that shows them."""
    sheets = {f"{score.name}.png": score.sheet for score in scores}
    sheets |= {f"pair-{number}.png": pair.sheet for number, pair in enumerate(pairs, 1)}
    for name, sheet in sheets.items():
        with writing(folder / name) as file:
            sheet.save(file, "PNG", optimize=True)
    with writing(folder / "scores.json", "w") as file:
        json.dump(_facts(scores, pairs), file, indent=1)
    with writing(folder / "index.html", "w") as file:
        file.write(_page(scores, pairs))


def _facts(scores: "Sequence[SubjectScores]", pairs: "Sequence[PairScores]") -> dict[str, Any]:
    return {
        "subjects": [score.as_dict() for score in scores],
        "pairs": [pair.as_dict() for pair in pairs],
        "learned": sum(score.verdict.grade == "learned" for score in scores),
    }


def _page(scores: "Sequence[SubjectScores]", pairs: "Sequence[PairScores]") -> str:
    rows = "".join(
        f"<tr><td>{html.escape(score.name)}<td>{score.likeness:.3f}<td>{score.prompt:.3f}<td>{score.drift:.4f}"
        f"<td>{html.escape(score.verdict.sentence)}\n"
        for score in scores
    )
    sheets = "".join(
        f'<h2>{html.escape(score.name)}</h2><img src="{html.escape(score.name)}.png">\n' for score in scores
    )
    couples = "".join(
        f'<h2>{html.escape(" and ".join(pair.tokens))}: both in {pair.both:.0%}</h2><img src="pair-{number}.png">\n'
        for number, pair in enumerate(pairs, 1)
    )
    return (
        "<!doctype html>\n<meta charset='utf-8'><title>Evaluation</title>\n"
        "<style>body{font:16px sans-serif;margin:2em}td,th{padding:.2em 1em;text-align:left}"
        "img{max-width:100%}</style>\n"
        f"<h1>{len(scores)} concepts</h1>\n{_plot(scores)}\n"
        f"<table><tr><th>subject<th>likeness<th>prompt<th>drift<th>verdict\n{rows}</table>\n{sheets}{couples}"
    )


def _plot(scores: "Sequence[SubjectScores]") -> str:
    """Likeness to the right, the prompt upward, as SVG."""
    across, upward = ([getattr(score, name) for score in scores] for name in ("likeness", "prompt"))
    low, high = (min(across), min(upward)), (max(across), max(upward))
    marks = []
    for score in scores:
        x = 40 + 420 * (score.likeness - low[0]) / (high[0] - low[0] or 1)
        y = 260 - 220 * (score.prompt - low[1]) / (high[1] - low[1] or 1)
        name = html.escape(score.name)
        marks.append(
            f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5"/><text x="{x + 8:.0f}" y="{y:.0f}">{name}</text>'
        )
    words = '<text x="480" y="290">likeness</text><text x="34" y="16">prompt</text>'
    axes = f'<path d="M30 20V270H580" fill="none" stroke="grey"/>{words}'
    return f'<svg viewBox="0 0 600 300" width="600">{axes}{"".join(marks)}</svg>'


def _tell(args: argparse.Namespace, scores: "Sequence[SubjectScores]", pairs: "Sequence[PairScores]") -> None:
    if args.json:
        print(json.dumps(_facts(scores, pairs)))
        return
    width = max(len(score.name) for score in scores)
    print(f"{'subject':<{width}}  likeness  prompt   drift  verdict")
    for score in scores:
        numbers = f"{score.likeness:8.3f}  {score.prompt:6.3f}  {score.drift:6.4f}"
        print(f"{score.name:<{width}}  {numbers}  {score.verdict.grade}")
    for pair in pairs:
        print(f"{' and '.join(pair.tokens)}: both in {pair.both:.0%}")
    print(args.output / "index.html")


if __name__ == "__main__":
    raise SystemExit(main())
