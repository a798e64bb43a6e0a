"""A drawing can be watched, stopped, left and shared between threads."""

import threading
from typing import Any

import numpy as np
import pytest

from perfusion.errors import CancelledError, RequestError
from perfusion.runtime import Runtime, Step


def same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture
def cancelling(mocked):
    """Opens a runtime that is cancelled in the middle of a graph's call, from its `number`-th on; and its calls."""

    def open_runtime(graph: str, number: int = 1) -> tuple[Runtime, list[str]]:
        calls: list[str] = []

        def answer(call):
            calls.append(call.graph)
            if call.graph == graph and calls.count(graph) >= number:
                runtime.cancel()
            return call.compute()

        runtime = mocked(answer)
        return runtime, calls

    return open_runtime


def test_a_callback_sees_every_step(runtime):
    seen: list[Step] = []
    picture = runtime.generate("a cat", callback=seen.append, scheduler="euler")
    assert [step.index for step in seen] == [0, 1, 2, 3]
    assert same(seen[-1].preview()[0], picture)
    assert same(runtime.generate("a cat", scheduler="euler"), picture)


def test_a_callback_that_returns_false_stops_the_drawing_at_once(runtime):
    seen = []

    def stop_at_2(step: Step) -> bool:
        seen.append(step.index)
        return step.index < 2

    with pytest.raises(CancelledError, match="was cancelled"):
        runtime.generate("a cat", num_inference_steps=100, callback=stop_at_2)
    assert seen == [0, 1, 2]
    with pytest.raises(CancelledError):  # even at the last step, whose picture was not asked for any more
        runtime.generate("a cat", num_inference_steps=3, callback=stop_at_2)
    runtime.generate("a cat")


def test_another_thread_stops_a_drawing_within_one_step_and_not_the_next(runtime):
    first_step, told = threading.Event(), threading.Event()
    indices: list[int] = []

    def watch(step: Step) -> None:
        indices.append(step.index)
        first_step.set()
        if len(indices) == 2:
            told.wait(30)

    def cancel() -> None:
        first_step.wait(30)
        runtime.cancel()
        told.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    with pytest.raises(CancelledError):
        runtime.generate("a cat", num_inference_steps=500, callback=watch)
    canceller.join()
    assert len(indices) <= 2
    runtime.cancel()  # nothing is being drawn: nothing happens
    runtime.generate("a cat")


def test_a_batch_is_stopped_between_its_pictures(cancelling):
    runtime, calls = cancelling("unet", number=3)
    with pytest.raises(CancelledError):
        runtime.generate("a cat", count=8)
    assert calls.count("unet") == 3


def test_a_batch_is_stopped_between_the_decoding_of_its_pictures(cancelling):
    runtime, calls = cancelling("vae_decoder")
    with pytest.raises(CancelledError):
        runtime.generate("a cat", count=8, num_inference_steps=1)
    assert calls.count("vae_decoder") == 1


def test_cancel_stops_the_decoding_of_a_step_that_is_under_way(cancelling):
    runtime, calls = cancelling("vae_decoder")
    *_, step = runtime.denoise("a cat", count=3, num_inference_steps=1)
    for decode in (step.preview, step.pictures):
        calls.clear()
        with pytest.raises(CancelledError):
            decode()
        assert calls == ["vae_decoder"]


def test_what_was_reached_can_be_looked_at_after_a_cancel(runtime):
    steps = runtime.denoise("a cat")
    step = next(steps)
    runtime.cancel()
    assert step.preview() and step.pictures()


def test_cancel_ends_a_generator_that_is_under_way(runtime):
    steps = runtime.denoise("a cat")
    next(steps)
    runtime.cancel()
    with pytest.raises(CancelledError):
        next(steps)
    assert list(steps) == []


def test_cancel_stops_a_generator_before_its_first_step(runtime):
    steps = runtime.denoise("a cat")
    runtime.cancel()
    later = runtime.denoise("a cat", num_inference_steps=1)
    with pytest.raises(CancelledError):
        next(steps)
    assert len(list(later)) == 1  # what is asked for after the cancel is drawn


def test_cancel_after_the_last_step_is_not_taken_for_a_finished_drawing(runtime):
    steps = runtime.denoise("a cat", num_inference_steps=1)
    next(steps)
    runtime.cancel()
    with pytest.raises(CancelledError):
        next(steps)


def test_cancel_reaches_what_is_still_reading_its_prompts(cancelling):
    """`denoise` has given no generator yet; it ends itself."""
    runtime, calls = cancelling("text_encoder")
    with pytest.raises(CancelledError):
        runtime.denoise(["a cat", "a dog", "a house"], guidance_scale=1)
    assert calls == ["text_encoder"]


def test_cancel_reaches_what_is_still_reading_its_images(cancelling):
    runtime, calls = cancelling("vae_encoder")
    beach, house = runtime.generate("a cat", seed=[0, 1], num_inference_steps=1)
    calls.clear()
    with pytest.raises(CancelledError):
        runtime.generate(["a cat", "a cat"], image=[beach, house])
    assert calls.count("vae_encoder") == 1 and "unet" not in calls


@pytest.mark.parametrize("ask", ["generate", "denoise"])
def test_cancel_stops_what_waits_for_its_turn(runtime, ask):
    """Another thread draws; what came after it has not begun."""
    drawing, cancelled = threading.Event(), threading.Event()
    ended: list[object] = []

    def draw() -> None:
        def wait(_: Step) -> None:
            drawing.set()
            cancelled.wait(30)

        with pytest.raises(CancelledError):
            runtime.generate("a cat", callback=wait)

    def queue() -> None:
        try:
            getattr(runtime, ask)("a dog", num_inference_steps=1)
        except CancelledError as error:
            ended.append(error)

    first = threading.Thread(target=draw)
    first.start()
    drawing.wait(30)
    second = threading.Thread(target=queue)
    second.start()
    while len(runtime._stops) < 2:
        second.join(0.001)
        assert second.is_alive()
    runtime.cancel()
    cancelled.set()
    first.join()
    second.join()
    assert len(ended) == 1


def test_a_generator_that_never_began_is_not_under_way_once_it_is_dropped(runtime):
    steps = runtime.denoise("a cat")
    assert len(runtime._stops) == 1
    del steps
    assert not runtime._stops


def test_a_generator_that_was_left_is_not_under_way_any_more(runtime):
    steps = runtime.denoise("a cat")
    next(steps)
    assert len(runtime._stops) == 1
    steps.close()
    assert not runtime._stops
    list(runtime.denoise("a cat"))
    assert not runtime._stops


def test_generators_may_alternate_and_other_pictures_may_come_between(runtime, make_concept):
    runtime.load_concept(make_concept())
    expected = [runtime.generate(prompt, seed=seed) for prompt, seed in (("a <cat>", 1), ("a dog", 2))]
    one, other = runtime.denoise("a <cat>", seed=1), runtime.denoise("a dog", seed=2)
    runtime.unload_concept("<cat>")
    ends: list[Step] = []
    for pair in zip(one, other, strict=True):
        runtime.generate("something else", num_inference_steps=1)
        pair[0].preview()
        ends = list(pair)
    assert all(same(end.pictures()[0], picture) for end, picture in zip(ends, expected, strict=True))


def test_threads_that_draw_change_and_cancel_at_once_get_whole_pictures(toy_bundle, make_concept, provider):
    """Every picture is one that a runtime alone would draw with one of the settings that were in force."""
    biases = (0.0, 0.5, 1.0)
    with Runtime(toy_bundle, provider=provider, threads=1) as runtime:
        runtime.load_concept(make_concept())
        alone = []
        for bias in biases:
            runtime.set_concept("<cat>", bias=bias)
            alone.append(np.asarray(runtime.generate("a <cat>", num_inference_steps=2)))
        plain = np.asarray(runtime.generate("a dog", num_inference_steps=2))
        failed: list[object] = []

        def work(index: int) -> None:
            try:
                for turn in range(6):
                    runtime.set_concept("<cat>", bias=biases[(index + turn) % 3])
                    if index % 4 == 3 and turn == 3:
                        runtime.cancel()
                    try:
                        cat = runtime.generate("a <cat>", num_inference_steps=2)
                        dog = runtime.generate("a dog", num_inference_steps=2)
                    except CancelledError:
                        continue
                    if not any(same(cat, one) for one in alone) or not same(dog, plain):
                        failed.append("another picture")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert not runtime._stops


def test_closing_waits_for_the_picture_that_is_drawn(toy_bundle, provider):
    runtime = Runtime(toy_bundle, provider=provider, threads=1)
    begun = threading.Event()
    drawn: list[Any] = []

    def draw() -> None:
        drawn.append(runtime.generate("a cat", num_inference_steps=20, callback=lambda _: begun.set()))

    thread = threading.Thread(target=draw)
    thread.start()
    begun.wait(30)
    runtime.close()
    thread.join()
    assert len(drawn) == 1
    with pytest.raises(RequestError, match="closed"):
        runtime.generate("a cat")


def test_a_sketch_is_the_linear_map_of_what_the_model_believes(runtime):
    from dataclasses import replace

    from perfusion.bundle.description import LatentRGB

    *_, plain = runtime.denoise("a cat")
    if runtime.bundle.decoder.latent_rgb is None:
        with pytest.raises(RequestError, match=r"without colours for its latents\. Use preview"):
            plain.sketch()
    weight = np.zeros((4, 3), np.float32)
    weight[0, 0] = 0.5  # red is half the first channel
    mapped = LatentRGB(weight=weight, bias=np.array([0, -1, 1], np.float32))
    decoder = replace(runtime.bundle.decoder, latent_rgb=mapped)
    runtime._parts.bundle = replace(runtime.bundle, decoder=decoder)
    *_, last = runtime.denoise("a cat", seed=[0, 1], scheduler="euler")  # ends at the clean sample
    found = [np.asarray(one) for one in last.sketch()]
    assert [one.shape for one in found] == [(8, 8, 3)] * 2
    red = np.rint((last.latents[:, 0] * 0.25 + 0.5).clip(0, 1) * 255)
    np.testing.assert_array_equal(np.stack(found)[..., 0], red)
    assert (np.stack(found)[..., 1] == 0).all() and (np.stack(found)[..., 2] == 255).all()
