"""Rivals in regions: diffusers' pipeline with a LoRA or a learned word, and a reading of the prompt for each region.

The regions are the product's own, and so is the attention that mixes their readings; both are independent of how a
subject was learned. A learned word is in its own reading and in no other. An adapter is in the weights of every
reading, and of self-attention too: no text can keep it to a region.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.evaluation.artists import PipelineArtist, Trained, in_groups, loaded_pipeline
from benchmarks.evaluation.methods import Method
from benchmarks.evaluation.plan import Plan
from perfusion.base.attention import install, level_count, region_levels, uninstall
from perfusion.concept.layout import AUTO, Layout, lay_out
from perfusion.concept.words import Word

__all__ = ["TwinArtist"]


class TwinArtist(PipelineArtist):
    """A rival's pipeline. Prompts whose things are marked, or are learned words, are read in regions if there are two.

    Args:
        weights: of one or two subjects, by a method that diffusers loads.
    """

    def __init__(self, method: Method, weights: Trained, plan: Plan) -> None:
        super().__init__(loaded_pipeline(method, weights), plan.num_inference_steps)
        self.words: Mapping[str, Word] = {}
        if method.name == "textual-inversion":
            self.words = {subject.token: Word(rows=1, superclass=subject.noun) for subject in weights}
        side = int(self.pipeline.unet.config.sample_size)
        self.size = side, side
        install(self.pipeline.unet)

    def draw(self, jobs: Sequence[Any]) -> list[Any]:
        """One picture a job; those of a call have as many readings."""
        return in_groups(jobs, lambda job: len(self.layout(job.text).readings), super().draw)

    def layout(self, text: str) -> Layout:
        """The readings of a prompt and their regions."""
        return lay_out(text, AUTO, self.words, 0.0, self.size)

    def conditions(self, texts: Sequence[str]) -> dict[str, Any]:
        """The readings of each prompt one after another; as many empty ones in the place of a negative prompt."""
        layouts = [self.layout(text) for text in texts]
        readings = [[each.text for each in layout.readings or (layout.text,)] for layout in layouts]
        states, negative = self.pipeline.encode_prompt(
            [text for each in readings for text in each], torch.device("cpu"), 1, True
        )
        joined = {
            "prompt_embeds": states.reshape(len(texts), -1, states.shape[-1]),
            "negative_prompt_embeds": negative.reshape(len(texts), -1, states.shape[-1]),
        }
        maps = [layout.maps for layout in layouts if layout.maps is not None]
        if not maps:
            return joined
        # the unguided rows come first, and read their equal readings in the same regions
        both = torch.from_numpy(np.stack([*maps, *maps]))
        levels = region_levels(both, level_count(self.pipeline.unet))
        return joined | {"cross_attention_kwargs": {"regions": levels}}

    def close(self) -> None:
        uninstall(self.pipeline.unet)
