"""bundle.json is believed only as far as it can be checked."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perfusion.bundle.graph_io import graph_io_of
from perfusion.errors import BundleError, ConceptError
from perfusion.runtime import read_bundle


def edit(folder: Path, path: str, value: Any) -> None:
    """Set one value in bundle.json; `path` is like "unet.layers.0.key_dim", DELETE takes the value out."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    inner = manifest
    for part in parents:
        inner = inner[part]
    if value is DELETE:
        del inner[last]
    else:
        inner[last] = value
    (folder / "bundle.json").write_text(json.dumps(manifest))


DELETE = object()


def test_the_toy_bundle_is_read_as_it_is_written(toy_bundle):
    bundle = read_bundle(toy_bundle)
    manifest = json.loads((toy_bundle / "bundle.json").read_bytes())
    assert bundle.base == manifest["base"]
    assert bundle.text_encoder.file == toy_bundle / "text_encoder.onnx"
    assert [layer.name for layer in bundle.unet.layers] == [one["name"] for one in manifest["unet"]["layers"]]
    assert bundle.unet.value_width == sum(one["value_dim"] for one in manifest["unet"]["layers"])
    assert bundle.size_step == manifest["vae"]["downscale"] * manifest["unet"]["size_multiple"]
    assert bundle.noise_model.prediction_type == manifest["scheduler"]["prediction_type"]


def test_a_folder_that_is_no_bundle_is_told_apart_from_one_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match=r"holds no bundle\.json.* perfusion-export"):
        read_bundle(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        read_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "expected an object"),
        (b"{}", "does not say that its format is 'perfusion-bundle'"),
        (b'{"format": "perfusion-concept"}', "does not say that its format"),
        (b'{"format": "perfusion-bundle"}', "has no 'format_version'"),
        (b'{"format": "perfusion-bundle", "format_version": 3}', r"version 3, expected 1 or 2\. Update"),
        (b'{"format": "perfusion-bundle", "format_version": 0}', r"version 0, expected 1 or 2\. Export"),
        (b'{"format": "perfusion-bundle", "format_version": 1}', "has no 'files'"),
        (b" " * (1 << 20) + b"{}", "larger than 1048576 bytes"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path, content, message):
    (tmp_path / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_bundle(tmp_path)


def test_a_missing_file_is_named(bundle_copy):
    (bundle_copy / "unet.onnx").unlink()
    with pytest.raises(BundleError, match=r"misses the file unet\.onnx"):
        read_bundle(bundle_copy)


def test_a_cut_file_is_named_with_both_sizes(bundle_copy):
    path = bundle_copy / "vae_decoder.onnx"
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(
        BundleError, match=rf"vae_decoder\.onnx has {len(data) - 1} bytes, expected {len(data)}"
    ):
        read_bundle(bundle_copy)


def test_one_changed_bit_is_found(bundle_copy):
    path = bundle_copy / "unet.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet\.onnx does not have the checksum"):
        read_bundle(bundle_copy)
    read_bundle(bundle_copy, verify=False)


@pytest.mark.parametrize(
    "name", ["../unet.onnx", "/etc/passwd", "a/../../b", "a\\b", "C:unet.onnx", "./unet.onnx", "."]
)
def test_a_path_out_of_the_folder_is_refused(bundle_copy, name):
    edit(bundle_copy, "unet/file", name)
    with pytest.raises(BundleError, match="expected a path inside the bundle's folder"):
        read_bundle(bundle_copy)


def test_a_listed_path_out_of_the_folder_is_not_even_opened(bundle_copy):
    edit(bundle_copy, "files/..", {"bytes": 0, "sha256": "0" * 64})
    with pytest.raises(BundleError, match="expected a path inside the bundle's folder"):
        read_bundle(bundle_copy)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("base", DELETE, "has no 'base'"),
        ("base", "", "'base' is '', expected a text of 1 to 255 characters"),
        ("base", "a" * 256, r"'base' is 'a{56}\.\.\., expected a text of 1 to 255 characters"),
        ("scheduler/sampler", "a" * 5000, r"'sampler' is 'a{56}\.\.\., expected a text"),
        ("scheduler/beta_schedule", "a" * 5000, r"'beta_schedule' is 'a{56}\.\.\., expected a text"),
        ("text_dim", "16", "'text_dim' is '16', expected a whole number from 1 on"),
        ("text_dim", True, "'text_dim' is True, expected a whole number"),
        ("text_dim", 32, r"gives 16 numbers a token and the UNet reads 32"),
        ("base_fingerprint", "abc", "expected 64 hexadecimal digits"),
        ("unet/file", "other.onnx", "'other.onnx', which is not among its 'files'"),
        ("unet/layers", [], "'layers' is .., expected a list"),
        ("unet/layers/1/value_dim", 0, r"'layers'\[1\]: 'value_dim' is 0"),
        ("unet/in_channels", 9, "the UNet reads 9 channels and the latents have 4"),
        ("vae/scaling_factor", 0, "expected a finite number above 0"),
        ("vae/scaling_factor", float("nan"), "expected a finite number"),
        ("text_encoders", [{}, {}, {}], "has 3 text encoders"),
        ("text_encoders/0/eos_token_id", 840, "expected an id below 840"),
        ("scheduler/prediction_type", "sample", "prediction_type is 'sample'"),
        (
            "scheduler/prediction_type",
            "flow_prediction",
            "is 'flow_prediction', expected one of epsilon, v_prediction.* trained otherwise cannot be used",
        ),
        ("scheduler/beta_start", DELETE, "has no 'beta_start'"),
        ("scheduler/thresholding", True, "'thresholding' is set"),
        ("scheduler/sampler", "unipc", "'sampler' is 'unipc', expected one of ddim, plms, euler"),
        ("scheduler/clip_sample", 1, "'clip_sample' is 1, expected true or false"),
        ("defaults/width", 33, "the default width is 33, expected a multiple of 8"),
        ("defaults", 3, "'defaults' is 3, expected an object"),
        ("files/unet.onnx/bytes", DELETE, "has no 'bytes'"),
    ],
)
def test_a_wrong_value_is_named(bundle_copy, path, value, message):
    edit(bundle_copy, path, value)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle_copy)


def test_key_projections_may_be_left_out(bundle_copy):
    edit(bundle_copy, "key_projections", DELETE)
    assert read_bundle(bundle_copy).key_projections is None


def places(value: Any, prefix: str = "") -> Iterator[str]:
    """The paths of all values, inner ones too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield f"{prefix}{name}"
        yield from places(inner, f"{prefix}{name}/")


def test_no_single_wrong_value_gives_anything_but_a_sentence(bundle_copy):
    text = (bundle_copy / "bundle.json").read_text()
    sentences = []
    for path in places(json.loads(text)):
        for value in (None, -1, 0, 10**400, 1e308, "", "x", [], {}, [[]], True, float("inf"), DELETE):
            edit(bundle_copy, path, value)
            try:
                read_bundle(bundle_copy, verify=False)
            except BundleError as error:
                sentences.append(str(error))
            (bundle_copy / "bundle.json").write_text(text)
    assert len(sentences) > 500
    assert all(len(sentence) < 500 and sentence.endswith(".") for sentence in sentences)


def test_sample_concepts_are_found_by_name_and_files_by_path(bundle_copy: Path, tmp_path: Path) -> None:
    sample = bundle_copy / "concepts" / "school-bus.safetensors"
    bundle = read_bundle(bundle_copy)
    assert bundle.find_concept("a.safetensors") == Path("a.safetensors"), (
        "who reads it says that it is not there"
    )
    with pytest.raises(
        ConceptError, match="school-bus: no such file, and this bundle has no sample concepts"
    ):
        bundle.find_concept("school-bus")
    sample.parent.mkdir()
    sample.write_bytes(b"")
    assert bundle.find_concept("school-bus") == sample
    own = tmp_path / "school-bus.safetensors"
    own.write_bytes(b"")
    assert bundle.find_concept(own) == own
    with pytest.raises(ConceptError, match=r"cat: no such file, and no sample .*; there is school-bus"):
        bundle.find_concept("cat")


def test_what_a_bundle_leaves_open_has_its_meaning(bundle):
    assert bundle.text_encoders == (bundle.text_encoder,)
    assert (bundle.text_encoder.name, bundle.text_encoder.output) == ("text_encoder", "last_hidden_state")
    assert bundle.text_encoder.pooled_output is None and bundle.text_encoder.tokenizer is None
    assert not bundle.unet.conditions and not bundle.force_zeros_for_empty_prompt
    assert bundle.decoder.encoder == bundle.folder / "vae_encoder.onnx"


def second_encoder(folder: Path) -> dict[str, Any]:
    first = json.loads((folder / "bundle.json").read_bytes())["text_encoders"][0]
    return {**first, "hidden_size": 8, "output": "penultimate_hidden_state", "pooled_output": "text_embeds"}


def test_two_text_encoders_and_further_conditions_are_read(bundle_copy):
    first = json.loads((bundle_copy / "bundle.json").read_bytes())["text_encoders"][0]
    edit(bundle_copy, "text_encoders", [{**first, "hidden_size": 8}, second_encoder(bundle_copy)])
    edit(bundle_copy, "unet/conditions", {"text_embeds": 40, "time_ids": 6})
    edit(bundle_copy, "force_zeros_for_empty_prompt", True)
    edit(bundle_copy, "scheduler/sampler", "dpmpp_2m")
    edit(bundle_copy, "scheduler/use_karras_sigmas", True)
    edit(bundle_copy, "scheduler/rescale_betas_zero_snr", True)
    edit(bundle_copy, "vae/latent_rgb", {"weight": [[0.5, 0, -1]] * 4, "bias": [0, 0.25, 1]})
    bundle = read_bundle(bundle_copy)
    assert [one.name for one in bundle.text_encoders] == ["text_encoder", "text_encoder_2"]
    assert bundle.text_encoders[1].pooled_output == "text_embeds"
    assert bundle.unet.conditions == {"text_embeds": 40, "time_ids": 6}
    assert bundle.force_zeros_for_empty_prompt and bundle.noise_model.rescale_betas_zero_snr
    assert bundle.defaults.scheduler == "dpmpp_2m_karras"
    assert bundle.decoder.latent_rgb is not None
    assert bundle.decoder.latent_rgb.weight.shape == (4, 3)
    assert bundle.decoder.latent_rgb.bias.tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("sampler, name", [("euler", "euler_karras"), ("ddim", "ddim"), ("lcm", "lcm")])
def test_karras_levels_are_for_the_samplers_that_know_them(bundle_copy, sampler, name):
    edit(bundle_copy, "scheduler/sampler", sampler)
    edit(bundle_copy, "scheduler/use_karras_sigmas", True)
    assert read_bundle(bundle_copy).defaults.scheduler == name


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            "unet/conditions",
            {"text_embeds": 40},
            "asks for pooled text encodings, and 0 text encoders give them",
        ),
        ("unet/conditions", {"time_ids": 5}, "asks for 5 sizes, and this version gives 6"),
        (
            "unet/conditions",
            {"pose": 4},
            "the UNet asks for pose, and this version knows text_embeds, time_ids",
        ),
        (
            "vae/latent_rgb",
            {"weight": [[1, 2, 3]], "bias": [0, 0, 0]},
            "'weight' is .*a list of 4 lists of 3",
        ),
        (
            "vae/latent_rgb",
            {"weight": [[1, 2]] * 4, "bias": [0, 0, 0]},
            r"'weight\[0\]' is .*a list of 3 numbers",
        ),
        ("vae/latent_rgb", {"weight": [[1, 2, "x"]] * 4, "bias": [0, 0, 0]}, r"'weight\[0\]\[2\]' is 'x'"),
        ("scheduler/use_karras_sigmas", 3, "'use_karras_sigmas' is 3, expected true or false"),
        ("text_encoders/0/tokenizer", "nothing.json", "not among its 'files'"),
    ],
)
def test_a_wrong_value_of_what_may_be_left_out_is_named(bundle_copy, path, value, message):
    edit(bundle_copy, path, value)
    with pytest.raises(BundleError, match=message):
        read_bundle(bundle_copy)


def test_text_encoders_that_read_prompts_of_other_lengths_do_not_belong_together(bundle_copy):
    first = json.loads((bundle_copy / "bundle.json").read_bytes())["text_encoders"][0]
    other = {**second_encoder(bundle_copy), "context_length": 64}
    edit(bundle_copy, "text_encoders", [{**first, "hidden_size": 8}, other])
    with pytest.raises(BundleError, match="read prompts of 64 and 77 tokens"):
        read_bundle(bundle_copy)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", ["unet.onnx", "tokenizer.json", "bundle.json"])
def test_a_link_out_of_the_folder_is_refused_even_to_the_very_bytes(bundle_copy, tmp_path, name, verify):
    outside = tmp_path / "outside"
    (bundle_copy / name).rename(outside)
    (bundle_copy / name).symlink_to(f"../{outside.name}")
    with pytest.raises(BundleError, match=rf"{name} is a link that leads out of the bundle's folder.*cp -rL"):
        read_bundle(bundle_copy, verify=verify)


@pytest.mark.parametrize("name", ["weights.bin", "concepts", "engines/trt-sm87/unet-0.engine"])
def test_nor_may_anything_else_in_it_be_such_a_link(bundle_copy, tmp_path, name):
    """A graph may name weights that bundle.json does not list; samples and engines are found by their places."""
    (bundle_copy / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle_copy / name).symlink_to(tmp_path)
    with pytest.raises(BundleError, match=rf"{name} is a link that leads out"):
        read_bundle(bundle_copy, verify=False)


def test_links_within_a_bundle_and_to_a_bundle_are_followed(bundle_copy, tmp_path):
    (bundle_copy / "unet.onnx").rename(bundle_copy / "graph.bin")
    (bundle_copy / "unet.onnx").symlink_to("graph.bin")
    (bundle_copy / "round").symlink_to("round")
    (tmp_path / "linked").symlink_to(bundle_copy)
    assert read_bundle(tmp_path / "linked").unet.file == tmp_path / "linked" / "unet.onnx"


@pytest.mark.parametrize("scale, conditions, guided", [
    (7.5, {}, True), (1.0001, {}, True), (1, {}, False), (0.5, {}, False), (0, {}, False),
    (7.5, {"timestep_cond": 256}, False),
])  # fmt: skip
def test_drawing_planning_and_engines_agree_on_what_guidance_is(bundle_copy, scale, conditions, guided):
    """One of 1 or less is none, as in diffusers; nor is that of a model which reads the scale itself."""
    from perfusion.runtime.request import make_request
    from perfusion.tensorrt.shape_ranges import ShapeOptions, shape_ranges_of

    edit(bundle_copy, "defaults/guidance_scale", scale)
    edit(bundle_copy, "unet/conditions", conditions)
    bundle = read_bundle(bundle_copy)
    answers = (
        make_request(bundle, "a cat", 0).guided,
        bundle.usual_call.guided,
        shape_ranges_of("unet", bundle, ShapeOptions(batches=(1,)))[0]["batch"] == (2, 2, 2),
    )
    assert answers == (guided,) * 3


def test_a_bundle_opened_by_a_relative_path_stays_where_it_is(bundle_copy, monkeypatch):
    monkeypatch.chdir(bundle_copy.parent)
    bundle = read_bundle(bundle_copy.name)
    monkeypatch.chdir("/")
    assert bundle.folder == bundle_copy
    assert all(graph.file.is_file() for graph in graph_io_of(bundle).values())


def test_a_folder_with_a_samples_name_does_not_hide_the_sample(bundle_copy, tmp_path, monkeypatch):
    (bundle_copy / "concepts").mkdir()
    sample = bundle_copy / "concepts" / "pink-cake.safetensors"
    sample.write_bytes(b"concept")
    bundle = read_bundle(bundle_copy)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pink-cake").mkdir()
    assert bundle.find_concept("pink-cake") == sample
    (tmp_path / "other").mkdir()
    assert bundle.find_concept("other") == Path("other")  # refused where it is opened, as a folder


def test_a_bundle_in_the_hubs_cache_opens_though_it_is_made_of_links(bundle_copy, tmp_path):
    repository = tmp_path / "models--me--bundle"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(bundle_copy.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert read_bundle(snapshot).base == "pocket"
    (tmp_path / "elsewhere").write_bytes(b"")
    (snapshot / "more.onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link that leads out of the bundle's folder"):
        read_bundle(snapshot)
