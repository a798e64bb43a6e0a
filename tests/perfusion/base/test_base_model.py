"""Opening a base model, its fingerprint, and the text encoder with words that are not in its table."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import safetensors.numpy
import torch

from perfusion.base.attention import layer_table
from perfusion.base.base_model import BaseModel, encode, fingerprint, load_base, token_embedding
from perfusion.errors import ModelError
from recipes.pocket.architecture import build_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    build_pipeline("tiny").to(torch.float16).save_pretrained(path)
    (path / "perfusion.json").write_text('{"family": "pocket"}')
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> BaseModel:
    return load_base(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_parts_are_float32_in_evaluation_mode_and_frozen(base):
    for part in (base.unet, base.text_encoder, base.vae):
        assert part.dtype == torch.float32
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_weights_are_the_numbers_of_the_file(base, folder):
    stored = safetensors.numpy.load_file(folder / UNET)
    for name, tensor in base.unet.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name].astype(np.float32))


def test_opening_a_model_says_nothing(folder, capfd):
    load_base(folder)
    assert capfd.readouterr() == ("", "")


def test_without_a_folder_the_embedded_model_is_opened(folder, monkeypatch):
    monkeypatch.setattr("perfusion.embedded.model_path", lambda: folder, raising=False)
    assert load_base(None).folder == folder


def test_the_fingerprint_is_a_digest_of_the_stored_projections_and_the_table_shape(base, folder):
    """From the safetensors file and the layers' names alone."""
    stored = safetensors.numpy.load_file(folder / UNET)
    digest = hashlib.sha256()
    for layer in base.layers:
        for projection in ("to_k", "to_v"):
            digest.update(stored[f"{layer.name}.{projection}.weight"].astype("<f2").tobytes())
    vocab_size = json.loads((folder / "text_encoder/config.json").read_text())["vocab_size"]
    digest.update(f"{vocab_size}x32".encode())
    assert base.fingerprint == digest.hexdigest()


def test_the_fingerprint_is_the_same_in_either_precision_and_moves_with_a_weight(base):
    pipeline = build_pipeline("tiny")
    sizes = (base.vocab_size, base.text_dim)
    assert fingerprint(pipeline.unet, *sizes) == base.fingerprint
    assert fingerprint(pipeline.unet, base.vocab_size + 1, base.text_dim) != base.fingerprint
    pipeline.unet.get_parameter("conv_in.weight").data += 1  # not a weight that a concept depends on
    assert fingerprint(pipeline.unet, *sizes) == base.fingerprint
    pipeline.unet.get_parameter(f"{layer_table(pipeline.unet)[-1].name}.to_v.weight").data[0, 0] += 1
    assert fingerprint(pipeline.unet, *sizes) != base.fingerprint


def test_the_fingerprint_of_two_text_encoders_names_both_tables(tiny_xl_base, tiny_xl_model):
    stored = safetensors.numpy.load_file(tiny_xl_model / UNET)
    digest = hashlib.sha256()
    for layer in tiny_xl_base.layers:
        for projection in ("to_k", "to_v"):
            digest.update(stored[f"{layer.name}.{projection}.weight"].astype("<f2").tobytes())
    words = tiny_xl_base.vocab_size
    digest.update(f"{words}x32+{words}x48".encode())
    assert tiny_xl_base.fingerprint == digest.hexdigest()


def test_the_parts_of_a_model_with_two_text_encoders_are_in_their_order(tiny_xl_base):
    assert tiny_xl_base.hidden_sizes == (32, 48)
    assert tiny_xl_base.text_encoder is tiny_xl_base.text_encoders[0]
    assert tiny_xl_base.tokenizer is tiny_xl_base.tokenizers[0]
    assert tiny_xl_base.parts == (tiny_xl_base.unet, *tiny_xl_base.text_encoders, tiny_xl_base.vae)
    assert (tiny_xl_base.resolution, tiny_xl_base.downscale) == (32, 4)
    assert not any(weight.requires_grad for part in tiny_xl_base.parts for weight in part.parameters())


def ids_of(base: BaseModel, *prompts: str) -> torch.Tensor:
    return torch.tensor(base.tokenizer(list(prompts), padding="max_length").input_ids)


def test_encodings_are_those_of_the_models_own_forward(base):
    ids = ids_of(base, "a photo of a cat", "")
    expected = base.text_encoder(ids).last_hidden_state
    torch.testing.assert_close(encode(base.text_encoder, ids), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        encode(base.text_encoder, ids, torch.randn(3, base.text_dim)), expected, rtol=1e-5, atol=1e-6
    )


def test_a_concept_with_the_embedding_of_a_word_is_that_word(base):
    ids = ids_of(base, "a photo of a cat")
    place = (ids[0] == ids_of(base, "cat")[0, 1]).nonzero()[0, 0]
    word = token_embedding(base.text_encoder).weight[ids[0, place]]
    for concepts, row in ((1, 0), (3, 2)):
        table = torch.randn(concepts, base.text_dim)
        table[row] = word
        renamed = ids.clone()
        renamed[0, place] = base.vocab_size + row
        assert torch.equal(encode(base.text_encoder, renamed, table), encode(base.text_encoder, ids, table))


def test_no_concepts_is_an_empty_table_and_not_an_error(base):
    ids = ids_of(base, "a photo of a cat")
    empty = torch.zeros(0, base.text_dim)
    assert torch.equal(encode(base.text_encoder, ids, empty), encode(base.text_encoder, ids))


def test_a_concept_is_seen_by_its_own_and_later_tokens_only(base):
    ids = ids_of(base, "a photo of a cat")
    ids[0, 3] = base.vocab_size
    first, second = (encode(base.text_encoder, ids, torch.randn(1, base.text_dim)) for _ in range(2))
    assert torch.equal(first[:, :3], second[:, :3])
    assert all(not torch.allclose(first[0, at], second[0, at]) for at in range(3, 77))


def test_a_gradient_reaches_the_rows_that_are_used_and_nothing_else(base):
    ids = ids_of(base, "a photo of a cat")
    ids[0, 3] = base.vocab_size + 1
    table = torch.randn(3, base.text_dim, requires_grad=True)
    encode(base.text_encoder, ids, table).square().sum().backward()
    assert table.grad is not None
    assert [bool(row.any()) for row in table.grad] == [False, True, False]
    assert all(parameter.grad is None for parameter in base.text_encoder.parameters())


def name_scheduler(folder, kind):
    """Put a scheduler's class into model_index.json, which has the say."""
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", kind]}))


def test_the_scheduler_has_its_class_defaults_filled_in(copy):
    settings = {
        "_class_name": "PNDMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "clip_sample": False,
    }
    (copy / "scheduler/scheduler_config.json").write_text(json.dumps(settings))
    scheduler = load_base(copy).scheduler
    assert scheduler["beta_start"] == 0.00085
    assert scheduler["num_train_timesteps"] == 1000
    assert scheduler["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    "settings", [{"beta_schedule": "nonsense"}, {"_class_name": "DPMSolverSDEScheduler"}]
)
def test_a_scheduler_that_cannot_be_made_is_refused_with_its_reason(copy, settings, monkeypatch):
    def lacking(config: Any) -> None:
        raise ImportError("\nDPMSolverSDEScheduler requires the torchsde library")

    monkeypatch.setattr(diffusers.DPMSolverSDEScheduler, "from_config", lacking)
    path = copy / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DDIMScheduler"} | settings))
    name_scheduler(copy, settings.get("_class_name", "DDIMScheduler"))
    with pytest.raises(
        ModelError, match=r"cannot be made: (nonsense is|DPM.* requires).*name another scheduler"
    ):
        load_base(copy)


def test_a_turbo_model_is_drawn_in_few_steps_without_guidance(copy):
    path = copy / "scheduler/scheduler_config.json"
    for kind, spacing, expected in (
        ("EulerAncestralDiscreteScheduler", "trailing", (1.0, 4)),
        ("EulerAncestralDiscreteScheduler", "leading", (5.0, 20)),
        ("EulerDiscreteScheduler", "trailing", (5.0, 20)),
    ):
        path.write_text(json.dumps({"_class_name": kind, "timestep_spacing": spacing}))
        name_scheduler(copy, kind)
        base = load_base(copy)
        assert (base.guidance_scale, base.num_inference_steps) == expected


def test_a_model_may_say_how_it_is_best_drawn(copy, base):
    assert (base.guidance_scale, base.num_inference_steps) == (5.0, 20)
    edit_json(copy / "perfusion.json", guidance_scale=3.0, num_inference_steps=12)
    own = load_base(copy)
    assert (own.family, own.guidance_scale, own.num_inference_steps) == ("pocket", 3.0, 12)


def test_a_model_may_say_what_its_concepts_learn_and_how_fast(copy, base):
    assert (base.lr_values, base.values) == (0.03, "layers")
    edit_json(copy / "perfusion.json", lr_values=0.004, values="encoding")
    own = load_base(copy)
    assert (own.lr_values, own.values) == (0.004, "encoding")


def without(*names: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def index(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "model_index.json", **changes)


def write(path: Path, text: str) -> None:
    path.write_text(text)


def own(text: str) -> Callable[[Path], None]:
    return lambda folder: write(folder / "perfusion.json", text)


def pickled(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def truncated(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def a_tensor_short(folder: Path) -> None:
    tensors = safetensors.numpy.load_file(folder / UNET)
    del tensors["conv_out.bias"]
    safetensors.numpy.save_file(tensors, folder / UNET)


def another_width(folder: Path) -> None:
    edit_json(folder / "unet/config.json", cross_attention_dim=48)


BROKEN = {
    "no index": (without("model_index.json"), "not a diffusers model"),
    "damaged index": (
        lambda folder: (folder / "model_index.json").write_text("{"),
        "model_index.json: cannot",
    ),
    "index of another kind": (lambda folder: (folder / "model_index.json").write_text("[]"), "JSON object"),
    "no unet folder": (without("unet"), "has no unet; expected a complete"),
    "no vae listed": (index(vae=[None, None]), "has no vae"),
    "another unet": (
        index(unet=["diffusers", "UNet3DConditionModel"]),
        "UNet3DConditionModel, expected UNet2D",
    ),
    "a transformer": (index(transformer=["diffusers", "FluxTransformer2DModel"]), "no fixed keys"),
    "a second text encoder that is not there": (
        index(text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        "has no text_encoder_2",
    ),
    "a pickle": (
        pickled,
        r"only diffusion_pytorch_model\.bin; .*safetensors in unet/.*pickle.*save it again",
    ),
    "a truncated file": (truncated, "its unet cannot be read"),
    "a tensor short": (a_tensor_short, r"unet miss 1 tensors, the first conv_out\.bias"),
    "a config of another model": (another_width, "its unet cannot be read"),
    "no vocabulary": (without("tokenizer/tokenizer.json"), "no vocabulary in tokenizer/"),
    "no scheduler settings": (without("scheduler/scheduler_config.json"), "no scheduler/scheduler_config"),
    "an unknown scheduler": (
        lambda folder: edit_json(folder / "model_index.json", scheduler=["diffusers", "Guess"]),
        "unknown scheduler 'Guess'",
    ),
    "an unknown width": (without("perfusion.json"), r"encodings of 32 numbers, expected 768 \(sd15\)"),
    "a family of no name": (own("{}"), "names no family"),
    "a family that is a number": (own('{"family": 3}'), "family is 3, expected a word"),
    "steps that are no number": (
        own('{"family": "pocket", "num_inference_steps": "many"}'),
        "num_inference_steps is 'many', expected a whole number",
    ),
    "a rate below zero": (
        own('{"family": "pocket", "lr_values": -0.1}'),
        "lr_values is -0.1, expected a number above 0",
    ),
    "values learned in no known way": (
        own('{"family": "pocket", "values": "tokens"}'),
        "values is 'tokens', expected layers or encoding",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_cannot_be_used_is_refused_with_a_sentence(copy, case):
    damage, message = BROKEN[case]
    damage(copy)
    with pytest.raises(ModelError, match=message) as refused:
        load_base(copy)
    assert "\n" not in str(refused.value)
    assert str(copy) in str(refused.value)


def test_a_folder_that_is_not_there_or_a_file_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no such folder"):
        load_base(tmp_path / "nothing")
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is no \.safetensors file, expected one or the folder"):
        load_base(tmp_path / "model.ckpt")


def test_parts_of_different_models_are_refused(base):
    pipeline = build_pipeline("tiny")
    parts = {name: getattr(base, name) for name in BaseModel.__dataclass_fields__}
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(ModelError, match=r"9 input and 4 output channels.*VAE has 4"):
        BaseModel(**(parts | {"unet": pipeline.unet}))
    pipeline.tokenizer.add_tokens("<new>")
    with pytest.raises(ModelError, match=rf"ids up to {base.vocab_size} and the text encoder has"):
        BaseModel(**(parts | {"tokenizers": (pipeline.tokenizer,)}))
    pipeline.unet.register_to_config(in_channels=4, cross_attention_dim=48)
    with pytest.raises(ModelError, match="gives 32 numbers a token and the UNet reads 48"):
        BaseModel(**(parts | {"unet": pipeline.unet}))
