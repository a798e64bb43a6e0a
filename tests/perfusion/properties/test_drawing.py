"""Properties 8 to 11, 14 and 15: several concepts, locks, batches, precision, files, and the bias."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from perfusion.concept.bank import EditRows
from perfusion.concept.concept_file import Concept
from perfusion.concept.conditioning import conditioned
from perfusion.training.initial_edit import concept_prompt
from perfusion.training.rank_one import RankOneEdit
from perfusion.training.templates import as_tensors


@pytest.mark.property(number=8)
@pytest.mark.parametrize("nouns", [("cat",), ("cat", "dog"), ("cat", "dog", "car", "hat")])
def test_several_concepts_are_solved_together_in_every_layer(world, nouns):
    rows = world.rows(*nouns)
    states = world.prompt.hidden[0].numpy()
    gates = world.gates(states, rows)
    wanted = world.expected(world.orthogonal(states, rows.direction), gates, rows.keys, rows.values)
    world.same(world.drawn(conditioned(states, rows))[0].all, wanted)
    if len(nouns) == 1:  # the single formula
        single = states - world.similarity(states, rows.direction) * rows.direction
        world.same(wanted, world.expected(single, gates, rows.keys, rows.values), 1e-10)
    else:  # the cheap form is something else
        cheap = states - world.similarity(states, rows.direction) @ rows.direction
        assert np.abs(cheap - world.orthogonal(states, rows.direction)).max() > 0.05


@pytest.mark.property(number=8)
def test_the_order_of_concepts_changes_no_key_and_no_value(world):
    rows = world.rows("cat", "dog", "car")
    states = world.prompt.hidden[0].numpy()
    plain = world.drawn(conditioned(states, rows))
    for order in itertools.permutations(range(3)):
        at = list(order)
        moved = {name: value[at] for name, value in vars(rows).items() if name != "slots"}
        turned = EditRows(slots=tuple(rows.slots[index] for index in at), **moved)
        world.same(world.drawn(conditioned(states, turned)).all, plain.all, 2e-6)


@pytest.mark.property(number=8)
def test_two_copies_of_a_concept_take_its_direction_out_once(world):
    rows = world.rows("cat")
    stored = {name: np.repeat(value, 2, axis=0) for name, value in vars(rows).items() if name != "slots"}
    stored |= {name: stored[name].astype(np.float32) for name in ("direction", "dual", "energy")}
    states = world.prompt.hidden[0].numpy()
    twice = world.drawn(conditioned(states, EditRows(slots=(("<a>", 0), ("<b>", 0)), **stored)))
    gates = 2 * world.gates(states, rows)
    wanted = world.expected(world.orthogonal(states, rows.direction), gates, rows.keys, rows.values)
    world.same(twice[0].all, wanted, 2e-5)


@pytest.mark.property(number=8)
def test_the_rows_of_a_concept_are_solved_together_in_training(world):
    directions = torch.from_numpy(world.rows("cat", "dog").direction)
    edit = world.edit(direction=directions)
    found = edit(world.prompt.hidden, directions).encodings[0].detach().numpy()
    world.same([found], [world.orthogonal(world.prompt.hidden[0], directions)], 2e-5)


@pytest.mark.property(number=9)
def test_under_the_global_lock_keys_are_the_superclass_prompts_and_values_do_not_notice(world):
    rows, states = world.rows("cat"), world.prompt.hidden[0].numpy()
    superclass = world.encode("dog").hidden
    found = world.drawn(conditioned(states, rows, "global", superclass[0].numpy()))
    local = world.drawn(conditioned(states, rows))
    assert all(map(np.array_equal, found.keys, world.observe(superclass).keys))
    assert all(map(np.array_equal, found.values, local.values))
    moved = replace(rows, keys=-rows.keys, values=-rows.values)
    other = world.drawn(conditioned(states + 1, moved, "global", superclass[0].numpy()))
    assert all(map(np.array_equal, other.keys, found.keys))
    assert not any(map(np.array_equal, other.values, found.values))


@pytest.mark.property(number=10)
def test_a_row_of_a_batch_is_the_same_row_run_alone(world):
    prompts = [world.encode(noun).hidden[0].numpy() for noun in ("cat", "dog", "car")]
    concepts = world.rows("cat"), world.rows("dog", "hat"), world.rows("car").none()
    states = [conditioned(one, rows) for one, rows in zip(prompts, concepts, strict=True)]
    together = world.drawn(*states)
    for at, state in enumerate(states):
        alone = world.drawn(state)
        world.same(
            [*together[at : at + 1].all, together[at : at + 1].output], [*alone.all, alone.output], 3e-6
        )


@pytest.mark.property(number=10)
def test_the_same_vector_has_the_same_key_and_value_at_every_position(world):
    states = np.random.default_rng(0).normal(size=(77, world.base.text_dim)).astype(np.float32)
    states[40] = states[3] = world.prompt.hidden[0, world.subject]
    edit = world.edit()
    for seen in (
        world.drawn(conditioned(states, world.rows("cat")))[0],
        world.trained(edit, states),
    ):
        world.same([one[40] for one in seen.all], [one[3] for one in seen.all], 1e-6)


@pytest.mark.property(number=11)
@pytest.mark.parametrize("dtype, bound", [(torch.float16, 5e-5), (torch.bfloat16, 5e-4)])
@pytest.mark.parametrize("width", [768, 1024, 2048])
def test_half_precision_inputs_move_the_similarity_by_their_rounding_alone(width, dtype, bound):
    """Data of unit scale, C = 1; the gate is read back through its logit at a temperature that keeps it open."""
    generator = torch.Generator().manual_seed(width)
    hidden, direction = (torch.randn(count, width, generator=generator) for count in (77, 1))
    nothing = torch.zeros(1, 1)
    edit = RankOneEdit(
        embeddings=[nothing], target_keys=nothing, target_values=nothing, direction=direction,
        inverse_moment=torch.eye(width), bias=0.5, temperature=1.0,
    ).eval()  # fmt: skip
    with torch.autocast("cpu", torch.bfloat16):
        made = edit(hidden[None].to(dtype), direction)
    assert made.gate.dtype == made.encodings.dtype == torch.float32
    exact = hidden.double() @ direction.double().T / direction.double().square().sum()
    moved = (torch.logit(made.gate.double()[0]) + 0.5 - exact).abs().max()
    assert 0 < float(moved) <= bound


@pytest.mark.property(number=11)
def test_gate_and_projection_do_not_notice_autocast(world):
    edit = world.edit()
    plain = edit(world.prompt.hidden, edit.direction)
    with torch.autocast("cpu", torch.bfloat16):
        cast = edit(world.prompt.hidden, edit.direction)
    assert torch.equal(cast.gate, plain.gate)
    assert torch.equal(cast.encodings, plain.encodings)


@pytest.mark.property(number=14)
@pytest.mark.parametrize("storage, tolerance", [("float32", 0.0), ("float16", 5e-3)])
def test_a_saved_concept_gives_the_keys_and_values_it_gave(world, training, tmp_path, storage, tolerance):
    concept = training.concept
    concept.save(tmp_path / "cat.safetensors", storage)
    states = world.prompt.hidden[0].numpy()
    before, after = (
        world.drawn(conditioned(states, world.rows_of(one)))
        for one in (concept, Concept.load(tmp_path / "cat.safetensors"))
    )
    world.same(after.all, before.all, tolerance)
    assert np.array_equal(before.output, after.output) == (storage == "float32")


@pytest.mark.property(number=15)
def test_the_concepts_share_of_keys_and_values_falls_with_the_bias(world, training):
    ids = concept_prompt(world.base, "a good photo of a {} on grass", 1)
    tables = [torch.from_numpy(table.copy()) for table in training.concept.embeddings]
    with torch.no_grad():
        states = world.base.encode(as_tensors([ids], torch.device("cpu")), tables).hidden[0].numpy()
    without, *seen = (
        world.drawn(conditioned(states, world.rows_of(training.concept, bias)))
        for bias in (math.inf, *np.linspace(0.4, 1.1, 8))
    )
    shares = [
        [
            np.linalg.norm(one - other, axis=-1).mean()
            for one, other in zip(each.all, without.all, strict=True)
        ]
        for each in seen
    ]
    assert (np.diff(shares, axis=0) < 0).all()
