"""docs/engines.md against the code."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from perfusion.commands.export import _parser
from perfusion.tensorrt.flavour import FLAVOURS
from perfusion.tensorrt.keys import EngineKey
from perfusion.tensorrt.shape_ranges import ShapeOptions
from perfusion.tensorrt.targets import TARGETS

PAGE = (Path(__file__).parents[3] / "docs" / "engines.md").read_text()


def test_the_page_has_every_field_of_the_key_and_no_other():
    table = PAGE.partition("| field | content |")[2].partition("\n\n")[0]
    named = [
        name for cell in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert named == [field.name for field in fields(EngineKey)]


def test_the_page_has_the_targets_and_releases_of_the_tables():
    listed = re.search(r"^\| targets \| (.*?), several at once", PAGE, re.M)
    assert listed is not None
    assert listed[1].split(", ") == [name for name, one in TARGETS.items() if one.rtx]
    for row in FLAVOURS.values():
        assert f"{row.oldest[0]}.{row.oldest[1]}" in PAGE


def test_every_option_on_the_page_is_the_commands():
    options = {name for action in _parser()._actions for name in action.option_strings}
    assert (
        set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE)) - {"--system-site-packages", "--dry-run"} <= options
    )


@pytest.mark.parametrize("option, default", [("batch", "`1,2`"), ("concepts", "4")])
def test_the_defaults_on_the_page_are_those_of_the_code(option, default):
    row = re.search(rf"^\| `--{option}` \|.*\| (.*?) \|$", PAGE, re.M)
    assert row is not None and row[1] == default
    assert (ShapeOptions().batches, ShapeOptions().concepts) == ((1, 2), 4)
