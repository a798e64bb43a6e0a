"""The second moment of the text encodings."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfusion.base.base_model import BaseModel, encode
from perfusion.errors import TrainingError
from perfusion.files import cache_folder
from perfusion.training.captions import generate_captions
from perfusion.training.covariance import (
    cache_key,
    cached_second_moment,
    inverse,
    load_captions,
    real_tokens,
    saying,
    second_moment,
)

CAPTIONS = [
    f"a photo of a {noun} {place}" for noun in ("cat", "dog", "red car") for place in ("on grass", "at night")
]


def test_is_symmetric_positive_and_independent_of_order(tiny_base: BaseModel) -> None:
    forward, backward = (second_moment(tiny_base, captions) for captions in (CAPTIONS, CAPTIONS[::-1]))
    torch.testing.assert_close(forward, forward.T, rtol=0, atol=0)
    assert float(torch.linalg.eigvalsh(forward).min()) > -1e-9
    torch.testing.assert_close(forward, backward, rtol=1e-10, atol=1e-10)


def test_is_independent_of_the_batch_size(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = second_moment(tiny_base, CAPTIONS)
    monkeypatch.setattr("perfusion.training.covariance.BATCH", 1)
    # float32 encodings of a row differ in the last bit with the batch; the accumulation adds nothing to that
    torch.testing.assert_close(second_moment(tiny_base, CAPTIONS), whole, rtol=1e-5, atol=1e-6)


def test_tokenizer_that_names_no_length_is_padded_to_the_models(tiny_base: BaseModel) -> None:
    tokenizer = copy.deepcopy(tiny_base.tokenizer)
    tokenizer.model_max_length = 10**30
    nameless = replace(tiny_base, tokenizers=(tokenizer,))
    assert torch.equal(second_moment(nameless, CAPTIONS), second_moment(tiny_base, CAPTIONS))


@pytest.mark.property(number=12)
def test_mean_of_the_quadratic_form_over_the_same_tokens_is_the_dimension(
    tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ eᵀ C⁻¹ e = N trace(C⁻¹ C). One batch, so that both sides see the same bits of every encoding: the condition
    of C would show any other."""
    captions = load_captions(tiny_base, None)
    monkeypatch.setattr("perfusion.training.covariance.BATCH", len(captions))
    moment = second_moment(tiny_base, captions)
    tokenizer = tiny_base.tokenizer
    ids = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        tokens = encode(tiny_base.text_encoder, ids).double()[real_tokens(ids, tokenizer.eos_token_id)]
    inverted = inverse(moment)
    form = torch.einsum("td,de,te->t", tokens, inverted, tokens).mean()
    assert float(form) == pytest.approx(float(torch.trace(moment @ inverted)), rel=1e-6)
    assert float(form) == pytest.approx(tiny_base.text_dim, rel=0.1), (
        "the ridge may take a few percent, no more"
    )


def test_counts_everything_up_to_the_first_end_token() -> None:
    ids = torch.tensor([[8, 3, 9, 9, 9], [8, 3, 4, 5, 9]])
    assert real_tokens(ids, 9).tolist() == [[True, True, True, False, False], [True] * 5]


def test_padding_counts_only_when_asked(tiny_base: BaseModel) -> None:
    without, with_padding = (second_moment(tiny_base, CAPTIONS, count_padding=flag) for flag in (False, True))
    assert not torch.allclose(without, with_padding)


def test_cache_is_used_survives_damage_and_knows_its_captions(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    said: list[str] = []
    first = cached_second_moment(tiny_base, CAPTIONS, said.append)
    second = cached_second_moment(tiny_base, CAPTIONS, said.append)
    assert torch.equal(first, second)
    assert len(said) == 1, "the second call computed again"
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(cached_second_moment(tiny_base, CAPTIONS, said.append), first)
    cached_second_moment(tiny_base, [*CAPTIONS, "a bus"], said.append)
    assert len(list(tmp_path.iterdir())) == 2


def test_unwritable_cache_costs_only_time(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path / "file"))
    assert cached_second_moment(tiny_base, CAPTIONS).shape == (tiny_base.text_dim,) * 2


def test_user_without_a_home_has_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("PERFUSION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder().name == "perfusion-edge"


def test_inverse_refuses_a_matrix_that_is_not_positive() -> None:
    with pytest.raises(TrainingError, match="not positive"):
        inverse(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)))


def test_too_few_captions_are_refused(tiny_base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("a cat\n")
    with pytest.raises(TrainingError, match="1 captions, expected at least 100"):
        load_captions(tiny_base, tmp_path / "few.txt")
    with pytest.raises(TrainingError, match=r"no such file; --captions expects"):
        load_captions(tiny_base, tmp_path / "none.txt")


def test_captions_may_begin_with_a_byte_order_mark_as_windows_editors_write_it(
    tiny_base: BaseModel, tmp_path: Path
) -> None:
    captions = [f"a photo of cat {number}" for number in range(100)]
    (tmp_path / "captions.txt").write_text("\r\n".join(captions), encoding="utf-8-sig", newline="")
    assert load_captions(tiny_base, tmp_path / "captions.txt") == captions


def test_of_two_encoders_it_is_that_of_their_encodings_side_by_side(tiny_xl_base: BaseModel) -> None:
    """Token by token, without batches, sorting or cut padding."""
    total, count = torch.zeros(80, 80, dtype=torch.float64), 0
    for caption in CAPTIONS:
        ids = [tokenizer(caption, return_tensors="pt").input_ids for tokenizer in tiny_xl_base.tokenizers]
        with torch.no_grad():
            tokens = tiny_xl_base.encode(ids).hidden[0].double()
        total, count = total + tokens.T @ tokens, count + len(tokens)
    found = second_moment(tiny_xl_base, CAPTIONS)
    torch.testing.assert_close(found, total / count, rtol=1e-5, atol=1e-6)


def test_cutting_the_padding_of_wide_encoders_changes_nothing(
    tiny_xl_base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = second_moment(tiny_xl_base, CAPTIONS)
    padded = second_moment(tiny_xl_base, CAPTIONS, count_padding=True)
    monkeypatch.setattr("perfusion.training.covariance.TRIM_WIDTH", 0)
    lengths: list[int] = []
    hook = tiny_xl_base.text_encoder.encoder.layers[0].register_forward_pre_hook(
        lambda module, inputs: lengths.append(inputs[0].shape[1])
    )
    torch.testing.assert_close(second_moment(tiny_xl_base, CAPTIONS), whole, rtol=1e-5, atol=1e-6)
    assert max(lengths) < 20
    assert torch.equal(second_moment(tiny_xl_base, CAPTIONS, count_padding=True), padded), (
        "counted, so not cut"
    )
    hook.remove()


def test_another_encoder_never_gets_this_ones_moment(
    tiny_base: BaseModel, tiny_xl_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one that differs in a single weight of either encoder, or in what is counted."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    keys = {cache_key(tiny_base, CAPTIONS), cache_key(tiny_base, CAPTIONS, count_padding=True)}
    keys.add(cache_key(tiny_xl_base, CAPTIONS))
    for index in range(2):
        encoders = list(copy.deepcopy(tiny_xl_base.text_encoders))
        next(encoders[index].parameters()).data[:, 0] += 1
        changed = replace(tiny_xl_base, text_encoders=tuple(encoders))
        first, other = (cached_second_moment(base, CAPTIONS) for base in (tiny_xl_base, changed))
        assert not torch.equal(first, other)
    assert len(keys) == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_model_in_half_precision_gets_the_same_moment(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    moment = cached_second_moment(tiny_base, CAPTIONS)
    encoder = copy.deepcopy(tiny_base.text_encoder).to(dtype).float()
    rounded = replace(tiny_base, text_encoders=(encoder,))
    assert not torch.equal(second_moment(rounded, CAPTIONS), moment)  # it would not be the same to the bit
    assert torch.equal(cached_second_moment(rounded, CAPTIONS), moment)


def test_a_model_that_was_trained_on_gets_a_moment_of_its_own(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each weight moved by a hundredth of what is usual in its tensor, or all of one by a hundredth."""
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    cached_second_moment(tiny_base, CAPTIONS)
    for change in (
        lambda weight: weight + 0.01 * weight.std() * torch.randn_like(weight),
        lambda weight: 1.01 * weight,
    ):
        encoder = copy.deepcopy(tiny_base.text_encoder)
        weight = next(parameter for parameter in encoder.parameters() if parameter.numel() > 1000)
        weight.data = change(weight.data)
        changed = replace(tiny_base, text_encoders=(encoder,))
        assert torch.equal(cached_second_moment(changed, CAPTIONS), second_moment(changed, CAPTIONS))
    assert len(list(tmp_path.iterdir())) == 3


def test_counting_the_padding_is_kept_apart_in_the_cache(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    for counted in (False, True, False, True):
        found = cached_second_moment(tiny_base, CAPTIONS, count_padding=counted)
        assert torch.equal(found, second_moment(tiny_base, CAPTIONS, count_padding=counted))
    assert len(list(tmp_path.iterdir())) == 2


def test_two_that_compute_at_once_both_succeed_and_leave_one_whole_file(
    tiny_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERFUSION_CACHE", str(tmp_path))
    together = threading.Barrier(2, timeout=60)

    def slowly(*arguments: object, **options: object) -> torch.Tensor:
        moment = second_moment(*arguments, **options)
        together.wait()  # neither has written when both have computed
        return moment

    monkeypatch.setattr("perfusion.training.covariance.second_moment", slowly)
    found: list[torch.Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(cached_second_moment(tiny_base, CAPTIONS)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[0], found[1])
    monkeypatch.setattr("perfusion.training.covariance.second_moment", None)  # not to be called any more
    assert torch.equal(cached_second_moment(tiny_base, CAPTIONS), found[0])
    assert len(list(tmp_path.iterdir())) == 1


def test_our_own_captions_serve_a_model_that_brings_none(tiny_base: BaseModel, tmp_path: Path) -> None:
    assert load_captions(replace(tiny_base, source=tmp_path), None) == generate_captions()
    single_file = replace(tiny_base, folder=tmp_path / "model.safetensors", source=tiny_base.folder)
    assert load_captions(single_file, None) == load_captions(tiny_base, None)
    assert load_captions(tiny_base, None) == (tiny_base.folder / "captions.txt").read_text().splitlines()


def test_progress_is_told_after_every_batch(tiny_base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfusion.training.covariance.BATCH", 4)
    told: list[tuple[int, int]] = []
    second_moment(tiny_base, CAPTIONS, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_progress_is_said_now_and_then_and_not_of_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([0.0, 1.0, 16.0, 16.0, 17.0])
    monkeypatch.setattr("perfusion.training.covariance.time.monotonic", lambda: next(clock))
    progress = saying(said.append)
    for done in (1, 2, 3, 4):
        progress(done, 4)
    assert said == ["2 of 4 captions encoded, about 16 s left"]
