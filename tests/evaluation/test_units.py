"""Work that can be stopped at any time: what is finished stays, what is not is done again."""

import json
import os
import signal
import subprocess
import sys

import pytest

from benchmarks.evaluation.measuring import measuring_units
from benchmarks.evaluation.methods import chosen_methods
from benchmarks.evaluation.plan import FULL, SMALL, TUNING_SUBJECTS, open_work, subject_named
from benchmarks.evaluation.report import finished_methods
from benchmarks.evaluation.training import CHOSEN
from benchmarks.evaluation.tuning import MORE_RATES, choose, unmasking_units, widening_units
from benchmarks.evaluation.units import Context, Unit, duration, run_units
from benchmarks.record import ROOT
from perfusion.errors import RequestError

(METHOD,) = chosen_methods(["dreambooth"])


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


@pytest.fixture
def tuned(tmp_path):
    """Notes the score of a rate on both subjects, the better the nearer to the best."""

    def note(best, *rates):
        for subject in TUNING_SUBJECTS:
            for rate in rates:
                path = tmp_path / "tune" / METHOD.name / subject.name / f"{rate:g}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                score = {"image": 0.5, "text": 0.5, "score": -abs(rate - best)}
                path.write_text(json.dumps({"rate": rate, "scores": {"100": score}}))
        return [unit.arguments for unit in widening_units([METHOD], Context(plan=FULL, work=tmp_path))]

    return note


def test_a_grid_whose_best_rate_is_inside_is_wide_enough(tuned, tmp_path):
    low, middle, high = METHOD.rates
    assert tuned(middle, low, middle, high) == []
    found = json.loads((tmp_path / CHOSEN).read_text())[METHOD.name]
    assert (found["rate"], found["at_edge"]) == (middle, False)


@pytest.mark.parametrize("side", [0, -1])
def test_a_grid_is_widened_beyond_its_edge_while_the_best_is_there_and_not_for_ever(side, tuned, tmp_path):
    rates, step = list(METHOD.rates), METHOD.rates[side] / METHOD.rates[1]
    best = rates[side] * step**9
    asked = tuned(best, *rates)
    for _ in range(MORE_RATES):
        assert [subject for _, subject, _, _ in asked] == [one.name for one in TUNING_SUBJECTS]
        (beyond,) = {rate for _, _, rate, masks in asked if masks}
        assert beyond == pytest.approx(rates[side] * step, rel=0.1)
        rates = sorted([*rates, beyond])
        asked = tuned(best, *rates)
    assert asked == []
    found = json.loads((tmp_path / CHOSEN).read_text())[METHOD.name]
    assert (found["rate"], found["at_edge"]) == (rates[side], True)


@pytest.mark.parametrize("better", [False, True])
def test_the_best_rate_is_tried_without_masks_and_the_better_way_taken(better, tuned, tmp_path):
    _, middle, _ = METHOD.rates
    tuned(middle, *METHOD.rates)
    context = Context(plan=FULL, work=tmp_path)
    units = unmasking_units([METHOD], context)
    assert [unit.arguments for unit in units] == [
        (METHOD.name, subject.name, middle, False) for subject in TUNING_SUBJECTS
    ]
    score = {"image": 0.5, "text": 0.5, "score": 0.1 if better else -0.1}
    for unit in units:
        (tmp_path / unit.path).write_text(json.dumps({"rate": middle, "scores": {"200": score}}))
    found = choose([METHOD], context)[METHOD.name]
    assert (found["rate"], found["masks"], found["at_edge"]) == (middle, not better, False)
    assert found["steps"] == (200 if better else 100)
    assert widening_units([METHOD], context) == []
    assert unmasking_units([METHOD], context)[0].path == units[0].path


def test_a_report_shows_what_is_measured_and_asks_for_the_base_model_at_least(tmp_path):
    context, methods = Context(plan=SMALL, work=tmp_path), chosen_methods(["perfusion", "lora-4"])
    with pytest.raises(RequestError, match="expected the measures of the base model"):
        finished_methods(context, methods, SMALL.subjects)
    for some, there in (((), ()), (methods[:1], methods[:1]), (methods, methods)):
        for unit in measuring_units(some, SMALL.subjects, SMALL):
            (tmp_path / unit.path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / unit.path).touch()
        assert finished_methods(context, methods, SMALL.subjects) == there


PROGRAM = """
import sys
from pathlib import Path
from benchmarks.evaluation.plan import SMALL
from benchmarks.evaluation.units import Context, Unit, run_units

def write(context, number):
    if number == 5:
        raise ValueError("broken")
    (context.work / str(number)).touch()

if __name__ == "__main__":
    units = [Unit(path=Path(str(n)), cost=1, call=write, arguments=(n,)) for n in range(40)]
    run_units(units, Context(plan=SMALL, work=Path(sys.argv[1])), 2)
"""


@pytest.mark.slow
def test_two_processes_do_all_units_and_begin_few_after_one_has_failed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "work").mkdir()
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "work")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "ValueError: broken" in run.stderr
    done = {int(path.name) for path in (tmp_path / "work").iterdir()}
    assert set(range(5)) <= done and 5 not in done and len(done) < 10
    told = [int(line.split()[1]) for line in run.stdout.splitlines()]
    assert set(told) <= done and len(set(told)) == len(told) >= 3  # each is told when it is done, and once


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_in_the_background_can_be_stopped_and_loses_nothing_that_was_begun(stop, tmp_path):
    """A shell lets what it starts in the background ignore SIGINT."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "tune", "--small", "--processes", "2", "--work"]
    ignoring = "import os, signal, sys; signal.signal(2, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    run = subprocess.Popen(
        [sys.executable, "-c", ignoring, *command, str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert run.stdout is not None
    assert "2 of 2 to do" in run.stdout.readline()
    run.send_signal(stop)
    _, error = run.communicate(timeout=300)
    assert run.returncode == 130 and "the same command goes on" in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_name_that_is_no_subject_is_refused_with_those_that_are():
    with pytest.raises(RequestError, match=r"no subject 'cat'; choose among tuxedo-cat"):
        subject_named("cat")


def test_the_command_line_refuses_what_is_no_stage(capsys):
    from benchmarks.evaluation.__main__ import main

    with pytest.raises(SystemExit) as stopped:
        main(["trian"])
    assert stopped.value.code == 2
    assert "'trian' is none of tune, train" in capsys.readouterr().err
