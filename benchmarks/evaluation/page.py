"""docs/evaluation.md: sentences and tables with the numbers filled in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.evaluation.figures import Interval, interval
from benchmarks.evaluation.findings import BYTES_FACTOR, LEAST, Verdict, verdicts
from benchmarks.evaluation.methods import FOR_PAIRS, METHODS, Method, method_named
from benchmarks.evaluation.plan import Plan
from benchmarks.evaluation.prose import (
    ABLATIONS,
    ANSWER,
    FRONT,
    INTRODUCTION,
    LEAKAGE,
    MEASURES,
    PAIRS,
    PICTURES,
    TABLE,
    TUNING,
)
from benchmarks.evaluation.results import Point, Results, difference
from benchmarks.evaluation.tuning import MORE_RATES
from perfusion.training import TrainingConfig
from perfusion.training.snapshot_choice import POCKET_PROMPTS

__all__ = ["BY_HAND", "page"]

BY_HAND = "## Reading"
"""What follows this heading is written by people and kept when the page is made anew."""
PAIRS_BAR = 0.6

Chosen = Mapping[str, Any]


def page(results: Results, plan: Plan, chosen: Chosen, methods: Sequence[Method]) -> str:
    """The page up to `BY_HAND`; a part that nothing was measured for is left out."""
    introduction = INTRODUCTION.format(subjects=len(results.base), prompts=len(plan.prompts), plan=plan)
    parts = [
        introduction, _interim(results, plan), _answer(results), _table(results), _front(results), _pairs(results),
        _ablations(results), _leakage(results), _measures(results, plan), _tuning(plan, chosen), _pictures(methods),
    ]  # fmt: skip
    return "\n".join(part.strip("\n") + "\n" for part in parts if part) + "\n"


def _interim(results: Results, plan: Plan) -> str:
    """What is missing, where the whole plan was not evaluated."""
    named = [method.title for method in METHODS if method.name not in results.facts]
    if not named and len(results.base) == len(plan.subjects):
        return ""
    missing = f"; not yet or not evaluated: {', '.join(named)}" if named else ""
    return f"**Interim: {len(results.base)} of {len(plan.subjects)} subjects{missing}.**"


def _answer(results: Results) -> str:
    lines, found = list[str](), verdicts(results)
    counting, larger = (_titles(one for one in found if one.counts is small) for small in (True, False))
    said = {
        "above": "above it",
        "on": f"on it, to less than {LEAST:g},",
        "beyond": "beyond its end, where it is most alike",
    }
    elsewhere = {how: _titles(one for one in found if one.stands == stands) for stands, how in said.items()}
    for titles, whose in (
        (counting, f"baselines of at most {BYTES_FACTOR} times its bytes lie"),
        (larger, "larger ones lie"),
    ):
        if titles:
            under = [title for title in titles if not any(title in those for those in elsewhere.values())]
            parts = [f"- {len(under)} of the {len(titles)} {whose} below the front of one Perfusion file"]
            for how, those in elsewhere.items():
                if named := ", ".join(title for title in titles if title in those):
                    parts.append(f"{how} with some setting: {named}")
            lines.append("; ".join(parts) + ".")
    own = results.default("perfusion")
    if own:
        lines.append(_both_things(results, own))
        same = all(row["drift"] == 0 for row in own.figures.values())
        how = f"{own.of('drift').mean:.2f} of 255 levels away from the base model's"
        how = "bit for bit as without it" if same else how
        lines.append(f"- With a Perfusion file loaded the plain superclass is drawn {how}.")
    pair = next((point for point in results.pairs if point.setting == FOR_PAIRS), None)
    if pair:
        share, base = pair.of("both"), _over(results.base_pairs, "both")
        reached = "reached" if share.mean >= PAIRS_BAR else "not reached"
        shown = interval(list(results.truth_pairs.values()))
        lines.append(
            f"- Two concepts in one picture are both recognised in {share.mean:.0%} of the pictures "
            f"({share.low:.0%}–{share.high:.0%}) at {pair.setting.label}, which was chosen on other subjects; the base "
            f"model's pairs of plain nouns in {base.mean:.0%}, true pictures of the two in {shown.mean:.0%} "
            f"({shown.low:.0%}–{shown.high:.0%}). The aim of {PAIRS_BAR:.0%} is {reached}"
            + ("; true pictures do not reach it either." if shown.mean < PAIRS_BAR else ".")
        )
    return ANSWER + "\n".join(lines) if lines else ""


def _both_things(results: Results, own: Point) -> str:
    """What the table's clearest loss is, and what other settings make of it, of a baseline too."""
    best = _best(results.of("perfusion"), "both", own)
    first = _best([one for one in results.points if one.method.group == "baseline"], "both", own)
    line = f"- Where a prompt asks for a second thing, both are seen in {own.of('both').mean:.0%} of its pictures"
    if best and best is not own:
        line += f", at {best.setting.label} in {best.of('both').mean:.0%}"
    if first:
        line += f"; of the baselines, with all settings, {_title(first)} has the most, {first.of('both').mean:.0%}"
    base = _over(results.base, "both").mean
    return f"{line}; the base model has {base:.0%}. Settings less than half as alike as Perfusion's own are left out."


def _table(results: Results) -> str:
    if not results.points:
        return ""
    shown = [results.default(method.name) for method in METHODS if method.group != "ablation"]
    lines = [_row(results, point) for point in shown if point is not None]
    base = {key: _over(results.base, key) for key in ("place", "noun", "both", "colour")}
    lines.append(f"| *the base model, plain noun* | | | 0 | 1 | | {_cells(base)} | 0 |")
    image, text, place, noun = (_over(results.truth, key) for key in ("image", "text", "place", "noun"))
    lines.append(
        f"| *true pictures of the subject* | | | {image.text()} | {text.text()} | | {_percent(place)} | "
        f"{_percent(noun)} | | | |"
    )
    lines.append(f"| *the base model, another seed* | | | | | | | | | | {results.other_seed:.0f} |")
    return TABLE + "\n".join(lines)


def _row(results: Results, point: Point) -> str:
    facts = results.facts[point.method.name]
    similarities = " | ".join(point.of(key).text() for key in ("image", "text", "harmonic"))
    shares = _cells({key: point.of(key) for key in ("place", "noun", "both", "colour")})
    return (
        f"| {_title(point)} | {facts['bytes']:,.0f} | {facts['core_seconds']:.0f} | {similarities} | {shares} | "
        f"{point.of('drift').mean:.2f} |"
    )


def _front(results: Results) -> str:
    lines = []
    for verdict in verdicts(results):
        margin = "the front ends before it" if verdict.stands == "beyond" else _change(verdict.margin)
        stands = {"below": "yes", "on": "on it"}.get(verdict.stands, "no")
        lines.append(
            f"| {_title(verdict.point)} | {_times(verdict.times_bytes)} | {stands} | "
            f"{verdict.confidence:.0%} | {margin} |"
        )
    return FRONT.format(least=LEAST) + "\n".join(lines) if lines else ""


def _pairs(results: Results) -> str:
    if not results.pairs:
        return ""
    lines, seen = list[str](), set[str]()
    for point in results.pairs:
        known = point.method.name in seen
        own = [one for one in results.pairs if one.method.name == point.method.name]
        best = _best(own, "both", own[0])
        if known and point is not best and point.setting != FOR_PAIRS:
            continue
        seen.add(point.method.name)
        lines.append(
            f"| {_title(point)} | {point.method.combines} | {point.of('both').percent()} | "
            f"{point.of('image').text()} | {point.of('lesser').text()} |"
        )
    base = _over(results.base_pairs, "both")
    shown = interval(list(results.truth_pairs.values()))
    lines.append(f"| *the base model, plain nouns* | | {base.percent()} | | |")
    lines.append(f"| *true pictures of the two* | | {shown.percent()} | | |")
    cannot = [method.title for method in METHODS if method.group == "baseline" and not method.combines]
    lines.append(
        f"\nNot in the table: {', '.join(cannot)}. Two separately trained full models cannot be put together."
    )
    return PAIRS + "\n".join(lines)


def _ablations(results: Results) -> str:
    names = dict.fromkeys(point.method.name for point in results.points if point.method.group == "ablation")
    first = results.default("unselected")
    others = [results.selected, *(results.default(name) for name in names if name != "unselected")]
    if first is None or not any(others):
        return ""
    lines = []
    for point in (first, *(other for other in others if other)):
        change = "" if point is first else _signed(difference(point, first, "harmonic"))
        similarities = " | ".join(point.of(key).text() for key in ("image", "text", "harmonic"))
        shares = _cells({key: point.of(key) for key in ("place", "noun")})
        lines.append(f"| {point.method.title} | {similarities} | {change} | {shares} |")
    return ABLATIONS + "\n".join(lines)


def _leakage(results: Results) -> str:
    if not results.leakage:
        return ""
    rows, lines = list(results.leakage.values()), list[str]()
    for kind, title in (("renders", "true pictures, true masks"), ("drawings", "own drawings, found masks")):
        both = [row[kind] for row in rows if {"unselected", "trained-keys"} <= row[kind].keys()]
        locked, trained = ([row[name] for row in both] for name in ("unselected", "trained-keys"))
        plain = [row["base"] for row in both if "base" in row]
        gap = interval([100 * (b - a) for a, b in zip(locked, trained, strict=True)])
        word = f"{interval(plain).mean:.1%}" if plain else ""
        lines.append(
            f"| {title} | {word} | {interval(locked).mean:.1%} | {interval(trained).mean:.1%} | "
            f"{gap.mean:+.1f} ({gap.low:+.1f} to {gap.high:+.1f}) points |"
        )
    evenly = interval([row["background"] for row in rows]).mean
    left = [sum(row["left_out"][name] for row in rows) for name in ("unselected", "trained-keys")]
    return LEAKAGE.format(evenly=f"{evenly:.0%}", locked=left[0], trained=left[1]) + "\n".join(lines)


def _measures(results: Results, plan: Plan) -> str:
    looks = sum(prompt.keeps_look for prompt in plan.prompts)
    texts = {prompt.text for prompt in plan.prompts}
    settings, scales, words = (
        len(method_named(name).settings(plan)) for name in ("perfusion", "lora-4", "textual-inversion")
    )
    return MEASURES.format(
        found=_over(results.truth, "image").text(), exact=_over(results.truth, "image_exact").text(),
        overlap=_over(results.truth, "overlap").text(), looks=looks, others=len(plan.prompts) - looks,
        engines=math.floor(results.engines), selecting=len(POCKET_PROMPTS), shared=len(texts & set(POCKET_PROMPTS)),
        settings=settings, scales=scales, words=words, steps=plan.steps,
        shipped=TrainingConfig.__dataclass_fields__["steps"].default,
    )  # fmt: skip


def _tuning(plan: Plan, chosen: Chosen) -> str:
    lines = []
    for method in (method for method in METHODS if method.name in chosen):
        found = chosen[method.name]
        rates = ", ".join(f"{rate:g}" for rate in sorted({entry["rate"] for entry in found["grid"]}))
        lines.append(
            f"| {method.title} | {rates} | {found['rate']:g} | {found['steps']} | {_yes(found['at_edge'])} | "
            + " | ".join(_best_score(found, masks) for masks in (True, False))
            + " |"
        )
    steps = ", ".join(map(str, plan.checkpoints))
    return (
        TUNING.format(checkpoints=steps, prompts=len(plan.tuning_prompts), more=MORE_RATES) + "\n".join(lines)
        if lines
        else ""
    )


def _pictures(methods: Sequence[Method]) -> str:
    return PICTURES + "\n".join(
        f"- [{method.title}](pictures/evaluation-{method.name}.png)" for method in methods
    )


def _best_score(found: Chosen, masks: bool) -> str:
    """Of the tuning, with or without masks; bold where it was taken."""
    score = max((entry["score"] for entry in found["grid"] if entry["masks"] is masks), default=math.nan)
    return f"**{score:.2f}**" if found["masks"] is masks else f"{score:.2f}"


def _best(points: Iterable[Point], key: str, default: Point) -> Point | None:
    """Of the points that are at least half as alike as the default one, the one with the most of a figure: settings
    that draw nothing but the base model are none."""
    least = default.of("image").mean / 2
    alike = [point for point in points if point.of("image").mean >= least]
    return max(alike, key=lambda point: point.of(key).mean, default=None)


def _over(figures: Mapping[str, Mapping[str, float]], key: str) -> Interval:
    return interval([row[key] for row in figures.values() if key in row])


def _titles(found: Iterable[Verdict]) -> list[str]:
    """Of the methods, each once."""
    return list(dict.fromkeys(verdict.point.method.title for verdict in found))


def _title(point: Point) -> str:
    return point.method.title + (f" ({point.setting.label})" if point.setting.label else "")


def _cells(shares: Mapping[str, Interval]) -> str:
    return " | ".join(_percent(share) for share in shares.values())


def _percent(found: Interval) -> str:
    return "" if math.isnan(found.mean) else f"{100 * found.mean:.0f} %"


def _signed(found: Interval) -> str:
    return f"{_change(found.mean)} ({_change(found.low)} to {_change(found.high)})"


def _change(value: float) -> str:
    """ "+0.05", "−0.01", "0.00"."""
    text = f"{value:+.2f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text


def _times(factor: float) -> str:
    """ "0.043", "1.1", "2,948"."""
    return f"{factor:.2g}" if factor < 10 else f"{factor:,.0f}"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"
