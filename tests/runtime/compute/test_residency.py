"""What is open when, what is refused, and how much memory there is."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import perfusion.devices
from perfusion.bundle.call_size import CallSize
from perfusion.embedded import bundle_path
from perfusion.errors import BundleError, RequestError
from perfusion.runtime import Runtime, read_bundle
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.compute.residency import GIB, Residency, free_memory

ALL = frozenset({"text_encoder", "vae_encoder", "unet", "vae_decoder"})
SEQUENCE = {
    "encode": frozenset({"text_encoder", "vae_encoder"}),
    "denoise": frozenset({"unet"}),
    "decode": frozenset({"vae_decoder"}),
}


@pytest.fixture
def planner(monkeypatch):
    """A planner that counts pixels: all graphs stay open below 5000 bytes a picture, and 10000 are too many."""
    calls = []

    def plan_memory(bundle, size, *, budget):
        calls.append((size, budget))
        peak = size.width * size.height * size.batch
        unused = frozenset() if size.image else {"vae_encoder"}
        kept = SEQUENCE if peak > budget // 2 else dict.fromkeys(SEQUENCE, ALL)
        return SimpleNamespace(
            fits=peak <= budget,
            peak=peak,
            tile=6 if peak > budget // 2 else None,
            resident={stage: names - unused for stage, names in kept.items()},
            explain=lambda: (
                f"{size.width} x {size.height} needs {peak} bytes, and {budget} are free; 64 x 64 would fit."
            ),
        )

    monkeypatch.setattr(perfusion.devices, "plan_memory", plan_memory, raising=False)
    monkeypatch.setattr(Residency, "at_most", lambda *_: 10**15)  # always plan
    return calls


def graphs_with(bundle, memory, free, monkeypatch):
    monkeypatch.setattr("perfusion.runtime.compute.backend.free_memory", lambda: free)
    return Graphs(bundle, "cpu", 1, memory)


@pytest.mark.parametrize("memory", ["high", "", "4GB", None, True, 0, -1, float("nan"), float("inf"), [4]])
def test_an_unknown_kind_of_memory_is_refused_with_the_known_ones(bundle, memory):
    with pytest.raises(RequestError, match='expected "auto", "low" or a number of GiB above 0'):
        Residency(bundle, memory, lambda: None)


@pytest.mark.parametrize("memory, budget", [("auto", 900), ("low", 900), (2, 2 * GIB), ("0.5", GIB // 2)])
def test_the_budget_is_what_was_said_or_nine_tenths_of_what_is_free(bundle, planner, memory, budget):
    residency = Residency(bundle, memory, lambda: 1000)
    size = CallSize(width=16, height=16, guided=False, concepts=2, image=True)
    residency.admit(size)
    assert planner[-1] == (size, budget)


def test_with_room_everything_stays_open_from_the_start(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", 10**9, monkeypatch)
    for stage in SEQUENCE:
        graphs.stage(stage)
        assert set(graphs._opened) == ALL - {"vae_encoder"}


def run_through(graphs, side=8):
    """One picture's calls; the graphs open in each stage, and the picture."""
    seen = {}
    graphs.stage("encode")
    states = graphs.run(
        "text_encoder", input_ids=np.full((1, 77), 839), concept_embeddings=np.zeros((0, 16), np.float32)
    )["last_hidden_state"]
    seen["encode"] = set(graphs._opened)
    graphs.stage("denoise")
    gates, latents = np.zeros((1, 77, 0), np.float32), np.ones((1, 4, side, side), np.float32)
    latents = graphs.run(
        "unet", sample=latents, timestep=np.ones(1, np.float32), encoder_hidden_states=states, key_hidden_states=states,
        key_gate=gates, value_gate=gates, concept_keys=np.zeros((0, 40), np.float32),
        concept_values=np.zeros((0, 40), np.float32), regions=np.ones((1, 1, side, side), np.float32),
    )["out_sample"]  # fmt: skip
    seen["denoise"] = set(graphs._opened)
    graphs.stage("decode")
    picture = graphs.run("vae_decoder", latent_sample=latents)["sample"]
    seen["decode"] = set(graphs._opened)
    return seen, picture


def test_low_memory_has_one_stage_open_at_a_time_and_draws_the_same(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "low", 10**9, monkeypatch)
    assert not graphs._opened
    seen, picture = run_through(graphs)
    assert seen == {"encode": {"text_encoder"}, "denoise": {"unet"}, "decode": {"vae_decoder"}}
    _, plenty = run_through(graphs_with(bundle, "auto", 10**9, monkeypatch))
    np.testing.assert_array_equal(picture, plenty)
    seen, again = run_through(graphs)  # a second request opens them anew
    np.testing.assert_array_equal(again, picture)


def test_a_plan_without_room_for_all_is_followed(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", 1500 / 0.9, monkeypatch)  # 32 x 32 is more than half of it
    seen, _ = run_through(graphs)
    assert seen == {"encode": {"text_encoder"}, "denoise": {"unet"}, "decode": {"vae_decoder"}}
    graphs.admit(CallSize(width=16, height=16, batch=1, concepts=1))  # a smaller request has room
    seen, _ = run_through(graphs)
    assert seen["decode"] >= {"unet", "vae_decoder"}


def test_a_request_that_cannot_fit_is_refused_with_the_numbers(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", 2000 / 0.9, monkeypatch)
    graphs.admit(CallSize(width=32, height=32, batch=1, concepts=0))
    with pytest.raises(
        RequestError, match="128 x 128 needs 16384 bytes, and 2000 are free; 64 x 64 would fit"
    ):
        graphs.admit(CallSize(width=128, height=128, batch=1, concepts=0))


def test_a_refused_request_has_run_nothing(mocked, planner):
    """Not even its prompt's encoding."""
    calls: list[str] = []

    def counting(call):
        calls.append(call.graph)
        return call.compute()

    runtime = mocked(counting, memory=1e-5)
    with pytest.raises(RequestError):
        runtime.generate("a cat", width=128, height=128)
    assert not calls
    runtime.generate("a cat", num_inference_steps=1)
    assert calls


def test_generators_of_two_sizes_that_alternate_each_keep_their_plan(mocked, planner):
    """The larger one is decoded in tiles, also when a smaller one was drawn in between."""
    sides: list[int] = []

    def watched(call):
        if call.graph == "vae_decoder":
            sides.append(call.feeds["latent_sample"].shape[3])
        return call.compute()

    runtime = mocked(watched, memory=1e-5)
    large, small = (runtime.denoise("a cat", width=side, height=side) for side in (88, 32))
    *_, (last_large, last_small) = zip(large, small, strict=True)
    last_large.pictures()
    assert set(sides) == {6}
    sides.clear()
    last_small.pictures()
    assert set(sides) == {8}


def test_a_request_is_planned_once(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", 10**9, monkeypatch)
    for _ in range(3):
        graphs.admit(CallSize(width=64, height=32, batch=2, concepts=1))
    assert len([size for size, _ in planner if size.batch == 2]) == 1


def test_a_picture_to_draw_over_is_planned_with_the_graph_that_reads_it(bundle, planner):
    """And that graph goes when the next request has no room planned for it."""
    with Runtime(bundle.folder, provider="cpu", threads=1, memory=1e-5) as runtime:
        beach = runtime.generate("a beach", num_inference_steps=1)
        assert not planner[-1][0].image
        runtime.generate("a cat", image=beach, num_inference_steps=2)
        assert planner[-1][0].image
        assert "vae_encoder" in runtime._graphs._opened
        runtime.generate("a cat", num_inference_steps=1)
        assert "vae_encoder" not in runtime._graphs._opened


def test_a_machine_that_does_not_tell_its_memory_plans_nothing(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", None, monkeypatch)
    graphs.admit(CallSize(width=16384, height=16384, batch=64, concepts=0))
    assert not planner
    assert set(graphs._opened) == ALL - {"vae_encoder"}


def test_tiles_are_used_where_the_plan_says_so(bundle, planner, monkeypatch):
    graphs = graphs_with(bundle, "auto", 1500 / 0.9, monkeypatch)
    graph, sizes = graphs._open("vae_decoder"), []
    run = graph.run

    def watched(**feeds):
        sizes.append(feeds["latent_sample"].shape)
        return run(**feeds)

    monkeypatch.setattr(graph, "run", watched)
    picture = graphs.run("vae_decoder", latent_sample=np.ones((1, 4, 10, 8), np.float32))["sample"]
    assert picture.shape == (1, 3, 40, 32)
    assert set(sizes) == {(1, 4, 6, 6)}


def test_a_bundle_that_lies_about_its_downscale_is_found_at_the_first_picture(bundle_copy):
    path = bundle_copy / "bundle.json"
    path.write_text(path.read_text().replace('"downscale": 4', '"downscale": 8'))
    graphs = Graphs(read_bundle(bundle_copy), "cpu", 1)
    with pytest.raises(
        BundleError, match=r"vae_decoder\.onnx made \[1, 3, 32, 32\].*'downscale' 8 .* \[1, 3, 64, 64\]"
    ):
        graphs.run("vae_decoder", latent_sample=np.zeros((1, 4, 8, 8), np.float32))


def test_a_closed_one_and_an_unknown_graph_are_sentences(bundle):
    graphs = Graphs(bundle, "cpu", 1)
    with pytest.raises(
        RequestError, match=r"no text_encoder_2; it has text_encoder, vae_encoder, unet, vae_decoder"
    ):
        graphs.run("text_encoder_2")
    graphs.close()
    with pytest.raises(RequestError, match="closed"):
        graphs.run("vae_encoder", sample=np.zeros((1, 3, 32, 32), np.float32))


TWO = ("", "memory.max", "memory.current", "inactive_file")
ONE = ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def machine(root, version, available=8_000_000, limit="max", used=0, cached=0):
    """The files in which Linux tells its memory; kB and bytes. `version`: of the control groups."""
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal:  16000000 kB\nMemFree:  1000 kB\nMemAvailable:   {available} kB\n"
    )
    group, *names, stat = version
    folder = root / "sys/fs/cgroup" / group
    folder.mkdir(parents=True)
    values = (limit, used, f"anon 5\n{stat} {cached}")
    for name, value in zip((*names, "memory.stat"), values, strict=True):
        (folder / name).write_text(f"{value}\n")
    return root


@pytest.mark.parametrize("version", [TWO, ONE])
def test_free_memory_is_what_linux_and_a_container_leave(tmp_path, version):
    limited = {"limit": 4 * 10**9, "used": 3 * 10**9, "cached": 10**9}
    assert free_memory(machine(tmp_path / "a", version)) == 8_192_000_000
    assert free_memory(machine(tmp_path / "b", version, **limited)) == 2 * 10**9
    assert free_memory(machine(tmp_path / "c", version, limit=10**9, used=2 * 10**9)) == 0
    assert free_memory(tmp_path / "elsewhere") is None


# --- with the real planner


@pytest.mark.parametrize(
    "width, height, batch", [(32, 32, 1), (512, 512, 1), (1024, 512, 2), (2048, 2048, 1)]
)
@pytest.mark.parametrize("name", ["toy", "pocket"])
def test_no_plan_needs_more_than_the_bound_that_spares_planning(toy_bundle, name, width, height, batch):
    found = read_bundle(toy_bundle if name == "toy" else bundle_path(), verify=False)
    residency = Residency(found, "auto", lambda: None)
    size = CallSize(width=width, height=height, batch=batch, image=True)
    plan = perfusion.devices.plan_memory(found, size, budget=1)
    everything = plan.base + sum(need.opened + need.running for need in plan.needs.values())
    whole = perfusion.devices.plan_memory(found, size, budget=10**15)
    assert residency.at_most(size) >= max(everything, whole.peak)


@pytest.mark.parametrize("side, readings, parts", [(32, 8, 1), (128, 8, 4), (256, 3, 2)])
def test_the_bound_counts_the_readings_of_a_prompt(side, readings, parts):
    found = read_bundle(bundle_path(), verify=False)
    size = CallSize(width=side, height=side, tokens=77 * readings * parts, readings=readings)
    plan = perfusion.devices.plan_memory(found, size, budget=1)
    everything = plan.base + sum(need.opened + need.running for need in plan.needs.values())
    assert Residency(found, "auto", lambda: None).at_most(size) >= everything


def test_a_picture_of_many_things_is_refused_by_the_plan_that_counts_its_readings():
    found = read_bundle(bundle_path(), verify=False)
    few, many = (
        CallSize(width=512, height=512, tokens=77 * readings, readings=readings) for readings in (1, 8)
    )
    peaks = [perfusion.devices.plan_memory(found, size, budget=1).peak for size in (few, many)]
    assert peaks[0] < peaks[1]
    residency = Residency(found, sum(peaks) / 2 / GIB, lambda: None)
    residency.admit(few)
    with pytest.raises(RequestError, match="with 8 readings of each prompt"):
        residency.admit(many)


def test_the_embedded_model_at_its_own_size_is_opened_without_a_plan(monkeypatch):
    def planned(*_, **__):
        raise AssertionError("planned")

    monkeypatch.setattr(perfusion.devices, "plan_memory", planned, raising=False)
    residency = Residency(read_bundle(bundle_path(), verify=False), "auto", lambda: 4 * GIB)
    residency.admit(CallSize(width=128, height=128, concepts=2))


def test_a_runtime_refuses_a_picture_beyond_its_memory_and_draws_the_one_it_names():
    with Runtime(provider="cpu", threads=1, memory=0.5) as runtime:
        with pytest.raises(
            RequestError, match=r"1024.*needs .* GiB .*of 512 MiB.*nearest that does is"
        ) as caught:
            runtime.generate("a bus", width=1024, height=1024, num_inference_steps=1)
        side, _ = re.findall(r"is (\d+).(\d+)", str(caught.value))[0]
        assert runtime.generate("a bus", width=128, height=128, num_inference_steps=1).size == (128, 128)
    assert 128 <= int(side) < 1024


def test_low_memory_draws_the_same_picture():
    pictures = []
    for memory in ("auto", "low"):
        with Runtime(provider="cpu", threads=1, memory=memory) as runtime:
            pictures.append(runtime.generate("a bus on a beach", num_inference_steps=2).tobytes())
    assert pictures[0] == pictures[1]
