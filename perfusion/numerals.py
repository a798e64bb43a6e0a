"""Numbers as people and spreadsheets write them. Standard library only."""

import re

__all__ = ["decimal", "whole"]

_POINT_OR_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


def decimal(text: str) -> float:
    """A number with a point or, as much of the world writes it, a comma: 0.5 of "0.5" and of "0,5".

    Raises:
        ValueError: no number, or one whose comma may be that of a thousand.
    """
    plain = text.strip()
    if _THOUSANDS.fullmatch(plain):
        raise ValueError(
            f"{text!r} may be {plain.replace(',', '.')} or {plain.replace(',', '')}, write one of them"
        )
    try:
        return float(plain.replace(",", ".") if _POINT_OR_COMMA.fullmatch(plain) else plain)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def whole(text: str) -> int:
    """A whole number; spreadsheets write some of them as "300.0" and "300,0".

    Raises:
        ValueError: none.
    """
    match = re.fullmatch(r"([+-]?\d+)([.,]0*)?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no whole number")
    return int(match[1])
