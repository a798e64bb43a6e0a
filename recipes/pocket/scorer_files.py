"""The scorer as it ships: two ONNX graphs, a tokenizer, and a JSON of what its numbers mean.

`perfusion.judging.pocket_scorer` reads them without torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perfusion.base.base_model import encode
from perfusion.export.convert import to_onnx
from perfusion.export.graph_modules import End, Graph
from perfusion.export.proof.parity import check_parity
from perfusion.export.weights import save, store_as_float16
from perfusion.files import writing
from perfusion.judging.pocket_scorer import (
    COLOUR_NAMES,
    FORMAT,
    NOUN_NAMES,
    PLACE_NAMES,
    SCORER_FILE,
)
from recipes.pocket.architecture import SIZES
from recipes.pocket.scorer import EMBEDDING, Scorer
from recipes.pocket.tokenizer import CONTEXT_LENGTH

__all__ = ["graphs_of_scorer", "save_scorer"]


class Image(nn.Module):
    """Pictures (batch, 3, size, size) in [−1, 1] to embeddings of length one and the probes' logits."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        """The numbers of `Answers`, in its order."""
        answers = self.scorer.answer(pictures)
        probes = (answers.nouns, answers.place, answers.colour, answers.count, answers.scene, answers.where)
        return answers.embeddings, *probes


class Text(nn.Module):
    """Token ids (batch, 77) to embeddings (batch, 128) of length one."""

    def __init__(self, scorer: Scorer) -> None:
        super().__init__()
        self.text = scorer.text

    def forward(self, input_ids: Tensor) -> Tensor:
        """Written out from its parts, as `encode` is: the encoding of the first end token, projected."""
        ends = (input_ids == self.text.config.eos_token_id).int().argmax(-1)
        states = encode(self.text, input_ids)
        pooled = states.gather(1, ends[:, None, None].expand(-1, 1, states.shape[-1]))[:, 0]
        return nn.functional.normalize(self.text.text_projection(pooled), dim=-1)


def graphs_of_scorer(scorer: Scorer) -> tuple[Graph, Graph]:
    """The image graph and the text graph."""
    size = SIZES["pocket2"].resolution
    image = Graph(
        name="image",
        module=Image(scorer),
        inputs=(End(name="pictures", dims=("batch", 3, size, size)),),
        outputs=(
            End(name="embeddings", dims=("batch", EMBEDDING)),
            End(name="nouns", dims=("batch", len(NOUN_NAMES))),
            End(name="place", dims=("batch", len(PLACE_NAMES))),
            End(name="colour", dims=("batch", len(COLOUR_NAMES))),
            End(name="count", dims=("batch", scorer.size.counts)),
            End(name="scene", dims=("batch",)),
            End(name="where", dims=("batch", len(NOUN_NAMES))),
        ),
        example={"batch": 2},
    )
    text = Graph(
        name="text",
        module=Text(scorer),
        inputs=(End(name="input_ids", dims=("batch", CONTEXT_LENGTH), dtype=torch.int64),),
        outputs=(End(name="embeddings", dims=("batch", EMBEDDING)),),
        example={"batch": 2},
    )
    return image, text


def save_scorer(scorer: Scorer, tokenizer: Any, folder: Path, accuracies: Mapping[str, float]) -> None:
    """Write image.onnx, text.onnx, tokenizer.json and scorer.json; weights are rounded to float16 first.

    Args:
        scorer: trained; it is rounded in place.
        tokenizer: the one that its prompts were read with.
        folder: made when it is missing.
        accuracies: the probes' shares of right answers on scenes they were not trained on, by their names.

    Raises:
        ExportError: a graph that does not give what torch gives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scorer.half().float().eval()
    for graph in graphs_of_scorer(scorer):
        model = to_onnx(graph)
        store_as_float16(model)
        save(model, folder / f"{graph.name}.onnx")
        check_parity(graph, folder / f"{graph.name}.onnx", vocab_size=len(tokenizer))
    with writing(folder / "tokenizer.json", "w") as file:
        file.write(tokenizer.backend_tokenizer.to_str())
    facts = {
        "format": FORMAT, "format_version": 1, "size": SIZES["pocket2"].resolution,
        "context_length": CONTEXT_LENGTH, "nouns": NOUN_NAMES, "places": PLACE_NAMES, "colours": COLOUR_NAMES,
        "accuracies": {name: round(share, 4) for name, share in accuracies.items()},
    }  # fmt: skip
    with writing(folder / SCORER_FILE, "w") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
