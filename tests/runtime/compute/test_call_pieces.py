"""A call of any number of rows is one of few lengths, and says the same."""

import numpy as np
import pytest

from perfusion.runtime.compute.call_pieces import call_pieces, joined, piece_shapes, piece_slices


@pytest.mark.parametrize("most", [1, 2, 16])
def test_pieces_are_all_rows_in_order_in_lengths_that_are_powers_of_two(most):
    lengths = set()
    for rows in range(1, 65):
        slices = piece_slices(rows, most)
        assert [row for part in slices for row in range(rows)[part]] == list(range(rows))
        lengths |= {part.stop - part.start for part in slices}
    assert lengths == {1 << power for power in range(most.bit_length())}


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_each_row_meets_its_own_inputs_and_those_of_all(rows):
    """A product with what all rows share, plus what is one for each row: in pieces as at once."""
    rng = np.random.default_rng(rows)
    feeds = {"sample": rng.random((rows, 4)), "timestep": np.ones(1), "concept_keys": rng.random((rows, 4))}

    def answer(feeds):
        return {"out": feeds["sample"] @ feeds["concept_keys"].T + feeds["timestep"]}

    pieces = [answer(piece) for piece in call_pieces(feeds, rows, 2)]
    assert len(pieces) == -(-rows // 2)
    np.testing.assert_allclose(joined(pieces)["out"], answer(feeds)["out"])


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_the_shapes_of_pieces_are_those_that_the_pieces_have(rows):
    feeds = {"sample": np.ones((rows, 4)), "timestep": np.ones(1), "concept_keys": np.ones((rows, 4))}
    shapes = piece_shapes({name: array.shape for name, array in feeds.items()}, rows, 2)
    pieces = [{name: array.shape for name, array in piece.items()} for piece in call_pieces(feeds, rows, 2)]
    assert len(shapes) == len({str(shape) for shape in shapes})
    assert {str(piece) for piece in pieces} == {str(shape) for shape in shapes}
