"""Every finding on a machine that has it, and none on one that has not."""

import json
import shutil
from dataclasses import replace

import pytest

from perfusion.devices import detect
from perfusion.devices.bundle_check import examine_bundle
from perfusion.devices.doctor import examine
from perfusion.devices.fat_binary import Kernels
from perfusion.devices.nvml import read_cards
from perfusion.devices.planning import memory_plan, openvino_memory
from perfusion.embedded import bundle_path

GIB = 1 << 30
TENSORRT = "usr/lib/python3.10/dist-packages/tensorrt/__init__.py"
NVDLA = "usr/lib/aarch64-linux-gnu/nvidia/libnvdla_compiler.so"
HEALTHY = {TENSORRT: "", NVDLA: ""}
BOTH = ("CUDAExecutionProvider", "CPUExecutionProvider")


def names(findings):
    return {finding.name: finding.level for finding in findings}


@pytest.fixture
def board(make_root, environment):
    """A healthy Orin Nano; the keywords of `make_root` and, as `python`, of the environment make it ill."""

    def make(python=None, **changes):
        files = {**HEALTHY, **changes.pop("files", {})}
        root = make_root(
            **({"module": "p3767-0003", "l4t": "36.4.3"} | changes),
            files={name: text for name, text in files.items() if text is not None},
        )
        modules = {"modules": frozenset({"onnxruntime", "tensorrt"})}
        return examine(detect(root), environment(**(modules | (python or {}))), root=root, disk=root)

    return make


@pytest.fixture
def desktop(tmp_path, environment, fake_nvml):
    """A healthy PC with an RTX 3060; `python` and `driver` make it ill."""

    def make(python=None, **driver):
        library = fake_nvml(**driver)
        found = detect(tmp_path, cards=lambda: read_cards(lambda: library))
        healthy = {"packages": {"onnxruntime-gpu": "1.23.2"}, "providers": BOTH}
        return examine(found, environment(**(healthy | (python or {}))), root=tmp_path, disk=tmp_path)

    return make


def test_a_healthy_board_has_no_findings(board):
    assert board() == []


def test_a_healthy_pc_has_no_findings(desktop):
    assert desktop() == []


def test_a_healthy_machine_without_a_gpu_has_no_findings(make_root, environment):
    root = make_root(memory=16, free=12)
    assert examine(detect(root), environment(), root=root, disk=root) == []


def test_openvino_is_named_where_a_processor_computes_pictures_in_bf16(make_root, environment):
    root = make_root(memory=16, free=12, files={"proc/cpuinfo": "flags\t: fpu avx512_bf16 avx2\n"})

    def findings(**python):
        return names(examine(detect(root), environment(**python), root=root, disk=root))

    assert findings() == {"openvino-missing": "note"}
    assert findings(packages={"onnxruntime": "1.23.2", "openvino": "2026.4.1"}) == {}


@pytest.mark.parametrize(
    "version, python, finding",
    [
        ("2025.3.0", {}, {"openvino-old": "warning"}),
        ("2025.4.0", {"openvino_devices": ("CPU",)}, {}),
        ("2026.0.0", {"openvino_devices": ("CPU", "GPU", "NPU")}, {"openvino-devices": "note"}),
        ("2026.0.0", {"openvino_problem": "libtbb.so is missing"}, {"openvino-broken": "warning"}),
    ],
)
def test_what_openvino_is_there_is_looked_at(make_root, environment, version, python, finding):
    root = make_root(memory=16, free=12)
    packages = {"onnxruntime": "1.23.2", "openvino": version}
    found = examine(detect(root), environment(packages=packages, **python), root=root, disk=root)
    assert names(found) == finding


def test_without_onnxruntime_and_engines_nothing_can_be_drawn(desktop):
    assert (
        names(desktop(python={"packages": {}, "modules": frozenset(), "providers": ()}))[
            "onnxruntime-missing"
        ]
        == "stop"
    )


def test_without_onnxruntime_engines_still_draw(board):
    found = board(python={"packages": {}, "modules": frozenset({"tensorrt"}), "providers": ()})
    assert names(found) == {"onnxruntime-missing": "warning"}


def test_an_onnxruntime_that_cannot_be_imported_stops_drawing_and_says_why(desktop):
    found = desktop(python={"providers": (), "problem": "libcudart.so.12: cannot open shared object file"})
    assert names(found)["onnxruntime-broken"] == "stop"
    assert "libcudart.so.12" in found[0].text


def test_both_onnxruntimes_at_once_are_found(desktop):
    found = desktop(python={"packages": {"onnxruntime": "1.23.2", "onnxruntime-gpu": "1.23.2"}})
    assert names(found) == {"onnxruntime-twice": "warning"}
    assert "pip uninstall onnxruntime onnxruntime-gpu" in found[0].remedy


@pytest.mark.parametrize(
    ("packages", "text"),
    [({"onnxruntime": "1.23.2"}, "is for CPUs"), ({"onnxruntime-gpu": "1.23.2"}, "without its CUDA part")],
)
def test_a_card_that_onnxruntime_would_not_use_is_found(desktop, packages, text):
    found = desktop(python={"packages": packages, "providers": ("CPUExecutionProvider",)})
    assert names(found) == {"cpu-fallback": "warning"}
    assert "RTX 3060" in found[0].text
    assert text in found[0].text


@pytest.mark.parametrize(
    ("packages", "cuda", "expected"),
    [
        ({"onnxruntime-gpu": "1.23.2"}, 11080, {"driver-old"}),
        ({"onnxruntime-gpu": "1.18.0"}, 11080, set()),
        ({"onnxruntime-gpu": "1.26.0"}, 12060, set()),
        ({"onnxruntime-gpu": "1.27.0"}, 12060, {"driver-old"}),
        ({"onnxruntime-gpu": "1.31.1"}, 13000, set()),
        ({"onnxruntime-gpu": "1.23.2", "tensorrt-rtx-cu13-libs": "1.7.1"}, 12040, {"driver-old"}),
        ({"onnxruntime-gpu": "1.23.2", "torch": "2.13.0+cu130"}, 12080, {"driver-old"}),
        ({"onnxruntime-gpu": "1.23.2", "torch": "2.13.0+cpu"}, 12080, set()),
        ({"onnxruntime-gpu": "1.23.2", "tensorrt-rtx-cu13-libs": "1.7.1"}, 13000, set()),
    ],
)
def test_a_driver_too_old_for_the_wheels_is_found(desktop, packages, cuda, expected):
    found = desktop(python={"packages": packages}, cuda=cuda)
    assert set(names(found)) == expected
    if expected:
        assert "550.54.14" in found[0].text


def test_a_driver_that_does_not_answer_is_found(desktop):
    assert names(desktop(codes={"nvmlInit_v2": 18})) == {"driver-silent": "warning"}


def test_a_tensorrt_that_the_virtual_environment_does_not_see_is_found(board):
    found = board(python={"modules": frozenset({"onnxruntime"}), "virtual": True, "system_packages": False})
    assert names(found) == {"tensorrt-invisible": "warning"}
    assert "--system-site-packages" in found[0].remedy


def test_a_tensorrt_for_another_python_is_found(board):
    found = board(python={"modules": frozenset({"onnxruntime"}), "python": (3, 12)})
    assert names(found) == {"tensorrt-other-python": "warning"}
    assert "Python 3.12" in found[0].text


def test_a_board_without_tensorrt_is_found(board):
    found = board(python={"modules": frozenset({"onnxruntime"})}, files={TENSORRT: None})
    assert names(found) == {"tensorrt-missing": "warning"}


@pytest.mark.parametrize("l4t", ["38.2.0", "39.2.0"])
def test_a_container_without_nvdlas_library_is_found_from_jetpack_7_on(board, l4t):
    found = board(l4t=l4t, files={NVDLA: None, ".dockerenv": ""})
    assert names(found) == {"nvdla-missing": "warning"}
    assert "this container" in found[0].text
    assert "--runtime nvidia" in found[0].remedy


def test_nvdlas_library_is_not_missed_on_jetpack_6(board):
    assert board(l4t="36.4.3", files={NVDLA: None}) == []


@pytest.mark.parametrize("l4t", ["35.4.1", "36.3.0"])
def test_a_jetpack_whose_tensorrt_is_too_old_is_found(board, l4t):
    found = board(l4t=l4t)
    assert names(found) == {"jetpack-old": "warning"}
    assert "JetPack 6.1 or newer" in found[0].remedy


def test_a_xavier_is_told_that_it_draws_on_its_processor(board):
    found = board(module="p2888-0004", l4t="35.4.1", memory=30, free=20)
    assert names(found) == {"no-engines": "note"}
    assert "JetPack 5" in found[0].text


def test_a_module_that_is_not_in_the_table_is_found(board):
    assert names(board(module="p9999-0000", model="NVIDIA Jetson Next")) == {"module-unknown": "warning"}


def test_a_power_mode_below_the_best_is_found(board):
    conf = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    found = board(files={"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": "pmode:0000"})
    assert names(found) == {"power-mode": "note"}
    assert board(files={"etc/nvpmodel.conf": conf, "var/lib/nvpmodel/status": "pmode:0002"}) == []


def test_little_free_memory_on_a_board_is_found(board):
    found = board(free=1.2)
    assert names(found) == {"memory-low": "warning"}
    assert "1.2 of 7.4 GiB" in found[0].text


def test_a_small_board_without_swap_is_found(board):
    assert names(board(swap=0)) == {"swap-none": "note"}


def test_a_board_that_swaps_already_is_found(board):
    memory = "MemTotal: 7759462 kB\nMemAvailable: 5242880 kB\nSwapTotal: 4194304 kB\nSwapFree: 1048576 kB\n"
    assert names(board(memory=None, files={"proc/meminfo": memory})) == {"swapping": "warning"}


def test_a_full_disk_is_found(board, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=GIB))
    assert names(board()) == {"disk-full": "warning"}


def test_the_worst_comes_first(board):
    found = board(free=1.0, swap=0, python={"packages": {}, "modules": frozenset(), "providers": ()})
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=("stop", "warning", "note").index)
    assert levels[0] == "stop"


# --- a bundle on a machine


def test_the_embedded_bundle_fits_an_orin_nano_and_has_no_engine_for_it(make_root, environment):
    found = detect(make_root(module="p3767-0003", l4t="36.4.3"))
    findings = list(examine_bundle(bundle_path(), found, environment()))
    assert names(findings) == {"engines-missing": "note"}
    command = f"perfusion-export --bundle {bundle_path()} --engine trt --device orin-nano-8"
    assert command in findings[0].remedy


def test_where_tensorrt_is_too_old_no_engine_is_missed(make_root, environment):
    found = detect(make_root(module="p3767-0003", l4t="36.3.0"))
    assert list(examine_bundle(bundle_path(), found, environment())) == []


def store(bundle, graph, sha256, **changes):
    """An engine of that graph for an Orin under JetPack 6.2, of bytes alone; the keywords change its key."""
    from dataclasses import asdict

    from perfusion.tensorrt.build import BuildOptions, Built
    from perfusion.tensorrt.engine_store import store_engine
    from perfusion.tensorrt.keys import EngineKey, platform_of

    values = {"flavour": "trt", "version": "10.3.0", "target": "sm87", "driver": 12, "precision": "fp16"}
    values["platform"] = platform_of(changes.get("flavour", "trt"))
    key = EngineKey(
        graph=graph, graph_sha256=sha256, shape_ranges=({"batch": (1, 1, 1)},), options=asdict(BuildOptions()),
        **(values | changes),
    )  # fmt: skip
    return store_engine(
        bundle, key, Built(engine=memoryview(b"plan"), inputs={}, outputs={}, timing=None), {}
    )


@pytest.fixture
def bundle(tmp_path):
    """A copy of the embedded bundle, and the checksums of the graphs a picture needs."""
    from perfusion.bundle.facts import graph_facts
    from perfusion.bundle.reader import read_bundle

    folder = tmp_path / "bundle"
    shutil.copytree(bundle_path(), folder)
    graphs = graph_facts(read_bundle(folder, verify=False)).values()
    return folder, {graph.name: graph.sha256 for graph in graphs if graph.name != "vae_encoder"}


def test_every_graph_needs_an_engine_of_its_present_form(make_root, environment, bundle):
    folder, graphs = bundle
    found = detect(make_root(module="p3767-0003", l4t="36.4.3"))
    for name in ("text_encoder", "unet"):
        store(folder, name, graphs[name])
    (finding,) = examine_bundle(folder, found, environment())
    assert finding.name == "engines-missing"
    assert finding.text.endswith("of vae_decoder.")
    old = store(folder, "vae_decoder", "ab" * 32)
    (finding,) = examine_bundle(folder, found, environment())
    assert finding.name == "engines-unfit"
    assert "trt-sm87/vae_decoder-" in finding.text
    assert "the graph's checksum is abababab" in finding.text
    old.file.unlink()
    made = store(folder, "vae_decoder", graphs["vae_decoder"])
    assert list(examine_bundle(folder, found, environment())) == []
    made.file.write_bytes(b"cut")
    (finding,) = examine_bundle(folder, found, environment())
    assert "was cut or changed" in finding.text


@pytest.mark.parametrize(
    ("built", "text"),
    [
        ({"version": "10.16.1"}, "TensorRT's version is 10.16.1, expected 10.3.0"),
        ({"target": "sm110"}, "the GPU is sm110, expected sm87"),
        ({"driver": 13}, "the driver's CUDA is 13, expected 12"),
    ],
    ids=["another TensorRT", "another GPU", "a newer driver"],
)
def test_engines_that_were_built_for_something_else_are_found(make_root, environment, bundle, built, text):
    folder, graphs = bundle
    found = detect(make_root(module="p3767-0003", l4t="36.4.3"))
    python = environment(packages={"onnxruntime": "1.23.2", "tensorrt": "10.3.0"})
    for name, sha256 in graphs.items():
        store(folder, name, sha256, **built)
    (finding,) = examine_bundle(folder, found, python)
    assert (finding.name, finding.level) == ("engines-unfit", "warning")
    assert finding.text.count(text) == len(graphs)
    assert "--engine trt --device orin-nano-8" in finding.remedy
    for name, sha256 in graphs.items():
        store(folder, name, sha256)
    assert list(examine_bundle(folder, found, python)) == []


def test_of_several_engines_that_do_not_run_here_the_nearest_is_named(make_root, environment, bundle):
    folder, graphs = bundle
    found = detect(make_root(module="p3767-0003", l4t="36.4.3"))
    for name, sha256 in graphs.items():
        store(folder, name, sha256, driver=13)
        store(folder, name, sha256, driver=13, target="sm110", version="10.16.1")
    (finding,) = examine_bundle(folder, found, environment(packages={"tensorrt": "10.3.0"}))
    assert "expected 12" in finding.text
    assert "10.16.1" not in finding.text


def test_on_a_card_the_kind_of_tensorrt_is_named_whose_engines_are_nearer(
    tmp_path, environment, fake_nvml, bundle
):
    folder, graphs = bundle
    for name, sha256 in graphs.items():
        store(folder, name, sha256, target="sm86", version="10.16.1")
    found = detect(tmp_path, cards=lambda: read_cards(fake_nvml))
    (finding,) = examine_bundle(folder, found, environment(packages={"tensorrt": "10.13.3.9"}))
    assert "TensorRT's version is 10.16.1, expected 10.13.3.9" in finding.text
    assert "the kind of TensorRT" not in finding.text
    assert "--engine trt --device rtx-3060" in finding.remedy


def test_engines_of_a_tensorrt_that_a_board_cannot_run_are_as_good_as_none(make_root, environment, bundle):
    folder, graphs = bundle
    for name, sha256 in graphs.items():
        store(folder, name, sha256, flavour="trt-rtx", target="portable", driver=None)
    found = detect(make_root(module="p3767-0003", l4t="36.4.3"))
    assert names(examine_bundle(folder, found, environment())) == {"engines-missing": "note"}


@pytest.mark.parametrize(
    ("installed", "expected"), [("1.7.1.116", {}), ("1.8.0.1", {"engines-unfit": "warning"})]
)
def test_on_a_card_the_release_of_tensorrt_for_rtx_counts_and_not_the_driver(
    tmp_path, environment, fake_nvml, bundle, installed, expected
):
    folder, graphs = bundle
    for name, sha256 in graphs.items():
        store(folder, name, sha256, flavour="trt-rtx", target="portable", version="1.7.1.116", driver=None)
    found = detect(tmp_path, cards=lambda: read_cards(fake_nvml))
    python = environment(packages={"tensorrt-rtx-cu13-bindings": installed})
    assert names(examine_bundle(folder, found, python)) == expected


def test_the_bound_is_the_runtimes_own(make_root, environment):
    from perfusion.bundle.reader import read_bundle
    from perfusion.devices import plan_memory
    from perfusion.devices.system import AUTO_SHARE

    bundle = read_bundle(bundle_path(), verify=False)
    least = plan_memory(bundle, bundle.usual_call, budget=1).peak / GIB
    for free, expected in ((least / AUTO_SHARE * 1.01, {}), (least * 1.01, {"bundle-too-large": "stop"})):
        found = detect(make_root(memory=4, free=free))
        assert names(examine_bundle(bundle_path(), found, environment())) == expected


def test_room_for_one_reading_and_not_for_two_is_told(make_root, environment, monkeypatch):
    """A UNet of which the second reading takes a GiB; the embedded model's own takes less than its decoder."""
    plan_memory = memory_plan.plan_memory

    def planned(bundle, size, **options):
        plan = plan_memory(bundle, size, **options)
        more = (size.readings - 1) * GIB
        return replace(plan, stages={name: taken + more for name, taken in plan.stages.items()})

    monkeypatch.setattr(memory_plan, "plan_memory", planned)
    for free, expected in ((0.9, {"regions-too-large": "note"}), (3, {})):
        found = detect(make_root(memory=8, free=free))
        assert names(examine_bundle(bundle_path(), found, environment())) == expected


def test_too_little_memory_to_compile_for_openvino_is_told_where_it_is_installed(
    make_root, environment, monkeypatch
):
    monkeypatch.setattr(openvino_memory, "compile_memory", lambda bundle: 4 * GIB)
    packages = {"onnxruntime": "1.32.0", "openvino": "2026.4.1"}
    for free, python, expected in (
        (3.9, environment(packages=packages), {"openvino-memory": "note"}),
        (4.1, environment(packages=packages), {}),
        (3.9, environment(), {}),
    ):
        findings = list(examine_bundle(bundle_path(), detect(make_root(memory=8, free=free)), python))
        assert names(findings) == expected
        assert all("about 4.0 GiB to compile this UNet" in finding.text for finding in findings)


def test_room_for_a_picture_and_not_for_one_that_is_controlled_is_told(
    make_root, environment, monkeypatch, bundle_copy
):
    """A ControlNet of a GiB; here the UNet's own graph stands for it."""
    plan_memory, path = memory_plan.plan_memory, bundle_copy / "bundle.json"
    manifest = json.loads(path.read_bytes())
    model = {"name": "canny", "file": "unet.onnx", "conditions": {}}
    manifest["controlnets"] = {"unet": "unet.onnx", "residuals": 5, "models": [model]}
    path.write_text(json.dumps(manifest))

    def planned(bundle, size, **options):
        plan = plan_memory(bundle, size, **options)
        more = GIB if "controlnet" in plan.needs else 0
        return replace(plan, stages={name: taken + more for name, taken in plan.stages.items()})

    monkeypatch.setattr(memory_plan, "plan_memory", planned)
    for free, expected in ((0.9, {"controlnet-too-large": "note"}), (3, {})):
        machine = detect(make_root(memory=8, free=free))
        assert names(examine_bundle(bundle_copy, machine, environment())) == expected


def test_a_bundle_that_does_not_fit_into_what_is_free_stops_drawing(make_root, environment):
    found = detect(make_root(memory=4, free=0.05))
    findings = list(examine_bundle(bundle_path(), found, environment()))
    assert names(findings) == {"bundle-too-large": "stop"}


def test_a_broken_bundle_stops_drawing(make_root, environment, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    found = detect(make_root(memory=16, free=12))
    assert names(examine_bundle(folder, found, environment())) == {"bundle-broken": "stop"}


SERVER = Kernels(frozenset({(8, 9), (9, 0), (12, 0), (12, 1)}), frozenset())


def test_an_onnxruntime_without_kernels_for_a_board_is_found(board):
    (finding,) = board(python={"kernels": SERVER, "packages": {"onnxruntime-gpu": "1.31.1"}})
    assert finding.name == "kernels-missing"
    assert "onnxruntime-gpu 1.31.1" in finding.text and "this GPU is sm_87" in finding.text
    assert "JetPack" in finding.remedy


def test_an_onnxruntime_without_kernels_for_a_card_is_found(desktop):
    assert names(desktop(python={"kernels": SERVER})) == {"kernels-missing": "warning"}  # an RTX 3060, sm_86
    fitting = Kernels(frozenset({(8, 6)}), frozenset())
    assert desktop(python={"kernels": fitting}) == []


CLOCK = "sys/class/devfreq/17000000.gpu"


@pytest.mark.parametrize(
    "finding, files, healthy",
    [
        (
            "clocks-free",
            {f"{CLOCK}/min_freq": "306000000", f"{CLOCK}/max_freq": "1020000000"},
            {f"{CLOCK}/min_freq": "1020000000"},
        ),
        ("desktop-running", {"proc/812/comm": "gnome-shell\n"}, {"proc/812/comm": "bash\n"}),
        (
            "root-on-card",
            {
                "proc/self/mounts": "proc /proc proc rw 0 0\n/dev/mmcblk1p1 / ext4 rw 0 0\n",
                "sys/block/mmcblk1/device/type": "SD\n",
            },
            {"sys/block/mmcblk1/device/type": "MMC\n"},
        ),
        (
            "swap-low",
            {"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 3900000 0 5\n"},
            {"proc/swaps": "Filename Type Size Used Priority\n/swapfile file 8388604 0 -2\n"},
        ),
    ],
)
def test_what_slows_or_endangers_a_board_is_a_note(board, finding, files, healthy):
    assert names(board(files=files)) == {finding: "note"}
    assert board(files=files | healthy) == []
