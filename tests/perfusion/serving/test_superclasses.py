"""What a word means to a model, asked before anything is learned."""

import httpx
import pytest

from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path
from perfusion.serving.superclass_routes import look_up

PATH = "/api/superclass"


@pytest.fixture(scope="module")
def pocket():
    return read_bundle(bundle_path())


@pytest.mark.parametrize("word, near", [
    ("kitten", ("cat",)), ("mug", ("teapot",)), ("teddy bears", ("teddy bear",)), ("cactuss", ("cactus",)),
    ("xylophone", ()),
])  # fmt: skip
def test_what_the_embedded_model_has_never_seen_is_said_with_what_may_be_meant(pocket, word, near):
    answer = look_up(pocket, word)
    assert not answer.known
    assert answer.near[:1] == near[:1]
    assert word in answer.sentence and answer.sentence.endswith(".")


def test_every_noun_of_the_embedded_model_is_known_in_any_case(pocket):
    from perfusion.pocket.vocabulary import NOUNS

    assert all(look_up(pocket, noun).known and look_up(pocket, noun.upper()).known for noun in NOUNS)


def test_a_training_of_the_embedded_model_refuses_exactly_what_is_said_to_be_unknown(pocket):
    templates = pytest.importorskip("perfusion.training.templates")
    from perfusion.base.base_model import load_base
    from perfusion.errors import TrainingError

    base = load_base(None)
    for word in ("cat", "Cake", "teddy bear", "kitten", "zebra", "teddy"):
        try:
            templates.check_superclass(base, word)
            is_taken = True
        except TrainingError:
            is_taken = False
        assert look_up(pocket, word).known == is_taken, word


def test_the_route_answers_of_the_server_s_own_model_and_refuses_no_word(server):
    with httpx.Client(base_url=server.address, timeout=30) as http:
        assert http.get(PATH, params={"word": " cat "}).json()["word"] == "cat"
        for word in ("", " ", "x" * 61):
            answer = http.get(PATH, params={"word": word})
            assert answer.status_code == 400
            assert answer.json()["error"]["field"] == "word"
