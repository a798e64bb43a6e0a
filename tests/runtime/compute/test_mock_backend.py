"""The backend whose answers a test writes."""

from typing import Any

import numpy as np
import pytest

from perfusion.errors import RequestError
from perfusion.runtime import GraphCall, MockBackend, Runtime


def pixels(picture: Any) -> Any:
    return np.asarray(picture, np.int16)


def test_what_it_hands_on_draws_the_same_bits(mocked, runtime):
    graphs = set()

    def hand_on(call):
        graphs.add(call.graph)
        return call.compute()

    watched = mocked(hand_on)
    assert np.array_equal(pixels(watched.generate("a cat")), pixels(runtime.generate("a cat")))
    assert graphs == {"text_encoder", "unet", "vae_decoder"}
    assert (watched.provider, watched.provider_reason) == ("mock", "it was handed over")


def test_an_application_is_tested_without_a_model(toy_bundle):
    """No graph of the bundle is opened: each answer is made up, and the picture is the decoder's."""
    answers = {
        "text_encoder": lambda feeds: {
            "last_hidden_state": np.zeros((*feeds["input_ids"].shape, 16), np.float32)
        },
        "unet": lambda feeds: {"out_sample": np.zeros_like(feeds["sample"])},
        "vae_decoder": lambda feeds: {"sample": np.full((1, 3, 32, 32), 1.0, np.float32)},
    }
    backend = MockBackend(lambda call: answers[call.graph](call.feeds))
    with Runtime(toy_bundle, provider=backend) as runtime:
        assert (pixels(runtime.generate("a cat", num_inference_steps=2)) == 255).all()


def test_a_call_with_nothing_behind_it_says_what_to_give():
    with pytest.raises(ValueError, match="give MockBackend one as `behind`"):
        GraphCall("unet", {}).compute()


def test_it_is_closed_with_its_runtime(mocked):
    runtime = mocked(lambda call: call.compute())
    runtime.close()
    with pytest.raises(RequestError, match="closed"):
        runtime.generate("a cat")
