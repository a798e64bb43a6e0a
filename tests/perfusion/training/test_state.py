"""Resuming: what is saved comes back, what does not fit is refused, and no kill is noticed in the result."""

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from perfusion.concept.concept_file import Concept
from perfusion.errors import ConceptError, PerfusionError, TrainingError
from perfusion.training.state import (
    check_identity,
    identity_of,
    read_checkpoint,
    restore_,
    write_checkpoint,
)
from perfusion.training.work_folder import WorkFolder

WORKER = Path(__file__).with_name("resume_worker.py")


class Loop:
    """A training in miniature."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
        self.optimiser = torch.optim.Adam([self.weight], lr=0.1)
        self.rng, self.generator = random.Random(1), torch.Generator().manual_seed(2)

    def steps(self, count: int) -> torch.Tensor:
        for _ in range(count):
            target = self.rng.random() + torch.randn(2, 3, generator=self.generator)
            self.optimiser.zero_grad()
            (self.weight - target).square().sum().backward()
            self.optimiser.step()
        return self.weight.detach().clone()

    def save(self, path: Path, **facts: object) -> None:
        write_checkpoint(
            path, {"edit": {"weight": self.weight}}, optimisers=[self.optimiser], rng=self.rng,
            generators={"noise": self.generator}, facts=facts,
        )  # fmt: skip

    def load(self, path: Path) -> dict:
        saved = read_checkpoint(path)
        restore_({"weight": self.weight}, saved.groups["edit"])
        saved.restore(optimisers=[self.optimiser], rng=self.rng, generators={"noise": self.generator})
        return saved.facts


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    expected = Loop().steps(9)
    first, second = Loop(), Loop()
    first.steps(4)
    first.save(tmp_path / "state.safetensors", step=4, running=0.1 + 0.2)
    facts = second.load(tmp_path / "state.safetensors")
    assert (facts["step"], facts["running"]) == (4, 0.1 + 0.2)
    assert torch.equal(second.steps(5), expected)


def test_saving_disturbs_nothing(tmp_path: Path) -> None:
    loop = Loop()
    loop.steps(4)
    loop.save(tmp_path / "state.safetensors")
    assert torch.equal(loop.steps(5), Loop().steps(9))


def test_tensors_that_share_memory_and_every_kind_of_number_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tensors = {
        "a": {"whole": shared, "part": shared[2:4], "turned": shared.view(2, 3).T},
        "b": {"half": shared.bfloat16(), "count": torch.tensor(3), "empty": torch.zeros(0, 4)},
    }
    path = tmp_path / "state.safetensors"
    write_checkpoint(path, tensors, optimisers=[], rng=random.Random(0), generators={}, facts={})
    groups = read_checkpoint(path).groups
    for group, part in tensors.items():
        for name, value in part.items():
            assert torch.equal(groups[group][name], value)
            assert groups[group][name].dtype == value.dtype


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "state.safetensors"
    Loop().save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(TrainingError, match=r"is damaged .*; delete it and start over"):
        read_checkpoint(path)


def test_any_changed_bit_of_the_numbers_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    Loop().save(path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for position in random.Random(0).sample(range(start, len(data)), 20):
        path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
        with pytest.raises(TrainingError, match="not those that were written"):
            read_checkpoint(path)


def test_a_file_of_another_kind_and_a_missing_one_are_refused(tmp_path: Path, make_concept) -> None:
    make_concept().save(tmp_path / "cat.safetensors")
    with pytest.raises(TrainingError, match="it has no 'facts'"):
        read_checkpoint(tmp_path / "cat.safetensors")
    with pytest.raises(TrainingError, match="no such checkpoint; start from the beginning"):
        read_checkpoint(tmp_path / "nothing")


def test_a_state_of_other_shapes_names_or_optimisers_is_refused(tmp_path: Path) -> None:
    loop = Loop()
    loop.steps(1)
    loop.save(tmp_path / "state.safetensors")
    saved = read_checkpoint(tmp_path / "state.safetensors")
    with pytest.raises(TrainingError, match=r"weight as \(2, 3\), expected \(3, 3\)"):
        restore_({"weight": torch.zeros(3, 3)}, saved.groups["edit"])
    with pytest.raises(TrainingError, match=r"has bias as nothing, expected \(3,\)"):
        restore_({"weight": torch.zeros(2, 3), "bias": torch.zeros(3)}, saved.groups["edit"])
    with pytest.raises(TrainingError, match="does not fit this training"):
        saved.restore(optimisers=[], rng=random.Random(), generators={})


# --- the same training or another one


@dataclass(frozen=True, kw_only=True)
class Options:
    lr: float = 0.03
    steps: int = 400
    masks: str | Path = "auto"


def test_a_setting_that_differs_is_named_with_both_values(tmp_path: Path) -> None:
    before = identity_of(Options(), [], "f00")
    with pytest.raises(TrainingError, match=r"other settings: lr \(0\.03 then, 0\.01 now\); give the same"):
        check_identity(before, identity_of(Options(lr=0.01), [], "f00"))
    with pytest.raises(TrainingError, match=r"lr \(.*\), steps \(.*\), base model \(f00 then, f11 now\)"):
        check_identity(before, identity_of(Options(lr=0.01, steps=5), [], "f11"))
    check_identity(before, identity_of(Options(steps=5), [], "f00"), free=["steps"])
    check_identity(before, identity_of(Options(), [], "f00"))


def test_pictures_and_masks_count_by_their_contents_and_not_by_their_place(tmp_path: Path) -> None:
    def identity(folder: Path) -> dict[str, str]:
        return identity_of(Options(masks=folder / "masks"), folder.glob("*.png"), "f00")

    for name in ("here", "there"):
        (tmp_path / name / "masks").mkdir(parents=True)
        for file in ("1.png", "2.png", "masks/1.png"):
            (tmp_path / name / file).write_bytes(file.encode())
    before = identity(tmp_path / "here")
    check_identity(before, identity(tmp_path / "there"))
    (tmp_path / "there/masks/1.png").write_bytes(b"other")
    with pytest.raises(TrainingError, match=r"settings: masks \(changed since\);"):
        check_identity(before, identity(tmp_path / "there"))
    (tmp_path / "there/2.png").rename(tmp_path / "there/3.png")
    with pytest.raises(TrainingError, match=r"masks \(changed since\), pictures \(changed since\)"):
        check_identity(before, identity(tmp_path / "there"))


# --- the folder


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path / "cat.safetensors")


def save_state(work: WorkFolder, identity: dict[str, str]) -> None:
    work.save_state(identity, {"step": 2}, tensors={}, optimisers=[], rng=random.Random(0), generators={})


def test_the_folder_comes_with_the_first_file_and_goes_with_the_finished_concept(work, make_concept) -> None:
    assert not work.path.exists()
    assert work.load_state({}) is None
    save_state(work, {"lr": "1"})
    work.save_concept(make_concept(), 100)
    assert sorted(path.name for path in work.path.iterdir()) == [
        "state.safetensors",
        "step-000100.safetensors",
    ]
    with pytest.raises(TrainingError, match=r"cat\.safetensors was not written, so .* is left as it is"):
        work.finish(keep=False)
    make_concept().save(work.output)
    work.finish(keep=False)
    assert not work.path.exists()


def test_kept_concepts_stay_and_the_state_goes(work, make_concept) -> None:
    save_state(work, {})
    for step in (20, 100, 60):
        work.save_concept(make_concept(seed=step), step)
    make_concept().save(work.output)
    work.finish(keep=True)
    assert work.load_state({}) is None
    assert list(work.concepts()) == [20, 60, 100]
    assert list(work.concepts(up_to=60)) == [20, 60]
    assert (work.concepts()[60].direction == make_concept(seed=60).direction).all()


def test_starting_over_says_what_is_dropped_and_leaves_other_files(work, make_concept) -> None:
    said: list[str] = []
    work.start_over(said.append)
    assert not said
    save_state(work, {})
    work.save_concept(make_concept(), 20)
    (work.path / ".state.safetensors.0a1b2c3d.partial").write_bytes(b"half")
    (work.path / "notes.txt").write_text("mine")
    work.start_over(said.append)
    assert [path.name for path in work.path.iterdir()] == ["notes.txt"]
    assert len(said) == 1 and "an unfinished training is dropped" in said[0]


def test_a_state_of_another_training_or_a_damaged_one_is_refused_by_its_file(work) -> None:
    save_state(work, {"lr": "1"})
    with pytest.raises(TrainingError, match=r"work/state\.safetensors: .*lr \(1 then, 2 now\)"):
        work.load_state({"lr": "2"})
    work.state_path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"work/state\.safetensors: the saved state is damaged"):
        work.load_state({"lr": "1"})


def test_nothing_in_the_folder_is_taken_for_the_finished_concept(work, make_concept) -> None:
    work.save_concept(make_concept(), 20)
    save_state(work, {})
    assert not work.output.exists()
    with pytest.raises((ConceptError, PerfusionError)):
        Concept.load(work.state_path)


# --- killed


def run_worker(folder: Path, kills: int) -> str:
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder), str(kills)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_killed_at_any_moment_and_resumed_it_gives_the_same_bytes(tmp_path: Path) -> None:
    said = run_worker(tmp_path, 5)
    assert "killed" in said
    assert (tmp_path / "killed.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.bin", "whole.bin"]


@pytest.mark.slow
def test_killed_many_times_it_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        run_worker(folder, 12)
        assert (folder / "killed.bin").read_bytes() == (folder / "whole.bin").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the system which files are mapped")
def test_a_state_that_was_read_keeps_no_hold_on_its_file(tmp_path: Path) -> None:
    """Windows replaces no file that somebody has mapped, and the next save would fail."""
    path, loop = tmp_path / "state.safetensors", Loop()
    loop.steps(2)
    write_checkpoint(
        path, {"loop": {"weight": loop.weight}}, optimisers=[loop.optimiser], rng=loop.rng,
        generators={"draws": loop.generator}, facts={},
    )  # fmt: skip
    saved = read_checkpoint(path)
    assert path.name not in Path("/proc/self/maps").read_text()
    saved.restore(optimisers=[loop.optimiser], rng=loop.rng, generators={"draws": loop.generator})
    assert path.name not in Path("/proc/self/maps").read_text()
