"""docs/providers.md says what the record of benchmarks/providers.py says, and the record keeps what was promised."""

import json

import pytest

from benchmarks.libraries.tables import PAGE, block, in_page, lines
from benchmarks.record import RECORDS

PATHS = sorted(RECORDS.glob("providers-*.json"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def measured(request):
    """Rows of one machine's record by their facts; without them there is nothing to hold."""
    record = json.loads(request.param.read_text())["rows"]

    def rows(what, **facts):
        found = [row for row in record if {"what": what, **facts}.items() <= row.items()]
        if not found:
            pytest.skip(f"benchmarks/providers.py did not measure {what} there")
        return found

    return rows


def test_the_page_shows_what_was_measured():
    assert in_page(PAGE.read_text(encoding="utf-8")) == block(), (
        "python -m benchmarks.libraries.tables --write"
    )


def test_a_record_becomes_a_table():
    step = {"what": "step", "model": "sd15", "concepts": 1}
    picture = {"what": "picture", "threads": 2}
    first = {"what": "first result", "model": "sd15", "library": "openvino"}
    rows = [
        {**picture, "library": "onnxruntime", "seconds": 0.4, "swap_ms": 0.3},
        {**picture, "library": "openvino", "seconds": 0.3, "swap_ms": 0.2},
        {**step, "library": "openvino bf16", "seconds": 0.45},
        {**step, "library": "torch, no concepts", "seconds": 2.4},
        {**step, "concepts": 0, "library": "stable-diffusion.cpp f16", "step_seconds": 4.0},
        {**first, "start": "cold", "seconds": 20.1, "peak_memory_mb": 9000},
        {**first, "start": "warm", "seconds": 3.2, "peak_memory_mb": 4000},
        {**first, "start": "only", "library": "onnxruntime", "seconds": 5.5, "peak_memory_mb": 7000},
        {"what": "install", "package": "stable-diffusion-cpp-python", "mb": 20},
    ]
    assert lines(rows) == {
        "a picture of the embedded model, two threads": {"onnxruntime": "0.4 s", "openvino": "0.3 s"},
        "changing its concept": {"onnxruntime": "0.3 ms", "openvino": "0.2 ms"},
        "a step at Stable Diffusion 1.5's size, one concept": {"openvino bf16": "0.45 s"},
        "the same without concepts": {"torch": "2.4 s", "stable-diffusion.cpp f16": "4 s"},
        "first step at Stable Diffusion 1.5's size in a new process": {
            "onnxruntime": "5.5 s",
            "openvino": "20.1 s, then 3.2 s",
        },
        "its peak memory": {"onnxruntime": "7000 MB", "openvino": "9000 MB, then 4000 MB"},
        "on the disk": {"stable-diffusion.cpp f16": "20 MB", "stable-diffusion.cpp f32": "20 MB"},
    }


def test_bfloat16_is_what_makes_it_fast(measured):
    (processor,) = measured("processor")
    if "avx512_bf16" not in processor["flags"]:
        pytest.skip("this processor has none")
    steps = measured("step", library="openvino bf16")
    assert min(row["onnxruntime_over_it"] for row in steps) > 1.8
    assert max(row["relative_l2"] for row in steps) < 0.02
    (picture,) = measured("picture", library="openvino bf16", threads=2)
    assert picture["onnxruntime_over_it"] > 1.4
    assert picture["psnr_db"] > 45
    page, ratio = " ".join(PAGE.read_text(encoding="utf-8").split()), "onnxruntime_over_it"
    one, four = (row[ratio] for row in steps)
    assert f"takes 1/{one:.2f} of ONNX Runtime's time with one concept and 1/{four:.2f} with four" in page
    assert f"a picture of the embedded model 1/{picture[ratio]:.2f} ({picture['psnr_db']:.0f} dB)" in page
    one, four = (row[ratio] for row in measured("step", library="openvino"))
    assert f"In float32 it was {one:.2f} and {four:.2f} times as fast" in page


def test_float32_is_that_of_onnxruntime(measured):
    steps = measured("step", library="openvino")
    assert {row["concepts"] for row in steps} == {1, 4}
    assert max(row["relative_l2"] for row in steps) < 1e-4
    assert min(row["psnr_db"] for row in measured("picture", library="openvino")) >= 60


def test_with_all_cores_a_concept_is_changed_within_a_millisecond(measured):
    rows = measured("picture")
    cores = max(row["threads"] for row in rows)
    assert max(row["swap_ms"] for row in rows if row["threads"] == cores) <= 1


@pytest.mark.parametrize("model", ["pocket", "sd15"])
def test_a_second_start_does_not_pay_for_compiling_again(measured, model):
    facts = {"library": "openvino", "model": model}
    (cold,), (warm,) = (measured("first result", start=start, **facts) for start in ("cold", "warm"))
    assert warm["seconds"] < 0.6 * cold["seconds"]
    # with the first step, and at true size with reading 3.4 GB and their checksum
    assert warm["cpu_seconds"] < {"pocket": 0.7, "sd15": 0.71}[model] * cold["cpu_seconds"]


@pytest.mark.parametrize("measured", [RECORDS / "providers-amd-epyc-2.json"], indirect=True)
def test_the_page_says_what_compiling_takes(measured):
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    peaks = {
        (row["model"], row["compiled"]): (row["peak_memory_mb"] - row["library_mb"]) / 1000
        for row in measured("compile memory")
    }
    assert f"peaked (`VmHWM`) {peaks['pocket', 'stored']:.3f} GB above the library" in text
    assert f"size (3.4 GB) it was {peaks['sd15', 'stored']:.1f} GB" in text
    assert f"one that stored nothing {peaks['sd15', 'forgotten']:.1f} GB" in text
    times = {row["rows"]: row["a_row_of_two_over_it"] for row in measured("rows at once", model="sd15")}
    assert (
        f"four at once were {times[4]:.2f} times as fast a row in the record below, eight {times[8]:.2f} times"
        in text
    )


def test_more_than_two_rows_of_a_heavy_graph_bring_little(measured):
    """What the limit of two rows rests on."""
    assert max(row["a_row_of_two_over_it"] for row in measured("rows at once", model="sd15")) < 1.1
