"""What a sweep draws, keeps and draws again, with a runtime that only notes what it was asked."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from perfusion.errors import RequestError
from perfusion.sweep import Drawings, Job, Setting, all_settings, grid, plot, points_of, sweep, ticks

PROMPT = "a <cat> at night"


class NotingRuntime:
    """Pictures of one colour, told by everything that was asked for; fails at the given call."""

    def __init__(self, folder, concept, fails_at=None):
        self.bundle = SimpleNamespace(folder=folder)
        self.concepts = {"<cat>": concept}
        self.provider, self.precision = "cpu", "fp32"
        self.calls, self.fails_at = [], fails_at

    def generate(self, prompts, *, seed, concept_settings=None, lock=None, **options):
        if len(self.calls) == self.fails_at:
            raise KeyboardInterrupt
        self.calls.append((prompts, seed, concept_settings, lock))
        settings = concept_settings or [None] * len(prompts)
        shades = [
            hash((p, s, str(c), lock)) % 0xFFFFFF for p, s, c in zip(prompts, seed, settings, strict=True)
        ]
        return [Image.new("RGB", (16, 16), (n & 255, n >> 8 & 255, n >> 16 & 255)) for n in shades]


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """Pictures without their settings, which such a runtime cannot tell."""
    monkeypatch.setattr("perfusion.sweep.drawing.settings_of", lambda *_, **__: None)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "bundle.json").write_text("{}")
    return tmp_path


@pytest.fixture
def settings():
    return all_settings(bias=(0.4, 0.6, 0.8), temperature=(0.1,), lock=("local", "global"))


def jobs(settings, seeds=(0, 1)):
    return [Job(prompt=PROMPT, seed=seed, setting=one) for one in (None, *settings) for seed in seeds]


def test_settings_of_one_lock_share_a_call_and_each_picture_has_its_own(folder, make_concept, settings):
    runtime = NotingRuntime(folder, make_concept())
    drawings = Drawings(folder / "work", runtime, {}, batch_size=4)
    assert drawings.draw(jobs(settings)) == 14
    assert [len(prompts) for prompts, *_ in runtime.calls] == [2, 4, 2, 4, 2]
    assert [lock for *_, lock in runtime.calls] == [None, "local", "local", "global", "global"]
    (prompts, seeds, given, _) = runtime.calls[1]
    assert prompts == [PROMPT] * 4 and seeds == [0, 1, 0, 1]
    assert [one["<cat>"].bias for one in given] == [0.4, 0.4, 0.6, 0.6]


def test_the_latest_start_comes_first_for_one_that_no_step_meets_is_refused(folder, make_concept):
    runtime = NotingRuntime(folder, make_concept())
    late = all_settings(bias=(0.4, 0.6), temperature=(0.1,), start=(0.0, 0.3, 0.9))
    assert Drawings(folder / "work", runtime, {}, batch_size=4).draw(jobs(late)) == 14
    started = [one["<cat>"].start for *_, given, _ in runtime.calls[1:] for one in given]
    assert started == [0.9] * 4 + [0.3] * 4 + [0.0] * 4


def test_the_base_draws_the_superclass_with_the_concept_off(folder, make_concept, settings):
    runtime = NotingRuntime(folder, make_concept())
    Drawings(folder / "work", runtime, {}).draw(jobs(settings))
    assert runtime.calls[0] == ([PROMPT] * 2, [0, 1], [{"<cat>": {"strength": 0.0}}] * 2, None)


def test_an_interrupted_sweep_goes_on_where_it_was(folder, make_concept, settings):
    broken = NotingRuntime(folder, make_concept(), fails_at=3)
    with pytest.raises(KeyboardInterrupt):
        Drawings(folder / "work", broken, {}, batch_size=4).draw(jobs(settings))
    whole = NotingRuntime(folder, make_concept())
    told: list[int] = []
    assert Drawings(folder / "work", whole, {}, batch_size=4).draw(jobs(settings), told.append) == 6
    assert told == [8, 12, 14]


def test_a_broken_picture_is_drawn_again(folder, make_concept, settings):
    runtime = NotingRuntime(folder, make_concept())
    drawings = Drawings(folder / "work", runtime, {})
    drawings.draw(jobs(settings))
    victim = next((folder / "work").glob("*.png"))
    victim.write_bytes(victim.read_bytes()[:30])
    assert drawings.draw(jobs(settings)) == 1


def test_other_options_or_another_concept_make_other_pictures(folder, make_concept, settings):
    runtime = NotingRuntime(folder, make_concept())
    Drawings(folder / "work", runtime, {"num_inference_steps": 3}).draw(jobs(settings))
    assert Drawings(folder / "work", runtime, {"num_inference_steps": 3}).draw(jobs(settings)) == 0
    assert Drawings(folder / "work", runtime, {"num_inference_steps": 4}).draw(jobs(settings)) == 14
    other = NotingRuntime(folder, make_concept(seed=1))
    assert Drawings(folder / "work", other, {"num_inference_steps": 3}).draw(jobs(settings)) == 14


def test_the_defaults_in_the_file_decide_nothing(folder, make_concept, settings):
    """So that a sweep of a file into which its choice was written finds its pictures."""
    Drawings(folder / "work", NotingRuntime(folder, make_concept()), {}).draw(jobs(settings))
    changed = NotingRuntime(folder, make_concept(bias=0.3, temperature=0.2))
    assert Drawings(folder / "work", changed, {}).draw(jobs(settings)) == 0


def test_a_sweep_without_a_scorer_only_draws(folder, make_concept, settings):
    drawings = Drawings(folder / "work", NotingRuntime(folder, make_concept()), {})
    made = sweep(drawings, prompts=[PROMPT], seeds=[0], settings=settings)
    assert made.points == () and made.recommended is None
    sheet = made.grid()
    assert sheet.width > 7 * 16 and sheet.height > 16


def test_nothing_to_sweep_over_is_refused(folder, make_concept, settings):
    drawings = Drawings(folder / "work", NotingRuntime(folder, make_concept()), {})
    with pytest.raises(RequestError, match="at least one of each"):
        sweep(drawings, prompts=[], seeds=[0], settings=settings)


def test_the_grid_holds_every_picture_at_its_place():
    colours = ["red", "lime", "blue", "black"]
    pictures = [Image.new("RGB", (40, 40), colour) for colour in colours]
    sheet = grid([("one", pictures[:2]), ("two", pictures[2:])], ["a", "b"], marked=1)
    found = {colour for _, colour in sheet.getcolors(100_000) or ()}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)} <= found
    counted = {colour: n for n, colour in sheet.getcolors(100_000) or ()}
    assert counted[(255, 0, 0)] == counted[(0, 0, 255)] == 1600


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.23, 0.61, [0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6]),
        (0.474, 0.841, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]), (-0.05, 0.05, None), (0.7001, 0.7004, None),
        (-0.37, 1.38, [-0.2, 0, 0.2, 0.4, 0.6, 0.8, 1, 1.2]), (-3, 1200, None),
    ],
)  # fmt: skip
def test_the_ticks_of_an_axis_are_few_round_numbers_inside_it(low, high, expected):
    found = ticks(low, high)
    assert expected is None or found == pytest.approx(expected)
    assert 3 <= len(found) <= 8 and low <= found[0] and found[-1] <= high
    steps = {f"{b - a:.1g}" for a, b in itertools.pairwise(found)}
    assert len(steps) == 1 and float(steps.pop().split("e")[0].strip("0.") or 1) in (1, 2, 5)


def test_a_long_prompt_is_broken_into_lines_and_leaves_room_for_the_pictures():
    label = "a photo of a <cat> " + "next to a house and " * 9
    sheet = grid([(label, [Image.new("RGB", (128, 128))] * 2)], ["a", "b"])
    assert sheet.width < 2 * 140 + 270


@pytest.mark.parametrize("count", [1, 5])
def test_a_plot_shows_every_point(count, similarities_of):
    settings = [Setting(bias=0.4 + index / 10, temperature=0.1) for index in range(count)]
    points = points_of(
        {one: similarities_of([index, index], [-index, -index]) for index, one in enumerate(settings)}
    )
    made = plot(points, size=(400, 300))
    assert made.size == (400, 300)
    pixels = np.asarray(made, np.int16)
    red = (pixels[..., 0] > 180) & (pixels[..., 1:].max(-1) < 90)
    assert red.sum() > 20  # the recommended one


def test_the_text_that_is_scored_has_neither_tokens_nor_marks(folder, make_concept):
    drawings = Drawings(folder / "work", NotingRuntime(folder, make_concept()), {})
    assert drawings.plain(r"a <cat> and a {teapot}, \{new\}") == "a cat and a teapot, {new}"


def test_a_prompt_with_weights_is_judged_by_its_words_and_one_with_a_strength_is_refused(
    folder, make_concept, settings
):
    runtime = NotingRuntime(folder, make_concept())
    drawings = Drawings(folder / "work", runtime, {})
    superclass = make_concept().superclass
    assert drawings.plain("a (<cat>:1.3) on a [beach]") == f"a {superclass} on a beach"
    plain = Drawings(folder / "work", runtime, {"prompt_syntax": "plain"})
    assert plain.plain("a (<cat>:1.3)") == f"a ({superclass}:1.3)"
    with pytest.raises(RequestError, match=r"gives <cat> the strength 0\.5, and a sweep gives its own"):
        sweep(drawings, prompts=["a <cat> <lora:cat:0.5>"], seeds=[0], settings=settings)
    assert not runtime.calls
