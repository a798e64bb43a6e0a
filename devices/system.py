"""What a Linux system's files say about its machine. Every reader takes the root directory, and none ever fails.

A file that is missing, unreadable, enormous or not text is answered as if it said nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = [
    "AUTO_SHARE",
    "cores",
    "cpu_flags",
    "cpu_name",
    "cpu_quota",
    "desktop",
    "device_tree",
    "disk_swap",
    "free_disk",
    "gpu_clock",
    "in_container",
    "l4t_version",
    "meminfo",
    "power_mode",
    "read_text",
    "root_on_card",
    "usable_meminfo",
]

AUTO_SHARE = 0.9
"""The share of the free memory that drawing may take: a plan is right to about a tenth, and the rest of the machine
goes on living."""

_MOST_BYTES = 4 << 20
_MOST_PACKAGES = 16 << 20  # bytes of the list of installed packages, which usually has 3 to 6 MB
_MOST_MEMORY = 1 << 46  # 64 TiB; what tells more is not believed
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def read_text(path: Path, most: int = _MOST_BYTES) -> str:
    """The text of a file, "" where there is none.

    Control characters become spaces: device trees end their strings with NUL, and a terminal obeys others.
    """
    try:
        # a pipe would be waited for without end
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with open(path, "rb") as file:
            return _CONTROLS.sub(" ", file.read(most).decode("utf-8", "replace")).strip()
    except (OSError, ValueError):
        return ""


def device_tree(root: Path, name: str) -> str:
    """A property of the device tree's root: "model", "compatible", "nvidia,dtsfilename"."""
    return read_text(root / "proc/device-tree" / name) or read_text(
        root / "sys/firmware/devicetree/base" / name
    )


def l4t_version(root: Path) -> tuple[int, ...] | None:
    """The version of Jetson Linux, (36, 4, 3): from its own file or, as in some containers, from the package."""
    release = read_text(root / "etc/nv_tegra_release")
    match = re.search(r"R(\d{1,4})\s*\(release\),\s*REVISION:\s*(\d{1,4})\.(\d{1,4})", release)
    if not match:
        packages = "\n" + read_text(root / "var/lib/dpkg/status", _MOST_PACKAGES)
        entry = packages.partition("\nPackage: nvidia-l4t-core\n")[2].partition("\n\n")[0]
        match = re.search(r"^Version: (\d{1,4})\.(\d{1,4})\.(\d{1,4})", entry, re.M)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes: "MemTotal", "MemAvailable", "SwapTotal", "SwapFree" and the rest of it.

    Empty where its total is none that a machine has.
    """
    entries = re.findall(r"^(\w+):\s+(\d{1,15}) kB$", read_text(root / "proc/meminfo"), re.M)
    sizes = {name: int(size) * 1024 for name, size in entries}
    return sizes if 0 < sizes.get("MemTotal", 1) <= _MOST_MEMORY else {}


def usable_meminfo(root: Path) -> dict[str, int]:
    """`meminfo`, its total and what is available cut down to what this process may have of it.

    Every control group from the process's own up to the root sets a limit: a container's, a systemd service's, a job's.
    """
    sizes = meminfo(root)
    for limit, left in _group_limits(root):
        for name, most in (("MemTotal", limit), ("MemAvailable", left)):
            if name in sizes:
                sizes[name] = min(sizes[name], most)
    return sizes


_GROUPS = (  # version 2, then 1: where they lie, the files of the limit and of what is used, and what gives way
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """The memory limit of each control group that this process is in, and what is left of it."""
    for kind, mount, *names, cached in _GROUPS:
        for folder in _group_folders(root, kind, mount):
            limit, used = (re.fullmatch(r"\d{1,18}", read_text(folder / name)) for name in names)
            if limit and int(limit[0]):
                given_way = re.search(rf"^{cached} (\d{{1,18}})$", read_text(folder / "memory.stat"), re.M)
                taken = int(used[0]) - (int(given_way[1]) if given_way else 0) if used else 0
                yield int(limit[0]), max(0, int(limit[0]) - max(0, taken))


def cpu_quota(root: Path) -> float | None:
    """How many processors' time the control groups of this process leave it, such as 1.5; None without a limit."""
    quotas = [_ratio(read_text(folder / "cpu.max")) for folder in _group_folders(root, "", "sys/fs/cgroup")]
    for folder in _group_folders(root, "cpu", "sys/fs/cgroup/cpu"):  # version 1
        quotas.append(
            _ratio(" ".join(read_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")))
        )
    return min((quota for quota in quotas if quota is not None), default=None)


def _ratio(text: str) -> float | None:
    """150000 100000 is 1.5; None for what begins with "max" or -1, which is no limit."""
    match = re.fullmatch(r"(\d{1,12}) (\d{1,12})", text)
    return int(match[1]) / int(match[2]) if match and int(match[1]) and int(match[2]) else None


def _group_folders(root: Path, kind: str, mount: str) -> Iterator[Path]:
    """The folders of this process's control group and of those that it is in, up to the mount."""
    own = root / mount / _own_groups(root)[kind]
    for folder in (own, *own.parents):
        yield folder
        if folder == root / mount:
            return


def _own_groups(root: Path) -> dict[str, PurePosixPath]:
    """This process's control group of version 2 (""), and those of version 1 by kind, relative to their mounts.

    In a container /proc names the group as the host sees it, or "/" and "/../..", where the mount is the group itself.
    """
    groups = {"": PurePosixPath(), "memory": PurePosixPath(), "cpu": PurePosixPath()}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for name in controllers.split(","):
            if name in groups and ".." not in path.split("/"):
                groups[name] = PurePosixPath(path.strip("/ "))
    return groups


def power_mode(root: Path) -> tuple[str, str] | None:
    """A Jetson's power mode and the one without limits: ("15W", "MAXN_SUPER"). None where it is not told."""
    status = re.search(r"pmode:(\d{1,4})\b", read_text(root / "var/lib/nvpmodel/status"))
    models = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([^\s>]+)", read_text(root / "etc/nvpmodel.conf"), re.M
    )
    names = {int(number): name for number, name in models}
    if not status or int(status[1]) not in names:
        return None
    best = next((name for name in names.values() if "MAXN" in name.upper()), "")
    return names[int(status[1])], best


def gpu_clock(root: Path) -> tuple[int, int] | None:
    """The lowest and the highest clock in Hz that the GPU of a board may take now. None where it is not told."""
    for folder in sorted(root.glob("sys/class/devfreq/*")):
        if re.search(r"gpu|ga10b|gv11b|gb10b", folder.name):
            lowest, highest = (
                re.fullmatch(r"\d{1,12}", read_text(folder / name)) for name in ("min_freq", "max_freq")
            )
            if lowest and highest:
                return int(lowest[0]), int(highest[0])
    return None


_DESKTOPS = {"Xorg", "Xwayland", "gnome-shell", "kwin_wayland", "weston", "lxqt-session", "xfce4-session"}


def desktop(root: Path) -> str:
    """The name of a running program that draws a desktop, "" where there is none or in a container that hides it."""
    programs = (read_text(path, 64) for path in sorted(root.glob("proc/[0-9]*/comm")))
    return next((name for name in programs if name in _DESKTOPS), "")


def root_on_card(root: Path) -> str:
    """The device that / is on where that is an SD card, such as "/dev/mmcblk1p1"; "" elsewhere, also on eMMC."""
    match = re.search(r"^/dev/(mmcblk\d{1,3})(p\d{1,3})? / ", read_text(root / "proc/self/mounts"), re.M)
    if match is None or read_text(root / "sys/block" / match[1] / "device/type") != "SD":
        return ""
    return f"/dev/{match[1]}{match[2] or ''}"


def disk_swap(root: Path) -> int | None:
    """Bytes of swap that are on a disk and not compressed memory. None where /proc/swaps tells nothing."""
    table = read_text(root / "proc/swaps")
    rows = re.findall(r"^(/\S+)\s+(?:partition|file)\s+(\d{1,15})\s", table, re.M)
    return sum(int(size) * 1024 for name, size in rows if "zram" not in name) if table else None


def cores(root: Path) -> int:
    """Cores this process may use: those it may run on, on the real system, and no more than a container's quota."""
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        listed = len(re.findall(r"^processor\s*:", read_text(root / "proc/cpuinfo"), re.M))
        count = listed or (os.cpu_count() or 1 if root == Path("/") else 1)
    quota = cpu_quota(root)
    return count if quota is None else max(1, min(count, int(quota)))


def cpu_name(root: Path) -> str:
    """The processor's name as Linux tells it, "" where it does not."""
    match = re.search(r"^model name\s*:\s*(.+)$", read_text(root / "proc/cpuinfo"), re.M)
    return " ".join(match[1].split()) if match else ""


def cpu_flags(root: Path) -> tuple[str, ...]:
    """The processor's instructions as Linux names them ("avx2", "avx512_bf16", "asimd"), () where it does not."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", read_text(root / "proc/cpuinfo"), re.M)
    return tuple(sorted(set(match[1].split()))) if match else ()


def in_container(root: Path) -> bool:
    """Whether this is a container, as far as its files tell."""
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return True
    return bool(re.search(r"docker|containerd|kubepods|libpod", read_text(root / "proc/1/cgroup")))


def free_disk(path: Path) -> int | None:
    """Bytes free where `path` is or would be."""
    for folder in (path, *path.parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None
