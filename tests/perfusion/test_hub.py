"""Names on the hub, asked of a hub on loopback by huggingface_hub itself, in processes of their own."""

from pathlib import Path
from typing import Any

import pytest

from perfusion.errors import ConceptError, HubError
from perfusion.hub import HubName, hub_name, origin_of
from perfusion.runtime import Runtime
from tests.perfusion.hub_endpoint import COMMIT, run_beside, serving


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", HubName(repo="owner/name")),
        ("owner/name@v1.0", HubName(repo="owner/name", revision="v1.0")),
        ("hf://owner/name", HubName(repo="owner/name")),
        ("hf://models/owner/name", HubName(repo="owner/name")),
        (
            "hf://owner/name@main/a/b.safetensors",
            HubName(repo="owner/name", revision="main", file="a/b.safetensors"),
        ),
        ("hf://owner/name/b.safetensors", HubName(repo="owner/name", file="b.safetensors")),
        ("name", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("owner/name/more", None),
        ("models/x.safetensors", None),
        ("C:\\models\\x", None),
    ],
)
def test_what_a_name_stands_for(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(text) == expected
    if not text.startswith("."):
        assert hub_name(Path(text)) == expected  # which makes hf:/ of hf://


def test_a_folder_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert hub_name("owner/name") is None


def test_what_lies_in_the_cache_of_the_hub_says_where_it_came_from():
    snapshot = Path("/cache/models--owner--my-name/snapshots") / COMMIT
    assert origin_of(snapshot) == origin_of(snapshot / "x.safetensors") == f"owner/my-name@{COMMIT}"
    assert origin_of(Path("/models/owner/name")) is None


CODE = """
import json, sys, logging
from perfusion.errors import PerfusionError
from perfusion import hub
logging.basicConfig(format="%(message)s")
answers = []
for kind, name in json.loads(sys.argv[1]):
    try:
        answers.append(str(getattr(hub, "local_" + kind)(name)))
    except PerfusionError as error:
        answers.append("refused: " + str(error))
print(json.dumps(answers))
"""

REPOSITORIES = {
    "me/bundle": {"bundle.json": b"{}", "unet.onnx": b"graph", "README.md": b"no", "engines/sm89.engine": b"x"},
    "me/cat": {"cat.safetensors": b"concept", "README.md": b"card"},
    "me/two": {"a.safetensors": b"a", "b.safetensors": b"b"},
    "me/model": {
        "model_index.json": b"{}", "unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"plain",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "vae/diffusion_pytorch_model.fp16.safetensors": b"v",
        "unet/diffusion_pytorch_model.bin": b"pickle", "safety_checker/model.safetensors": b"no",
        "tokenizer/merges.txt": b"m", "big.safetensors": b"all",
    },
    "me/secret": {"cat.safetensors": b"hidden"},
    "me/vae": {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"v", "diffusion_pytorch_model.bin": b"p"},
    "me/lora": {"README.md": b"", "pytorch_lora_weights.safetensors": b"lora", "image.png": b"picture"},
    "me/file": {"all-in-one.safetensors": b"checkpoint"},
}  # fmt: skip


def ask(endpoint: str, home: Path, *names: tuple[str, str], **env: str) -> tuple[list[str], str]:
    """What the names are here, and what was said on stderr."""
    answers: list[str]
    answers, said = run_beside(endpoint, home, CODE, names, **env)
    return answers, said


def files_below(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All that is asked of the hub once, then again with the hub gone."""
    home = tmp_path_factory.mktemp("home")
    names = [
        ("bundle", "me/bundle"), ("concept", "me/cat@main"), ("model", "me/model"), ("concept", "me/two"),
        ("model", "hf://me/model/big.safetensors"), ("concept", "me/secret"), ("model", "me/nothing"),
        ("vae", "me/vae"), ("lora", "me/lora"), ("model", "me/file"), ("settings", "me/model@v1"), ("model", "me/two"),
        ("shared", "me/bundle"), ("shared", "me/cat"),
    ]  # fmt: skip
    with serving(REPOSITORIES, private={"me/secret"}) as (endpoint, requests):
        answers, said = ask(endpoint, home, *names)
        (secret,), _ = ask(endpoint, home, ("concept", "me/secret"), HF_TOKEN="hf_secret")
    gone, _ = ask(
        endpoint,
        home,
        ("model", "me/model"),
        ("concept", "me/two"),
        ("concept", "me/cat"),
        HF_HUB_OFFLINE="1",
    )
    return {"answers": answers, "said": said, "requests": requests, "secret": secret, "gone": gone}


def test_a_bundle_comes_as_files_without_its_engines(fetched):
    folder = fetched["answers"][0]
    assert files_below(folder) == {"bundle.json": b"{}", "unet.onnx": b"graph"}
    assert not any(path.is_symlink() for path in Path(folder).rglob("*"))


def test_a_concept_is_the_only_file_that_can_be_one(fetched):
    assert Path(fetched["answers"][1]).read_bytes() == b"concept"
    assert "holds 2 files that may be concepts (a.safetensors, b.safetensors)" in fetched["answers"][3]


def test_of_a_model_only_what_is_needed_is_fetched(fetched):
    folder = fetched["answers"][2]
    assert files_below(folder) == {
        "model_index.json": b"{}", "unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"plain",
        "vae/diffusion_pytorch_model.fp16.safetensors": b"v", "tokenizer/merges.txt": b"m",
        "big.safetensors": b"all",  # asked for by its own name
    }  # fmt: skip
    assert origin_of(Path(folder)) == f"me/model@{COMMIT}"
    assert Path(fetched["answers"][4]).read_bytes() == b"all"


def test_a_vae_a_lora_and_a_model_of_one_file_are_found_in_repositories_of_their_own(fetched):
    vae, lora, file, settings, two = fetched["answers"][7:12]
    assert files_below(vae) == {"config.json": b"{}", "diffusion_pytorch_model.safetensors": b"v"}
    assert Path(lora).read_bytes() == b"lora"
    assert Path(file).read_bytes() == b"checkpoint"
    assert origin_of(Path(file)) == f"me/file@{COMMIT}"
    assert {name for name in files_below(settings) if name.endswith((".json", ".txt"))} == {
        "model_index.json", "unet/config.json", "tokenizer/merges.txt"
    }  # fmt: skip
    assert "me/two holds 2 files that may be models" in two


def test_of_settings_alone_no_weights_are_fetched(tmp_path):
    with serving(REPOSITORIES, private=set()) as (endpoint, _):
        (folder,), _ = ask(endpoint, tmp_path, ("settings", "me/model"))
    assert set(files_below(folder)) == {"model_index.json", "unet/config.json", "tokenizer/merges.txt"}


def test_what_is_shared_under_a_name_is_a_bundle_or_a_concept(fetched):
    assert fetched["answers"][12] == fetched["answers"][0]
    assert Path(fetched["answers"][13]).read_bytes() == b"concept"


def test_it_is_said_first_how_much_will_be_fetched(fetched):
    assert "me/bundle is no path here; fetching 2 files, 0.0 MB, from the hub" in fetched["said"]


def test_private_repositories_need_the_usual_token_which_is_never_shown(fetched):
    assert "knows no such repository for you" in fetched["answers"][5]
    assert Path(fetched["secret"]).read_bytes() == b"hidden"
    assert "hf_secret" not in fetched["said"] + "".join(fetched["requests"])


def test_what_is_nowhere_is_refused_with_both_places(fetched):
    assert fetched["answers"][6].startswith(
        "refused: me/nothing: No such folder is here, and the hub knows no such"
    )


def test_offline_what_was_fetched_is_there_and_the_rest_is_refused(fetched):
    assert fetched["gone"][0] == fetched["answers"][2]
    assert fetched["gone"][1].startswith("refused: me/two: ")
    assert Path(fetched["gone"][2]).read_bytes() == b"concept"


def test_a_runtime_asks_the_hub_for_a_concept_that_is_no_sample_and_no_file():
    """Offline here, so that it must say so; a name of one part stays a name of a sample."""
    runtime = Runtime()
    with pytest.raises(HubError, match=r"me/cat: No such folder is here, and the hub cannot be reached"):
        runtime.load_concept("me/cat")
    with pytest.raises(ConceptError, match="no sample concept of that name"):
        runtime.load_concept("cat")
