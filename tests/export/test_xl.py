"""A float16 bundle of a model with two text encoders: its ends, its types and its numbers against diffusers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from perfusion.base.attention import installed
from perfusion.export.graph_modules import graphs_of
from perfusion.runtime import read_bundle

HALF, FLOAT = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT

EXPECTED = {
    "text_encoder": (
        {"input_ids": ("batch", 77), "concept_embeddings": ("concepts", 32)},
        {"penultimate_hidden_state": ("batch", 77, 32)},
    ),
    "text_encoder_2": (
        {"input_ids": ("batch", 77), "concept_embeddings": ("concepts", 48)},
        {"penultimate_hidden_state": ("batch", 77, 48), "text_embeds": ("batch", 40)},
    ),
    "unet": (
        {
            "sample": ("batch", 4, "height", "width"),
            "timestep": ("batch",),
            "encoder_hidden_states": ("batch", "tokens", 80),
            "key_hidden_states": ("batch", "tokens", 80),
            "key_gate": ("batch", "tokens", "concepts"),
            "value_gate": ("batch", "tokens", "concepts"),
            "concept_keys": ("concepts", 64),
            "concept_values": ("concepts", 64),
            "regions": ("batch", "regions", "height", "width"),
            "text_embeds": ("batch", 40),
            "time_ids": ("batch", 6),
        },
        {"out_sample": ("batch", 4, "height", "width")},
    ),
}


def load(exported, name):
    return onnx.load(exported.folder / f"{name}.onnx")


def ends(values):
    return {
        value.name: tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in values
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_inputs_and_outputs_are_those_of_the_contract(xl_exported, name):
    graph = load(xl_exported, name).graph
    assert (ends(graph.input), ends(graph.output)) == EXPECTED[name]


@pytest.mark.parametrize("name", [*EXPECTED, "vae_decoder", "vae_encoder"])
def test_every_end_is_float16_but_ids_and_the_timestep(xl_exported, name):
    graph = load(xl_exported, name).graph
    for value in (*graph.input, *graph.output):
        exceptions = {"input_ids": onnx.TensorProto.INT64, "timestep": FLOAT}
        assert value.type.tensor_type.elem_type == exceptions.get(value.name, HALF), value.name


@pytest.mark.parametrize(
    "name, kind", [("text_encoder_2", HALF), ("unet", HALF), ("vae_decoder", FLOAT), ("vae_encoder", FLOAT)]
)
def test_weights_are_float16_but_those_of_sdxls_vae_which_overflows(xl_exported, name, kind):
    weights = {
        t.name: t.data_type for t in load(xl_exported, name).graph.initializer if t.name.endswith("weight")
    }
    assert len(weights) > 10
    assert set(weights.values()) == {kind}
    assert xl_exported.manifest["kept_fp32"] == ["vae_decoder", "vae_encoder"]


def test_every_graph_is_within_the_tolerance_of_half(xl_exported):
    assert set(xl_exported.parity) == {*EXPECTED, "vae_decoder", "vae_encoder"}
    assert all(1e-5 < error < 2e-3 for error in xl_exported.parity.values())


def run(exported, name, **feeds):
    session = onnxruntime.InferenceSession(
        exported.folder / f"{name}.onnx", providers=["CPUExecutionProvider"]
    )
    typed = {
        end.name: np.asarray(feeds[end.name]).astype(np.float16 if end.type == "tensor(float16)" else None)
        if end.type == "tensor(float16)"
        else np.asarray(feeds[end.name])
        for end in session.get_inputs()
    }
    return session.run(None, typed)


def test_the_encodings_are_what_a_diffusers_pipeline_makes_of_the_prompt(xl_exported, xl_model):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_model, local_files_only=True)
    prompt = "a photo of two dogs on a beach"
    with torch.no_grad():
        hidden, _, pooled, _ = pipeline.encode_prompt(prompt, do_classifier_free_guidance=False)
    states = []
    for name, tokenizer, width in (("", pipeline.tokenizer, 32), ("_2", pipeline.tokenizer_2, 48)):
        ids = tokenizer([prompt], padding="max_length", max_length=77).input_ids
        found = run(
            xl_exported, f"text_encoder{name}", input_ids=ids, concept_embeddings=np.zeros((0, width))
        )
        states.append(found[0])
    np.testing.assert_allclose(np.concatenate(states, -1), hidden.numpy(), rtol=0, atol=1e-2)
    # the pipeline's encoder pools at the highest id, which is this vocabulary's end token, as ours does
    np.testing.assert_allclose(found[1], pooled.numpy(), rtol=0, atol=1e-2)


def test_a_concepts_embedding_does_not_move_where_the_prompt_is_pooled(xl_exported, xl_base):
    """An id beyond the vocabulary is the highest of all, and still not the end of the prompt."""
    ids = np.asarray(xl_base.tokenizers[1](["a photo of a cat"], padding="max_length").input_ids)
    word = xl_base.text_encoders[1].get_input_embeddings().weight[ids[0, 4]].numpy()
    plain = run(xl_exported, "text_encoder_2", input_ids=ids, concept_embeddings=np.zeros((0, 48)))
    ids[0, 4] = xl_base.vocab_sizes[1]
    renamed = run(xl_exported, "text_encoder_2", input_ids=ids, concept_embeddings=word[None])
    np.testing.assert_array_equal(renamed[1], plain[1])


def test_the_prediction_is_what_diffusers_computes_with_the_same_conditions(xl_exported, xl_base):
    generator = torch.Generator().manual_seed(0)
    feeds = {
        "sample": torch.randn(2, 4, 8, 12, generator=generator),
        "timestep": torch.tensor([500.0, 500.0]),
        "encoder_hidden_states": torch.randn(2, 77, 80, generator=generator),
        "text_embeds": torch.randn(2, 40, generator=generator),
        "time_ids": torch.tensor([[1024.0, 768, 0, 64, 1024, 1024], [512, 512, 8, 0, 640, 480]]),
    }
    expected = xl_base.unet(
        feeds["sample"], 500, feeds["encoder_hidden_states"],
        added_cond_kwargs={name: feeds[name] for name in ("text_embeds", "time_ids")},
    ).sample.numpy()  # fmt: skip
    nothing = {name: np.zeros((2, 77, 0)) for name in ("key_gate", "value_gate")}
    nothing |= {name: np.zeros((0, 64)) for name in ("concept_keys", "concept_values")}
    nothing["regions"] = np.ones((2, 1, 8, 12))
    feeds |= {"key_hidden_states": feeds["encoder_hidden_states"]}
    found = run(xl_exported, "unet", **feeds, **nothing)[0]
    assert np.linalg.norm(found - expected) < 2e-3 * np.linalg.norm(expected)
    moved = run(xl_exported, "unet", **(feeds | {"time_ids": feeds["time_ids"].flip(0)}), **nothing)[0]
    assert np.linalg.norm(moved - expected) > 1e-2 * np.linalg.norm(expected)


def test_the_runtime_reads_it(xl_exported, xl_base):
    bundle = read_bundle(xl_exported.folder)
    assert (bundle.precision, bundle.text_dim) == ("fp16", 80)
    assert bundle.unet.key_width == xl_base.layers[-1].key_slice.stop


def test_a_consistency_models_graph_has_its_condition_as_an_input(consistency_model):
    from perfusion.base.base_model import load_base

    graph = next(graph for graph in graphs_of(load_base(consistency_model)) if graph.name == "unet")
    assert [(end.name, end.dims) for end in graph.inputs][-1] == ("timestep_cond", ("batch", 12))


@pytest.mark.slow
def test_a_consistency_model_exports_and_reads_its_condition(consistency_model, open_session, tmp_path):
    from perfusion.base.base_model import guidance_embedding, load_base
    from perfusion.export import export_bundle

    made = export_bundle(consistency_model, tmp_path / "bundle")
    assert made.parity["unet"] < 1e-5
    base = load_base(consistency_model)
    generator = torch.Generator().manual_seed(0)
    sample, states = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 16)))
    condition = guidance_embedding(7.0, 12)
    with installed(base.unet):
        expected = base.unet(sample, 700, states, timestep_cond=condition).sample.numpy()
    found = open_session(made.folder / "unet.onnx").run(
        None,
        {
            "sample": sample.numpy(), "timestep": np.array([700], np.float32),
            "encoder_hidden_states": states.numpy(), "key_hidden_states": states.numpy(),
            "key_gate": np.zeros((1, 77, 0), np.float32), "value_gate": np.zeros((1, 77, 0), np.float32),
            "concept_keys": np.zeros((0, 40), np.float32), "concept_values": np.zeros((0, 40), np.float32),
            "regions": np.ones((1, 1, 8, 8), np.float32), "timestep_cond": condition.numpy(),
        },
    )[0]  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
