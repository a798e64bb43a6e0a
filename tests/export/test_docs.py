"""docs/graph.md is the contract: its tables must be what the exporter writes."""

import copy
import json
import re
import shutil
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import safetensors.numpy

from perfusion.base.attention import install
from perfusion.base.base_model import load_base
from perfusion.export import PRECISIONS
from perfusion.export.convert import OPSETS, to_onnx
from perfusion.export.graph_modules import graphs_of
from perfusion.export.half import KEPT
from perfusion.export.manifest import SAMPLER_OF_CLASS, make_manifest
from perfusion.export.proof.parity import TOLERANCES
from perfusion.export.proof.probe import _LARGEST
from perfusion.export.weights import FLOAT16_MAX, INLINE_LIMIT
from perfusion.runtime import read_bundle

PAGE = (Path(__file__).parents[2] / "docs" / "graph.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def tables(text: str) -> dict[str, list[list[str]]]:
    """By the first cell of its head, the rows of every table."""
    found: dict[str, list[list[str]]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = (
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()
        )
        found[head[0]] = rows
    return found


@pytest.fixture(scope="module")
def manifest(exported):
    return json.loads((exported.folder / "bundle.json").read_text())


def numbers_of(manifest, encoder=0):
    """What the names in the page's shapes stand for."""
    numbers = {
        key: manifest[part][key] for part, key in (("unet", "in_channels"), ("vae", "latent_channels"))
    }
    numbers |= manifest["text_encoders"][encoder] | {"text_dim": manifest["text_dim"]}
    layers = manifest["unet"]["layers"]
    numbers["Σ d_K"] = sum(layer["key_dim"] for layer in layers)
    numbers["Σ d_V"] = sum(layer["value_dim"] for layer in layers)
    return numbers | manifest["unet"]["conditions"]


def documented(rows, numbers):
    return [(row[0].strip("`"), row[1], shape_of(row[2], numbers)) for row in rows]


def found(values):
    return [(value.name, type_of(value), dims_of(value)) for value in values]


def in_half(rows):
    """As a float16 bundle has them: all that is float32 but the timestep."""
    return [
        (name, "float16" if kind == "float32" and name != "timestep" else kind, dims)
        for name, kind, dims in rows
    ]


GRAPHS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("bundle", ["exported", "int8_exported"])
def test_the_tables_of_a_graph_are_its_inputs_and_outputs(request, bundle, name):
    made = request.getfixturevalue(bundle)
    numbers = numbers_of(made.manifest)
    graph = onnx.load(made.folder / f"{name}.onnx").graph
    page = tables(section(f"{name}.onnx"))
    assert documented(page["input"], numbers) == found(graph.input)
    assert documented(page["output"], numbers) == found(graph.output)


@pytest.mark.parametrize("name", [*GRAPHS, "text_encoder_2"])
def test_the_tables_of_a_model_with_two_text_encoders_are_those_of_its_graphs_in_half(xl_exported, name):
    numbers = numbers_of(xl_exported.manifest, int(name == "text_encoder_2"))
    graph = onnx.load(xl_exported.folder / f"{name}.onnx").graph
    page = tables(section(f"{name}.onnx"))
    inputs = page.get("input") or tables(section("text_encoder.onnx"))["input"]
    if name == "unet":
        inputs = [*inputs, *(row for row in page["condition"] if row[0] != "`timestep_cond`")]
    outputs = page["of two" if name == "text_encoder" else "output"]
    assert in_half(documented(inputs, numbers)) == found(graph.input)
    assert in_half(documented(outputs, numbers)) == found(graph.output)


def test_the_table_of_conditions_is_what_a_consistency_model_takes(consistency_model):
    base = load_base(consistency_model)
    install(base.unet)
    graph = next(graph for graph in graphs_of(base) if graph.name == "unet")
    inputs = ir.to_proto(to_onnx(graph)).graph.input
    page = tables(section("unet.onnx"))
    rows = [*page["input"], *(row for row in page["condition"] if row[0] == "`timestep_cond`")]
    numbers = numbers_of(make_manifest(base, files={}, parity={}, precision="fp32"))
    assert documented(rows, numbers) == found(inputs)


def test_gates_and_targets_are_multiplied_in_the_type_of_the_graph(xl_exported):
    assert "times the concepts' targets is computed in the graph's own type" in PAGE
    nodes = onnx.load(xl_exported.folder / "unet.onnx").graph.node
    for gate in ("key_gate", "value_gate"):
        readers = {node.op_type for node in nodes if gate in node.input}
        assert readers - {"Shape"} == {"MatMul"}, gate  # no Cast


def shape_of(cell, numbers):
    dims = [dim.strip() for dim in cell.strip("()").split(",")]
    return tuple(int(dim) if dim.isdigit() else numbers.get(dim, dim) for dim in dims)


def type_of(value):
    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def dims_of(value):
    return tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)


def test_the_table_of_the_manifest_lists_its_fields(manifest):
    rows = tables(section("bundle.json"))["field"]
    fields = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert fields == list(manifest)


@pytest.mark.parametrize("field", ["unet", "vae", "defaults"])
def test_the_table_of_the_manifest_names_what_is_inside_a_field(manifest, field):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == f"`{field}`"]
    named = re.findall(r"`(\w+)`", row[1])
    deeper = {"unet": ("layers", 0), "vae": ("latent_rgb",)}
    inner = manifest[field]
    for key in deeper.get(field, ()):
        inner = inner[key]
    assert named == [*manifest[field], *(inner if field in deeper else ())]


@pytest.mark.parametrize(
    "field, inside",
    [
        ("files", ["bytes", "sha256"]),
        ("text_encoders", None),
        ("versions", ["opset"]),
        ("precision", list(PRECISIONS)),
    ],
)
def test_the_table_of_the_manifest_names_what_its_values_may_be(manifest, field, inside):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == f"`{field}`"]
    named = re.findall(r"`(\w+)`", row[1])
    if field == "files":
        assert all(list(entry) == named for entry in manifest["files"].values())
    if field == "versions":
        assert set(named) < set(manifest["versions"])
    assert inside is None or named == inside


def test_the_format_and_its_version_are_those_of_the_page(manifest):
    row = next(row for row in tables(section("bundle.json"))["field"] if row[0].startswith("`format`"))
    assert f'`"{manifest["format"]}"`, `{manifest["format_version"]}`' in row[1]


def test_the_key_projections_have_the_shape_of_the_page(exported, manifest):
    row = next(row for row in tables(section("Files"))["file"] if "key_projections" in row[0])
    (dims,) = re.findall(r"`key_projections` \[(.*?)\]", row[1])
    (keys,) = safetensors.numpy.load_file(exported.folder / "key_projections.safetensors").values()
    assert shape_of(dims, numbers_of(manifest)) == keys.shape


MEANINGS: dict[str, object] = {"nothing": [], "false": False, "none": {}, "10": 10.0, "50": 50}


def test_a_field_that_is_missing_means_what_the_page_says(exported, manifest, tmp_path):
    """Read without the fields, a bundle is what it is with the values that the page gives for them."""
    (sentence,) = re.findall(r"These may be missing in older bundles: (.*?)\.\n\n", PAGE, re.DOTALL)
    listed = re.findall(r"((?:`[\w.\[\]]+`(?: and\s+)?)+) \((?:then )?`?([\w ]+)`?\)", sentence)
    without, explicit = copy.deepcopy(manifest), copy.deepcopy(manifest)
    count, part = 0, ""
    for names, meaning in listed:
        for name in re.findall(r"`([\w.\[\]]+)`", names):
            before, _, field = name.rpartition(".")
            # sampler's neighbours are the scheduler's too
            part = before or (part if field in manifest["scheduler"] else "")
            for there, value in ((without, None), (explicit, MEANINGS.get(meaning, meaning))):
                inner = there["text_encoders"][0] if part == "text_encoders[]" else there.get(part, there)
                del inner[field]
                if value is not None and meaning != "no preview":
                    inner[field] = value
            count += 1
    assert count == 10
    folder = shutil.copytree(exported.folder, tmp_path / "bundle")
    read = []
    for content in (without, explicit):
        (folder / "bundle.json").write_text(json.dumps(content))
        read.append(read_bundle(folder))
    assert repr(read[0]) == repr(read[1])
    assert read[0].decoder.latent_rgb is None


def test_the_schedulers_fields_and_samplers_are_named(manifest):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == "`scheduler`"]
    named = re.findall(r"`(\w+)`", row[1])
    samplers = named[1 : named.index("num_train_timesteps")]
    assert set(samplers) == set(SAMPLER_OF_CLASS.values())
    assert [named[0], *named[1 + len(samplers) :]] == list(manifest["scheduler"])


def test_the_text_encoders_fields_are_named(manifest, xl_exported):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == "`text_encoders`"]
    named = [name for name in re.findall(r"`(\w+)`", row[1]) if name != "text_dim"]
    first, second = xl_exported.manifest["text_encoders"]
    assert named == list(second)
    assert list(first) == list(manifest["text_encoders"][0]) == named[:-1]


def test_the_table_of_files_is_the_folder(exported, xl_exported):
    named = {name for row in tables(section("Files"))["file"] for name in re.findall(r"`([^`</]+)`", row[0])}
    assert named == {path.name for path in xl_exported.folder.iterdir()}
    assert named - {"text_encoder_2.onnx"} == {path.name for path in exported.folder.iterdir()}


def test_the_opsets_the_tolerances_and_the_limits_are_the_real_ones(manifest):
    assert f"ONNX opset {manifest['versions']['opset']}," in PAGE
    assert all(f"opset {opset}" in PAGE for opset in OPSETS)
    for precision, tolerance in TOLERANCES.items():
        assert f"{tolerance:.0e} in `{precision}`".replace("e-0", "e-") in " ".join(PAGE.split())
    assert f"more than {INLINE_LIMIT // 10**6} MB" in PAGE
    assert f"{FLOAT16_MAX:.0f}" in PAGE
    assert f"at most {_LARGEST} latents a side" in PAGE
    assert list(PRECISIONS) == [row[0].strip("`") for row in tables(section("Precisions"))["`precision`"]]


def test_what_is_kept_in_float32_is_what_the_page_says():
    text = section("Precisions")
    assert [kept.place for kept in KEPT] == ["vae_decoder", "vae_encoder", "vae_encoder", "unet.attention"]
    assert "SDXL's VAE" in text
    assert "encoder of pocket's VAE" in " ".join(text.split())
    assert "`upcast_attention`" in text
