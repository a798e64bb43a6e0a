"""Which concepts are let in, and what the UNet is given of them."""

import io
import logging
import shlex
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from perfusion.concept.bank import BaseTraits, ConceptBank
from perfusion.concept.settings import ConceptSettings
from perfusion.errors import BundleError, ConceptError, RequestError
from perfusion.runtime.concepts import Bank

OTHER = "0" * 64


def test_a_concept_brings_its_own_settings_and_full_strength(bundle, make_concept):
    bank = Bank(bundle)
    bank.load(make_concept(bias=0.6, temperature=0.2))
    assert bank.change("<cat>") == ConceptSettings(bias=0.6, temperature=0.2, strength=1.0)
    bank.load(make_concept(token="<dog>", strength=0.8))
    assert bank.change("<dog>").strength == 0.8
    bank.load(make_concept(token="<cow>", strength=0.8), strength=1)
    assert bank.change("<cow>").strength == 1


def test_settings_change_one_at_a_time(bundle, make_concept):
    bank = Bank(bundle)
    bank.load(make_concept(bias=0.6, temperature=0.2), strength=0.5)
    assert bank.change("<cat>", bias=0.7) == ConceptSettings(bias=0.7, temperature=0.2, strength=0.5)
    assert bank.change("<cat>", strength=0) == ConceptSettings(bias=0.7, temperature=0.2, strength=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bias": float("nan")}, "bias is nan, expected a finite number"),
        ({"bias": "0.6"}, "bias is '0.6'"),
        ({"temperature": 0}, "temperature is 0, expected a finite number above 0"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"strength": -0.1}, "strength is -0.1, expected 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": True}, "strength is True"),
        ({"start": 1}, "start is 1, expected 0"),
    ],
)
def test_settings_out_of_their_range_are_refused_and_change_nothing(bundle, make_concept, change, message):
    bank = Bank(bundle)
    bank.load(make_concept())
    before = bank.change("<cat>")
    with pytest.raises(RequestError, match=message):
        bank.change("<cat>", **change)
    with pytest.raises(RequestError, match=message):
        bank.load(make_concept(token="<dog>"), **change)
    assert bank.change("<cat>") == before and list(bank.concepts) == ["<cat>"]


def test_a_token_is_taken_until_it_is_unloaded(bundle, make_concept):
    bank = Bank(bundle)
    bank.load(make_concept(0))
    with pytest.raises(ConceptError, match="named <cat> is loaded already"):
        bank.load(make_concept(1))
    bank.unload("<cat>")
    second = make_concept(1)
    bank.load(second)
    assert bank.concepts["<cat>"] is second


@pytest.mark.parametrize("use", [Bank.unload, Bank.change, lambda bank, token: bank.rows([token])])
def test_a_concept_that_is_not_loaded_is_named_with_those_that_are(bundle, make_concept, use):
    bank = Bank(bundle)
    with pytest.raises(RequestError, match=r"'<dog>' is loaded\. Loaded: none"):
        use(bank, "<dog>")
    bank.load(make_concept())
    with pytest.raises(RequestError, match=r"'<dog>' is loaded\. Loaded: <cat>"):
        use(bank, "<dog>")


def test_a_concept_of_another_family_is_refused_by_name(bundle, make_concept):
    with pytest.raises(ConceptError, match="<cat> was trained for sd15, this bundle is pocket"):
        Bank(bundle).load(make_concept(base="sd15"))


def test_a_concept_of_the_first_edition_is_refused_with_the_command_that_trains_it_anew(bundle, make_concept):
    concept = make_concept(base="pocket", superclass="teddy bear")
    with pytest.raises(ConceptError, match="trained for pocket, this bundle is pocket2") as caught:
        Bank(replace(bundle, base="pocket2")).load(concept)
    message = str(caught.value)
    command = shlex.split(message.partition("anew: ")[2])
    assert command == [
        "perfusion-train", "--images", "DIR", "--superclass", "teddy bear",
        "--token", concept.token, "--steps", "100", "--output", "FILE",
    ]  # fmt: skip


def test_a_bundle_of_the_first_edition_is_to_be_exported_anew_for_a_concept_of_the_second(
    bundle, make_concept
):
    with pytest.raises(ConceptError, match="trained for pocket2, this bundle is pocket") as caught:
        Bank(replace(bundle, base="pocket")).load(make_concept(base="pocket2"))
    assert str(caught.value).endswith("Export the bundle anew: perfusion-export --output DIR")


@pytest.mark.parametrize(
    "name, message",
    [
        ("target_values", r"target_values of 41 numbers a row, this bundle takes 40"),
        ("target_keys", r"target_keys of 41 numbers a row, this bundle takes 40"),
        ("embeddings", r"embeddings of 41 numbers a row, this bundle takes 16"),
    ],
)
def test_arrays_of_another_length_are_refused(bundle, make_concept, name, message):
    wide = np.ones((1, 41), np.float32)
    with pytest.raises(ConceptError, match=message):
        Bank(bundle).load(make_concept(**{name: (wide,) if name == "embeddings" else wide}))


def test_a_concept_for_two_text_encoders_is_refused(bundle, make_concept):
    word = np.ones((1, 16), np.float32)
    with pytest.raises(ConceptError, match="has 2 word embeddings, this bundle takes 1"):
        Bank(bundle).load(make_concept(embeddings=(word, word)))


def test_keys_that_a_file_leaves_out_are_projected_from_its_superclass(bundle, make_concept):
    concept = make_concept(rows=2, target_keys=None)
    bank = Bank(bundle)
    bank.load(concept)
    weight = load_file(bundle.key_projections)["key_projections"].astype(np.float64)
    expected = concept.superclass_encoding.astype(np.float64) @ weight.T
    np.testing.assert_allclose(bank.rows(["<cat>"]).keys, expected, rtol=1e-5, atol=1e-6)


def test_another_checkpoint_of_the_family_warns_and_derives_its_keys_anew(bundle, make_concept, caplog):
    concept = make_concept(base_fingerprint=OTHER)
    bank = Bank(bundle)
    bank.load(concept)
    bank.load(make_concept(token="<same>", target_keys=None))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "another pocket checkpoint than this bundle's; its keys are derived anew" in record.getMessage()
    np.testing.assert_array_equal(bank.rows(["<cat>"]).keys, bank.rows(["<same>"]).keys)


def test_without_projections_the_files_keys_are_used_with_a_warning(bundle, make_concept, caplog):
    bank = Bank(replace(bundle, key_projections=None))
    concept = make_concept(base_fingerprint=OTHER)
    bank.load(concept)
    assert "cannot derive its keys anew" in caplog.text
    np.testing.assert_array_equal(bank.rows(["<cat>"]).keys, concept.target_keys)
    with pytest.raises(
        ConceptError, match="<dog> comes without target keys, and this bundle has no key proj"
    ):
        bank.load(make_concept(token="<dog>", target_keys=None))


def test_projections_that_are_none_are_refused(bundle, make_concept, tmp_path):
    path = tmp_path / "key_projections.safetensors"
    bank = Bank(replace(bundle, key_projections=path))
    path.write_bytes(b"\0" * 20)
    with pytest.raises(BundleError, match="cannot be read"):
        bank.load(make_concept(target_keys=None))
    save_file({"key_projections": np.zeros((3, 16), np.float16)}, path)
    with pytest.raises(
        BundleError, match=r"holds \(3, 16\), expected a tensor 'key_projections' of \(40, 16\)"
    ):
        bank.load(make_concept(target_keys=None))
    assert not bank.concepts


def test_rows_stand_under_one_another_in_the_order_asked_for(bundle, make_concept):
    bank = Bank(bundle)
    cat, dog = make_concept(0, rows=2), make_concept(1, token="<dog>")
    bank.load(cat, bias=0.5)
    bank.load(dog, bias=0.25, strength=0.5)
    rows = bank.rows(["<dog>", "<cat>"])
    assert rows.slots == (("<dog>", 0), ("<cat>", 0), ("<cat>", 1))
    for name, found in (("direction", rows.direction), ("dual", rows.dual), ("energy", rows.energy)):
        np.testing.assert_array_equal(found, np.concatenate([getattr(dog, name), getattr(cat, name)]))
    np.testing.assert_array_equal(rows.values, np.concatenate([dog.target_values, cat.target_values]))
    np.testing.assert_array_equal(rows.bias, [0.25, 0.5, 0.5])
    np.testing.assert_array_equal(rows.strength, [0.5, 1, 1])
    np.testing.assert_array_equal(
        bank.embeddings(["<dog>", "<cat>"]), np.concatenate([dog.embeddings[0], cat.embeddings[0]])
    )


def test_no_concepts_are_rows_of_the_right_widths(bundle):
    rows = Bank(bundle).rows([])
    assert rows.direction.shape == (0, 16) and rows.values.shape == (0, 40) and rows.slots == ()
    assert Bank(bundle).embeddings([]).shape == (0, 16)


def test_the_lock_of_several_concepts_is_the_one_they_agree_on(bundle, make_concept):
    bank = Bank(bundle)
    for token, lock in (("<cat>", "global"), ("<dog>", "global"), ("<cow>", "local")):
        bank.load(make_concept(token=token, lock=lock))
    assert bank.common_lock(["<cat>", "<dog>"]) == "global"
    with pytest.raises(RequestError, match=r"different locks \(<dog> global, <cow> local\)"):
        bank.common_lock(["<dog>", "<cow>"])


def test_where_the_family_is_a_guess_an_equal_fingerprint_settles_it(make_concept):
    sizes = {
        "text_dim": 16,
        "hidden_sizes": (16,),
        "key_width": 40,
        "value_width": 40,
        "key_projections": None,
    }
    fitting = make_concept(base="mine")
    base = BaseTraits(noun="pipeline", family="unknown", fingerprint=fitting.base_fingerprint, **sizes)
    with pytest.raises(ConceptError, match="trained for mine, this pipeline is unknown"):
        ConceptBank(base).load(fitting)
    guess = ConceptBank(replace(base, family_is_certain=False))
    guess.load(fitting)
    with pytest.raises(ConceptError, match="trained for mine, this pipeline is unknown"):
        guess.load(make_concept(base="mine", token="<dog>", base_fingerprint=OTHER))


def test_a_pipeline_of_the_first_edition_is_not_told_to_export(make_concept):
    base = BaseTraits(
        noun="pipeline", family="pocket", fingerprint=OTHER, text_dim=16, hidden_sizes=(16,), key_width=40,
        value_width=40, key_projections=None,
    )  # fmt: skip
    with pytest.raises(ConceptError, match=r"this pipeline is pocket\. These are two editions") as caught:
        ConceptBank(base).load(make_concept(base="pocket2"))
    assert str(caught.value).endswith("this package brings, or use a concept of pocket.")


def test_a_base_with_two_text_encoders_takes_a_word_for_each(make_concept):
    words = tuple(np.full((1, width), width, np.float32) for width in (16, 24))
    concept = make_concept(embeddings=words)
    base = BaseTraits(
        noun="pipeline", family=concept.base, fingerprint=concept.base_fingerprint, text_dim=16,
        hidden_sizes=(16, 24), key_width=40, value_width=40, key_projections=None,
    )  # fmt: skip
    bank = ConceptBank(base)
    bank.load(concept)
    np.testing.assert_array_equal(bank.embeddings(["<cat>"], 1), words[1])
    with pytest.raises(ConceptError, match=r"embeddings\.1 of 16 numbers a row, this pipeline takes 24"):
        bank.load(make_concept(token="<dog>", embeddings=(words[0], words[0])))


def test_a_concept_of_strength_0_is_not_active(bundle, make_concept):
    bank = Bank(bundle)
    bank.load(make_concept(), strength=0)
    bank.load(make_concept(token="<dog>"))
    assert bank.active(["<dog>", "<cat>"]) == ("<dog>",)


def test_loaded_concepts_cannot_be_changed_from_outside(bundle, make_concept):
    bank = Bank(bundle)
    with pytest.raises(TypeError):
        bank.concepts["<cat>"] = make_concept()  # type: ignore[index]


@pytest.mark.parametrize("name", ["cat.png", "cat.safetensors"])
def test_a_concept_comes_from_a_path_from_bytes_or_from_an_opened_file(runtime, make_concept, tmp_path, name):
    path = tmp_path / name
    make_concept().save(path)
    data = path.read_bytes()
    with open(path, "rb") as file:
        for source in (path, str(path), data, bytearray(data), io.BytesIO(data), file):
            assert runtime.load_concept(source).token == "<cat>"
            runtime.unload_concept("<cat>")


def test_what_holds_no_concept_is_refused_in_words(runtime, make_concept, tmp_path):
    path = tmp_path / "cat.safetensors"
    make_concept().save(path)
    with open(path, encoding="ascii") as text, pytest.raises(ConceptError, match='opened with "rb"'):
        runtime.load_concept(text)
    with pytest.raises(ConceptError, match="The concept is int that gives int"):
        runtime.load_concept(3)
    with pytest.raises(ConceptError, match="This is no concept file"):
        runtime.load_concept(b"no concept")
