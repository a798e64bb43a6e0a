"""python benchmarks/probe_accuracy.py: how often the probe that knows the subjects is right.

It is taught as the evaluation teaches it, then asked about true pictures of other seeds: every subject beside every
second thing of the evaluation's prompts, and every pair. A picture counts when both of its halves are right. A false
alarm is a subject that is seen in a picture of ordinary things: in true pictures, and in drawings of the base model,
which knows none of the subjects. A drawing passes if the probe sees in it all that was expected of the concepts.
Pictures and penalty of the regression were fixed before a drawing was shown to it.
"""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.evaluation.artists import Job, RuntimeArtist
from benchmarks.evaluation.cutting import as_array
from benchmarks.evaluation.methods import Setting
from benchmarks.evaluation.models import threads
from benchmarks.evaluation.plan import FULL, subject_named
from benchmarks.evaluation.prompts import PAIR_PROMPTS, PROMPTS, Prompt, plain_text
from benchmarks.evaluation.subject_probe import SEED, Question, SubjectProbe, compose, questions_of
from benchmarks.record import write_record
from perfusion.embedded import scorer_path
from recipes.pocket.subjects import SUBJECTS

PICTURES, FIRST_SEED = 48, 700
"""Of each question, and the seed of the first question's true pictures; none of them was taught with."""
DRAWINGS, FIRST_NOISE = 2, 60_000
"""Of each of the base model's prompts, and the seed of the first."""
NAMES = {subject.name for subject in SUBJECTS}


def accuracy(probe: SubjectProbe, question: Question, seed: int) -> dict[str, Any]:
    """Shares of unseen true pictures: with both halves right, and with a subject seen where there is none."""
    pictures, truth = compose(question.things, question.places, PICTURES, seed)
    answers = probe(pictures, question)
    labels = [(left, right) for left, right in truth.tolist()]
    ordinary = [answer for answer, label in zip(answers, labels, strict=True) if not NAMES & set(label)]
    return {
        "question": " + ".join(question.expected),
        "right": np.mean([answer == label for answer, label in zip(answers, labels, strict=True)]),
        "alarms": [bool(NAMES & set(answer)) for answer in ordinary],
    }


def summary(
    what: str, rows: Sequence[dict[str, Any]], mistakes: Sequence[tuple[bool, bool]]
) -> dict[str, Any]:
    """What the record says of one kind of question."""
    worst = min(rows, key=lambda row: float(row["right"]))
    return {
        "what": what, "questions": len(rows), "pictures": PICTURES * len(rows),
        "right": round(float(np.mean([row["right"] for row in rows])), 4),
        "worst": round(float(worst["right"]), 4), "worst_question": worst["question"],
        "false_alarms": round(float(np.mean(np.concatenate([row["alarms"] for row in rows]))), 4),
        "false_alarms_in_drawings": round(float(np.mean([seen for seen, _ in mistakes])), 4),
        "passed_in_drawings": round(float(np.mean([passed for _, passed in mistakes])), 4), "drawings": len(mistakes),
        "by_question": {row["question"]: round(float(row["right"]), 4) for row in rows},
    }  # fmt: skip


def answers_to_drawings(
    probe: SubjectProbe, questions: Sequence[Question], prompts: Sequence[tuple[Prompt, ...]]
) -> list[tuple[bool, bool]]:
    """For drawings of ordinary things by the base model: whether the probe sees a subject, and everything expected.

    Args:
        prompts: for each question those that ask for its things.
    """
    artist = RuntimeArtist(None, {}, (), FULL.num_inference_steps)
    mistakes = list[tuple[bool, bool]]()
    for question, question_prompts in zip(questions, prompts, strict=True):
        nouns = [subject_named(name).noun for name in question.subjects]
        jobs = [
            Job(text=plain_text(prompt, *nouns), seed=FIRST_NOISE + 100 * number + seed, setting=Setting())
            for number, prompt in enumerate(question_prompts)
            for seed in range(DRAWINGS)
        ]
        answers = probe(as_array(artist.draw(jobs)), question)
        mistakes += [(bool(NAMES & set(answer)), set(answer) == set(question.expected)) for answer in answers]
    return mistakes


def main() -> int:
    """Teach, ask, print, record."""
    torch.set_num_threads(threads())
    seconds, pairs = questions_of(FULL)
    start = time.process_time()
    probe = SubjectProbe.taught([*seconds, *pairs], FULL.probe_scenes)
    rows: list[dict[str, Any]] = [
        {
            "what": "probe", "core_seconds": round(time.process_time() - start, 1), "scenes": FULL.probe_scenes,
            "seed": SEED,
            "scorer_sha256": hashlib.sha256((scorer_path() / "image.onnx").read_bytes()).hexdigest(),
        }
    ]  # fmt: skip
    print(rows[0], flush=True)
    by_second = [(prompt,) for _ in FULL.subjects for prompt in PROMPTS if prompt.other]
    by_pair = [PAIR_PROMPTS for _ in pairs]
    first = FIRST_SEED
    for what, questions, prompts in (("second things", seconds, by_second), ("pairs", pairs, by_pair)):
        found = [accuracy(probe, question, first + number) for number, question in enumerate(questions)]
        first += len(questions)
        rows.append(summary(what, found, answers_to_drawings(probe, questions, prompts)))
        print(rows[-1], flush=True)
    print(write_record("probe_accuracy", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
