"""What a change of settings takes in memory: no more for a large model than for a small one."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from benchmarks.swap import Encoded, describe, make_concept
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.concepts import Bank
from perfusion.runtime.request import make_request
from perfusion.runtime.text.feeds import Feeds
from perfusion.runtime.text.prompt_encoder import PromptEncoder

MOST = 16 << 10  # bytes; measured: 6.3 KiB, and 8 at the first change
SHARED = ("encoder_hidden_states", "key_hidden_states", "concept_keys", "concept_values")


@pytest.fixture
def fed(tmp_path) -> Callable[..., dict[str, Any]]:
    """The UNet's inputs for a picture at SD 1.5's widths, from the settings of its concept and its word."""
    bundle = describe("sd15", tmp_path)
    bank, feeds = Bank(bundle), Feeds(bundle)
    prompts = PromptEncoder(bundle, bank, cast(Graphs, Encoded(bundle.text_dim)))
    for index, token in enumerate(("<cat>", "<dog>")):
        bank.load(replace(make_concept("sd15", index, with_keys=True), token=token))
    requests = {
        token: make_request(bundle, f"a photo of {token} on a beach", 0) for token in ("<cat>", "<dog>")
    }

    def made(token: str = "<cat>", **settings: float) -> dict[str, Any]:
        bank.change(token, **settings)
        (rows,) = prompts.rows(requests[token])
        return feeds.of(rows, requests[token])

    return made


@pytest.mark.parametrize(
    "before, after",
    [
        ({"bias": 0.5}, {"bias": 0.6}),
        ({"strength": 0.5}, {"strength": 1.0}),
        ({"temperature": 0.1}, {"temperature": 0.2}),
        ({"token": "<cat>"}, {"token": "<dog>"}),
    ],
)
def test_a_change_of_settings_allocates_kilobytes_and_copies_none_of_the_large_arrays(fed, before, after):
    fed(**after)  # a strength or a word that was not used before is encoded once
    first = fed(**before)
    kept = {name: first[name].copy() for name in ("key_gate", "value_gate")}
    tracemalloc.start()
    try:
        second = fed(**after)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(second[name].nbytes for name in SHARED) > 1_000_000
    assert 0 < peak < MOST
    for name, gate in kept.items():  # the picture that is still drawn with the old settings has its own
        np.testing.assert_array_equal(first[name], gate)
        assert not np.shares_memory(first[name], second[name])


def test_the_large_arrays_are_the_same_objects_after_a_change(fed):
    """A backend may have them on its device already."""
    first, second = fed(bias=0.5), fed(bias=0.6)
    assert all(first[name] is second[name] for name in SHARED)
    assert not np.array_equal(first["value_gate"], second["value_gate"])
