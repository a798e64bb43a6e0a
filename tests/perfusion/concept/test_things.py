"""The things of a prompt, their order from left to right, and the reading of each."""

import pytest

from perfusion.concept.things import read_marks, side_by_side
from perfusion.errors import RequestError

TOKENS = ("<cat>", "<dog>")


def words(things):
    return [thing.word for thing in things]


@pytest.mark.parametrize(
    "prompt, things",
    [
        ("a photo of a cat", []),
        ("a <cat> on a beach", ["<cat>"]),
        ("a <cat> and a {teapot}", ["<cat>", "teapot"]),
        ("a { red teapot } beside a <dog>", ["red teapot", "<dog>"]),
        ("a <dog>, a <cat> and another <dog>", ["<dog>", "<cat>"]),
        (r"a \{teapot\} and a <cat>", ["<cat>"]),
    ],
)
def test_things_are_concepts_and_marked_words_in_the_order_of_mention(prompt, things):
    assert words(read_marks(prompt, TOKENS).things) == things


def test_marks_are_gone_from_the_text_and_escaped_braces_stay():
    assert (
        str(read_marks(r"a {red teapot} and \{this\} \\ that", TOKENS).text)
        == r"a red teapot and {this} \ that"
    )


def test_every_span_holds_its_word():
    prompt = read_marks(r"\{ a <cat>, { teapot}, a <dog> and a <cat>", TOKENS)
    for thing in prompt.things:
        assert {str(prompt.text[start:end]) for start, end in thing.spans} == {thing.word}
    assert [len(thing.spans) for thing in prompt.things] == [2, 1, 1]


def test_a_word_may_be_a_thing_by_request_and_is_found_whole():
    prompt = read_marks("a tea set, a tea and a <cat>", TOKENS, marked=["tea"])
    assert words(prompt.things) == ["tea", "<cat>"]
    assert [str(prompt.text[start:end]) for start, end in prompt.things[0].spans] == ["tea", "tea"]
    assert words(read_marks("a {tea} and a <cat>", TOKENS, marked=["tea", "<cat>"]).things) == [
        "tea",
        "<cat>",
    ]


@pytest.mark.parametrize(
    "prompt, marked, sentence",
    [
        ("a {teapot and a <cat>", (), "has a '{' without its partner"),
        ("a teapot} and a <cat>", (), "has a '}' without its partner"),
        ("a {} and a <cat>", (), "marks nothing"),
        ("a <cat>", ("teapot",), "asked for 'teapot', and the prompt does not hold it"),
        ("a red teapot", ("red teapot", "teapot"), "overlap in the prompt"),
    ],
)
def test_what_cannot_be_a_thing_is_refused(prompt, marked, sentence):
    with pytest.raises(RequestError, match=sentence):
        read_marks(prompt, TOKENS, marked)


@pytest.mark.parametrize(
    "prompt, order",
    [
        ("a <cat> and a <dog>", ["<cat>", "<dog>"]),
        ("a <cat> and a {teapot} on a wooden table", ["<cat>", "teapot"]),
        ("a photo of a <cat> next to a {tree} on grass", ["<cat>", "tree"]),
        ("a <cat>, a <dog> and a {hat}", ["<cat>", "<dog>", "hat"]),
        ("a <cat> sitting on a beach next to a <dog>", ["<cat>", "<dog>"]),
        ("a <cat> to the left of a <dog>", ["<cat>", "<dog>"]),
        ("a <cat> to the right of a <dog>", ["<dog>", "<cat>"]),
        ("a {hat}, a <cat> to the right of a <dog>", ["hat", "<dog>", "<cat>"]),
        ("a <cat> on the right and a <dog> on the left", ["<dog>", "<cat>"]),
        ("a <cat> on the left side, and a <dog>", ["<cat>", "<dog>"]),
        ("a <cat> and a <dog> on the left", ["<dog>", "<cat>"]),
        ("a <cat> on the right of a <dog>", ["<dog>", "<cat>"]),
        ("<cat> & <dog>", ["<cat>", "<dog>"]),
    ],
)
def test_things_side_by_side_stand_as_the_prompt_says(prompt, order):
    assert words(side_by_side(read_marks(prompt, TOKENS))) == order


@pytest.mark.parametrize(
    "prompt",
    [
        "a <cat>",
        "a <cat> on a {chair}",
        "a <cat> wearing a {hat}",
        "a <cat> with a {hat}",
        "a <cat> in a {hat} and a <dog>",
        "a <cat> in front of a {house}",
        "a <cat> behind a <dog>",
        "a <cat> <dog>",
        "a {statue} of a <cat>",
    ],
)
def test_things_that_are_one_to_look_at_have_no_places(prompt):
    assert side_by_side(read_marks(prompt, TOKENS)) == ()


def test_the_reading_of_a_thing_has_its_word_in_the_place_of_all():
    prompt = read_marks("a <cat> and a {teapot} on a wooden table", TOKENS)
    spoken = {"<cat>": "cat"}
    assert [str(prompt.reading(thing, spoken)) for thing in prompt.things] == [
        "a <cat> and a <cat> on a wooden table",
        "a teapot and a teapot on a wooden table",
    ]


@pytest.mark.parametrize(
    "prompt, reading",
    [
        ("an {owl} and a <cat>", ("an owl and an owl", "a <cat> and a <cat>")),
        ("An {owl} and a <cat>", ("An owl and an owl", "A <cat> and a <cat>")),
        ("the {owl} and one <cat>", ("the owl and one owl", "the <cat> and one <cat>")),
        ("a {unicorn} and an {hourglass}", ("a unicorn and a unicorn", "an hourglass and an hourglass")),
    ],
)
def test_articles_follow_the_word(prompt, reading):
    marked = read_marks(prompt, TOKENS)
    assert tuple(str(marked.reading(thing, {"<cat>": "cat"})) for thing in marked.things) == reading


def test_a_concept_takes_the_article_of_its_superclass():
    prompt = read_marks("a {teapot} and an <cat>", TOKENS)
    assert str(prompt.reading(prompt.things[1], {"<cat>": "owl"})) == "an <cat> and an <cat>"


def test_the_whole_prompt_may_name_superclasses():
    assert str(read_marks("a <cat> and a {teapot}", TOKENS).plain({"<cat>": "cat"})) == "a cat and a teapot"
