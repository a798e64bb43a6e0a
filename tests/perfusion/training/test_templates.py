"""Superclasses that a base cannot know, and what is asked in their place."""

import pytest

from perfusion.errors import TrainingError
from perfusion.pocket.vocabulary import KIN, NOUNS
from perfusion.training.templates import check_superclass


@pytest.mark.parametrize(
    ("word", "near"),
    [("kitten", "cat"), ("coffee mug", "teapot"), ("Tabby Kitten", "cat"), ("mushrom", "mushroom")],
)
def test_a_superclass_that_the_embedded_model_never_saw_is_answered_by_meaning(tiny_base, word, near) -> None:
    with pytest.raises(TrainingError, match=f"did you mean {near}"):
        check_superclass(tiny_base, word)


def test_every_kin_is_a_noun_and_no_noun_has_one() -> None:
    assert set(KIN.values()) <= set(NOUNS)
    assert not set(KIN) & set(NOUNS)
