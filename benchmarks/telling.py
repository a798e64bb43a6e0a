"""python benchmarks/telling.py: can somebody tell my thing from any other one of its kind?

`--sheet FILE` shows, for each of the twelve held-out subjects and two places, one of the subject's pictures and two
drawings from one seed, A and B: one with the concept and one with the plain noun, in an order by chance. The concepts
are those that `benchmarks/subjects.py` left in build/subjects. Somebody (or a model with eyes) who does not know which
is which writes down the one that looks more like the first picture, a line a question: `7: A`. `--answers FILE` counts
and writes the record. Guessing gives half.
"""

import argparse
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.naming import read_answers
from benchmarks.record import ROOT, write_record
from benchmarks.subjects import FOLDER, SCENES, with_article
from perfusion.contact_sheet import contact_sheet
from perfusion.files import writing
from perfusion.runtime import Runtime
from recipes.pocket.subjects import SUBJECTS, Subject

FIRST_SEED, EACH = 700, 2


@dataclass(frozen=True)
class Question:
    """One row of the sheet."""

    subject: Subject
    scene: str
    seed: int
    answer: str
    """A or B: where the concept's drawing is."""


def questions() -> list[Question]:
    """In the order of the sheet."""
    rng = random.Random(28)
    asked = [(subject, scene) for subject in SUBJECTS for scene in rng.sample(list(SCENES.values()), EACH)]
    rng.shuffle(asked)
    return [
        Question(subject, scene, FIRST_SEED + number, rng.choice("AB"))
        for number, (subject, scene) in enumerate(asked)
    ]


def draw(question: Question, runtime: Runtime) -> list[Image.Image]:
    """One of the subject's pictures, then A and B."""
    subject, seed = question.subject, question.seed
    own = sorted((FOLDER / subject.name).glob("*.png"))
    runtime.load_concept(ROOT / "build" / "subjects" / f"{subject.name}.safetensors")
    concept, plain = runtime.generate(
        [
            question.scene.format(subject.token),
            with_article(question.scene.format(subject.noun), subject.noun),
        ],
        seed=[seed, seed],
    )
    runtime.unload_concept(subject.token)
    pair = [concept, plain] if question.answer == "A" else [plain, concept]
    return [Image.open(own[seed % len(own)]).convert("RGB"), *pair]


def main() -> int:
    """Draw the sheet, or count the answers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", type=Path, metavar="FILE")
    what.add_argument("--answers", type=Path, metavar="FILE")
    args = parser.parse_args()
    asked = questions()
    if args.sheet:
        with Runtime() as runtime:
            pictures = [picture for question in asked for picture in draw(question, runtime)]
        captions = [text for number in range(1, len(asked) + 1) for text in (str(number), "A", "B")]
        with writing(args.sheet) as file:
            contact_sheet(pictures, captions, columns=6).save(file, "PNG", optimize=True)
        return 0
    rows = [
        {
            "subject": question.subject.name, "scene": question.scene.format(question.subject.token), "answer": answer,
            "right": answer.upper() == question.answer,
        }
        for question, answer in zip(asked, read_answers(args.answers, len(asked)), strict=True)
    ]  # fmt: skip
    right = sum(bool(row["right"]) for row in rows)
    total = {"what": "told right", "percent": round(100 * right / len(rows), 1), "pictures": len(rows)}
    print(total, [f"{row['scene']}: {row['answer']}" for row in rows if not row["right"]])
    print(write_record("telling", [total, *rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
