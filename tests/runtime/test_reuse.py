"""Encodings are kept between pictures and are never out of date; settings may differ from picture to picture."""

import gc
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from perfusion.concept.edit import condition
from perfusion.concept.weighted_text import WeightedText
from perfusion.errors import RequestError
from perfusion.runtime import ConceptSettings, Runtime
from perfusion.runtime.cache import Cache
from perfusion.runtime.concepts import Bank
from perfusion.runtime.request import make_request
from perfusion.runtime.text.prompt_encoder import PromptEncoder

PROMPT = "a photo of <cat> on a beach"


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def calls() -> Counter[str]:
    """How often each graph of the runtime was run."""
    return Counter()


@pytest.fixture
def runtime(calls, mocked) -> Runtime:
    """A runtime that counts the calls of its graphs."""

    def counting(call):
        calls[call.graph] += 1
        return call.compute()

    return mocked(counting)


def test_a_prompt_and_the_negative_one_are_encoded_once(runtime, calls, make_concept):
    runtime.load_concept(make_concept())
    runtime.generate([PROMPT] * 3, seed=[0, 1, 2])
    assert calls["text_encoder"] == 2
    runtime.generate([PROMPT, "a dog"], lock="global")  # the superclass prompt and the dog are new
    assert calls["text_encoder"] == 4
    runtime.set_concept("<cat>", bias=0.3)
    runtime.generate(PROMPT)
    assert calls["text_encoder"] == 4


def fresh(runtime: Any, concept: Any, **options: Any) -> Any:
    """The picture of a runtime that never drew another."""
    settings = options.pop("settings", {})
    with Runtime(runtime.bundle.folder, provider="cpu", threads=1) as other:  # as behind the mocked one
        other.load_concept(concept, **settings)
        return other.generate(PROMPT, **options)


def test_nothing_kept_outlives_what_it_was_made_from(runtime, make_concept):
    cat = make_concept(superclass="teddy bear")
    other = make_concept(7, superclass="dog")
    runtime.load_concept(cat)
    for settings in ({"bias": 0.6}, {"strength": 0.5}, {"strength": 0}, {"strength": 1, "temperature": 0.05}):
        for lock in ("local", "global"):
            runtime.set_concept("<cat>", **settings)
            merged = {"bias": 0.6, **settings}
            assert same(runtime.generate(PROMPT, lock=lock), fresh(runtime, cat, settings=merged, lock=lock))
    runtime.unload_concept("<cat>")
    runtime.load_concept(other)
    assert same(runtime.generate(PROMPT), fresh(runtime, other))
    runtime.unload_concept("<cat>")
    runtime.load_concept(replace(other, target_values=other.target_values * 2))
    assert not same(runtime.generate(PROMPT), fresh(runtime, other))
    runtime.unload_concept("<cat>")
    runtime.load_concept(cat, bias=0.6)
    assert same(runtime.generate(PROMPT), fresh(runtime, cat, settings={"bias": 0.6}))


def test_each_picture_of_a_batch_may_have_settings_of_its_own(toy_bundle, make_concept, provider):
    """And other concepts, also where one call of the UNet draws them all."""
    cat, dog = make_concept(0), make_concept(1, token="<dog>")
    prompts = ["a <cat>", "a <cat>", "a <dog>", "a <cat> and a <dog>", "a cat"]
    settings = [
        None,
        {"<cat>": {"bias": 0.5, "strength": 0.6}},
        {"<dog>": ConceptSettings(bias=-0.3, temperature=0.2)},
        {"<cat>": {"strength": 0}, "<dog>": {"temperature": 0.1}},
        {},
    ]
    for batch_size in (1, 5):
        with Runtime(toy_bundle, provider=provider, threads=1, batch_size=batch_size) as runtime:
            runtime.load_concept(cat)
            runtime.load_concept(dog)
            *_, together = runtime.denoise(prompts, concept_settings=settings)
            assert runtime.set_concept("<cat>") == ConceptSettings(bias=cat.bias, temperature=cat.temperature)
            for index, (prompt, changes) in enumerate(zip(prompts, settings, strict=True)):
                for token, change in (changes or {}).items():
                    given = vars(change) if isinstance(change, ConceptSettings) else change
                    runtime.set_concept(token, **given)
                *_, alone = runtime.denoise(prompt)
                np.testing.assert_allclose(together.latents[index], alone.latents[0], atol=1e-5)
                for one in (cat, dog):
                    runtime.set_concept(one.token, bias=one.bias, temperature=one.temperature, strength=1)


def test_one_mapping_of_settings_serves_all_pictures(runtime, make_concept):
    runtime.load_concept(make_concept())
    found = runtime.generate([PROMPT] * 2, concept_settings={"<cat>": {"bias": 0.5}})
    runtime.set_concept("<cat>", bias=0.5)
    assert same(found[0], runtime.generate(PROMPT)) and same(*found)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"<dog>": {"bias": 1}}, "No concept named '<dog>' is loaded"),
        (
            {"<cat>": {"hue": 1}},
            r"settings of <cat> are .'hue': 1., expected some of bias, temperature, strength",
        ),
        ({"<cat>": 0.5}, "settings of <cat> are 0.5"),
        ({"<cat>": {"strength": 2}}, "strength is 2"),
        ([{}, {}], "2 concept settings for 1 prompts"),
        ("<cat>", "concept settings are '<cat>', expected settings by token"),
    ],
)
def test_settings_that_make_no_sense_are_refused(runtime, make_concept, settings, message):
    runtime.load_concept(make_concept())
    with pytest.raises(RequestError, match=message):
        runtime.denoise(PROMPT, concept_settings=settings)


def arrays(conditioning):
    """All that it holds, by name; a prompt without weights has no array of them."""
    return [(name, array) for name, array in vars(conditioning).items() if array is not None]


@pytest.mark.parametrize("gates", ["similarity", "coordinates"])
@pytest.mark.parametrize("lock", ["local", "global"])
def test_gates_of_a_kept_prompt_are_the_formulas(runtime, bundle, make_concept, lock, gates):
    """A bias that changes takes a shorter way than `condition`; both end at the same numbers."""
    bank = Bank(bundle)
    bank.load(make_concept(rows=2))
    bank.load(make_concept(1, token="<dog>"))
    encoder = PromptEncoder(bundle, bank, runtime._graphs)
    request = make_request(bundle, "a <cat> and a <dog>", 0, lock=lock, gates=gates, regions=None)
    encoder.rows(request)
    bank.change("<cat>", bias=0.7, temperature=0.05)
    ((_, row),) = encoder.rows(request)
    rows = bank.rows(("<cat>", "<dog>"))
    states = row.state.conditioning
    ((_, again),) = PromptEncoder(bundle, bank, runtime._graphs).rows(request)
    for name, array in arrays(again.state.conditioning):
        np.testing.assert_array_equal(getattr(states, name), array)
    encoded = encoder.encode_prompt(WeightedText("a <cat> and a <dog>"), bank, lock, gates)
    assert encoded is not None
    columns = {
        name: getattr(rows, name)
        for name in ("direction", "dual", "energy", "bias", "temperature", "strength")
    }
    text = encoder._encoders.encode(encoded.texts[0], bank).hidden
    expected = condition(text, **columns, lock=lock, superclass_encodings=states.key_states, gates=gates)
    for name, array in arrays(expected):
        np.testing.assert_allclose(getattr(states, name), array, rtol=1e-6, atol=1e-7)


def test_changing_a_bias_makes_no_large_array_anew(mocked, make_concept):
    """The UNet is fed the very same arrays but for the gates, so a backend may leave them where they are."""
    fed: list[Mapping[str, Any]] = []

    def keeping(call):
        if call.graph == "unet":
            fed.append(call.feeds)
        return call.compute()

    runtime = mocked(keeping)
    runtime.load_concept(make_concept())
    runtime.load_concept(make_concept(1, token="<dog>"))
    for token in ("<cat>", "<dog>", "<cat>", "<dog>"):
        runtime.set_concept(token, bias=0.1 * len(fed))
        runtime.generate(f"a {token}", num_inference_steps=1)
    for first, later in ((fed[0], fed[2]), (fed[1], fed[3])):
        for name, array in first.items():
            kept = name not in ("sample", "timestep", "key_gate", "value_gate")
            assert (later[name] is array) == kept, name
        assert not np.array_equal(first["value_gate"], later["value_gate"])


def test_a_cache_keeps_what_fits_and_lets_go_of_what_was_not_asked_for_longest():
    made: list[str] = []

    def make(key: str) -> Any:
        made.append(key)
        return lambda: key * 4

    cache: Cache[str] = Cache(10, len)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, make(key)) == key * 4
        assert cache.size == 4 * len(cache) <= 10
    assert cache.get("large", lambda: "x" * 11) == "x" * 11
    assert len(cache) == 2, "what does not fit drives nothing else out"
    cache.clear()
    assert len(cache) == cache.size == 0
    counted: Counter[str] = Counter()

    def counting(key: str) -> Any:
        def make_it() -> str:
            counted[key] += 1
            return "1234"

        return make_it

    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, counting(key))
    assert counted == {"a": 1, "b": 2, "c": 1}


def test_nothing_is_kept_of_a_concept_that_was_unloaded(runtime, make_concept):
    """An app that goes through many concepts holds those that are loaded."""
    for lock in ("local", "global"):
        concept = make_concept()
        runtime.load_concept(concept)
        gone = weakref.ref(concept)
        del concept
        for prompt in (PROMPT, "<cat> and <cat>"):
            runtime.generate(prompt, num_inference_steps=1, lock=lock)
        runtime.set_concept("<cat>", strength=0.5)
        runtime.generate(PROMPT, num_inference_steps=1, lock=lock)
        runtime.unload_concept("<cat>")
        gc.collect()
        assert gone() is None


def test_what_a_cache_drops_is_no_longer_counted():
    cache: Cache[str] = Cache(100, len)
    for key in ("a", "b", "ab"):
        cache.get(key, lambda: "x" * 10)
    cache.drop(lambda key: "a" in key)
    assert (len(cache), cache.size) == (1, 10)
