"""What is known of each device before it is touched: one row a device, each with where its numbers come from.

A number without a primary source is left out and reads 0; what needs it says that it is not known.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from perfusion.errors import DeviceError

__all__ = ["PROFILES", "SOURCES", "DeviceProfile", "Kind", "find_profile", "processor_profile"]

Kind = Literal["jetson", "rtx", "datacenter", "cpu"]
GIB = 1 << 30

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "module": "NVIDIA's data sheets of the Jetson modules: memory, its bandwidth, and a quarter of the sparse INT8 "
        "TOPS; of AGX Orin those of the GPU alone (github.com/NVIDIA/Deep-Learning-Accelerator-SW), of Thor an eighth "
        "of the sparse FP4 TFLOPS",
        "driver": "what NVIDIA's deviceQuery prints on the device: memory, bandwidth (twice the memory's clock times "
        "the width of its bus), multiprocessors and highest clock",
        "laptops": "www.nvidia.com/de-de/geforce/gaming-laptops/compare: memory, width of its bus, cores (128 in a "
        "multiprocessor), highest clock; the memory's clock by deviceQuery",
        "sheet": "NVIDIA's data sheets of the accelerators, as NVIDIA's own table has them "
        "(github.com/NVIDIA/TensorRT-LLM, tensorrt_llm/auto_parallel/cluster_info.py)",
        "memory": "the memory that nvidia-smi prints on the device; nothing of its speed",
        "assumed": "nothing: a placeholder until the machine itself is read",
    }
)


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """One device: what it has, and what can be built for it."""

    name: str
    title: str
    kind: Kind
    compute_capability: tuple[int, int] | None
    memory: int  # bytes; shared with the processor where `unified`
    unified: bool
    bandwidth: float  # bytes/s of that memory; 0 where not known
    fp16_flops: float  # FLOP/s, dense, added up in float32 (on "cpu" all of it float32); 0 where not known
    precisions: tuple[str, ...]
    engines: tuple[str, ...]  # of "onnx", "trt", "trt-rtx"
    source: str  # a key of SOURCES
    note: str = ""

    @property
    def workspace(self) -> int:
        """The most bytes an engine builder may use as scratch memory: an eighth, at most 4 GiB."""
        return min(self.memory // 8, 4 * GIB)

    @property
    def optimization_level(self) -> int | None:
        """The builder's effort, 0 to 5; None: TensorRT's own, 3.

        Boards whose 8 GB are the processor's too get 2, the last level that tests only the most promising kernels:
        what a build takes there in time and memory, the machine is without. Not measured on one.
        """
        return 2 if self.unified and self.memory <= 8 * GIB and self.kind == "jetson" else None

    @property
    def build_cores(self) -> int | None:
        """Cores of the processor for a build; None: all. Builds on all of them have restarted boards of 8 GB."""
        return 1 if self.optimization_level is not None else None

    @property
    def usable(self) -> int:
        """Bytes left for us on a machine that does nothing else."""
        return max(0, self.memory - _RESERVED[self.kind])

    @property
    def precision(self) -> str:
        """The precision to export for: half where the graphs run on a GPU."""
        return "fp32" if self.kind == "cpu" or "fp16" not in self.precisions else "fp16"

    @property
    def engine(self) -> str:
        """What the graphs run best as here."""
        if len(self.engines) == 1:
            return "onnx"
        return "trt-rtx" if self.kind == "rtx" and "trt-rtx" in self.engines else "trt"


# A headless Orin with 8 GB has 6.1 GiB free; a card holds back a little for its driver and a screen.
_RESERVED: Mapping[str, int] = {
    "jetson": int(1.9 * GIB),
    "rtx": int(0.6 * GIB),
    "datacenter": int(0.6 * GIB),
    "cpu": GIB,
}

_PRECISIONS: Mapping[tuple[int, int], tuple[str, ...]] = {
    (7, 5): ("fp32", "fp16", "int8"),
    (8, 0): ("fp32", "fp16", "bf16", "int8"),
    (8, 6): ("fp32", "fp16", "bf16", "int8"),
    (8, 7): ("fp32", "fp16", "bf16", "int8"),
    (8, 9): ("fp32", "fp16", "bf16", "int8", "fp8"),
    (9, 0): ("fp32", "fp16", "bf16", "int8", "fp8"),
    (11, 0): ("fp32", "fp16", "bf16", "int8", "fp8", "fp4"),
    (12, 0): ("fp32", "fp16", "bf16", "int8", "fp8", "fp4"),
    (12, 1): ("fp32", "fp16", "bf16", "int8", "fp8", "fp4"),
}
_RTX = {(7, 5), (8, 0), (8, 6), (8, 9), (12, 0)}  # what TensorRT for RTX runs on; it has no release for Arm

# GFLOP/s: of fp16 products added up in float32, dense: as stated, or multiprocessors × GHz × operations of one in a
# clock. These are 512 on GeForce cards (NVIDIA's architecture whitepapers state 53.8 TFLOP/s for the RTX 2080 Ti, 71
# for the 3090, 165.2 for the 4090, 209.5 for the 5090) and half of the dense INT8 rate on Orin, as on the A100.
# A dash: no primary source was at hand.
_TABLE = """
name                kind        sm    GiB  GB/s  GFLOP/s         source   title
orin-nano-4         jetson      8.7   4    34    5000            module   Jetson Orin Nano 4 GB
orin-nano-4-super   jetson      8.7   4    51    8500            module   Jetson Orin Nano 4 GB Super
orin-nano-8         jetson      8.7   8    68    10000           module   Jetson Orin Nano 8 GB
orin-nano-8-super   jetson      8.7   8    102   16750           module   Jetson Orin Nano 8 GB Super
orin-nx-8           jetson      8.7   8    -     8*0.765*2048    driver   Jetson Orin NX 8 GB
orin-nx-16          jetson      8.7   16   -     8*0.918*2048    driver   Jetson Orin NX 16 GB
agx-orin-32         jetson      8.7   32   205   -               module   Jetson AGX Orin 32 GB
agx-orin-64         jetson      8.7   64   205   42750           module   Jetson AGX Orin 64 GB
agx-thor            jetson      11.0  128  273   258750          module   Jetson AGX Thor (T5000)
xavier-nx-8         jetson      7.2   8    -     -               module   Jetson Xavier NX 8 GB
xavier-nx-16        jetson      7.2   16   -     -               module   Jetson Xavier NX 16 GB
agx-xavier-32       jetson      7.2   32   137   -               module   Jetson AGX Xavier 32 GB
agx-xavier-64       jetson      7.2   64   137   -               module   Jetson AGX Xavier 64 GB
rtx-2060            rtx         7.5   6    336   30*1.680*512    driver   GeForce RTX 2060
rtx-2070            rtx         7.5   8    448   36*1.710*512    driver   GeForce RTX 2070
rtx-2080            rtx         7.5   8    448   46*1.800*512    driver   GeForce RTX 2080
rtx-2080-ti         rtx         7.5   11   616   68*1.545*512    driver   GeForce RTX 2080 Ti
rtx-3060            rtx         8.6   12   360   28*1.777*512    driver   GeForce RTX 3060
rtx-3060-ti         rtx         8.6   8    -     -               memory   GeForce RTX 3060 Ti
rtx-3070            rtx         8.6   8    448   46*1.725*512    driver   GeForce RTX 3070
rtx-3070-ti         rtx         8.6   8    -     -               memory   GeForce RTX 3070 Ti
rtx-3080            rtx         8.6   10   760   68*1.710*512    driver   GeForce RTX 3080
rtx-3090            rtx         8.6   24   936   82*1.695*512    driver   GeForce RTX 3090
rtx-4060            rtx         8.9   8    -     -               memory   GeForce RTX 4060
rtx-4060-ti-16      rtx         8.9   16   288   34*2.535*512    driver   GeForce RTX 4060 Ti 16 GB
rtx-4070            rtx         8.9   12   -     -               memory   GeForce RTX 4070
rtx-4070-super      rtx         8.9   12   -     -               memory   GeForce RTX 4070 SUPER
rtx-4070-ti         rtx         8.9   12   -     -               memory   GeForce RTX 4070 Ti
rtx-4080            rtx         8.9   16   -     -               memory   GeForce RTX 4080
rtx-4080-super      rtx         8.9   16   -     -               memory   GeForce RTX 4080 SUPER
rtx-4090            rtx         8.9   24   1008  128*2.520*512   driver   GeForce RTX 4090
rtx-5060            rtx         12.0  8    448   30*2.565*512    driver   GeForce RTX 5060
rtx-5070            rtx         12.0  12   -     -               memory   GeForce RTX 5070
rtx-5070-ti         rtx         12.0  16   -     -               memory   GeForce RTX 5070 Ti
rtx-5080            rtx         12.0  16   -     -               memory   GeForce RTX 5080
rtx-5090            rtx         12.0  32   1792  170*2.407*512   driver   GeForce RTX 5090
rtx-3060-laptop     rtx         8.6   6    336   30*1.425*512    driver   GeForce RTX 3060 Laptop GPU
rtx-4050-laptop     rtx         8.9   6    192   20*2.370*512    laptops  GeForce RTX 4050 Laptop GPU
rtx-4060-laptop     rtx         8.9   8    256   24*2.370*512    laptops  GeForce RTX 4060 Laptop GPU
rtx-4070-laptop     rtx         8.9   8    256   36*2.175*512    laptops  GeForce RTX 4070 Laptop GPU
rtx-4080-laptop     rtx         8.9   12   -     58*2.280*512    laptops  GeForce RTX 4080 Laptop GPU
rtx-4090-laptop     rtx         8.9   16   576   76*2.040*512    laptops  GeForce RTX 4090 Laptop GPU
rtx-5070-laptop     rtx         12.0  8    -     -               memory   GeForce RTX 5070 Laptop GPU
rtx-5070-ti-laptop  rtx         12.0  12   -     -               memory   GeForce RTX 5070 Ti Laptop GPU
rtx-5080-laptop     rtx         12.0  16   -     -               memory   GeForce RTX 5080 Laptop GPU
rtx-5090-laptop     rtx         12.0  24   -     -               memory   GeForce RTX 5090 Laptop GPU
rtx-a2000-6         rtx         8.6   6    -     -               memory   RTX A2000 6GB
rtx-a2000-12        rtx         8.6   12   -     -               memory   RTX A2000 12GB
rtx-a4000           rtx         8.6   16   -     -               memory   RTX A4000
rtx-a4500           rtx         8.6   20   -     -               memory   RTX A4500
rtx-a5000           rtx         8.6   24   -     -               memory   RTX A5000
rtx-a6000           rtx         8.6   48   -     -               memory   RTX A6000
dgx-spark           rtx         12.1  128  -     -               driver   DGX Spark (GB10)
t4                  datacenter  7.5   15   -     -               memory   Tesla T4
l4                  datacenter  8.9   22   -     -               memory   L4
a100-40             datacenter  8.0   40   1555  312000          sheet    A100 40 GB
a100-80             datacenter  8.0   80   2039  312000          sheet    A100 80 GB (SXM)
h100-80             datacenter  9.0   80   3350  989000          sheet    H100 80 GB (SXM)
h200                datacenter  9.0   141  4800  989000          sheet    H200 141 GB (SXM)
"""
_XAVIER = "JetPack 5 with TensorRT 8 is its last, so no engine of ours loads there and the graphs run on the processor"
_HALF_BUS = "half the 8 GB module's bandwidth: its memory bus is 64 bits wide, not 128"
_NOTES: Mapping[str, str] = {
    "orin-nano-4": _HALF_BUS,
    "orin-nano-4-super": _HALF_BUS,
    **dict.fromkeys(("xavier-nx-8", "xavier-nx-16", "agx-xavier-32", "agx-xavier-64"), _XAVIER),
}


def find_profile(name: str) -> DeviceProfile:
    """The profile that people mean by a name: "rtx-4070", "NVIDIA GeForce RTX 4070 12GB", "Jetson Orin Nano 8GB Super".

    Neither the order of the words nor the maker matters. The memory may be said where no profile's name says it.

    Raises:
        DeviceError: there is none; the message has the nearest names.
    """
    words = _words(str(name))
    fits: list[tuple[int, DeviceProfile]] = []
    near: list[str] = []
    for profile in PROFILES.values():
        title = _words(profile.title)
        least, most = _words(profile.name), _words(profile.name) | title | {str(profile.memory // GIB)}
        if words == title or least <= words <= most:
            fits.append((len(least), profile))
        elif words and words <= most:
            near.append(profile.name)
    if fits:  # of the RTX 4070 and its laptop's the one that more of the words name
        return max(fits, key=lambda fit: fit[0])[1]
    near = near or difflib.get_close_matches("-".join(str(name).lower().split()), PROFILES, n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(near[:4])}?" if near else "`perfusion-devices list` has them all."
    raise DeviceError(f"There is no device profile named {str(name)[:60]!r}. {meant}")


def _words(name: str) -> frozenset[str]:
    """Of a device's name, without those that tell it from no other."""
    apart = re.sub(r"\brtx(?=[a\d])", "rtx ", re.sub(r"(\d)\s*gi?b\b", r"\1", name.lower()))
    return frozenset(re.findall(r"[a-z0-9]+", apart)) - {
        "nvidia", "geforce", "jetson", "gpu", "module", "developer", "kit",
    }  # fmt: skip


def processor_profile(*, cores: int, memory: int | None, title: str = "") -> DeviceProfile:
    """The profile "cpu" for a machine with that many cores and bytes of memory; None: the system does not tell it.

    Throughput and bandwidth are those of one core of the machine in benchmarks/records/plan-*.json, scaled by the
    cores (the bandwidth no further than four: a memory is soon full).
    """
    generic = PROFILES["cpu"]
    note = "throughput and bandwidth are those of one core of an AMD EPYC, times the cores"
    if memory is None:
        note += f"; the system does not tell its memory, and {generic.memory // GIB} GiB are assumed"
    return replace(
        generic,
        title=title or generic.title,
        note=note,
        memory=generic.memory if memory is None else memory,
        fp16_flops=_CORE_FLOPS * max(1, cores),
        bandwidth=_CORE_BANDWIDTH * min(max(1, cores), 4),
    )


_CORE_FLOPS, _CORE_BANDWIDTH = 180e9, 40e9  # float32; fitted to one core of an AMD EPYC with AVX-512


_KINDS: Mapping[str, Kind] = {"jetson": "jetson", "rtx": "rtx", "datacenter": "datacenter"}


def _profile(line: str) -> DeviceProfile:
    """One line of the table."""
    name, kind, sm, gib, *numbers, source, title = line.split(maxsplit=7)
    bandwidth, flops = (
        0.0 if field == "-" else math.prod(map(float, field.split("*"))) * 1e9 for field in numbers
    )
    major, minor = map(int, sm.split("."))
    capability = (major, minor)
    engines = ("onnx",) if capability < (7, 5) else ("onnx", "trt")
    return DeviceProfile(
        name=name,
        title=title,
        kind=_KINDS[kind],
        compute_capability=capability,
        memory=int(gib) * GIB,
        unified=kind == "jetson" or capability == (12, 1),
        bandwidth=bandwidth,
        fp16_flops=flops,
        precisions=_PRECISIONS.get(capability, ("fp32", "int8")),
        engines=(*engines, "trt-rtx") if capability in _RTX else engines,
        source=source,
        note=_NOTES.get(name, ""),
    )


_CPU = DeviceProfile(
    name="cpu",
    title="Any processor",
    kind="cpu",
    compute_capability=None,
    memory=8 * GIB,
    unified=True,
    bandwidth=_CORE_BANDWIDTH * 4,
    fp16_flops=_CORE_FLOPS * 4,
    precisions=("fp32", "int8"),
    engines=("onnx",),
    source="assumed",
    note="four cores and 8 GB stand here for a machine that is not known; `detect` reads the real ones",
)

PROFILES: Mapping[str, DeviceProfile] = MappingProxyType(
    {profile.name: profile for profile in (*map(_profile, _TABLE.strip().splitlines()[1:]), _CPU)}
)
