"""What a shared concept's repository holds, without any hub."""

import io

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from perfusion.concept.card import extract
from perfusion.concept.concept_file import Concept
from perfusion.errors import HubError, RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import read_settings
from perfusion.sharing import MOST_PICTURES, read_gallery, repository_of
from perfusion.sweep import Drawings, Setting, sweep

PROMPTS = ["a photo of a <cat>", 'a "red" <cat>: on `a` beach']


@pytest.fixture(scope="module")
def concept(bundle, make_concept) -> Concept:
    return make_concept(
        superclass="cat", base="sd15", bias=0.6, text_dim=bundle.text_dim, width=bundle.unet.value_width,
        base_fingerprint=bundle.base_fingerprint, training={"steps": "300", "base_model": "them/base@abc"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(concept, tmp_path_factory):
    path = tmp_path_factory.mktemp("concept") / "my cat!.safetensors"
    concept.save(path)
    return path


@pytest.fixture(scope="module")
def swept(concept, toy_bundle, tmp_path_factory):
    """The pictures of a sweep, and some that are none of it."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("swept")
    with Runtime(toy_bundle, provider="cpu") as runtime:
        runtime.load_concept(replace(concept, base=runtime.bundle.base))
        settings = [Setting(bias=bias) for bias in (0.5, 0.6, 0.9)]
        drawings = Drawings(folder, runtime, {"num_inference_steps": 1})
        sweep(drawings, prompts=PROMPTS, seeds=[0, 1], settings=settings)
    Image.new("RGB", (8, 8)).save(folder / "a-photo.jpg")
    (folder / "notes.png").write_text("no picture")
    return folder


def test_a_sweeps_gallery_is_each_prompt_and_seed_at_the_concepts_own_settings(swept, concept):
    gallery = read_gallery([swept], concept)
    assert [entry.prompt for entry in gallery] == sorted(PROMPTS * 2)
    told = [read_settings(io.BytesIO(entry.data)) or {} for entry in gallery]
    assert [settings["concepts"]["<cat>"]["bias"] for settings in told] == [0.6] * 4
    assert [settings["seed"] for settings in told] == [0, 1, 0, 1]


def test_a_folder_without_drawings_of_the_concept_is_refused(swept, make_concept):
    with pytest.raises(
        RequestError, match=r"has no drawing of <dog> that says how it was drawn\. Give the folder"
    ):
        read_gallery([swept], make_concept(token="<dog>"))


def test_more_pictures_than_a_page_shows_are_left_out(swept, concept):
    assert len(read_gallery([swept] * 4, concept)) == MOST_PICTURES


def test_the_page_shows_the_pictures_with_their_prompts(path, swept, concept):
    gallery = read_gallery([swept], concept)
    repository = repository_of(path, "me/my-cat", licence="cc-by-4.0", gallery=gallery)
    text = repository.files["README.md"].decode()
    facts = ModelCard(text).data.to_dict()
    assert [entry["text"] for entry in facts["widget"]] == sorted(PROMPTS * 2)
    assert all(entry["output"]["url"] in repository.files for entry in facts["widget"])
    assert facts["base_model"] == "them/base"
    assert "<Gallery />" in text
    assert "`them/base@abc` (`sd15`, checkpoint " in text
    assert "perfusion-export --model them/base@abc --output BUNDLE" in text
    assert "perfusion-generate --bundle BUNDLE --concept me/my-cat" in text
    assert (
        extract(repository.files["my-cat.png"]) == repository.files["my-cat.safetensors"] == path.read_bytes()
    )


def test_a_card_is_shared_as_it_shows(concept, tmp_path):
    card = tmp_path / "cat.png"
    concept.save(card, picture=Image.new("RGB", (20, 10), "green"))
    repository = repository_of(card, "me/my-cat", licence="cc-by-4.0")
    with Image.open(io.BytesIO(repository.files["cat.png"])) as picture:
        assert picture.size == (20, 10)
    facts = ModelCard(repository.files["README.md"].decode()).data.to_dict()
    assert facts["widget"] == [{"text": "a photo of a <cat>", "output": {"url": "cat.png"}}]
    assert Concept.from_bytes(repository.files["cat.safetensors"]).token == "<cat>"


def test_without_pictures_the_page_has_no_gallery_and_the_card_is_plain(path):
    repository = repository_of(path, "me/my-cat", licence="cc-by-4.0")
    assert b"Gallery" not in repository.files["README.md"]
    assert set(repository.files) == {"README.md", "my-cat.png", "my-cat.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "my-cat"},
            r"my-cat is no name on the hub, expected your name there and the concept's: me/my-cat\.",
        ),
        ({"name": "me/my-cat@main"}, "is no name on the hub"),
        ({"licence": "You may not!"}, "is no licence as the hub names them, expected one such as cc-by-4.0"),
        (
            {"base_model": "models/a/b"},
            "The base model models/a/b is no name on the hub, expected owner/name",
        ),
    ],
)
def test_names_that_the_hub_does_not_take_are_refused(path, change, message):
    options = {"name": "me/my-cat", "licence": "cc-by-4.0"} | change
    with pytest.raises(HubError, match=message):
        repository_of(path, **options)
