"""The settings and the vocabulary that ship, held against published sizes and against the outside packages."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch

from perfusion.base.families import check_pipeline, family_of
from perfusion.base.family_settings import clip_merges, clip_vocabulary, family_settings, is_shipped
from perfusion.base.loading import load_scheduler, load_tokenizer, read_index, read_json
from perfusion.bundle.description import TextEncoder
from perfusion.runtime.text.tokenizer import PromptTokenizer

KINDS = {
    "sd15": ("sd15", "epsilon"),
    "sd21": ("sd21", "v_prediction"),
    "sd21_base": ("sd21", "epsilon"),
    "sdxl": ("sdxl", "epsilon"),
}
PARAMETERS = {
    ("sd15", "unet"): 859_520_964,
    ("sd21", "unet"): 865_910_724,
    ("sd21_base", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sd15", "vae"): 83_653_863,
    ("sdxl", "vae"): 83_653_863,
    ("sd15", "text_encoder"): 123_060_480,
    ("sd21", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder"): 123_060_480,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
"""Weights of each part as the published models have them."""


def folder_of(name):
    return family_settings(Path("model.safetensors"), *KINDS[name])


def part_without_memory(folder, part):
    import diffusers
    import transformers

    kind = read_index(folder)[part][1]
    with torch.device("meta"):
        if part.startswith("text_encoder"):
            config = transformers.CLIPTextConfig.from_pretrained(folder / part)
            return getattr(transformers, kind)(config)
        return getattr(diffusers, kind).from_config(read_json(folder / part / "config.json"))


@pytest.mark.parametrize(("name", "part"), PARAMETERS)
def test_the_settings_make_models_of_the_published_size(name, part):
    module = part_without_memory(folder_of(name), part)
    assert sum(weight.numel() for weight in module.parameters()) == PARAMETERS[name, part]
    if part == "unet":
        assert family_of(module) == KINDS[name][0]


@pytest.mark.parametrize("name", KINDS)
def test_the_settings_are_a_whole_models(name):
    folder = folder_of(name)
    assert folder.name == name
    assert is_shipped(folder)
    check_pipeline(folder, read_index(folder))
    assert load_scheduler(folder)["prediction_type"] == KINDS[name][1]


def test_both_tokenizers_of_xl_split_alike_and_pad_each_in_its_way():
    first, second = (load_tokenizer(folder_of("sdxl"), part) for part in ("tokenizer", "tokenizer_2"))
    # the ids that CLIP's readme and every tutorial show
    assert first("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first.get_vocab() == second.get_vocab()
    assert (first.pad_token_id, second.pad_token_id) == (49407, 0)


@pytest.fixture(scope="session")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of merges that the package open_clip_torch brings; only its archive is fetched, nothing installed."""
    folder = tmp_path_factory.mktemp("open-clip")
    fetch = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "open_clip_torch"]
    try:
        done = subprocess.run(
            [sys.executable, *fetch], capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip("open_clip_torch cannot be fetched: no answer")
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        pytest.skip(f"open_clip_torch cannot be fetched: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        return Path(archive.extract("open_clip/bpe_simple_vocab_16e6.txt.gz", folder))


def test_the_vocabulary_is_clips(open_clip):
    """CLIP's own reader takes the lines 1 to 48894 of this file (simple_tokenizer.py)."""
    lines = gzip.decompress(open_clip.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    assert clip_merges() == merges
    vocabulary = clip_vocabulary(clip_merges())
    assert sorted(vocabulary.values()) == list(range(49408))
    assert vocabulary["!"] == 0
    assert vocabulary["<|endoftext|>"] == 49407


def test_the_runtime_splits_ten_thousand_strings_as_transformers_does(tmp_path):
    """Pieces of words, spaces, marks and letters of all scripts, with the vocabulary that ships."""
    tokenizer = load_tokenizer(folder_of("sd15"))
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}
    encoder = TextEncoder(
        file=tmp_path / "x.onnx", hidden_size=768, vocab_size=49408, context_length=77, **ids
    )
    ours = PromptTokenizer(tmp_path / "tokenizer.json", encoder)
    random = Random(0)
    words = [
        word.removesuffix("</w>") for word in random.sample(sorted(clip_vocabulary(clip_merges())), 3000)
    ]
    odd = [
        " ",
        "  ",
        "\t",
        "\n",
        "'s",
        "N'T",
        "...",
        "(",
        ")",
        "1234",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "日本",
        "🐱",
        "👩‍👧",
        "\u200d",
    ]
    pieces = (*words, *odd * 40)
    texts = ["".join(random.choices(pieces, k=random.randrange(12))) for _ in range(10_000)]
    theirs = tokenizer(texts, truncation=True, max_length=77).input_ids
    fitting = 0
    for text, expected in zip(texts, theirs, strict=True):
        if len(expected) < 77 and "<" not in text:  # words in angle brackets are concepts to the runtime
            prompt = ours.tokenize(text, {})
            assert prompt.input_ids[: prompt.length].tolist() == expected, repr(text)
            fitting += 1
    assert fitting > 9_000
