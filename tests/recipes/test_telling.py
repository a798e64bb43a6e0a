"""The subjects that somebody tells from others of their kind who was not told which is which."""

import json
from collections import Counter
from pathlib import Path

from benchmarks.telling import EACH, questions
from recipes.pocket.subjects import SUBJECTS


def test_every_subject_is_asked_in_two_places_and_the_concept_is_on_either_side() -> None:
    asked = questions()
    assert Counter(question.subject.name for question in asked) == {
        subject.name: EACH for subject in SUBJECTS
    }
    assert len({(question.subject.name, question.scene) for question in asked}) == len(asked)
    assert len({question.seed for question in asked}) == len(asked)
    assert min(Counter(question.answer for question in asked).values()) >= len(asked) // 3
    assert questions() == asked


def test_the_page_gives_the_share_of_the_record() -> None:
    root = Path(__file__).parents[2]
    (record,) = (root / "benchmarks" / "records").glob("telling-*.json")
    total, *rows = json.loads(record.read_text())["rows"]
    right = [
        row["answer"].upper() == question.answer for question, row in zip(questions(), rows, strict=True)
    ]
    assert [row["right"] for row in rows] == right
    assert [row["subject"] for row in rows] == [question.subject.name for question in questions()]
    assert total["pictures"] == len(right) and total["percent"] == round(100 * sum(right) / len(right), 1)
    page = " ".join((root / "docs" / "pocket.md").read_text(encoding="utf-8").split())
    assert f"picked the concept's drawing **{sum(right)} times of {len(right)}**" in page
