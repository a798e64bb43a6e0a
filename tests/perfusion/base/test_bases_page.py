"""The page of base models says what the record of concepts that carry over says."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ARMS = {
    "plain model": "the plain model",
    "plain model, few steps": "the plain model, in few steps",
    "with the LoRA, carried over": "the model with the LoRA, carried over",
    "with the LoRA, trained on it": "the model with the LoRA, trained on it",
}


@pytest.fixture(scope="module")
def rows() -> list[Mapping[str, Any]]:
    (path,) = (ROOT / "benchmarks" / "records").glob("carry-over-*.json")
    return list(json.loads(path.read_text())["rows"])


@pytest.mark.parametrize("arm", ARMS)
def test_the_table_is_the_record(rows, arm):
    own = [row for row in rows if row["what"] == arm]
    assert len(own) == 3
    likeness, prompt = (mean(row[name] for row in own) for name in ("likeness", "prompt"))
    learned = sum(row["verdict"]["grade"] == "learned" for row in own)
    steps, scale = own[0]["steps"], own[0]["guidance_scale"]
    guidance = "off" if scale == 1 else f"{scale:g}"
    line = f"| {ARMS[arm]} | {steps} | {guidance} | {likeness:.2f} | {prompt:.2f} | {learned} of 3 |"
    assert line in (ROOT / "docs" / "bases.md").read_text(encoding="utf-8")
