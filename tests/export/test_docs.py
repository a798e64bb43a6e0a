"""docs/graph.md is the contract: its tables must be what the exporter writes."""

import json
import re
from pathlib import Path

import onnx
import pytest

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


@pytest.mark.parametrize("name", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_the_tables_of_a_graph_are_its_inputs_and_outputs(exported, manifest, name):
    numbers = {
        key: manifest[part][key] for part, key in (("unet", "in_channels"), ("vae", "latent_channels"))
    }
    numbers |= manifest["text_encoders"][0] | {"text_dim": manifest["text_dim"]}
    layers = manifest["unet"]["layers"]
    numbers["Σ d_K"] = sum(layer["key_dim"] for layer in layers)
    numbers["Σ d_V"] = sum(layer["value_dim"] for layer in layers)
    graph = onnx.load(exported.folder / f"{name}.onnx").graph
    documented = tables(section(f"{name}.onnx"))
    for kind, values in (("input", graph.input), ("output", graph.output)):
        rows = [(row[0].strip("`"), row[1], shape_of(row[2], numbers)) for row in documented[kind]]
        assert rows == [(value.name, type_of(value), dims_of(value)) for value in values]


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


@pytest.mark.parametrize("field", ["unet", "vae", "scheduler", "defaults"])
def test_the_table_of_the_manifest_names_what_is_inside_a_field(manifest, field):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == f"`{field}`"]
    named = re.findall(r"`(\w+)`", row[1])
    inside = [*manifest[field], *(manifest[field]["layers"][0] if field == "unet" else ())]
    assert named == inside


def test_the_text_encoders_fields_are_named(manifest):
    (row,) = [row for row in tables(section("bundle.json"))["field"] if row[0] == "`text_encoders`"]
    named = [name for name in re.findall(r"`(\w+)`", row[1]) if name != "text_dim"]
    assert named == list(manifest["text_encoders"][0])


def test_the_table_of_files_is_the_folder(exported):
    named = {name for row in tables(section("Files"))["file"] for name in re.findall(r"`([^`<]+)`", row[0])}
    assert named == {path.name for path in exported.folder.iterdir()}


def test_the_opset_and_the_tolerance_are_the_real_ones(manifest):
    from perfusion.export.parity import TOLERANCE

    assert f"ONNX opset {manifest['versions']['opset']}," in PAGE
    assert f"difference above {TOLERANCE:.0e}".replace("e-0", "e-") in PAGE
