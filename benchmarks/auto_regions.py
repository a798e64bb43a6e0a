"""python benchmarks/auto_regions.py: does the default for regions make a picture worse that was right before?

The shipped concepts and plain things, two in a prompt, joined by every word that says how two things stand to one
another. Each prompt is drawn with `regions="auto"` and with `regions=None`, from the same seeds, and judged by the
probes of the evaluation. Prompts whose things have no places of their own ("on", "in", "wearing") are read once with
either: they are only counted. Pictures are kept in build/auto_regions, where an interrupted run finds them again.
Exit code 1 where a share of right pictures falls by more than 2 points.
"""

import argparse
import hashlib
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.evaluation.measuring import measure_pictures
from benchmarks.evaluation.models import drawing_runtime, text_scorer, threads
from benchmarks.evaluation.plan import FULL, subject_named
from benchmarks.evaluation.subject_probe import Question, SubjectProbe
from benchmarks.record import ROOT, write_record
from perfusion.concept.things import read_marks, side_by_side
from perfusion.pocket.vocabulary import PLACES
from perfusion.sweep import Drawings, Job, Setting

FOLDER = ROOT / "build" / "auto_regions"
SUBJECTS = ("gold-hat", "pink-cake", "school-bus")
SECONDS = {
    "tree": "grass",
    "teapot": "table",
    "car": "street",
}  # with the places that the evaluation has them in
FIRST_SEED, SEEDS, BATCH = 90_000, 2, 8
TOLERANCE = 0.02

JOINS: dict[str, tuple[str, ...]] = {
    "beside": (
        "next to", "beside", "besides", "alongside", "along with", "together with", "near", "close to",
        "by the side of", "facing", "opposite", "and", "or", "plus", "versus", "vs", "vs.", "&", "+", ",", ";",
    ),
    "left": ("to the left of", "on the left of", "at the left of", "left of", "to the left side of"),
    "right": ("to the right of", "on the right of", "at the right of", "right of", "on the right hand side of"),
    "ends": ("on the left and|on the right", "on the right and|on the left", "on the left, and|"),
    "one": (
        "on top of", "on", "onto", "upon", "inside", "in", "into", "within", "wearing", "holding", "carrying", "riding",
        "eating", "with", "without", "under", "underneath", "beneath", "below", "above", "over", "behind",
        "in front of", "through", "around", "inside of", "made of", "made from", "full of", "of", "as", "like", "from",
        "at", "for", "against", "sitting on", "standing in", "lying on",
    ),
}  # fmt: skip
"""By kind what may stand between two things; what stands behind the second follows a bar."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A prompt of two things, with what its picture should show from left to right."""

    kind: str  # a key of `JOINS`
    text: str
    place: str
    things: tuple[str, str]  # subjects or nouns

    @property
    def question(self) -> Question:
        """What the probe of subjects is asked: for the things, among their ordinary kin and each other."""
        nouns = [_noun(thing) for thing in self.things]
        things = dict.fromkeys((*self.things, *nouns, *SECONDS))
        return Question(things=tuple(things), expected=self.things, places=(self.place,))

    @property
    def nouns(self) -> tuple[str, ...]:
        """What the probe of nouns should see."""
        return tuple(_noun(thing) for thing in self.things)

    @property
    def has_places(self) -> bool:
        """Whether its things get regions of their own."""
        return bool(side_by_side(read_marks(self.text, [subject_named(name).token for name in SUBJECTS])))


def scenes() -> list[Scene]:
    """Two concepts, a concept and a plain thing, and two plain things, for every join."""
    pairs = itertools.cycle(itertools.permutations(SUBJECTS, 2))
    seconds = itertools.cycle(
        zip(itertools.cycle(SUBJECTS), (*SECONDS, *list(SECONDS)[1:], "tree"), strict=False)
    )
    plain = itertools.cycle(itertools.permutations(SECONDS, 2))
    found = []
    for kind, joins in JOINS.items():
        for join in joins:
            drawn = [next(pairs), next(seconds)] if kind == "one" else _four(pairs, seconds, plain)
            found += [_scene(kind, join, things) for things in drawn]
    return found


def _four(
    pairs: Iterator[tuple[str, ...]], seconds: Iterator[tuple[str, str]], plain: Iterator[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    subject, thing = next(seconds)
    return [next(pairs), (subject, thing), next(seconds)[::-1], next(plain)]


def _scene(kind: str, join: str, things: Sequence[str]) -> Scene:
    place = next((SECONDS[thing] for thing in things if thing in SECONDS), "grass")
    first, second = (_word(thing) for thing in things)
    between, _, behind = join.partition("|")
    gap = "" if between in (",", ";") else " "
    text = " ".join(filter(None, [f"a {first}{gap}{between} a {second}", behind, PLACES[place][0]]))
    turned = kind == "right" or join.startswith("on the right")
    return Scene(
        kind=kind, text=text, place=place, things=(things[1], things[0]) if turned else (things[0], things[1])
    )


def _word(thing: str) -> str:
    return subject_named(thing).token if thing in SUBJECTS else f"{{{thing}}}"


def _noun(thing: str) -> str:
    return subject_named(thing).noun if thing in SUBJECTS else thing


def draw(drawn: Sequence[Scene], seeds: int, regions: str | None) -> np.ndarray:
    """(scenes, seeds, height, width, 3) pictures; what an earlier run drew is read."""
    options = {"regions": regions, "num_inference_steps": FULL.num_inference_steps}
    drawings = Drawings(FOLDER, drawing_runtime(), options, batch_size=BATCH)
    jobs = [
        [
            Job(prompt=scene.text, seed=FIRST_SEED + 100 * number + seed, setting=Setting())
            for seed in range(seeds)
        ]
        for number, scene in enumerate(drawn)
    ]
    flat = list(itertools.chain(*jobs))

    def report(done: int) -> None:
        print(f"regions={regions}: {done} of {len(flat)} pictures", flush=True)

    drawings.draw(flat, report)
    return np.array([[np.asarray(drawings.picture(job)) for job in row] for row in jobs])


def judge(pictures: np.ndarray, scene: Scene, probe: SubjectProbe) -> dict[str, list[float]]:
    """For every picture of a scene what the probes see in it, from 0 to 1, and how near it is to the text."""
    measures = measure_pictures(pictures, [{}] * len(pictures), ())
    answers = probe(pictures, scene.question)
    plain = str(read_marks(scene.text, ()).text)
    for name in SUBJECTS:
        plain = plain.replace(subject_named(name).token, subject_named(name).noun)
    text = text_scorer().embed_texts([plain])[0]
    return {
        "both": [float(set(answer) == set(scene.things)) for answer in answers],
        "in_order": [float(answer == scene.things) for answer in answers],
        "both_nouns": [float(set(scene.nouns) <= set(measures.seen(at, 2))) for at in range(len(pictures))],
        "place": [float(place == scene.place) for place in measures.places],
        "text": [float(one @ text) for one in measures.whole],
    }


def summary(
    kind: str, drawn: Sequence[Scene], figures: dict[str, list[dict[str, list[float]]]]
) -> dict[str, Any]:
    """The means of one kind of join, without regions and with them."""
    row: dict[str, Any] = {"what": kind, "prompts": len(drawn)}
    for name, one in figures.items():
        row[name] = {
            key: round(float(np.mean([value for scene in one for value in scene[key]])), 4) for key in one[0]
        }
    row["worse"] = sorted(
        key for key in row["auto"] if key != "text" and row["auto"][key] < row["none"][key] - TOLERANCE
    )
    return row


def taught(drawn: Sequence[Scene], pictures: int) -> SubjectProbe:
    """The probe of the scenes' subjects and things; that of an earlier run where it was taught the same."""
    questions = [scene.question for scene in drawn]
    name = hashlib.sha256(repr((sorted(set(map(str, questions))), pictures)).encode()).hexdigest()[:16]
    path = FOLDER / f"probe-{name}.npz"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        SubjectProbe.taught(questions, pictures).save(path)
    return SubjectProbe.load(path)


def main() -> int:
    """Draw, judge, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help="of each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--short", action="store_true", help="one prompt of each kind, one seed, and no record"
    )
    args = parser.parse_args()
    torch.set_num_threads(threads())
    everything = scenes()
    drawn = [scene for scene in everything if scene.has_places]
    if args.short:
        drawn = [next(scene for scene in drawn if scene.kind == kind) for kind in JOINS if kind != "one"]
    for name in SUBJECTS:
        drawing_runtime().load_concept(name)
    pictures = {
        name: draw(drawn, 1 if args.short else args.seeds, regions)
        for name, regions in (("auto", "auto"), ("none", None))
    }
    probe = taught(drawn, FULL.probe_scenes // (20 if args.short else 2))
    judged = {
        name: [judge(own, scene, probe) for own, scene in zip(one, drawn, strict=True)]
        for name, one in pictures.items()
    }
    rows = []
    for kind in ("all", *(kind for kind in JOINS if kind != "one")):
        chosen = [at for at, scene in enumerate(drawn) if kind in ("all", scene.kind)]
        figures = {name: [one[at] for at in chosen] for name, one in judged.items()}
        rows.append(summary(kind, [drawn[at] for at in chosen], figures))
        print(rows[-1], flush=True)
    rows[0] |= {
        "seeds": args.seeds,
        "read_once": len(everything) - len([one for one in everything if one.has_places]),
    }
    if not args.short:
        print(write_record("auto_regions", rows))
    return int(bool(rows[0]["worse"]))


if __name__ == "__main__":
    raise SystemExit(main())
