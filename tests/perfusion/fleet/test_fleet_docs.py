"""The page's numbers are the records'."""

from __future__ import annotations

import json

import pytest

from benchmarks.fleets.tables import PAGE, filled
from benchmarks.record import RECORDS


def test_each_table_is_its_records():
    text = PAGE.read_text("utf-8")
    assert text.count("<!-- table: ") == 4
    assert filled(text) == text, "python -m benchmarks.fleets.tables --write"


def test_what_was_predicted_is_within_what_the_page_says_of_what_was_measured():
    path = next(RECORDS.glob("fleet-simulation-*.json"), None)
    if path is None:
        pytest.skip("fleets were not simulated with measured costs yet")
    rows = [row for row in json.loads(path.read_text("utf-8"))["rows"] if row["kind"] == "prediction"]
    assert {row["replicas"] for row in rows} == {1, 2}
    assert all(max(row["rate_off"], row["seconds_off"]) <= 0.2 for row in rows)
    assert "within 20 %" in PAGE.read_text("utf-8")
