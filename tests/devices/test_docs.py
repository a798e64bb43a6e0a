"""docs/devices.md against the tables, the findings and the record."""

import inspect
import json
import re
from pathlib import Path

import pytest

from perfusion.devices import PROFILES, board_check, bundle_check, doctor
from perfusion.devices.jetpack import JETPACKS
from perfusion.devices.planning.latency import CPU_ERROR
from perfusion.devices.profiles import SOURCES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
RECORDS = ROOT / "benchmarks" / "records"


def rows(benchmark):
    """The rows of a benchmark's records."""
    paths = sorted(RECORDS.glob(f"{benchmark}-*.json"))
    return [row for path in paths for row in json.loads(path.read_text())["rows"]]


MEASURED = rows("plan")
FITTING = {row["what"]: row for row in rows("fitting")}


def table(first):
    """The rows of the table whose first heading is `first`, as lists of cells."""
    lines = PAGE[PAGE.index(f"| {first} |") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_plan_was_within_a_fifth_of_every_measured_peak():
    assert len({row["what"].split(",")[0] for row in MEASURED}) >= 4
    assert max(abs(row["error"]) for row in MEASURED) <= 0.2


def test_the_estimate_was_within_its_stated_error_of_every_measured_time():
    worst = max(abs(row["seconds_error"]) for row in MEASURED)
    assert worst <= CPU_ERROR
    assert f"within {worst:.0%} of every measured time" in " ".join(PAGE.split())


def test_the_page_shows_the_record():
    shown = {row[0]: row[1:] for row in table("graph")}
    assert set(shown) == {row["what"] for row in MEASURED}
    for row in MEASURED:
        assert shown[row["what"]][:3] == [
            f"{row['peak_mib']:.0f} MiB",
            f"{row['planned_mib']:.0f} MiB",
            f"{row['error']:+.0%}",
        ]


def test_the_page_says_what_fits_on_every_profile():
    shown = {row[0]: row[1:] for row in table("device")}
    assert set(shown) == set(PROFILES)
    for name, (precision, usable, *cells) in shown.items():
        assert precision == PROFILES[name].precision
        assert usable == f"{PROFILES[name].usable / 2**30:.1f}"
        for model, cell in zip(("sd15 512", "sd21 768", "sdxl 1024", "pocket 128"), cells, strict=True):
            row = FITTING[f"{model} on {name}"]
            assert cell.startswith(f"{row['peak_mib'] / 1024:.1f}")
            assert ("no" not in cell) == row["fits"]
            assert ("by stage" in cell) == (row["fits"] and not row["all_open"])


def test_the_page_says_where_the_numbers_of_every_profile_are_from():
    shown = {key: (text, names.split(", ")) for key, text, names in table("source")}
    expected = {
        key: (text, [name for name, profile in PROFILES.items() if profile.source == key])
        for key, text in SOURCES.items()
    }
    assert shown == expected


def test_the_page_names_how_many_devices_have_no_speed():
    count = sum(profile.source == "memory" for profile in PROFILES.values())
    assert f"all but the memory of {count} cards" in " ".join(PAGE.split())


def test_the_page_calls_that_table_computed():
    assert "## What fits where: computed, not measured" in PAGE


def test_the_page_has_the_table_of_jetpacks():
    expected = [
        [
            ".".join(map(str, l4t)),
            pack.version,
            ".".join(map(str, pack.cuda)),
            ".".join(map(str, pack.tensorrt)),
        ]
        for l4t, pack in JETPACKS.items()
    ]
    assert table("Jetson Linux") == expected


def findings():
    """Every name and level in the source of the modules that make findings."""
    source = "".join(map(inspect.getsource, (doctor, board_check, bundle_check)))
    return dict(re.findall(r'name="([\w-]+)",\s+level=(?:"warning" if \w+ else )?"(\w+)"', source))


def test_the_page_lists_every_finding_with_its_level():
    assert len(findings()) > 15
    assert {row[0].strip("`"): row[1] for row in table("finding")} == findings()


@pytest.mark.parametrize("name", findings())
def test_every_finding_has_a_test(name):
    assert f'"{name}"' in (Path(__file__).parent / "test_doctor.py").read_text()
