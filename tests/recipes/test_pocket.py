"""The embedded model's world and recipe, at sizes that take seconds."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from perfusion.pocket.vocabulary import NOUNS, words
from recipes.pocket.architecture import SCHEDULER, build_pipeline
from recipes.pocket.gauge import _renamed, wrong_noun_gap
from recipes.pocket.optim import Muon, orthogonalise, rate
from recipes.pocket.schedule import alphas, noised, velocity
from recipes.pocket.sprites import TRAINING_STYLES, Atlas, held_out_atlas, training_atlas
from recipes.pocket.subjects import compose, only
from recipes.pocket.tokenizer import build_tokenizer, learn_merges
from recipes.pocket.train_unet import Trainer, UnetConfig, train_unet
from recipes.pocket.train_vae import VaeConfig, draw_pictures, train_vae
from recipes.pocket.world import Item, Scene, Taste, World

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World(training_atlas(), size=32, backdrops=2)


def scene(*items: Item, place: str = "white") -> Scene:
    return Scene(caption="", place=place, backdrop=0, items=items)


def test_every_word_of_the_world_is_one_token_and_any_other_text_encodes() -> None:
    tokenizer = build_tokenizer(words())
    assert [word for word in words() if len(tokenizer.tokenize(word)) != 1] == []
    strange = "zebra ünïcode 猫 42!"
    ids = tokenizer(strange, add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == strange.replace(" ", "")


def test_tokenizer_is_the_same_in_every_process() -> None:
    """A model is worth nothing with another numbering of its words."""
    imports = "from perfusion.pocket import vocabulary as v; from recipes.pocket import tokenizer as t"
    code = f"{imports}; print(t.learn_merges(v.words()))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": str(seed)}, cwd=ROOT,
            capture_output=True, check=True, text=True,
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert printed == {repr(learn_merges(words())) + "\n"}


def test_atlas_has_every_noun_in_every_training_style_and_no_held_out_one() -> None:
    atlas = training_atlas()
    assert set(zip(atlas.nouns, atlas.styles, strict=True)) == {
        (n, s) for n in NOUNS for s in TRAINING_STYLES
    }
    assert not set(held_out_atlas().styles) & set(TRAINING_STYLES)
    assert atlas.pixels.shape[1:] == (128, 128, 4)
    assert (atlas.pixels[..., 3] > 128).mean((1, 2)).min() > 0.1, "a tile is nearly empty"


def test_atlas_survives_being_saved(tmp_path: Path) -> None:
    atlas = only(training_atlas(), "cat", "noto")
    atlas.save(tmp_path / "atlas.webp")
    from recipes.pocket.sprites import load_atlas

    again = load_atlas(tmp_path / "atlas.webp")
    assert (again.nouns, again.styles) == (("cat",), ("noto",))
    seen = atlas.pixels[..., 3:] > 0
    assert np.array_equal(np.where(seen, again.pixels, 0), np.where(seen, atlas.pixels, 0))


def test_captions_name_what_is_drawn_and_the_same_seed_draws_the_same(world: World) -> None:
    taste = Taste(pairs=0.3, counts=0.2)
    scenes = [world.sample(random.Random(seed), taste) for seed in range(60)]
    for drawn in scenes:
        assert all(noun in drawn.caption for noun in drawn.nouns)
    assert scenes == [world.sample(random.Random(seed), taste) for seed in range(60)]
    assert {len(drawn.items) for drawn in scenes} == {1, 2, 3}


def test_mask_is_the_objects_alpha_where_it_was_put() -> None:
    """A full square of half the picture's side, its base at three quarters: rows 8 to 24 of 32."""
    square = Atlas(pixels=np.full((1, 128, 128, 4), 255, np.uint8), nouns=("cat",), styles=("noto",))
    world = World(square, size=32, backdrops=1)
    _, mask = world.render([scene(Item(sprite=0, x=0.5, base=0.75, size=0.5))])
    expected = torch.zeros(32, 32)
    expected[8:24, 8:24] = 1
    assert float((mask[0, 0] - expected).abs().mean()) < 0.02


def test_tint_moves_the_object_to_its_colour_and_leaves_the_background(world: World) -> None:
    colours = list(SCENES_OF_TINTS)
    item = Item(sprite=world.by_noun["car"][0], x=0.5, base=0.9, size=0.8)
    for name in colours:
        index = list(colours_of_world()).index(name)
        torch.manual_seed(0)
        pictures, masks = world.render([scene(replace(item, tint=index))])
        mean = (pictures * masks).sum((2, 3))[0] / masks.sum()
        assert int(mean.argmax()) == SCENES_OF_TINTS[name]


SCENES_OF_TINTS = {"red": 0, "green": 1, "blue": 2}


def colours_of_world() -> dict[str, tuple[float, float, float]]:
    from perfusion.pocket.vocabulary import COLOURS

    return COLOURS


def test_subjects_come_with_masks_of_their_objects() -> None:
    pictures, masks = compose("bus", "emojione", count=3)
    assert [picture.size for picture in pictures] == [(128, 128)] * 3
    for mask in masks:
        share = float((np.asarray(mask) > 127).mean())
        assert 0.1 < share < 0.8


def test_schedule_is_diffusers_own() -> None:
    known = {key: value for key, value in SCHEDULER.items() if key.startswith(("beta", "num"))}
    scheduler = DDPMScheduler(**known)
    latents, noise, steps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    alpha = alphas(torch.device("cpu"))[steps]
    torch.testing.assert_close(noised(latents, noise, alpha), scheduler.add_noise(latents, noise, steps))
    torch.testing.assert_close(velocity(latents, noise, alpha), scheduler.get_velocity(latents, noise, steps))


@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_orthogonalised_updates_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(
        orthogonalise(torch.randn(shape, generator=torch.Generator().manual_seed(0)), steps=6)
    )
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


def test_muon_descends() -> None:
    torch.manual_seed(0)
    weight, target = torch.nn.Parameter(torch.zeros(8, 12)), torch.randn(8, 12)
    optimiser = Muon([weight], lr=0.1)
    for _ in range(60):
        optimiser.zero_grad()
        (weight - target).square().sum().backward()
        optimiser.step()
    assert float((weight.detach() - target).square().mean()) < 0.2 * float(target.square().mean())


def test_learning_rate_warms_up_stays_and_falls() -> None:
    curve = [rate(step, 1000) for step in range(1000)]
    assert curve[0] < 0.05
    assert curve[60:600] == [1.0] * 540
    assert curve[600:] == sorted(curve[600:], reverse=True)
    assert curve[-1] < 0.05


def trainer(steps: int = 6) -> Trainer:
    config = UnetConfig(steps=steps, batch=4, pool=16, fresh=4, first=8, save_every=10_000)
    return Trainer(build_pipeline("tiny"), World(training_atlas(), size=32, backdrops=1), config)


def test_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """The learning rate, the pool, the averages and every generator continue where they stood."""
    whole = trainer()
    for _ in range(6):
        whole.advance()
    first = trainer()
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "state.safetensors")
    second = trainer()
    torch.manual_seed(99)  # whatever happened in between
    assert train_unet(second, tmp_path / "state.safetensors", minutes=5)
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(value, second.unet.state_dict()[name]), name
    for name, value in whole.averages["text"].state.items():
        assert torch.equal(value, second.averages["text"].state[name]), name


def test_another_autoencoder_means_another_pool_of_scenes(tmp_path: Path) -> None:
    """Encoded scenes of one autoencoder are noise to a UNet that sees those of another."""
    first = trainer()
    first.advance()
    first.save(tmp_path / "checkpoint")
    pipeline = build_pipeline("tiny")
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(0.1)
    changed, same = Trainer(pipeline, first.world, first.config), trainer()
    for one, kept in ((changed, 0), (same, first.pool.count)):
        one.restore(tmp_path / "checkpoint")
        assert (one.step, one.pool.count) == (1, kept)


def test_autoencoder_learns_in_a_few_steps(tmp_path: Path, world: World) -> None:
    vae = build_pipeline("tiny").vae
    pictures = world.render([world.sample(random.Random(3)) for _ in range(8)])[0] * 2 - 1
    with torch.no_grad():
        before = float((vae(pictures).sample - pictures).square().mean())
    assert train_vae(vae, world, VaeConfig(steps=25, crop=32), tmp_path / "vae.safetensors", minutes=5)
    with torch.no_grad():
        after = float((vae(pictures).sample - pictures).square().mean())
    assert after < 0.7 * before


def test_autoencoder_sees_crops_first_and_whole_pictures_in_the_end(world: World) -> None:
    config = VaeConfig(steps=100, batch=8, crop=16, whole_from=0.9)
    rng = random.Random(0)
    assert draw_pictures(world, rng, config, 89).shape == (8, 3, 16, 16)
    assert draw_pictures(world, rng, config, 90).shape == (2, 3, world.size, world.size)


def test_only_the_noun_is_renamed_for_the_gauge() -> None:
    assert _renamed("a tree on a street", "tree", "cat") == "a cat on a street"
    assert _renamed("my teddy bear at night", "teddy bear", "bus") == "my bus at night"


def test_wrong_noun_gap_is_zero_for_a_model_that_does_not_read(world: World) -> None:
    pipeline = build_pipeline("tiny")
    gap = {}
    for silent in (True, False):
        if silent:
            for name, parameter in pipeline.unet.named_parameters():
                if "attn2.to_out.0" in name:
                    torch.nn.init.zeros_(parameter)
        else:
            pipeline = build_pipeline("tiny")
        parts = (pipeline.vae, pipeline.text_encoder, pipeline.unet, pipeline.tokenizer)
        gap[silent] = wrong_noun_gap(world, *parts, count=8)
    assert gap[True] == 0
    assert gap[False] != 0
