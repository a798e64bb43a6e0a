"""The tables, the plot and the verdicts, from figures made up for the purpose."""

import json
from dataclasses import asdict
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.evaluation.drawing import drawing_path
from benchmarks.evaluation.findings import front_of, sliders, verdicts
from benchmarks.evaluation.measuring import Measures, write_measures
from benchmarks.evaluation.methods import FOR_PAIRS, METHODS, Setting
from benchmarks.evaluation.plan import FULL
from benchmarks.evaluation.plot import COLOURS, scatter
from benchmarks.evaluation.report import _check_trained, marks_of, record_rows
from benchmarks.evaluation.results import Anchors, Point, Results, _as_few, _rows_of
from benchmarks.evaluation.tables import _change, filled, tables
from benchmarks.evaluation.training import trained_folder
from benchmarks.evaluation.units import Context
from perfusion.errors import RequestError

BY_NAME = {method.name: method for method in METHODS}
NAMES = tuple(f"subject {number}" for number in range(12))


def figures(image, text, **more):
    """Twelve subjects around two means."""
    spread = np.linspace(-0.05, 0.05, len(NAMES))
    known = {"place": 1.0, "noun": 0.9, "both": 0.8, "colour": 0.7, "drift": 0.0, "harmonic": 0.5} | more
    return {
        name: {"image": image + by, "text": text - by} | known for name, by in zip(NAMES, spread, strict=True)
    }


def point(name, image, text, setting=None, **more):
    return Point(method=BY_NAME[name], setting=setting or Setting(), figures=figures(image, text, **more))


def tables_of(results, chosen=None):
    """The tables, by way of what the record's file keeps."""
    return tables(json.loads(json.dumps(record_rows(results, chosen or {}))))


@pytest.fixture
def results():
    made = Results()
    for bias, image, text in ((0.75, 0.6, 0.8), (0.5, 0.9, 0.4), (1.05, 0.1, 0.97)):
        made.points.append(point("perfusion", image, text, Setting(lock="local", bias=bias)))
    made.points.append(point("unselected", 0.55, 0.8, Setting(lock="local", bias=0.75)))
    made.points.append(point("perfusion-tuned", 0.6, 0.85, Setting(lock="local", bias=0.75)))
    made.points.append(point("textual-inversion", 0.4, 0.5, drift=0.0))
    made.points.append(point("lora-values-1", 0.5, 0.95, drift=4.0))
    made.points.append(point("dreambooth", 1.2, 0.1, drift=30.0))
    made.pairs = [
        point("perfusion", 0.4, 0.9, Setting(lock="local", bias=0.75), both=0.3, lesser=0.3),
        point("perfusion", 0.2, 0.9, Setting(lock="local", bias=0.9), both=0.9, lesser=0.3),
        point("perfusion", 0.3, 0.9, FOR_PAIRS, both=0.7, lesser=0.3),
    ]
    made.truth_pairs = dict.fromkeys(NAMES, 0.875)
    made.base = figures(0.0, 1.0, drift=0.0)
    made.base_pairs = figures(0.0, 1.0, both=0.85)
    made.truth = figures(0.9, 0.85, image_exact=0.95, noun=0.5, overlap=0.8)
    made.other_seed = 81.0
    sizes = {
        "perfusion": 7500,
        "perfusion-tuned": 7500,
        "unselected": 7500,
        "textual-inversion": 330,
        "lora-values-1": 8000,
        "dreambooth": 2.2e7,
    }
    made.facts = {
        name: {"bytes": size, "core_seconds": 100.0, "rate": 1, "steps": 300} for name, size in sizes.items()
    }
    made.engines = 90.0
    return made


def test_the_front_of_one_file_has_a_line_for_each_lock_down_the_biases(results):
    results.points.append(point("perfusion", 0.2, 0.9, Setting(lock="global", bias=0.6)))
    local, globally = front_of(results)
    np.testing.assert_allclose(globally, [(0.2, 0.9)], atol=1e-9)
    np.testing.assert_allclose(local, [(0.1, 0.97), (0.6, 0.8), (0.9, 0.4)], atol=1e-9)


def test_a_start_is_a_slider_of_its_own(results):
    """Under one lock and bias: from the base model, which starts after the last step, to the same bias at once."""
    late = [(0.3, 0.2, 0.99), (0.15, 0.4, 0.96)]
    for start, image, text in late:
        results.points.append(point("perfusion", image, text, Setting(lock="local", bias=0.75, start=start)))
    by_bias, by_start = front_of(results)
    assert len(by_bias) == 3 and [line.title for line in sliders(results)] == [
        "local lock, by bias", "local lock, bias 0.75, by start",
    ]  # fmt: skip
    at_once = next(one for one in results.of("perfusion") if one.setting == Setting(lock="local", bias=0.75))
    expected = [(0.0, 1.0), (0.2, 0.99), (0.4, 0.96), (at_once.of("image").mean, at_once.of("text").mean)]
    np.testing.assert_allclose(by_start, expected, atol=1e-9)
    (mark,) = (mark for mark in marks_of(results) if mark.title.endswith("by start"))
    assert mark.labels == ("", "0.3", "0.15", "0")


def test_a_strength_is_a_slider_from_the_base_model_up(results):
    """What is weaker and late as well, as for pairs, lies on no slider."""
    weaker = [(0.75, 0.45, 0.93), (0.5, 0.25, 0.98)]
    for strength, image, text in weaker:
        setting = Setting(lock="local", bias=0.75, scale=strength)
        results.points.append(point("perfusion", image, text, setting))
    by_bias, by_strength = front_of(results)
    titles = [line.title for line in sliders(results)]
    assert titles == ["local lock, by bias", "local lock, bias 0.75, by strength"] and len(by_bias) == 3
    np.testing.assert_allclose(by_strength, [(0.0, 1.0), (0.25, 0.98), (0.45, 0.93), (0.6, 0.8)], atol=1e-9)
    (mark,) = (mark for mark in marks_of(results) if mark.title.endswith("by strength"))
    assert mark.labels == ("", "0.5", "0.75", "1")


def test_each_baseline_is_judged_by_its_own_place_and_size(results):
    found = {verdict.point.method.name: verdict for verdict in verdicts(results)}
    assert found["textual-inversion"].is_below and found["textual-inversion"].confidence == 1
    assert found["textual-inversion"].times_bytes == pytest.approx(330 / 7500)
    assert not found["lora-values-1"].is_below  # at 0.5 the front has about 0.83
    assert found["lora-values-1"].margin == pytest.approx(0.97 + (0.8 - 0.97) * 0.4 / 0.5 - 0.95)
    assert not found["dreambooth"].is_below and found["dreambooth"].margin == -np.inf
    assert [name for name, verdict in found.items() if verdict.counts] == [
        "textual-inversion",
        "lora-values-1",
    ]


def test_what_is_nearer_to_the_front_than_can_be_told_lies_on_it(results):
    """Between the settings at 0.6 and 0.9 it falls from 0.8 to 0.4."""
    for above, stands, said in (
        (-0.006, "below", "yes"), (-0.004, "on", "on it"), (0.004, "on", "on it"), (0.006, "above", "no"),
    ):  # fmt: skip
        results.points = [one for one in results.points if one.method.name != "lora-values-1"]
        results.points.append(point("lora-values-1", 0.75, 0.6 + above))
        (found,) = (one for one in verdicts(results) if one.point.method.name == "lora-values-1")
        assert found.stands == stands and found.margin == pytest.approx(-above)
        assert f"| 1.1 | {said} |" in tables_of(results)["front"]


def test_the_tables_say_what_the_figures_say(results):
    found = tables_of(results)
    truth = (
        "| *true pictures of the subject* | | | 0.90 (0.88–0.92) | 0.85 (0.83–0.87) | | 100 % | 50 % | | | |"
    )
    assert truth in found["methods"]
    assert "another seed* | | | | | | | | | | 81 |" in found["methods"]
    assert found["pairs"].count("| both files are loaded |") == 3
    assert "| *true pictures of the two* | | 88 % (88–88) | | |" in found["pairs"]
    assert "| Textual Inversion | 0.044 | yes |" in found["front"]
    assert "| DreamBooth | 2,933 | no | 0% | the front ends before it |" in found["front"]
    assert "nan" not in "".join(found.values())


def test_a_page_keeps_its_sentences_and_gets_its_tables_anew(results):
    made = tables_of(results)
    places = "\n\n".join(f"<!-- table {name} -->\nold\n<!-- end of table -->" for name in (*made, "other"))
    page = filled(f"# Page\n\n{places}\n\nThe hat is a hat.\n", made)
    assert page.startswith("# Page") and page.endswith("The hat is a hat.\n")
    assert page.count("old") == 1 and all(table in page for table in made.values())
    assert filled(page, made) == page
    with pytest.raises(RequestError, match="no place for the table 'front'"):
        filled("# Page", made)


def test_the_table_of_the_tuning_marks_what_was_taken(results):
    entry = {"rate": 0.003, "masks": True, "steps": 300, "score": 0.411}
    grid = [
        entry,
        entry | {"rate": 0.001, "score": 0.3},
        entry | {"masks": False, "steps": 200, "score": 0.52},
    ]
    taken = {"rate": 0.003, "masks": False, "steps": 200, "at_edge": True}
    text = tables_of(results, {"lora-4": taken | {"grid": grid}})["tuning"]
    assert "| LoRA, rank 4, all attention | 0.001, 0.003 | 0.003 | 200 | yes | 0.41 | **0.52** |" in text


def test_a_lora_has_a_point_for_each_scale(results):
    results.points.append(point("lora-values-1", 0.1, 0.99, Setting(scale=0.5)))
    assert "LoRA, rank 1, cross-attention values (scale 0.5) | 1.1 | no |" in tables_of(results)["front"]
    (mark,) = (mark for mark in marks_of(results) if mark.labels == ("×0.5", "×1"))
    assert [round(image.mean, 6) for image, _ in mark.points] == [0.1, 0.5]


def test_the_best_pair_is_not_a_setting_that_draws_the_base_model(results):
    lora = [
        point("lora-4", image, 0.9, Setting(scale=scale), both=both, lesser=0.0)
        for scale, image, both in ((1.0, 0.4, 0.1), (0.75, 0.2, 0.3), (0.5, 0.05, 0.9))
    ]
    results.pairs += lora
    results.facts["lora-4"] = results.facts["dreambooth"]
    table = tables_of(results)["pairs"]
    assert "(scale 0.75)" in table and "(scale 0.5)" not in table


@pytest.mark.parametrize(
    ("value", "text"), [(0.051, "+0.05"), (-0.012, "−0.01"), (-0.004, "0.00"), (0.004, "0.00")]
)
def test_a_change_has_its_sign_unless_it_is_none(value, text):
    assert _change(value) == text


def test_weights_of_another_tuning_are_refused(tmp_path):
    method, context = BY_NAME["lora-4"], Context(plan=FULL, work=tmp_path)
    facts = tmp_path / trained_folder(method, "pug") / "facts.json"
    facts.parent.mkdir(parents=True)
    facts.write_text(json.dumps({"rate": 0.001, "steps": 300}))
    chosen = {"lora-4": {"rate": 0.001, "masks": True, "steps": 300}}
    _check_trained(context, [method, BY_NAME["no-mask"]], ["pug"], chosen)
    with pytest.raises(
        RequestError, match=r"lora-4/pug was trained with masks True, and the tuning has chosen False"
    ):
        _check_trained(context, [method], ["pug"], {"lora-4": chosen["lora-4"] | {"masks": False}})


def test_a_setting_that_nothing_was_drawn_with_is_refused():
    drawn = [{"prompt": 0, "seed": 0, **asdict(Setting())}]
    made = Measures(
        rows=tuple(drawn), whole=np.zeros((1, 2)), objects=np.zeros((1, 1, 2)), nouns=np.zeros((1, 24)),
        places=("beach",), colours=("red",), distance=np.zeros(1),
    )  # fmt: skip
    assert _rows_of(made, Setting()) == [0]
    with pytest.raises(RequestError, match=r"nothing was drawn with scale 0\.5"):
        _rows_of(made, Setting(scale=0.5))


def test_methods_of_other_numbers_of_seeds_are_compared_on_the_seeds_of_both(tmp_path):
    """Perfusion as shipped is drawn with more seeds than its ablations."""
    anchor = Anchors(
        noun="hat", start=np.zeros(2), target=np.array([1.0, 0.0]), texts=np.zeros((14, 2)), floor=np.zeros(14),
        ceiling=np.ones(14),
    )  # fmt: skip
    for name, images in (("perfusion", [0.1, 0.2, 9.0]), ("unselected", [0.0, 0.1])):
        setting = asdict(Setting(lock="local", bias=0.75))
        rows = [{"prompt": 0, "seed": seed, **setting} for seed in range(len(images))]
        count, objects = len(images), np.array([[[x, 0.0]] for x in images])
        made = Measures(
            rows=tuple(rows), whole=np.zeros((count, 2)), objects=objects, nouns=np.zeros((count, 24)),
            places=("beach",) * count, colours=("red",) * count, distance=np.zeros(count),
        )  # fmt: skip
        write_measures(tmp_path / drawing_path(name, "gold-hat", "prompts", "measure"), made)
    found = _as_few(Context(plan=FULL, work=tmp_path), "perfusion", "unselected", {"gold-hat": anchor})
    assert found.figures["gold-hat"]["image"] == pytest.approx(0.15)


def test_the_ablations_begin_with_the_one_they_are_compared_with(results):
    results.selected = point("perfusion", 0.5, 0.8, Setting(lock="local", bias=0.75), harmonic=0.6)
    table = tables_of(results)["ablations"]
    assert table.index("Perfusion without selection |") < table.index("| Perfusion, as shipped |")
    assert "+0.10 (+0.10 to +0.10)" in table


def test_the_plot_is_a_drawing_with_every_method_and_higher_text_is_higher_up(results):
    root = ElementTree.fromstring(scatter(marks_of(results), across="image", up="text"))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Perfusion, local lock, by bias", "Textual Inversion", "0.75"} <= set(words)
    colours = [node.attrib["fill"] for node in root.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(set(colours)) == len(marks_of(results))  # each method its own, in the whole evaluation too:
    # the base model, true pictures, sliders of bias, strength and the late ones, the tuned row, and the baselines
    baselines = [method for method in METHODS if method.group == "baseline"]
    assert len(COLOURS) >= 6 + len(FULL.late) + len(baselines)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    spots = [tuple(map(float, spot.split(","))) for spot in line.attrib["points"].split()]
    assert [x for x, _ in spots] == sorted(x for x, _ in spots)  # the bias falls, the likeness rises
    assert [y for _, y in spots] == sorted(y for _, y in spots)


def test_the_record_holds_every_subject_and_the_same_intervals(results):
    rows = record_rows(results, {})
    first = rows[0]
    assert first["method"] == "perfusion" and first["setting"] == "local 0.75"
    assert set(first["subjects"]) == set(NAMES)
    assert first["image"][0] == pytest.approx(0.6) and first["image"][1] < 0.6 < first["image"][2]
    assert {row["what"] for row in rows} >= {"prompts", "pairs", "front", "trainings", "truth"}
