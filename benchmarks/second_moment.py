"""python benchmarks/second_moment.py: how many captions does the second moment need?

The moment of a text encoder is estimated from captions, and its inverse decides how far a token opens a concept's gate.
Sizes are compared where they act: the gates of fresh prompts' tokens, for some superclasses, under the first captions
of a corpus and under as many other captions as the corpus has. Two whole corpora differ, too; a size changes nothing
measurable where its gates are no farther from the others' than theirs.

- The embedded model: its trained encoder and the captions of its world.
- An encoder of Stable Diffusion 1.5's width with two layers and random weights, our corpus of captions, and each of
  its words one token. What an estimate of a moment errs by depends on the width and the captions, little on the rest.
- Three subjects are trained on the embedded model with all and with a tenth of its captions, and measured as
  benchmarks/subjects.py does.

Concepts and their rows are kept in build/second_moment, so that an interrupted run goes on. About half an hour.
"""

import copy
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from anywhere

from benchmarks.models.scaled import scaled_sd15
from benchmarks.record import ROOT, write_record
from benchmarks.subjects import FOLDER, STEPS, score_subject
from perfusion import Concept
from perfusion.base.base_model import BaseModel, load_base
from perfusion.files import writing
from perfusion.judging.pocket_scorer import PocketScorer
from perfusion.runtime import Runtime
from perfusion.training import TrainingConfig, train_concept
from perfusion.training.captions import generate_captions
from perfusion.training.covariance import caption_ids, inverse, load_captions, real_tokens, second_moment
from recipes.pocket.editions import edition_of
from recipes.pocket.recipe import write_captions
from recipes.pocket.subjects import SUBJECTS, Subject
from recipes.pocket.tokenizer import build_tokenizer

BUILD = ROOT / "build" / "second_moment"
CORPUS = 20_000
SIZES = (100, 500, 1000, 2000, 5000, 10_000)
LAYERS = 2
FRESH = 1000
"""Prompts whose tokens' gates are compared."""
TRAINED = ("gold-hat", "school-bus", "pink-mushroom")
SHARES = (1, 10)
BIAS, TEMPERATURE = TrainingConfig.bias, TrainingConfig.temperature


def main() -> int:
    """Measure, print and record."""
    BUILD.mkdir(parents=True, exist_ok=True)
    base = load_base(None)
    rows = [*gate_rows("pocket", base, *pocket_captions(base), [subject.noun for subject in SUBJECTS])]
    rows += concept_rows(base)
    ours, others, fresh = generate_captions(CORPUS), generate_captions(CORPUS, 1), generate_captions(FRESH, 2)
    wide, nouns = wide_encoder([*ours, *others, *fresh]), ["cat", "dog", "teapot", "chair", "man", "car"]
    rows += gate_rows("768 wide, random weights", wide, ours, others, fresh, nouns)
    print(write_record("second_moment", rows))
    return 0


def pocket_captions(base: BaseModel) -> tuple[list[str], list[str], list[str]]:
    """The shipped captions, as many others, and fresh ones."""
    shipped = load_captions(base, None)
    others = BUILD / "captions.txt"
    write_captions(others, edition_of(base.family), len(shipped) + FRESH, seed=10)
    lines = others.read_text("utf-8").splitlines()
    return shipped, lines[FRESH:], lines[:FRESH]


def wide_encoder(captions: Sequence[str]) -> BaseModel:
    """A text encoder of Stable Diffusion 1.5's width with random weights, to which each word of captions is a token."""
    words = {word.strip(",.!?'\"") for caption in captions for word in caption.lower().split()}
    tokenizer = build_tokenizer(sorted(word for word in words if word.isascii() and word.isalpha()))
    base = scaled_sd15(1, 64)
    config = copy.deepcopy(base.text_encoder.config)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.num_hidden_layers = LAYERS
    torch.manual_seed(0)
    return replace(base, text_encoders=(CLIPTextModel(config).eval(),), tokenizers=(tokenizer,))


def gate_rows(
    encoder: str,
    base: BaseModel,
    captions: list[str],
    others: list[str],
    fresh: list[str],
    nouns: Sequence[str],
) -> list[dict[str, Any]]:
    """A row for each size: how far the gates are from those under as many other captions."""
    tokens, directions = encodings_of(base, fresh), last_encodings(base, nouns)
    target = gates(second_moment(base, others), tokens, directions)
    random.Random(0).shuffle(captions)
    rows, total, count, seconds, done = list[dict[str, Any]](), torch.zeros(()), 0, 0.0, 0
    for size in [size for size in SIZES if size < len(captions)] + [len(captions)]:
        began = time.perf_counter()
        more, done = captions[done:size], size
        moment = second_moment(base, more)
        seconds += time.perf_counter() - began
        read = tokens_of(base, more)
        total, count = total + moment * read, count + read
        change = (gates(total / count, tokens, directions) - target).abs()
        rows.append({
            "what": "gates", "encoder": encoder, "captions": size, "seconds": round(seconds, 1),
            "mean_change": float(f"{change.mean():.3g}"), "largest_change": float(f"{change.max():.3g}"),
            "changed_percent": round(100 * float((change > 0.01).double().mean()), 3),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def tokens_of(base: BaseModel, captions: Sequence[str]) -> int:
    """How many tokens a moment is the mean of."""
    return int(real_tokens(caption_ids(base, captions)[0], int(base.tokenizers[0].eos_token_id)).sum())


@torch.no_grad()
def encodings_of(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """The encodings of all tokens of some prompts, (tokens, text_dim) float64."""
    (ids,) = caption_ids(base, prompts)
    real = real_tokens(ids, int(base.tokenizers[0].eos_token_id))
    return torch.cat([
        base.encode([some], pooled=False).hidden[kept].double()
        for some, kept in zip(ids.split(100), real.split(100), strict=True)
    ])  # fmt: skip


def last_encodings(base: BaseModel, nouns: Sequence[str]) -> torch.Tensor:
    """The encoding of each noun's last token in a prompt, (nouns, text_dim) float64."""
    return torch.stack([encodings_of(base, [f"a photo of a {noun}"])[-2] for noun in nouns])


def gates(moment: torch.Tensor, tokens: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """How far each token opens the gate of each direction, (tokens, directions), with a training's own settings."""
    dual = directions @ inverse(moment)
    similarity = tokens @ (dual / (dual * directions).sum(1, keepdim=True)).T
    return torch.sigmoid((similarity - BIAS) / TEMPERATURE)


def concept_rows(base: BaseModel) -> list[dict[str, Any]]:
    """A row for each subject and size, trained and drawn now or by an earlier run."""
    captions, scorer, rows = load_captions(base, None), PocketScorer(), list[dict[str, Any]]()
    random.Random(0).shuffle(captions)
    with Runtime() as runtime:
        for share in SHARES:
            size = len(captions) // share
            for subject in (subject for subject in SUBJECTS if subject.name in TRAINED):
                path = BUILD / f"{subject.name}-{size}.json"
                if not path.is_file():
                    concept = concept_of(subject, captions[:size], base)
                    runtime.load_concept(concept)
                    measured, _ = score_subject(subject, runtime, scorer)
                    runtime.unload_concept(subject.token)
                    with writing(path, "w") as file:
                        json.dump({"what": "concept", "captions": size, **measured}, file)
                rows.append(json.loads(path.read_text("utf-8")))
                print(rows[-1], flush=True)
    return rows


def concept_of(subject: Subject, captions: Sequence[str], base: BaseModel) -> Concept:
    """Trained with the moment of these captions."""
    file = BUILD / f"captions-{len(captions)}.txt"
    file.write_text("\n".join(captions), "utf-8")
    pictures = FOLDER / subject.name
    config = TrainingConfig(
        superclass=subject.noun, token=subject.token, masks=pictures / "masks", steps=STEPS, select="last",
        captions=file,
    )  # fmt: skip
    return train_concept(pictures, config, model=base)


if __name__ == "__main__":
    raise SystemExit(main())
