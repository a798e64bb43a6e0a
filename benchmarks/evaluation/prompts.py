"""What is drawn, and what must be seen in it."""

from __future__ import annotations

from dataclasses import dataclass

from perfusion.pocket.vocabulary import article

__all__ = ["PAIRS", "PAIR_PROMPTS", "PLAIN", "PROMPTS", "TUNING_PROMPTS", "Prompt", "plain_text"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt with a gap for the subject (two gaps for a pair), and the answers that the probes should give."""

    kind: str
    """`scene`, `background`, `relation`, `colour` or `pair`."""
    text: str
    place: str
    """A painted scene, or the colour of a plain background."""
    colour: str = ""
    """What the object is to be painted in, against its own look."""
    other: str = ""
    """A second thing that the base model draws beside the subject."""

    @property
    def keeps_look(self) -> bool:
        """Whether a picture that obeys may look like the subject: not if it asks for another colour."""
        return self.kind != "colour"

    @property
    def only_place(self) -> bool:
        """Whether it asks for the subject in a place and for nothing else."""
        return self.kind in ("scene", "background")


PROMPTS = (
    Prompt(kind="scene", text="a photo of a {} on a beach", place="beach"),
    Prompt(kind="scene", text="a {} in the snow", place="snow"),
    Prompt(kind="relation", text="a photo of a {} next to a tree on grass", place="grass", other="tree"),
    Prompt(kind="background", text="a photo of a {} on a blue background", place="blue"),
    Prompt(kind="scene", text="a photo of a {} at night", place="night"),
    Prompt(kind="scene", text="a {} in a forest", place="forest"),
    Prompt(kind="relation", text="a {} and a teapot on a wooden table", place="table", other="teapot"),
    Prompt(kind="background", text="a {} on a white background", place="white"),
    Prompt(kind="scene", text="a photo of a {} in a room", place="room"),
    Prompt(kind="scene", text="a {} in front of a brick wall", place="brick"),
    Prompt(kind="relation", text="a photo of a car and a {} on a street", place="street", other="car"),
    Prompt(kind="scene", text="a photo of a {} in the desert", place="desert"),
    Prompt(kind="colour", text="a photo of a red {} on a beach", place="beach", colour="red"),
    Prompt(kind="colour", text="a blue {} in the snow", place="snow", colour="blue"),
)
"""Twelve that leave the subject its look, by which likeness is measured, and two that ask for another colour."""

PLAIN = tuple(prompt for prompt in PROMPTS if prompt.kind == "scene")[:3]
"""Drawings of the plain superclass under every method's weights: does "a cat" still draw the base model's cats?"""

TUNING_PROMPTS = (
    Prompt(kind="scene", text="a photo of a {} underwater", place="underwater"),
    Prompt(kind="scene", text="a {} in the mountains", place="mountains"),
    Prompt(kind="scene", text="a photo of a {} at sunset", place="sunset"),
    Prompt(kind="scene", text="a {} on a beach", place="beach"),
    Prompt(kind="background", text="a photo of a {} on a green background", place="green"),
    Prompt(kind="relation", text="a {} next to a chair in a room", place="room", other="chair"),
)
"""What settings are chosen by, on subjects of their own; nearly all are other prompts than the evaluation's."""

PAIR_PROMPTS = (
    Prompt(kind="pair", text="a photo of a {} next to a {} on grass", place="grass"),
    Prompt(kind="pair", text="a {} and a {} on a beach", place="beach"),
)

PAIRS = (
    ("tuxedo-cat", "school-bus"), ("pug", "pink-mushroom"), ("purple-owl", "gold-hat"),
    ("grey-penguin", "rainbow-umbrella"), ("grey-fish", "pink-cake"), ("old-robot", "green-bus"),
    ("school-bus", "pink-mushroom"), ("gold-hat", "grey-penguin"), ("pink-cake", "old-robot"),
    ("rainbow-umbrella", "pug"), ("green-bus", "tuxedo-cat"), ("purple-owl", "grey-fish"),
)  # fmt: skip
"""Every subject twice, always beside another kind of thing."""


def plain_text(prompt: Prompt, *nouns: str) -> str:
    """The prompt in the base model's own words, with "an" where a noun wants it."""
    text = prompt.text
    for noun in nouns:
        gap = "a {}" if "a {}" in text.split("{}", 1)[0] + "{}" else "{}"
        text = text.replace(gap, article(noun) if gap == "a {}" else noun, 1)
    return text
