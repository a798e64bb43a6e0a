"""Masks from the base model's attention: against maps computed another way, and against true masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from perfusion.errors import ModelError
from perfusion.training import masks as module
from perfusion.training.masks import attention_maps, soft_threshold, trusted
from recipes.pocket.architecture import SIZES, build_unet

ALPHAS = torch.linspace(0.999, 0.01, 100)
SUBJECT, WORDS = (3,), (1, 2, 3, 4)


@pytest.fixture(scope="module")
def unet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_unet(SIZES["tiny"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def maps_of(unet, latents: Tensor, **options) -> Tensor:
    settings = {"subject": SUBJECT, "words": WORDS, "alphas": ALPHAS} | options
    return attention_maps(unet, latents, random(1, 9, 32, seed=7), **settings)


class Recorder:
    """Attention as diffusers computes it where it gives out its map: the second implementation."""

    def __init__(self, maps: dict[str, Tensor], name: str) -> None:
        self.maps, self.name = maps, name

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        states = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(states), attn.to_v(states)
        probabilities = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
        self.maps[self.name] = probabilities.unflatten(0, (len(query), -1))
        attended = attn.batch_to_head_dim(torch.bmm(probabilities, attn.head_to_batch_dim(value)))
        return attn.to_out[1](attn.to_out[0](attended))


@torch.no_grad()
def expected_map(unet, latents: Tensor, spreads: int) -> Tensor:
    """The finest layers' share of the superclass among the words, carried by the mean self-attention of each head."""
    maps: dict[str, Tensor] = {}
    processors = unet.attn_processors
    generator = torch.Generator().manual_seed(0)
    steps = [round(level * len(ALPHAS)) for level in module.LEVELS]
    noises = [torch.randn(latents.shape, generator=generator) for _ in steps]
    shares: dict[str, Tensor] = {}
    unet.set_attn_processor({name: Recorder(maps, name) for name in processors})
    for step, noise in zip(steps, noises, strict=True):
        noisy = ALPHAS[step].sqrt() * latents + (1 - ALPHAS[step]).sqrt() * noise
        unet(noisy, step, random(1, 9, 32, seed=7).expand(len(latents), -1, -1))
        for name, found in maps.items():
            if "attn2" in name and found.shape[2] == 16:  # (batch, heads, 4 · 4, tokens)
                share = (found[..., 3] / found[..., 1:5].sum(-1)).mean(1)
                carry = maps[name.replace("attn2", "attn1")].mean(1)
                for _ in range(spreads):
                    share = (carry @ share[..., None])[..., 0]
                shares[name] = shares.get(name, 0) + share
    unet.set_attn_processor(processors)
    means = [share / share.mean(1, keepdim=True) for share in shares.values()]
    return torch.stack(means).mean(0).view(-1, 1, 4, 4)


@pytest.mark.parametrize("spreads", [0, 3])
def test_maps_equal_those_computed_from_diffusers_own_attention_scores(unet, monkeypatch, spreads) -> None:
    monkeypatch.setattr(module, "SPREADS", spreads)
    latents = random(3, 4, 4, 4)
    torch.testing.assert_close(
        maps_of(unet, latents), expected_map(unet, latents, spreads), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("fails", [False, True])
def test_unet_and_random_generator_are_afterwards_as_before(unet, fails) -> None:
    latents, processors, generator = random(2, 4, 4, 4), dict(unet.attn_processors), torch.get_rng_state()
    encoding = random(2, 9, 32)
    with torch.no_grad():
        before = unet(latents, 10, encoding).sample
        if fails:
            with pytest.raises(RuntimeError):
                attention_maps(unet, latents, random(1, 9, 31), subject=SUBJECT, words=WORDS, alphas=ALPHAS)
        else:
            maps_of(unet, latents)
        assert torch.equal(unet(latents, 10, encoding).sample, before)
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_maps_do_not_depend_on_how_many_pictures_go_at_once(unet, monkeypatch) -> None:
    latents = random(5, 4, 4, 4)
    whole = maps_of(unet, latents)
    monkeypatch.setattr(module, "PIECE", 2)
    torch.testing.assert_close(maps_of(unet, latents), whole, rtol=1e-5, atol=1e-5)
    assert whole.shape == (5, 1, 4, 4)


def test_latents_that_are_not_square_get_maps_of_their_shape(unet) -> None:
    assert maps_of(unet, random(1, 4, 6, 4)).shape == (1, 1, 6, 4)


def test_unet_with_added_conditions_gets_them_once_a_picture() -> None:
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=4, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            block_out_channels=(16,), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
            norm_num_groups=4, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=12 + 6 * 8,
        ).eval()  # fmt: skip
    added = {"text_embeds": random(1, 12), "time_ids": torch.ones(1, 6)}
    found = maps_of(unet, random(3, 4, 4, 4), conditions={"added_cond_kwargs": added})
    assert found.shape == (3, 1, 4, 4)
    assert added["text_embeds"].shape == (1, 12)


def test_unet_without_attention_to_a_prompt_is_refused() -> None:
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel(
        sample_size=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None,
        block_out_channels=(16,), layers_per_block=1, cross_attention_dim=32, norm_num_groups=4,
    )  # fmt: skip
    with pytest.raises(ModelError, match="use --masks none, alpha or a folder"):
        maps_of(plain, random(1, 4, 4, 4))


# --- from a map to a mask


def test_threshold_is_the_one_of_least_variance_inside_the_groups() -> None:
    """Every possible threshold tried by brute force."""
    values = random(1, 1, 5, 5).square()
    ordered = values.flatten().sort().values
    spread = [
        float(ordered[:cut].var(correction=0) * cut + ordered[cut:].var(correction=0) * (25 - cut))
        for cut in range(1, 25)
    ]
    cut = int(np.argmin(spread)) + 1
    mask = soft_threshold(values).flatten()
    assert torch.equal(mask > 0.5, values.flatten() >= ordered[cut])
    middle = (ordered[cut - 1] + ordered[cut]) / 2
    at = soft_threshold(values)[values == ordered[cut]]
    top = ordered[cut:].mean()
    torch.testing.assert_close(at, (0.5 + 0.5 * (ordered[cut] - middle) / (top - middle)).reshape(1))


def test_scale_of_a_map_does_not_matter_and_a_flat_one_is_ones() -> None:
    maps = random(2, 1, 6, 6).square()
    torch.testing.assert_close(soft_threshold(40 * maps), soft_threshold(maps), rtol=0, atol=1e-5)
    flat = 0.2 + 0.002 * random(1, 1, 3, 3)
    assert torch.equal(soft_threshold(flat), torch.ones(1, 1, 3, 3))


def test_two_values_become_zero_and_one() -> None:
    maps = torch.full((1, 1, 4, 4), 0.3)
    maps[..., 1:3, 1:3] = 0.4
    torch.testing.assert_close(soft_threshold(maps), (maps > 0.35).float(), rtol=0, atol=1e-6)


def test_masks_of_nearly_nothing_or_everything_are_replaced_and_named_once_a_picture() -> None:
    masks = torch.zeros(4, 1, 10, 10)
    masks[1, :, :5] = 1
    masks[3] = 1
    said: list[str] = []
    kept = trusted(masks, ["a.png", "b.png", "a.png", "c.png"], said.append)
    assert torch.equal(kept[[0, 2, 3]], torch.ones(3, 1, 10, 10))
    assert torch.equal(kept[1], masks[1])
    assert [line.split(":")[0] for line in said] == ["a.png", "c.png"]
    assert "covers 0% of the picture, expected 2% to 95%" in said[0]


# --- on a model that has learned


@pytest.mark.slow
def test_embedded_model_finds_the_objects_of_the_examples() -> None:
    """Intersection over union with the true masks; ones everywhere reach 0.37."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from perfusion.embedded import model_path

    folder = model_path()
    vae = AutoencoderKL.from_pretrained(folder / "vae").float()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").float()
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    alphas = DDPMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
    examples = Path(__file__).parents[3] / "examples" / "subjects"
    scores = []
    for subject, word in (("gold-hat", "hat"), ("pink-cake", "cake"), ("school-bus", "bus")):
        ids = tokenizer(
            f"a photo of a {word}", padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        for path in sorted((examples / subject).glob("*.png"))[:2]:
            picture = np.asarray(Image.open(path).convert("RGB"), np.float32).transpose(2, 0, 1) / 127.5 - 1
            true = (
                np.asarray(Image.open(path.parent / "masks" / path.name).convert("L").resize((16, 16))) > 127
            )
            with torch.no_grad():
                latents = vae.encode(torch.from_numpy(picture)[None]).latent_dist.mode()
                encoding = encoder(ids).last_hidden_state
            found = attention_maps(
                unet,
                latents * vae.config.scaling_factor,
                encoding,
                subject=[5],
                words=range(1, 7),
                alphas=alphas,
            )
            mask = soft_threshold(found)[0, 0].numpy() > 0.5
            scores.append((mask & true).sum() / (mask | true).sum())
    assert np.mean(scores) > 0.75
    assert min(scores) > 0.4
