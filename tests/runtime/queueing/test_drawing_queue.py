"""The drawing queue: pictures of different requests share calls, and each is what it would be alone."""

import asyncio
import threading
import time
from collections import defaultdict

import numpy as np
import pytest

from perfusion.errors import BusyError, CancelledError, PerfusionError, RequestError
from perfusion.runtime import Runtime

WAIT = 300  # seconds; far more than any picture of the toy bundle takes, with graphs compiled for it on a busy machine


def pixels(picture):
    return np.asarray(picture, np.int16)


@pytest.fixture
def opened(toy_bundle, make_concept, provider):
    """Opens runtimes with four concepts."""
    runtimes = []

    def opened(batch_size=8, folder=toy_bundle, **options):
        runtime = Runtime(folder, provider=provider, threads=1, batch_size=batch_size, **options)
        for number, token in enumerate(("<a>", "<b>", "<c>", "<d>")):
            runtime.load_concept(make_concept(token=token, seed=number))
        runtimes.append(runtime)
        return runtime

    yield opened
    for runtime in runtimes:
        runtime.close()


ORDERS = [
    {"prompt": "a photo of <a>", "seed": 1, "num_inference_steps": 4},
    {"prompt": "<b> on a beach", "seed": 2, "num_inference_steps": 6, "scheduler": "euler_ancestral"},
    {"prompt": "a cat", "seed": 3, "num_inference_steps": 3, "guidance_scale": 3.0, "scheduler": "heun"},
    {"prompt": "<c>", "seed": 4, "num_inference_steps": 5, "guidance_rescale": 0.5, "negative_prompt": "a dog"},
    {"prompt": "<d>", "seed": 5, "num_inference_steps": 4, "concept_settings": {"<d>": {"strength": 0.5}}},
    {"prompt": "<a> and <b>", "seed": 6, "num_inference_steps": 4, "scheduler": "plms", "regions": None},
    {"prompt": "a dog", "seed": 7, "num_inference_steps": 3, "width": 24},
    {"prompt": "a dog", "seed": 8, "num_inference_steps": 3, "guidance_scale": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("version", ["toy_bundle", "toy_bundle_1"])
def test_pictures_that_share_calls_are_those_drawn_alone(opened, toy_bundle, version):
    runtime = opened(folder=toy_bundle.parent / version)
    pictures = [job.result(WAIT) for job in [runtime.submit(**order) for order in ORDERS]]
    for order, picture in zip(ORDERS, pictures, strict=True):
        difference = np.abs(pixels(picture) - pixels(opened(1).generate(**order)))
        assert difference.max() <= 1, order


def test_a_call_holds_different_concepts_at_different_steps(opened):
    runtime = opened()
    joined = threading.Event()
    late = []

    def join(step):
        if step.index == 1 and not joined.is_set():
            joined.set()
            late.append(runtime.submit("<b>", num_inference_steps=6))

    runtime.submit("<a>", num_inference_steps=6, callback=join).result(WAIT)
    late[0].result(WAIT)
    assert runtime.queue.calls[next(call for call in runtime.queue.calls if call.pictures == 2)] >= 3
    assert {(call.pictures, call.concepts, call.steps) for call in runtime.queue.calls} >= {
        (1, 1, 1),
        (2, 2, 2),
    }


def test_in_format_1_a_late_picture_catches_up_and_then_shares_calls(opened, toy_bundle):
    runtime = opened(folder=toy_bundle.parent / "toy_bundle_1")
    late = []

    def join(step):
        if step.index == 1:
            late.append(runtime.submit("<b>", num_inference_steps=6))

    runtime.submit("<a>", num_inference_steps=6, callback=join).result(WAIT)
    late[0].result(WAIT)
    calls = {(call.pictures, call.steps): number for call, number in runtime.queue.calls.items()}
    assert calls == {(1, 1): 4, (2, 1): 4}


def test_an_exact_picture_has_the_bits_of_one_drawn_alone(opened):
    runtime = opened()
    jobs = [runtime.submit(**order, exact=True) for order in ORDERS]
    others = [runtime.submit("a cat", seed=seed, num_inference_steps=4) for seed in range(4)]
    alone = opened(1)
    for order, job in zip(ORDERS, jobs, strict=True):
        assert job.result(WAIT).tobytes() == alone.generate(**order).tobytes()
    for job in others:
        job.result(WAIT)


def test_two_concepts_under_one_token_never_share_a_call(opened, make_concept):
    """A token is loaded anew while a picture of the old concept is on its way."""
    runtime, alone = opened(), opened(1)
    first = runtime.submit("<a>", num_inference_steps=5)
    runtime.unload_concept("<a>")
    runtime.load_concept(make_concept(token="<a>", seed=77))
    second = runtime.submit("<a>", num_inference_steps=5)
    assert (
        np.abs(pixels(first.result(WAIT)) - pixels(alone.generate("<a>", num_inference_steps=5))).max() <= 1
    )
    expected = pixels(runtime.generate("<a>", num_inference_steps=5))
    assert np.abs(pixels(second.result(WAIT)) - expected).max() <= 1


def test_a_picture_that_fails_takes_no_other_with_it(mocked, make_concept):
    """The UNet fails wherever a picture with a concept is among its rows."""
    sizes = []

    def answer(call):
        if call.graph == "unet":
            sizes.append(len(call.feeds["sample"]))
            if call.feeds["key_gate"].any():
                raise PerfusionError("The UNet is out of memory.")
        return call.compute()

    runtime = mocked(answer, batch_size=4)
    runtime.load_concept(make_concept())
    first, go = blocked(runtime)
    jobs = [runtime.submit("a cat", seed=seed, num_inference_steps=4) for seed in range(3)]
    bad = runtime.submit("<cat>", num_inference_steps=4)
    go.set()
    with pytest.raises(PerfusionError, match="out of memory"):
        bad.result(WAIT)
    for job in (first, *jobs):
        assert job.result(WAIT).size == (32, 32)
    assert 8 in sizes  # four pictures with guidance: the failing call held the others too


def test_a_callback_that_raises_fails_its_own_job_alone(opened):
    runtime = opened()

    def explode(step):
        raise ValueError("no")

    bad = runtime.submit("a cat", callback=explode, num_inference_steps=3)
    good = runtime.submit("a dog", num_inference_steps=3)
    assert isinstance(bad._future.exception(WAIT), ValueError)
    assert bad.state == "failed"
    good.result(WAIT)
    assert good.state == "done" and good.progress == 1


def blocked(runtime):
    """A job that holds the queue until its event is set."""
    go = threading.Event()
    job = runtime.submit("a cat", num_inference_steps=1, callback=lambda step: go.wait(WAIT) and None)
    while job.state == "waiting":
        time.sleep(0.001)
    return job, go


def test_the_queue_is_bounded(opened):
    runtime = opened(batch_size=1, queue_size=2)
    first, go = blocked(runtime)
    waiting = [runtime.submit("a cat", num_inference_steps=1) for _ in range(2)]
    with pytest.raises(BusyError, match="2 pictures wait"):
        runtime.submit("a cat")
    assert [job.position for job in waiting] == [0, 1]
    go.set()
    for job in (first, *waiting):
        job.result(WAIT)


def test_priorities_go_first_and_clients_take_turns(opened):
    runtime = opened(batch_size=1)
    first, go = blocked(runtime)
    order = []
    jobs = [first]

    def submit(name, **options):
        jobs.append(runtime.submit("a cat", num_inference_steps=1, **options))
        jobs[-1].when_done(lambda job: order.append(name))

    for number in range(3):
        submit(f"many {number}", client="many")
    submit("few 0", client="few")
    submit("urgent", client="many", priority=1)
    go.set()
    for job in jobs:
        job.result(WAIT)
    assert order[:3] == ["urgent", "many 0", "few 0"]


def test_a_cancelled_job_ends_and_the_others_go_on(opened):
    runtime = opened(batch_size=1)
    first, go = blocked(runtime)
    second, third = (runtime.submit("a cat", num_inference_steps=1) for _ in range(2))
    second.cancel()
    go.set()
    with pytest.raises(CancelledError):
        second.result(WAIT)
    assert second.state == "cancelled"
    assert first.result(WAIT).size == third.result(WAIT).size


def test_cancel_of_the_runtime_cancels_every_job_and_close_too(opened):
    runtime = opened(batch_size=1)
    jobs = [blocked(runtime)]
    waiting = runtime.submit("a cat")
    runtime.cancel()
    jobs[0][1].set()
    for job in (jobs[0][0], waiting):
        with pytest.raises(CancelledError):
            job.result(WAIT)
    last, go = blocked(runtime)
    threading.Timer(0.05, go.set).start()
    runtime.close()
    assert last.done
    with pytest.raises(RequestError, match="closed"):
        runtime.submit("a cat")


def test_a_deadline_ends_a_job_that_is_too_late(opened):
    runtime = opened(batch_size=1)
    first, go = blocked(runtime)
    late = runtime.submit("a cat", deadline=0.01)
    time.sleep(0.02)
    go.set()
    with pytest.raises(CancelledError, match=r"deadline of 0\.01 seconds"):
        late.result(WAIT)
    first.result(WAIT)


def test_a_timeout_leaves_the_job_alone(opened):
    runtime = opened()
    job, go = blocked(runtime)
    with pytest.raises(TimeoutError, match="Wait longer, or cancel it"):
        job.result(0.01)
    go.set()
    job.result(WAIT)


def test_asyncio_awaits_jobs_and_a_cancelled_task_cancels_its_job(opened):
    runtime = opened(batch_size=1)

    async def main():
        pictures = await asyncio.gather(
            *(runtime.submit("a cat", seed=seed, num_inference_steps=2) for seed in range(3))
        )
        job, go = blocked(runtime)
        task = asyncio.ensure_future(job)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        with pytest.raises(CancelledError):
            await job
        return pictures

    pictures = asyncio.run(main())
    assert [picture.tobytes() for picture in pictures] == [
        runtime.generate("a cat", seed=seed, num_inference_steps=2).tobytes() for seed in range(3)
    ]


def test_steps_give_progress_and_previews(opened):
    runtime = opened()
    progress = defaultdict(list)

    def watch(step):
        progress[step.total].append((step.index, step.preview()[0].size))

    job = runtime.submit("<a>", num_inference_steps=3, callback=watch)
    job.result(WAIT)
    assert progress == {3: [(0, (32, 32)), (1, (32, 32)), (2, (32, 32))]}


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"prompt": ["a", "b"]}, "A job is one picture"),
        ({"prompt": "a", "priority": "high"}, "The priority is 'high'"),
        ({"prompt": "a", "deadline": 0}, "The deadline is 0"),
        ({"prompt": "a", "width": 7}, "The width is 7"),
    ],
)
def test_what_cannot_be_drawn_is_refused_at_once(opened, options, sentence):
    with pytest.raises(RequestError, match=sentence):
        opened().submit(**options)


def test_the_thread_ends_when_nothing_is_left(opened):
    runtime = opened()
    runtime.submit("a cat", num_inference_steps=1).result(WAIT)
    for _ in range(500):
        if not any(thread.name == "perfusion-drawing" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    pytest.fail("the drawing thread is still there")
