"""Which concepts are asked for: Zipf's law over any number of them, without a table."""

from __future__ import annotations

import math
import random

__all__ = ["Zipf"]


class Zipf:
    """Draws numbers from 1 to `count`, k with a probability in proportion to k⁻ˢ.

    By rejection-inversion (Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", 1996), whose time and memory do not depend on `count`.
    """

    def __init__(self, count: int, exponent: float, chance: random.Random) -> None:
        self._count, self._exponent, self._chance = count, exponent, chance
        self._low = self._integral(1.5) - 1
        self._high = self._integral(count + 0.5)
        self._sure = 2 - self._inverse(self._integral(2.5) - self._density(2))

    def __call__(self) -> int:
        while True:
            height = self._high + self._chance.random() * (self._low - self._high)
            place = self._inverse(height)
            number = min(max(round(place), 1), self._count)
            if number - place <= self._sure or height >= self._integral(number + 0.5) - self._density(number):
                return number

    def _density(self, place: float) -> float:
        return math.exp(-self._exponent * math.log(place))

    def _integral(self, place: float) -> float:
        """Of the density, up to a constant."""
        if self._exponent == 1:
            return math.log(place)
        return (math.pow(place, 1 - self._exponent) - 1) / (1 - self._exponent)

    def _inverse(self, area: float) -> float:
        """Of `_integral`."""
        if self._exponent == 1:
            return math.exp(area)
        return math.pow(max(0.0, 1 + area * (1 - self._exponent)), 1 / (1 - self._exponent))
