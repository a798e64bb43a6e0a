"""Portraits: what says a look in the values of a noun, and only there."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recipes.pocket.architecture import build_pipeline
from recipes.pocket.attention import WideBatch, encode_things, recorded_attention
from recipes.pocket.looks import Coat
from recipes.pocket.portraits import (
    COMPONENTS,
    SIDE,
    PortraitEncoder,
    joined_encodings,
    known_portraits,
    portraits_of,
    split_encodings,
)
from recipes.pocket.train_wide import portrait_gap
from recipes.pocket.wide_world import WideItem, WideTaste, WideWorld
from recipes.pocket.world import Item
from tests.recipes.small import small_trainer, small_world


@pytest.fixture(scope="module")
def world() -> WideWorld:
    return small_world()


def test_a_portrait_is_the_first_things_drawing_whole_wherever_it_stands(world: WideWorld) -> None:
    scenes = (world.sample(random.Random(seed), WideTaste(pairs=1.0)) for seed in range(40))
    scene = next(scene for scene in scenes if wide(scene.items[0]).thing != 0)
    moved = replace(
        scene, items=tuple(replace(item, x=0.1, size=0.2, angle=30.0, flip=True) for item in scene.items)
    )
    first = next(item for item in map(wide, scene.items) if item.thing == 0)
    painted = replace(scene, items=(replace(first, coats=(Coat(colour=(1.0, 0.0, 0.0)),)),))
    portraits = []
    for one in (scene, moved, painted):
        with world.seeded(1):
            portraits.append(portraits_of(world, [one]))
    portrait, again, red = portraits
    assert portrait.shape == (1, 4, SIDE, SIDE)
    assert torch.equal(portrait, again)
    opaque = world.sprites[first.sprite, 3].float() / 255
    assert float(portrait[0, 3].mean()) == pytest.approx(float(opaque.mean()), abs=1e-5)
    assert torch.equal(red[:, 3], portrait[:, 3])
    assert float(red[0, 0].sum()) > 2 * float(red[0, 2].sum()), "in its coat"


def wide(item: Item) -> WideItem:
    assert isinstance(item, WideItem)
    return item


def test_an_encoder_says_the_main_differences_between_drawings(world: WideWorld) -> None:
    known = known_portraits(world, 128)
    assert torch.equal(known, known_portraits(world, 128))
    encoder = PortraitEncoder(32, known)
    said = (known.flatten(1) - encoder.mean) @ encoder.components.T
    torch.testing.assert_close(said.T @ said / len(said), torch.eye(COMPONENTS), atol=1e-3, rtol=0)
    back = said @ torch.linalg.pinv(encoder.components.T) + encoder.mean
    lost = (back - known.flatten(1)).square().sum() / (known.flatten(1) - encoder.mean).square().sum()
    assert float(lost) < 0.2
    looks = encoder(known)
    assert looks.shape == (128, 32)
    assert 0.2 < float(looks.detach().std()) < 0.4, (
        "heard beside a token's own numbers, of a deviation of about 1"
    )


def test_a_look_is_said_in_the_values_of_the_first_things_noun_alone() -> None:
    hidden, owners = torch.randn(1, 5, 8), torch.tensor([[0, -1, 1, 2, -2]])
    look = torch.randn(1, 8)
    keys, values = split_encodings(joined_encodings(hidden, owners, look), 8)
    assert torch.equal(keys, hidden)
    assert torch.equal(values[0, 2], hidden[0, 2] + look[0])
    others = [0, 1, 3, 4]
    assert torch.equal(values[0, others], hidden[0, others])
    plain = split_encodings(hidden, 8)
    assert plain[0] is plain[1] is hidden


@torch.no_grad()
def test_the_unet_takes_keys_and_values_from_their_halves() -> None:
    pipeline = build_pipeline("tiny2")
    latents, steps, hidden = torch.randn(2, 12, 8, 8), torch.tensor([5, 900]), torch.randn(2, 6, 32)
    plain = pipeline.unet(latents, steps, hidden).sample
    owners = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    with recorded_attention(pipeline.unet):
        silent = pipeline.unet(latents, steps, joined_encodings(hidden, owners, torch.zeros(2, 32))).sample
        said = pipeline.unet(latents, steps, joined_encodings(hidden, owners, torch.randn(2, 32))).sample
    torch.testing.assert_close(silent, plain, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(said[0], plain[0], atol=1e-4), "its noun says a look"
    torch.testing.assert_close(said[1], plain[1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_look_moves_no_attention() -> None:
    layer = (unet := build_pipeline("tiny2").unet).down_blocks[1].attentions[0].transformer_blocks[0].attn2
    states, hidden, owners = torch.randn(1, 16, 32), torch.randn(1, 3, 32), torch.tensor([[0, 1, 0]])
    outputs = []
    with recorded_attention(unet) as recording:
        for looks in (torch.zeros(1, 32), torch.randn(1, 32)):
            outputs.append(layer(states, encoder_hidden_states=joined_encodings(hidden, owners, looks)))
        plain, said = recording.take()
    assert torch.equal(plain, said)
    assert not torch.allclose(*outputs)


def test_training_shows_a_share_of_the_portraits_and_teaches_their_encoder(world: WideWorld) -> None:
    trainer = small_trainer(world)
    batch = trainer.fresh(4, 0.9)
    many = WideBatch(**{name: part.repeat(100, *[1] * (part.ndim - 1)) for name, part in vars(batch).items()})
    assert 0.4 < float(trainer.chance(many).portrayed.float().mean()) < 0.6
    before = {name: value.clone() for name, value in trainer.portrait_encoder.state_dict().items()}
    for _ in range(3):
        trainer.advance()
    after = trainer.portrait_encoder.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"projection.weight", "projection.bias"}


def test_only_who_is_portrayed_teaches_the_encoder(world: WideWorld) -> None:
    trainer = small_trainer(world)
    batch = trainer.fresh(4, 0.0)
    for portrayed in (False, True):
        chance = replace(trainer.chance(batch), portrayed=torch.full((4, 1), portrayed))
        with recorded_attention(trainer.unet) as trainer.recording:
            loss, _ = trainer.loss(batch, chance, 0.5)
        (gradient,) = torch.autograd.grad(loss, [trainer.portrait_encoder.projection.bias])
        assert bool(gradient.any()) == portrayed


def test_too_few_drawings_have_no_differences(world: WideWorld) -> None:
    assert len(known_portraits(world, 70)) == 70
    with pytest.raises(ValueError, match="64 drawings, expected more than 64"):
        PortraitEncoder(32, known_portraits(world, 64))


def test_resuming_brings_the_portraits_encoder_back(world: WideWorld, tmp_path: Path) -> None:
    trainer = small_trainer(world)
    gap = portrait_gap(trainer, count=4)
    assert gap != 0
    assert portrait_gap(trainer, count=4) == gap, "the same scenes and noise"
    for _ in range(2):
        trainer.advance()
    trainer.save(tmp_path / "state.safetensors")
    again = small_trainer(world)
    again.restore(tmp_path / "state.safetensors")
    for name, value in trainer.portrait_encoder.state_dict().items():
        assert torch.equal(value, again.portrait_encoder.state_dict()[name]), name


def test_a_batch_carries_the_portraits_of_its_scenes(world: WideWorld) -> None:
    pipeline = build_pipeline("tiny2")
    scenes = [world.sample(random.Random(seed), WideTaste(counts=0.5)) for seed in range(4)]
    batch = encode_things(world, pipeline.vae, pipeline.tokenizer, scenes)
    assert torch.equal(batch.portraits[:, 3], portraits_of(world, scenes)[:, 3])
