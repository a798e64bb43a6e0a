"""Embeddings as words: diffusers' `load_textual_inversion` draws the same pictures."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save, save_file

from perfusion.commands.generate import main
from perfusion.concept.embedding_file import Embedding
from perfusion.errors import ConceptError, RequestError
from perfusion.runtime import Runtime
from perfusion.runtime.picture_settings import parameters_text, read_settings, settings_of

CALL = {"width": 32, "height": 32, "num_inference_steps": 3, "guidance_scale": 4.0}


def vectors(rows, width, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def decibels(picture, other):
    error = np.mean((np.asarray(picture, np.float64) - np.asarray(other, np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(float(error), 1e-12)))


def theirs(pipeline, **call):
    """diffusers' picture as latents."""
    pipeline.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(3)]
    return np.asarray(pipeline(generator=generator, output_type="latent", **call, **CALL).images[0])


def ours(runtime, prompt, **call):
    *_, last = runtime.denoise(prompt, seed=3, **call, **CALL)
    return last.latents[0]


def distance(latents, expected):
    return np.linalg.norm(latents - expected) / np.linalg.norm(expected)


@pytest.fixture
def bad(runtime):
    """Three vectors under the word "Bad-Hands"."""
    width = runtime.bundle.text_encoder.hidden_size
    return runtime.load_embedding(save({"emb_params": vectors(3, width)}), word="Bad-Hands")


def encoding(runtime, prompt, **options):
    """What the UNet reads of a prompt, (tokens, text_dim)."""
    from perfusion.runtime.request import make_request

    ((row,),) = runtime._prompts.rows(make_request(runtime.bundle, prompt, 0, guidance_scale=1, **options))
    return row.state.conditioning.value_states


@pytest.mark.parametrize("rows", [1, 4])
def test_prompt_and_negative_prompt_draw_diffusers_picture(runtime, toy_pipeline, tmp_path, rows):
    width = runtime.bundle.text_encoder.hidden_size
    for name, seed in (("good", 1), ("bad", 2)):
        save_file({"emb_params": vectors(rows, width, seed)}, tmp_path / f"{name}.safetensors")
    pipeline = copy.deepcopy(toy_pipeline)
    words = {"prompt": "a good cat", "negative_prompt": "bad, dark"}
    plain = theirs(pipeline, **words)
    for name in ("good", "bad"):
        pipeline.load_textual_inversion(tmp_path / f"{name}.safetensors", token=f"<{name}>")
        runtime.load_embedding(tmp_path / f"{name}.safetensors")
    expected = theirs(pipeline, prompt="a <good> cat", negative_prompt="<bad>, dark")
    assert distance(ours(runtime, **words), expected) < 1e-5
    assert distance(plain, expected) > 1e-3, "words that hardly show would prove nothing"


def test_xls_two_tables_draw_diffusers_picture(tiny_xl, by_torch, tmp_path):
    pipeline = copy.deepcopy(tiny_xl)
    with by_torch(tiny_xl, tmp_path) as runtime:
        first, second = (encoder.hidden_size for encoder in runtime.bundle.text_encoders)
        tables = {"clip_l": vectors(2, first), "clip_g": vectors(2, second)}
        runtime.load_embedding(save(tables), word="bad")
        for half, number in (("clip_l", ""), ("clip_g", "_2")):
            pipeline.load_textual_inversion(
                {"<bad>": tables[half]}, token="<bad>", text_encoder=getattr(pipeline, f"text_encoder{number}"),
                tokenizer=getattr(pipeline, f"tokenizer{number}"),
            )  # fmt: skip
        # transformers pools at the highest id where the settings name another end token, as the published ones do,
        # and says itself that this cannot work with new tokens
        for part in pipeline.text_encoder_2.modules():
            if hasattr(part, "eos_token_id"):
                part.eos_token_id = pipeline.tokenizer_2.eos_token_id
        expected = theirs(pipeline, prompt="a <bad> cat", negative_prompt="a <bad> dog")
        assert distance(ours(runtime, "a bad cat", negative_prompt="a bad dog"), expected) < 1e-5
        assert distance(ours(runtime, "a cat", negative_prompt="a dog"), expected) > 1e-3


def test_a_word_is_found_whole_in_any_case_and_as_comfyui_writes_it(runtime, bad):
    expected = encoding(runtime, "a Bad-Hands cat")
    for prompt in ("a bad-hands cat", "a BAD-HANDS cat", "a embedding:bad-hands cat"):
        np.testing.assert_array_equal(encoding(runtime, prompt), expected)
    for prompt in ("a bad-handsome cat", "abad-hands"):
        assert not runtime.embeddings.named(prompt)
    assert runtime.embeddings.named("cat,bad-hands.") == (bad,)


def test_the_longest_of_several_words_is_read(runtime, bad):
    longer = runtime.load_embedding(bad, word="bad-hands-5")
    assert runtime.embeddings.named("bad-hands-5, bad-hands") == (longer, bad)


def test_weights_weigh_its_tokens_as_any_others(runtime, bad):
    plain, heavy = encoding(runtime, "a cat bad-hands"), encoding(runtime, "a cat (bad-hands:1.5)")
    ratio = np.median(heavy / plain, axis=1)
    np.testing.assert_allclose(ratio / ratio[0], [1, 1, 1, 1.5, 1.5, 1.5, *[1] * 71], rtol=1e-4)


def test_it_stands_beside_concepts_under_both_locks(runtime, bad, make_concept):
    """The superclass's prompt of the global lock has it too; a concept's word is cut out first."""
    runtime.load_concept(make_concept(base_fingerprint=runtime.bundle.base_fingerprint))
    for lock in ("local", "global"):
        drawing = runtime.generate("a <cat> bad-hands", seed=3, lock=lock, **CALL)
        without = runtime.generate("a <cat>", seed=3, lock=lock, **CALL)
        assert decibels(drawing, without) < 40
    rows = runtime.explain("a <cat> bad-hands").tokens
    assert rows[1:6] == ("a", "<cat>", "Bad-Hands[0]", "Bad-Hands[1]", "Bad-Hands[2]")
    one = runtime.generate("a <cat> bad-hands and a {dog} bad-hands", seed=3, **CALL)
    other = runtime.generate("a <cat> and a {dog}", seed=3, **CALL)
    assert decibels(one, other) < 40  # its regions read it as well


def test_long_prompts_are_cut_beside_it_and_never_within(runtime, bad):
    words = encoding(runtime, "cat " * 74 + "bad-hands")
    assert len(words) == 2 * 77
    np.testing.assert_array_equal(words[77:], encoding(runtime, "bad-hands"))


def test_unloaded_it_is_plain_text_and_another_one_is_not_mixed_up_with_it(runtime, bad):
    plain_first = encoding(runtime, "a cat")
    first = encoding(runtime, "a bad-hands cat")
    runtime.unload_embedding("BAD-hands")
    assert not runtime.embeddings
    assert not np.array_equal(encoding(runtime, "a bad-hands cat"), first)
    width = runtime.bundle.text_encoder.hidden_size
    runtime.load_embedding(save({"emb_params": vectors(3, width, 9)}), word="bad-hands")
    other = encoding(runtime, "a bad-hands cat")
    assert not np.array_equal(other, first)
    np.testing.assert_array_equal(encoding(runtime, "a cat"), plain_first)
    with pytest.raises(RequestError, match="No embedding 'ugly' is loaded"):
        runtime.unload_embedding("ugly")


def test_a_job_that_waits_keeps_the_embedding_it_was_ordered_with(runtime, bad):
    expected = runtime.generate("a bad-hands cat", seed=3, **CALL)
    with runtime._parts.turn:
        job = runtime.submit("a bad-hands cat", seed=3, exact=True, **CALL)
        runtime.unload_embedding("bad-hands")
    np.testing.assert_array_equal(np.asarray(job.result()), np.asarray(expected))


def test_what_does_not_fit_the_model_is_told(runtime, bad, make_concept):
    width = runtime.bundle.text_encoder.hidden_size
    for tables, sentence in (
        ({"emb_params": vectors(1, 768)}, "made for Stable Diffusion 1 .* pocket bundle read"),
        ({"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)}, "made for Stable Diffusion XL"),
        ({"emb_params": vectors(76, width)}, "has 76 vectors, and a text encoder reads 75"),
    ):
        with pytest.raises(ConceptError, match=sentence):
            runtime.load_embedding(save(tables), word="ugly")
    with pytest.raises(ConceptError, match="The word BAD-HANDS is taken"):
        runtime.load_embedding(bad, word="BAD-HANDS")
    with pytest.raises(ConceptError, match="have no name"):
        runtime.load_embedding(save({"emb_params": vectors(1, width)}))
    runtime.load_embedding(bad, word="<cat>")
    with pytest.raises(ConceptError, match="<cat> is the word of an embedding"):
        runtime.load_concept(make_concept())


def test_no_warning_tells_of_its_word(bad, runtime, tmp_path, caplog):
    runtime.load_embedding(bad, word="<toy>")
    runtime.generate("a <toy> embedding:bad-hands cat", num_inference_steps=1)
    with Runtime(threads=1) as embedded:  # which knows few words
        width = embedded.bundle.text_encoder.hidden_size
        embedded.load_embedding(save({"emb_params": vectors(1, width)}), word="glorp")
        embedded.generate("a glorp cake", num_inference_steps=1)
    assert not caplog.messages


def test_a_picture_tells_its_embeddings_and_like_finds_them(toy_bundle, runtime, tmp_path):
    width = runtime.bundle.text_encoder.hidden_size
    (tmp_path / "library").mkdir()
    file = tmp_path / "library" / "some name.safetensors"
    save_file({"emb_params": vectors(2, width)}, file)
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    common = ["--quiet", "--bundle", str(toy_bundle)]
    drawing = ["--prompt", "a cat", "--negative-prompt", "(bad:1.2)", "--steps", "2", "--output", str(first)]
    assert main([*common, *drawing, "--embedding", f"{file}=bad"]) == 0
    settings = read_settings(first)
    assert settings is not None
    assert settings["embeddings"] == {"bad": Embedding.load(file).sha256}
    assert f'TI hashes: "bad: {settings["embeddings"]["bad"][:12]}"' in parameters_text(settings)
    assert main([*common, "--like", str(first), "--output", str(again)]) == 1  # it is not at hand
    assert main([*common, "--like", str(first), "--library", str(file.parent), "--output", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()
    again.unlink()
    assert main([*common, "--like", str(first), "--embedding", str(file), "--output", str(again)]) == 0
    assert first.read_bytes() == again.read_bytes()


def test_an_embedding_that_no_prompt_names_is_not_in_the_settings(runtime, bad):
    assert settings_of(runtime, "a cat")["embeddings"] == {}


def test_the_command_says_which_embeddings_were_used(toy_bundle, runtime, tmp_path, capsys):
    width = runtime.bundle.text_encoder.hidden_size
    for name in ("bad", "ugly"):
        save_file({"emb_params": vectors(1, width)}, tmp_path / f"{name}.safetensors")
    files = [f"--embedding={tmp_path / name}.safetensors" for name in ("bad", "ugly")]
    output = tmp_path / "x.png"
    command = ["--bundle", str(toy_bundle), "--prompt", "a bad cat", "--steps", "1", "--json", *files]
    assert main([*command, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert list(json.loads(out)["embeddings"]) == ["bad"]
    assert "names ugly, so nothing comes of it" in err
    expected = runtime.generate("a cat", num_inference_steps=1)
    assert not np.array_equal(np.asarray(Image.open(output)), np.asarray(expected))
