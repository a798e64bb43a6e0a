"""Token ids against transformers' tokenizer, and concepts as words among them."""

import numpy as np
import pytest

from perfusion.concept.words import superclass_positions
from perfusion.errors import BundleError, RequestError
from perfusion.runtime.text.tokenizer import PromptTokenizer, Word

CAT = {"<cat>": Word(rows=1, superclass="cat")}
PROMPTS = [
    "",
    "a photo of a cat on a beach",
    "A Photo  of\ta CAT, on a beach!",
    "two teddy bears... it's 3 o'clock",
    "ein Kätzchen, кошка, 猫, 🐱",
    "<cat> is not loaded",
    "a <|endoftext|> inside",
    "  spaces around  ",
    "l'été à l'ombre",
]


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return PromptTokenizer(bundle.tokenizer, bundle.text_encoder)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_those_of_transformers(tokenizer, toy_pipeline, prompt):
    expected = toy_pipeline.tokenizer(prompt, padding="max_length", max_length=77, truncation=True).input_ids
    found = tokenizer.tokenize(prompt, {}).input_ids
    assert found.dtype == np.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    "prompt", ["a photo of <cat> on a beach", "<cat>", "a <cat>, a<cat>s", "<cat><cat> here"]
)
def test_a_concept_is_one_id_and_the_rest_is_as_without_it(tokenizer, bundle, prompt):
    found = tokenizer.tokenize(prompt, CAT)
    placeholder = bundle.text_encoder.vocab_size
    assert found.concepts == ("<cat>",)
    assert (found.input_ids == placeholder).sum() == prompt.count("<cat>")
    rest = [id_ for id_ in found.input_ids if id_ != placeholder]
    # the tokenizer splits at white space and punctuation: what stands around a word does not change it
    without = tokenizer.tokenize(prompt.replace("<cat>", " "), {}).input_ids
    assert rest == without[: len(rest)].tolist()


def test_rows_are_numbered_in_order_of_appearance(tokenizer, bundle):
    words = {"<cat>": Word(rows=1, superclass="cat"), "<dog>": Word(rows=2, superclass="dog")}
    found = tokenizer.tokenize("a <dog> and a <cat> and a <dog>", words)
    first = bundle.text_encoder.vocab_size
    assert found.concepts == ("<dog>", "<cat>")
    assert [id_ for id_ in found.input_ids if id_ >= first] == [first, first + 1, first + 2, first, first + 1]


def test_a_concept_is_not_found_inside_another_or_in_other_letters(tokenizer):
    words = {"<cat>": Word(rows=1, superclass="cat"), "<cat2>": Word(rows=1, superclass="cat")}
    assert tokenizer.tokenize("a <cat2>", words).concepts == ("<cat2>",)
    found = tokenizer.tokenize("a <CAT>", words)
    assert found.concepts == () and found.unknown == ("<CAT>",)


def test_words_that_look_like_concepts_are_told(tokenizer):
    found = tokenizer.tokenize("a <dog> and <cat>, 1 < 2 > 0, <|endoftext|>, < dog>", CAT)
    assert found.unknown == ("<dog>",)


def test_a_prompt_that_just_fits_is_served(tokenizer):
    found = tokenizer.tokenize("cat " * 74 + "<cat>", CAT)
    assert found.input_ids[-2] == found.input_ids.max()
    assert found.superclass_tokens == (tokenizer.tokenize("cat", {}).input_ids[1],) * 75


def test_a_prompt_that_is_too_long_says_what_would_be_cut(tokenizer):
    with pytest.raises(
        RequestError, match=r"has 77 tokens, and the model reads 75: '<cat> beach' would be cut"
    ):
        tokenizer.tokenize("cat " * 75 + "<cat> beach", CAT)
    with pytest.raises(RequestError, match=r"'dog dog'"):
        tokenizer.tokenize("<cat>" + " cat" * 74 + " dog dog", CAT)
    with pytest.raises(RequestError, match=r"\.\.\.' would be cut"):
        tokenizer.tokenize("cat " * 1000, CAT)


@pytest.mark.parametrize("prompt", [None, 3, b"cat", ["cat"]])
def test_a_prompt_that_is_no_text_is_refused(tokenizer, prompt):
    with pytest.raises(RequestError, match="expected a text"):
        tokenizer.tokenize(prompt, {})


def test_bytes_that_are_not_utf_8_are_refused_by_place(tokenizer):
    with pytest.raises(RequestError, match="not UTF-8 at character 2"):
        tokenizer.tokenize("a \udc80", {})


def read_as(tokenizer, token, prompt, superclass):
    """The prompt as it is read while the concept is off."""
    return tokenizer.tokenize(prompt, {token: Word(rows=1, superclass=superclass, active=False)})


@pytest.mark.parametrize("superclass", ["cat", "teddy bear", "big old teddy bear"])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(
    "prompt", ["a photo of <cat> on a beach", "<cat>", "<cat> next to <cat>", "no concept"]
)
def test_every_token_around_a_concept_finds_itself_in_the_superclass_prompt(
    tokenizer, bundle, prompt, rows, superclass
):
    found = tokenizer.tokenize(prompt, {"<cat>": Word(rows=rows, superclass=superclass)})
    ids, positions = read_as(tokenizer, "<cat>", prompt, superclass).input_ids, superclass_positions(found)
    assert ids.tolist() == tokenizer.tokenize(prompt.replace("<cat>", superclass), {}).input_ids.tolist()
    own = found.input_ids < bundle.text_encoder.vocab_size
    np.testing.assert_array_equal(ids[positions][own], found.input_ids[own])
    assert (np.diff(positions) >= 0).all() and positions[0] == 0 and positions.max() <= 76


def test_a_concepts_rows_meet_the_last_tokens_of_the_superclass(tokenizer):
    def counterparts(rows: int, superclass: str) -> list[str]:
        found = tokenizer.tokenize("a <cat> !", {"<cat>": Word(rows=rows, superclass=superclass)})
        ids, positions = (
            read_as(tokenizer, "<cat>", "a <cat> !", superclass).input_ids,
            superclass_positions(found),
        )
        tokens = {int(tokenizer.tokenize(word, {}).input_ids[1]): word for word in ("teddy", "bear", "cat")}
        return [tokens[int(ids[positions[at]])] for at in range(2, 2 + rows)]

    assert counterparts(1, "teddy bear") == ["bear"]
    assert counterparts(2, "teddy bear") == ["teddy", "bear"]
    assert counterparts(3, "teddy bear") == ["teddy", "teddy", "bear"]
    assert counterparts(2, "cat") == ["cat", "cat"]


def test_equal_counts_leave_every_position_as_it_is(tokenizer):
    found = tokenizer.tokenize("a photo of <cat> on a beach", CAT)
    np.testing.assert_array_equal(superclass_positions(found), np.arange(77))


def test_a_superclass_that_does_not_fit_is_refused_only_when_it_is_needed(tokenizer):
    found = tokenizer.tokenize("cat " * 74 + "<cat>", {"<cat>": Word(rows=1, superclass="teddy bear")})
    with pytest.raises(RequestError, match=r"has 76 tokens, and the model reads 75.*local lock"):
        superclass_positions(found)


def test_a_file_that_is_no_tokenizer_is_refused(bundle, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"version": "1.0"}')
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        PromptTokenizer(path, bundle.text_encoder)


def test_a_tokenizer_with_more_words_than_the_text_encoder_is_refused(bundle):
    from dataclasses import replace

    with pytest.raises(BundleError, match="has 840 tokens and the text encoder knows 839"):
        PromptTokenizer(bundle.tokenizer, replace(bundle.text_encoder, vocab_size=839))
