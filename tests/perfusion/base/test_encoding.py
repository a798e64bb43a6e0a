"""What the UNet reads of a prompt, against what diffusers' own pipelines compute for it."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from perfusion.base.base_model import BaseModel, guidance_embedding, token_embedding
from perfusion.base.encoding import encode_prompts
from perfusion.errors import ModelError

PROMPTS = ["a photo of a cat", "a red teddy bear on a table!", ""]


def ids_of(base: BaseModel, *prompts: str) -> list[torch.Tensor]:
    tokenizers: tuple[Any, ...] = base.tokenizers
    return [
        torch.tensor(tokenizer(list(prompts), padding="max_length", max_length=77).input_ids)
        for tokenizer in tokenizers
    ]


def test_encodings_are_those_of_diffusers_stable_diffusion_pipeline(tiny_base, tiny_model):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, local_files_only=True, safety_checker=None)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    found = tiny_base.encode(ids_of(tiny_base, *PROMPTS))
    torch.testing.assert_close(found.hidden, expected, rtol=1e-5, atol=1e-6)
    assert found.pooled is None


def test_encodings_and_pooled_are_those_of_diffusers_xl_pipeline(tiny_xl_base, tiny_xl_model):
    # opened anew: only then does its second tokenizer know "!" as a token of its own, also inside a prompt
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_xl_model, local_files_only=True)
    hidden, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    found = tiny_xl_base.encode(ids_of(tiny_xl_base, *PROMPTS))
    torch.testing.assert_close(found.hidden, hidden, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-6)
    assert found.hidden.shape == (3, 77, 32 + 48)
    assert found.pooled.shape == (3, 40)


def test_the_second_tokenizer_pads_with_its_own_token(tiny_xl_base):
    first, second = ids_of(tiny_xl_base, "a cat")
    end = tiny_xl_base.tokenizers[1].eos_token_id
    assert first[0, 4:].unique().tolist() == [end]
    assert second[0, 4:].unique().tolist() == [0], 'the id of "!"'
    assert torch.equal(first[0, :4], second[0, :4])


def test_a_concept_with_the_embeddings_of_a_word_is_that_word_for_both_encoders(tiny_xl_base):
    ids = ids_of(tiny_xl_base, "a photo of a cat")
    tables, renamed = [], []
    for encoder, row, size in zip(tiny_xl_base.text_encoders, ids, tiny_xl_base.vocab_sizes, strict=True):
        tables.append(token_embedding(encoder).weight[row[0, 5]][None])
        renamed.append(torch.where(torch.arange(77) == 5, size, row))
    expected, found = tiny_xl_base.encode(ids), tiny_xl_base.encode(renamed, tables)
    assert torch.equal(found.hidden, expected.hidden)
    assert torch.equal(found.pooled, expected.pooled), "pooled at the end token, whatever the highest id is"


def test_each_embedding_reaches_its_own_part_of_the_encodings_and_gets_a_gradient(tiny_xl_base):
    ids = ids_of(tiny_xl_base, "a photo of a cat")
    for row, size in zip(ids, tiny_xl_base.vocab_sizes, strict=True):
        row[0, 5] = size
    tables = [torch.randn(1, size, requires_grad=True) for size in tiny_xl_base.hidden_sizes]
    encoded = tiny_xl_base.encode(ids, tables)
    first, second = torch.autograd.grad(
        encoded.hidden[..., :32].sum(), tables, retain_graph=True, allow_unused=True
    )
    assert first.any()
    assert not second.any()
    first, second = torch.autograd.grad(encoded.pooled.sum(), tables, allow_unused=True)
    assert first is None or not first.any(), "the pooled output is the second encoder's"
    assert second.any()


def test_the_pooled_output_may_be_left_out(tiny_xl_base):
    ids = ids_of(tiny_xl_base, "a cat")
    short, full = (tiny_xl_base.encode(ids, pooled=pooled) for pooled in (False, True))
    assert short.pooled is None
    assert torch.equal(short.hidden, full.hidden)


def test_as_many_id_tables_as_encoders_are_needed(tiny_xl_base):
    with pytest.raises(ValueError, match=r"shorter|longer"):
        encode_prompts(tiny_xl_base.text_encoders, ids_of(tiny_xl_base, "a cat")[:1], eos_token_id=1)


def test_conditions_beside_the_prompt_are_those_of_diffusers_xl_pipeline(tiny_xl_base, tiny_xl_pipeline):
    pooled = torch.randn(2, 40)
    conditions = tiny_xl_base.unet_conditions(pooled, 2, size=(48, 64))["added_cond_kwargs"]
    expected = tiny_xl_pipeline._get_add_time_ids((48, 64), (0, 0), (48, 64), torch.float32, 40)
    assert torch.equal(conditions["time_ids"], expected.expand(2, -1))
    assert conditions["text_embeds"] is pooled
    own = tiny_xl_base.unet_conditions(pooled, 2)["added_cond_kwargs"]["time_ids"]
    assert own[0].tolist() == [32, 32, 0, 0, 32, 32], "8 latents of 4 pixels"
    with pytest.raises(ModelError, match="needs the pooled output"):
        tiny_xl_base.unet_conditions(None, 2)


def test_a_model_with_one_encoder_and_no_guidance_needs_no_conditions(tiny_base):
    assert tiny_base.unet_conditions(None, 3) == {}


@pytest.mark.parametrize("dim", [256, 7])
def test_the_guidance_embedding_is_that_of_diffusers_lcm_pipeline(dim):
    from diffusers import LatentConsistencyModelPipeline

    own = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = own(None, torch.tensor([7.5]), embedding_dim=dim)
    torch.testing.assert_close(guidance_embedding(8.5, dim), expected, rtol=1e-4, atol=1e-4)
