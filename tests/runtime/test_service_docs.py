"""docs/service.md: its program runs, and its table has every error."""

import re
from pathlib import Path

import pytest

from perfusion import errors
from perfusion.runtime import Step, request

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")


def test_the_program_on_the_page_draws(monkeypatch, capsys):
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(request, "steps_of", lambda steps, default: 1)
    exec(compile(code, "docs/service.md", "exec"), {})
    assert "PIL.Image.Image" in capsys.readouterr().out


def test_the_table_has_every_error_of_the_tree():
    for name in errors.__all__:
        assert re.search(rf"^\|.*`{name}`", PAGE, re.MULTILINE), name


@pytest.mark.parametrize("name", re.findall(r"`step\.(\w+)", PAGE))
def test_what_the_page_says_of_a_step_is_there(name):
    assert name in Step.__annotations__ or hasattr(Step, name)
