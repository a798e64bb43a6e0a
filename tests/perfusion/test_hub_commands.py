"""Commands that are given names on the hub: a small one on loopback, asked by huggingface_hub itself."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.perfusion.hub_endpoint import COMMIT, Repositories, run_beside, serving

COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
replies = []
for command, *words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = import_module(f"perfusion.commands.{command}").main(words)
    replies.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(replies))
"""

SERVER = """
import json, sys
from pathlib import Path
from starlette.testclient import TestClient
from perfusion.commands import serve
from perfusion.serving import lifecycle
services = []
lifecycle.run_service = lambda make, listening: services.append(make())
bundle, texts = json.loads(sys.argv[1])
words = ["--bundle", bundle, "--training-model", "me/base", "--data", "data", "--quiet", "--provider", "cpu"]
assert serve.main(words) == 0
client = TestClient(services[0].application, base_url="http://127.0.0.1:8188")
replies = []
for text in texts:
    body = {"prompt": text, "num_inference_steps": 1, "steps": 1, "width": 32, "height": 32, "size": "32x32"}
    for path in ("/api/jobs", "/v1/images/generations", "/sdapi/v1/txt2img"):
        replies.append(client.post(path, json=body).status_code)
services[0].close()
print(json.dumps([str(services[0]._parts.runtime.bundle.folder), replies]))
"""

TRAINING = """
import json, sys
from perfusion.base.base_model import load_base
from perfusion.base.lora import LoRAFile
from perfusion.base.model_options import ModelOptions
from perfusion.commands import train
from perfusion.export.manifest import make_manifest
options = ModelOptions(vae="me/vae", loras=(LoRAFile(path="me/lora"),), distilled="none")
base = load_base("me/tiny", options=options)
manifest = make_manifest(base, files={}, parity={}, precision="fp32")
plain = load_base("me/tiny@main")
code = train.main(json.loads(sys.argv[1]))
print(json.dumps([code, manifest["made_from"], base.fingerprint == plain.fingerprint]))
"""


def files_of(folder: Path) -> dict[str, bytes]:
    """A folder as a repository."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def repositories(toy_bundle, bundle, make_concept) -> Repositories:
    traits = {"base": bundle.base, "base_fingerprint": bundle.base_fingerprint}
    concept = make_concept(text_dim=bundle.text_dim, width=bundle.unet.value_width, **traits)
    return {
        "me/toy": files_of(toy_bundle) | {"README.md": b"no", "engines/x.engine": b"no"},
        "me/cat": {"cat.safetensors": concept.to_bytes(), "README.md": b"no"},
        "me/base": {"model_index.json": b"{}"},
    }


@pytest.fixture(scope="module")
def said(repositories, tmp_path_factory) -> dict[str, Any]:
    """Every command with names, the last ones after the hub has gone."""
    home = tmp_path_factory.mktemp("home")
    draw = ["generate", "--prompt", "a <cat>", "--steps", "1", "--seed", "1", "--provider", "cpu"]
    drawn = [*draw, "--bundle", "me/toy", "--concept", "hf://me/cat@main/cat.safetensors:bias=0.6"]
    sweep = [
        "sweep",
        "--bundle",
        "me/toy",
        "--concept",
        "me/cat",
        "--prompt",
        "a <cat>",
        "--steps",
        "1",
        "--count",
        "1",
    ]
    calls = {
        "generate": [*drawn, "--output", "a.png"],
        "like": [
            "generate",
            "--like",
            "a.png",
            "--bundle",
            "me/toy",
            "--concept",
            "me/cat",
            "--output",
            "b.png",
        ],
        "inspect a concept": ["inspect", "me/cat", "--bundle", "me/toy"],
        "inspect a bundle": ["inspect", "me/toy"],
        "plan": ["devices", "plan", "--bundle", "me/toy", "--device", "rtx-3060"],
        "convert": ["convert", "--concept", "me/cat", "--output", "card.png"],
        "sweep": [*sweep, "--bias", "0.6", "--grid", "grid.png"],
        "choose": [*sweep, "--bias", "0.6", "--choose", "0.7"],
        "wrong way round": [*draw, "--bundle", "me/cat", "--output", "c.png"],
        "nothing there": [*draw, "--bundle", "me/none", "--output", "c.png"],
    }
    with serving(repositories, private=set()) as (endpoint, requests):
        replies, _ = run_beside(endpoint, home, COMMANDS, list(calls.values()))
        fetches = list(requests)
        served, _ = run_beside(
            endpoint, home, SERVER, ["me/toy", ["a <me/other>", "me/other", "<lora:me/other:1>"]]
        )
        since = requests[len(fetches) :]
    gone, _ = run_beside(endpoint, home, COMMANDS, [[*drawn, "--output", "d.png"]], HF_HUB_OFFLINE="1")
    return {
        "home": home, "replies": dict(zip(calls, replies, strict=True)), "gone": gone[0], "served": served,
        "requests": fetches, "since": since,
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    ["generate", "like", "inspect a concept", "inspect a bundle", "plan", "convert", "sweep"],
)
def test_commands_take_names_on_the_hub(said, command):
    code, _, err = said["replies"][command]
    assert code == 0, err


def test_the_picture_is_that_of_the_files(said, toy_bundle, repositories):
    from perfusion.runtime import Runtime

    with Runtime(toy_bundle, provider="cpu") as runtime:
        runtime.load_concept(repositories["me/cat"]["cat.safetensors"], bias=0.6)
        picture = runtime.generate("a <cat>", seed=1, num_inference_steps=1)
    for name in ("a.png", "d.png"):
        with Image.open(said["home"] / name) as drawn:
            assert drawn.tobytes() == picture.tobytes()


def test_what_will_be_fetched_is_told_first_with_its_size_and_the_room_there_is(said):
    _, _, err = said["replies"]["generate"]
    assert "me/toy is no path here; fetching" in err
    assert " GB are free" in err


def test_only_what_is_needed_is_fetched_and_only_once(said):
    fetched = [request for request in said["requests"] if request.startswith("GET /me/toy/resolve/")]
    assert fetched
    assert len(fetched) == len(set(fetched))
    assert not any(request.endswith(("README.md", ".engine")) for request in fetched)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("choose", "me/cat lies on the hub. Fetch its file, and give --choose with that"),
        ("wrong way round", "me/cat has no file like bundle.json"),
        ("nothing there", "me/none: No such folder is here, and the hub knows no such repository for you"),
    ],
)
def test_what_cannot_be_is_told(said, command, message):
    code, _, err = said["replies"][command]
    assert code == 1
    assert message in err


def test_offline_all_is_drawn_from_what_was_fetched(said):
    code, _, err = said["gone"]
    assert code == 0, err


def test_a_server_fetches_its_models_when_it_starts_and_nothing_that_a_request_names(said):
    assert any("/me/base/resolve/" in request for request in said["since"])
    folder, statuses = said["served"]
    assert folder.endswith("me--toy/main")
    assert len(statuses) == 9
    assert all(status < 500 for status in statuses)
    assert not any("other" in request for request in said["since"])


@pytest.mark.slow
def test_a_model_a_vae_and_a_lora_of_the_hub_are_trained_on_and_told(tiny_model, tiny_base, tmp_path):
    import safetensors.torch

    from perfusion.concept.concept_file import Concept
    from tests.perfusion.base.test_lora import kohya, random_factors

    safetensors.torch.save_file(kohya(random_factors(tiny_base), tiny_base), tmp_path / "lora.safetensors")
    repositories = {
        "me/tiny": files_of(tiny_model),
        "me/vae": files_of(tiny_model / "vae"),
        "me/lora": {"style.safetensors": (tmp_path / "lora.safetensors").read_bytes()},
    }
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures/1.png")
    words = [
        "--images",
        "pictures",
        "--superclass",
        "cat",
        "--model",
        "me/tiny",
        "--steps",
        "1",
        "--batch-size",
        "1",
    ]
    with serving(repositories, private=set()) as (endpoint, _):
        content = [*words, "--select", "last", "--output", "cat.safetensors", "--quiet"]
        (code, made_from, same), _ = run_beside(endpoint, tmp_path, TRAINING, content)
    assert code == 0
    assert made_from["model"] == f"me/tiny@{COMMIT}"
    assert [entry["file"] for entry in made_from["loras"]] == ["style.safetensors"]
    assert not same
    concept = Concept.load(tmp_path / "cat.safetensors")
    assert concept.training["base_model"] == f"me/tiny@{COMMIT}"
    assert concept.base_fingerprint == tiny_base.fingerprint
