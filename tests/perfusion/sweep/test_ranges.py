"""Ranges as people write them, and their combinations."""

import pytest

from perfusion.errors import RequestError
from perfusion.sweep import Setting, all_settings, parse_values, varied


@pytest.mark.parametrize(
    "text, values",
    [
        ("0.6", (0.6,)),
        ("0.4,0.9", (0.4, 0.9)),
        ("0.4:0.9:6", (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("1:0:3", (1.0, 0.5, 0.0)),
        ("0,4:0,9:6", (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("0,4;0,9", (0.4, 0.9)),
        ("0,1", (0.0, 1.0)),
    ],
)
def test_a_range_is_read_as_its_numbers(text, values):
    assert parse_values(text) == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0,4",
        "0,4,0,9",
        "0.1, 0,25",
        "0.4:0.9",
        "0.4:0.9:1",
        "0.4:0.9:x",
        "0:1:2:3",
        "nan",
        "0:inf:3",
        "0:1:999",
    ],
)
def test_what_is_no_range_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"such as|from 2 to"):
        parse_values(text)


def test_every_combination_comes_once():
    made = all_settings(
        bias=(0.4, 0.6, 0.4), temperature=(0.1, 0.2), strength=(1.0,), lock=("local", "global")
    )
    assert len(made) == len(set(made)) == 8
    assert varied(made) == ("bias", "temperature", "lock")
    assert made[1].label(varied(made)) == "bias 0.6, temperature 0.1, local"


def test_a_single_setting_is_told_by_its_bias():
    assert varied([Setting(bias=0.5, temperature=0.1)]) == ("bias",)


@pytest.mark.parametrize(
    "wrong", [{"bias": float("nan")}, {"temperature": 0.0}, {"strength": 1.5}, {"start": 1.0}, {"lock": "no"}]
)
def test_settings_out_of_their_range_are_refused(wrong):
    with pytest.raises(RequestError, match="expected"):
        Setting(**{"bias": 0.5, "temperature": 0.1, **wrong})
