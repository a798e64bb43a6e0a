"""The cards of a desktop or server, asked of the driver's own management library (NVML) through ctypes.

The library comes with the driver, so a machine without one has nothing to load, and nothing has to be installed.
It does not start CUDA: asking takes some milliseconds and no memory of the card.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

__all__ = ["Card", "Cards", "read_cards"]

_NAMES = ("libnvidia-ml.so.1", "nvml.dll")
_BUFFER = 96
_MEMORY_CLOCK = 2  # NVML_CLOCK_MEM
_MOST_CARDS = 64
_MOST_BYTES = 1 << 42  # of one card: 4 TiB

# nvmlReturn_t
_REASONS = {
    9: "the driver is not loaded",
    18: "the driver and its library are of different versions; restart the machine",
    4: "there is no permission to ask the driver",
    15: "a card has fallen off the bus; restart the machine",
}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card, as its driver describes it."""

    name: str
    memory: int  # bytes; 0 where not told
    free: int
    capability: tuple[int, int] | None
    power_limit: float | None  # watts
    bandwidth: float  # bytes/s: twice the memory's clock times the width of its bus; 0 where not told


@dataclass(frozen=True, kw_only=True)
class Cards:
    """What the driver said; `problem` says why it said nothing."""

    cards: tuple[Card, ...] = ()
    driver: str = ""
    cuda: tuple[int, int] | None = None  # the newest CUDA the driver knows
    problem: str = ""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _CallError(Exception):
    """A call gave another code than 0."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{_REASONS.get(code, f'{call} gave {code}')}")


def read_cards(load: Callable[[], Any] | None = None) -> Cards:
    """The cards of this machine. Never raises: without a driver, or with a broken one, there are none.

    `load`: gives the library; by default the driver's, by its usual names.
    """
    try:
        library = (load or _load)()
    except OSError:
        return Cards(problem="there is no NVIDIA driver")
    try:
        _call(library, "nvmlInit_v2")
    except (_CallError, AttributeError) as error:
        return Cards(problem=f"the NVIDIA driver does not answer: {error}")
    try:
        return _asked(library)
    except (_CallError, AttributeError, ValueError) as error:
        return Cards(problem=f"the NVIDIA driver's answer makes no sense: {error}")
    finally:
        with suppress(AttributeError):
            library.nvmlShutdown()


def _load() -> Any:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no NVML")


def _call(library: Any, name: str, *arguments: Any) -> None:
    code = int(getattr(library, name)(*arguments))
    if code:
        raise _CallError(name, code)


def _asked(library: Any) -> Cards:
    version, count = ctypes.c_int(), ctypes.c_uint()
    driver = _text(library, "nvmlSystemGetDriverVersion")
    _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(version))
    _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    if count.value > _MOST_CARDS:
        raise ValueError(f"{count.value} cards")
    cards = tuple(_card(library, index) for index in range(count.value))
    told = 5000 <= version.value < 100_000  # 12040 is 12.4
    cuda = (version.value // 1000, version.value % 1000 // 10) if told else None
    return Cards(
        cards=cards, driver=driver, cuda=cuda, problem="" if cards else "the NVIDIA driver sees no card"
    )


def _card(library: Any, index: int) -> Card:
    handle, memory = ctypes.c_void_p(), _Memory()
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    _call(library, "nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
    # boards that share the processor's memory do not tell theirs here
    told = _optional(library, "nvmlDeviceGetMemoryInfo", handle, memory)
    limit = _optional(library, "nvmlDeviceGetPowerManagementLimit", handle, ctypes.c_uint())
    width = _optional(library, "nvmlDeviceGetMemoryBusWidth", handle, ctypes.c_uint())
    clock = ctypes.c_uint()
    try:
        _call(library, "nvmlDeviceGetMaxClockInfo", handle, ctypes.c_uint(_MEMORY_CLOCK), ctypes.byref(clock))
    except (_CallError, AttributeError):
        clock.value = 0
    total, free = (int(memory.total), int(memory.free)) if told else (0, 0)
    if total > _MOST_BYTES or free > total:
        raise ValueError(f"a card with {free} of {total} bytes free")
    return Card(
        name=_text(library, "nvmlDeviceGetName", handle) or "card without a name",
        memory=total,
        free=free,
        capability=(major.value, minor.value),
        power_limit=limit.value / 1000 if limit else None,
        bandwidth=2e6 * clock.value * width.value / 8 if width else 0.0,
    )


def _text(library: Any, name: str, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(_BUFFER)
    _call(library, name, *arguments, buffer, ctypes.c_uint(_BUFFER))
    text = buffer.value.decode("utf-8", "replace")
    return "".join(one for one in text if one.isprintable()).strip()  # it goes to a terminal


def _optional(library: Any, name: str, handle: ctypes.c_void_p, answer: Any) -> Any:
    """What a call says that older drivers and some boards do not know, None there."""
    try:
        _call(library, name, handle, ctypes.byref(answer))
    except (_CallError, AttributeError):
        return None
    return answer
