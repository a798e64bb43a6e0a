"""What `explain` says is what the UNet is fed."""

import numpy as np
import pytest

from perfusion.concept.edit import coordinates, gate, similarity
from perfusion.errors import RequestError

PROMPT = "a <cat> on a <dog>"


@pytest.fixture
def loaded(runtime, make_concept):
    """Two concepts, the second of two rows."""
    concepts = make_concept(0), make_concept(1, token="<dog>", rows=2, bias=-0.2)
    for concept in concepts:
        runtime.load_concept(concept)
    return concepts


def encodings(runtime, concepts, text):
    """(77, 16) by the text encoder's graph, placeholders numbered from the vocabulary's end."""
    tokenizer = runtime._prompts._encoders.tokenizer
    found = tokenizer.tokenize(text, runtime._bank.words())
    table = np.concatenate([one.embeddings[0] for one in concepts])
    return runtime._graphs.run("text_encoder", input_ids=found.input_ids[None], concept_embeddings=table)[
        "last_hidden_state"
    ][0]


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
def test_similarity_and_gate_are_the_formulas_at_every_token(runtime, loaded, gates):
    found = runtime.explain(PROMPT, gates=gates)
    assert found.tokens == (
        "<|startoftext|>",
        "a",
        "<cat>",
        "on",
        "a",
        "<dog>[0]",
        "<dog>[1]",
        "<|endoftext|>",
    )
    assert found.concepts == ("<cat>", "<dog>[0]", "<dog>[1]")
    direction, dual, energy = (
        np.concatenate([getattr(one, name) for one in loaded]) for name in ("direction", "dual", "energy")
    )
    words = encodings(runtime, loaded, PROMPT)[:8]
    read = similarity(words, dual) if gates == "similarity" else coordinates(words, direction, dual, energy)
    np.testing.assert_allclose(found.similarity, read, atol=1e-6)
    np.testing.assert_allclose(found.gate, gate(read, [0.1, -0.2, -0.2], 0.3), atol=1e-6)


def test_a_prompt_of_three_things_is_explained_reading_by_reading(runtime, loaded):
    """Each reading holds one concept's word alone, and is what that sentence is when it is asked for."""
    found = runtime.explain("a <cat>, a <dog> and a {tree}")
    sentences = ["a <cat>, a <cat> and a <cat>", "a <dog>, a <dog> and a <dog>", "a tree, a tree and a tree"]
    assert [reading.prompt for reading in found.readings] == sentences
    assert [reading.concepts for reading in found.readings] == [("<cat>",), ("<dog>[0]", "<dog>[1]"), ()]
    for reading, sentence in zip(found.readings, sentences, strict=True):
        np.testing.assert_array_equal(reading.gate, runtime.explain(sentence, regions=None).gate)
    assert found.text().count("Region ") == 3 and all(sentence in found.text() for sentence in sentences)
    assert found.picture().height == sum(reading.picture().height for reading in found.readings)
    assert runtime.explain("a <cat>, a <dog> and a {tree}", regions=None).readings == ()


def test_settings_for_this_question_only(runtime, loaded):
    closed = runtime.explain(PROMPT, concept_settings={"<cat>": {"bias": 9.0}})
    assert closed.gate[:, 0].max() < 1e-6 < runtime.explain(PROMPT).gate[:, 0].max()
    np.testing.assert_array_equal(closed.similarity, runtime.explain(PROMPT).similarity)


def test_a_concept_of_strength_0_is_not_in_use(runtime, loaded):
    runtime.set_concept("<dog>", strength=0)
    found = runtime.explain(PROMPT)
    assert found.concepts == ("<cat>",)
    assert "cat" in found.tokens, "the second concept's superclass is read in its place"


def test_a_prompt_without_concepts_says_so(runtime, loaded):
    found = runtime.explain("a cat")
    assert found.tokens == ("<|startoftext|>", "a", "cat", "<|endoftext|>")
    assert found.similarity.shape == (4, 0)
    assert found.text() == "'a cat' names no concept that is in use."
    assert found.picture().size[1] == 5 * 22


def test_the_table_and_the_dictionary_hold_the_numbers(runtime, loaded):
    found = runtime.explain(PROMPT)
    lines = found.text().splitlines()
    assert len(lines) == 1 + len(found.tokens)
    assert f"{found.similarity[2, 0]:5.2f} {found.gate[2, 0]:5.2f}" in lines[3]
    assert lines[3].startswith("<cat>")
    assert found.as_dict()["gate"][2][0] == round(float(found.gate[2, 0]), 4)


def test_the_heat_map_is_darker_where_more_is_let_through(runtime, loaded):
    found = runtime.explain(PROMPT)
    sheet = np.asarray(found.picture(), np.float64)
    column = 150 + 110 * 1 + 100  # the gate of the first concept, right of its number
    shades = [sheet[22 * row + 4, column, 1] for row in range(1, 1 + len(found.tokens))]
    assert np.corrcoef(shades, found.gate[:, 0])[0, 1] < -0.99


@pytest.mark.parametrize(
    "call, message",
    [
        ({"prompt": 3}, "expected a text"),
        ({"prompt": "a", "lock": "both"}, "lock is 'both'"),
        ({"prompt": "a", "gates": "all"}, "gates are 'all'"),
        ({"prompt": "a", "concept_settings": {"<cow>": {}}}, "No concept named '<cow>'"),
    ],
)
def test_what_cannot_be_explained_is_refused(runtime, call, message):
    with pytest.raises(RequestError, match=message):
        runtime.explain(**call)
