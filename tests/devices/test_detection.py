"""Which machine is found on file systems and with drivers that are made up."""

import os
import stat
import subprocess
import sys

import pytest

from perfusion.devices import PROFILES, detect, system
from perfusion.devices.jetpack import JETPACKS, MODULES, find_jetpack
from perfusion.devices.nvml import Card, Cards, read_cards

GIB = 1 << 30


def profile_of(found):
    """The profile, where there must be one."""
    assert found.profile is not None
    return found.profile


def memory_of(name):
    """What /proc/meminfo shows on such a module, in GiB: some of it is kept back."""
    return PROFILES[name].memory / GIB * 0.94


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in MODULES.items() for name in names]
)
def test_every_module_of_the_table_is_found_by_its_part_number(make_root, module, name):
    found = detect(make_root(module=module, model="NVIDIA Jetson", l4t="36.4.3", memory=memory_of(name)))
    assert found.profile is PROFILES[name]
    assert found.jetpack is not None and found.jetpack.version == "6.2"


@pytest.mark.parametrize("l4t", JETPACKS, ids=lambda l4t: ".".join(map(str, l4t)))
def test_every_jetpack_of_the_table_is_found_by_its_release_file(make_root, l4t):
    found = detect(make_root(module="p3767-0003", l4t=".".join(map(str, l4t))))
    assert found.jetpack is JETPACKS[l4t]
    assert found.facts["jetpack"] == JETPACKS[l4t].version
    assert found.facts["tensorrt"] == ".".join(map(str, JETPACKS[l4t].tensorrt))


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ((36, 4, 7), "6.2.1"),
        ((36, 5, 0), "6.2.2"),
        ((36, 5, 2), "6.2.3"),
        ((39, 2, 0), "7.2"),
        ((39, 2, 1), "7.2.1"),
        ((39, 2, 2), "7.2.2"),
    ],
)
def test_releases_are_those_that_jetson_stats_lists(l4t, version):
    assert getattr(find_jetpack(l4t), "version", None) == version


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ((36, 4, 6), "6.2.1"),
        ((36, 4, 1), "6.1"),
        ((36, 2, 0), None),
        ((39, 2, 9), "7.2.2"),
        ((39, 1, 0), "7.2 EA"),
        ((36, 5, 1), "6.2.2"),
        ((32, 7, 4), None),
        ((40, 1, 0), None),
    ],
)
def test_a_release_between_two_rows_belongs_to_the_older_and_one_outside_to_none(l4t, version):
    assert getattr(find_jetpack(l4t), "version", None) == version


@pytest.mark.parametrize("said", ["module", "model"])
def test_super_boards_are_told_by_either_of_their_two_names(make_root, said):
    model = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
    names = {
        "module": {"module": "p3767-0005-super", "model": model},
        "model": {"module": "p3767-0005", "model": model + " Super"},
    }
    assert detect(make_root(l4t="36.4.3", **names[said])).profile is PROFILES["orin-nano-8-super"]


def test_a_module_with_two_sizes_is_taken_for_the_smaller_where_its_memory_is_not_told(make_root):
    assert (
        detect(make_root(module="p3701-0000", l4t="36.4.3", memory=None)).profile is PROFILES["agx-orin-32"]
    )


def test_a_smaller_module_of_a_name_in_the_table_has_the_memory_that_linux_tells(make_root):
    found = detect(make_root(model="NVIDIA Jetson Thor T4000", soc="tegra264", l4t="38.4.0", memory=61))
    assert profile_of(found).name == "agx-thor"
    assert profile_of(found).memory == found.memory["MemTotal"]
    assert "less than usual" in profile_of(found).note


def test_a_carrier_with_strings_of_its_own_is_told_by_its_models_words_and_its_memory(make_root):
    root = make_root(model="ACME Jetson Orin NX carrier", l4t="36.3.0", memory=15.3)
    assert detect(root).profile is PROFILES["orin-nx-16"]


def test_a_jetson_that_no_table_knows_has_no_profile_and_still_has_its_facts(make_root):
    found = detect(make_root(module="p9999-0000", model="NVIDIA Jetson Next", soc="tegra300", l4t="41.1.0"))
    assert found.profile is None
    assert found.facts["machine"] == "NVIDIA Jetson Next"
    assert found.facts["jetpack"] == "not in the table"


def test_a_container_without_the_release_file_is_told_by_its_packages(make_root):
    status = (
        "Package: libc6\nStatus: install ok installed\nVersion: 2.35-0ubuntu3\n\n"
        "Package: nvidia-l4t-core\nStatus: install ok installed\nArchitecture: arm64\n"
        "Version: 36.4.3-20250107174145\n\nPackage: zlib1g\nVersion: 1.2.11\n"
    )
    root = make_root(
        files={"var/lib/dpkg/status": status, "proc/device-tree/compatible": "nvidia,p3767-0003\0"}
    )
    found = detect(root)
    assert found.l4t == (36, 4, 3)
    assert found.profile is PROFILES["orin-nano-8"]


def test_another_packages_version_is_not_taken_for_jetson_linux(make_root):
    status = (
        "Package: nvidia-l4t-core\nStatus: deinstall ok config-files\n\nPackage: bash\nVersion: 5.1.0-6\n"
    )
    assert system.l4t_version(make_root(files={"var/lib/dpkg/status": status})) is None


def test_a_container_without_a_device_tree_is_a_processor(make_root):
    cpu = "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1\n\nprocessor\t: 1\nmodel name\t: ARMv8\n"
    root = make_root(memory=3.0, free=2.0, files={"proc/cpuinfo": cpu, ".dockerenv": ""})
    found = detect(root)
    assert profile_of(found).kind == "cpu"
    assert profile_of(found).memory == found.memory["MemTotal"]
    assert found.facts["cores"] == 2
    assert found.facts["container"] is True


def test_an_empty_file_system_is_still_some_processor(tmp_path):
    found = detect(tmp_path)
    assert profile_of(found).kind == "cpu"
    assert found.free is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xfe\x00\x00nonsense",
        b"",
        b"R99999999999999999999 (release), REVISION: x.y",
        b"MemTotal: many kB",
        b"R" + b"9" * 5000 + b" (release), REVISION: 4.3",
        b"Package: nvidia-l4t-core\nVersion: " + b"9" * 5000 + b".1.1\n",
        b"< POWER_MODEL ID=" + b"9" * 5000 + b" NAME=MAXN >\npmode:" + b"9" * 5000,
    ],
)
def test_files_full_of_nonsense_are_as_good_as_none(make_root, tmp_path, garbage):
    names = (
        "etc/nv_tegra_release",
        "proc/meminfo",
        "proc/cpuinfo",
        "var/lib/dpkg/status",
        "etc/nvpmodel.conf",
        "var/lib/nvpmodel/status",
    )
    found = detect(make_root(memory=None, files=dict.fromkeys(names, garbage)))
    assert profile_of(found).kind == "cpu"
    assert system.power_mode(tmp_path) is None


@pytest.mark.parametrize("total", [0, 999_999_999_999_999])
def test_a_memory_that_no_machine_has_is_as_good_as_not_told(make_root, total):
    text = f"MemTotal: {total} kB\nMemAvailable: {total} kB\n"
    found = detect(make_root(memory=None, files={"proc/meminfo": text}))
    assert found.free is None
    assert profile_of(found).memory == PROFILES["cpu"].memory
    assert "does not tell its memory, and 8 GiB are assumed" in profile_of(found).note


def test_names_go_to_a_terminal_without_what_a_terminal_obeys(make_root):
    files = {
        "proc/cpuinfo": "processor : 0\nmodel name : \x1b[31mARM\x07 \x9b1m\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=\x1b[31m15W >\n",
        "var/lib/nvpmodel/status": "pmode:0000",
    }
    assert profile_of(detect(make_root(files=files))).title == "[31mARM 1m"
    found = detect(make_root(model="NVIDIA\x1b[31m Jetson\x00", l4t="36.4.3", files=files))
    assert found.facts["machine"] == "NVIDIA [31m Jetson"
    assert all(str(fact).isprintable() for fact in found.facts.values())


def test_folders_and_pipes_in_the_place_of_files_are_as_good_as_none(make_root):
    root = make_root(memory=None)
    (root / "proc/device-tree/model").mkdir(parents=True)
    (root / "etc").mkdir()
    os.mkfifo(root / "etc/nv_tegra_release")
    assert stat.S_ISFIFO((root / "etc/nv_tegra_release").stat().st_mode)
    assert profile_of(detect(root)).kind == "cpu"


def test_on_unified_memory_the_systems_figure_counts_and_not_the_drivers(make_root, fake_nvml):
    root = make_root(module="p3767-0003", l4t="36.4.3", free=5.0)
    found = detect(root, cards=lambda: read_cards(lambda: fake_nvml(name="Orin (nvgpu)")))
    assert found.free == 5 * GIB


def test_a_card_is_found_by_its_name_with_the_memory_and_bandwidth_its_driver_tells(tmp_path, fake_nvml):
    library = fake_nvml()
    found = detect(tmp_path, cards=lambda: read_cards(lambda: library))
    assert profile_of(found).name == "rtx-3060"
    assert profile_of(found).memory == 12884377600
    assert profile_of(found).bandwidth == 2e6 * 7501 * 192 / 8
    assert found.free == 12884377600 - (1 << 29)
    assert found.facts["driver"] == "550.54.14"
    assert found.facts["driver_cuda"] == "12.4"
    assert found.facts["power_limit_watts"] == 170
    assert library.open == 0  # what was opened was closed


@pytest.mark.parametrize(
    ("name", "capability", "profile"),
    [
        ("NVIDIA A100-SXM4-40GB", (8, 0), "a100-40"),
        ("NVIDIA A100-SXM4-80GB", (8, 0), "a100-80"),
        ("NVIDIA H100 80GB HBM3", (9, 0), "h100-80"),
        ("NVIDIA H200", (9, 0), "h200"),
        ("NVIDIA GB10", (12, 1), "dgx-spark"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", (8, 9), "rtx-4060-laptop"),
        ("GeForce RTX 2080 Ti", (7, 5), "rtx-2080-ti"),
        ("NVIDIA GeForce RTX 4070 SUPER", (8, 9), "rtx-4070-super"),
        ("NVIDIA RTX A2000", (8, 6), "rtx-a2000-6"),
        ("NVIDIA RTX A2000 12GB", (8, 6), "rtx-a2000-12"),
        ("Tesla T4", (7, 5), "t4"),
        ("NVIDIA L4", (8, 9), "l4"),
    ],
)
def test_cards_are_found_by_the_names_their_drivers_give_them(tmp_path, fake_nvml, name, capability, profile):
    library = fake_nvml(name=name, capability=capability)
    assert profile_of(detect(tmp_path, cards=lambda: read_cards(lambda: library))).name == profile


def test_a_card_that_is_sold_with_two_sizes_is_not_titled_with_the_other(tmp_path, fake_nvml):
    library = fake_nvml(name="NVIDIA GeForce RTX 4060 Ti", memory=8 * GIB, capability=(8, 9))
    profile = profile_of(detect(tmp_path, cards=lambda: read_cards(lambda: library)))
    assert (profile.title, profile.memory) == ("GeForce RTX 4060 Ti", 8 * GIB)
    assert profile.fp16_flops == PROFILES["rtx-4060-ti-16"].fp16_flops


def test_a_card_without_a_row_gets_what_its_capability_allows_and_no_speed(tmp_path, fake_nvml):
    library = fake_nvml(name="NVIDIA RTX A5500", memory=24 * GIB, capability=(8, 6))
    profile = profile_of(detect(tmp_path, cards=lambda: read_cards(lambda: library)))
    assert profile.title == "NVIDIA RTX A5500"
    assert profile.memory == 24 * GIB
    assert "trt-rtx" in profile.engines
    assert profile.fp16_flops == 0


def test_a_card_too_old_for_everything_has_no_profile(tmp_path, fake_nvml):
    library = fake_nvml(name="NVIDIA GeForce GTX 970", capability=(5, 2))
    assert detect(tmp_path, cards=lambda: read_cards(lambda: library)).profile is None


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        ({"nvmlInit_v2": 9}, "does not answer: the driver is not loaded"),
        ({"nvmlInit_v2": 18}, "different versions"),
        ({"nvmlDeviceGetHandleByIndex_v2": 15}, "fallen off the bus"),
        ({"nvmlDeviceGetCount_v2": 999}, "nvmlDeviceGetCount_v2 gave 999"),
    ],
)
def test_a_driver_that_fails_is_a_reason_and_no_card(fake_nvml, codes, problem):
    found = read_cards(lambda: fake_nvml(codes=codes))
    assert found.cards == ()
    assert problem in found.problem


def test_a_driver_that_counts_a_million_cards_is_not_believed(fake_nvml):
    assert "1000000 cards" in read_cards(lambda: fake_nvml(count=1_000_000)).problem


@pytest.mark.parametrize(
    "nonsense", [{"memory": 1 << 63}, {"memory": 1}], ids=["more than there is", "less than is free"]
)
def test_a_driver_that_tells_impossible_memory_is_not_believed(fake_nvml, nonsense):
    found = read_cards(lambda: fake_nvml(**nonsense))
    assert found.cards == ()
    assert "makes no sense" in found.problem


@pytest.mark.parametrize("version", [0, -5, 2_000_000_000])
def test_a_driver_that_tells_no_version_of_cuda_has_none(fake_nvml, version):
    assert read_cards(lambda: fake_nvml(cuda=version)).cuda is None


@pytest.mark.parametrize(("name", "shown"), [("\x1b[31mRTX\n", "[31mRTX"), ("", "card without a name")])
def test_a_cards_name_goes_to_a_terminal_without_what_a_terminal_obeys(fake_nvml, name, shown):
    assert read_cards(lambda: fake_nvml(name=name)).cards[0].name == shown


def test_a_library_that_cannot_be_closed_has_still_answered():
    class Stubborn:
        def __getattr__(self, name):
            if name == "nvmlShutdown":
                raise AttributeError(name)
            return lambda *_: 0

    assert read_cards(Stubborn).problem == "the NVIDIA driver sees no card"


def test_a_board_whose_container_hides_the_device_tree_has_the_memory_that_linux_tells(make_root, fake_nvml):
    root = make_root(memory=61.3, free=50)
    library = fake_nvml(name="Orin (nvgpu)", capability=(8, 7), codes={"nvmlDeviceGetMemoryInfo": 3})
    found = detect(root, cards=lambda: read_cards(lambda: library))
    assert profile_of(found).memory == found.memory["MemTotal"]
    assert profile_of(found).unified
    assert found.free == 50 * GIB


TWO = {"memory.max": 2 * GIB, "memory.current": GIB, "memory.stat": "anon 5\ninactive_file 1024\n"}
ONE = {
    "memory/memory.limit_in_bytes": 2 * GIB,
    "memory/memory.usage_in_bytes": GIB,
    "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 1024\n",
}


@pytest.mark.parametrize("files", [TWO, ONE], ids=["version 2", "version 1"])
def test_a_container_has_no_more_memory_than_its_limit(make_root, files):
    root = make_root(
        memory=16, free=12, files={f"sys/fs/cgroup/{name}": str(value) for name, value in files.items()}
    )
    found = detect(root)
    assert profile_of(found).memory == 2 * GIB
    assert found.free == GIB + 1024  # cached files give way


SERVICE = "system.slice/stickers.service"


@pytest.mark.parametrize("limited", ["system.slice", SERVICE, "."])
@pytest.mark.parametrize(
    "own, mount, limit",
    [
        (f"0::/{SERVICE}\n", "", "memory.max"),
        (f"4:cpu,memory:/{SERVICE}\n0::/\n", "memory/", "memory.limit_in_bytes"),
    ],
    ids=["version 2", "version 1"],
)
def test_the_least_limit_from_the_own_group_up_to_the_root_holds(make_root, limited, own, mount, limit):
    groups = {f"sys/fs/cgroup/{mount}{group}/{limit}": "max" for group in ("system.slice", SERVICE)}
    groups[f"sys/fs/cgroup/{mount}{limited}/{limit}"] = str(GIB)
    root = make_root(memory=16, free=12, files={"proc/self/cgroup": own, **groups})
    assert profile_of(detect(root)).memory == detect(root).free == GIB


@pytest.mark.parametrize("own", ["0::/../../elsewhere\n", "0::\n", "nonsense", "0::/no/such/group\n"])
def test_a_group_that_lies_elsewhere_is_looked_for_at_the_root(make_root, own):
    files = {"proc/self/cgroup": own, "sys/fs/cgroup/memory.max": str(2 * GIB)}
    assert detect(make_root(memory=16, free=12, files=files)).free == 2 * GIB


CPUS = "".join(f"processor\t: {number}\n" for number in range(8))


@pytest.mark.parametrize(
    "files, expected",
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "250000 100000"}, 2),  # a third thread would use up the time of the other two
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "400000 100000", "system.slice/cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "300000 100000", "system.slice/cpu.max": "max 100000"}, 3),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu.max": "0 0"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "50000"}, 4),
    ],
)
def test_a_container_has_no_more_cores_than_its_quota(make_root, files, expected):
    groups = {"proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/system.slice\n", "proc/cpuinfo": CPUS}
    root = make_root(files=groups | {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert system.cores(root) == expected
    assert detect(root).facts["cores"] == expected


def test_a_jetson_in_a_container_without_a_device_tree_is_known_by_its_chip(make_root):
    orin = Card(name="Orin (nvgpu)", memory=0, free=0, capability=(8, 7), power_limit=None, bandwidth=0.0)
    root = make_root(l4t="36.4.7", memory=7.4, files={".dockerenv": ""})
    found = detect(root, cards=lambda: Cards(cards=(orin,), driver="540.4.0", cuda=(12, 6)))
    assert profile_of(found).compute_capability == (8, 7)
    assert profile_of(found).memory == found.memory["MemTotal"]
    assert found.l4t == (36, 4, 7)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "0", "many"])
def test_a_limit_that_is_none_changes_nothing(make_root, limit):
    root = make_root(memory=16, free=12, files={"sys/fs/cgroup/memory.max": limit})
    assert profile_of(detect(root)).memory == 16 * GIB


def test_a_containers_limit_does_not_make_another_module_of_a_board(make_root):
    files = {"sys/fs/cgroup/memory.max": str(4 * GIB)}
    root = make_root(model="ACME Jetson Orin NX carrier", l4t="36.4.3", memory=15.3, free=12, files=files)
    assert detect(root).profile is PROFILES["orin-nx-16"]
    assert detect(root).free == 4 * GIB


def test_a_driver_without_cards_says_so(fake_nvml):
    assert read_cards(lambda: fake_nvml(count=0)).problem == "the NVIDIA driver sees no card"


@pytest.mark.parametrize(
    "call", ["nvmlDeviceGetPowerManagementLimit", "nvmlDeviceGetMemoryBusWidth", "nvmlDeviceGetMemoryInfo"]
)
def test_what_a_board_does_not_tell_is_left_out(fake_nvml, call):
    (card,) = read_cards(lambda: fake_nvml(codes={call: 3})).cards
    untold = {
        "nvmlDeviceGetPowerManagementLimit": card.power_limit is None,
        "nvmlDeviceGetMemoryBusWidth": card.bandwidth == 0,
        "nvmlDeviceGetMemoryInfo": card.memory == 0,
    }
    assert untold[call]


def test_a_library_that_lacks_a_call_is_a_reason():
    class Old:
        def nvmlShutdown(self):  # noqa: N802 (the driver's name)
            return 0

    assert "does not answer" in read_cards(Old).problem


def test_a_machine_without_a_driver_has_no_cards_and_no_error():
    def missing():
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    assert read_cards(missing) == Cards(problem="there is no NVIDIA driver")


def test_detection_imports_nothing_heavy():
    code = (
        "import sys\nfrom perfusion.devices import detect\ndetect()\n"
        "print(sorted({'numpy', 'torch', 'onnxruntime', 'onnx', 'tensorrt', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_power_mode_is_named_with_the_one_that_has_no_limits(make_root):
    conf = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    root = make_root(files={"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": "pmode:0000\n"})
    assert system.power_mode(root) == ("15W", "MAXN_SUPER")
