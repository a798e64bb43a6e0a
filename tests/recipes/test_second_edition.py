"""The second edition's recipe at sizes that take seconds: words and their things, exact resume."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perfusion.base.base_model import load_base
from perfusion.errors import ModelError
from recipes.pocket import recipe
from recipes.pocket.architecture import build_pipeline
from recipes.pocket.attention import (
    FAIR_SHARE,
    WideBatch,
    area_under_curve,
    areas_between,
    attention_loss,
    encode_things,
    noun_shares,
    recorded_attention,
    without_padding,
)
from recipes.pocket.editions import EDITIONS, Edition, old_and_new_drawings
from recipes.pocket.optim import rate
from recipes.pocket.slices import on_cores, slices
from recipes.pocket.train_unet import train_unet
from recipes.pocket.train_vae import VaeConfig, edge_weights, train_vae
from recipes.pocket.train_wide import WideTrainer, attention_gauge, wide_taste_at
from recipes.pocket.weights import averaged, read_packed, steps_done
from recipes.pocket.wide_world import THINGS, WideTaste, WideWorld
from tests.recipes.small import CONFIG, small_trainer, small_world


@pytest.fixture(scope="module")
def world() -> WideWorld:
    return small_world()


@pytest.fixture(scope="module")
def batch(world: WideWorld) -> WideBatch:
    pipeline, rng = build_pipeline("tiny2"), random.Random(2)
    scenes = [world.sample(rng, WideTaste(pairs=1.0)) for _ in range(6)]
    return encode_things(world, pipeline.vae, pipeline.tokenizer, scenes)


# --- words and their things


def test_owners_mark_the_words_of_each_thing(world: WideWorld) -> None:
    pipeline = build_pipeline("tiny2")
    scenes = [world.sample(random.Random(seed), WideTaste(pairs=0.5, counts=0.3)) for seed in range(40)]
    batch = encode_things(world, pipeline.vae, pipeline.tokenizer, scenes)
    for scene, ids, owners in zip(scenes, batch.input_ids, batch.owners, strict=True):
        for number, thing in enumerate(scene.things, 1):
            assert pipeline.tokenizer.decode(ids[owners == number]).strip() == thing.name
            assert (
                pipeline.tokenizer.decode(ids[owners.abs() == number]).replace(" - ", "-").strip()
                == thing.phrase
            )


@torch.no_grad()
def test_masking_the_padding_equals_leaving_it_out() -> None:
    pipeline = build_pipeline("tiny2")
    ids = pipeline.tokenizer(["a cat on a beach"], padding="max_length", return_tensors="pt").input_ids
    mask = without_padding(ids, pipeline.tokenizer.eos_token_id)
    count = int(mask.sum())
    assert ids[0, count - 1] == pipeline.tokenizer.eos_token_id
    latents, steps = torch.randn(1, 12, 8, 8), torch.tensor([500])
    hidden = pipeline.text_encoder(ids).last_hidden_state
    short = pipeline.text_encoder(ids[:, :count]).last_hidden_state
    masked = pipeline.unet(latents, steps, hidden, encoder_attention_mask=mask).sample
    torch.testing.assert_close(masked, pipeline.unet(latents, steps, short).sample, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(masked, pipeline.unet(latents, steps, hidden).sample, atol=1e-4)


@torch.no_grad()
def test_recording_attention_changes_no_output_and_notes_probabilities() -> None:
    pipeline = build_pipeline("pocket2")
    latents, steps, hidden = torch.randn(2, 12, 16, 16), torch.tensor([5, 900]), torch.randn(2, 11, 128)
    plain = pipeline.unet(latents, steps, hidden).sample
    with recorded_attention(pipeline.unet) as recording:
        recorded = pipeline.unet(latents, steps, hidden).sample
    maps = recording.take()
    torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-4)
    assert {tuple(probabilities.shape) for probabilities in maps} == {(2, 64, 11), (2, 256, 11)}
    for probabilities in maps:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:2]))
    pipeline.unet(latents, steps, hidden)
    assert len(maps) == 5
    assert recording.take() == [], "recording has ended"


def attention_of(batch: WideBatch, swapped: bool) -> torch.Tensor:
    """Maps that put each noun on its own thing or on the other one, and the rest on the first token."""
    maps = torch.zeros(len(batch.latents), batch.things.shape[-1] ** 2, batch.owners.shape[1])
    for row, (owners, masks) in enumerate(zip(batch.owners, batch.things.flatten(2), strict=True)):
        for number in range(THINGS):
            tokens = (owners == number + 1).nonzero()[:, 0]
            where = masks[1 - number if swapped and number < 2 else number] > 0.5
            for token in tokens:
                maps[row, where, token] = 1 / len(tokens)
    maps[..., 0] = 1 - maps.sum(-1)
    return maps


def test_attention_loss_is_low_for_words_on_their_things_and_high_for_swapped_ones(batch: WideBatch) -> None:
    counted = torch.ones(len(batch.latents), dtype=torch.bool)
    right, wrong = (float(attention_loss([attention_of(batch, s)], batch, counted)) for s in (False, True))
    assert right < 0.6
    assert wrong > right + 0.5
    assert float(attention_loss([attention_of(batch, True)], batch, ~counted)) == 0


def test_gauge_of_attention_tells_right_from_swapped(batch: WideBatch) -> None:
    right, wrong = attention_of(batch, False), attention_of(batch, True)
    assert areas_between([right], batch) == 1
    assert areas_between([wrong], batch) == 0
    assert areas_between([torch.full_like(right, 1 / 77)], batch) == 0.5
    assert noun_shares([right], batch) > FAIR_SHARE > noun_shares([wrong], batch)


def test_area_under_the_curve_counts_pairs() -> None:
    assert area_under_curve(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == 2.5 / 4


def test_attention_gauge_is_reproducible_and_leaves_the_generator_alone(world: WideWorld) -> None:
    pipeline = build_pipeline("tiny2")
    parts = (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.tokenizer)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = attention_gauge(world, *parts, count=4, timesteps=(500,))
    assert torch.equal(torch.rand(1), expected)
    assert attention_gauge(world, *parts, count=4, timesteps=(500,)) == first


# --- trainings


def test_curriculum_has_pairs_from_the_first_third_on() -> None:
    assert wide_taste_at(0.34).pairs >= 0.3
    assert wide_taste_at(0.34).triples > 0
    assert wide_taste_at(0.2).pairs > 0
    last = wide_taste_at(1.0)
    assert last.pairs >= 0.3
    assert last.sides == 0.5
    assert last.pairs + last.triples + last.counts == pytest.approx(0.5)


def test_resumed_second_edition_equals_an_uninterrupted_one(world: WideWorld, tmp_path: Path) -> None:
    whole = small_trainer(world)
    for _ in range(6):
        whole.advance()
    first = small_trainer(world)
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "state.safetensors")
    second = small_trainer(world)
    torch.manual_seed(99)
    assert train_unet(second, tmp_path / "state.safetensors", minutes=5)
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(value, second.unet.state_dict()[name]), name


def test_resumed_autoencoder_equals_an_uninterrupted_one(world: WideWorld, tmp_path: Path) -> None:
    """Whole pictures, the quality read on the way and a stop between two saves change nothing."""
    config = VaeConfig(
        steps=6, crop=16, whole_every=2, edges=2.0, save_every=10_000, taste=WideTaste(pairs=0.5)
    )
    weights = []
    for stops in ((6,), (3, 6)):
        checkpoint = tmp_path / f"{len(stops)}.safetensors"
        for stop in stops:
            vae = build_pipeline("tiny2").vae
            assert train_vae(vae, world, config, checkpoint, minutes=5, stop=stop) == (stop == 6)
        weights.append(vae.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_batch_in_slices_learns_what_the_whole_batch_does_and_repeats_exactly(world: WideWorld) -> None:
    """Each slice is learned in a thread of its own, which must not see the others' attention."""
    threads, gradients = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2):
            trainer = small_trainer(world)
            batch = trainer.fresh(4, 0.5)
            same = batch.input_ids.new_zeros(4, dtype=torch.long)
            torch.set_num_threads(count)
            torch.manual_seed(3)
            alike = WideBatch(**{name: part[same] for name, part in vars(batch).items()})
            trainer.learn(alike, 0.5)
            learned = [param.grad.flatten() for param in trainer.parameters() if param.grad is not None]
            gradients.append(torch.cat(learned))
    finally:
        torch.set_num_threads(threads)
    whole, sliced, again = gradients
    assert torch.equal(sliced, again)
    assert float((whole - sliced).norm()) < 0.1 * float(whole.norm())


def test_tasks_have_one_core_each_and_leave_the_others_theirs() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert on_cores([torch.get_num_threads] * 2) == [1, 1]
        assert on_cores([torch.get_num_threads]) == [3]
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


def test_slices_cover_a_batch_once() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert slices(8, torch.device("cpu")) == [slice(0, 2), slice(2, 5), slice(5, 8)]
        assert slices(2, torch.device("cpu")) == [slice(0, 1), slice(1, 2)]
        assert slices(8, torch.device("cuda")) == [slice(0, 8)]
    finally:
        torch.set_num_threads(threads)


def test_stopped_training_has_saved_its_last_step(world: WideWorld, tmp_path: Path) -> None:
    trainer = small_trainer(world)
    trainer.advance()
    assert not train_unet(trainer, tmp_path / "state.safetensors", minutes=0)
    again = small_trainer(world)
    again.restore(tmp_path / "state.safetensors")
    assert again.step == 1


def test_errors_weigh_more_on_edges() -> None:
    picture = torch.zeros(1, 3, 8, 8)
    picture[..., 4:] = 1
    weights = edge_weights(picture, extra=2.0)
    assert float(weights.mean()) == pytest.approx(1)
    assert float(weights[..., 3:5].min()) > 1.5 * float(weights[..., :3].max())
    assert torch.equal(edge_weights(picture, extra=0.0), torch.ones(1, 1, 8, 8))


def test_gauge_of_the_autoencoder_tells_old_drawings_from_new_and_never_changes(world: WideWorld) -> None:
    pictures, again = old_and_new_drawings(world, count=3), old_and_new_drawings(world, count=3)
    assert set(pictures) == {"old drawings", "new drawings"}
    assert all(torch.equal(pictures[name], again[name]) for name in pictures)
    assert not torch.equal(pictures["old drawings"], pictures["new drawings"])


# --- weights to begin with


def trained_work(
    folder: Path, world: WideWorld, monkeypatch: pytest.MonkeyPatch
) -> tuple[Edition, WideTrainer]:
    """A work folder whose autoencoder is done and whose UNet has made three steps of six."""
    vae = VaeConfig(steps=2, crop=16, save_every=10_000, taste=WideTaste())
    edition = replace(
        EDITIONS[2], family="tiny2", world=lambda **_: world, vae=vae, unet=CONFIG,
        gauge=lambda world: old_and_new_drawings(world, count=1),
    )  # fmt: skip
    monkeypatch.setattr(recipe, "save_sheet", lambda *_: None)
    assert recipe.run_vae(folder, edition, vae, 5, "cpu")
    pipeline = build_pipeline("tiny2")
    recipe.load_vae(pipeline, world, folder / "vae.safetensors")
    trainer = WideTrainer(pipeline, world, CONFIG)
    for _ in range(3):
        trainer.advance()
    trainer.save(folder / "unet.safetensors")
    return edition, trainer


def test_a_packed_model_begins_another_training_at_its_step(
    world: WideWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, other = tmp_path / "work", tmp_path / "other"
    work.mkdir()
    other.mkdir()
    edition, trainer = trained_work(work, world, monkeypatch)
    edition = replace(edition, guidance_scale=4.5, steps=7, lr_values=0.004, values="encoding")
    recipe.pack(work, edition, tmp_path / "model")
    base = load_base(tmp_path / "model")
    assert (base.guidance_scale, base.num_inference_steps, base.lr_values, base.values) == (
        4.5, 7, 0.004, "encoding",
    )  # fmt: skip
    packed = read_packed(tmp_path / "model", "tiny2")
    assert packed.steps == {"vae": 2, "unet": 3}
    state = trainer.averages["unet"].state["conv_in.weight"]
    assert torch.equal(packed.weights["unet"]["conv_in.weight"], state.half().float())
    assert recipe.run_vae(other, edition, edition.vae, 0, "cpu", packed), "the autoencoder was done"
    assert not recipe.run_unet(other, edition, edition.unet, 0, "cpu", packed)
    assert steps_done(other / "unet.safetensors") == 3
    for part, file, group in (
        ("vae", "vae", "average"), ("unet", "unet", "average.unet"), ("text", "unet", "average.text")
    ):  # fmt: skip
        again = averaged(other / f"{file}.safetensors", group)
        for name, value in packed.weights[part].items():
            assert torch.equal(again[name], value), f"{part} {name}"
    assert recipe.run_unet(other, edition, edition.unet, 5, "cpu", packed)
    assert steps_done(other / "unet.safetensors") == 6


def test_a_training_begun_from_its_last_step_leaves_a_checkpoint_to_be_packed(
    world: WideWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, trainer = trained_work(tmp_path, world, monkeypatch)
    trainer.begin(6)
    (tmp_path / "unet.safetensors").unlink()
    assert train_unet(trainer, tmp_path / "unet.safetensors", minutes=5)
    assert steps_done(tmp_path / "unet.safetensors") == 6


def test_learning_warms_up_again_where_a_training_begins() -> None:
    assert rate(600, 1000, begun=600) == pytest.approx(rate(0, 1000))
    assert rate(700, 1000, begun=600) == rate(700, 1000)


def test_what_is_no_packed_model_or_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="holds something else, expected a model of pocket2 that `pack` wrote"
    ):
        read_packed(tmp_path, "pocket2")
    (tmp_path / "perfusion.json").write_text('{"family": "pocket"}')
    with pytest.raises(ModelError, match="holds pocket, expected a model of pocket2"):
        read_packed(tmp_path, "pocket2")
    with pytest.raises(ModelError, match=r"absent\.safetensors: no such checkpoint; train this part first"):
        averaged(tmp_path / "absent.safetensors", "average")
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match=r"plain\.safetensors is not the checkpoint of a training"):
        steps_done(tmp_path / "plain.safetensors")
    with pytest.raises(ModelError, match="holds no average: it is not the checkpoint of this part"):
        averaged(tmp_path / "plain.safetensors", "average")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ModelError, match=r"broken\.safetensors cannot be read"):
        steps_done(tmp_path / "broken.safetensors")
