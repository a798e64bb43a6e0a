"""The variants and baselines: each is what it says it is, against a second way to compute it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.evaluation import prior, tuning
from benchmarks.evaluation.ablations import EDITS, SimilarityGate, TrainedKeys, edited
from benchmarks.evaluation.artists import PipelineArtist, artist_for
from benchmarks.evaluation.baselines import CROSS, LEARNERS
from benchmarks.evaluation.drawing import FIRST_SEEDS
from benchmarks.evaluation.leakage import outside_share
from benchmarks.evaluation.measuring import render_pair
from benchmarks.evaluation.merging import merged
from benchmarks.evaluation.methods import FOR_PAIRS, METHODS, Setting, chosen_methods, method_named, trainings
from benchmarks.evaluation.plan import FULL, SMALL, TUNING_SUBJECTS
from benchmarks.evaluation.prompts import PAIRS, PROMPTS, TUNING_PROMPTS, plain_text
from perfusion.base.attention import layer_table
from perfusion.concept.edit import edited_projection
from perfusion.errors import RequestError
from perfusion.pocket.vocabulary import COLOURS, NOUNS, PLACES
from perfusion.training.snapshot_choice import SEEDS
from perfusion.training.templates import TEMPLATES, as_tensors, input_ids, word_ids
from recipes.pocket.subjects import SUBJECTS

DIM, OUT, TOKENS = 6, 5, 7


@pytest.fixture
def space():
    random = np.random.default_rng(3)
    samples = random.normal(size=(50, DIM)) + 1
    moment = samples.T @ samples / 50
    direction = random.normal(size=(1, DIM))
    raised = np.linalg.solve(moment, direction.T).T
    energy = float((raised * direction).sum())
    encodings = random.normal(size=(2, TOKENS, DIM))
    return {
        "moment": moment, "direction": direction, "dual": raised / energy, "energy": energy, "encodings": encodings,
        "weight": random.normal(size=(OUT, DIM)), "target": random.normal(size=(1, OUT)),
    }  # fmt: skip


def tensors(space, *names):
    return [torch.from_numpy(space[name]) for name in names]


def test_the_similarity_as_gate_is_the_closed_form_of_rome(space):
    encodings, dual, direction, weight, target = tensors(
        space, "encodings", "dual", "direction", "weight", "target"
    )
    states, gate = edited("similarity", encodings, dual, direction, torch.tensor([2, 3]))
    closed = weight + (target - direction @ weight.T).T @ dual  # W + (o* − W i*) w*ᵀ
    torch.testing.assert_close(states @ weight.T + gate @ target, encodings @ closed.T)


def test_without_a_gate_only_the_concepts_own_token_is_edited_and_it_takes_the_whole_target(space):
    encodings, dual, direction, weight, target = tensors(
        space, "encodings", "dual", "direction", "weight", "target"
    )
    places = torch.tensor([2, 5])
    states, gate = edited("own-position", encodings, dual, direction, places)
    plain = encodings @ weight.T
    found = states @ weight.T + gate @ target
    for row, place in enumerate(places.tolist()):
        wide_open = edited_projection(  # the product's algebra with a gate that is open for every similarity
            encodings[row].numpy(), weight.numpy(), target.numpy(), direction.numpy(), dual.numpy(),
            np.array([space["energy"]]), -1e9, 1.0, None,
        )  # fmt: skip
        np.testing.assert_allclose(found[row, place].numpy(), wide_open[place], rtol=1e-9)
        others = [at for at in range(TOKENS) if at != place]
        assert torch.equal(found[row, others], plain[row, others])


def an_edit(kind, **parts):
    random = torch.Generator().manual_seed(0)
    return kind(
        embeddings=[torch.randn(1, DIM, generator=random)], direction=torch.randn(1, DIM, generator=random),
        target_keys=torch.randn(1, OUT, generator=random), target_values=torch.randn(1, OUT, generator=random),
        inverse_moment=torch.eye(DIM, dtype=torch.float64), bias=0.75, temperature=0.1, **parts,
    )  # fmt: skip


def test_trained_keys_are_learned_and_locked_ones_are_not():
    assert an_edit(TrainedKeys).target_keys.requires_grad
    for kind in set(EDITS.values()) - {TrainedKeys}:
        assert "target_keys" not in dict(an_edit(kind).named_parameters())


def test_trained_keys_are_tied_where_the_values_are():
    """Else the ablation would differ from the product in more than what it names."""
    projections = torch.randn(OUT, DIM, generator=torch.Generator().manual_seed(1))
    edit, free = an_edit(TrainedKeys, key_projections=projections), an_edit(TrainedKeys)
    torch.testing.assert_close(edit.target_keys, free.target_keys)
    assert edit.learned_keys.shape == (1, DIM) and free.learned_keys.shape == (1, OUT)
    edit.target_keys[0, 0].backward()
    torch.testing.assert_close(edit.learned_keys.grad, projections[:1])
    edit.learned_keys.data[0, 2] = 3.0
    torch.testing.assert_close(edit.target_keys - free.target_keys, 3.0 * projections[None, :, 2])


def test_another_gate_still_lets_the_loss_reach_the_word():
    edit = an_edit(SimilarityGate).train()
    edit.places = torch.tensor([2])
    encodings = torch.randn(1, TOKENS, DIM, requires_grad=True)
    made = edit(encodings, encodings[:, 2])
    (made.gate.sum() + made.encodings.sum()).backward()
    assert encodings.grad is not None and bool(encodings.grad.abs().sum() > 0)


def test_a_merged_matrix_brings_every_word_to_its_target_and_moves_least_under_the_captions(space):
    moment, weight = space["moment"], torch.from_numpy(space["weight"]).float()
    words, targets = torch.randn(3, DIM), torch.randn(3, OUT)
    inverse = torch.from_numpy(np.linalg.inv(moment))
    found = merged(weight, words, targets, inverse)
    torch.testing.assert_close(words @ found.T, targets, rtol=1e-4, atol=1e-4)
    # at the least cost no change that the words do not see can help: the gradient along each of them is 0
    unseen = np.linalg.svd(words.numpy())[2][3:]
    gradient = (found - weight).numpy() @ moment @ unseen.T
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_a_merge_that_asks_for_nothing_changes_nothing(space):
    weight, words = torch.from_numpy(space["weight"]).float(), torch.randn(2, DIM)
    inverse = torch.from_numpy(np.linalg.inv(space["moment"]))
    torch.testing.assert_close(merged(weight, words, words @ weight.T, inverse), weight)


def test_attention_of_one_token_outside_a_mask_is_counted_by_hand():
    attention = torch.zeros(1, 1, 4, 3)  # 2 × 2 positions
    attention[0, 0, :, 1] = torch.tensor([0.6, 0.2, 0.1, 0.1])
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1  # the first position
    assert outside_share(attention, mask, torch.tensor([1])).item() == pytest.approx(0.4)
    assert outside_share(attention, torch.ones_like(mask), torch.tensor([1])).item() == 0


def test_every_baseline_trains_what_its_paper_trains():
    pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    from benchmarks.evaluation.models import base_model

    base, subject = base_model(), SUBJECTS[0]
    sizes = {
        name: sum(part.numel() for part in learner(base, subject).parameters)
        for name, learner in LEARNERS.items()
    }
    layers = layer_table(base.unet)
    assert sizes["textual-inversion"] == base.hidden_sizes[0]
    assert sizes["lora-values-1"] == sum(layer.value_dim + base.text_dim for layer in layers)
    matrices = sum((layer.key_dim + layer.value_dim) * base.text_dim for layer in layers)
    assert sizes["custom-diffusion"] == matrices + base.hidden_sizes[0]
    whole = sum(part.numel() for part in base.unet.parameters())
    assert sizes["dreambooth"] == sizes["dreambooth-prior"] == whole
    assert {name for name in base.unet.state_dict() if name.endswith(CROSS)}
    assert not any(part.requires_grad for part in base.unet.parameters())  # they trained copies


@pytest.mark.parametrize("name", sorted(LEARNERS))
@torch.no_grad()
def test_what_a_baseline_has_learned_is_what_is_drawn_with(name, tmp_path):
    """Weights moved at random go through the method's file into diffusers' pipeline, which then predicts what the
    trained UNet does of the training's own prompt."""
    if name.startswith("lora"):
        pytest.importorskip("peft", reason="the LoRA baselines are peft's")
    from benchmarks.evaluation.models import base_model

    base, subject = base_model(), SUBJECTS[6]
    learner, random, at = LEARNERS[name](base, subject), torch.Generator().manual_seed(0), 1
    shape = (1, base.unet.config.in_channels, base.unet.config.sample_size, base.unet.config.sample_size)
    noisy, timestep = torch.randn(shape, generator=random), torch.tensor([300])
    before = learner.unet(noisy, timestep, learner.encode([at])).sample
    for part in learner.parameters:
        part.add_(0.3 * (part.std() + 0.05) * torch.randn(part.shape, generator=random))
    learned = learner.unet(noisy, timestep, learner.encode([at])).sample
    learner.saving()(tmp_path)
    (method,) = chosen_methods([name])
    artist = artist_for(method, {subject: tmp_path}, (Setting(),), FULL)
    assert isinstance(artist, PipelineArtist)
    prompt = TEMPLATES[at].format(method.word(subject, Setting()))
    states = artist.pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    drawn = artist.pipeline.unet(noisy, timestep, states).sample
    moved = (learned - before).abs().max()
    assert moved > 0.003
    assert (drawn - learned).abs().max() < 0.01 * moved  # float16's rounding


@pytest.mark.parametrize("name, words", [("textual-inversion", "{}"), ("custom-diffusion", "{rare} {}")])
def test_a_word_before_its_first_step_is_read_as_the_word_it_began_as(name, words):
    from benchmarks.evaluation.models import base_model

    base, subject = base_model(), SUBJECTS[0]
    learner = LEARNERS[name](base, subject)
    rare = word_ids(base.tokenizer, "sks")[:1]
    ids = [*(rare if "rare" in words else []), *word_ids(base.tokenizer, subject.noun)]
    prompt = input_ids(base, TEMPLATES[4], [ids])
    expected = base.encode(as_tensors([prompt], torch.device("cpu"))).hidden
    with torch.no_grad():
        found = learner.encode([4, 0, 4])
    torch.testing.assert_close(found[[0, 2]], expected.expand(2, -1, -1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[1], found[0], atol=1e-3)  # another template


def test_two_full_models_are_not_put_into_one_picture():
    trained = {subject: Path("nowhere") for subject in SUBJECTS[:2]}
    method = method_named("dreambooth")
    with pytest.raises(RequestError, match="cannot put two separately trained subjects"):
        artist_for(method, trained, (Setting(),), FULL)


def test_prompts_ask_for_what_the_scorer_can_answer():
    for prompt in (*PROMPTS, *TUNING_PROMPTS):
        assert prompt.text.count("{}") == 1
        assert prompt.place in PLACES or prompt.place in COLOURS
        assert not prompt.colour or f" {prompt.colour} " in prompt.text
        assert not prompt.other or (prompt.other in NOUNS and prompt.other in prompt.text)
    assert sum(prompt.keeps_look for prompt in PROMPTS) >= 12


def test_nothing_is_tuned_on_what_is_evaluated():
    assert not {subject.name for subject in TUNING_SUBJECTS} & {subject.name for subject in SUBJECTS}
    assert not {prompt.text for prompt in TUNING_PROMPTS} & {prompt.text for prompt in PROMPTS}
    looks = {(subject.noun, subject.style) for subject in SUBJECTS}
    assert not looks & {(subject.noun, subject.style) for subject in TUNING_SUBJECTS}


def test_no_picture_that_counts_has_the_noise_of_one_that_something_was_chosen_by():
    per_prompt = {kind: range(first, first + 100 * len(PROMPTS)) for kind, first in FIRST_SEEDS.items()}
    chosen_by = [*SEEDS, *(tuning.FIRST_SEED + n for n in range(100 * len(TUNING_PROMPTS)))]
    trained_on = [prior.FIRST_SEED + n for n in range(FULL.prior_pictures)]
    assert not any(seed in seeds for seeds in per_prompt.values() for seed in (*chosen_by, *trained_on))


def test_every_subject_is_in_two_pairs_beside_another_kind_of_thing():
    nouns = {subject.name: subject.noun for subject in SUBJECTS}
    assert all(nouns[first] != nouns[second] for first, second in PAIRS)
    assert [sum(name in pair for pair in PAIRS) for name in nouns] == [2] * len(nouns)


def test_a_plain_prompt_has_the_article_its_noun_wants():
    assert plain_text(PROMPTS[0], "owl") == "a photo of an owl on a beach"
    assert plain_text(PROMPTS[12], "owl") == "a photo of a red owl on a beach"


def test_the_words_of_a_method_are_those_it_was_trained_with():
    subject = SUBJECTS[0]
    assert method_named("lora-4").word(subject, Setting()) == "sks cat"
    assert method_named("custom-diffusion").word(subject, Setting()) == "<tuxedo-cat> cat"
    own = method_named("perfusion")
    words = {own.word(subject, setting) for setting in own.settings(FULL)}
    # one each, so that a batch may hold them all
    late, weaker = len(FULL.late) * len(FULL.starts), len(own.scales)
    assert len(words) == len(FULL.biases) + len(FULL.global_biases) + late + weaker + 1


def test_what_starts_late_is_drawn_at_once_too_and_what_is_weaker_at_full_strength():
    """A start or a strength is a slider that ends at the same lock and bias at once, in full."""
    settings = method_named("perfusion").settings(FULL)
    assert all(replace(setting, start=0.0) in settings for setting in settings if setting != FOR_PAIRS)
    assert all(replace(setting, scale=1.0) in settings for setting in settings if setting != FOR_PAIRS)
    assert FOR_PAIRS.label == "local 0.75, strength 0.8, start 0.15"
    assert Setting(lock="global", bias=0.5, start=0.3).label == "global 0.5, start 0.3"
    assert Setting(scale=1.25, start=0.3).label == "scale 1.25, start 0.3"
    assert Setting(start=0.3).label == "start 0.3"


def test_a_name_that_is_no_method_is_refused_with_those_that_are():
    with pytest.raises(RequestError, match=r"no method 'lora'; choose among .*lora-4"):
        chosen_methods(["lora"])
    assert [method.name for method in trainings(chosen_methods(["unselected"]))] == ["perfusion"]


def test_the_three_sets_of_files_have_names_that_tell_them_apart():
    from benchmarks.evaluation.drawing import drawing_units

    units = drawing_units(METHODS, FULL.subjects, FULL)
    assert len({unit.path for unit in units}) == len(units)
    assert all(len(Path(unit.path).name.split(".")) == 3 for unit in units)


def test_a_true_picture_of_a_pair_holds_both_subjects_and_no_other_look():
    bus, mushroom = (
        next(one for one in SUBJECTS if one.name == name) for name in ("school-bus", "pink-mushroom")
    )
    pictures, rows = render_pair([bus, mushroom], SMALL)
    assert pictures.shape == (SMALL.renders, 128, 128, 3)
    assert all("bus" in row["caption"] and "mushroom" in row["caption"] for row in rows)
    yellow = (pictures[..., 0] > 200) & (pictures[..., 1] > 140) & (pictures[..., 2] < 90)
    pink = (pictures[..., 0] > 200) & (pictures[..., 1] < 120) & (pictures[..., 2] > 100)
    assert (yellow.mean((1, 2)) > 0.01).all() and (pink.mean((1, 2)) > 0.01).all()
