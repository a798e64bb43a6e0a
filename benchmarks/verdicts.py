"""python benchmarks/verdicts.py: does the verdict after a training agree with benchmarks/subjects.py?

Each of the twelve held-out subjects is trained with three seeds, as `perfusion-train --steps 100 --select last --masks
DIR` does. The verdict of
`perfusion.training.trial` comes from its own prompts and seeds in ten steps; whether the subject *takes* is measured as
benchmarks/subjects.py does it, by the runtime in twenty. They agree where the verdict is "learned" for what takes and
anything else for what does not. The aim: 11 of 12 subjects on each seed, and
nothing called learned that does not take.

Concepts and rows are kept in build/verdicts, so that an interrupted run goes on; --seeds N does fewer, and the record
is written when all three are there. About an hour and a half on one quiet core.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record
from benchmarks.subjects import FOLDER, STEPS, score_subject
from perfusion import Concept
from perfusion.base.base_model import BaseModel, load_base
from perfusion.files import writing
from perfusion.judging.pocket_scorer import PocketScorer
from perfusion.judging.verdict import LEARNED
from perfusion.runtime import Runtime
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.picture_folder import find_pictures
from perfusion.training.placement import Placement, frozen_on_device
from perfusion.training.samples import encode_pictures
from perfusion.training.training_pictures import load_picture
from perfusion.training.trial import Trial, try_out
from recipes.pocket.subjects import SUBJECTS, Subject

SEEDS = 3
BUILD = ROOT / "build" / "verdicts"


def config_of(subject: Subject, seed: int) -> TrainingConfig:
    """As benchmarks/subjects.py trains."""
    return TrainingConfig(
        superclass=subject.noun, token=subject.token, masks=FOLDER / subject.name / "masks", steps=STEPS, seed=seed,
        select="last",
    )  # fmt: skip


def concept_of(subject: Subject, seed: int, base: BaseModel) -> Concept:
    """Trained now, or by an earlier run."""
    path = BUILD / f"{subject.name}-{seed}.safetensors"
    if not path.is_file():
        train_concept(FOLDER / subject.name, config_of(subject, seed), model=base).save(path)
    return Concept.load(path)


def trial_of(subject: Subject, concept: Concept, base: BaseModel) -> Trial:
    """What `perfusion-train` would say of the concept."""
    options, placement = config_of(subject, 0), Placement.pick()
    paths = find_pictures(FOLDER / subject.name)
    pictures = [load_picture(path, options.masks) for path in paths]
    with frozen_on_device(base, placement.device):
        samples = encode_pictures(base, pictures, options, placement)
        return try_out(base, concept, samples, [path.name for path in paths], options, placement, print)


def compare(
    subject: Subject, seed: int, base: BaseModel, runtime: Runtime, scorer: PocketScorer
) -> dict[str, Any]:
    """The row of the record; the sheet is kept beside the concept."""
    concept = concept_of(subject, seed, base)
    began = time.perf_counter()
    trial = trial_of(subject, concept, base)
    seconds = time.perf_counter() - began
    with writing(BUILD / f"{subject.name}-{seed}.sheet.png") as file:
        trial.sheet.save(file, "PNG")
    runtime.load_concept(concept, strength=trial.strength)
    measured, _ = score_subject(subject, runtime, scorer)
    runtime.unload_concept(subject.token)
    return {
        "subject": subject.name, "seed": seed, **trial.as_dict(), "seconds": round(seconds, 1),
        "takes": measured["takes"], "noun_percent": measured["noun_percent"],
        "further_percent": measured["further_percent"], "place_percent": measured["place_percent"],
    }  # fmt: skip


def summary(rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Of one seed: the subjects on which both agree, and those wrongly called learned."""
    mine = [row for row in rows if row["seed"] == seed]
    learned = {row["subject"] for row in mine if row["grade"] == LEARNED}
    takes = {row["subject"] for row in mine if row["takes"]}
    return {
        "what": "seed", "seed": seed, "subjects": len(mine), "agree": len(mine) - len(learned ^ takes),
        "wrongly_learned": sorted(learned - takes), "wrongly_not": sorted(takes - learned),
    }  # fmt: skip


def main() -> int:
    """Train, judge, compare, record."""
    seeds = range(int(sys.argv[sys.argv.index("--seeds") + 1]) if "--seeds" in sys.argv else SEEDS)
    base, scorer, rows = load_base(None), PocketScorer(), list[dict[str, Any]]()
    with Runtime() as runtime:
        for seed in seeds:
            for subject in SUBJECTS:
                path = BUILD / f"{subject.name}-{seed}.json"
                if not path.is_file():
                    row = compare(subject, seed, base, runtime, scorer)
                    with writing(path, "w") as file:
                        json.dump(row, file)
                rows.append(json.loads(path.read_text("utf-8")))
                print(rows[-1], flush=True)
    summaries = [summary(rows, seed) for seed in seeds]
    print(*summaries, sep="\n")
    if len(seeds) >= SEEDS:
        print(write_record("verdicts", [*summaries, *rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
