"""What is wrong with a machine, and what to do about it: one finding for each thing that was looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from perfusion.devices import system
from perfusion.devices.board_check import examine_board
from perfusion.devices.detection import Detected
from perfusion.devices.environment import Environment
from perfusion.devices.finding import Finding

__all__ = ["examine"]

GIB = 1 << 30
_LOW_DISK = 2 * GIB
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def examine(
    machine: Detected, python: Environment, *, root: Path = Path("/"), disk: Path | None = None
) -> list[Finding]:
    """Everything that stands in the way of drawing on this machine, the worst first.

    Args:
        found: the machine.
        python: the Python that would draw.
        root: where the system's files are.
        disk: the folder whose disk needs room; by default the current one.
    """
    findings = [
        *_onnxruntime(machine, python),
        *_driver(machine, python),
        *_kernels(machine, python),
        *_tensorrt(machine, python, root),
        *_openvino(machine, python, root),
        *examine_board(machine, root),
        *_disk(disk or Path.cwd()),
    ]
    order = ("stop", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def _onnxruntime(machine: Detected, python: Environment) -> Iterator[Finding]:
    plain, gpu = "onnxruntime" in python.packages, "onnxruntime-gpu" in python.packages
    engines = _has_engine_runtime(python)
    if python.problem:
        yield Finding(
            name="onnxruntime-broken",
            level="warning" if engines else "stop",
            text=f"onnxruntime is installed and cannot be imported: {python.problem}.",
            remedy="Uninstall onnxruntime and onnxruntime-gpu, then install one of them again.",
        )
    elif _CPU not in python.providers:
        yield Finding(
            name="onnxruntime-missing",
            level="warning" if engines else "stop",
            text="onnxruntime is not installed.",
            remedy='pip install "perfusion-edge[cpu]", or [cuda] for an NVIDIA GPU in a desktop or server.',
        )
    if plain and gpu:
        yield Finding(
            name="onnxruntime-twice",
            level="warning",
            text="onnxruntime and onnxruntime-gpu are both installed; they are the same module, and one has written "
            "over the other.",
            remedy="pip uninstall onnxruntime onnxruntime-gpu, then install only the one you want.",
        )
    if machine.jetpack is None and machine.cards.cards and python.providers and _CUDA not in python.providers:
        why = (
            "onnxruntime-gpu is installed without its CUDA part"
            if gpu
            else "the onnxruntime installed is for CPUs"
        )
        yield Finding(
            name="cpu-fallback",
            level="warning",
            text=f"There is a {machine.cards.cards[0].name}, and {why}: pictures would be drawn on the processor.",
            remedy='pip uninstall onnxruntime onnxruntime-gpu, then pip install "perfusion-edge[cuda]"; or build '
            "engines with perfusion-export --engine trt-rtx.",
        )


def _driver(machine: Detected, python: Environment) -> Iterator[Finding]:
    problem = machine.cards.problem
    if problem and "no NVIDIA driver" not in problem and machine.jetpack is None:
        yield Finding(
            name="driver-silent",
            level="warning",
            text=f"{problem[0].upper()}{problem[1:]}.",
            remedy="Run nvidia-smi; when it fails too, restart the machine or install the driver again. Until then "
            "pictures are drawn on the processor.",
        )
    if machine.cards.cuda is None:
        return
    for package, needed in _cuda_wanted(python):
        if needed > machine.cards.cuda[0]:
            have = ".".join(map(str, machine.cards.cuda))
            yield Finding(
                name="driver-old",
                level="warning",
                text=f"The driver {machine.cards.driver} knows CUDA up to {have}, and {package} is made for CUDA "
                f"{needed}: it will not load.",
                remedy=f"Install a driver for CUDA {needed}, or the package for CUDA {machine.cards.cuda[0]}; "
                'onnxruntime\'s for CUDA 12 comes with "perfusion-edge[cuda12]".',
            )


_ONNXRUNTIME_CUDA = (((1, 27), 13), ((1, 19), 12))
"""The first releases of onnxruntime-gpu on the package index that are made for a CUDA, newest first."""


def _cuda_wanted(python: Environment) -> Iterator[tuple[str, int]]:
    """Packages made for one CUDA, with its major number, as their names and versions tell."""
    for name, version in python.packages.items():
        match = re.search(r"-cu(\d\d)\b", name) or re.search(r"\+cu(\d\d)", version)
        if match and name.split("-")[0] in ("tensorrt", "onnxruntime", "torch"):
            yield f"{name} {version}", int(match[1])
        elif name == "onnxruntime-gpu":
            release = _release(version)
            cuda = next((cuda for first, cuda in _ONNXRUNTIME_CUDA if release >= first), None)
            if cuda is not None:
                yield f"{name} {version}", cuda


def _kernels(machine: Detected, python: Environment) -> Iterator[Finding]:
    """A library for CUDA without code for this GPU loads, and fails at the first picture."""
    card = machine.cards.cards[0].capability if machine.cards.cards else None
    capability = card or (machine.profile.compute_capability if machine.profile else None)
    if python.kernels is None or capability is None or python.kernels.serve(capability):
        return
    name = f"onnxruntime-gpu {python.packages.get('onnxruntime-gpu', '')}".strip()
    yield Finding(
        name="kernels-missing",
        level="warning",
        text=f"The {name} installed has kernels for {python.kernels}, and this GPU is "
        f"sm_{capability[0]}{capability[1]}: the provider 'cuda' cannot draw here.",
        remedy="Draw with TensorRT engines, or install an onnxruntime-gpu made for this JetPack (docs/jetson.md)."
        if machine.is_jetson
        else "Install a release of onnxruntime-gpu whose kernels include it, or build engines with perfusion-export.",
    )


def _tensorrt(machine: Detected, python: Environment, root: Path) -> Iterator[Finding]:
    if not machine.is_jetson:
        return
    if machine.profile is not None and "trt" not in machine.profile.engines:
        yield Finding(
            name="no-engines",
            level="note",
            text=f"On a {machine.profile.title} {machine.profile.note}.",
            remedy="Use the provider 'cpu'.",
        )
        return
    if machine.jetpack is not None and not machine.jetpack.has_engines:
        have = ".".join(map(str, machine.jetpack.tensorrt))
        yield Finding(
            name="jetpack-old",
            level="warning",
            text=f"JetPack {machine.jetpack.version} has TensorRT {have}, and engines need 10.3.",
            remedy="Install JetPack 6.1 or newer; until then the graphs run on the processor.",
        )
    elif "tensorrt" not in python.modules:
        yield _no_tensorrt(python, sorted(root.glob("usr/lib/python3*/dist-packages/tensorrt")))
    if machine.l4t is not None and machine.l4t[0] >= 38 and not _has_nvdla(root):
        where = "this container" if system.in_container(root) else "this system"
        yield Finding(
            name="nvdla-missing",
            level="warning",
            text=f"libnvdla_compiler.so is missing in {where}; TensorRT does not load without it.",
            remedy="Start the container with --runtime nvidia, or mount the file from the host's "
            "/usr/lib/aarch64-linux-gnu/nvidia."
            if system.in_container(root)
            else "sudo apt install --reinstall nvidia-l4t-dla-compiler",
        )


_OPENVINO_LEAST = (2025, 4)
_SHORT_FLOATS = ("amx_bf16", "avx512_bf16")  # instructions that only OpenVINO computes pictures with


def _openvino(machine: Detected, python: Environment, root: Path) -> Iterator[Finding]:
    """Whether OpenVINO can be had, and what else than the processor it would draw on."""
    version = python.packages.get("openvino")
    if python.openvino_problem:
        yield Finding(
            name="openvino-broken",
            level="warning",
            text=f"OpenVINO is installed and cannot be used: {python.openvino_problem}.",
            remedy='pip install --force-reinstall "perfusion-edge[openvino]".',
        )
    elif version is not None and _release(version) < _OPENVINO_LEAST:
        yield Finding(
            name="openvino-old",
            level="warning",
            text=f"OpenVINO {version} is installed, and the provider 'openvino' needs "
            f"{'.'.join(map(str, _OPENVINO_LEAST))}.",
            remedy='pip install --upgrade "perfusion-edge[openvino]".',
        )
    elif others := [device for device in python.openvino_devices if device != "CPU"]:
        yield Finding(
            name="openvino-devices",
            level="note",
            text=f"OpenVINO sees {', '.join(others)} beside the processor.",
            remedy=f"perfusion-generate --provider openvino:{others[0]} draws there.",
        )
    short = [flag for flag in _SHORT_FLOATS if flag in system.cpu_flags(root)]
    if short and version is None and not machine.cards.cards:
        yield Finding(
            name="openvino-missing",
            level="note",
            text=f"This processor has {short[0]}, and OpenVINO, which computes with it, is not installed.",
            remedy='pip install "perfusion-edge[openvino]", then draw with --provider openvino --precision bf16.',
        )


def _release(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _no_tensorrt(python: Environment, installed: Sequence[Path]) -> Finding:
    """Why this Python cannot import TensorRT; `installed` is where the system has it."""
    if installed and python.virtual and not python.system_packages:
        return Finding(
            name="tensorrt-invisible",
            level="warning",
            text=f"TensorRT is in {installed[0]}, which this virtual environment does not see.",
            remedy="Make the environment again with python3 -m venv --system-site-packages.",
        )
    if installed:
        return Finding(
            name="tensorrt-other-python",
            level="warning",
            text=f"TensorRT is in {installed[0]}, and this is Python {python.python[0]}.{python.python[1]}, which "
            "cannot import it.",
            remedy="Use the system's own python3.",
        )
    return Finding(
        name="tensorrt-missing",
        level="warning",
        text="TensorRT is not installed; it comes with JetPack.",
        remedy="sudo apt install tensorrt python3-libnvinfer",
    )


def _has_nvdla(root: Path) -> bool:
    folders = (
        "usr/lib/aarch64-linux-gnu/nvidia",
        "usr/lib/aarch64-linux-gnu/tegra",
        "usr/lib/aarch64-linux-gnu",
    )
    return any((root / folder / "libnvdla_compiler.so").exists() for folder in folders)


def _disk(folder: Path) -> Iterator[Finding]:
    free = system.free_disk(folder)
    if free is not None and free < _LOW_DISK:
        yield Finding(
            name="disk-full",
            level="warning",
            text=f"{folder} has {free / GIB:.1f} GiB free; engines of a large model take several.",
            remedy="Free some space, or keep bundles on another disk.",
        )


def _has_engine_runtime(python: Environment) -> bool:
    return bool(python.modules & {"tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"})
