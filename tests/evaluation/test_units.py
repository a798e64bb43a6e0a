"""Work that can be stopped at any time: what is finished stays, what is not is done again."""

import json

import pytest

from benchmarks.evaluation.plan import FULL, SMALL, open_work, subject_named
from benchmarks.evaluation.units import Context, Unit, duration, run_units
from perfusion.errors import RequestError


def work(context, name, fail=False):
    """A unit of this test; a function of a module, so that other processes find it."""
    with (context.work / "log").open("a") as log:
        log.write(f"{name} ")
    if fail and not (context.work / "mended").exists():
        raise RequestError("broken")
    (context.work / name).write_text(name)


def units(tmp_path, *, broken=()):
    from pathlib import Path

    return [
        Unit(path=Path(name), cost=1, call=work, arguments=(name, name in broken)) for name in ("a", "b", "c")
    ]


def log(folder):
    return (folder / "log").read_text().split()


def test_a_second_run_does_nothing_and_a_lost_file_is_made_again(tmp_path):
    context, said = Context(plan=SMALL, work=tmp_path), list[str]()
    run_units(units(tmp_path), context, 1, said.append)
    run_units(units(tmp_path), context, 1, said.append)
    assert log(tmp_path) == ["a", "b", "c"]
    (tmp_path / "b").unlink()
    run_units(units(tmp_path), context, 1, said.append)
    assert log(tmp_path) == ["a", "b", "c", "b"]
    assert len(said) == 4


def test_what_was_finished_before_a_failure_stays_and_the_next_run_goes_on(tmp_path):
    context = Context(plan=SMALL, work=tmp_path)
    with pytest.raises(RequestError, match="broken"):
        run_units(units(tmp_path, broken="b"), context, 1, lambda line: None)
    assert (tmp_path / "a").exists()
    (tmp_path / "mended").touch()
    run_units(units(tmp_path, broken="b"), context, 1, lambda line: None)
    assert log(tmp_path) == ["a", "b", "b", "c"]


def test_a_unit_that_leaves_no_file_is_a_bug_and_is_said_to_be_one(tmp_path):
    from pathlib import Path

    unit = Unit(path=Path("nothing"), cost=1, call=work, arguments=("other",))
    with pytest.raises(RuntimeError, match="nothing was not written"):
        run_units([unit], Context(plan=SMALL, work=tmp_path), 1, lambda line: None)


def test_a_line_says_what_was_done_and_how_long_is_left(tmp_path):
    said = list[str]()
    run_units(units(tmp_path), Context(plan=SMALL, work=tmp_path), 1, said.append)
    assert said[0].startswith("1/3  a  0 s; ")
    assert said[-1] == "3/3  c  0 s; 0 s left in this stage"
    assert [duration(seconds) for seconds in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]


def test_a_folder_holds_one_plan(tmp_path):
    open_work(tmp_path, SMALL)
    open_work(tmp_path, SMALL)
    assert json.loads((tmp_path / "plan.json").read_text())["steps"] == SMALL.steps
    with pytest.raises(RequestError, match="another plan"):
        open_work(tmp_path, FULL)


def test_a_name_that_is_no_subject_is_refused_with_those_that_are():
    with pytest.raises(RequestError, match=r"no subject 'cat'; choose among tuxedo-cat"):
        subject_named("cat")


def test_the_command_line_refuses_what_is_no_stage(capsys):
    from benchmarks.evaluation.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "'trian' is none of tune, train" in capsys.readouterr().err
