"""How people write prompts: weights, breaks and strengths are taken out of the text, and what is none stays."""

import math
import random

import pytest

from perfusion.concept.prompt_syntax import parse_prompt, with_words
from perfusion.concept.things import read_marks
from perfusion.concept.weighted_text import WeightedText
from perfusion.errors import RequestError

TOKENS = ("<cat>", "<dog>", "[V]")


def runs(text):
    """Stretches of one weight, without blanks at their ends."""
    pieces = [(str(text[start:end]).strip(), text.weight_at(start)) for start, end in text.runs()]
    return [(piece, pytest.approx(weight)) for piece, weight in pieces if piece]


def parsed(prompt, tokens=TOKENS):
    return parse_prompt(prompt, tokens)


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a (cat)", [("a", 1), ("cat", 1.1)]),
        ("a ((cat)) here", [("a", 1), ("cat", 1.21), ("here", 1)]),
        ("[[cat]]", [("cat", 1 / 1.21)]),
        ("a (cat:1.3) on", [("a", 1), ("cat", 1.3), ("on", 1)]),
        ("(a (cat:1.5) b:2)", [("a", 2), ("cat", 3), ("b", 2)]),
        ("(a [b] c)", [("a", 1.1), ("b", 1), ("c", 1.1)]),
        ("(a [b) c]", [("a", 1.1), ("b", 1), ("c", 1 / 1.1)]),
        ("(cat: 0 )", [("cat", 0)]),
        ("(cat:.5) (dog:+2.)", [("cat", 0.5), ("dog", 2)]),
        ("((cat:1.5))", [("cat", 1.65)]),
        (r"\(cat\) \[x\]", [("(cat) [x]", 1)]),
        (r"(cat\)s:1.2)", [("cat)s", 1.2)]),
        ("(cat:dog)", [("cat:dog", 1.1)]),
        ("(cat:1.2.3)", [("cat:1.2.3", 1.1)]),
        ("(cat:1,2)", [("cat:1,2", 1.1)]),
        ("(<cat>:1.2) and [V] or ([V])", [("<cat>", 1.2), ("and [V] or", 1), ("[V]", 1.1)]),
        ("un(believ)able", [("un", 1), ("believ", 1.1), ("able", 1)]),
        ("[(cat)] (dog:1)", [("cat dog", 1)]),
    ],
)
def test_brackets_weigh_their_words_as_a1111_has_it(prompt, expected):
    assert runs(parsed(prompt).text) == expected


@pytest.mark.parametrize(
    "prompt", ["a (cat", "a cat)", "a ]cat[", "a [cat", ":) :1.2)", "(cat]", "a cat:1.3)", "((("]
)
def test_a_bracket_without_its_partner_is_text_and_told_of(prompt):
    assert parsed(prompt).text == WeightedText(prompt)
    assert all("without its partner" in remark for remark in parsed(prompt).remarks)
    assert parsed(prompt).remarks


@pytest.mark.parametrize("prompt", ["", "a cat", r"a \ b \\ {c} \{d\}", "breakfast, 12:30 <cat>", "a {b|c}"])
def test_a_prompt_without_syntax_is_its_text(prompt):
    assert parsed(prompt).text == WeightedText(prompt)
    assert not parsed(prompt).remarks


def test_a_weight_with_a_comma_is_text_and_told_of():
    assert ["no weight" in remark for remark in parsed("(a cat:1,2) on (grass, 2)").remarks] == [True]
    assert not parsed("(a cat:1.2), (b:2)").remarks


def test_plain_syntax_reads_nothing():
    prompt = "a ((cat:1.3)) BREAK [b] <lora:cat:0.5> (x:99)"
    assert parse_prompt(prompt, TOKENS, "plain").text == WeightedText(prompt)


def test_a_break_begins_a_new_part_and_one_at_the_end_none():
    def parts(prompt):
        return [str(part) for part in parsed(prompt).text.parts()]

    assert parts("a cat BREAK a (dog BREAK here:1.2)") == ["a cat", "a dog", "here"]
    assert parts("BREAK a") == ["", "a"]
    assert parts("a BREAK BREAK b BREAK ") == ["a", "", "b"]
    assert parts("a BREAKDANCE") == ["a BREAKDANCE"]
    assert runs(parsed("a cat BREAK a (dog BREAK here:1.2)").text.parts()[2]) == [("here", 1.2)]


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("(cat:11)", "weighs 'cat' 11 times, expected 0 to 10"),
        ("((cat:5):5)", "weighs 'cat' 25 times"),
        ("(cat:-0.5)", "weighs 'cat' -0.5 times"),
        (f"(cat:{'9' * 400})", "weighs 'cat' inf times"),
        ("at (12:30)", "weighs '12' 30 times"),
        ("(" * 30 + "cat" + ")" * 30, "expected 0 to 10"),
        ("[" * 101 + "cat" + "]" * 101, "more than 100 pairs of brackets"),
    ],
)
def test_weights_out_of_their_range_are_refused(prompt, sentence):
    with pytest.raises(RequestError, match=sentence):
        parsed(prompt)


def test_a_tag_is_taken_out_and_is_the_strength_of_its_concept():
    prompt = parsed("a (<cat>:1.2) <lora:cat:0.5> and a <dog><lora:dog>")
    assert prompt.strengths == {"<cat>": 0.5}, "without a number it is the concept's own"
    assert str(prompt.text).split() == ["a", "<cat>", "and", "a", "<dog>"]
    prompt = parsed("a [V] <lora:[V]:0.25> <lora:cat:1.5> <cat>")
    assert prompt.strengths == {"[V]": 0.25, "<cat>": 1.0}
    assert prompt.remarks == ("<lora:cat:1.5> is more than all of a concept, so its strength is 1",)


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        ("a dog <lora:cat:0.5>", "nowhere the word <cat>"),
        ("a <cat> <lora:style:1>", "no concept named style is loaded. Loaded: <cat>, <dog>"),
        ("a <cat> <lora:cat:half>", "expected a strength from 0 to 1"),
        ("a <cat> <lora:cat:-1>", "expected a strength from 0 to 1"),
        ("a <cat> <lora:cat:nan>", "expected a strength from 0 to 1"),
        ("a <cat> <lora:cat:1:0.5>", "expected a strength from 0 to 1"),
        ("a <cat> <lora:cat:0.2> <lora:cat:0.3>", "gives <cat> two strengths"),
    ],
)
def test_a_tag_that_says_nothing_is_refused(prompt, sentence):
    with pytest.raises(RequestError, match=sentence):
        parsed(prompt)


def test_in_a1111s_dialect_the_word_is_put_where_a_tag_stands_without_it():
    assert with_words("a photo of <lora:cat:0.5>, <cat>", TOKENS) == ("a photo of <lora:cat:0.5>, <cat>", ())
    prompt, added = with_words("a photo <lora:cat:0.5> <lora:cat:0.5> <lora:dog:1>", TOKENS)
    assert prompt == "a photo <cat><lora:cat:0.5> <lora:cat:0.5> <dog><lora:dog:1>"
    assert added == ("<cat>", "<dog>")
    assert parsed(prompt).strengths == {"<cat>": 0.5, "<dog>": 1}


def test_marks_of_things_are_read_within_weights_and_escaped_braces_stay():
    prompt = read_marks(parsed(r"a ({teapot}:1.2) and a {big (red) hat} \{x\}").text, TOKENS)
    assert [thing.word for thing in prompt.things] == ["teapot", "big red hat"]
    assert runs(prompt.text) == [("a", 1), ("teapot", 1.2), ("and a big", 1), ("red", 1.1), ("hat {x}", 1)]


def test_a_thing_brings_the_weight_of_its_first_mention_into_the_places_of_others():
    prompt = read_marks(parsed("an ({owl}:1.3) and a <cat>, the (<cat>:0.5) sleeps").text, TOKENS)
    owl, cat = (prompt.reading(thing, {"<cat>": "cat"}) for thing in prompt.things)
    assert runs(owl) == [
        ("an", 1),
        ("owl", 1.3),
        ("and an", 1),
        ("owl", 1.3),
        (", the", 1),
        ("owl", 1.3),
        ("sleeps", 1),
    ]
    assert runs(cat) == [("a <cat> and a <cat>, the", 1), ("<cat>", 0.5), ("sleeps", 1)]
    assert runs(prompt.plain({"<cat>": "big cat"}))[-2:] == [("big cat", 0.5), ("sleeps", 1)]


def test_a_whole_phrase_keeps_its_weight_in_every_reading():
    prompt = read_marks(parsed("(a <cat> and a {teapot}:1.2) on a table").text, TOKENS)
    for thing in prompt.things:
        word = thing.word
        assert runs(prompt.reading(thing, {})) == [(f"a {word} and a {word}", 1.2), ("on a table", 1)]


PIECES = (
    "(", ")", "[", "]", "\\", "{", "}", "|", ":", ":1.2)", ":9)", "BREAK", "a", "cat", "<cat>", "[V]", "1", ".", ">",
    "<lora:cat:0.5>", "<lora:", "é", "日", "\u200d", "-", "\\(", " ", "\n",
)  # fmt: skip


def text_or_sentence(prompt):
    """The text of a prompt; None where it is refused with a sentence."""
    try:
        return parsed(prompt).text
    except RequestError as error:
        sentence = str(error)
    assert sentence[0].isupper() and sentence.endswith(".")
    return None


@pytest.mark.parametrize("seed", range(20))
def test_any_prompt_is_read_or_refused_with_a_sentence_and_no_letter_is_lost(seed):
    rng = random.Random(seed)
    for _ in range(100):
        prompt = "".join(rng.choices(PIECES, k=rng.randrange(1, 30)))
        text = text_or_sentence(prompt)
        if text is None:
            continue
        assert all(math.isfinite(weight) and 0 <= weight <= 10 for weight in text.weights)
        letters = [letter for letter in text.text if letter.isalnum()]
        rest = iter(prompt)
        assert all(letter in rest for letter in letters)  # in their order
        assert WeightedText.join(text[at : at + 1] for at in range(len(text))) == text
        assert "".join(str(part) for part in text.parts()).split() == text.text.split() or text.breaks
        # what is escaped is text, whatever it was
        escaped = "".join("\\" + letter if letter in "()[]" else letter for letter in "(a:1.2) [b]")
        assert parsed(escaped).text == WeightedText("(a:1.2) [b]")


def test_long_rubbish_is_read_in_no_time():
    for piece in ("(", "[", "a ", ":1", "<lora:", "<lora:a:", " ", "BREAK ", "(a)", "\\", "1"):
        parse = parse_prompt(piece * 3_000, TOKENS) if piece != "<lora:a:" else None
        assert parse is None or len(parse.text) > 0
    with pytest.raises(RequestError):
        parsed("(" * 3_000 + ")" * 3_000)
