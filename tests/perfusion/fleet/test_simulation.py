"""The simulation obeys queueing theory where that has a formula, and Zipf's law."""

from __future__ import annotations

import random
import statistics
from collections import Counter

import pytest

pytest.importorskip("simpy", reason="simpy is not installed")

from benchmarks.fleets.popularity import Zipf
from benchmarks.fleets.simulation import Costs, Load, Policy, simulate

STEPS = 4
FLAT = Costs(calls=(1.0,) * 8, begin=0.0, end=0.0, read=0.0, merge=3.0)
"""A device on which a call of eight costs what a call of one does."""


@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.3])
def test_zipf_draws_each_number_as_often_as_its_law_says(exponent):
    draws = _draws(50, exponent, 20_000)
    total = sum(k**-exponent for k in range(1, 51))
    for k in (1, 2, 5, 20, 50):
        share = k**-exponent / total
        assert draws[k] / 20_000 == pytest.approx(share, abs=4 * (share / 20_000) ** 0.5)


def _draws(count, exponent, times):
    zipf = Zipf(count, exponent, random.Random(0))
    return Counter(zipf() for _ in range(times))


def test_of_a_hundred_million_concepts_some_are_drawn_that_no_table_holds():
    draws = _draws(10**8, 1.0, 2000)
    assert max(draws) > 10**6 and min(draws) == 1 and max(draws) <= 10**8


def test_one_picture_at_a_time_waits_as_pollaczek_and_khinchine_say():
    """Arrivals by chance, a service of fixed length s at a share ρ of the time: s + ρ s / (2 (1 − ρ)) in the mean."""
    costs = Costs(calls=(1.0,), begin=0.0, end=0.0, read=0.0, merge=0.0)
    for share in (0.3, 0.6):
        load = Load(concept=lambda: 1, steps=1, pictures=6_000, rate=share)
        outcome = simulate(costs, load, Policy.MIXED, replicas=1, batch=1, queue=10_000)
        assert statistics.mean(outcome.latencies) == pytest.approx(1 + share / (2 * (1 - share)), rel=0.1)
        assert outcome.rate == pytest.approx(share, rel=0.05) and outcome.refused == 0


def test_clients_that_wait_fill_the_calls_they_share():
    costs = Costs(
        calls=tuple(1.0 + 0.1 * more for more in range(8)),
        begin=0.0,
        end=0.2,
        read=0.0,
        merge=0.0,
        around=0.0,
    )
    load = Load(concept=iter(range(10**6)).__next__, steps=STEPS, pictures=800, clients=16)
    outcome = simulate(costs, load, Policy.MIXED, replicas=1)
    seconds = STEPS * costs.call(8) + 8 * costs.end
    assert outcome.rate == pytest.approx(8 / seconds, rel=0.02)
    assert outcome.median == pytest.approx(16 / outcome.rate, rel=0.05)  # Little's law
    assert outcome.shared == pytest.approx(8, rel=0.02)


def test_twice_the_replicas_draw_twice_as_much():
    load = {"steps": STEPS, "pictures": 1600, "clients": 64}
    rates = [
        simulate(FLAT, Load(concept=lambda: 1, **load), Policy.MIXED, replicas=count).rate for count in (1, 2)
    ]
    assert rates[1] == pytest.approx(2 * rates[0], rel=0.05)


def test_where_a_call_of_eight_costs_one_rare_concepts_cost_adapters_eight_times():
    def outcome(policy):
        load = Load(concept=iter(range(10**6)).__next__, steps=STEPS, pictures=400, clients=16)
        return simulate(FLAT, load, policy, replicas=1)

    mixed, by_adapter, merged = (outcome(policy) for policy in Policy)
    assert mixed.rate == pytest.approx(8 / STEPS, rel=0.05)
    assert by_adapter.rate == pytest.approx(1 / STEPS, rel=0.02) and by_adapter.shared == 1
    assert merged.rate == pytest.approx(1 / (STEPS + FLAT.merge), rel=0.02)


def test_one_concept_makes_adapters_as_good_as_mixing():
    def rate(policy):
        return simulate(
            FLAT, Load(concept=lambda: 7, steps=STEPS, pictures=800, clients=16), policy, replicas=1
        ).rate

    assert rate(Policy.BY_ADAPTER) == pytest.approx(rate(Policy.MIXED), rel=0.02)
    assert rate(Policy.MERGED) == pytest.approx(rate(Policy.MIXED), rel=0.02)


def test_a_replica_reads_a_concept_once_while_it_holds_it_and_a_full_queue_refuses():
    numbers = iter(range(10**6))
    load = Load(concept=lambda: next(numbers) % 10, steps=1, pictures=200, clients=4)
    assert simulate(FLAT, load, Policy.MIXED, replicas=1, held=10).reads == 10
    assert simulate(FLAT, load, Policy.MIXED, replicas=1, held=9).reads == 200
    load = Load(concept=lambda: 1, steps=100, pictures=50, rate=1000.0)
    outcome = simulate(FLAT, load, Policy.MIXED, replicas=1, queue=20)
    assert outcome.refused == 30 and len(outcome.latencies) <= 20
