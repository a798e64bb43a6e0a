"""Why a prompt draws what it draws: how much of each concept every token holds, and how far it opens the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfusion.concept.conditioning import gates_of
from perfusion.concept.layout import Layout
from perfusion.concept.learned_words import FIRST_ID
from perfusion.concept.weighted_text import WeightedText
from perfusion.runtime.concepts import Bank
from perfusion.runtime.text.prompt_encoder import PromptEncoder
from perfusion.runtime.text.text_encoders import TokenizedTexts

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Explanation", "explain"]

Floats = NDArray[np.float64]

_BAR = 20  # characters of a gate that is wide open


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """A prompt's tokens against its concepts; a concept of several rows has a column for each.

    `similarity` is what the gate reads, about 1 at the concept's own word; `gate` is how much of the concept that
    lets through, from 0 to the concept's strength.
    """

    prompt: str
    tokens: tuple[str, ...]  # start and end included, padding not
    concepts: tuple[str, ...]  # of the columns
    similarity: Floats  # (tokens, concepts)
    gate: Floats  # (tokens, concepts)
    readings: tuple[
        Explanation, ...
    ] = ()  # of the prompt's readings, where its things have regions of their own
    weights: tuple[float, ...] = ()  # of the tokens, as the prompt writes them; none: all 1

    def as_dict(self) -> dict[str, Any]:
        """All of it in plain lists, for JSON."""
        return {
            "prompt": self.prompt,
            "tokens": list(self.tokens),
            "concepts": list(self.concepts),
            "similarity": np.round(self.similarity, 4).tolist(),
            "gate": np.round(self.gate, 4).tolist(),
            "readings": [reading.as_dict() for reading in self.readings],
            "weights": list(self.weights),
        }

    def text(self) -> str:
        """A table: for each token and concept the similarity, the gate, and the gate as a bar.

        A prompt whose things have regions has one table for each reading.
        """
        if self.readings:
            tables = [
                f"Region {at}: {reading.prompt}\n{reading.text()}"
                for at, reading in enumerate(self.readings, 1)
            ]
            return "\n\n".join(tables)
        if not self.concepts:
            return f"{self.prompt!r} names no concept that is in use."
        names = [
            f"{token} ×{weight:.4g}" if weight != 1 else token
            for token, weight in zip(self.tokens, self.weights or (1.0,) * len(self.tokens), strict=True)
        ]
        wide = max(map(len, names))
        head = " " * wide + "".join(f"  {name[: _BAR + 12]:<{_BAR + 12}}" for name in self.concepts)
        lines = [head.rstrip()]
        for token, similarity, gate in zip(names, self.similarity, self.gate, strict=True):
            cells = "".join(
                f"  {s:5.2f} {g:5.2f} {'#' * round(g * _BAR):<{_BAR}}"
                for s, g in zip(similarity, gate, strict=True)
            )
            lines.append(f"{token:<{wide}}{cells}".rstrip())
        return "\n".join(lines)

    def picture(self) -> Image:
        """A heat map: a row for each token, two fields for each concept, its similarity and its gate.

        A prompt whose things have regions has one map for each reading, one below the other.
        """
        from PIL import Image, ImageDraw

        if self.readings:
            return _stacked([reading.picture() for reading in self.readings])

        cell, line, margin = 110, 22, 150
        columns = [f"{name} {what}" for name in self.concepts for what in ("similarity", "gate")]
        size = (margin + cell * max(1, len(columns)), line * (len(self.tokens) + 1))
        sheet = Image.new("RGB", size, "white")
        pen = ImageDraw.Draw(sheet)
        for column, name in enumerate(columns):
            pen.text((margin + column * cell + 4, 5), _shown(name, 18), fill="black")
        values = np.stack([self.similarity, self.gate], axis=-1).reshape(len(self.tokens), -1)
        for row, token in enumerate(self.tokens, start=1):
            pen.text((4, row * line + 5), _shown(token, 22), fill="black")
            for column, value in enumerate(values[row - 1]):
                left, top = margin + column * cell, row * line
                pen.rectangle((left, top, left + cell - 2, top + line - 2), fill=_heat(float(value)))
                pen.text((left + 4, top + 5), f"{value:.2f}", fill="black" if value < 0.6 else "white")
        return sheet


def explain(prompts: PromptEncoder, bank: Bank, layout: Layout, lock: str | None, gates: str) -> Explanation:
    """See `Runtime.explain`."""
    whole = _explain(prompts, bank, layout.text, lock, gates)
    readings = (_explain(prompts, bank, reading, lock, gates) for reading in layout.readings)
    return replace(whole, readings=tuple(readings))


def _explain(
    prompts: PromptEncoder, bank: Bank, prompt: WeightedText, lock: str | None, gates: str
) -> Explanation:
    """One reading of a prompt."""
    encoded = prompts.encode_prompt(prompt, bank, lock, gates)
    texts = prompts.texts(prompt, bank) if encoded is None else encoded.texts
    tokens = tuple(name for text in texts for name in _names(prompts, bank, text))
    rows = bank.rows(() if encoded is None else encoded.active)
    response = opened = np.zeros((len(tokens), len(rows.slots)))
    if encoded is not None:
        length = len(texts[0][0].input_ids)
        places = [at * length + place for at, text in enumerate(texts) for place in range(text[0].length)]
        response = encoded.state.conditioning.response[places]
        opened = np.asarray(gates_of(encoded.state, rows)[places], np.float64)
    return Explanation(
        prompt=prompt.text, tokens=tokens, concepts=_columns(rows.slots), similarity=response, gate=opened,
        weights=_weights(texts),
    )  # fmt: skip


def _weights(texts: Sequence[TokenizedTexts]) -> tuple[float, ...]:
    """The weight of each token; none where all are 1."""
    if all(text[0].weights is None for text in texts):
        return ()
    return tuple(
        1.0 if text[0].weights is None else float(text[0].weights[place])
        for text in texts
        for place in range(text[0].length)
    )


def _names(prompts: PromptEncoder, bank: Bank, text: TokenizedTexts) -> list[str]:
    """What each token says; for a placeholder its concept, with the row where it has several."""
    names = list(prompts.read_back(text, bank))
    placeholders = _placeholders(text, bank)
    for at, token_id in enumerate(text[0].input_ids[: text[0].length]):
        names[at] = placeholders.get(int(token_id), names[at])
    return names


def _placeholders(text: TokenizedTexts, bank: Bank) -> Mapping[int, str]:
    """The rows of a text's concepts by their ids, which are above those of all tokens and follow one another."""
    slots = bank.rows(text[0].concepts).slots
    if not slots:
        return {}
    ids = sorted({int(token_id) for token_id in text[0].input_ids if token_id < FIRST_ID})[-len(slots) :]
    return dict(zip(ids, _columns(slots), strict=True))


def _columns(slots: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    several = {token for token, row in slots if row > 0}
    return tuple(f"{token}[{row}]" if token in several else token for token, row in slots)


def _stacked(pictures: Sequence[Image]) -> Image:
    """Pictures below one another, on white."""
    from PIL import Image

    width, heights = max(picture.width for picture in pictures), [picture.height for picture in pictures]
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    for at, picture in enumerate(pictures):
        sheet.paste(picture, (0, sum(heights[:at])))
    return sheet


def _shown(text: str, most: int) -> str:
    """Cut to fit, without letters that the built-in font may lack."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return plain if len(plain) <= most else plain[: most - 1] + "~"


def _heat(value: float) -> tuple[int, int, int]:
    """White at 0 to dark red at 1; blue below."""
    share = min(1.0, abs(value))
    light = round(255 * (1 - share))
    return (255 - round(75 * share), light, light) if value >= 0 else (light, light, 255)
