"""Numbers as people and spreadsheets write them."""

import pytest

from perfusion.commands import parser
from perfusion.numerals import decimal, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("0,5", 0.5),
        (",5", 0.5),
        ("-1,25", -1.25),
        ("0,125", 0.125),
        ("1,5e-3", 0.0015),
        (" 7 ", 7.0),
        ("1e3", 1000.0),
    ],
)
def test_a_comma_is_a_decimal_point(text, value):
    assert decimal(text) == value


@pytest.mark.parametrize("text", ["1,000", "12,345", "-1,000"])
def test_what_may_be_a_thousand_is_refused_and_both_are_named(text):
    with pytest.raises(ValueError, match=f"may be {text.replace(',', '.')} or {text.replace(',', '')}, "):
        decimal(text)


@pytest.mark.parametrize("text", ["", "x", "1,2,3", "1,000,000", "0,5x", "1.000,5", ","])
def test_what_is_no_number_is_said_to_be_none(text):
    with pytest.raises(ValueError, match="is no number"):
        decimal(text)


@pytest.mark.parametrize(("text", "value"), [("300", 300), ("300.0", 300), ("300,0", 300), ("-3", -3)])
def test_a_spreadsheets_whole_numbers_are_whole(text, value):
    assert whole(text) == value


@pytest.mark.parametrize("text", ["300.5", "300,5", "1,000,0", "three", ""])
def test_others_are_not(text):
    with pytest.raises(ValueError, match="is no whole number"):
        whole(text)


def test_every_command_reads_decimal_commas_also_in_groups_and_actions():
    command = parser("perfusion-x", "")
    command.add_argument_group("more").add_argument("--bias", type=float)
    action = command.add_subparsers(dest="action").add_parser("go")
    action.add_argument("--scale", type=float)
    args = command.parse_args(["--bias", "0,5", "go", "--scale", "1,5"])
    assert (args.bias, args.scale) == (0.5, 1.5)


def test_an_option_of_an_action_that_is_misspelled_is_answered_with_the_one_like_it(capsys):
    command = parser("perfusion-x", "")
    command.add_subparsers(dest="action").add_parser("go").add_argument("--resolution", type=int)
    with pytest.raises(SystemExit):
        command.parse_args(["go", "--resolutoin=3"])
    assert "did you mean --resolution?" in capsys.readouterr().err
