"""Which GPUs a CUDA library has kernels for, read from its fat binary: no GPU, no driver, no CUDA tools.

nvcc puts the kernels of all architectures into one section of the library, ".nv_fatbin" in ELF and ".nv_fatb" in a DLL.
It is a chain of containers; each begins with a magic number and holds entries of machine code (a cubin) or of PTX, the
language that a driver compiles. The layout is not published; it was read off onnxruntime-gpu's libraries and is checked
against one in the tests.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Kernels", "read_kernels"]

Capability = tuple[int, int]

_MAGIC = 0xBA55ED50
_PTX, _CUBIN = 1, 2
_CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of the header, bytes of the entries
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, bytes of the header, bytes of the code, architecture
_TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
"""GPUs of boards. Machine code is not shared between them and the cards, even of one major number."""


@dataclass(frozen=True)
class Kernels:
    """What a library has code for, as compute capabilities."""

    machine_code: frozenset[Capability]
    ptx: frozenset[Capability]

    def serve(self, capability: Capability) -> bool:
        """Whether a GPU can run them: machine code of its major number and a minor one that is not newer, or older PTX.

        Source: the CUDA C++ programming guide, binary and PTX compatibility.
        """
        if capability in _TEGRA:
            binary = capability in self.machine_code
        else:
            binary = any(
                major == capability[0] and minor <= capability[1] and (major, minor) not in _TEGRA
                for major, minor in self.machine_code
            )
        return binary or any(least <= capability for least in self.ptx)

    def __str__(self) -> str:
        return ", ".join(f"sm_{major}{minor}" for major, minor in sorted(self.machine_code | self.ptx))


def read_kernels(library: Path) -> Kernels | None:
    """The kernels of a library; None where it cannot be read, or holds no fat binary that is understood.

    The file is mapped, and only headers are looked at: milliseconds for hundreds of megabytes.
    """
    kernels: dict[int, set[Capability]] = {_CUBIN: set(), _PTX: set()}
    with (
        suppress(OSError, ValueError, struct.error, IndexError),
        open(library, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for start, end in _sections(data):
            for kind, architecture in _entries(data, start, min(end, len(data))):
                if kind in kernels:
                    kernels[kind].add(divmod(architecture, 10))
    if not any(kernels.values()):
        return None
    return Kernels(machine_code=frozenset(kernels[_CUBIN]), ptx=frozenset(kernels[_PTX]))


def _sections(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where the fat binaries begin and end, in a library of 64 bits."""
    if data[:5] == b"\x7fELF\x02":
        (table,) = struct.unpack_from("<Q", data, 0x28)
        size, count, names = struct.unpack_from("<HHH", data, 0x3A)
        rows = [struct.unpack_from("<II8x8xQQ", data, table + at * size) for at in range(count)]
        for name, _, offset, length in rows:
            start = rows[names][2] + name
            if data[start : start + 11] == b".nv_fatbin\0":
                yield offset, offset + length
    elif data[:2] == b"MZ":
        (header,) = struct.unpack_from("<I", data, 0x3C)
        count, optional = struct.unpack_from("<2xH12xH", data, header + 4)
        for at in range(count):
            name, length, offset = struct.unpack_from("<8s8xII", data, header + 24 + optional + 40 * at)
            if name == b".nv_fatb":
                yield offset, offset + length


def _entries(data: mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int]]:
    """Kind and architecture (87 for sm_87) of each entry of the containers between two places."""
    while at + _CONTAINER.size <= end:
        magic, _, header, length = _CONTAINER.unpack_from(data, at)
        if magic != _MAGIC:  # containers begin at multiples of eight
            at += 8
            continue
        entry, last = at + header, min(at + header + length, end)
        while entry + _ENTRY.size <= last:
            kind, _, size, code, architecture = _ENTRY.unpack_from(data, entry)
            yield kind, architecture
            entry += max(size + code, 8)
        at = max(last, at + 8)
