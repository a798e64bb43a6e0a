"""python benchmarks/quality.py: does the embedded model draw what its prompts say? The probes look at the pictures.

200 prompts are put together from a seed of their own: a noun in a place, a coloured noun in a place, two nouns in a
relation. A second set asks what has to be composed: which of two things stands left, how many there are, and nouns in
places and beside nouns that the training never had together (`recipes/pocket/withheld.py`). A third, without a bar,
asks for four and five things. The probes are classifiers trained on the world's scenes
(`perfusion.judging.pocket_scorer`); their own accuracies, on unseen scenes, are in the record. A share above them says
only that the model's drawings are easier to tell than the scenes.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.record import write_record
from perfusion.judging.pocket_scorer import NOUN_NAMES, PocketScorer, ProbeAnswers
from perfusion.pocket.vocabulary import COLOURS, COUNTS, NOUNS, PLACES, article, plural
from perfusion.runtime import Runtime
from recipes.pocket.language import COUNTS as ALL_COUNTS
from recipes.pocket.withheld import is_withheld, withheld_noun_pairs, withheld_noun_places

KINDS = {"noun": 80, "colour": 60, "pair": 60}
SIDES, EACH_COUNT = 60, 24
SEEDS, STEPS = 4, 25
RELATIONS = ("and", "next to", "to the left of", "to the right of")
BARS = {
    "place": 0.99,
    "noun": 0.97,
    "colour": 0.95,
    "both nouns": 0.90,
    "left and right": 0.90,
    "count": 0.90,
}
COMPOSED = ("a noun in its place", "both nouns of a pair")
"""What is told apart by whether the training had it together."""
ALLOWED_LOSS = 5.0
"""Percentage points that withheld combinations may be behind the trained ones."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt and what must be seen in its pictures."""

    kind: str
    text: str
    nouns: tuple[str, ...]
    """The left one first where it is told."""
    place: str
    colour: str = ""
    count: int = 0

    @property
    def withheld(self) -> bool:
        """Whether the training never had these two things together, or the one in this place."""
        return is_withheld(*self.nouns) if len(self.nouns) == 2 else is_withheld(self.nouns[0], self.place)

    @property
    def pair_in_withheld_place(self) -> bool:
        """Whether one of two things was never in this place: what is wrong then may be the place's fault."""
        return len(self.nouns) == 2 and any(is_withheld(noun, self.place) for noun in self.nouns)


def make_prompts(seed: int = 20) -> list[Prompt]:
    """The 200 prompts; every noun and every place comes up about as often as any other."""
    rng, prompts = random.Random(seed), []
    nouns, places = list(NOUNS), list(PLACES)
    for kind, count in KINDS.items():
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


def make_compositions(seed: int = 21) -> list[Prompt]:
    """The second set: sides, counts to three, and every withheld combination once."""
    rng, prompts = random.Random(seed), []
    nouns = list(NOUNS)
    for number in range(SIDES):
        left = nouns[number % len(nouns)]
        right = rng.choice([noun for noun in nouns if noun != left and not is_withheld(left, noun)])
        place = _place(rng, left, right)
        first, second = article(left), article(right)
        what = rng.choice((f"{first} to the left of {second}", f"{second} to the right of {first}"))
        prompts.append(_prompt(rng, "side", what, (left, right), place))
    for count, word in COUNTS.items():
        for noun in rng.sample(nouns, EACH_COUNT):
            what = f"{word} {noun if count == 1 else plural(noun)}"
            prompts.append(_prompt(rng, "count", what, (noun,), _place(rng, noun), count))
    for noun, place in withheld_noun_places():
        prompts.append(_prompt(rng, "noun", f"a photo of {article(noun)}", (noun,), place))
    for pair in withheld_noun_pairs():
        what = f"{article(pair[0])} {rng.choice(RELATIONS)} {article(pair[1])}"
        prompts.append(_prompt(rng, "pair", what, pair, _place(rng, *pair)))
    return prompts


def make_larger_counts(seed: int = 22) -> list[Prompt]:
    """The third set: every noun by four and by five, in places that the training had it in."""
    rng = random.Random(seed)
    return [
        _prompt(rng, "count", f"{word} {plural(noun)}", (noun,), _place(rng, noun), count)
        for count, word in ALL_COUNTS.items()
        if count not in COUNTS
        for noun in NOUNS
    ]


def _place(rng: random.Random, *nouns: str) -> str:
    """A place that the training had with each of the nouns."""
    return rng.choice([place for place in PLACES if not any(is_withheld(noun, place) for noun in nouns)])


def _prompt(
    rng: random.Random, kind: str, what: str, nouns: tuple[str, ...], place: str, count: int = 0
) -> Prompt:
    text = f"{what} {rng.choice(PLACES[place])}"
    return Prompt(kind=kind, text=text, nouns=nouns, place=place, count=count)


def score_prompt(prompt: Prompt, answers: ProbeAnswers) -> dict[str, list[bool]]:
    """What is right in the pictures of one prompt."""
    rows = range(len(answers.place))
    right = {"place": [answers.place[row] == prompt.place for row in rows]}
    if len(prompt.nouns) == 2:
        right["both nouns"] = [set(answers.best_nouns(row, 2)) == set(prompt.nouns) for row in rows]
    else:
        right["noun"] = [answers.best_nouns(row)[0] == prompt.nouns[0] for row in rows]
    if prompt.kind == "colour":
        right["colour"] = [answers.colour[row] == prompt.colour for row in rows]
    if prompt.kind == "count":  # of the right things
        right["count"] = [right["noun"][row] and answers.count[row] == prompt.count for row in rows]
    if prompt.kind == "side":
        left, other = (answers.where[:, NOUN_NAMES.index(noun)] for noun in prompt.nouns)
        # things that are not both there stand in no order
        right["left and right"] = [bool(right["both nouns"][row] and left[row] < other[row]) for row in rows]
    return right


Scored = list[tuple[Prompt, dict[str, list[bool]]]]


def score_all(runtime: Runtime, scorer: PocketScorer, prompts: Sequence[Prompt], first_seed: int) -> Scored:
    """Draw every prompt with seeds of its own and look at the pictures."""
    scored = []
    for number, prompt in enumerate(prompts):
        seeds = [first_seed + SEEDS * number + one for one in range(SEEDS)]
        pictures = runtime.generate([prompt.text] * SEEDS, seed=seeds, num_inference_steps=STEPS)
        scored.append((prompt, score_prompt(prompt, scorer(pictures))))
    return scored


def shares(scored: Scored) -> dict[str, tuple[float, int]]:
    """What → percent right, and of how many pictures."""
    answers: dict[str, list[bool]] = {}
    for _, right in scored:
        for name, hits in right.items():
            answers.setdefault(name, []).extend(hits)
    return {name: (round(100 * sum(hits) / len(hits), 1), len(hits)) for name, hits in answers.items()}


def composed(scored: Scored) -> list[dict[str, object]]:
    """Combinations that the training had against those it did not: a noun and its place, both nouns of a pair."""
    rows: list[dict[str, object]] = []
    for what, kind, names in zip(
        COMPOSED, ("noun", "pair"), (("noun", "place"), ("both nouns",)), strict=True
    ):
        row: dict[str, object] = {"what": what, "allowed_loss": ALLOWED_LOSS}
        for title, withheld in (("trained", False), ("withheld", True)):
            chosen = [
                right
                for prompt, right in scored
                if prompt.kind == kind and prompt.withheld == withheld and not prompt.pair_in_withheld_place
            ]
            hits = [
                all(together)
                for right in chosen
                for together in zip(*(right[name] for name in names), strict=True)
            ]
            row |= {title: round(100 * sum(hits) / len(hits), 1), f"{title}_pictures": len(hits)}
        rows.append(row)
    return rows


def weakest(scored: Scored, name: str, word_of: Callable[[Prompt], str]) -> dict[str, int]:
    """Of the nouns or the colours, the six that are right least often, and in how many percent of their pictures."""
    by_word: dict[str, list[bool]] = {}
    for prompt, right in scored:
        if name in right:
            by_word.setdefault(word_of(prompt), []).extend(right[name])
    percent = {word: round(100 * sum(hits) / len(hits)) for word, hits in by_word.items()}
    return dict(sorted(percent.items(), key=lambda item: (item[1], item[0]))[:6])


def main() -> int:
    """Draw, score, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="another bundle (default: the embedded model)")
    parser.add_argument("--scorer", type=Path, help="the folder of a scorer (default: the embedded one)")
    args = parser.parse_args()
    scorer, started = PocketScorer(args.scorer), time.perf_counter()
    with Runtime(args.bundle) if args.bundle else Runtime() as runtime:
        family = runtime.bundle.base
        first = score_all(runtime, scorer, make_prompts(), 0)
        second = score_all(runtime, scorer, make_compositions(), SEEDS * len(first))
        third = score_all(runtime, scorer, make_larger_counts(), SEEDS * (len(first) + len(second)))
    sides_and_counts = [pair for pair in second if pair[0].kind in ("side", "count")]
    found = shares(sides_and_counts) | shares(first)
    rows: list[dict[str, object]] = [
        {"what": f"{name} right", "percent": found[name][0], "bar": 100 * bar, "pictures": found[name][1]}
        for name, bar in BARS.items()
    ]
    larger = shares(third)["count"]
    rows.append({"what": "four and five right", "percent": larger[0], "pictures": larger[1]})
    rows += composed(first + second)
    accuracies = {name: round(100 * share, 1) for name, share in scorer.accuracies.items()}
    rows.append({"what": "the probes' own accuracies, percent", **accuracies})
    rows.append({"what": "weakest nouns, percent", **weakest(first, "noun", lambda prompt: prompt.nouns[0])})
    rows.append(
        {"what": "weakest colours, percent", **weakest(first, "colour", lambda prompt: prompt.colour)}
    )
    for row in rows:
        print(row)
    print(f"{time.perf_counter() - started:.0f} s")
    print(write_record("quality" if args.bundle is None else f"{family}-quality", rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
