"""A setting is written where it is defined, where it acts and where it is offered, and nowhere between."""

import ast
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfusion.concept.settings import SETTINGS, ConceptSettings, SettingChanges
from perfusion.errors import RequestError

ROOT = Path(__file__).parents[3]
NAMES = set(SETTINGS)

WHERE_SETTINGS_ACT = {
    "perfusion/concept/settings.py": "what they are",
    "perfusion/concept/bank.py": "the rows of the edit, and what strength and start do to a prompt",
    "perfusion/concept/edit.py": "the formula",
    "perfusion/concept/conditioning.py": "hands the rows to the formula",
    "perfusion/concept/prompt_syntax.py": "a strength that a prompt writes itself",
    "perfusion/concept/concept_file.py": "the defaults that a file may have of its own",
    "runtime/text/prompt_encoder.py": "encodings are kept by the strengths they depend on",
    "runtime/sampling/schedule.py": "an image's strength, and whether a step meets a start",
    "perfusion/training/config.py": "the gate in training, which is no setting of a loaded concept",
    "perfusion/training/rank_one.py": "likewise",
    "perfusion/training/initial_edit.py": "likewise",
    "perfusion/training/draw.py": "the rows of the edit, of a concept in training",
    "perfusion/sharing/gallery.py": "which drawing is nearest to a concept's own",
    "perfusion/training/interchange.py": "the gate of an import, found by search",
}


def names_in(path):
    """The settings that a module writes literally: as an argument, a keyword, an attribute, a field or a text."""
    written = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.arg | ast.keyword):
            written.add(node.arg)
        elif isinstance(node, ast.Attribute):
            written.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            written.add(node.target.id)
        elif isinstance(node, ast.Constant):
            written.add(node.value)
    return written & NAMES


def test_what_only_hands_settings_on_names_none_of_them():
    """A module may have a start or a bias of its own; one that writes two of the names knows the settings."""
    paths = [
        path
        for folder in ("perfusion", "runtime", "export", "devices")
        for path in (ROOT / folder).rglob("*.py")
    ]
    knowing = {str(path.relative_to(ROOT)) for path in paths if len(names_in(path)) > 1}
    assert knowing == set(WHERE_SETTINGS_ACT)


def test_a_setting_more_reaches_every_door_from_its_definition_alone():
    """The module with one more field, and nothing else changed: the bank, the sweep and the command line take it."""
    code = """
import sys, types
from pathlib import Path
import perfusion.concept
path = Path("perfusion/concept/settings.py")
source = path.read_text()
field = "    start: float = 0.0"
assert source.count(field) == 1
line = next(line for line in source.splitlines() if line.startswith(field))
module = types.ModuleType("perfusion.concept.settings")
sys.modules["perfusion.concept.settings"] = perfusion.concept.settings = module
exec(compile(source.replace(line, line + chr(10) + "    tint: float = 0.5"), str(path), "exec"), vars(module))

from perfusion.commands.drawing_arguments import concept_argument
from perfusion.runtime import Runtime
from perfusion.sweep import all_settings, varied

name, settings = concept_argument("pink-cake:tint=0.25,bias=0.6")
with Runtime() as runtime:
    runtime.load_concept(name, **settings)
    assert runtime.set_concept("<pink-cake>").tint == 0.25
    assert runtime.set_concept("<pink-cake>", tint=0.75).bias == 0.6
    (adjusted,) = [runtime._bank.adjusted({"<pink-cake>": {"tint": 0.1}})]
    assert adjusted.change("<pink-cake>").tint == 0.1
swept = all_settings(tint=(0.1, 0.2))
assert varied(swept) == ("tint",) and swept[0].label(("tint",)) == "tint 0.1"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_keywords_are_the_fields():
    assert tuple(SettingChanges.__annotations__) == SETTINGS


def test_changes_are_laid_over_the_rest():
    settings = ConceptSettings(bias=0.6, strength=0.5)
    assert settings.merged({"strength": 1, "start": None}) == replace(settings, strength=1)
    assert settings.merged({}) == settings
    assert settings == ConceptSettings(bias=0.6, strength=0.5)  # and it stays as it was


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bais": 0.6}, r"no setting 'bais', expected bias, temperature, strength, start\."),
        ({"bias": float("nan")}, r"bias is nan, expected a finite number\."),
        ({"bias": "0.6"}, r"bias is '0.6', expected a finite number\."),
        ({"temperature": 0}, r"temperature is 0, expected a finite number above 0\."),
        ({"strength": True}, r"strength is True, expected 0 \(the base model\) to 1\."),
        ({"strength": -0.1}, r"strength is -0.1, expected 0"),
        ({"start": 1.0}, r"start is 1.0, expected 0 \(from the beginning\) to below 1\."),
    ],
)
def test_a_change_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(RequestError, match=message):
        ConceptSettings().merged(change)


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int64(1)])
def test_a_number_may_be_of_any_kind(number):
    assert ConceptSettings().merged({"strength": number}).strength == number


def test_a_change_costs_microseconds():
    settings = ConceptSettings()
    turns = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(1000):
            settings.merged({"bias": 0.6})
        turns.append(time.perf_counter() - began)
    assert min(turns) < 0.1  # a thousand of them
