"""Warnings about prompts: near spellings of concepts, concepts that nobody names, the syntax of other programs."""

import logging

import pytest

from perfusion.concept.notices import PromptNotices, foreign_syntax, nearest, unseen_words


@pytest.fixture
def notices(caplog):
    caplog.set_level(logging.WARNING)
    return PromptNotices(logging.getLogger("perfusion.test"))


@pytest.mark.parametrize(
    "prompt, spelling",
    [
        ("a photo of a pink-cake on a beach", "pink-cake"),
        ("a Pink Cake on a beach", "Pink Cake"),
        ("a <pink_cake> on a beach", "<pink_cake>"),
        ("a <Pink Cake> on a beach", "<Pink Cake>"),
        ("pinkcake", "pinkcake"),
    ],
)
def test_a_near_spelling_of_a_concept_is_asked_about(notices, make_concept, caplog, prompt, spelling):
    notices.unnamed([prompt], {"<pink-cake>": make_concept(token="<pink-cake>")})
    assert caplog.messages == [
        f"no prompt names <pink-cake>, so it is not drawn; did you mean <pink-cake> by {spelling!r}?"
    ]


def test_a_part_of_another_word_is_no_near_spelling(notices, make_concept, caplog):
    notices.unnamed(["a party at night"], {"<art>": make_concept(token="<art>")})
    assert caplog.messages == ["no prompt names <art>, so nothing of it is drawn"]


def test_a_concept_that_some_prompt_names_is_not_told_of(notices, make_concept, caplog):
    concepts = {"<cat>": make_concept()}
    notices.unnamed(["a dog", "a <cat>"], concepts)
    notices.unnamed(["a dog"], concepts)  # nor later: it can be named, and this prompt is meant without it
    assert not caplog.messages


def test_a_concept_is_told_of_once_and_again_when_it_is_loaded_anew(notices, make_concept, caplog):
    for concept in (make_concept(), make_concept()):
        notices.unnamed(["a dog"], {"<cat>": concept})
        notices.unnamed(["a horse"], {"<cat>": concept})
    assert len(caplog.messages) == 2


def test_who_names_one_concept_may_have_loaded_the_others_for_later(notices, make_concept, caplog):
    notices.unnamed(["a <cat>"], {"<cat>": make_concept(), "<dog>": make_concept(token="<dog>")})
    assert not caplog.messages


def test_many_concepts_take_one_line(notices, make_concept, caplog):
    concepts = {f"<c{index}>": make_concept(token=f"<c{index}>") for index in range(5)}
    notices.unnamed(["a dog"], concepts)
    assert caplog.messages == ["no prompt names <c0>, <c1>, <c2> and 2 more, so nothing of it is drawn"]


def test_a_word_in_brackets_that_is_no_concept_is_compared_with_those_that_are(notices, caplog):
    notices.unknown(["<pnk-cake>", "<lora:style:1>", "<pnk-cake>"], ["<pink-cake>"])
    assert caplog.messages == [
        "no concept named <pnk-cake> is loaded, so it is read as plain text; did you mean <pink-cake>?",
        "no concept named <lora:style:1> is loaded, so it is read as plain text",
    ]
    assert nearest("<dog>", ["<pink-cake>"]) is None


@pytest.mark.parametrize(
    "prompt, marks",
    [
        ("a [cat:dog:0.5] and a [cow|horse]", ("[cat:dog:0.5]", "[cow|horse]")),
        ("a {red|blue} hat, __place__, embedding:ugly", ("{red|blue}", "__place__", "embedding:ugly")),
        ("a hat <hypernet:old:1>", ("<hypernet:old:1>",)),
        ("a (cat:1.3) ((on a mat)), at [12] BREAK don't break it: 50% [", ()),
        ("a <cat> and a <lora:style:1>", ()),
    ],
)
def test_what_other_programs_replace_by_other_words_is_known(prompt, marks):
    assert foreign_syntax(prompt) == marks


def test_words_that_are_no_token_are_unseen_and_concepts_are_no_such_words():
    knows = {"a</w>", "cat</w>", "on</w>", "beach</w>"}.__contains__
    prompt = "A <my-hat> and a cat, on a sunlit beach! <other>"
    assert unseen_words(prompt, ["<my-hat>"], knows) == ("and", "sunlit")


def test_an_unseen_word_is_told_of_once(notices, caplog):
    notices.unseen(["sunlit", "glass"])
    notices.unseen(["glass"])
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "the embedded model has never seen 'sunlit'"
    ]
    assert "'glass'" in caplog.text
