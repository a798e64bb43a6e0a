"""Tiles: exactly the whole where the decoder sees each point alone, and near it for the decoder that ships."""

import numpy as np
import pytest

from perfusion.bundle.graph_io import graph_io_of
from perfusion.embedded import bundle_path
from perfusion.runtime import read_bundle
from perfusion.runtime.compute.onnx_graph import OnnxGraph
from perfusion.runtime.compute.tiles import decode_in_tiles


def pointwise(latents, scale=4):
    """A decoder whose pixels depend on one latent each."""
    return np.repeat(np.repeat(latents[:, :3] * 2 + 1, scale, axis=2), scale, axis=3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "height, width, tile",
    [(16, 16, 8), (17, 9, 8), (40, 8, 16), (5, 33, 8), (12, 13, 4), (9, 9, 8)],
)
def test_tiles_of_a_pointwise_decoder_make_the_whole(height, width, tile):
    latents = normal(2, 4, height, width)
    np.testing.assert_allclose(
        decode_in_tiles(pointwise, latents, 4, tile), pointwise(latents), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("tile", [None, 16, 64])
def test_what_fits_into_one_tile_is_decoded_as_it_is(tile):
    latents, calls = normal(1, 4, 16, 12), []

    def decode(piece):
        calls.append(piece)
        return pointwise(piece)

    np.testing.assert_array_equal(decode_in_tiles(decode, latents, 4, tile), pointwise(latents))
    assert len(calls) == 1 and calls[0] is latents


def test_no_piece_is_larger_than_a_tile_and_all_are_equally_large():
    """A decoder's memory then has a bound, and one set of shapes serves all calls."""
    shapes = []

    def decode(piece):
        shapes.append(piece.shape)
        return pointwise(piece)

    decode_in_tiles(decode, normal(1, 4, 37, 70), 4, 16)
    assert set(shapes) == {(1, 4, 16, 16)}


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_decoder_that_sees_a_few_neighbours_is_whole_but_at_the_seams(reach):
    """Away from the shared strips a tile knows all a pixel depends on, so these pixels are exact."""

    def decode(piece):
        padded = np.pad(piece[:, :3], ((0, 0), (0, 0), (reach, reach), (reach, reach)))
        height, width = piece.shape[2:]
        return sum(
            padded[:, :, y : y + height, x : x + width]
            for y in range(2 * reach + 1)
            for x in range(2 * reach + 1)
        ) / (2 * reach + 1)

    latents = normal(1, 4, 16, 28)
    error = np.abs(decode_in_tiles(decode, latents, 1, 16) - decode(latents)).max((0, 1, 2))
    assert error[: 12 - reach].max() < 1e-5  # the first tile alone
    assert error[16 + reach :].max() < 1e-5  # the second alone
    assert error[12:16].max() > 1e-3, "the oracle would see a seam"


def test_the_decoder_that_ships_makes_nearly_the_same_picture_in_tiles():
    bundle = read_bundle(bundle_path(), verify=False)
    ends = graph_io_of(bundle)["vae_decoder"]
    graph = OnnxGraph(ends.file, ends.inputs, ends.outputs, "cpu", 1)
    channels = bundle.unet.in_channels
    coarse = normal(1, channels, 8, 8, seed=1)
    latents = np.repeat(np.repeat(coarse, 6, axis=2), 6, axis=3) + 0.1 * normal(
        1, channels, 48, 48
    )  # 384 pixels

    def decode(piece):
        return graph(latent_sample=piece)

    whole = decode(latents)
    tiled = decode_in_tiles(decode, latents, bundle.decoder.downscale, 32)
    error = ((tiled.clip(-1, 1) - whole.clip(-1, 1)) ** 2).mean()
    decibels = 10 * np.log10(4 / error)
    assert decibels > 40


def test_seams_do_not_show(bundle):
    """Across a seam neighbouring pixels differ no more than elsewhere."""
    offsets = iter(np.linspace(-0.2, 0.2, 9))

    def decode(piece):
        return pointwise(np.zeros_like(piece)) + next(offsets)  # tiles of different brightness

    picture = decode_in_tiles(decode, normal(1, 4, 40, 40), 4, 16)[0, 0]
    assert np.abs(np.diff(picture, axis=0)).max() < 0.02
    assert np.abs(np.diff(picture, axis=1)).max() < 0.02
