"""perfusion-inspect on concepts, bundles and what is neither."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perfusion import Concept
from perfusion.bundle.reader import read_bundle
from perfusion.commands.inspect import main


@pytest.fixture
def concept(make_concept, tmp_path):
    path = tmp_path / "cat.safetensors"
    made = make_concept(rows=2, superclass="teddy bear", bias=0.6, training={"steps": "400", "seed": "3"})
    made.save(path)
    return path


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose graphs are not graphs: enough for what is checked without running them."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    contents = {
        name: name.encode() * 10
        for name in (
            "text_encoder.onnx",
            "unet.onnx",
            "vae_decoder.onnx",
            "vae_encoder.onnx",
            "tokenizer.json",
        )
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    encoder = {"file": "text_encoder.onnx", "hidden_size": 8, "vocab_size": 99, "context_length": 77}
    layers = [{"name": f"layer{index}", "key_dim": 4, "value_dim": 12} for index in range(3)]
    scheduler = {
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    manifest = {
        "format": "perfusion-bundle",
        "format_version": 1,
        "base": "pocket",
        "base_fingerprint": "ab" * 32,
        "precision": "fp32",
        "text_dim": 8,
        "tokenizer": "tokenizer.json",
        "text_encoders": [{**encoder, "bos_token_id": 97, "eos_token_id": 98, "pad_token_id": 98}],
        "unet": {
            "file": "unet.onnx",
            "in_channels": 4,
            "sample_size": 16,
            "size_multiple": 4,
            "layers": layers,
        },
        "vae": {
            "decoder": "vae_decoder.onnx",
            "encoder": "vae_encoder.onnx",
            "latent_channels": 4,
            "downscale": 8,
            "scaling_factor": 0.7,
        },
        "scheduler": scheduler,
        "defaults": {"width": 128, "height": 128, "guidance_scale": 3.0, "num_inference_steps": 20},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in contents.items()
        },
    }
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


def test_a_concept_is_described(concept, capsys):
    assert main([str(concept)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{concept}: concept, {concept.stat().st_size:,} bytes, valid\n")
    for fact in (
        "<cat> for a teddy bear",
        "pocket 0123456789ab…",
        "2 of 8 numbers",
        "bias 0.6",
        "seed 3, steps 400",
    ):
        assert fact in out
    assert err == ""


def test_a_concept_is_one_json_object_for_a_program(concept, capsys):
    assert main([str(concept), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "concept"
    assert (facts["token"], facts["superclass"], facts["rows"]) == ("<cat>", "teddy bear", 2)
    assert (facts["text_dim"], facts["value_width"], facts["key_width"]) == (8, 24, 24)
    assert facts["training"] == {"steps": "400", "seed": "3"}
    assert facts["bytes"] == concept.stat().st_size


def test_a_damaged_concept_is_an_exit_code_and_one_line(concept, capsys):
    concept.write_bytes(concept.read_bytes()[:-1])
    assert main([str(concept), "--json"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"perfusion-inspect: {concept}: ")


@pytest.mark.parametrize("name", ["", "bundle.json"])
def test_a_bundle_is_described_by_its_folder_or_its_manifest(bundle, capsys, name):
    assert main([str(bundle / name)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{bundle}: bundle, ")
    for fact in (
        "pocket abababababab…",
        "fp32",
        "3, with 12 key and 36 value numbers",
        "in steps of 32 pixels",
        "none, so ONNX Runtime draws",
    ):
        assert fact in out
    assert out.count("checksum matches") == 5


def test_a_bundle_is_one_json_object_for_a_program(bundle, capsys):
    assert main([str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "bundle"
    assert (facts["layers"], facts["key_width"], facts["value_width"]) == (3, 12, 36)
    assert facts["bytes"] == sum(facts["files"].values()) > 0


def test_a_bundle_tells_what_it_was_made_from(bundle, capsys):
    manifest = json.loads((bundle / "bundle.json").read_text())
    loras = [{"file": "ink.safetensors", "scale": 0.5, "sha256": "0" * 64}]
    manifest["made_from"] = {"file": "anything.safetensors", "clip_skip": 2, "loras": loras}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    assert main([str(bundle)]) == 0
    origin = "anything.safetensors, clip skip 2, LoRA ink.safetensors × 0.5"
    assert re.search(rf"^  made from +{origin}$", capsys.readouterr().out, re.MULTILINE)


def test_a_changed_file_of_a_bundle_is_named(bundle, capsys):
    data = bytearray((bundle / "unet.onnx").read_bytes())
    data[3] ^= 1
    (bundle / "unet.onnx").write_bytes(data)
    assert main([str(bundle)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "unet.onnx" in err
    assert "checksum" in err


def test_a_path_that_is_neither_is_told_what_was_expected(tmp_path, capsys):
    for path, found in (
        (tmp_path, "a folder without bundle.json and without concept files"),
        (tmp_path / "x", "not there"),
    ):
        assert main([str(path)]) == 1
        err = capsys.readouterr().err
        assert f"{path} is {found}, expected a concept file" in err
        assert err.count("\n") == 1


def test_a_wrong_command_line_is_exit_code_two(capsys):
    assert main([]) == 2
    assert main(["a", "b"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_the_module_is_the_command_too(concept):
    command = [sys.executable, "-m", "perfusion.commands.inspect", str(concept)]
    found = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, check=False)
    assert found.returncode == 0
    assert b"valid" in found.stdout


def test_a_card_is_described_and_gives_its_file_back(make_concept, tmp_path, capsys):
    make_concept().save(tmp_path / "cat.png", "int8")
    extracted = tmp_path / "cat.safetensors"
    assert main([str(tmp_path / "cat.png"), "--json", "--extract", str(extracted)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["card"], facts["storage"], facts["concept_bytes"]) == (
        True,
        "int8",
        extracted.stat().st_size,
    )
    assert facts["bytes"] == (tmp_path / "cat.png").stat().st_size > facts["concept_bytes"]
    assert extracted.read_bytes() == make_concept().to_bytes("int8")
    assert main([str(tmp_path / "cat.png")]) == 0
    assert f"int8, {facts['concept_bytes']:,} bytes in a picture" in capsys.readouterr().out


def test_the_checksum_of_the_tensors_is_told_and_that_there_is_none(concept, tmp_path, capsys):
    data = concept.read_bytes()
    body = data[8 + int.from_bytes(data[:8], "little") :]
    older = tmp_path / "older.safetensors"
    older.write_bytes(data.replace(b'"sha256"', b'"sha999"'))
    for path, checksum, words in (
        (concept, hashlib.sha256(body).hexdigest(), "checksum   matches"),
        (older, None, "checksum   none, the file's writer gave no sha256"),
    ):
        assert main([str(path), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sha256"] == checksum
        assert main([str(path)]) == 0
        assert words in capsys.readouterr().out


def test_nothing_is_extracted_of_what_is_no_card(concept, bundle, tmp_path, capsys):
    for path, found in ((concept, "a concept file already"), (bundle, "no card")):
        assert main([str(path), "--extract", str(tmp_path / "x")]) == 1
        assert found in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


def test_a_picture_that_is_no_card_is_an_exit_code_and_one_line(tmp_path, capsys):
    from PIL import Image

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert main([str(tmp_path / "a.png")]) == 1
    err = capsys.readouterr().err
    assert "carries no concept" in err
    assert err.count("\n") == 1


def test_a_concept_is_held_against_a_bundle_layer_by_layer(capsys):
    from perfusion.embedded import bundle_path

    sample = bundle_path() / "concepts" / "gold-hat.safetensors"
    assert main([str(sample), "--bundle", str(bundle_path()), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    layers = json.loads((bundle_path() / "bundle.json").read_text())["unet"]["layers"]
    assert list(facts["value_rms"]) == [layer["name"] for layer in layers]
    widths = [layer["value_dim"] for layer in layers]
    whole = np.sqrt(np.average(np.square(list(facts["value_rms"].values())), weights=widths))
    values = Concept.load(sample).target_values
    assert whole == pytest.approx(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def test_the_strength_of_an_edit_is_how_far_its_values_are_off_the_superclasss(capsys):
    """Against the base model's own projections in torch."""
    import torch

    from perfusion.base.attention import layer_table
    from perfusion.base.base_model import load_base
    from perfusion.embedded import bundle_path

    sample = bundle_path() / "concepts" / "gold-hat.safetensors"
    assert main([str(sample), "--bundle", str(bundle_path()), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["value_change"]
    concept, unet = Concept.load(sample), load_base(None).unet
    encoding = torch.from_numpy(np.array(concept.superclass_encoding))
    for layer in layer_table(unet):
        before = unet.get_submodule(layer.name).to_v(encoding).detach().numpy()
        after = concept.target_values[:, layer.value_slice]
        change = np.linalg.norm(after - before) / np.linalg.norm(before)
        assert found[layer.name] == pytest.approx(change, rel=1e-3)
    assert main([str(sample), "--bundle", str(bundle_path())]) == 0
    assert "off a hat's mid.0.0" in capsys.readouterr().out


def test_the_norms_of_a_concept_are_those_of_its_arrays(concept, capsys):
    assert main([str(concept), "--json"]) == 0
    facts, loaded = json.loads(capsys.readouterr().out), Concept.load(concept)
    np.testing.assert_allclose(facts["direction_norm"], np.linalg.norm(loaded.direction, axis=1), rtol=1e-6)
    for found, table in zip(facts["embedding_norms"], loaded.embeddings, strict=True):
        np.testing.assert_allclose(found, np.linalg.norm(table, axis=1), rtol=1e-6)


def test_an_empty_prompt_is_a_prompt(capsys):
    from perfusion.embedded import bundle_path

    sample = bundle_path() / "concepts" / "gold-hat.safetensors"
    assert main([str(sample), "--prompt", ""]) == 0
    assert "names no concept" in capsys.readouterr().out


def test_a_concept_that_does_not_fit_a_bundle_says_why(concept, capsys):
    from perfusion.embedded import bundle_path

    replace(Concept.load(concept), base=read_bundle(bundle_path()).base).save(concept)
    assert main([str(concept), "--bundle", str(bundle_path())]) == 1
    assert "numbers a row" in capsys.readouterr().err


def test_the_gates_of_a_prompt_are_shown_and_drawn(tmp_path, capsys):
    from PIL import Image

    from perfusion.embedded import bundle_path

    sample, heatmap = bundle_path() / "concepts" / "gold-hat.safetensors", tmp_path / "gates.png"
    assert main([str(sample), "--prompt", "a <gold-hat> at night", "--heatmap", str(heatmap)]) == 0
    (line,) = (row for row in capsys.readouterr().out.splitlines() if row.startswith("<gold-hat>"))
    open_by, strength = float(line.split()[2]), Concept.load(sample).strength
    assert 0.5 * strength < open_by <= strength and line.count("#") > 10 * strength
    with Image.open(heatmap) as picture:
        assert picture.height > 100


@pytest.mark.parametrize("options", [["--heatmap", "gates.png"], ["--prompt", "a <cat>"], ["--bundle", "."]])
def test_a_folder_has_no_gates(options, bundle, capsys):
    assert main([str(bundle), *options]) == 1
    assert "--" in capsys.readouterr().err


def test_a_sample_is_shown_by_its_name(tmp_path, toy_bundle, monkeypatch, capsys):
    from perfusion.embedded import bundle_path

    monkeypatch.chdir(tmp_path)
    assert main(["gold-hat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(
        bundle_path() / "concepts" / "gold-hat.safetensors"
    )
    for more in ([], ["--bundle", str(bundle_path())], ["--prompt", "a hat"]):
        assert main(["silver-hat", *more]) == 1
        assert "silver-hat is not there" in capsys.readouterr().err
    assert main(["gold-hat", "--bundle", str(toy_bundle)]) == 1  # which has no samples of its own
    assert "Export the bundle anew" in capsys.readouterr().err


def test_a_folder_of_concepts_is_listed_and_what_is_broken_is_told(make_concept, tmp_path, capsys):
    from PIL import Image

    make_concept(token="<tom>").save(tmp_path / "tom.safetensors")
    make_concept(token="<kitty>", superclass="lion", bias=0.6, strength=0.8).save(
        tmp_path / "kitty.safetensors"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "tom.sheet.png")  # lies beside every training, and is no concept
    assert main([str(tmp_path)]) == 0
    head, names, kitty, tom = capsys.readouterr().out.splitlines()
    assert head.endswith("2 concepts, 0 broken") and names.split()[:2] == ["file", "token"]
    assert kitty.split()[:7] == ["kitty.safetensors", "<kitty>", "lion", "pocket", "0.6", "0.15", "0.8"]
    assert tom.split()[1] == "<tom>"
    data = (tmp_path / "tom.safetensors").read_bytes()
    (tmp_path / "copy.safetensors").write_bytes(data)
    (tmp_path / "half.safetensors").write_bytes(data[:-50])
    assert main([str(tmp_path), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert [concept["token"] for concept in facts["concepts"]] == ["<tom>", "<kitty>", "<tom>"]
    assert [Path(file["path"]).name for file in facts["broken"]] == ["half.safetensors"]
    main([str(tmp_path)])
    assert "<tom>: several files have this token" in capsys.readouterr().out
