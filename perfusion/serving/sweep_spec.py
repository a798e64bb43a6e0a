"""A sweep over HTTP: one concept with all combinations of two settings, prompts and seeds, each a cell of a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from perfusion.concept.settings import SETTINGS
from perfusion.serving.answers import StatusError
from perfusion.serving.body_fields import text_of
from perfusion.serving.order import Drawing, PictureSpec
from perfusion.sweep.ranges import FIELDS, Setting, parse_values

__all__ = ["Axis", "Cell", "SweepSpec", "axis_of"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting and the values that it takes; without a setting one place that changes nothing."""

    setting: str = ""
    values: tuple[Any, ...] = (None,)

    @property
    def places(self) -> list[dict[str, Any]]:
        """The setting at each place, by its name."""
        return [{self.setting: value} if self.setting else {} for value in self.values]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A picture of a sweep."""

    prompt: str
    seed: int
    row: int
    column: int
    settings: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepSpec(PictureSpec):
    """What a sweep draws: `prompt` is its first, `count` how many cells it has, `seed` those without a seed of their
    own share."""

    most: ClassVar[int] = 64

    concept: str  # its word
    prompts: tuple[str, ...]
    seeds: tuple[int | None, ...]
    across: Axis
    down: Axis

    def cells(self, first: int) -> list[Cell]:
        """All, along the rows; `first` is the seed where none is said."""
        places = itertools.product(
            self.prompts, self.seeds, enumerate(self.down.places), enumerate(self.across.places)
        )
        return [
            Cell(prompt=prompt, seed=first if seed is None else seed, row=row, column=column, settings=y | x)
            for prompt, seed, (row, y), (column, x) in places
        ]

    def drawings(self, first: int) -> Iterator[Drawing]:
        """See `PictureSpec.drawings`."""
        usual = dict(self.options.get("concept_settings") or {})
        own = dict(usual.get(self.concept) or {})
        for cell in self.cells(first):
            numbers = {name: value for name, value in cell.settings.items() if name in SETTINGS}
            lock = {name: value for name, value in cell.settings.items() if name == "lock"}
            settings = usual | {self.concept: own | numbers}
            yield cell.prompt, cell.seed, {**self.options, "concept_settings": settings, **lock}


def axis_of(fields: Mapping[str, Any], name: str) -> Axis:
    """An axis as a client says it: `{"setting": "bias", "values": [0.5, 0.7]}`, or with the values "0.4:0.9:6".

    Raises:
        StatusError: an unknown setting, or a value out of its range.
        RequestError: likewise.
    """
    axis = fields.get(name)
    if axis is None:
        return Axis()
    if not isinstance(axis, dict):
        raise _refusal(name, f"The field {name} is no object")
    setting, values = text_of(axis, "setting"), axis.get("values")
    if setting not in FIELDS:
        raise StatusError(
            400, f"There is no setting {setting[:60]!r}, expected one of {', '.join(FIELDS)}.", field=name
        )
    if isinstance(values, str) and setting != "lock":
        try:
            values = parse_values(values)
        except ValueError as error:
            raise _refusal(name, f"The values of {name} cannot be read: {error}") from error
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise _refusal(name, f"The field {name} has no list of values")
    if len(values) > SweepSpec.most:
        raise _refusal(name, f"The field {name} has {len(values)} values, more than {SweepSpec.most}")
    for value in values:
        Setting(**{setting: value})
    return Axis(setting=setting, values=tuple(dict.fromkeys(values)))


def _refusal(field: str, fault: str) -> StatusError:
    return StatusError(
        400, f'{fault}. Send for example {{"setting": "bias", "values": [0.5, 0.7, 0.9]}}.', field=field
    )
