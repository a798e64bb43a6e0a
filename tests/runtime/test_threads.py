"""Several threads and one runtime, or a runtime each: the pictures are those of one thread."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from perfusion.concept.settings import ConceptSettings
from perfusion.errors import RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.compute.graphs import Graphs

THREADS = 8
PROMPTS = ("a cat", "a photo of <cat>", "a dog on a beach", "<cat> in the snow")


def draw(runtime, number):
    side = 32 if number % 3 else 24
    return runtime.generate(
        PROMPTS[number % len(PROMPTS)], seed=number % 5, num_inference_steps=1 + number % 2,
        guidance_scale=1.0 if number % 2 else 3.0, width=side, height=32,
    ).tobytes()  # fmt: skip


@pytest.fixture
def opened(toy_bundle, make_concept, provider):
    def opened(memory="auto"):
        runtime = Runtime(toy_bundle, provider=provider, threads=1, memory=memory)
        runtime.load_concept(make_concept())
        return runtime

    return opened


@pytest.mark.parametrize("memory, count", [("auto", 48), ("low", 12)])
def test_eight_threads_on_one_runtime_draw_what_one_draws(opened, memory, count):
    """With "low" each stage closes the graphs of the others, which would be fatal to another thread's picture."""
    with opened(memory) as runtime:
        expected = [draw(runtime, number) for number in range(count)]
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda number: draw(runtime, number), range(count)))
    assert found == expected


def test_graphs_are_never_run_by_two_threads_at_once(opened, monkeypatch):
    inside, overlaps, run = [], [], Graphs.run

    def watched(graphs, name, **feeds):
        inside.append(name)
        overlaps.extend(inside[1:])
        time.sleep(0.001)  # whoever may come in does
        try:
            return run(graphs, name, **feeds)
        finally:
            inside.pop()

    monkeypatch.setattr(Graphs, "run", watched)
    with opened() as runtime, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda number: draw(runtime, number), range(24)))
    assert not overlaps


def test_a_runtime_in_each_of_eight_threads_draws_what_one_draws(opened):
    with opened() as runtime:
        expected = [draw(runtime, number) for number in range(6)]

    def alone(_):
        with opened() as runtime:
            return [draw(runtime, number) for number in range(6)]

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(alone, range(THREADS))) == [expected] * THREADS


def test_settings_changed_in_another_thread_never_make_a_third_picture(opened):
    """Each picture is drawn with the settings of before or of after, never with a mixture."""
    with opened() as runtime:
        known = set()
        for strength in (0.0, 1.0):
            runtime.set_concept("<cat>", strength=strength)
            known.add(draw(runtime, 1))

        def change(number):
            runtime.set_concept("<cat>", strength=float(number % 2))

        with ThreadPoolExecutor(THREADS) as pool:
            changes = [pool.submit(change, number) for number in range(200)]
            found = set(pool.map(lambda _: draw(runtime, 1), range(24)))
            for one in changes:
                one.result()
    assert found <= known
    assert len(known) == 2


def test_a_closed_runtime_is_a_sentence_in_every_thread(opened):
    runtime = opened()
    runtime.close()

    def refused(number):
        with pytest.raises(RequestError, match="closed"):
            draw(runtime, number)
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        assert all(pool.map(refused, range(16)))


@pytest.fixture
def slow_changes(monkeypatch):
    """Between reading a concept's settings and writing them there is time for another thread."""
    merged = ConceptSettings.merged

    def slowly(settings, changes):
        time.sleep(0.0005)
        return merged(settings, changes)

    monkeypatch.setattr(ConceptSettings, "merged", slowly)


def test_changes_of_several_threads_to_one_concept_are_all_made(opened, slow_changes):
    with opened() as runtime:

        def change(name):
            for turn in range(20):
                value = (1 + turn % 7) / 10
                runtime.set_concept("<cat>", **{name: value})
                if getattr(runtime.set_concept("<cat>"), name) != value:
                    return f"a change of {name} was undone"
            return None

        with ThreadPoolExecutor(3) as pool:
            assert not any(list(pool.map(change, ("bias", "temperature", "strength"))))


def test_a_concept_that_was_unloaded_meanwhile_does_not_come_back(opened, make_concept, slow_changes):
    with opened() as runtime, ThreadPoolExecutor(3) as pool:

        def change(number):
            try:
                runtime.set_concept("<dog>", bias=number / 100)
            except RequestError:
                assert "<dog>" not in list(runtime.concepts)

        for turn in range(10):
            runtime.load_concept(make_concept(turn, token="<dog>"))
            changes = [pool.submit(change, number) for number in range(1, 6)]
            runtime.unload_concept("<dog>")
            for one in changes:
                one.result()
            assert list(runtime.concepts) == ["<cat>"]
