"""The noise a picture is made from, equal to torch's for the same seed.

torch's CPU generator is a Mersenne twister; `torch.randn` turns its words into normal numbers in blocks of
16, eight radii and eight angles at a time. numpy's frozen `RandomState` has the same twister, so the same
seed gives the same picture here and in diffusers. Logarithms and sines are taken in float64 and rounded once,
so that they hardly depend on the processor's vector unit.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["NoiseStream", "initial_noise"]

_BLOCK = 16  # Box-Muller: 8 radii, then 8 angles, make 8 cosines, then 8 sines


class NoiseStream:
    """One picture's noise, array after array: a `torch.Generator().manual_seed(seed)` that is drawn from.

    `seed` is from 0 to 2**32 - 1: the twister knows no larger ones.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed)

    def draw(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Normal noise, as `torch.randn(shape, generator=...)` draws it next.

        Fewer than 16 numbers, which no model asks for, are cut from 16 (torch takes another way there).
        """
        size = int(np.prod(shape))
        words = max(size, _BLOCK)
        uniform = self._uniform(words + (_BLOCK if words % _BLOCK else 0))
        noise = np.empty(words, np.float32)
        whole = words - words % _BLOCK
        noise[:whole] = _box_muller(uniform[:whole])
        if words % _BLOCK:  # torch draws the last block anew, over the numbers already there
            noise[-_BLOCK:] = _box_muller(uniform[-_BLOCK:])
        return noise[:size].reshape(shape)

    def _uniform(self, count: int) -> NDArray[np.float64]:
        """`count` numbers in [0, 1) of 24 random bits each: the low bits of one of the twister's words."""
        words = np.frombuffer(self._twister.bytes(4 * count), "<u4")
        return (words & 0xFFFFFF) / 2.0**24


def initial_noise(seed: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The first noise of a seed, as `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` draws it."""
    return NoiseStream(seed).draw(shape)


def _box_muller(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """(16 k,) uniform numbers to as many normal ones."""
    radii, angles = uniform.reshape(-1, 2, _BLOCK // 2).swapaxes(0, 1)
    radius = np.sqrt(-2.0 * np.log(1.0 - radii))  # 1 - u is never 0
    angle = 2.0 * np.pi * angles
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
