"""docs/runtime.md: its code runs, and what it lists is what there is."""

import re
from pathlib import Path

import pytest

from perfusion.runtime import SCHEDULERS, Runtime, request
from perfusion.runtime.request import Options

PAGE = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_the_code_on_the_page_runs(code, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(request, "steps_of", lambda steps, default: 2)  # a tenth of the time
    exec(compile(code, "docs/runtime.md", "exec"), {})


def test_the_table_on_the_page_is_what_explain_says():
    (table,) = [block for kind, block in BLOCKS if not kind]
    with Runtime(threads=1) as runtime:
        runtime.load_concept("gold-hat", token="<hat>")
        assert runtime.explain("a photo of <hat> on a beach").text() == table.rstrip("\n")


def test_all_schedulers_and_options_are_on_the_page():
    for name in (*SCHEDULERS, *Options.__annotations__, "seed", "count"):
        assert f"`{name}`" in PAGE, name
