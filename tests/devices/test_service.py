"""The systemd unit of a program that draws."""

import configparser
import shlex
import shutil
import subprocess

import pytest

from perfusion.commands.devices import main
from perfusion.devices import find_profile, plan_device
from perfusion.devices.service import service_unit
from perfusion.embedded import bundle_path
from perfusion.errors import DeviceError, RequestError
from perfusion.runtime import read_bundle


@pytest.fixture(scope="module")
def plan():
    return plan_device(read_bundle(bundle_path(), verify=False), find_profile("orin-nano-8"))


class Unit(configparser.RawConfigParser):
    """A systemd unit, whose names have capitals."""

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def parsed(text):
    parser = Unit()
    parser.read_string(text)
    return parser


def test_it_starts_after_the_power_mode_and_comes_back(plan, tmp_path):
    unit = parsed(service_unit(plan, ["/opt/kiosk"], tmp_path, "me"))
    assert unit["Unit"]["After"] == "network.target nvpmodel.service"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    service = unit["Service"]
    assert (service["Restart"], service["User"], service["WorkingDirectory"]) == (
        "on-failure",
        "me",
        str(tmp_path),
    )
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_memory_is_the_plans_fullest_moment_and_room_for_the_program(plan, tmp_path):
    limit = parsed(service_unit(plan, ["/opt/kiosk"], tmp_path, "me"))["Service"]["MemoryMax"]
    assert int(limit.removesuffix("M")) * 2**20 == pytest.approx(plan.memory.peak + 2**29, abs=2**20)


def test_a_machine_that_is_no_board_waits_for_no_power_mode(tmp_path):
    plan = plan_device(read_bundle(bundle_path(), verify=False), find_profile("rtx-3060"))
    assert parsed(service_unit(plan, ["/opt/kiosk"], tmp_path, "me"))["Unit"]["After"] == "network.target"


def test_words_reach_the_program_as_they_are(plan, tmp_path):
    words = ["/opt/my kiosk/run", "50%", "$HOME", 'say "hello"', "back\\slash", "plain", ""]
    line = parsed(service_unit(plan, words, tmp_path, "me"))["Service"]["ExecStart"]
    assert shlex.split(line.replace("%%", "%").replace("$$", "$")) == words


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(
    "change, complaint",
    [
        ({}, None),
        ({"Restart=on-failure": "Restart=sometimes"}, "sometimes"),
        ({"MemoryMax": "MemoryMost"}, "Most"),
    ],
    ids=["as it is printed", "with a wrong value", "with a wrong name"],
)
def test_systemd_itself_has_no_complaint(plan, tmp_path, change, complaint):
    text = service_unit(plan, ["/bin/sh", "-c", 'echo "50%" $HOME \\'], tmp_path, "root")
    for old, new in change.items():
        text = text.replace(old, new)
    unit = tmp_path / "kiosk.service"
    unit.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in ended.stderr.splitlines() if "kiosk" in line]  # it looks at other units too
    if complaint is None:
        assert (ended.returncode, said) == (0, [])
    else:
        assert any(complaint in line for line in said), ended.stderr


@pytest.mark.parametrize(
    "command, message",
    [
        ([], "is nothing, expected its whole path"),
        (["python", "app.py"], "is 'python', expected its whole path"),
        (["/opt/kiosk", "two\nlines"], "has a line break"),
    ],
)
def test_what_systemd_would_not_start_is_refused(plan, tmp_path, command, message):
    with pytest.raises(RequestError, match=message):
        service_unit(plan, command, tmp_path, "me")


def test_a_bundle_that_does_not_fit_is_no_service(tmp_path):
    bundle = read_bundle(bundle_path(), verify=False)
    from dataclasses import replace

    plan = plan_device(
        bundle, find_profile("orin-nano-4"), replace(bundle.usual_call, width=4096, height=4096)
    )
    with pytest.raises(DeviceError, match="does not fit"):
        service_unit(plan, ["/opt/kiosk"], tmp_path, "me")


def test_the_command_prints_it(capsys, tmp_path):
    arguments = ["--device", "orin-nano-8", "--user", "me", "--folder", str(tmp_path)]
    assert main(["service", *arguments, "--", "/opt/kiosk", "--port", "80"]) == 0
    assert parsed(capsys.readouterr().out)["Service"]["ExecStart"] == "/opt/kiosk --port 80"
