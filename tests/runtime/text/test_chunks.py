"""Long prompts are cut where words begin, and read the same however strong their concepts are."""

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.runtime.text.chunks import MOST_CHUNKS, split_prompt
from perfusion.runtime.text.tokenizer import PromptTokenizer, Word

LONG = "a photo of a cat on a beach, with two dogs; and a red ball! " * 10


@pytest.fixture(scope="module")
def tokenizer(bundle):
    return PromptTokenizer(bundle.tokenizer, bundle.text_encoder)


def texts(tokenizer, prompt, words):
    """The parts of a prompt, without their weights."""
    return tuple(str(part) for part in tokenizer.split(prompt, words))


def ids(tokenizer, text, words=None):
    """Without frame and padding."""
    found = tokenizer.tokenize(text, words or {})
    return found.input_ids[1 : found.length - 1].tolist()


@pytest.mark.parametrize("prompt", ["", "   ", "a cat", "cat " * 75])
def test_a_prompt_that_fits_is_left_as_it_is(tokenizer, prompt):
    assert texts(tokenizer, prompt, {}) == (prompt,)


def test_the_parts_of_a_long_prompt_hold_all_its_tokens_in_order(tokenizer, toy_pipeline):
    parts = texts(tokenizer, LONG, {})
    whole = toy_pipeline.tokenizer(LONG).input_ids[1:-1]
    assert [one for part in parts for one in ids(tokenizer, part)] == whole
    assert all(len(ids(tokenizer, part)) <= 75 for part in parts)
    assert len(parts) == -(-len(whole) // 75)


def test_no_part_ends_inside_a_word_or_a_concept(tokenizer):
    words = {"<cat>": Word(rows=4, superclass="teddy bear")}
    parts = texts(tokenizer, "dog " * 73 + "kangaroooooo <cat> " + "dog " * 3, words)
    assert [part.split()[-1] for part in parts] == ["dog", "dog"]
    assert parts[1].startswith("kangaroooooo <cat>")
    parts = texts(tokenizer, "dog " * 73 + "<cat>", words)
    assert parts[1] == "<cat>"


def test_the_parts_do_not_depend_on_whether_a_concept_or_its_superclass_is_longer(tokenizer):
    for rows, superclass in ((3, "cat"), (1, "big old teddy bear")):
        words = {"<cat>": Word(rows=rows, superclass=superclass)}
        parts = texts(tokenizer, "dog " * 72 + "<cat> " + "dog " * 80, words)
        for active in (True, False):
            read = {"<cat>": Word(rows=rows, superclass=superclass, active=active)}
            assert all(len(ids(tokenizer, part, read)) <= 75 for part in parts)


def test_an_inactive_concept_is_its_superclass_before_the_prompt_is_cut(tokenizer):
    words = {"<cat>": Word(rows=1, superclass="teddy bear", active=False)}
    prompt = "dog " * 74 + "<cat> on a beach"
    assert texts(tokenizer, prompt, words) == texts(tokenizer, prompt.replace("<cat>", "teddy bear"), {})


def test_a_prompt_without_end_and_a_concept_without_end_are_refused(tokenizer):
    assert len(texts(tokenizer, "cat " * 75 * MOST_CHUNKS, {})) == MOST_CHUNKS
    with pytest.raises(RequestError, match=f"expected at most {75 * MOST_CHUNKS}"):
        texts(tokenizer, "cat " * (75 * MOST_CHUNKS + 1), {})
    with pytest.raises(RequestError, match=f"expected at most {75 * MOST_CHUNKS}"):
        texts(tokenizer, "日" * 10_000, {})
    rows = {"<cat>": Word(rows=76, superclass="cat")}
    with pytest.raises(RequestError, match=r"<cat> takes 76 tokens, and the model reads 75"):
        texts(tokenizer, "a <cat>", rows)
    with pytest.raises(RequestError, match="expected a text"):
        texts(tokenizer, 3, {})


CHINESE = "一只可爱的猫坐在海滩上看日落，阳光洒在海面上，远处有一艘帆船，天空是橙色和紫色的"
THAI = "แมวน่ารักนั่งอยู่บนชายหาดดูพระอาทิตย์ตกดินแสงแดดส่องลงบนผิวน้ำทะเลมีเรือใบอยู่ไกลๆ"
JAPANESE = "かわいい猫が砂浜に座って夕日を見ている、海は輝き、遠くに帆船が見える、空は橙色と紫色"
FAMILY, FLAG, WAVE = "👨\u200d👩\u200d👧", "🇩🇪", "👋🏽"


@pytest.mark.parametrize(
    "prompt", [CHINESE, THAI, JAPANESE, FAMILY * 12, FLAG * 40, WAVE * 30, "xqz" * 80, "e\u0301" * 60]
)
def test_a_sentence_without_blanks_is_cut_and_nothing_of_it_is_lost(tokenizer, prompt):
    parts = texts(tokenizer, prompt, {})
    assert len(parts) > 1 and "".join(parts) == prompt
    assert all(len(ids(tokenizer, part)) <= 75 for part in parts)


def test_it_is_cut_behind_punctuation_where_there_is_some_and_is_then_read_as_a_whole(tokenizer):
    parts = texts(tokenizer, CHINESE, {})
    assert [part[-1] for part in parts[:-1]] == ["，"] * (len(parts) - 1)
    _, offsets = tokenizer._encode(CHINESE)
    assert sum(len(ids(tokenizer, part)) for part in parts) == len(offsets)


@pytest.mark.parametrize("letter", [FAMILY, FLAG, WAVE, "e\u0301", "น่"])
def test_no_cut_goes_through_what_people_see_as_one_letter(tokenizer, letter):
    assert all(not part.replace(letter, "") for part in texts(tokenizer, letter * 60, {}))


def test_a_letter_longer_than_a_part_is_cut_all_the_same(tokenizer):
    prompt = "e" + "\u0301" * 100
    assert "".join(texts(tokenizer, prompt, {})) == prompt


def test_a_concept_between_letters_stays_whole(tokenizer):
    words = {"<猫>": Word(rows=2, superclass="cat")}
    parts = texts(tokenizer, "日" * 24 + "<猫>" + "日" * 60, words)
    assert sum(part.count("<猫>") for part in parts) == 1
    assert "".join(parts) == "日" * 24 + "<猫>" + "日" * 60


def test_a_prompt_without_blanks_is_drawn(runtime):
    assert runtime.generate(CHINESE * 2, num_inference_steps=1).size


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_concept_may_lie_in_any_part(runtime, make_concept, lock, strength):
    """In the second part its gates open there and, of the first part, what is read is the base model's."""
    runtime.load_concept(make_concept(superclass="teddy bear"), strength=strength)
    first = "dog " * 75
    explained = runtime.explain(first + "a <cat>", lock=lock)
    assert explained.tokens[78:] == ("a", "<cat>", "<|endoftext|>")
    alone = runtime.explain("a <cat>", lock=lock)
    np.testing.assert_allclose(explained.similarity[77:], alone.similarity, atol=1e-6)
    np.testing.assert_allclose(explained.gate[77:], alone.gate, atol=1e-6)
    base = runtime.generate(first + "a teddy bear")
    assert not np.array_equal(np.asarray(runtime.generate(first + "a <cat>", lock=lock)), np.asarray(base))
    runtime.set_concept("<cat>", strength=0)
    np.testing.assert_array_equal(
        np.asarray(runtime.generate(first + "a <cat>", lock=lock)), np.asarray(base)
    )


def test_a_short_prompt_beside_a_long_one_is_drawn_as_alone(toy_bundle, provider):
    from perfusion.runtime import Runtime

    with Runtime(toy_bundle, provider=provider, threads=1, batch_size=4) as runtime:
        *_, together = runtime.denoise(["a cat", LONG, "a dog", "a hat"], negative_prompt="night")
        for index, prompt in enumerate(["a cat", LONG, "a dog", "a hat"]):
            *_, alone = runtime.denoise(prompt, negative_prompt="night")
            np.testing.assert_allclose(together.latents[index], alone.latents[0], atol=1e-5)


class Offsets(list):
    """Where tokens begin; counts how often they are gone through."""

    passes = 0

    def __iter__(self):
        Offsets.passes += 1
        return super().__iter__()


def test_a_very_long_prompt_is_refused_after_going_through_its_tokens_a_few_times():
    """Once a word would be minutes for what a web form takes."""
    words = 5000

    def encode(text):
        return [1] * words, Offsets(range(0, 2 * words, 2))

    with pytest.raises(RequestError, match="has 5000 tokens, expected at most 1200"):
        split_prompt("a " * words, {}, encode, 75)
    assert Offsets.passes < 10
