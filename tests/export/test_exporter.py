"""A whole export: what is in the folder, and what is there when it fails."""

import errno
import hashlib
import json
import shutil
import sys

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import tokenizers

from perfusion.errors import ExportError, ModelError, PerfusionError
from perfusion.export import STAGES, export_bundle
from perfusion.runtime import read_bundle

GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_manifest_on_disk_is_the_one_returned(exported):
    assert json.loads((exported.folder / "bundle.json").read_text(encoding="utf-8")) == exported.manifest


def test_every_file_but_the_manifest_is_listed_with_its_size_and_digest(exported):
    files = exported.manifest["files"]
    found = snapshot(exported.folder)
    del found["bundle.json"]
    assert set(files) == set(found)
    for name, content in found.items():
        assert files[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert exported.size == sum(len(content) for content in found.values())


def test_the_differences_from_torch_are_in_the_manifest(exported):
    assert set(exported.parity) == set(GRAPHS)
    assert all(0 < error < 1e-5 for error in exported.parity.values())


def test_the_runtime_reads_what_the_exporter_writes(exported, base):
    bundle = read_bundle(exported.folder)
    assert bundle.base_fingerprint == base.fingerprint
    assert bundle.unet.key_width == base.layers[-1].key_slice.stop


def test_the_tokenizer_gives_the_ids_of_the_pipelines_own(exported, base):
    tokenizer = tokenizers.Tokenizer.from_file(str(exported.folder / "tokenizer.json"))
    for prompt in ("a photo of a cat on a beach", "", "UPPER  case", "naïve ☃ zebra", "cat " * 100):
        assert tokenizer.encode(prompt).ids == base.tokenizer(prompt).input_ids, prompt


def test_a_padded_call_of_the_pipelines_tokenizer_leaves_no_padding_in_the_bundle(exported):
    """transformers switches padding on in the tokenizer it wraps, and leaves it on."""
    content = json.loads((exported.folder / "tokenizer.json").read_text())
    assert content["padding"] is None
    assert content["truncation"] is None


def test_the_key_projections_are_every_layers_to_k(exported, base):
    (keys,) = safetensors.numpy.load_file(exported.folder / "key_projections.safetensors").values()
    assert keys.dtype == np.float16  # exact: the model was stored so
    stacked = [base.unet.get_parameter(f"{layer.name}.to_k.weight").numpy() for layer in base.layers]
    np.testing.assert_array_equal(keys.astype(np.float32), np.concatenate(stacked))


def test_the_stages_are_told_in_order_and_at_the_end(fast_export, toy_model, tmp_path):
    told: list[tuple[str, int, int]] = []
    export_bundle(toy_model, tmp_path / "bundle", progress=lambda *stage: told.append(stage))
    assert told == [(name, done, 5) for done, name in enumerate((*STAGES, "done"))]


def test_a_difference_above_the_tolerance_fails_and_leaves_nothing(fast_export, toy_model, tmp_path):
    with pytest.raises(
        ExportError,
        match=r"^text_encoder: ONNX Runtime and torch differ by .* at most 1e-09; they part first at \w+",
    ):
        export_bundle(toy_model, tmp_path / "bundle", tolerance=1e-9)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_in_the_middle_leaves_nothing_and_says_so(
    fast_export, monkeypatch, toy_model, tmp_path
):
    def full(model, path):
        path.write_bytes(b"as much as there was room for")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("perfusion.export.exporter.save", full)
    with pytest.raises(
        PerfusionError, match=r"bundle cannot be written: no space left on device\. Free some space"
    ):
        export_bundle(toy_model, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a file's size is Linux's here")
def test_a_write_that_the_system_refuses_leaves_nothing_and_says_so(fast_export, toy_model, tmp_path):
    """A real refusal, from the call that writes: a file may not grow past 20 kB."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(PerfusionError, match="bundle cannot be written: file too large"):
            export_bundle(toy_model, tmp_path / "bundle")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_the_bundle_that_was_there(fast_export, exported, toy_model, tmp_path):
    output = shutil.copytree(exported.folder, tmp_path / "bundle")
    before = snapshot(tmp_path)
    with pytest.raises(ExportError):
        export_bundle(toy_model, output, tolerance=0)
    assert snapshot(tmp_path) == before


def test_a_second_export_replaces_the_first_with_nothing_of_it_open(
    fast_export, exported, toy_model, tmp_path, held_files
):
    output = shutil.copytree(exported.folder, tmp_path / "bundle")
    (output / "old.engine").write_bytes(b"of another model")
    export_bundle(toy_model, output)
    assert snapshot(output) == snapshot(exported.folder)


def test_a_resolution_changes_the_defaults_alone(fast_export, exported, toy_model, tmp_path):
    manifest = export_bundle(toy_model, tmp_path / "bundle", resolution=64).manifest
    assert manifest["defaults"] == exported.manifest["defaults"] | {"width": 64, "height": 64}
    assert manifest["files"] == exported.manifest["files"]


def never(*_, **__):
    raise AssertionError("the conversion began")


@pytest.fixture
def no_conversion(monkeypatch):
    monkeypatch.setattr("perfusion.export.exporter.to_onnx", never)


def test_a_folder_of_somebodys_files_is_not_replaced(no_conversion, toy_model, tmp_path):
    (tmp_path / "letter.txt").write_text("dear reader")
    with pytest.raises(PerfusionError, match=r"holds files but no bundle\.json"):
        export_bundle(toy_model, tmp_path)
    assert (tmp_path / "letter.txt").read_text() == "dear reader"


def test_an_output_that_is_a_file_is_refused(no_conversion, toy_model, tmp_path):
    (tmp_path / "bundle").write_text("a file")
    with pytest.raises(PerfusionError, match="is a file, expected a folder"):
        export_bundle(toy_model, tmp_path / "bundle")


def test_an_output_that_cannot_be_written_is_refused(no_conversion, toy_model):
    with pytest.raises(PerfusionError, match=r"/proc/bundle cannot be written"):
        export_bundle(toy_model, "/proc/bundle")


@pytest.mark.parametrize("output", ["model", ".", "model/../model", "other"])
def test_an_output_that_would_replace_a_model_is_refused(no_conversion, toy_model, tmp_path, output):
    shutil.copytree(toy_model, tmp_path / "model")
    shutil.copytree(toy_model, tmp_path / "other")
    for folder in (tmp_path, tmp_path / "model", tmp_path / "other"):
        (folder / "bundle.json").write_text("{}")  # made by us, so only the model is in the way
    before = snapshot(tmp_path)
    with pytest.raises(ExportError, match="holds a diffusers model and would be replaced"):
        export_bundle(tmp_path / "model", tmp_path / output)
    assert snapshot(tmp_path) == before


def test_a_model_or_precision_or_resolution_that_cannot_be_is_refused_first(
    no_conversion, toy_model, tmp_path
):
    with pytest.raises(ModelError, match="no such folder"):
        export_bundle(tmp_path / "nothing", tmp_path / "bundle")
    with pytest.raises(ExportError, match="precision 'int3' is not known, expected one of fp32, fp16, int8"):
        export_bundle(toy_model, tmp_path / "bundle", precision="int3")
    with pytest.raises(
        ExportError, match=r"opset 19 is not offered, expected 20 \(from TensorRT 10\.0 .* or 23 "
    ):
        export_bundle(toy_model, tmp_path / "bundle", opset=19)
    with pytest.raises(ExportError, match="int8 computes in float32 already; it goes with fp16"):
        export_bundle(toy_model, tmp_path / "bundle", precision="int8", keep_fp32=["unet"])
    with pytest.raises(ExportError, match="hold none of fp16; it goes with fp32"):
        export_bundle(toy_model, toy_model, precision="fp16", link_weights=True)
    with pytest.raises(ModelError, match="resolution 30 does not fit"):
        export_bundle(toy_model, tmp_path / "bundle", resolution=30)
    with pytest.raises(ModelError, match="resolution 0 does not fit"):
        export_bundle(toy_model, tmp_path / "bundle", resolution=0)
    assert not list(tmp_path.iterdir())


def test_linked_weights_share_the_models_folder_and_compute_the_same(
    fast_export, exported, open_session, toy_model, tmp_path
):
    model = shutil.copytree(toy_model, tmp_path / "model")
    before = snapshot(model)
    linked = export_bundle(model, model, link_weights=True)
    after = snapshot(model)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == set(snapshot(exported.folder))
    weights = {name for name in after if name.endswith("safetensors") and "/" in name}
    assert weights <= set(linked.manifest["files"])
    assert read_bundle(model).unet.file == model / "unet.onnx"
    for name in GRAPHS:
        assert len(after[f"{name}.onnx"]) < 0.8 * len((exported.folder / f"{name}.onnx").read_bytes())
    moved = model.rename(tmp_path / "elsewhere")
    ids = np.zeros((1, 77), np.int64)
    feeds = {"input_ids": ids, "concept_embeddings": np.zeros((0, 16), np.float32)}
    outputs = [
        open_session(folder / "text_encoder.onnx").run(None, feeds)[0] for folder in (moved, exported.folder)
    ]
    np.testing.assert_array_equal(*outputs)


def test_a_failed_linked_export_leaves_the_models_folder_as_it_was(fast_export, toy_model, tmp_path):
    model = shutil.copytree(toy_model, tmp_path / "model")
    before = snapshot(model)
    with pytest.raises(ExportError, match="differ by"):
        export_bundle(model, model, link_weights=True, tolerance=0)
    assert snapshot(model) == before


def test_linked_weights_in_another_folder_are_refused(no_conversion, toy_model, tmp_path):
    with pytest.raises(ExportError, match="expected the model's own folder"):
        export_bundle(toy_model, tmp_path / "bundle", link_weights=True)


def test_onnxruntime_refuses_a_linked_graph_without_its_weights(fast_export, toy_model, tmp_path):
    model = shutil.copytree(toy_model, tmp_path / "model")
    export_bundle(model, model, link_weights=True)
    shutil.rmtree(model / "unet")
    with pytest.raises(Exception, match="diffusion_pytorch_model"):
        onnxruntime.InferenceSession(model / "unet.onnx", providers=["CPUExecutionProvider"])


def test_weights_that_are_links_are_not_linked_to(no_conversion, toy_model, tmp_path):
    """As in the cache of a hub: ONNX Runtime would refuse the bundle's graphs."""
    model = shutil.copytree(toy_model, tmp_path / "model")
    weights = model / "unet/diffusion_pytorch_model.safetensors"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    before = snapshot(model)
    with pytest.raises(ExportError, match=r"unet/diffusion_pytorch_model\.safetensors is a symbolic link"):
        export_bundle(model, model, link_weights=True)
    assert snapshot(model) == before
