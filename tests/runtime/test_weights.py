"""Weights in prompts: what the UNet is fed is the encodings times the weights, their means restored.

The oracle is written from the public description of A1111's emphasis and shares nothing with the code: the pieces of a
prompt and their weights are given by hand, each piece is tokenized by itself, and the text encoder's own output is
multiplied and rescaled in float64.
"""

import numpy as np
import pytest

from perfusion.concept.prompt_syntax import parse_prompt
from perfusion.concept.weighted_text import WeightedText
from perfusion.errors import RequestError
from perfusion.runtime import Region

PROMPTS = {
    "a photo of a (red:1.3) cat, [beach]": [[("a photo of a", 1), ("red", 1.3), ("cat,", 1), ("beach", 1 / 1.1)]],
    "((a cat)) and (a (dog:1.5):2), on grass": [[("a cat", 1.21), ("and", 1), ("a", 2), ("dog", 3), (", on grass", 1)]],
    "un(believ)able (:1.2)": [[("un", 1), ("believ", 1.1), ("able", 1)]],
    "(all of it, wide:1.4)": [[("all of it, wide", 1.4)]],
    r"a \(red\) (cat:0)": [[("a (red)", 1), ("cat", 0)]],
    "a cat BREAK a (dog BREAK here:1.2)": [[("a cat", 1)], [("a", 1), ("dog", 1.2)], [("here", 1.2)]],
    "BREAK (a:0.5) cat": [[("", 1)], [("a", 0.5), ("cat", 1)]],
    "cat " * 74 + "(dog dog:1.5)": [[("cat " * 74, 1), ("dog", 1.5)], [("dog", 1.5)]],
}  # fmt: skip
"""By a prompt its parts, each as pieces with their weights."""


@pytest.fixture
def watched(mocked):
    """A runtime with what its UNet was fed, and what its text encoder said by the ids it read."""
    fed, said = [], {}

    def answer(call):
        outputs = call.compute()
        if call.graph == "unet":
            fed.append(call.feeds)
        elif call.graph == "text_encoder":
            # the toy's layer norm has no offset, so its encodings have no mean that could be restored
            outputs = {"last_hidden_state": outputs["last_hidden_state"] + np.float32(0.3)}
            said[tuple(call.feeds["input_ids"][0].tolist())] = outputs["last_hidden_state"][0]
        return outputs

    runtime = mocked(answer)
    return runtime, fed, said


def emphasised(hidden, weights):
    """A1111's emphasis of the encodings (77, width) of one part."""
    hidden = hidden.astype(np.float64)
    heavy = hidden * np.asarray(weights)[:, None]
    return heavy * (hidden.mean() / heavy.mean())


def expected_of(runtime, said, parts):
    """What the UNet is to read of a prompt, by the oracle."""
    from tokenizers import Tokenizer

    tokenizer, encoder = Tokenizer.from_file(str(runtime.bundle.tokenizer)), runtime.bundle.text_encoder
    rows = []
    for pieces in parts:
        ids, weights = [encoder.bos_token_id], [1.0]
        for text, weight in pieces:
            own = tokenizer.encode(text, add_special_tokens=False).ids
            ids, weights = ids + own, weights + [weight] * len(own)
        padding = 77 - len(ids) - 1
        ids += [encoder.eos_token_id] + [encoder.pad_token_id] * padding
        rows.append(emphasised(said[tuple(ids)], weights + [1.0] * (1 + padding)))
    return np.concatenate(rows)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_encodings_are_those_of_an_independent_computation(watched, prompt):
    runtime, fed, said = watched
    runtime.generate(prompt, negative_prompt="a ([blur]:2)", num_inference_steps=1, width=32, height=32)
    negative, conditional = fed[0]["encoder_hidden_states"]
    expected = expected_of(runtime, said, PROMPTS[prompt])
    np.testing.assert_allclose(conditional, expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(fed[0]["key_hidden_states"][1], conditional)
    blur = expected_of(runtime, said, [[("a", 1), ("blur", 2 / 1.1)]])
    np.testing.assert_allclose(negative[:77], blur, rtol=2e-5, atol=1e-6)
    assert not fed[0]["key_gate"].any()


def test_a_prompt_without_syntax_feeds_the_text_encoders_own_numbers(watched):
    runtime, fed, said = watched
    for prompt, syntax in (("a cat", "weights"), ("a (cat:1.5)", "plain"), ("a (cat:1)", "weights")):
        runtime.generate(prompt, prompt_syntax=syntax, num_inference_steps=1)
        conditional = fed[-1]["encoder_hidden_states"][1]
        assert any(np.array_equal(conditional, hidden) for hidden in said.values())


@pytest.mark.parametrize("lock", ["local", "global"])
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_a_weight_multiplies_a_tokens_keys_and_values_and_opens_no_gate(
    watched, make_concept, lock, strength
):
    """K and V are linear in states and gates, so both carry the weight, and neither is what the gate reads."""
    runtime, fed, _ = watched
    runtime.load_concept(make_concept(), strength=strength)
    options = {"num_inference_steps": 1, "lock": lock, "width": 32, "height": 32}
    runtime.generate("a photo of a <cat> on a beach", **options)
    runtime.generate("a photo of a (<cat>:1.5) on a (beach:0.5)", **options)
    plain, weighted = fed
    weights = np.ones(77)
    weights[[5, 8]] = 1.5, 0.5
    for states, gate in (("encoder_hidden_states", "value_gate"), ("key_hidden_states", "key_gate")):
        ratio = weighted[states][1] / plain[states][1]
        scale = ratio[0, 0]
        np.testing.assert_allclose(ratio, np.broadcast_to(scale * weights[:, None], ratio.shape), rtol=1e-3)
        np.testing.assert_allclose(
            weighted[gate][1, :, 0], plain[gate][1, :, 0] * scale * weights, rtol=1e-5, atol=1e-9
        )
    assert weighted["value_gate"][1].any()
    first, second = (
        runtime.explain(prompt, lock=lock)
        for prompt in ("a photo of a <cat> on a beach", "a photo of a (<cat>:1.5) on a (beach:0.5)")
    )
    np.testing.assert_array_equal(first.gate, second.gate)
    assert second.weights == (1, 1, 1, 1, 1, 1.5, 1, 1, 0.5, 1) and first.weights == ()
    assert "×1.5" in second.text() and "×" not in first.text()


@pytest.mark.parametrize("lock", ["local", "global"])
def test_a_strength_of_0_is_the_weighted_superclass_and_small_ones_lead_there(watched, make_concept, lock):
    runtime, fed, _ = watched
    concept = runtime.load_concept(make_concept(superclass="teddy bear", rows=1 if lock == "local" else 2))
    options = {"num_inference_steps": 1, "lock": lock, "width": 32, "height": 32}
    runtime.generate("a (teddy bear:1.3) on a beach", **options)
    for strength in (0.0, 1e-6):
        runtime.set_concept(concept.token, strength=strength)
        runtime.generate("a (<cat>:1.3) on a beach", **options)
    superclass, off, faint = fed
    for name in ("encoder_hidden_states", "key_hidden_states"):
        np.testing.assert_array_equal(off[name], superclass[name])
        order = np.lexsort(superclass[name][1].T), np.lexsort(faint[name][1].T)
        np.testing.assert_allclose(
            superclass[name][1][order[0]], faint[name][1][order[1]], rtol=1e-3, atol=1e-4
        )


def test_a_tag_sets_the_strength_of_its_picture_alone(runtime, make_concept):
    runtime.load_concept(make_concept())
    options = {"num_inference_steps": 2, "seed": 3}
    tagged, full = runtime.generate(["a <cat> <lora:cat:0.4>", "a <cat>"], **options)
    runtime.set_concept("<cat>", strength=0.4)
    np.testing.assert_array_equal(np.asarray(tagged), np.asarray(runtime.generate("a <cat> ", **options)))
    runtime.set_concept("<cat>", strength=1)
    np.testing.assert_array_equal(np.asarray(full), np.asarray(runtime.generate("a <cat>", **options)))
    with pytest.raises(RequestError, match="nowhere the word <cat>"):
        runtime.submit("a dog <lora:cat:0.4>")
    with pytest.raises(RequestError, match="expected 'weights' or 'plain'"):
        runtime.generate("a dog", prompt_syntax="a1111")


def test_readings_of_regions_keep_their_weights(watched, make_concept):
    runtime, fed, _ = watched
    runtime.load_concept(make_concept())
    runtime.generate("a (<cat>:1.5) and a ({dog}:0.5) on a [beach]", num_inference_steps=1)
    by_hand = ("a (<cat>:1.5) and a (<cat>:1.5) on a [beach]", "a (dog:0.5) and a (dog:0.5) on a [beach]")
    for prompt in by_hand:
        runtime.generate(prompt, num_inference_steps=1, regions=None)
    both, *alone = (feeds["encoder_hidden_states"][1] for feeds in fed)
    np.testing.assert_array_equal(both, np.concatenate(alone))
    gates, gate = fed[0]["value_gate"][1, :77], fed[1]["value_gate"][1]
    np.testing.assert_array_equal(gates, gate)
    right = [Region("dog", box=(0.5, 0, 1, 1))]
    runtime.generate("a (<cat>:1.5) and a (dog:0.5) on a [beach]", num_inference_steps=1, regions=right)


def test_a_batch_and_the_queue_draw_what_each_prompt_draws_alone(runtime):
    prompts = ["a (cat:1.5)", "a cat BREAK a (dog:0.5)", "a cat"]
    alone = [np.asarray(runtime.generate(prompt, num_inference_steps=2)) for prompt in prompts]
    for picture, expected in zip(runtime.generate(prompts, num_inference_steps=2), alone, strict=True):
        np.testing.assert_array_equal(np.asarray(picture), expected)
    jobs = [runtime.submit(prompt, num_inference_steps=2, exact=True) for prompt in prompts]
    for job, expected in zip(jobs, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(job.result(60)), expected)
    assert len({picture.tobytes() for picture in alone}) == 3


def test_weights_that_turn_the_mean_over_leave_it_and_say_so(caplog):
    from perfusion.concept.emphasis import factors

    hidden = np.float32([[1, 1], [-2, -2], [2, 2]])
    weights = np.float64([[1], [9], [1]])
    np.testing.assert_array_equal(factors(hidden, weights, [2]), weights)
    assert "so it is not restored" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(
        factors(np.float32([[1, -1], [2, -2 + 1e-7], [0, 0]]), weights, [2]), weights
    )
    assert not caplog.text


def test_parts_of_a_text_are_the_same_whether_its_weights_are_1_or_not_there():
    assert WeightedText("ab", (1.0, 1.0)) == WeightedText("ab")
    assert parse_prompt("(ab:1.0)", ()).text == WeightedText("ab")
