"""perfusion-devices on this machine and on made-up ones."""

import json
import re

import pytest

from perfusion import devices
from perfusion.bundle.reader import read_bundle
from perfusion.commands.devices import main
from perfusion.devices import PROFILES, detect
from perfusion.devices import environment as environments
from perfusion.devices.jetpack import MODULES
from perfusion.devices.nvml import read_cards
from perfusion.devices.planning import openvino_memory
from perfusion.embedded import bundle_path


@pytest.fixture
def on(monkeypatch, environment):
    """Puts the command on another machine."""

    def put(found, **python):
        monkeypatch.setattr(devices, "detect", lambda: found)
        monkeypatch.setattr(environments, "read_environment", lambda: environment(**python))

    return put


def answer(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_list_has_every_profile(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(PROFILES) + 1]] == list(PROFILES)
    assert {row["name"] for row in answer(capsys, "list")} == set(PROFILES)


def test_what_is_not_known_is_a_dash_and_never_a_zero(capsys):
    rows = {row["name"]: row for row in answer(capsys, "list")}
    assert (rows["rtx-4070"]["bandwidth"], rows["rtx-4070"]["fp16_flops"]) == (None, None)
    assert rows["rtx-3090"]["bandwidth"] == 936e9
    main(["list"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rtx-4070"))
    assert row.split() == [
        "rtx-4070",
        "GeForce",
        "RTX",
        "4070",
        "89",
        "12",
        "-",
        "-",
        "memory",
        "onnx",
        "trt",
        "trt-rtx",
    ]


def test_this_machine_is_detected_and_can_draw(capsys):
    assert answer(capsys, "detect")["profile"] is not None
    assert answer(capsys, "doctor")["can_draw"] is True


@pytest.mark.parametrize("module", MODULES)
def test_every_command_answers_on_every_module(capsys, on, make_root, module):
    name = MODULES[module][-1]
    memory = PROFILES[name].memory / (1 << 30) * 0.94
    on(
        detect(
            make_root(module=module, model="NVIDIA Jetson", l4t="36.4.3", memory=memory, free=memory * 0.8)
        )
    )
    assert answer(capsys, "detect")["profile"] == name
    assert answer(capsys, "plan")["device"] == name
    assert answer(capsys, "doctor")["can_draw"] is True
    for action in ("detect", "doctor", "plan"):
        assert main([action]) == 0
    assert PROFILES[name].title in capsys.readouterr().out


def test_doctor_ends_with_1_when_nothing_can_be_drawn(capsys, on, make_root):
    on(detect(make_root(memory=16, free=12)), packages={}, modules=frozenset(), providers=())
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "stop: onnxruntime-missing" in text
    assert '-> pip install "perfusion-edge[cpu]"' in text
    facts = answer(capsys, "doctor", code=1)
    assert facts["can_draw"] is False
    assert facts["findings"][0]["name"] == "onnxruntime-missing"


def test_doctor_ends_with_0_when_there_are_only_warnings(capsys, on, make_root):
    on(detect(make_root(module="p3767-0003", l4t="36.4.3", free=1.5)))
    facts = answer(capsys, "doctor")
    assert {finding["name"] for finding in facts["findings"]} >= {"memory-low", "tensorrt-missing"}


def test_plan_on_another_device_needs_none(capsys):
    facts = answer(capsys, "plan", "--device", "Orin Nano 8", "--resolution", "256", "--batch", "2")
    assert (facts["device"], facts["engine"], facts["precision"]) == ("orin-nano-8", "trt", "fp16")
    assert (facts["width"], facts["height"], facts["batch"], facts["concepts"]) == (256, 256, 2, 4)
    assert facts["fits"] is True
    assert facts["peak"] == max(facts["stages"].values())
    assert facts["workspace"] == PROFILES["orin-nano-8"].workspace
    assert "--precision fp16 --engine trt --device orin-nano-8" in facts["export"]
    latents = {"concepts": [4] * 3, "height": [32] * 3, "width": [32] * 3}
    assert facts["profiles"]["unet"] == [
        {"batch": [4] * 3, "regions": [readings] * 3, "tokens": [77 * readings] * 3, **latents}
        for readings in (1, 2)
    ]
    assert set(facts["profiles"]) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert "no GPU has been measured" in facts["estimate_error"]


def test_plan_counts_the_readings_of_a_prompt(capsys):
    one, three = (answer(capsys, "plan", "--device", "rtx-3060", "--readings", str(n)) for n in (1, 3))
    assert (one["readings"], three["readings"]) == (1, 3)
    assert three["peak"] > one["peak"] and three["estimated_seconds"] > one["estimated_seconds"]
    assert [profile["regions"][0] for profile in three["profiles"]["unet"]] == [1, 2, 3]
    assert "--readings 1,2,3" in three["export"] and "--readings" not in one["export"]
    assert "with 3 readings of each prompt" in three["explanation"]


def test_plan_counts_the_parts_of_a_long_prompt(capsys):
    short, long = (
        answer(capsys, "plan", "--device", "rtx-3060", *words) for words in ((), ("--tokens", "154"))
    )
    assert "--tokens" not in short["export"]
    assert "--tokens 77,154" in long["export"]
    assert [profile["tokens"][0] for profile in long["profiles"]["unet"]] == [77, 154, 154, 308]
    assert long["peak"] > short["peak"]


@pytest.mark.parametrize("readings", ["0", "-1"])
def test_plan_refuses_readings_that_no_prompt_has(capsys, readings):
    assert main(["plan", "--readings", readings]) == 1
    assert "expected at least 1" in capsys.readouterr().err


def test_plan_says_the_bundles_own_precision_beside_the_one_to_export_in(capsys):
    assert main(["plan", "--device", "rtx-3060"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^bundle +fp32, no engines$", text, re.M)
    assert re.search(r"^engine +trt-rtx, fp16: export it anew for that$", text, re.M)
    assert answer(capsys, "plan", "--device", "rtx-3060")["exported"] is False


def test_plan_says_what_the_command_to_export_cannot_know(capsys, toy_bundle):
    """A bundle keeps no options; that of the embedded model needs none."""
    assert main(["plan", "--device", "rtx-3060", "--bundle", str(toy_bundle)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--model MODEL" in text
    assert "MODEL is what the bundle was exported from. Give its other options too" in text
    for option in ("--config", "--vae", "--lora"):
        assert option in text
    assert main(["plan", "--device", "rtx-3060"]) == 0
    assert "MODEL" not in capsys.readouterr().out


def test_plan_shows_the_sizes_of_engines_and_counts_a_picture_to_draw_over(capsys):
    assert main(["plan", "--device", "rtx-3060", "--image"]) == 0
    text = capsys.readouterr().out
    assert "unet: batch 2, regions 1, tokens 77, concepts 4, height 16, width 16" in text
    assert "text_encoder, unet, vae_decoder, vae_encoder" in text


def test_plan_calls_its_numbers_computed_and_its_time_an_estimate(capsys):
    assert main(["plan", "--device", "rtx-3060"]) == 0
    text = capsys.readouterr().out
    assert "Computed from the graphs, not measured on the device." in text
    assert "an estimate: no GPU has been measured" in text


def test_plan_of_a_processor_says_what_compiling_for_openvino_takes(capsys, monkeypatch):
    monkeypatch.setattr(openvino_memory, "compile_memory", lambda bundle: 5 << 29)
    for device, told in (("cpu", True), ("rtx-3060", False)):
        assert main(["plan", "--device", device]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("openvino")]
        assert (len(lines) == 1) == told
        assert not told or "2.50 GiB while the UNet is compiled" in lines[0]
        assert not told or "perfusion-export --engine openvino --bundle" in lines[0]


def test_compiling_takes_room_for_the_weights_as_they_are_computed_with(bundle):
    """Beside what any graph takes; the embedded model's files hold them in half."""
    embedded = read_bundle(bundle_path(), verify=False)
    held = (bundle_path() / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert openvino_memory.compile_memory(embedded) == pytest.approx((128 << 20) + 3.1 * 2 * held, rel=0.01)
    assert openvino_memory.compile_memory(bundle) < 129 << 20  # its weights are next to nothing


def test_plan_does_not_guess_the_speed_of_a_device_it_does_not_know(capsys):
    facts = answer(capsys, "plan", "--device", "rtx-4070")
    assert facts["estimated_seconds"] is None
    assert main(["plan", "--device", "rtx-4070"]) == 0
    assert "not estimated: the device's speed is not known" in capsys.readouterr().out


def test_a_plan_that_does_not_fit_says_what_does(capsys):
    facts = answer(capsys, "plan", "--device", "orin-nano-4", "--resolution", "1024")
    assert facts["fits"] is False
    assert facts["nearest"]["width"] < 1024
    assert "The nearest that does is" in facts["explanation"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["plan", "--device", "orin"], 1, "no device profile named 'orin'. Did you mean orin-nano-4"),
        (["plan", "--device", ""], 1, "no device profile named ''. `perfusion-devices list`"),
        (["plan", "--batch", "1000000"], 1, "at most 65,536"),
        (["plan", "--device", "rtx-3060", "--concepts", "0"], 1, "0 concept slots, expected 1 to 64"),
        (["plan", "--resolution", "100"], 1, "The size is 100×100, expected multiples of 32"),
        (["plan", "--batch", "0"], 1, "The batch is 0"),
        (["plan", "--bundle", __file__], 1, f"{__file__} is not a folder"),
        (["plan", "--resolution", "many"], 2, "invalid int value: 'many'"),
        (["detect", "--device", "cpu"], 2, "unrecognized arguments: --device cpu"),
        (["list", "--bundle", "."], 2, "unrecognized arguments: --bundle ."),
        (["diagnose"], 2, "invalid choice: 'diagnose'"),
        ([], 2, "list|detect|doctor|plan"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line(capsys, arguments, code, message):
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_plan_on_a_machine_without_a_profile_asks_for_one(capsys, on, tmp_path, fake_nvml):
    library = fake_nvml(name="NVIDIA GeForce GTX 970", capability=(5, 2))
    on(detect(tmp_path, cards=lambda: read_cards(lambda: library)))
    assert main(["plan"]) == 1
    assert "No profile describes this machine. Name one with --device" in capsys.readouterr().err
