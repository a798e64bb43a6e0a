"""Reading which GPUs a library has kernels for: on made-up libraries, laid out as nvcc's."""

import struct
from pathlib import Path

import pytest

from perfusion.devices.fat_binary import Kernels, read_kernels

PTX, CUBIN = 1, 2


def container(*entries: tuple[int, int]) -> bytes:
    """A container of the fat binary: (kind, architecture) of each entry, with some bytes of code."""
    body = b"".join(
        struct.pack("<HHIQIIII", kind, 0x101, 64, 40, 0, 0, 0, architecture).ljust(64, b"\0") + b"\xcc" * 40
        for kind, architecture in entries
    )
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def elf(section: bytes, name: bytes = b".nv_fatbin") -> bytes:
    """A library of Linux with two sections: the names, and the one that is looked for."""
    names = b"\0.shstrtab\0" + name + b"\0"
    at = 64 + len(names)
    table = at + len(section)
    rows = struct.pack("<IIQQQQ", 1, 3, 0, 0, 64, len(names)).ljust(64, b"\0")
    rows += struct.pack("<IIQQQQ", 11, 1, 0, 0, at, len(section)).ljust(64, b"\0")
    head = bytearray(b"\x7fELF\x02".ljust(64, b"\0"))
    struct.pack_into("<Q", head, 0x28, table)
    struct.pack_into("<HHH", head, 0x3A, 64, 2, 0)
    return bytes(head) + names + section + rows


def dll(section: bytes) -> bytes:
    """A library of Windows with one section."""
    head = bytearray(b"MZ".ljust(256, b"\0"))
    struct.pack_into("<I", head, 0x3C, 128)
    struct.pack_into("<4sHH", head, 128, b"PE\0\0", 0x8664, 1)
    struct.pack_into("<H", head, 128 + 20, 16)
    struct.pack_into("<8s8xII", head, 128 + 24 + 16, b".nv_fatb", len(section), 256)
    return bytes(head) + section


@pytest.mark.parametrize("library", [elf, dll], ids=["Linux", "Windows"])
def test_every_container_of_the_section_is_read(tmp_path, library):
    section = container((CUBIN, 86), (CUBIN, 90)) + b"\0" * 24 + container((CUBIN, 120), (PTX, 90))
    (tmp_path / "library").write_bytes(library(section))
    kernels = read_kernels(tmp_path / "library")
    assert kernels == Kernels(machine_code=frozenset({(8, 6), (9, 0), (12, 0)}), ptx=frozenset({(9, 0)}))
    assert str(kernels) == "sm_86, sm_90, sm_120"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ",
        b"\x7fELF\x02",
        b"text",
        elf(b""),
        elf(container((CUBIN, 86)), b".text_bytes"),
        elf(b"\0" * 100),
    ],
    ids=["empty", "cut dll", "cut elf", "text", "no entry", "another section", "zeros"],
)
def test_what_is_no_such_library_says_nothing(tmp_path, data):
    (tmp_path / "library").write_bytes(data)
    assert read_kernels(tmp_path / "library") is None
    assert read_kernels(Path("/no/such/library")) is None


@pytest.mark.parametrize("end", range(60, 400, 7))
def test_a_library_that_was_cut_anywhere_ends_in_no_error(tmp_path, end):
    (tmp_path / "library").write_bytes(elf(container((CUBIN, 86), (CUBIN, 90)))[:end])
    read_kernels(tmp_path / "library")


@pytest.mark.parametrize(
    "capability, served",
    [
        ((8, 6), True),
        ((8, 9), True),
        ((8, 0), False),
        ((8, 7), False),
        ((9, 0), True),
        ((12, 0), True),
        ((7, 5), False),
    ],
)
def test_machine_code_serves_its_own_major_number_and_ptx_all_that_is_newer(capability, served):
    """A board's GPU, 8.7, needs its own code: cards and boards share none."""
    assert Kernels(frozenset({(8, 6)}), frozenset({(9, 0)})).serve(capability) == served
    assert Kernels(frozenset({(8, 7)}), frozenset()).serve((8, 7))
    assert not Kernels(frozenset({(8, 7)}), frozenset()).serve((8, 9))
