"""What is in pocket's pictures, without torch: which noun and where it stands, which place, which colour, how many.

The world is synthetic, so these questions have exact answers, and a small classifier trained on the world answers
them. Its own accuracies are in `scorer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from perfusion.errors import ModelError
from perfusion.judging.scorer import open_session, picture_array
from perfusion.pocket.vocabulary import COLOURS, NOUNS, PLACES

__all__ = [
    "AS_IT_IS",
    "COLOUR_NAMES",
    "FORMAT",
    "NOUN_NAMES",
    "PLACE_NAMES",
    "SCORER_FILE",
    "PocketScorer",
    "ProbeAnswers",
]

NOUN_NAMES = tuple(NOUNS)
PLACE_NAMES = (*PLACES, *COLOURS)
AS_IT_IS = "as it is"
COLOUR_NAMES = (AS_IT_IS, *COLOURS)
OUTPUTS = ("embeddings", "nouns", "place", "colour", "count", "scene", "where")
SCORER_FILE, FORMAT = "scorer.json", "perfusion-scorer"

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeAnswers:
    """What the scorer says of a batch of pictures."""

    embeddings: Array
    """(batch, 128), of length one."""
    nouns: Array
    """(batch, nouns) logits: each its own yes or no, since a picture may hold two."""
    place: tuple[str, ...]
    colour: tuple[str, ...]
    """Of a single object; "as it is" for one that nobody painted."""
    count: tuple[int, ...]
    scene: Array
    """(batch,): above zero for a scene, below for texture and noise."""
    where: Array
    """(batch, nouns): the middle of each noun's object, 0 the left end … 1 the right."""

    def best_nouns(self, row: int, how_many: int = 1) -> tuple[str, ...]:
        """The most likely nouns of one picture, the likeliest first."""
        return tuple(NOUN_NAMES[index] for index in np.argsort(-self.nouns[row])[:how_many])


class PocketScorer:
    """The scorer that ships with pocket, or another one of its folder's form.

    Raises:
        ModelError: there is no scorer in the folder, or it is damaged.
        DeviceError: onnxruntime is not installed.
    """

    def __init__(self, folder: Path | None = None, *, threads: int | None = None) -> None:
        if folder is None:
            from perfusion.embedded import scorer_path

            folder = scorer_path()
        self.facts = _read_facts(folder)
        self._session = open_session(folder / "image.onnx", threads)
        missing = set(OUTPUTS) - {end.name for end in self._session.get_outputs()}
        if missing:
            raise ModelError(
                f"{folder / 'image.onnx'} does not give {', '.join(sorted(missing))}: it is another scorer's. Train "
                "and pack the scorer again."
            )

    @property
    def accuracies(self) -> dict[str, float]:
        """The probes' shares of right answers on the world's own scenes, by their names."""
        return dict(self.facts["accuracies"])

    def __call__(self, pictures: Sequence[Image.Image]) -> ProbeAnswers:
        """Look at pictures of any size; they are brought to the size the scorer was trained on."""
        parts, size = list[dict[str, Array]](), int(self.facts["size"])
        for start in range(0, len(pictures), 32):
            batch = np.stack([picture_array(picture, size) for picture in pictures[start : start + 32]])
            answers = self._session.run(OUTPUTS, {"pictures": batch})
            parts.append(dict(zip(OUTPUTS, answers, strict=True)))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS}
        return ProbeAnswers(
            embeddings=joined["embeddings"],
            nouns=joined["nouns"],
            place=tuple(PLACE_NAMES[index] for index in joined["place"].argmax(1)),
            colour=tuple(COLOUR_NAMES[index] for index in joined["colour"].argmax(1)),
            count=tuple(int(index) + 1 for index in joined["count"].argmax(1)),
            scene=joined["scene"],
            where=joined["where"],
        )


def _read_facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / SCORER_FILE).read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} holds no scorer: it has no {SCORER_FILE}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / SCORER_FILE} cannot be read: {str(error).rstrip('.')}.") from error
    if facts.get("format") != FORMAT or facts.get("format_version") != 1:
        raise ModelError(f"{folder / SCORER_FILE} is not the file of a scorer of version 1.")
    if tuple(facts.get("nouns", ())) != NOUN_NAMES or tuple(facts.get("places", ())) != PLACE_NAMES:
        raise ModelError(
            f"{folder} was made for other words than this version's. Train and pack the scorer again."
        )
    return facts
