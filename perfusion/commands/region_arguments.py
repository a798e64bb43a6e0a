"""Which part of the picture a thing of the prompt gets: the options of every command that draws prompts."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.errors import RequestError
from perfusion.numerals import decimal

if TYPE_CHECKING:
    from perfusion.concept.layout import Regions
    from perfusion.concept.regions import Box

__all__ = ["add_regions", "check_regions", "region_argument", "region_masks", "regions_of"]


def add_regions(add: Callable[..., object]) -> None:
    """Add --region, --no-regions and --whole to a command."""
    add(
        "--region",
        type=region_argument,
        action="append",
        default=[],
        dest="regions",
        metavar="WORD[=L,T,R,B|MASK]",
        help="a concept or words of the prompt are a thing with a part of the picture: a box in shares of the picture "
        "(left, top, right, bottom), a mask, or where bands put it (can be repeated)",
    )
    add("--no-regions", action="store_true", help="read a prompt once, whatever things it names")
    add(
        "--whole",
        type=float,
        metavar="S",
        help="share of the picture that reads the whole prompt, from 0 (default) to below 1",
    )


def region_argument(text: str) -> "tuple[str, Box | None, str | None]":
    """A thing with its box or its mask; what is no box of four numbers is a file."""
    word, equals, place = text.rpartition("=")
    if not equals:
        return text, None, None
    try:
        separator = ";" if ";" in place else ","
        left, top, right, bottom = (decimal(side) for side in place.split(separator))
    except ValueError:
        return word, None, place
    return word, (left, top, right, bottom), None


def check_regions(args: argparse.Namespace) -> None:
    """Raise RequestError where the options contradict each other."""
    if args.no_regions and (args.regions or args.whole):
        raise RequestError("--no-regions goes with neither --region nor --whole. Leave one of them out.")


def regions_of(args: argparse.Namespace) -> "Regions":
    """What the runtime is told of regions. Raises RequestError for a word or a box that is none."""
    from perfusion.concept.regions import Region

    if args.no_regions:
        return None
    return [Region(word, box=box, mask=mask) for word, box, mask in args.regions] or "auto"


def region_masks(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """The files of masks that are read, each with its option's name."""
    return [("--region", Path(mask)) for _, _, mask in args.regions if mask]
