"""What other programs learned, made into concepts: against their own formulas, evaluated from their own files."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from perfusion.base.attention import key_projections, value_projections
from perfusion.commands.convert import main
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import condition, edited_projection, project
from perfusion.errors import ConceptError
from perfusion.training.covariance import cached_second_moment, inverse, load_captions
from perfusion.training.foreign import read_checkpoint, read_textual_inversion
from perfusion.training.initial_edit import placeholder_encodings
from perfusion.training.interchange import ImportOptions, from_checkpoint, from_textual_inversion

DIM = 32  # of the tiny model
OPTIONS = ImportOptions(superclass="cat", token="<mine>")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFUSION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def words(rows=1, hidden=DIM, seed=0):
    return torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)) * 0.05


def array(tensor):
    return tensor.detach().double().numpy()


# --- textual inversion


@pytest.mark.parametrize(
    "content, name, rows",
    [
        ({"<toy>": words()[0]}, "<toy>", 1),
        ({"<toy>": words(3)}, "<toy>", 3),
        ({"emb_params": words(2).half()}, "", 2),
    ],
)
def test_the_forms_of_textual_inversion_are_read(tmp_path, content, name, rows):
    save_file(content, tmp_path / "a.safetensors")
    torch.save(content, tmp_path / "a.bin")
    for suffix in ("safetensors", "bin"):
        found = read_textual_inversion(tmp_path / f"a.{suffix}")
        assert found.name == name
        (table,) = found.embeddings
        assert table.dtype == torch.float32
        torch.testing.assert_close(table, words(rows), atol=1e-4, rtol=0)


def test_a_pickle_that_names_its_word_and_the_pair_of_a_large_model_are_read(tmp_path):
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": words(2)}, "name": "toy", "step": 7},
        tmp_path / "a.pt",
    )
    found = read_textual_inversion(tmp_path / "a.pt")
    assert (found.name, found.embeddings[0].shape) == ("toy", (2, DIM))
    save_file({"clip_g": words(2, 40), "clip_l": words(2, 24)}, tmp_path / "b.safetensors")
    assert [table.shape[1] for table in read_textual_inversion(tmp_path / "b.safetensors").embeddings] == [
        24,
        40,
    ]


@pytest.mark.parametrize(
    "names", [("learned_embeds", "learned_embeds_2"), ("cat-steps-500", "cat_2-steps-500")]
)
def test_the_two_files_of_a_large_model_are_read_whichever_is_given(tmp_path, names):
    first, second = (tmp_path / f"{name}.safetensors" for name in names)
    tables = words(2, 24), words(2, 40)
    save_file({"<cat-toy>": tables[0]}, first)
    with pytest.raises(
        ConceptError, match=rf"two\. The other half belongs beside it as {names[1]}\.safetensors"
    ):
        read_textual_inversion(first, encoders=2)
    save_file({"<cat-toy>": tables[1]}, second)
    for path in (first, second):
        inversion = read_textual_inversion(path, encoders=2)
        assert inversion.name == "<cat-toy>"
        for table, expected in zip(inversion.embeddings, tables, strict=True):
            assert torch.equal(table, expected)
    save_file({"<dog>": tables[1]}, second)
    with pytest.raises(ConceptError, match="expected one word in both"):
        read_textual_inversion(first, encoders=2)


def test_the_names_of_dreambooth_scripts_are_those_of_two_encoders(tmp_path):
    tables = words(2, 24), words(2, 40)
    save_file({"text_encoders_1": tables[1], "text_encoders_0": tables[0]}, tmp_path / "e.safetensors")
    inversion = read_textual_inversion(tmp_path / "e.safetensors", encoders=2)
    assert inversion.name == ""
    assert [table.shape for table in inversion.embeddings] == [(2, 24), (2, 40)]


@pytest.mark.parametrize("rows", [1, 2])
def test_an_imported_textual_inversion_is_the_plain_one_in_every_layer(tiny_base, tmp_path, rows):
    """h(e) = W e for keys and values, at every strength: against the base model reading the word and no edit."""
    save_file({"<toy>": words(rows)}, tmp_path / "a.safetensors")
    made = from_textual_inversion(tmp_path / "a.safetensors", tiny_base, ImportOptions(superclass="cat"))
    concept = Concept.from_bytes(made.to_bytes())
    assert (concept.token, concept.rows, concept.superclass) == ("<toy>", rows, "cat")
    torch.testing.assert_close(torch.from_numpy(concept.embeddings[0].copy()), words(rows), atol=1e-4, rtol=0)
    rows_of = (concept.direction, concept.dual, concept.energy)
    plain = array(placeholder_encodings(tiny_base, [words(rows)]))
    for weight, targets in (
        (key_projections(tiny_base.unet), concept.target_keys),
        (value_projections(tiny_base.unet), concept.target_values),
    ):
        expected = plain @ array(weight).T
        for strength in (1.0, 0.3):
            found = edited_projection(plain, array(weight), targets, *rows_of, 0.75, 0.15, strength)
            # encodings of 32 numbers leave no direction quite unused; those of 128 and more do, to 1e-5
            assert np.linalg.norm(found - expected) < 2e-2 * np.linalg.norm(expected)
    assert float(made.training["deviation"]) < 2e-2


def test_a_gated_textual_inversion_is_exact_at_its_own_words_and_closes_with_its_bias(tiny_base, tmp_path):
    save_file({"<toy>": words()[0]}, tmp_path / "a.safetensors")
    options = ImportOptions(superclass="cat", token="<mine>", gated=True)
    concept = from_textual_inversion(tmp_path / "a.safetensors", tiny_base, options)
    own = array(placeholder_encodings(tiny_base, [words()]))
    weight = array(value_projections(tiny_base.unet))
    rows_of = (concept.direction, concept.dual, concept.energy)

    def values(bias):
        return edited_projection(own, weight, concept.target_values, *rows_of, bias, concept.temperature)

    np.testing.assert_allclose(values(concept.bias), own @ weight.T, rtol=1e-4, atol=1e-5)
    assert np.linalg.norm(values(9.0)) < 1e-3 * np.linalg.norm(
        own @ weight.T
    )  # taken out, and nothing let through
    settings = {"bias": concept.bias, "temperature": concept.temperature, "strength": 1.0}
    state = dict(zip(("direction", "dual", "energy"), rows_of, strict=True))
    assert condition(own, **state, **settings).value_gate[0, 0] > 0.6


def test_keys_of_an_import_that_are_derived_anew_are_those_of_its_file(tiny_base, tmp_path):
    save_file({"<toy>": words()[0]}, tmp_path / "a.safetensors")
    options = ImportOptions(superclass="cat", token="<mine>", gated=True)
    concept = from_textual_inversion(tmp_path / "a.safetensors", tiny_base, options)
    derived = concept.superclass_encoding @ array(key_projections(tiny_base.unet)).T
    np.testing.assert_allclose(derived, concept.target_keys, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"<toy>": words(1, 33)}, "word embeddings of 33 numbers, this base model takes 32"),
        ({"clip_l": words(), "clip_g": words()}, r"of 32 \+ 32 numbers, this base model takes 32"),
        ({"<toy>": words(5)}, "has 5 vectors, expected at most 4"),
        ({"a": words(), "b": words()}, r"\['a', 'b'\], expected one learned word"),
        ({"clip_l": words(2), "clip_g": words(1)}, "2 and 1 vectors for its two text encoders"),
        ({"<toy>": torch.full((1, DIM), torch.nan)}, "holds NaN or infinity"),
        ({"<toy>": torch.zeros(1, 2, DIM)}, "no vector or table"),
        ({"<toy>": torch.zeros(1, DIM, dtype=torch.int32)}, "no vector or table"),
    ],
)
def test_a_textual_inversion_that_does_not_fit_is_refused(tiny_base, tmp_path, content, message):
    save_file(content, tmp_path / "a.safetensors")
    with pytest.raises(ConceptError, match=message):
        from_textual_inversion(tmp_path / "a.safetensors", tiny_base, OPTIONS)


def test_no_foreign_file_runs_code_and_none_is_half_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Trap()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 cut off")
    (tmp_path / "d.safetensors").write_bytes(b"\xff" * 20)
    torch.save([1, 2], tmp_path / "e.pt")
    for name in ("a.pt", "b.pt", "c.pt", "d.safetensors", "e.pt", "missing.pt"):
        for read in (read_textual_inversion, read_checkpoint):
            with pytest.raises(
                ConceptError, match=r"cannot be read|expected names with tensors|is not a file"
            ):
                read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# --- checkpoints of the public re-implementations, laid out as their own code saves them


class Source:
    """A concept of the tiny model as tensors: the ground truth of both layouts."""

    def __init__(self, base):
        random = torch.Generator().manual_seed(3)
        self.base, self.layers = base, base.layers
        self.inverse_moment = inverse(
            cached_second_moment(base, load_captions(base, None), lambda line: None)
        )
        self.embedding = words(seed=4)
        self.direction = placeholder_encodings(base, [self.embedding])[0]
        superclass = torch.randn(DIM, generator=random)
        self.keys = [weight @ superclass for weight in self.split(key_projections(base.unet), "key_dim")]
        self.values = [torch.randn(layer.value_dim, generator=random) for layer in base.layers]

    def split(self, weight, width):
        return weight.split([getattr(layer, width) for layer in self.layers])

    def expected(self, encodings, bias, temperature):
        """The method's formula with C⁻¹ itself, values of all layers side by side: (tokens, Σ d_V)."""
        i = array(self.direction)
        scaled = array(self.inverse_moment) @ i
        s = encodings @ scaled / (scaled @ i)
        gates = 1 / (1 + np.exp(-(s - bias) / temperature))
        rest = encodings - np.outer(s, i)
        return rest @ array(value_projections(self.base.unet)).T + np.outer(
            gates, array(torch.cat(self.values))
        )


@pytest.fixture(scope="module")
def source(tiny_base):
    return Source(tiny_base)


def module_list(source, order=None, concepts=1):
    """perfusion-pytorch: [direction, output] of every projection, keys before values, in the order of its modules."""
    pairs = []
    for at in order or range(len(source.layers)):
        for target in (source.keys[at], source.values[at]):
            pairs.append([source.direction[None].repeat(concepts, 1), target[None].repeat(concepts, 1)])
    return {
        "embed_params": source.embedding.repeat(concepts, 1),
        "key_value_params": pairs,
        "C_inv": source.inverse_moment.float(),
    }


def ldm_name(name):
    """The original names of the tiny model's layers, which has one layer in a block."""
    table = {
        "down_blocks.0": "input_blocks.1.1",
        "down_blocks.1": "input_blocks.3.1",
        "mid_block": "middle_block.1",
    }
    table |= {
        f"up_blocks.{b}.attentions.{p}": f"output_blocks.{2 * b + p}.1" for b in range(2) for p in range(2)
    }
    for ours, theirs in table.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours).removeprefix(".attentions.0")
    raise AssertionError(name)


def named_targets(source, positions=77, varied=False):
    """Key-Locked-Rank-One-Editing: (positions, width) targets by name, in what Lightning saves."""
    noise = torch.linspace(0, 1, positions)[:, None] if varied else torch.zeros(positions, 1)
    targets = {}
    for layer, key, value in zip(source.layers, source.keys, source.values, strict=True):
        targets[ldm_name(layer.name) + ".to_k.target_output"] = key + 0 * noise
        targets[ldm_name(layer.name) + ".to_v.target_output"] = value + noise
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(source.embedding)})
    return {
        "global_step": 400,
        "C_inv": (source.inverse_moment / positions).float(),
        "target_input": source.direction,
        "embedding": {"string_to_token": {"*": 265}, "string_to_param": table},
        "target_output": targets,
    }


@pytest.mark.parametrize("layout", [module_list, named_targets])
def test_a_converted_checkpoint_projects_as_its_own_formula(tiny_base, source, tmp_path, layout):
    torch.save(layout(source), tmp_path / "a.ckpt")
    made = from_checkpoint(tmp_path / "a.ckpt", tiny_base, OPTIONS)
    concept = Concept.from_bytes(made.to_bytes("float32"))
    encodings = np.random.default_rng(0).normal(size=(20, DIM)) + array(source.direction)
    weight = array(value_projections(tiny_base.unet))
    rows_of = (concept.direction, concept.dual, concept.energy)
    found = edited_projection(encodings, weight, concept.target_values, *rows_of, 0.7, 0.15)
    expected = source.expected(encodings, 0.7, 0.15)
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    np.testing.assert_allclose(concept.target_keys, array(torch.cat(source.keys))[None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(concept.embeddings[0], source.embedding.numpy(), rtol=1e-6)
    assert (concept.bias, concept.temperature, concept.token) == (0.7, 0.15, "<mine>")
    derived = concept.superclass_encoding @ array(key_projections(tiny_base.unet)).T
    assert concept.target_keys is not None
    np.testing.assert_allclose(derived, concept.target_keys, rtol=1e-3, atol=1e-4)


def test_the_energy_of_a_checkpoint_is_on_our_scale_where_the_file_tells_its_own(tiny_base, source, tmp_path):
    torch.save(named_targets(source), tmp_path / "a.ckpt")
    concept = from_checkpoint(tmp_path / "a.ckpt", tiny_base, OPTIONS)
    expected = source.direction.double() @ source.inverse_moment @ source.direction.double()
    assert concept.energy[0] == pytest.approx(float(expected), rel=1e-4)


def test_layers_in_the_order_of_the_original_implementation_are_put_in_ours(tiny_base, source, tmp_path):
    names = [layer.name for layer in source.layers]
    order = sorted(range(len(names)), key=lambda at: ("down", "mid", "up").index(names[at].split("_")[0]))
    assert order != list(range(len(names)))
    torch.save(module_list(source, order), tmp_path / "a.pt")
    concept = from_checkpoint(tmp_path / "a.pt", tiny_base, OPTIONS)
    np.testing.assert_allclose(concept.target_values[0], array(torch.cat(source.values)), rtol=1e-6)


def test_targets_by_position_need_a_position_and_lose_the_others(tiny_base, source, tmp_path):
    torch.save(named_targets(source, varied=True), tmp_path / "a.ckpt")
    with pytest.raises(ConceptError, match=r"a target for each of 77 positions .* \(--position 5"):
        from_checkpoint(tmp_path / "a.ckpt", tiny_base, OPTIONS)
    options = ImportOptions(superclass="cat", token="<mine>", position=76)
    concept = from_checkpoint(tmp_path / "a.ckpt", tiny_base, options)
    np.testing.assert_allclose(concept.target_values[0], array(torch.cat(source.values)) + 1, rtol=1e-5)
    assert concept.training["position"] == "76"
    with pytest.raises(ConceptError, match="position is 77, expected 0 to 76"):
        from_checkpoint(
            tmp_path / "a.ckpt", tiny_base, ImportOptions(superclass="cat", token="<mine>", position=77)
        )


def shifted(source):
    """Another base's keys: no encoding makes them."""
    found = module_list(source)
    for pair in found["key_value_params"]:
        pair[1] = torch.randn(pair[1].shape, generator=torch.Generator().manual_seed(9))
    return found


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda found, source: {"state_dict": {}}, "expected a checkpoint of perfusion-pytorch"),
        (lambda found, source: found | {"embed_params": None}, "lacks the learned word"),
        (
            lambda found, source: found | {"key_value_params": found["key_value_params"][:-1]},
            "no list of pairs",
        ),
        (
            lambda found, source: found | {"key_value_params": found["key_value_params"][2:]},
            "their widths are not those",
        ),
        (lambda found, source: module_list(source, concepts=2), "holds 2 merged concepts, expected one"),
        (lambda found, source: found | {"C_inv": torch.eye(3)}, r"'C_inv' is \(3, 3\), expected \(32, 32\)"),
        (lambda found, source: found | {"C_inv": -found["C_inv"]}, "has energy -.* expected more than 0"),
        (lambda found, source: found | {"embed_params": words(1, 7)}, "word embeddings of 7 numbers"),
        (lambda found, source: shifted(source), "differ by .* from any that this base model makes"),
    ],
)
def test_a_checkpoint_that_cannot_be_converted_says_what_is_missing(
    tiny_base, source, tmp_path, change, message
):
    torch.save(change(module_list(source), source), tmp_path / "a.pt")
    with pytest.raises(ConceptError, match=message):
        from_checkpoint(tmp_path / "a.pt", tiny_base, OPTIONS)


def test_layers_with_directions_of_their_own_are_refused(tiny_base, source, tmp_path):
    found = module_list(source)
    found["key_value_params"][0][0] = found["key_value_params"][0][0] * 1.1
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(ConceptError, match="its layers have different directions"):
        from_checkpoint(tmp_path / "a.pt", tiny_base, OPTIONS)


def test_several_vectors_with_one_direction_are_refused(tiny_base, source, tmp_path):
    found = named_targets(source)
    found["embedding"]["string_to_param"] = {"*": words(3)}
    torch.save(found, tmp_path / "a.ckpt")
    with pytest.raises(ConceptError, match="has 3 learned vectors and one direction for all of them"):
        from_checkpoint(tmp_path / "a.ckpt", tiny_base, OPTIONS)


def test_a_direction_that_is_not_the_words_own_is_told(tiny_base, source, tmp_path, caplog):
    found = module_list(source)
    other = project(np.ones((1, DIM)), *_rows(source))
    for pair in found["key_value_params"]:
        pair[0] = torch.from_numpy(other).float()
    torch.save(found, tmp_path / "a.pt")
    from_checkpoint(tmp_path / "a.pt", tiny_base, OPTIONS)
    assert "its gate stays nearly closed; lower the bias" in caplog.text


def _rows(source):
    direction = array(source.direction)[None]
    scaled = direction @ array(source.inverse_moment)
    energy = (scaled * direction).sum(-1)
    return direction, scaled / energy[:, None], energy


# --- the command


def test_the_command_imports_stores_and_makes_cards(tiny_model, source, tmp_path, capsys):
    save_file({"<toy>": words()[0]}, tmp_path / "a.safetensors")
    torch.save(module_list(source), tmp_path / "b.pt")
    model = ["--model", str(tiny_model), "--superclass", "cat", "--quiet"]
    inversion = ["--textual-inversion", str(tmp_path / "a.safetensors"), "--output", str(tmp_path / "a.png")]
    assert main([*inversion, *model]) == 0
    assert Concept.load(tmp_path / "a.png").token == "<toy>"
    checkpoint = ["--checkpoint", str(tmp_path / "b.pt"), "--output", str(tmp_path / "b.safetensors")]
    assert main([*checkpoint, *model]) == 0
    stored = ["--concept", str(tmp_path / "b.safetensors"), "--output", str(tmp_path / "c.safetensors")]
    assert main([*stored, "--storage", "int8", "--no-keys"]) == 0
    concept = Concept.load(tmp_path / "b.safetensors")
    assert (tmp_path / "c.safetensors").read_bytes() == concept.to_bytes("int8", keys=False)
    out, err = capsys.readouterr()
    assert out.count("\n") == 3
    assert err == ""


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--textual-inversion", "a", "--output", "b"], "Give it with --superclass"),
        (
            ["--concept", "a", "--superclass", "cat", "--output", "b"],
            "--superclass is for files of other programs",
        ),
        (["--concept", "a", "--gated", "--output", "b"], "--gated is for files of other programs"),
        (["--concept", "a", "--config", "c", "--output", "b"], "--config is for files of other programs"),
        (["--checkpoint", "a", "--gated", "--output", "b"], "--gated is for textual inversions"),
        (["--textual-inversion", "a", "--position", "0", "--output", "b"], "--position is for checkpoints"),
        (["--concept", "a", "--output", "."], ". is a folder, expected the name of a file"),
        (["--concept", "a", "--output", "b"], "a cannot be read"),
    ],
)
def test_a_conversion_that_makes_no_sense_is_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
