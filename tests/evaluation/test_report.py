"""The page, the plot and the verdicts, from figures made up for the purpose."""

from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.evaluation.findings import front_of, verdicts
from benchmarks.evaluation.methods import METHODS, Setting
from benchmarks.evaluation.page import BY_HAND, page
from benchmarks.evaluation.plan import FULL
from benchmarks.evaluation.plot import scatter
from benchmarks.evaluation.report import _kept, marks_of, record_rows
from benchmarks.evaluation.results import Point, Results

BY_NAME = {method.name: method for method in METHODS}
NAMES = tuple(f"subject {number}" for number in range(12))


def figures(image, text, **more):
    """Twelve subjects around two means."""
    spread = np.linspace(-0.05, 0.05, len(NAMES))
    known = {"place": 1.0, "noun": 0.9, "both": 0.8, "colour": 0.7, "drift": 0.0, "harmonic": 0.5} | more
    return {
        name: {"image": image + by, "text": text - by, **known}
        for name, by in zip(NAMES, spread, strict=True)
    }


def point(name, image, text, setting=None, **more):
    return Point(method=BY_NAME[name], setting=setting or Setting(), figures=figures(image, text, **more))


@pytest.fixture
def results():
    made = Results()
    for bias, image, text in ((0.75, 0.6, 0.8), (0.5, 0.9, 0.4), (1.05, 0.1, 0.97)):
        made.points.append(point("perfusion", image, text, Setting(lock="local", bias=bias)))
    made.points.append(point("unselected", 0.55, 0.8, Setting(lock="local", bias=0.75)))
    made.points.append(point("textual-inversion", 0.4, 0.5, drift=0.0))
    made.points.append(point("lora-values-1", 0.5, 0.95, drift=4.0))
    made.points.append(point("dreambooth", 1.2, 0.1, drift=30.0))
    made.pairs = [point("perfusion", 0.4, 0.9, Setting(lock="local", bias=0.75), both=0.7, lesser=0.3)]
    made.base = figures(0.0, 1.0, drift=0.0)
    made.base_pairs = figures(0.0, 1.0, both=0.85)
    made.truth = {name: {"image": 0.9, "image_exact": 0.95, "noun": 0.5, "overlap": 0.8} for name in NAMES}
    sizes = {
        "perfusion": 7500,
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


def test_the_front_of_one_file_begins_at_the_base_model(results):
    front = front_of(results)
    assert len(front) == 4
    assert front[-1] == pytest.approx((0.0, 1.0))


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


def test_the_page_says_what_the_verdicts_say(results):
    text = page(results, FULL, {}, [BY_NAME["perfusion"]])
    assert "Of the 2 baselines of at most 10 times its bytes, 1 lie below" in text
    assert "above or beyond it: LoRA, rank 1, cross-attention values." in text
    assert "bit for bit as without it" in text
    assert "both recognised in 70% of the pictures" in text and "The aim of 60% is reached." in text
    assert "nan" not in text


def test_drift_that_is_there_is_not_called_none(results):
    results.points[0].figures[NAMES[3]]["drift"] = 1.2
    assert "bit for bit" not in page(results, FULL, {}, [])
    assert "0.10 of 255 levels" in page(results, FULL, {}, [])


def test_what_people_wrote_stays_when_the_page_is_made_anew(tmp_path):
    path = tmp_path / "evaluation.md"
    assert _kept(path) == BY_HAND + "\n"
    path.write_text(f"old numbers\n\n{BY_HAND}\n\nThe hat is a hat.\n")
    assert _kept(path) == f"{BY_HAND}\n\nThe hat is a hat.\n"


def test_the_plot_is_a_drawing_with_every_method_and_higher_text_is_higher_up(results):
    root = ElementTree.fromstring(scatter(marks_of(results), across="image", up="text"))
    words = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Perfusion, local lock", "Textual Inversion", "0.75"} <= set(words)
    (line,) = root.iter("{http://www.w3.org/2000/svg}polyline")
    spots = [tuple(map(float, spot.split(","))) for spot in line.attrib["points"].split()]
    assert [x for x, _ in spots] == sorted(
        (x for x, _ in spots), reverse=True
    )  # the bias rises, the likeness falls
    assert [y for _, y in spots] == sorted((y for _, y in spots), reverse=True)


def test_the_record_holds_every_subject_and_the_same_intervals(results):
    rows = record_rows(results, {})
    first = rows[0]
    assert first["method"] == "perfusion" and first["setting"] == "local 0.75"
    assert set(first["subjects"]) == set(NAMES)
    assert first["image"][0] == pytest.approx(0.6) and first["image"][1] < 0.6 < first["image"][2]
    assert {row["what"] for row in rows} >= {"prompts", "pairs", "front", "trainings", "truth"}
