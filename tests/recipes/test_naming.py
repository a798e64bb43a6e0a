"""The pictures that somebody names who was not told what they show."""

import json
from pathlib import Path

import pytest

from benchmarks.naming import is_right, questions, read_answers
from perfusion.judging.pocket_scorer import NOUN_NAMES


def test_every_noun_is_asked_twice_and_never_in_a_row_of_its_own() -> None:
    nouns = [noun for noun, _ in questions()]
    assert sorted(nouns) == sorted([*NOUN_NAMES] * 2)
    assert nouns != sorted(nouns)
    assert questions() == questions()


@pytest.mark.parametrize(
    ("noun", "answer", "right"),
    [
        ("rabbit", "A white Rabbit.", True),
        ("rabbit", "bunny", True),
        ("car", "two cars", True),
        ("car", "a cart", False),
        ("teddy bear", "a brown bear", True),
        ("house", "a mouse", False),
        ("cat", "", False),
    ],
)
def test_an_answer_is_right_where_it_says_the_noun(noun: str, answer: str, right: bool) -> None:
    assert is_right(noun, answer) is right


def test_answers_are_read_by_their_numbers_and_other_lines_refused(tmp_path: Path) -> None:
    file = tmp_path / "answers.txt"
    file.write_text("2: a cat\n\n1: a dog: brown\n")
    assert read_answers(file, 3) == ["a dog: brown", "a cat", ""]
    for line in ("a cat", "0: a cat", "4: a cat"):
        file.write_text(line)
        with pytest.raises(SystemExit, match="is not one of 1 to 3"):
            read_answers(file, 3)


def test_the_page_gives_the_share_of_the_record() -> None:
    root = Path(__file__).parents[2]
    (record,) = (root / "benchmarks" / "records").glob("naming-*.json")
    total, *rows = json.loads(record.read_text())["rows"]
    assert [(row["prompt"]) for row in rows] == [prompt for _, prompt in questions()]
    right = [is_right(noun, row["answer"]) for (noun, _), row in zip(questions(), rows, strict=True)]
    assert total["pictures"] == len(right) and total["percent"] == round(100 * sum(right) / len(right), 1)
    page = " ".join((root / "docs" / "pocket.md").read_text(encoding="utf-8").split())
    assert f"named **{sum(right)} of {len(right)}** right" in page
