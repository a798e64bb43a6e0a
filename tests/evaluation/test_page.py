"""docs/evaluation.md: its tables are those of the record, and so is every number in its sentences."""

import json
import re

import pytest

from benchmarks.evaluation.figures import interval
from benchmarks.evaluation.findings import LEAST
from benchmarks.evaluation.methods import FOR_PAIRS, METHODS, method_named
from benchmarks.evaluation.plan import FULL
from benchmarks.evaluation.tables import PLACE, Record, best, filled, region_tables, tables
from benchmarks.evaluation.tuning import MORE_RATES
from benchmarks.record import ROOT
from perfusion.training import TrainingConfig
from perfusion.training.snapshot_choice import POCKET_PROMPTS

PAGE = (ROOT / "docs" / "evaluation.md").read_text("utf-8")
WORDS = " ".join(PLACE.sub("", PAGE).replace("*", "").split())
RECORDS = ROOT / "benchmarks" / "records"
ROWS = json.loads((RECORDS / "evaluation-amd-epyc-2.json").read_text("utf-8"))["rows"]
RECORD = Record(ROWS)
FOCUS = {
    row["name"]: row["subjects"]
    for row in json.loads((RECORDS / "focus-amd-epyc-2.json").read_text("utf-8"))["rows"]
}
REGIONS, RIVALS = (
    json.loads((RECORDS / f"{name}-amd-epyc-2.json").read_text("utf-8"))["rows"]
    for name in ("regions", "rivals")
)
PROBE = {
    row["what"]: row
    for row in json.loads((RECORDS / "probe_accuracy-amd-epyc-2.json").read_text("utf-8"))["rows"]
}
SECONDS, PAIRS = PROBE["second things"], PROBE["pairs"]
FACTS = RECORD.part("trainings")
UNSEEN = {name for name, share in RECORD.part("truth pairs").items() if share == 0}


def setting(method, label="", what="prompts"):
    (row,) = (row for row in RECORD.points(what, method) if row["setting"] == label)
    return row


def default(method):
    row = RECORD.default(method)
    assert row is not None
    return row


def share(row, key="both"):
    return f"{100 * row[key][0]:.0f} %"


def level(row, key="image"):
    return f"{row[key][0]:.2f}"


def in_regions(rows, name, part="subjects", key="subjects"):
    """A share in percent, over the subjects or pairs of the rivals alone."""
    names = RIVALS[0][part]["by_name"]
    (row,) = (row for row in rows if row["name"] == name)
    shares = [figures[key] for subject, figures in row[part]["by_name"].items() if subject in names]
    assert len(shares) == len(names)
    return f"{100 * sum(shares) / len(shares):.0f} %"


def margin(method, label=""):
    (row,) = (row for row in RECORD.points("front", method) if row["setting"] == label)
    return row["margin"]


def stands(method):
    return {row["stands"] for row in RECORD.points("front", method)}


def among_other_pairs(row):
    shares = [figures["both"] for name, figures in row["subjects"].items() if name not in UNSEEN]
    return f"{100 * sum(shares) / len(shares):.0f} %"


OURS = default("perfusion")
BEST = best(RECORD.points("prompts", "perfusion"), "both", OURS)
BASELINES = [method.name for method in METHODS if method.group == "baseline"]
BEST_BASELINE = best([row for name in BASELINES for row in RECORD.points("prompts", name)], "both", OURS)
PAIR = setting("perfusion", FOR_PAIRS.label, "pairs")
TIMES = {name: facts["bytes"] / FACTS["perfusion"]["bytes"] for name, facts in FACTS.items()}
FRONT_END = max(row["image"][0] for row in RECORD.points("prompts", "perfusion"))
TURNED_UP = setting("lora-values-1", "scale 1.25")
TRUE_PAIRS = interval(list(RECORD.part("truth pairs").values()))
LEAKAGE = RECORD.part("leakage").values()
GLOBAL, WITHOUT_MASKS = setting("perfusion", "global 0.75"), setting("no-mask", "local 0.75")
PICKED = {
    name: best(points, "both", points[0])
    for name in ("lora-4", "lora-values-1", "perfusion")
    for points in [RECORD.points("pairs", name)]
}
LATE_LORAS = setting("lora-values-1", "start 0.45"), setting("lora-4", "start 0.15")
LOOKS = sum(prompt.keeps_look for prompt in FULL.prompts)
SHARED = len({prompt.text for prompt in FULL.prompts} & set(POCKET_PROMPTS))


def leakage(kind, name):
    return interval([row[kind][name] for row in LEAKAGE]).mean


def focus(name, key="alone"):
    mean = FOCUS[name][key][0]
    return f"{mean:.2f}" if key == "alone" else f"{100 * mean:.0f} %"


GAP = interval([100 * (row["renders"]["trained-keys"] - row["renders"]["unselected"]) for row in LEAKAGE])

SENTENCES = [
    f"in at most {FULL.steps} steps of {FULL.batch_size} pictures",
    f"the same {len(FULL.prompts)} prompts from the same noise",
    f"with {FULL.seeds} seeds each ({FULL.ablation_seeds} for the ablations)",
    f"at {TIMES['custom-diffusion']:.0f} and {TIMES['dreambooth']:,.0f} times the bytes",
    f"Perfusion shows both in {share(OURS)} of the pictures, and in {share(BEST)} with the global lock, bias 0.6 and "
    f"start 0.45. The best baseline, DreamBooth, shows both in {share(BEST_BASELINE)}, the base model in "
    f"{100 * RECORD.over_subjects('base', 'both').mean:.0f} %",
    "recognised in {:.0f} % of the pictures (95 % interval {:.0f}–{:.0f} %)".format(*(100 * n for n in PAIR["both"])),
    f"nouns are recognised in {100 * RECORD.over_subjects('base pairs', 'both').mean:.0f} %, true pictures of the two "
    f"subjects in {100 * TRUE_PAIRS.mean:.0f} %",
    f"both subjects are there in {in_regions(RIVALS, 'textual-inversion-regions', 'pairs')} of the pairs "
    f"({in_regions(RIVALS, 'textual-inversion', 'pairs')} without), with LoRAs in "
    f"{in_regions(RIVALS, 'lora-4-regions', 'pairs')} ({in_regions(RIVALS, 'lora-4', 'pairs')}), with our concepts "
    f"on the same pairs in {in_regions(REGIONS, 'concepts-regions', 'pairs')} "
    f"({in_regions(REGIONS, 'concepts', 'pairs')}). Beside a second thing the subject is there in "
    f"{in_regions(RIVALS, 'textual-inversion-regions')}, "
    f"{in_regions(RIVALS, 'lora-4-regions')} and {in_regions(REGIONS, 'concepts-regions')}.",
    f"nearer to the front than {LEAST:g}",
    f"would have {100 * interval([row['background'] for row in LEAKAGE]).mean:.0f} % there",
    f"left out: {sum(row['left_out']['unselected'] for row in LEAKAGE)} with locked keys, none with trained keys",
    f"reach {RECORD.over_subjects('truth', 'image').text()}, with their true masks "
    f"{RECORD.over_subjects('truth', 'image_exact').text()}",
    f"overlap by {RECORD.over_subjects('truth', 'overlap').text()}",
    f"on the {LOOKS} prompts that leave the subject its look. The {len(FULL.prompts) - LOOKS} prompts that ask",
    f"agree to at least {int(RECORD.part('engines')['least_decibels'])} dB",
    f"on {len(POCKET_PROMPTS)} prompts, {SHARED} of which are also among these",
    f"{FULL.steps} steps, where `perfusion-train` takes {TrainingConfig.__dataclass_fields__['steps'].default}",
    "file is drawn with {} settings of lock, bias, strength and start, one LoRA with {} of scale and start, one "
    "learned word with {} of start".format(
        *(len(method_named(name).settings(FULL)) for name in ("perfusion", "lora-4", "textual-inversion"))
    ),
    f"both halves right in {100 * SECONDS['right']:.0f} % (a subject and a second thing)",
    f"and {100 * PAIRS['right']:.0f} % (two subjects)",
    f"and in {100 * min(SECONDS['worst'], PAIRS['worst']):.0f} % where it is worst",
    f"in {100 * SECONDS['false_alarms']:.1f} % and {100 * PAIRS['false_alarms']:.1f} % of the true pictures",
    f"up to {MORE_RATES} more beyond them",
    "after {}, {} and {} steps".format(*FULL.checkpoints),
    f"on two subjects and {len(FULL.tuning_prompts)} prompts that are not",
    f"the rank-4 LoRA at {TIMES['lora-4']:.0f} times the size",
    f"has {margin('lora-4'):.2f} more text similarity (rank 4) and {margin('lora-values-1'):.2f} more (rank 1",
    f"sure in {100 * RECORD.points('front', 'lora-values-1')[0]['confidence']:.0f} % of the",
    f"(drift {default('lora-4')['drift'][0]:.0f} and {default('lora-values-1')['drift'][0]:.0f}; "
    f"another seed of the base model gives {RECORD.part('another seed')['levels']:.0f})",
    f"in {FACTS['textual-inversion']['bytes']:.0f} bytes, with a likeness of {level(setting('textual-inversion'))}",
    f"front ends at a likeness of {FRONT_END:.2f}. The rank-1 LoRA turned up to 1.25 goes on to {level(TURNED_UP)}, "
    f"where it keeps {level(TURNED_UP, 'text')} of the prompt",
    f"at a bias of 0.6 they reach {level(setting('thrice', 'local 0.6'))}, and the usual rates "
    f"{level(setting('unselected', 'local 0.6'))}",
    f"Custom Diffusion, at {TIMES['custom-diffusion']:.0f} times the bytes, by {-margin('custom-diffusion'):.2f}",
    f"({level(WITHOUT_MASKS)} and {level(WITHOUT_MASKS, 'text')}, ablations)",
    f"a picture of one thing ({focus('shut-after')} for {focus('product')}). A training with it shut does not win that "
    f"back ({focus('padding-shut')}), and with the superclass's prompt there it is less still "
    f"({focus('padding-plain')})",
    f"costs a tenth of the likeness ({focus('padding-hidden')})",
    f"both nouns come in {focus('context-lock', 'both')} of the pictures for {focus('product', 'both')}, at a higher "
    "likeness of one thing",
    f"hardly more ({focus('context-lock', 'subjects')} for {focus('product', 'subjects')})",
    f"DreamBooth, at {TIMES['dreambooth']:,.0f} times the bytes, by {-margin('dreambooth'):.2f}, and by far where a "
    f"second thing is asked for: {share(default('dreambooth'))} against {share(OURS)}",
    f"the base model's own words, too ({100 * leakage('renders', 'base'):.0f} %)",
    f"loses second things alike ({share(default('lora-values-1'))})",
    f"{share(BEST)} at a likeness of {level(BEST)}",
    "(rank 1: {} at {}; rank 4: {} at {})".format(*(f(row) for row in LATE_LORAS for f in (share, level))),
    f"all twelve give {share(PICKED['lora-4'])} (rank 4), {share(PICKED['lora-values-1'])} (rank 1) and "
    f"{share(PICKED['perfusion'])} (Perfusion); the other eight give {among_other_pairs(PICKED['lora-4'])}, "
    f"{among_other_pairs(PICKED['lora-values-1'])} and {among_other_pairs(PICKED['perfusion'])}",
    f"and in {share(PAIR)} here. Strength 0.5 showed both in 66 % there and "
    f"{share(setting('perfusion', 'local 0.75, strength 0.5', 'pairs'))} here",
    f"trained keys have {GAP.mean:.1f} points more outside it on true pictures ({GAP.low:.1f} to {GAP.high:.1f})",
    f"({share(default('unselected'), 'place')} against {share(default('trained-keys'), 'place')})",
    f"obeys in {share(default('own-position'), 'colour')} of the pictures, where the logistic gate obeys in "
    f"{share(default('unselected'), 'colour')}",
    f"more than the local one, {level(GLOBAL)} and {level(GLOBAL, 'text')}, and more second things, {share(GLOBAL)}.",
    f"it loses colours that are asked for, {share(GLOBAL, 'colour')} against {share(OURS, 'colour')}",
]  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_gives_the_numbers_of_the_record(sentence):
    assert sentence in WORDS


def test_the_tables_are_those_of_the_record():
    assert filled(PAGE, tables(ROWS)) == PAGE
    assert filled(PAGE, region_tables(REGIONS)) == PAGE
    assert filled(PAGE, region_tables(RIVALS, "rivals")) == PAGE


def test_what_the_answer_says_of_the_front_is_so():
    """Which baselines lie above it, on it, below it or beyond its end."""
    assert not any(row["counts"] and row["stands"] == "above" for row in RECORD.points("front"))
    small = {row["method"] for row in RECORD.points("front") if row["counts"]}
    assert small == {"textual-inversion", "lora-values-1"}
    assert stands("textual-inversion") == stands("dreambooth-prior") == {"below"}
    assert stands("lora-values-1") == {"below", "on", "beyond"} and stands("lora-4") == {"below", "on"}
    assert stands("custom-diffusion") == stands("dreambooth") == {"above"}
    assert BEST["setting"] == "global 0.6, start 0.45"
    assert BEST_BASELINE["method"] == "dreambooth"
    assert FOR_PAIRS.label == "local 0.75, strength 0.8, start 0.15"


def test_what_the_page_says_without_numbers_is_so():
    assert all(figures["drift"] == 0 for figures in OURS["subjects"].values())
    assert sum(row["left_out"]["trained-keys"] for row in LEAKAGE) == 0
    assert TRUE_PAIRS.mean < 0.6 and PAIR["both"][0] < 0.6
    assert len(UNSEEN) == 4 and {"tuxedo-cat+school-bus", "purple-owl+gold-hat"} < UNSEEN
    assert not any(entry["at_edge"] for entry in RECORD.part("tuning").values())
    drawings = [row["drawings"]["trained-keys"] - row["drawings"]["unselected"] for row in LEAKAGE]
    assert interval(drawings).low < 0 < interval(drawings).high
    assert all(row["subjects"]["second_seen"][0] == 1 for row in RIVALS if row["name"].endswith("-regions"))
    assert 0.7 <= FOCUS["context-lock"]["second_seen"][0] <= 0.8
    assert all(
        FOCUS[name]["subjects"][0] < FOCUS["product-regions"]["subjects"][0]
        for name in FOCUS
        if name != "product-regions"
    )


def test_every_number_of_a_share_is_in_a_sentence_that_is_held():
    """A percentage that nobody holds would stay when the record changes."""
    known = set(re.findall(r"[\d.–]+ %", " ".join(SENTENCES))) | {"95 %", "60 %"}
    by_hand = {"56 %", "66 %"}  # tried without a record, as the page says
    assert set(re.findall(r"[\d.–]+ %", WORDS)) <= known | by_hand
