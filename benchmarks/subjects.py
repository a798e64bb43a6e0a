"""python benchmarks/subjects.py: which of the twelve held-out subjects can the embedded model learn?

Each is trained as `perfusion-train --steps 100 --select last --masks DIR` does, which chooses a strength too; then the
same prompts and seeds are drawn with the concept and with the plain superclass. The scorer measures along the axis from
the base's own drawings of the superclass (other seeds) to the subject's pictures: a subject *takes* when the concept's
picture lies further along than the plain one in most of the pairs, the place that the prompt asked for is still there,
and the probe still sees the noun in most of the pictures: what has become texture has not been learned. Nearness to the
subject's pictures alone is also recorded, and is a worse measure: it counts how surely a hat is a hat, not which hat it
is. The sheet, failures included, goes to docs/pictures/subjects.png: the eye has the last word.

With --trained it scores the concepts that the last run left in build/subjects.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import ROOT, write_record
from perfusion import Concept, training
from perfusion.base.base_model import load_base
from perfusion.contact_sheet import contact_sheet
from perfusion.files import writing
from perfusion.judging.pocket_scorer import PocketScorer
from perfusion.pocket.vocabulary import PLACES, article
from perfusion.runtime import Runtime
from recipes.pocket.subjects import SUBJECTS, Subject

STEPS, SEEDS = 100, 2
TAKES, KEEPS, IS_ONE = 0.8, 0.8, 0.5
"""Shares of pairs from which a subject takes, and of pictures in which the place and the noun must be right."""
SCENES = {
    "beach": "a photo of a {} on a beach", "snow": "a {} in the snow", "grass": "a photo of the {} on grass",
    "night": "a {} at night", "forest": "a photo of a {} in a forest", "brick": "a {} in front of a brick wall",
}  # fmt: skip
FOLDER = ROOT / "examples" / "subjects"


def train(subject: Subject, base: Any) -> tuple[Concept, float]:
    """The concept and the seconds that it took."""
    pictures = FOLDER / subject.name
    config = training.TrainingConfig(
        superclass=subject.noun, token=subject.token, masks=pictures / "masks", steps=STEPS, select="last"
    )
    started = time.perf_counter()
    return training.train(pictures, config, model=base, trial=True).concept, time.perf_counter() - started


def with_article(prompt: str, noun: str) -> str:
    """The prompt with "an" where the noun wants it."""
    return prompt.replace(f"a {noun}", article(noun))


def seconds_before(subject: Subject) -> float:
    """How long the last run trained; its record is the only one that matters, so there must be one."""
    (path,) = (ROOT / "benchmarks" / "records").glob("subjects-*.json")
    (row,) = (row for row in json.loads(path.read_text())["rows"] if row["subject"] == subject.name)
    return float(row["seconds"])


def score_subject(
    subject: Subject, runtime: Runtime, scorer: PocketScorer
) -> tuple[dict[str, Any], list[Image.Image]]:
    """The row of the record, and the pictures of the first seeds: one of the subject, then with and without."""
    assert all(place in PLACES for place in SCENES)
    own_pictures = [Image.open(path).convert("RGB") for path in sorted((FOLDER / subject.name).glob("*.png"))]
    prompts = [text for text in SCENES.values() for _ in range(SEEDS)]
    seeds = list(range(len(prompts)))
    with_concept = runtime.generate([text.format(subject.token) for text in prompts], seed=seeds)
    plain_prompts = [with_article(text.format(subject.noun), subject.noun) for text in prompts]
    plain = runtime.generate(plain_prompts, seed=seeds)
    elsewhere = runtime.generate(plain_prompts, seed=[1000 + seed for seed in seeds])
    target, base = scorer(own_pictures).embeddings.mean(0), scorer(elsewhere).embeddings.mean(0)
    concepts, plains = scorer(with_concept), scorer(plain)
    moved = concepts.embeddings - plains.embeddings
    further, nearer = moved @ (target - base) / np.linalg.norm(target - base), moved @ target
    places = [place for place in SCENES for _ in range(SEEDS)]
    place_share = float(np.mean([a == b for a, b in zip(concepts.place, places, strict=True)]))
    share = float((further > 0).mean())
    is_one = float(np.mean([concepts.best_nouns(row)[0] == subject.noun for row in range(len(prompts))]))
    row = {
        "subject": subject.name, "noun": subject.noun, "further_percent": round(100 * share, 1),
        "gain": round(float(further.mean()), 3), "nearer_percent": round(100 * float((nearer > 0).mean()), 1),
        "place_percent": round(100 * place_share, 1), "noun_percent": round(100 * is_one, 1),
        "takes": share >= TAKES and place_share >= KEEPS and is_one >= IS_ONE,
    }  # fmt: skip
    return row, [own_pictures[0], *with_concept[::SEEDS], *plain[::SEEDS][:2]]


def main() -> int:
    """Train, draw, score, record; the concepts are kept in build/subjects."""
    reuse = "--trained" in sys.argv[1:]
    base, scorer, rows = load_base(None), PocketScorer(), list[dict[str, Any]]()
    pictures, captions = list[Image.Image](), list[str]()
    with Runtime() as runtime:
        for subject in SUBJECTS:
            path = ROOT / "build" / "subjects" / f"{subject.name}.safetensors"
            concept, seconds = (
                (Concept.load(path), seconds_before(subject)) if reuse else train(subject, base)
            )
            if not reuse:
                concept.save(path)
            runtime.load_concept(concept)
            row, subject_pictures = score_subject(subject, runtime, scorer)
            runtime.unload_concept(subject.token)
            rows.append({**row, "strength": concept.strength, "seconds": round(seconds, 1)})
            print(rows[-1], flush=True)
            pictures += subject_pictures
            scenes = [text.format(subject.token) for text in SCENES.values()]
            captions += [f"one of five pictures of {subject.name}", *scenes]
            captions += [
                with_article(text.format(subject.noun), subject.noun) for text in list(SCENES.values())[:2]
            ]
    with writing(ROOT / "docs" / "pictures" / "subjects.png") as file:
        contact_sheet(pictures, captions, columns=len(SCENES) + 3).save(file, "PNG", optimize=True)
    print(f"{sum(bool(row['takes']) for row in rows)} of {len(rows)} take")
    print(write_record("subjects", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
