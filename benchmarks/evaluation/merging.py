"""Two Custom Diffusion trainings in one model, as its authors merge them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from perfusion.base.base_model import BaseModel
from perfusion.training.covariance import cached_second_moment, inverse, load_captions
from perfusion.training.templates import as_tensors, input_ids, word_ids
from recipes.pocket.subjects import Subject

__all__ = ["merged", "merged_projections"]

TEMPLATE = "a photo of a {}"
State = Mapping[str, Tensor]


def merged_projections(
    base: BaseModel, states: Mapping[Subject, State], words: Mapping[Subject, Tensor]
) -> dict[str, Tensor]:
    """The key and value matrices by name: of one training its own, of several those that do all of them justice.

    Args:
        states: by subject, the trained matrices by their names in the UNet.
        words: by subject, the (hidden,) embedding of its word.
    """
    if len(states) == 1:
        return {name: value.float() for state in states.values() for name, value in state.items()}
    moment = cached_second_moment(base, load_captions(base, None), lambda line: None)
    raised = inverse(moment)
    weights = base.unet.state_dict()
    encodings = {subject: _encodings(base, subject, words[subject]) for subject in states}
    result = {}
    for name in next(iter(states.values())):
        targets = [encodings[subject] @ state[name].float().T for subject, state in states.items()]
        result[name] = merged(
            weights[name].float(), torch.cat(list(encodings.values())), torch.cat(targets), raised
        )
    return result


def merged(weight: Tensor, encodings: Tensor, targets: Tensor, inverse_moment: Tensor) -> Tensor:
    """The matrix nearest to `weight` over all captions that brings some encodings exactly to their targets.

    argmin ‖(Ŵ − W) C‖ under Ŵ e_j = t_j (arXiv 2212.04488, section 3.2): Ŵ = W + Vᵀ D with D = E C⁻¹ and
    Vᵀ = (Tᵀ − W Eᵀ)(D Eᵀ)⁻¹, where the rows of E are the encodings.

    Args:
        weight: (out, text_dim).
        encodings, targets: (n, text_dim) and (n, out).
        inverse_moment: (text_dim, text_dim) float64, C⁻¹ of the captions' encodings.
    """
    wide, rows = weight.double(), encodings.double()
    directions = rows @ inverse_moment
    missing = targets.double().T - wide @ rows.T
    found: Tensor = wide + missing @ torch.linalg.pinv(directions @ rows.T, hermitian=True) @ directions
    return found.float()


@torch.no_grad()
def _encodings(base: BaseModel, subject: Subject, word: Tensor) -> Tensor:
    """(tokens, text_dim) of the subject's word and noun in a neutral sentence."""
    inside = [base.vocab_size, *word_ids(base.tokenizer, subject.noun)]
    prompt = input_ids(base, TEMPLATE, [inside])
    hidden: Tensor = base.encode(as_tensors([prompt], torch.device("cpu")), [word[None]]).hidden[0].float()
    return hidden[prompt.last - len(inside) + 1 : prompt.last + 1]
