"""The stage of regions: what is asked of the runtime, what is counted, and the stage as a whole, tiny."""

import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.evaluation import regions
from benchmarks.evaluation.drawing import read_drawings
from benchmarks.evaluation.plan import FULL, SMALL
from benchmarks.evaluation.prompts import PAIR_PROMPTS, PROMPTS
from benchmarks.evaluation.regions import (
    VARIANTS,
    answer_shares,
    chosen_variants,
    concept_path,
    record_of,
    region_results,
    region_units,
    text_of,
)
from benchmarks.evaluation.subject_probe import pair_question, second_thing_question
from benchmarks.evaluation.tables import region_tables
from benchmarks.evaluation.units import Context, run_units
from perfusion.errors import RequestError

NOUNS, NOUNS_IN_REGIONS, CONCEPTS, CONCEPTS_IN_REGIONS = VARIANTS[:4]
WORD_IN_REGIONS, LORA, LORA_IN_REGIONS = chosen_variants(
    ["textual-inversion-regions", "lora-4", "lora-4-regions"]
)
BEACH, TABLE, STREET = PROMPTS[0], PROMPTS[6], PROMPTS[10]


@pytest.mark.parametrize(
    ("variant", "prompt", "names", "text"),
    [
        (NOUNS, TABLE, ["purple-owl"], "an owl and a teapot on a wooden table"),
        (NOUNS_IN_REGIONS, TABLE, ["purple-owl"], "an {owl} and a {teapot} on a wooden table"),
        (CONCEPTS, TABLE, ["purple-owl"], "a <purple-owl> and a teapot on a wooden table"),
        (CONCEPTS_IN_REGIONS, TABLE, ["purple-owl"], "a <purple-owl> and a {teapot} on a wooden table"),
        (CONCEPTS_IN_REGIONS, STREET, ["pug"], "a photo of a {car} and a <pug> on a street"),
        (CONCEPTS_IN_REGIONS, BEACH, ["pug"], "a photo of a <pug> on a beach"),
        (NOUNS_IN_REGIONS, BEACH, ["pug"], "a photo of a dog on a beach"),
        (CONCEPTS_IN_REGIONS, PAIR_PROMPTS[1], ["pug", "gold-hat"], "a <pug> and a <gold-hat> on a beach"),
        (NOUNS_IN_REGIONS, PAIR_PROMPTS[1], ["pug", "gold-hat"], "a {dog} and a {hat} on a beach"),
        (WORD_IN_REGIONS, TABLE, ["purple-owl"], "a <purple-owl> and a {teapot} on a wooden table"),
        (LORA, TABLE, ["purple-owl"], "a sks owl and a teapot on a wooden table"),
        (LORA_IN_REGIONS, TABLE, ["purple-owl"], "a {sks owl} and a {teapot} on a wooden table"),
        (LORA_IN_REGIONS, PAIR_PROMPTS[1], ["pug", "pink-cake"], "a {sks dog} and a {sks cake} on a beach"),
    ],
)
def test_plain_words_are_marked_as_things_where_there_are_regions_and_two_of_them(
    variant, prompt, names, text
):
    assert text_of(variant, prompt, names) == text


def test_the_shares_of_answers_are_counted_by_hand():
    question = second_thing_question("pug", STREET)  # the car is mentioned first
    answers = [("car", "pug"), ("pug", "car"), ("car", "dog"), ("pug", "pug")]
    assert answer_shares(question, answers) == {
        "subjects": 0.5, "ordinary": 0.25, "in_order": pytest.approx(2 / 3)
    }  # fmt: skip
    assert answer_shares(question, answers[3:]) == {"subjects": 0.0, "ordinary": 0.0}
    pair = pair_question(("pug", "gold-hat"), PAIR_PROMPTS)
    mixed = [("pug", "hat"), ("dog", "hat"), ("pug", "gold-hat")]
    assert answer_shares(pair, mixed) == {
        "subjects": pytest.approx(1 / 3), "ordinary": pytest.approx(1 / 3), "in_order": 1.0
    }  # fmt: skip


class RuntimeDouble:
    """Draws black pictures and notes what it was asked for."""

    def __init__(self):
        self.loaded, self.calls = {}, []

    def load_concept(self, path, *, token, bias):
        self.loaded[token] = (path.name, bias)

    def unload_concept(self, token):
        del self.loaded[token]

    def generate(self, prompts, *, seed, **options):
        self.calls.append((prompts, seed, options, dict(self.loaded)))
        return [Image.new("RGB", (8, 8))] * len(prompts)


def test_options_reach_the_runtime_with_the_evaluations_own_seeds(tmp_path, monkeypatch):
    double = RuntimeDouble()
    monkeypatch.setattr(regions, "drawing_runtime", lambda: double)
    context = Context(plan=FULL, work=tmp_path)
    for variant in (CONCEPTS, CONCEPTS_IN_REGIONS):
        regions.draw_variant(context, variant, ("school-bus",))
    (plain, seeds, without, loaded), (marked, same, within, _) = double.calls
    # said, since two concepts in a prompt get regions without being asked
    assert without == {"num_inference_steps": 20, "lock": "local", "regions": None}
    assert within == without | {"regions": "auto"}
    assert loaded == {"<school-bus>": ("school-bus.safetensors", 0.75)} and double.loaded == {}
    assert len(plain) == 5 * FULL.seeds and [re.sub("[{}]", "", text) for text in marked] == plain
    assert seeds == same and seeds[:5] == [10_000, 10_001, 10_002, 10_003, 10_100] and 11_000 in seeds
    rows = read_drawings(tmp_path / "draw" / "regions-concepts" / "school-bus.npz").rows
    assert {row["prompt"] for row in rows} == {0, 1, 2, 6, 10}


def test_a_concept_is_the_trained_one_or_the_one_that_ships_or_asked_for(tmp_path):
    assert concept_path(tmp_path, "gold-hat").name == "gold-hat.safetensors"
    trained = tmp_path / "train" / "unselected" / "gold-hat" / "concept.safetensors"
    trained.parent.mkdir(parents=True)
    trained.touch()
    assert concept_path(tmp_path, "gold-hat") == trained
    with pytest.raises(RequestError, match="run the stage train with --methods unselected first"):
        region_units(Context(plan=FULL, work=tmp_path), FULL.subjects)


def test_rivals_are_drawn_when_they_are_named_and_have_been_trained(tmp_path):
    assert chosen_variants(None) == VARIANTS and not any(variant.method for variant in VARIANTS)
    with pytest.raises(RequestError, match="There is no variant 'lora'; choose among nouns, "):
        chosen_variants(["nouns", "lora"])
    with pytest.raises(RequestError, match="run the stage train with --methods lora-4 first"):
        region_units(Context(plan=SMALL, work=tmp_path), SMALL.subjects, [LORA])
    for name in SMALL.subjects:
        folder = tmp_path / "train" / "lora-4" / name
        folder.mkdir(parents=True)
        (folder / "pytorch_lora_weights.safetensors").touch()
    groups = dict(region_units(Context(plan=SMALL, work=tmp_path), SMALL.subjects, [LORA]))
    assert [unit.path.parts[1] for unit in groups["drawing"]] == ["regions-lora-4"] * 3


def test_a_record_is_of_all_of_the_products_variants_or_of_rivals_alone():
    assert record_of(VARIANTS) == record_of((*VARIANTS, LORA)) == "regions"
    assert record_of([LORA, LORA_IN_REGIONS]) == "rivals"
    assert record_of(VARIANTS[:2]) is None and record_of([NOUNS, LORA]) is None


@pytest.mark.slow
def test_the_stage_draws_measures_and_reports(tmp_path):
    context, variants = Context(plan=SMALL, work=tmp_path), (NOUNS, CONCEPTS)
    for _, units in region_units(context, SMALL.subjects, variants):
        run_units(units, context, 1, lambda line: None)
    nouns, concepts = region_results(context, SMALL.subjects, variants)
    assert set(nouns["subjects"]["by_name"]) == set(SMALL.subjects)
    assert set(nouns["pairs"]["by_name"]) == {"school-bus+pink-cake"}
    # the base model's own drawings are where likeness begins and text ends, up to the prompt that is not drawn here
    assert np.abs(nouns["subjects"]["image"][0]) < 0.3 and np.abs(nouns["subjects"]["text"][0] - 1) < 0.3
    assert concepts["subjects"]["image"] != nouns["subjects"]["image"]
    for table in region_tables([nouns, concepts]).values():
        lines = table.splitlines()
        assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
