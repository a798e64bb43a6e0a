"""The first noise against torch's own."""

import numpy as np
import pytest
import torch

from perfusion.runtime.sampling.noise import NoiseStream, initial_noise


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (1, 4, 2, 2), (1, 4, 7, 9), (17,), (1, 4, 64, 64)])
def test_noise_equals_torchs_for_the_same_seed(seed, shape):
    theirs = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()
    mine = initial_noise(seed, shape)
    assert mine.dtype == np.float32 and mine.shape == shape
    assert np.abs(mine - theirs).max() < 3e-6  # torch's vectorised logarithm and sine are rounded elsewhere


def test_noise_is_normal():
    noise = initial_noise(3, (400_000,)).astype(np.float64)
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs((noise**4).mean() - 3) < 0.1


def test_a_handful_of_numbers_is_noise_too():
    assert initial_noise(0, (1, 4, 1, 1)).shape == (1, 4, 1, 1)
    assert not np.array_equal(initial_noise(0, (4,)), initial_noise(1, (4,)))


@pytest.mark.parametrize("shapes", [[(1, 4, 8, 8)] * 3, [(1, 4, 7, 9), (17,), (1, 4, 16, 16), (1, 4, 7, 9)]])
def test_a_stream_goes_on_as_torchs_generator_does(shapes):
    generator, stream = torch.Generator().manual_seed(5), NoiseStream(5)
    for shape in shapes:
        theirs = torch.randn(shape, generator=generator).numpy()
        assert np.abs(stream.draw(shape) - theirs).max() < 3e-6
