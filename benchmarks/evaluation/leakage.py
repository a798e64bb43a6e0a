"""Attention leakage: what share of its attention a concept's word draws from outside the object.

The paper's argument for locked keys is that a trained key grabs attention all over the picture. Measures on pictures
whose object is known: true pictures of the subject that nothing was trained on, with their true masks, and what the
method itself drew, with the base model's masks. Each is noised to several levels, the UNet reads it under a prompt with
the concept, and the attention of all heads and layers to the concept's token is summed inside and outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.evaluation.cutting import encoded, object_masks
from benchmarks.evaluation.drawing import drawing_path, read_drawings
from benchmarks.evaluation.measuring import render_subject
from benchmarks.evaluation.methods import Method, method_named
from benchmarks.evaluation.models import base_model
from benchmarks.evaluation.plan import Plan, subject_named
from benchmarks.evaluation.prompts import Prompt
from benchmarks.evaluation.training import trained_folder
from benchmarks.evaluation.units import Context, Unit
from perfusion.base.attention import ConceptAttnProcessor, install
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import condition
from perfusion.files import writing
from perfusion.pocket.vocabulary import article
from perfusion.training.objective import Noising
from perfusion.training.templates import as_tensors, input_ids, word_ids

__all__ = ["CONTENDERS", "leakage_path", "leakage_units", "outside_share", "outside_shares"]

CONTENDERS = ("unselected", "trained-keys")
"""The same training, but for the keys."""


def leakage_units(methods: Sequence[Method], subjects: Sequence[str], plan: Plan) -> list[Unit]:
    """One for each subject, where both contenders are evaluated."""
    if not set(CONTENDERS) <= {method.name for method in methods}:
        return []
    cost = 0.02 * plan.leakage_levels * (3 * plan.renders + 2 * len(plan.prompts) * plan.ablation_seeds)
    return [
        Unit(path=leakage_path(name), cost=cost, call=measure_leakage, arguments=(name,)) for name in subjects
    ]


def leakage_path(subject: str) -> Path:
    """Relative to the work folder."""
    return Path("measure") / "leakage" / f"{subject}.json"


def measure_leakage(context: Context, subject_name: str) -> None:
    """Both contenders and the base model's own word, on true pictures; the contenders on their drawings too."""
    plan, subject = context.plan, subject_named(subject_name)
    pictures, masks, rows = render_subject(subject, plan)
    numbers = plan.numbers_by_place
    prompts = [plan.prompts[numbers[row["place"]]] for row in rows]
    share = float(1 - masks.mean())
    leakage: dict[str, Any] = {"background": share, "renders": {}, "drawings": {}, "left_out": {}}
    plain = _reading(None, prompts, subject.noun)
    leakage["renders"]["base"] = outside_shares(encoded(pictures), masks, plain, plan)
    for name in CONTENDERS:
        method = method_named(name)
        concept = Concept.load(context.work / trained_folder(method, subject_name) / "concept.safetensors")
        leakage["renders"][name] = outside_shares(
            encoded(pictures), masks, _reading(concept, prompts, ""), plan
        )
        drawings = read_drawings(context.work / drawing_path(name, subject_name, "prompts"))
        default = method.settings(plan)[0]
        default_rows = [
            at
            for at, row in enumerate(drawings.rows)
            if default.drew(row) and plan.prompts[row["prompt"]].keeps_look
        ]
        default_pictures, asking_prompts = (
            drawings.pictures[default_rows],
            [plan.prompts[drawings.rows[at]["prompt"]] for at in default_rows],
        )
        areas = object_masks(default_pictures, subject.noun)
        # where no object was found the mask is all of the picture, and nothing would be outside
        clear = [at for at, mask in enumerate(areas) if (mask < 1).any()]
        leakage["left_out"][name] = len(default_pictures) - len(clear)
        if clear:
            reading = _reading(concept, [asking_prompts[at] for at in clear], "")
            leakage["drawings"][name] = outside_shares(
                encoded(default_pictures[clear]), areas[clear], reading, plan
            )
    with writing(context.work / leakage_path(subject_name), "w") as file:
        file.write(json.dumps(leakage))


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What the UNet reads beside each picture, and the place of the token whose attention is measured."""

    states: Tensor
    """(n, tokens, text_dim)"""
    gates: Tensor
    """(n, tokens, concepts)"""
    places: Tensor
    """(n,)"""
    keys: Tensor
    values: Tensor
    """(concepts, Σ d)"""


@torch.no_grad()
def outside_shares(latents: Tensor, masks: NDArray[np.float32], reading: Reading, plan: Plan) -> float:
    """The mean share of the token's attention outside the object, over pictures, noise levels, layers and heads.

    Args:
        latents: (n, channels, h, w), scaled.
        masks: (n, height, width) in [0, 1].
    """
    base, noising = base_model(), Noising.of(base_model())
    steps = int(noising.scheduler.config.num_train_timesteps)
    levels = [round((number + 0.5) * steps / plan.leakage_levels) for number in range(plan.leakage_levels)]
    where = torch.from_numpy(masks)[:, None].float()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    shares: list[Tensor] = []
    with _watching(base.unet, where, reading.places, shares.append):
        for level in levels:
            timesteps = torch.full((len(latents),), level)
            noisy, _ = noising(latents, noise, timesteps)
            kwargs = {
                "key_gate": reading.gates, "value_gate": reading.gates, "concept_keys": reading.keys,
                "concept_values": reading.values,
            }  # fmt: skip
            unet: Any = base.unet
            unet(noisy, timesteps, reading.states, cross_attention_kwargs=kwargs)
    return float(torch.stack(shares).mean())


def _reading(concept: Concept | None, prompts: Sequence[Prompt], noun: str) -> Reading:
    """Prompts with a concept at its default setting, or in the base model's words."""
    base, states, gates, places = base_model(), list[Tensor](), list[Tensor](), list[int]()
    for prompt in prompts:
        if concept is None:
            text = prompt.text.replace("a {}", article(noun)[: -len(noun)] + "{}")
            prompt_ids, table = input_ids(base, text, [word_ids(base.tokenizer, noun)]), None
        else:
            prompt_ids = input_ids(
                base, prompt.text, [[base.vocab_size + row for row in range(concept.rows)]]
            )
            table = [torch.from_numpy(np.array(one)) for one in concept.embeddings]
        hidden = base.encode(as_tensors([prompt_ids], torch.device("cpu")), table).hidden[0].float().detach()
        gate = hidden.new_zeros(len(hidden), 1)
        if concept is not None:
            edit = condition(
                hidden.numpy(), direction=concept.direction, dual=concept.dual, energy=concept.energy,
                bias=concept.bias, temperature=concept.temperature, strength=1.0,
            )  # fmt: skip
            hidden, gate = torch.from_numpy(edit.value_states), torch.from_numpy(edit.value_gate)
        states, gates, places = [*states, hidden], [*gates, gate], [*places, prompt_ids.last]
    widths = [sum(layer.key_dim for layer in base.layers), sum(layer.value_dim for layer in base.layers)]
    keys, values = (torch.zeros(gates[0].shape[1], width) for width in widths)
    if concept is not None:
        keys, values = (
            torch.from_numpy(np.array(concept.target_keys)),
            torch.from_numpy(np.array(concept.target_values)),
        )
    return Reading(
        states=torch.stack(states),
        gates=torch.stack(gates),
        places=torch.tensor(places),
        keys=keys,
        values=values,
    )


@dataclass(eq=False)
class _Watcher:
    """Does what the concept's processor does, and tells what share of a token's attention lies outside the masks."""

    processor: ConceptAttnProcessor
    masks: Tensor
    places: Tensor
    tell: Callable[[Tensor], None] = field(repr=False)

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *, key_gate: Tensor, value_gate: Tensor,
        concept_keys: Tensor, concept_values: Tensor,
    ) -> Tensor:  # fmt: skip
        if encoder_hidden_states is not None:
            key = attn.to_k(encoder_hidden_states) + key_gate @ concept_keys[:, self.processor.key_slice]
            query, key = (
                torch.unflatten(x, -1, (attn.heads, -1)).transpose(1, 2)
                for x in (attn.to_q(hidden_states), key)
            )
            attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
            self.tell(outside_share(attention, self.masks, self.places))
        return self.processor(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, key_gate=key_gate,
            value_gate=value_gate, concept_keys=concept_keys, concept_values=concept_values,
        )  # fmt: skip


def outside_share(attention: Tensor, masks: Tensor, places: Tensor) -> Tensor:
    """The mean over pictures and heads of the share of one token's attention that lies outside the object.

    Args:
        attention: (batch, heads, positions, tokens), rows that sum to one.
        masks: (batch, 1, height, width) in [0, 1], of squares.
        places: (batch,) the token.
    """
    side = round(attention.shape[2] ** 0.5)
    word = attention[torch.arange(len(attention)), :, :, places]  # (batch, heads, positions)
    inside = F.adaptive_avg_pool2d(masks, (side, side)).flatten(2)
    return ((word * (1 - inside)).sum(-1) / word.sum(-1)).mean()


@contextmanager
def _watching(unet: Any, masks: Tensor, places: Tensor, tell: Callable[[Tensor], None]) -> Iterator[None]:
    """Watchers before the concept processors of all layers, for the length of a with block."""
    originals = {
        name: module.processor for name, module in unet.named_modules() if name.endswith((".attn1", ".attn2"))
    }
    install(unet)
    try:
        for name in originals:
            module = unet.get_submodule(name)
            module.set_processor(_Watcher(module.processor, masks, places, tell))
        yield
    finally:
        for name, processor in originals.items():
            unet.get_submodule(name).set_processor(processor)
