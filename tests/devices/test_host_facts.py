"""Memory and processor on Windows and macOS, whose libraries are doubles here that fill memory as the headers say."""

import ctypes
import struct
import sys

import pytest

from perfusion.devices import detect
from perfusion.devices.host_facts import main_memory, processor_name
from perfusion.runtime.compute.residency import free_memory

GIB = 1 << 30


class Kernel32:
    """GlobalMemoryStatusEx of sysinfoapi.h: refuses a structure of another length, as Windows does."""

    def __init__(self, total, available, total_commit, available_commit, works=True):
        self.works = works
        self.numbers = (total, available, total_commit, available_commit, 1 << 47, 1 << 46, 0)

    def GlobalMemoryStatusEx(self, reference):  # noqa: N802
        place = ctypes.addressof(reference._obj)
        if not self.works or struct.unpack("<I", ctypes.string_at(place, 4)) != (64,):
            return 0
        ctypes.memmove(place, struct.pack("<II7Q", 64, 41, *self.numbers), 64)
        return 1


@pytest.fixture
def windows(monkeypatch):
    def make(*numbers, **options):
        monkeypatch.setattr("sys.platform", "win32")
        library = Kernel32(*numbers, **options)
        monkeypatch.setattr(
            ctypes, "WinDLL", lambda name, use_last_error: {"kernel32": library}[name], raising=False
        )

    return make


def test_windows_tells_its_memory(windows):
    windows(32 * GIB, 20 * GIB, 36 * GIB, 22 * GIB)
    assert main_memory() == {"MemTotal": 32 * GIB, "MemAvailable": 20 * GIB, "SwapTotal": 4 * GIB}
    assert free_memory() == 20 * GIB
    machine = detect(cards=type(detect().cards))
    assert machine.profile is not None
    assert (machine.profile.memory, machine.free) == (32 * GIB, 20 * GIB)


def test_what_windows_promises_to_back_is_all_there_is(windows):
    windows(32 * GIB, 20 * GIB, 33 * GIB, 3 * GIB)
    assert free_memory() == 3 * GIB


def test_a_call_that_windows_refuses_is_memory_not_told(windows):
    windows(32 * GIB, 20 * GIB, 36 * GIB, 22 * GIB, works=False)
    assert main_memory() == {}
    assert free_memory() is None
    machine = detect(cards=type(detect().cards))
    assert machine.profile is not None
    assert "does not tell its memory" in machine.profile.note


class System:
    """macOS' libSystem: sysctlbyname and host_statistics64, whose structure begins with the counts of pages."""

    def __init__(self, pages=(1000, 5000, 3000, 700), fails=()):
        self.pages, self.fails = pages, fails
        self.values = {
            b"hw.memsize": struct.pack("=Q", 16 * GIB),
            b"hw.pagesize": struct.pack("=I", 16384),  # some releases answer with four bytes
            b"machdep.cpu.brand_string": b"Apple M2\0",
        }
        self.mach_host_self = Call(lambda: 4099)

    def sysctlbyname(self, name, value, length, new, new_length):
        answer = self.values.get(name)
        if name in self.fails or answer is None or length._obj.value < len(answer):
            return -1
        ctypes.memmove(value, answer, len(answer))
        length._obj.value = len(answer)
        return 0

    def host_statistics64(self, host, flavour, statistics, count):
        assert (host.value, flavour) == (4099, 4)
        if "host_statistics64" in self.fails or count._obj.value < 38 or ctypes.sizeof(statistics) < 152:
            return 5  # KERN_FAILURE
        ctypes.memmove(statistics, struct.pack("=4I", *self.pages) + bytes(136), 152)
        return 0


class Call:
    """A function of a library, whose kind of answer can be set."""

    def __init__(self, body):
        self.body, self.restype = body, None

    def __call__(self):
        return self.body()


@pytest.fixture
def macos(monkeypatch):
    def make(**options):
        monkeypatch.setattr("sys.platform", "darwin")
        library = System(**options)
        monkeypatch.setattr(ctypes, "CDLL", lambda name: library)

    return make


def test_macos_tells_its_memory_and_its_processor(macos):
    macos()
    assert main_memory() == {"MemTotal": 16 * GIB, "MemAvailable": 4000 * 16384}
    assert free_memory() == 4000 * 16384
    assert processor_name() == "Apple M2"


@pytest.mark.parametrize("fails", ["host_statistics64", b"hw.memsize", b"hw.pagesize"])
def test_a_call_that_macos_refuses_is_memory_not_told(macos, fails):
    macos(fails=(fails,))
    assert main_memory() == {}


def test_a_library_without_these_calls_is_no_error(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert (main_memory(), processor_name()) == ({}, "")


def test_windows_tells_its_processor_in_the_environment(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("PROCESSOR_IDENTIFIER", "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD")
    assert processor_name() == "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD"


@pytest.mark.skipif(sys.platform not in ("linux", "win32", "darwin"), reason="a system that nobody has asked")
def test_this_very_machine_tells_its_memory():
    sizes = main_memory()
    assert 0 < sizes["MemAvailable"] <= sizes["MemTotal"]
