"""What a record of plans says of devices that it lacks."""

import pytest

from benchmarks.fitting import implied
from perfusion.bundle.call_size import CallSize
from perfusion.bundle.reader import read_bundle
from perfusion.devices import PROFILES
from perfusion.devices.planning.memory_plan import plan_memory
from perfusion.embedded import bundle_path


def row(name, **changes):
    usable = round(PROFILES[name].usable / 2**20)
    facts = {"fits": True, "all_open": True, "tile": None, "peak_mib": 4000, "usable_mib": usable}
    return {"what": f"sd15 512 on {name}", **facts, **changes}


@pytest.mark.parametrize(
    ("changes", "device", "said"),
    [
        ({}, "rtx-a6000", True),  # all of it is open in 12 GB, so it is in 48
        ({"all_open": False}, "rtx-a6000", False),
        ({"tile": 64}, "rtx-a6000", False),
        ({"fits": False}, "rtx-a6000", False),
        ({"fits": False}, "rtx-4070-super", True),  # of the same memory
        ({}, "rtx-3070-ti", False),  # of less
        ({}, "cpu", False),  # of another precision
    ],
)
def test_a_plan_is_implied_by_the_same_memory_or_by_less_in_which_all_is_open(changes, device, said):
    found = implied("sd15", PROFILES[device], [row("rtx-3060", **changes)])
    assert (found is not None) == said
    if found:
        assert found["what"] == f"sd15 512 on {device}"
        assert found["usable_mib"] == round(PROFILES[device].usable / 2**20)


@pytest.mark.parametrize("side", [512, 1024, 1536])
def test_what_is_implied_is_what_is_planned(side):
    """A plan reads nothing of a device but its memory, its precision and whether it has a GPU."""
    bundle = read_bundle(bundle_path())
    size = CallSize(width=side, height=side)
    names = ("rtx-2060", "rtx-3060-laptop", "rtx-3070", "t4", "rtx-a6000")
    planned = [_planned(bundle, size, PROFILES[name]) for name in names]
    for name, expected in zip(names, planned, strict=True):
        others = [row for row in planned if row is not expected]
        found = implied("sd15", PROFILES[name], others)
        assert found in (None, expected)
    assert implied("sd15", PROFILES[names[1]], planned[:1]) == planned[1]


def _planned(bundle, size, profile):
    plan = plan_memory(bundle, size, budget=profile)
    return row(
        profile.name, peak_mib=round(plan.peak / 2**20), fits=plan.fits, tile=plan.tile,
        all_open=len(set(plan.resident.values())) == 1,
    )  # fmt: skip
