"""docs/serving.md says what the records say, and a minute of the soak goes well."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.servers.tables import PAGE, block, in_page

ROOT = Path(__file__).parents[3]


def test_the_page_says_what_was_measured():
    assert in_page(PAGE.read_text(encoding="utf-8")) == block(), "python -m benchmarks.servers.tables --write"


def test_records_become_sentences(tmp_path):
    row = {
        "clients": 16, "batch": 8, "pictures_a_second": 2.34, "share_of_batch": 0.97, "at_batch_size_1": 2.0,
        "mean_pictures_a_call": 7.6, "mean_concepts_a_call": 7.5, "mean_steps_a_call": 4.2, "steps": 3,
        "longest_over_mean_wait": 1.4,
        "first_preview_step": 2, "overhead_ms": 3.3, "overhead_outside_graphs_ms": 2.2, "alone_ms": 234.5, "size": 256,
        "minutes": 60, "pictures": 9876, "most_levels": 1,
        "faults": [], "memory_mb": [[210, 214], [215, 218]],
    }  # fmt: skip
    machine = {"processor": "A Processor", "cores": 2}
    for name in ("serving", "serving-sd15", "soak", "draw"):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"benchmark": name, "machine": machine, "rows": [row]})
        )
    text = block(tmp_path)
    for number in (
        "2.34",
        "0.97 times",
        "7.6 pictures",
        "3.3 ms",
        "2.2 ms",
        "1.17 times",
        "60 minutes",
        "9876",
        "215 to 218 MB",
    ):
        assert number in text
    assert text.count("A Processor, 2 cores") == 3


@pytest.mark.slow
def test_a_minute_of_the_soak_goes_well():
    command = [sys.executable, "benchmarks/soak.py", "--minutes", "1", "--clients", "8"]
    soak = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert soak.returncode == 0, soak.stdout + soak.stderr
    assert json.loads(soak.stdout)["pictures"] > 0
