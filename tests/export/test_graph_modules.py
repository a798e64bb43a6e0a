"""What the exported graphs compute, run by ONNX Runtime: the properties that the method promises."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from perfusion.base.attention import ConceptAttnProcessor, install, installed, uninstall
from perfusion.concept.edit import condition, edited_projection
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import End, Graph, plain_graphs_of
from perfusion.export.weights import save

TEXT_DIM, WIDTH = 16, 40
GATES = ("key_gate", "value_gate")
TARGETS = ("concept_keys", "concept_values")


def feeds_of(
    batch: int = 2, concepts: int = 2, tokens: int = 77, size: int = 8, seed: int = 0
) -> dict[str, Any]:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    encodings = normal(batch, tokens, TEXT_DIM)
    return {
        "sample": normal(batch, 4, size, size),
        "timestep": np.full(batch, 500, np.float32),
        "encoder_hidden_states": encodings,
        "key_hidden_states": encodings,
        "key_gate": abs(normal(batch, tokens, concepts)),
        "value_gate": abs(normal(batch, tokens, concepts)),
        "concept_keys": normal(concepts, WIDTH),
        "concept_values": normal(concepts, WIDTH),
        "regions": np.ones((batch, 1, size, size), np.float32),
    }


def row_of(feeds: dict[str, Any], row: int) -> dict[str, Any]:
    shared = TARGETS
    return {name: feed if name in shared else feed[row : row + 1] for name, feed in feeds.items()}


@pytest.fixture(scope="module")
def plain(graphs, base, open_session, tmp_path_factory):
    """A session of the graph without any concept input, converted with the processors of diffusers."""
    (graph,) = (graph for graph in plain_graphs_of(base) if graph.name == "unet")
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    uninstall(base.unet)
    save(to_onnx(graph), path)
    install(base.unet)
    return open_session(path)


@pytest.mark.parametrize("concepts", [0, 1, 4])
def test_closed_gates_are_the_plain_graph_bit_for_bit(run, plain, concepts):
    feeds = feeds_of(concepts=concepts)
    feeds["key_gate"], feeds["value_gate"] = (
        np.zeros_like(feeds["key_gate"]),
        np.zeros_like(feeds["value_gate"]),
    )
    names = ("sample", "timestep", "encoder_hidden_states")
    expected = plain.run(None, {name: feeds[name] for name in names})[0]
    np.testing.assert_array_equal(run("unet", **feeds), expected)


def test_an_open_gate_changes_the_prediction(run):
    feeds = feeds_of()
    closed = feeds | {name: np.zeros_like(feeds[name]) for name in GATES}
    assert np.abs(run("unet", **feeds) - run("unet", **closed)).max() > 0.01


@pytest.mark.parametrize("name", ["key_gate", "value_gate", *TARGETS, "key_hidden_states"])
def test_every_concept_input_reaches_the_output(run, name):
    feeds = feeds_of()
    moved = feeds | {name: -feeds[name]}
    assert np.abs(run("unet", **feeds) - run("unet", **moved)).max() > 1e-3


def test_a_row_of_a_batch_is_what_it_is_alone(run):
    """Each row with gates of its own, the first with none: a batch of different concepts."""
    feeds = feeds_of(batch=3, concepts=3)
    for name in GATES:
        feeds[name][0] = 0
        feeds[name][1, :, 1:] = 0
    together = run("unet", **feeds)
    for row in range(3):
        np.testing.assert_allclose(
            together[row : row + 1], run("unet", **row_of(feeds, row)), rtol=1e-4, atol=1e-5
        )


def test_swapping_two_concepts_in_the_inputs_swaps_nothing_else(run):
    feeds = feeds_of(concepts=2)
    swapped = feeds | {name: feeds[name][..., ::-1].copy() for name in GATES}
    swapped |= {name: feeds[name][::-1].copy() for name in TARGETS}
    np.testing.assert_allclose(run("unet", **swapped), run("unet", **feeds), rtol=1e-4, atol=1e-5)


def test_taking_a_concept_out_of_the_inputs_is_closing_its_gate(run):
    feeds = feeds_of(concepts=3)
    closed = feeds | {name: feeds[name] * np.array([1, 0, 1], np.float32) for name in GATES}
    fewer = feeds | {name: feeds[name][..., [0, 2]] for name in GATES}
    fewer |= {name: feeds[name][[0, 2]] for name in TARGETS}
    np.testing.assert_allclose(run("unet", **fewer), run("unet", **closed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size, tokens", [(2, 77), (6, 1), (10, 154)])
def test_sizes_and_prompt_lengths_are_free(run, size, tokens):
    feeds = feeds_of(size=size, tokens=tokens)
    assert run("unet", **feeds).shape == (2, 4, size, size)


class OneLayer(nn.Module):
    """A cross-attention layer with the graph's inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.attention = Attention(query_dim=8, cross_attention_dim=TEXT_DIM, heads=2, dim_head=4)
        self.attention.set_processor(ConceptAttnProcessor(slice(0, 8), slice(0, 8)))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, **edit: Tensor) -> Tensor:
        out: Tensor = self.attention(hidden_states, encoder_hidden_states=encoder_hidden_states, **edit)
        return out


class Positional(OneLayer):
    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        value_states: Tensor,
        key_states: Tensor,
        gate: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        return super().forward(
            hidden,
            value_states,
            key_hidden_states=key_states,
            key_gate=gate,
            value_gate=gate,
            concept_keys=keys,
            concept_values=values,
        )


def test_a_layer_of_the_graph_is_the_formula_in_numpy(make_concept, open_session, tmp_path):
    """h(e) for keys and values by `edited_projection`, then softmax(QKᵀ/√d)V, all in float64."""
    module = Positional()
    states = ("batch", "tokens", TEXT_DIM)
    graph = Graph(
        name="layer",
        module=module,
        inputs=(
            End(name="hidden", dims=("batch", "positions", 8)),
            End(name="value_states", dims=states),
            End(name="key_states", dims=states),
            End(name="gate", dims=("batch", "tokens", "concepts")),
            End(name="keys", dims=("concepts", 8)),
            End(name="values", dims=("concepts", 8)),
        ),
        outputs=(End(name="out", dims=("batch", "positions", 8)),),
        example={"batch": 2, "tokens": 5, "concepts": 3, "positions": 6},
    )
    save(to_onnx(graph), tmp_path / "layer.onnx")

    concept = make_concept(rows=2, text_dim=TEXT_DIM, width=8)
    random = np.random.default_rng(4)
    encodings, hidden = random.normal(size=(9, TEXT_DIM)), random.normal(size=(12, 8))
    geometry = {"direction": concept.direction, "dual": concept.dual, "energy": concept.energy}
    knobs = {"bias": 0.6, "temperature": 0.15}
    made = condition(encodings, **geometry, **knobs, strength=1.0)
    feeds = {
        "hidden": hidden,
        "value_states": made.value_states,
        "key_states": made.key_states,
        "gate": made.value_gate,
    }
    feeds = {name: np.asarray(feed, np.float32)[None] for name, feed in feeds.items()}
    feeds |= {"keys": concept.target_keys, "values": concept.target_values}
    found = np.asarray(open_session(tmp_path / "layer.onnx").run(None, feeds)[0])[0]

    weights = {name: tensor.double().numpy() for name, tensor in module.attention.state_dict().items()}
    key = edited_projection(encodings, weights["to_k.weight"], concept.target_keys, **geometry, **knobs)
    value = edited_projection(encodings, weights["to_v.weight"], concept.target_values, **geometry, **knobs)
    query = hidden @ weights["to_q.weight"].T
    attended = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[:, head] @ key[:, head].T / 2
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        attended.append(shares / shares.sum(axis=1, keepdims=True) @ value[:, head])
    expected = np.concatenate(attended, axis=1) @ weights["to_out.0.weight"].T + weights["to_out.0.bias"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_text_graph_takes_ids_beyond_the_vocabulary_from_the_concepts(run, base):
    """A concept with a word's embedding is that word; with another one it is not."""
    ids = np.asarray(base.tokenizer(["a photo of a cat"], padding="max_length").input_ids)
    place = 4
    word = base.text_encoder.get_input_embeddings().weight[ids[0, place]].numpy()
    random = np.random.default_rng(0)
    concepts = random.normal(size=(3, TEXT_DIM)).astype(np.float32)
    concepts[1] = word
    expected = run("text_encoder", input_ids=ids, concept_embeddings=concepts[:0])
    renamed = ids.copy()
    renamed[0, place] = base.vocab_size + 1
    np.testing.assert_array_equal(
        run("text_encoder", input_ids=renamed, concept_embeddings=concepts), expected
    )
    renamed[0, place] = base.vocab_size + 2
    other = run("text_encoder", input_ids=renamed, concept_embeddings=concepts)
    np.testing.assert_array_equal(other[:, :place], expected[:, :place])  # causal
    assert np.abs(other[:, place:] - expected[:, place:]).max() > 0.1


def test_the_text_graph_is_what_a_diffusers_pipeline_feeds_its_unet(run, base):
    ids = base.tokenizer(["two dogs on a beach", ""], padding="max_length", return_tensors="pt").input_ids
    expected = base.text_encoder(ids).last_hidden_state.detach().numpy()
    found = run("text_encoder", input_ids=ids, concept_embeddings=np.zeros((0, TEXT_DIM), np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_decoder_and_encoder_graphs_are_the_vae_without_its_scaling(run, base):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 4, 6, generator=generator)
    picture = run("vae_decoder", latent_sample=latents)
    np.testing.assert_allclose(picture, base.vae.decode(latents).sample.numpy(), rtol=1e-3, atol=1e-5)
    assert picture.shape == (1, 3, 16, 24)
    expected = base.vae.encode(torch.tensor(picture)).latent_dist.mean.numpy()
    np.testing.assert_allclose(run("vae_encoder", sample=picture), expected, rtol=1e-3, atol=1e-5)


def test_the_prediction_is_what_diffusers_computes_with_the_same_edit(run, base):
    feeds = feeds_of(batch=2, concepts=2, tokens=11)
    edit = {name: torch.tensor(feeds[name]) for name in ("key_hidden_states", *GATES, *TARGETS)}
    with installed(base.unet), torch.no_grad():
        expected = base.unet(
            torch.tensor(feeds["sample"]),
            500,
            torch.tensor(feeds["encoder_hidden_states"]),
            cross_attention_kwargs=edit,
        ).sample.numpy()
    np.testing.assert_allclose(run("unet", **feeds), expected, rtol=1e-3, atol=1e-5)
