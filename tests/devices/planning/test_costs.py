"""What a run costs: liveness and arithmetic counted by hand on small graphs, and the arena by its rules."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from perfusion.devices.graph_reader.onnx_file import read_graph
from perfusion.devices.graph_reader.shapes import trace
from perfusion.devices.planning.arena import play
from perfusion.devices.planning.costs import array_events, costs_of
from tests.devices.graph_reader.test_shapes import saved

F = TensorProto.FLOAT
KIB = 256  # floats: arrays of one KiB, so that sums are easy to see


def peak(tmp_path, nodes, inputs=("x",), outputs=("y",), initializers=()):
    given, made = ([(name, F, [KIB]) for name in group] for group in (inputs, outputs))
    path = saved(tmp_path, nodes, given, made, initializers)
    return costs_of(trace(read_graph(path), {})).activations / 1024


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def test_a_chain_holds_an_operators_input_and_output_together(tmp_path):
    nodes = [node("Softmax", "x", "a"), node("Softmax", "a", "b"), node("Softmax", "b", "y")]
    assert peak(tmp_path, nodes) == 2


def test_operators_that_may_work_in_place_take_no_further_array(tmp_path):
    nodes = [node("Softmax", "x", "a"), node("Relu", "a", "b"), node("Add", "b x", "y")]
    assert peak(tmp_path, nodes) == 1


def test_the_callers_own_array_is_never_written_over(tmp_path):
    assert peak(tmp_path, [node("Relu", "x", "a"), node("Relu", "a", "y")]) == 1


def test_an_array_that_is_read_again_is_not_written_over(tmp_path):
    nodes = [node("Softmax", "x", "a"), node("Sigmoid", "a", "b"), node("Mul", "a b", "y")]
    assert peak(tmp_path, nodes) == 2


def test_a_skip_connection_lives_until_it_is_added(tmp_path):
    nodes = [
        node("Softmax", "x", "skip"),
        node("Softmax", "skip", "a"),
        node("Softmax", "a", "b"),
        node("Concat", "skip b", "y", axis=0),
    ]
    assert peak(tmp_path, nodes) == 1 + 1 + 2


def test_an_output_is_not_written_over_by_what_is_made_of_it(tmp_path):
    nodes = [node("Softmax", "x", "y"), node("Relu", "y", "z")]
    assert peak(tmp_path, nodes, outputs=("y", "z")) == 2


def test_a_view_is_the_array_it_shows(tmp_path):
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [16, 16])
    nodes = [node("Softmax", "x", "a"), node("Reshape", "a shape", "b"), node("Softmax", "b", "y")]
    assert peak(tmp_path, nodes, initializers=[shape]) == 2


def test_weights_that_are_only_cast_or_turned_count_as_what_becomes_of_them(tmp_path):
    half = helper.make_tensor("half", TensorProto.FLOAT16, [8, 4], bytes(64), raw=True)
    nodes = [
        helper.make_node("Cast", ["half"], ["wide"], to=F),
        helper.make_node("Transpose", ["wide"], ["w"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    path = saved(tmp_path, nodes, [("x", F, [3, 4])], [("y", F, [3, 8])], [half])
    costs = costs_of(trace(read_graph(path), {}))
    assert (costs.weights, costs.folded) == (8 * 4 * 4, 64)
    assert costs.activations == 3 * 8 * 4
    assert costs.flops.tolist() == [2 * 3 * 4 * 8]
    assert costs.traffic.tolist() == [4 * (3 * 4 + 4 * 8 + 3 * 8)]


def test_a_convolution_is_counted_by_its_window(tmp_path):
    weight = helper.make_tensor("w", F, [6, 2, 3, 3], bytes(432), raw=True)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[1, 1, 1, 1])]
    path = saved(tmp_path, nodes, [("x", F, [1, 4, 8, 8])], [("y", F, None)], [weight])
    assert costs_of(trace(read_graph(path), {})).flops.sum() == 2 * (6 * 8 * 8) * (2 * 3 * 3)


def test_the_roofline_takes_the_slower_of_arithmetic_and_bytes_at_every_operator(tmp_path):
    weight = helper.make_tensor("w", F, [64, 64], bytes(16384), raw=True)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    costs = costs_of(
        trace(read_graph(saved(tmp_path, nodes, [("x", F, [64, 64])], [("y", F, None)], [weight])), {})
    )
    product, softmax = 2 * 64**3, 2 * 64 * 64 * 4
    assert costs.seconds(flops=product, bandwidth=softmax) == pytest.approx(
        1.5 + 1
    )  # 3 matrices moved, then 2
    assert costs.seconds(flops=product / 10, bandwidth=softmax) == pytest.approx(10 + 1)


# --- the arena

MIB = 1 << 20


def test_the_first_region_is_a_megabyte_and_the_next_ones_double():
    assert play([(0, 100), (0, 0)]).reserved == MIB
    assert play([(0, MIB), (1, MIB)], runs=1).reserved == MIB + 2 * MIB
    assert play([(0, MIB), (1, MIB), (2, MIB), (3, MIB)], runs=1).reserved == (1 + 2 + 4) * MIB


def test_a_region_is_the_least_doubling_that_holds_what_is_asked_for():
    assert play([(0, 5 * MIB)], runs=1).reserved == 8 * MIB


def test_a_region_that_had_to_grow_is_followed_by_one_of_its_own_size():
    assert play([(0, 5 * MIB), (1, 5 * MIB), (2, 5 * MIB)], runs=1).reserved == (8 + 8 + 16) * MIB


def test_a_piece_given_back_is_used_again_and_neighbours_join():
    events = [(0, MIB // 2), (1, MIB // 2), (0, 0), (1, 0), (2, MIB)]
    assert play(events, runs=1).reserved == MIB


def test_pieces_of_different_regions_do_not_join():
    events = [(0, MIB), (1, 2 * MIB), (0, 0), (1, 0), (2, 3 * MIB)]
    assert play(events, runs=1).reserved == (1 + 2 + 4) * MIB


def test_the_smallest_piece_that_is_large_enough_is_taken():
    # 1, 2 and 4 MiB are free; the second half megabyte must come out of the first megabyte's rest
    events = [
        (0, MIB),
        (1, 2 * MIB),
        (2, 4 * MIB),
        (0, 0),
        (1, 0),
        (2, 0),
        (3, MIB // 2),
        (4, MIB // 2),
        (5, 2 * MIB),
        (6, 4 * MIB),
    ]
    assert play(events, runs=1).reserved == 7 * MIB


def test_pages_that_were_never_written_are_not_touched():
    use = play([(0, 5 * MIB), (0, 0)])
    assert (use.reserved, use.touched) == (8 * MIB, 5 * MIB)


def test_no_sequence_touches_less_than_is_alive_or_more_than_is_reserved():
    random = np.random.default_rng(0)
    for _ in range(20):
        events, alive, live, most = [], {}, 0, 0
        for array in range(200):
            size = int(random.integers(1, 3 * MIB))
            events.append((array, size))
            alive[array], live = size, live + size
            most = max(most, live)
            while alive and random.random() < 0.55:
                gone = int(random.choice(list(alive)))
                events.append((gone, 0))
                live -= alive.pop(gone)
        events += [(array, 0) for array in alive]
        use = play(events)
        assert most <= use.touched <= use.reserved


def test_what_is_taken_is_given_back_so_that_runs_can_follow_each_other(tmp_path):
    nodes = [
        node("Softmax", "x", "a"),
        node("Split", "a", "b c", num_outputs=2),
        node("Concat", "c b", "y", axis=0),
    ]
    path = saved(tmp_path, nodes, [("x", F, [KIB])], [("y", F, [KIB])])
    events = array_events(trace(read_graph(path), {}))
    taken = [array for array, size in events if size]
    given = [array for array, size in events if not size]
    assert sorted(taken) == sorted(given) == sorted(set(taken))


def test_what_no_device_has_is_summed_and_not_played():
    size = 1 << 50
    assert play([(0, size), (1, size), (0, 0), (1, 0)]).touched == 2 * size
