"""A text whose letters count more or less than 1, and that may begin anew at some places.

What cuts and joins texts (marks of things, readings, parts of a long prompt) cuts and joins these, so a weight stays
with its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, groupby

__all__ = ["WeightedText", "as_weighted"]


@dataclass(frozen=True)
class WeightedText:
    """A text, the weight of each of its letters, and where a new part of it begins.

    Texts of equal letters, weights and breaks are equal.
    """

    text: str
    weights: tuple[float, ...] = ()  # one a letter; none: all 1
    breaks: tuple[int, ...] = ()  # places of the blanks that stand for a break, in order

    def __post_init__(self) -> None:
        assert not self.weights or len(self.weights) == len(self.text)
        if self.weights and all(weight == 1 for weight in self.weights):
            object.__setattr__(self, "weights", ())

    def __str__(self) -> str:
        return self.text

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, span: slice) -> WeightedText:
        start, end, _ = span.indices(len(self.text))
        if not self.weights and not self.breaks:
            return WeightedText(self.text[start:end])
        inside = tuple(place - start for place in self.breaks if start <= place < end)
        return WeightedText(self.text[start:end], self.weights[start:end], inside)

    @classmethod
    def join(cls, parts: Iterable[WeightedText]) -> WeightedText:
        """Texts one after another, with nothing between them."""
        parts = list(parts)
        text = "".join(part.text for part in parts)
        if all(part.is_plain for part in parts):
            return cls(text)
        weights = tuple(weight for part in parts for weight in part.weights or (1.0,) * len(part.text))
        starts = accumulate((len(part.text) for part in parts), initial=0)
        breaks = tuple(
            start + place for start, part in zip(starts, parts, strict=False) for place in part.breaks
        )
        return cls(text, weights, breaks)

    @property
    def is_plain(self) -> bool:
        """Whether it is a text like any other."""
        return not self.weights and not self.breaks

    def weight_at(self, place: int) -> float:
        """The weight of the letter at a place; 1 where there is none."""
        return self.weights[place] if place < len(self.weights) else 1.0

    def saying(self, text: str) -> WeightedText:
        """Another text with the weight of this one's first letter."""
        weight = self.weight_at(0)
        return WeightedText(text, () if weight == 1 else (weight,) * len(text))

    def strip(self) -> WeightedText:
        """Without blanks at its ends."""
        lead = len(self.text) - len(self.text.lstrip())
        return self[lead : max(lead, len(self.text.rstrip()))]

    def runs(self) -> Iterator[tuple[int, int]]:
        """Where its stretches of one weight begin and end."""
        if not self.weights:
            if self.text:
                yield 0, len(self.text)
            return
        start = 0
        for _, letters in groupby(self.weights):
            end = start + len(list(letters))
            yield start, end
            start = end

    def parts(self) -> tuple[WeightedText, ...]:
        """What stands between its breaks, each without blanks at its ends; a last one of nothing is none."""
        if not self.breaks:
            return (self,)
        ends = (*self.breaks, len(self.text))
        plain = WeightedText(self.text, self.weights)
        parts = [plain[start:end].strip() for start, end in zip((0, *self.breaks), ends, strict=True)]
        return tuple(parts if parts[-1].text else parts[:-1])

    def apart(self) -> str:
        """The text with a blank wherever two letters of different weight touch: a tokenizer then reads each stretch by
        itself."""
        pieces = [self.text[start:end] for start, end in self.runs()]
        text = pieces[0] if pieces else ""
        for piece in pieces[1:]:
            touch = not text[-1:].isspace() and not piece[:1].isspace()
            text += " " * touch + piece
        return text


def as_weighted(text: str | WeightedText) -> WeightedText:
    """A plain text as one of weights that are all 1."""
    return text if isinstance(text, WeightedText) else WeightedText(text)
