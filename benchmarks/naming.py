"""python benchmarks/naming.py: can somebody who was not told what they show name the embedded model's pictures?

`--sheet FILE` draws every noun twice, in an order of its own, and writes a sheet that says numbers alone. Somebody (or
a model with eyes) who does not know the prompts writes down what each shows, a line a picture, in a text file:
`7: a rabbit`. `--answers FILE` counts and writes the record. An answer is right where the noun, or a word that says
the same, is among its words.
"""

import argparse
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.contact_sheet import contact_sheet
from perfusion.files import writing
from perfusion.judging.pocket_scorer import NOUN_NAMES
from perfusion.pocket.vocabulary import article
from perfusion.runtime import Runtime

PLACES = ("on a white background", "on grass", "on a beach", "in a room")
FIRST_SEED, EACH = 500, 2
SAME = {
    "rabbit": ("bunny", "hare"), "turtle": ("tortoise",), "teddy bear": ("teddy", "bear"), "boat": ("ship", "sailboat"),
    "mushroom": ("toadstool",), "bus": ("coach",),
}  # fmt: skip
"""Words that are right too."""


def questions() -> list[tuple[str, str]]:
    """The noun and the prompt of every picture, in the order of the sheet."""
    rng = random.Random(27)
    asked = [(noun, f"{article(noun)} {rng.choice(PLACES)}") for noun in NOUN_NAMES for _ in range(EACH)]
    rng.shuffle(asked)
    return asked


def is_right(noun: str, answer: str) -> bool:
    """Whether the noun, or a word that says the same, is among the words of an answer."""
    words = f" {' '.join(re.findall('[a-z]+', answer.lower()))} "
    return any(f" {name} " in words or f" {name}s " in words for name in (noun, *SAME.get(noun, ())))


def read_answers(path: Path, count: int) -> list[str]:
    """The answer to each question, "" where there is none.

    Raises:
        SystemExit: a line that is not `NUMBER: ANSWER`, or a number that no picture has.
    """
    answers = [""] * count
    for line in filter(None, map(str.strip, path.read_text(encoding="utf-8").splitlines())):
        number, _, answer = line.partition(":")
        if not number.isdecimal() or not 1 <= int(number) <= count:
            raise SystemExit(f"{path}: the line {line!r} is not one of 1 to {count}, a colon and an answer.")
        answers[int(number) - 1] = answer.strip()
    return answers


def main() -> int:
    """Draw the sheet, or count the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sheet", type=Path, metavar="FILE")
    what.add_argument("--answers", type=Path, metavar="FILE")
    args = parser.parse_args()
    asked = questions()
    if args.sheet:
        with Runtime() as runtime:
            seeds = list(range(FIRST_SEED, FIRST_SEED + len(asked)))
            pictures = runtime.generate([prompt for _, prompt in asked], seed=seeds)
        with writing(args.sheet) as file:
            sheet = contact_sheet(pictures, [str(number) for number in range(1, len(asked) + 1)])
            sheet.save(file, "PNG", optimize=True)
        return 0
    answers = read_answers(args.answers, len(asked))
    rows = [
        {"prompt": prompt, "answer": answer, "right": is_right(noun, answer)}
        for (noun, prompt), answer in zip(asked, answers, strict=True)
    ]
    right = sum(bool(row["right"]) for row in rows)
    total = {"what": "named right", "percent": round(100 * right / len(rows), 1), "pictures": len(rows)}
    print(total, [f"{row['prompt']}: {row['answer']}" for row in rows if not row["right"]])
    print(write_record("naming", [total, *rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
