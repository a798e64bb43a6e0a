"""docs/graph.md is the contract: its tables must be what the exporter writes."""

import json
import re
from pathlib import Path

import onnx
import pytest

from perfusion.base import load_base
from perfusion.export import PRECISIONS
from perfusion.export.convert import OPSETS
from perfusion.export.graphs import graphs_of
from perfusion.export.half import KEPT
from perfusion.export.manifest import SAMPLERS
from perfusion.export.parity import TOLERANCES
from perfusion.export.probe import _LARGEST
from perfusion.export.weights import _INLINE_LIMIT, FLOAT16_MAX

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


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_the_tables_of_a_graph_are_its_inputs_and_outputs(exported, manifest, name):
    numbers = numbers_of(manifest)
    graph = onnx.load(exported.folder / f"{name}.onnx").graph
    page = tables(section(f"{name}.onnx"))
    assert documented(page["input"], numbers) == found(graph.input)
    assert documented(page["output"], numbers) == found(graph.output)


@pytest.mark.parametrize("index, name", [(0, "text_encoder"), (1, "text_encoder_2")])
def test_the_tables_of_two_text_encoders_are_their_inputs_and_outputs_in_half(xl_exported, index, name):
    numbers = numbers_of(xl_exported.manifest, index)
    graph = onnx.load(xl_exported.folder / f"{name}.onnx").graph
    page = tables(section(f"{name}.onnx"))
    inputs = tables(section("text_encoder.onnx"))["input"]
    assert in_half(documented(inputs, numbers)) == found(graph.input)
    assert in_half(documented(page["output" if index else "of two"], numbers)) == found(graph.output)


def test_the_table_of_conditions_is_what_sdxl_and_lcm_take(xl_exported, consistency_model):
    page = tables(section("unet.onnx"))
    numbers = numbers_of(xl_exported.manifest)
    graph = onnx.load(xl_exported.folder / "unet.onnx").graph
    of_lcm = "timestep_cond"
    rows = [row for row in page["condition"] if row[0] != f"`{of_lcm}`"]
    assert in_half(documented([*page["input"], *rows], numbers)) == found(graph.input)
    inputs = next(graph for graph in graphs_of(load_base(consistency_model)) if graph.name == "unet").inputs
    (row,) = [row for row in page["condition"] if row[0] == f"`{of_lcm}`"]
    assert documented([row], {of_lcm: 12}) == [(inputs[-1].name, "float32", inputs[-1].dims)]


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


def test_the_schedulers_fields_and_samplers_are_named(manifest):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == "`scheduler`"]
    named = re.findall(r"`(\w+)`", row[1])
    samplers = named[1 : named.index("num_train_timesteps")]
    assert set(samplers) == {"ddim", *SAMPLERS.values()}
    assert [named[0], *named[1 + len(samplers) :]] == list(manifest["scheduler"])


def test_the_text_encoders_fields_are_named(manifest, xl_exported):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == "`text_encoders`"]
    named = [name for name in re.findall(r"`(\w+)`", row[1]) if name != "text_dim"]
    first, second = xl_exported.manifest["text_encoders"]
    assert named == list(second)
    assert list(first) == list(manifest["text_encoders"][0]) == named[:-1]


def test_the_table_of_files_is_the_folder(exported, xl_exported):
    named = {name for row in tables(section("Files"))["file"] for name in re.findall(r"`([^`<]+)`", row[0])}
    assert named == {path.name for path in xl_exported.folder.iterdir()}
    assert named - {"text_encoder_2.onnx"} == {path.name for path in exported.folder.iterdir()}


def test_the_opsets_the_tolerances_and_the_limits_are_the_real_ones(manifest):
    assert f"ONNX opset {manifest['versions']['opset']}," in PAGE
    assert all(f"opset {opset}" in PAGE for opset in OPSETS)
    for precision, tolerance in TOLERANCES.items():
        assert f"{tolerance:.0e} in `{precision}`".replace("e-0", "e-") in " ".join(PAGE.split())
    assert f"more than {_INLINE_LIMIT // 10**6} MB" in PAGE
    assert f"{FLOAT16_MAX:.0f}" in PAGE
    assert f"at most {_LARGEST} latents a side" in PAGE
    assert list(PRECISIONS) == [row[0].strip("`") for row in tables(section("Precisions"))["`precision`"]]


def test_what_is_kept_in_float32_is_what_the_page_says():
    text = section("Precisions")
    assert [kept.place for kept in KEPT] == ["vae_decoder", "vae_encoder", "unet.attention"]
    assert "SDXL's VAE" in text
    assert "`upcast_attention`" in text
