"""Several prompts in one call of the UNet: each row meets its own concepts and no others."""

import numpy as np
import pytest

from perfusion.concept.conditioning import PromptState, conditioned, unet_feeds
from perfusion.concept.edit import Conditioning, condition
from perfusion.errors import RequestError
from perfusion.runtime.concepts import Bank


@pytest.fixture
def bank(bundle, make_concept):
    filled = Bank(bundle)
    filled.load(make_concept(0))
    filled.load(make_concept(1, token="<dog>", rows=2))
    return filled


def state(bank, tokens, seed):
    """A prompt with random encodings and gates that names some concepts."""
    rng, rows = np.random.default_rng(seed), bank.rows(tokens)

    def normal(width):
        return rng.standard_normal((5, width)).astype(np.float32)

    gates = len(rows.slots)
    conditioning = Conditioning(
        key_states=normal(16),
        value_states=normal(16),
        key_gate=normal(gates),
        value_gate=normal(gates),
        response=normal(gates),
    )
    return PromptState(conditioning=conditioning, rows=rows)


def test_what_a_row_adds_is_its_own_gates_times_its_own_targets(bank):
    named = [(), ("<dog>",), ("<cat>",), ("<cat>", "<dog>"), ("<dog>", "<cat>")]
    states = [state(bank, tokens, seed) for seed, tokens in enumerate(named)]
    feeds = unet_feeds(states)
    assert feeds["concept_values"].shape == (3, 40)  # no concept takes a slot twice
    for row, one in enumerate(states):
        for kind, gate, targets in (
            ("key", one.conditioning.key_gate, one.rows.keys),
            ("value", one.conditioning.value_gate, one.rows.values),
        ):
            found = feeds[f"{kind}_gate"][row] @ feeds[f"concept_{kind}s"]
            np.testing.assert_allclose(found, gate @ targets, atol=1e-5)
        np.testing.assert_array_equal(feeds["encoder_hidden_states"][row], one.conditioning.value_states)
        np.testing.assert_array_equal(feeds["key_hidden_states"][row], one.conditioning.key_states)


def test_a_row_that_names_no_concept_has_closed_gates(bank):
    feeds = unet_feeds([state(bank, ("<cat>",), 0), state(bank, (), 1)])
    assert not feeds["key_gate"][1].any() and not feeds["value_gate"][1].any()
    assert feeds["value_gate"][0].any()


def test_prompts_without_concepts_are_fed_one_of_zeros(bank):
    """onnxruntime up to 1.19 leaves a product over nothing at what its memory held: noise, or another picture."""
    feeds = unet_feeds([state(bank, (), 0), state(bank, (), 1)])
    assert feeds["key_gate"].shape == feeds["value_gate"].shape == (2, 5, 1)
    assert feeds["concept_keys"].shape == (1, 40)
    assert not any(feeds[name].any() for name in ("key_gate", "value_gate", "concept_keys", "concept_values"))
    assert all(array.dtype == np.float32 for array in feeds.values())


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
@pytest.mark.parametrize("lock", ["local", "global"])
def test_a_prompt_is_conditioned_by_all_that_its_rows_say(bank, lock, gates):
    bank.change("<dog>", bias=0.4, temperature=0.2, strength=0.6)
    rows, rng = bank.rows(("<dog>", "<cat>")), np.random.default_rng(0)
    encodings, superclass = rng.standard_normal((2, 5, 16)).astype(np.float32)
    made = conditioned(encodings, rows, lock, superclass, gates)
    columns = {name: getattr(rows, name) for name in ("direction", "dual", "energy")}
    settings = {"bias": [0.4, 0.4, 0.1], "temperature": [0.2, 0.2, 0.3], "strength": [0.6, 0.6, 1.0]}
    expected = condition(
        encodings, **columns, **settings, lock=lock, superclass_encodings=superclass, gates=gates
    )
    assert made.rows is rows
    for name, array in vars(expected).items():
        np.testing.assert_array_equal(vars(made.conditioning)[name], array)


def test_no_rows_leave_a_prompt_as_it_is(bank):
    encodings = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    made = conditioned(encodings, bank.rows(("<cat>",)).none())
    np.testing.assert_array_equal(made.conditioning.value_states, encodings)
    assert made.rows.slots == () and made.rows.keys.shape == (0, 40)


def test_the_runtimes_gates_are_the_papers_unless_gram_is_asked_for(runtime, make_concept):
    runtime.load_concept(make_concept(rows=2))  # two directions that are not orthogonal
    runtime.load_concept(make_concept(1, token="<dog>"))

    def last(prompt, **options):
        *_, step = runtime.denoise(prompt, **options)
        return step.latents

    by_similarity, by_coordinates = (last("a <cat>", gates=gates) for gates in ("similarity", "coordinates"))
    np.testing.assert_array_equal(last("a <cat>"), by_similarity)
    assert np.abs(by_similarity - by_coordinates).max() > 1e-3
    np.testing.assert_array_equal(
        last("a <dog>", gates="coordinates"), last("a <dog>")
    )  # alone it is the same
    with pytest.raises(RequestError, match="gates are 'both', expected one of similarity, coordinates"):
        runtime.generate("a <dog>", gates="both")
