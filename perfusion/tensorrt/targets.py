"""The GPUs engines are built for, by compute capability, and which of them can compute in what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfusion.errors import DeviceError
from perfusion.tensorrt.rtx import PORTABLE

__all__ = ["TARGETS", "Target", "check_precision", "check_target", "target_of"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One kind of GPU."""

    title: str
    precisions: tuple[str, ...]
    rtx: bool = False  # TensorRT for RTX builds for it, and there is one that runs there
    portable: bool = False  # its portable engines run there: NVIDIA's support matrices 1.0 to 1.5 name these


_TURING = ("fp32", "fp16", "int8")
_AMPERE = (*_TURING, "bf16")
_ADA = (*_AMPERE, "fp8")
_BLACKWELL = (*_ADA, "fp4")

TARGETS: Mapping[str, Target] = {
    "sm75": Target(title="RTX 20, GTX 16", precisions=_TURING, rtx=True),
    "sm80": Target(title="A100, A30", precisions=_AMPERE, rtx=True),
    "sm86": Target(title="RTX 30, A10, A40", precisions=_AMPERE, rtx=True, portable=True),
    "sm87": Target(title="Jetson Orin", precisions=_AMPERE),
    "sm89": Target(title="RTX 40, L4, L40", precisions=_ADA, rtx=True, portable=True),
    "sm90": Target(title="H100, H200", precisions=_ADA),
    "sm100": Target(title="B200", precisions=_BLACKWELL),
    "sm110": Target(title="Jetson Thor", precisions=_BLACKWELL),
    "sm120": Target(title="RTX 50", precisions=_BLACKWELL, rtx=True, portable=True),
    # TensorRT for RTX knows sm121, and has no release for the Arm processor beside it
    "sm121": Target(title="DGX Spark", precisions=_BLACKWELL),
}


def target_of(compute_capability: tuple[int, int]) -> str:
    """(8, 7) as "sm87"."""
    return "sm{}{}".format(*compute_capability)


def check_target(flavour: str, target: str) -> str:
    """The target as engines' keys spell it: several joined by "+", sorted.

    Raises:
        DeviceError: the flavour does not build for it; with those it does build for.
    """
    names = sorted({name.strip().lower() for name in target.replace("+", ",").split(",")}, key=_order)
    if names == [PORTABLE] and flavour == "trt-rtx":
        return PORTABLE
    if PORTABLE in names and flavour == "trt-rtx":
        raise DeviceError(
            f"A portable engine is for {', '.join(name for name, entry in TARGETS.items() if entry.portable)} and "
            "cannot be for named GPUs as well. Build one after the other."
        )
    known = [name for name, entry in TARGETS.items() if entry.rtx or flavour == "trt"]
    for name in names:
        if name in known:
            continue
        if name in TARGETS:
            raise DeviceError(
                f"TensorRT for RTX does not run on {name} ({TARGETS[name].title}); it builds for "
                f"{', '.join(known)} and portable. Use the engine 'trt' on that device."
            )
        more = " or portable" if flavour == "trt-rtx" else ""
        raise DeviceError(f"There is no target {name[:40]!r}, expected {', '.join(known)}{more}.")
    if len(names) > 1 and flavour == "trt":
        raise DeviceError(
            f"TensorRT builds an engine for one kind of GPU, and {', '.join(names)} were asked for."
        )
    return "+".join(names)


def check_precision(flavour: str, target: str, precision: str) -> None:
    """Refuse a precision that a target has no arithmetic for.

    Raises:
        DeviceError: with the precisions it has.
    """
    for name in target.split("+"):
        have = TARGETS[name].precisions if name in TARGETS else _AMPERE  # portable: Ampere is the oldest
        title = f"{name} ({TARGETS[name].title})" if name in TARGETS else "A portable engine"
        if precision not in have:
            raise DeviceError(f"{title} has no {precision}; it has {', '.join(have)}.")
        if flavour == "trt-rtx" and name == "sm75" and precision == "fp32":
            raise DeviceError(
                f"TensorRT for RTX has no matrix products in fp32 for {title}. Export with --precision fp16."
            )


def _order(name: str) -> tuple[int, str]:
    return int(name[2:]) if name.startswith("sm") and name[2:].isdigit() else 0, name
