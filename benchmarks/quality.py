"""python benchmarks/quality.py: does the embedded model draw what 200 prompts say? The probes look at 800 pictures.

Prompts are put together from a seed of their own: a noun in a place, a coloured noun in a place, two nouns in a
relation. The probes are classifiers trained on the world's scenes (`perfusion.judging.pocket_scorer`); their own
accuracies are in the record, and they are the ceiling of what can be measured with them.
"""

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.judging.pocket_scorer import PocketScorer, ProbeAnswers
from perfusion.pocket.vocabulary import COLOURS, NOUNS, PLACES, article
from perfusion.runtime import Runtime

COUNTS = {"noun": 80, "colour": 60, "pair": 60}
SEEDS, STEPS = 4, 25
RELATIONS = ("and", "next to", "to the left of", "to the right of")
BARS = {"place": 0.95, "noun": 0.80, "colour": 0.75, "both nouns": 0.50}


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and what must be seen in its pictures."""

    kind: str
    text: str
    nouns: tuple[str, ...]
    place: str
    colour: str = ""


def make_prompts(seed: int = 20) -> list[Prompt]:
    """The 200 prompts; every noun and every place comes up about as often as any other."""
    rng, prompts = random.Random(seed), []
    nouns, places = list(NOUNS), list(PLACES)
    for kind, count in COUNTS.items():
        for number in range(count):
            noun, place = nouns[number % len(nouns)], rng.choice(places)
            where, colour = rng.choice(PLACES[place]), ""
            things: tuple[str, ...] = (noun,)
            if kind == "noun":
                what = f"a photo of {article(noun)}"
            elif kind == "colour":
                colour = rng.choice(list(COLOURS))
                what = article(f"{colour} {noun}")
            else:
                other = rng.choice([one for one in nouns if one != noun])
                what = f"{article(noun)} {rng.choice(RELATIONS)} {article(other)}"
                things = (noun, other)
            prompts.append(
                Prompt(kind=kind, text=f"{what} {where}", nouns=things, place=place, colour=colour)
            )
    return prompts


def score_prompt(prompt: Prompt, answers: ProbeAnswers) -> dict[str, list[bool]]:
    """What is right in the pictures of one prompt."""
    rows = range(len(answers.place))
    right = {"place": [answers.place[row] == prompt.place for row in rows]}
    if prompt.kind == "pair":
        right["both nouns"] = [set(answers.best_nouns(row, 2)) == set(prompt.nouns) for row in rows]
    else:
        right["noun"] = [answers.best_nouns(row)[0] == prompt.nouns[0] for row in rows]
    if prompt.kind == "colour":
        right["colour"] = [answers.colour[row] == prompt.colour for row in rows]
    return right


def main() -> int:
    """Draw, score, record."""
    scorer, answers_by_name, by_noun = PocketScorer(), dict[str, list[bool]](), dict[str, list[bool]]()
    started = time.perf_counter()
    with Runtime() as runtime:
        for number, prompt in enumerate(make_prompts()):
            seeds = [SEEDS * number + one for one in range(SEEDS)]
            pictures = runtime.generate([prompt.text] * SEEDS, seed=seeds, num_inference_steps=STEPS)
            right = score_prompt(prompt, scorer(pictures))
            for name, answers in right.items():
                answers_by_name.setdefault(name, []).extend(answers)
            by_noun.setdefault(prompt.nouns[0], []).extend(right.get("noun", []))
    rows = [
        {"what": f"{name} right", "percent": round(100 * sum(answers_by_name[name]) / len(answers_by_name[name]), 1),
         "bar": 100 * bar, "pictures": len(answers_by_name[name])}
        for name, bar in BARS.items()
    ]  # fmt: skip
    for row in rows:
        print(row)
    accuracies = {name: round(100 * share, 1) for name, share in scorer.accuracies.items()}
    weakest = sorted((round(100 * sum(right) / len(right)), noun) for noun, right in by_noun.items())[:6]
    print("the probes' own accuracies:", accuracies, "weakest nouns:", weakest)
    rows.append({"what": "the probes' own accuracies, percent", **accuracies})
    rows.append({"what": "weakest nouns, percent", **{noun: share for share, noun in weakest}})
    print(f"{time.perf_counter() - started:.0f} s")
    print(write_record("quality", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
