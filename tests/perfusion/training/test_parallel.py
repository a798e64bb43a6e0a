"""Several processes, one training: two CPU processes learn what one does."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from perfusion.errors import TrainingError
from perfusion.training import parallel
from perfusion.training.parallel import World, opened, share, sum_, world

WORKER = Path(__file__).with_name("parallel_worker.py")


def pretend(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(parallel, "world", lambda: World(rank=rank, size=size))


@pytest.mark.parametrize(("count", "size"), [(16, 2), (16, 3), (5, 5), (7, 4), (1, 1)])
def test_shares_in_order_make_the_batch_and_differ_by_one_at_most(monkeypatch, count, size) -> None:
    lists, tensors = [], []
    for rank in range(size):
        pretend(monkeypatch, rank, size)
        lists.append(share(list(range(count))))
        tensors.append(share(torch.arange(count)))
    assert [item for part in lists for item in part] == list(range(count))
    assert torch.equal(torch.cat(tensors), torch.arange(count))
    assert max(map(len, lists)) - min(map(len, lists)) <= 1


def test_a_batch_smaller_than_the_processes_is_refused(monkeypatch) -> None:
    pretend(monkeypatch, 0, 4)
    with pytest.raises(TrainingError, match=r"3 samples a step for 4 processes, .* larger --batch-size"):
        share([1, 2, 3])


def test_alone_nothing_is_changed_and_nothing_is_asked_of_the_network() -> None:
    tensors = [torch.arange(3.0), None]
    with opened() as here:
        assert here == World() == world()
        assert here.main
        sum_(tensors)
    assert torch.equal(tensors[0], torch.arange(3.0))
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("steps", [(0, 0), (50, 50), (50, 0), (0, 50)])
def test_processes_at_different_steps_are_refused_by_all_of_them(monkeypatch, steps) -> None:
    monkeypatch.setattr(parallel, "sum_", lambda tensors: tensors[0].fill_(sum(steps)))
    for rank, step in enumerate(steps):
        pretend(monkeypatch, rank, 2)
        if len(set(steps)) == 1:
            parallel.check_step(step, torch.device("cpu"))
            continue
        with pytest.raises(
            TrainingError, match=f"stands after step {step} and others do not; --resume needs"
        ):
            parallel.check_step(step, torch.device("cpu"))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def worker_module():
    spec = importlib.util.spec_from_file_location("parallel_worker", WORKER)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_two_processes_against_one(output: Path) -> None:
    alone = worker_module().train()
    first, second = (load_file(output.with_suffix(f".{rank}-of-2")) for rank in (0, 1))
    assert set(first) == set(alone)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)


def test_two_processes_learn_what_one_does_and_both_the_same_bits(tmp_path: Path) -> None:
    output, port = tmp_path / "trained", free_port()
    processes = []
    for rank in range(2):
        environment = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        command = [sys.executable, str(WORKER), str(output)]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    check_two_processes_against_one(output)


@pytest.mark.slow
def test_accelerate_launch_starts_them(tmp_path: Path) -> None:
    """Its --cpu would start one process, or need MPI; on a machine without a GPU its other way gives CPU ones."""
    output = tmp_path / "trained"
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(free_port()), str(WORKER), str(output),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    check_two_processes_against_one(output)


@pytest.mark.parametrize(
    ("gpu", "nccl", "backend"), [(True, True, "nccl"), (True, False, "gloo"), (False, True, "gloo")]
)
def test_gpus_meet_by_gloo_where_nccl_is_missing(monkeypatch, gpu, nccl, backend) -> None:
    joined: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.set_device", lambda number: None)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: nccl)
    monkeypatch.setattr("torch.distributed.init_process_group", joined.append)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with opened():
        assert joined == [backend]
