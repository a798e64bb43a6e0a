"""The corpus that ships with us: large, varied, distinct, the same everywhere."""

import os
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

from perfusion.training import caption_words as words
from perfusion.training.captions import CAPTIONS, _plural, _with_article, generate_captions


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return generate_captions()


def test_captions_are_many_distinct_and_quickly_made(captions):
    assert len(captions) == len(set(captions)) == CAPTIONS == 10_000
    started = time.process_time()
    generate_captions()
    assert time.process_time() - started < 1.0


def test_the_same_seed_gives_the_same_captions_and_fewer_are_the_first_of_them(captions):
    assert generate_captions(500) == captions[:500]
    assert generate_captions(500, seed=1) != captions[:500]


def test_captions_do_not_hang_on_the_interpreters_hashing(captions):
    """Sets are ordered by chance from run to run; nothing of a caption may come out of one."""
    code = "from perfusion.training.captions import generate_captions as g; print(chr(10).join(g(2000)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == captions[:2000]


def test_captions_are_varied_in_words_length_and_form(captions):
    counted = Counter(word for caption in captions for word in re.findall(r"[a-z0-9'-]+", caption))
    lengths = [len(caption.split()) for caption in captions]
    assert len(counted) > 1500
    assert min(lengths) == 1
    assert max(lengths) > 30
    assert 7 < sum(lengths) / len(lengths) < 12
    content = [word for word, _ in counted.most_common(12)]
    assert counted[content[0]] < 0.2 * sum(counted.values()), "no word takes over"
    starts = Counter(" ".join(caption.split()[:3]) for caption in captions)
    assert starts.most_common(1)[0][1] < 0.05 * len(captions)


def test_every_noun_is_used(captions):
    text = "\n".join(captions)
    nouns = (*words.PEOPLE, *words.ANIMALS, *words.THINGS, *words.FOODS, *words.BUILDINGS, *words.NATURE)
    assert len(set(nouns)) > 600
    assert [noun for noun in set(nouns) if noun not in text] == []


def test_captions_are_clean_lower_case_lines_without_repeated_words(captions):
    for caption in captions:
        assert re.fullmatch(r"[a-z0-9][a-z0-9' ,-]*[a-z0-9]", caption), caption
        assert not re.search(r"\b(\w+) \1\b", caption), caption
        assert "  " not in caption


def test_articles_agree_with_what_follows(captions):
    for caption in captions:
        for article, word in re.findall(r"\b(an?) ([\w'-]+)", caption):
            assert f"{article} {word}" == _with_article(word), caption


@pytest.mark.parametrize(
    ("noun", "plural"),
    [
        ("cat", "cats"),
        ("glass", "glasses"),
        ("box", "boxes"),
        ("cherry", "cherries"),
        ("toy car", "toy cars"),
        ("donkey", "donkeys"),
        ("bowl of soup", "bowls of soup"),
        ("old woman", "old women"),
        ("small loaf of bread", "small loaves of bread"),
        ("polar bear", "polar bears"),
        ("police officer", "police officers"),
        ("witch", "witches"),
    ],
)
def test_plurals_are_those_of_english(noun, plural):
    assert _plural(noun) == plural


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("8k photo", "an 8k photo"),
    ],
)
def test_articles_are_those_of_english(phrase, expected):
    assert _with_article(phrase) == expected


def test_more_captions_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="count is 1000001, expected 0 to 1000000"):
        generate_captions(1_000_001)
