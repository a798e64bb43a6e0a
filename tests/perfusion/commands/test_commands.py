"""What every command does the same way: exit codes, one-line errors, progress."""

import importlib
import io
import logging
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from perfusion import Concept, __version__
from perfusion.commands import Progress, check_outputs, parser, run
from perfusion.embedded import bundle_path
from perfusion.errors import ConceptError, PerfusionError


def raising(error):
    def body():
        raise error

    return body


def test_the_bodys_number_is_the_exit_code():
    assert run("perfusion-x", lambda: 0) == 0
    assert run("perfusion-x", lambda: 1) == 1


def test_outputs_that_would_replace_one_another_or_what_is_read_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "cat.png").touch()
    (tmp_path / "link.png").symlink_to("cat.png")
    check_outputs(
        [("--a", Path("a.png")), ("--b", Path("b.png")), ("--c", None)], [("--in", Path("cat.png"))]
    )
    for other in ("a.png", "./a.png", "folder/../a.png", str(tmp_path / "a.png")):
        with pytest.raises(PerfusionError, match=r"--a and --b are the same file, .*another name for --b"):
            check_outputs([("--a", Path("a.png")), ("--b", Path(other))])
    for other in ("cat.png", "link.png"):
        with pytest.raises(PerfusionError, match="--in and --b are the same file"):
            check_outputs([("--b", Path(other))], [("--in", Path("cat.png")), ("--none", None)])
    with pytest.raises(PerfusionError, match="is a folder, expected the name of a file"):
        check_outputs([("--a", Path("folder"))])


def pairs(tmp_path):
    """Command lines of which two files are one."""
    card, other, pictures = tmp_path / "hat.png", tmp_path / "other.png", tmp_path / "pictures"
    second = tmp_path / "other-0002.png"
    sample = ["--concept", "gold-hat", "--prompt", "a <gold-hat>", "--steps", "1"]
    return {
        "generate --output --explain": [*sample, "--output", other, "--explain", other],
        "generate --explain --output": [*sample, "--count", "3", "--output", other, "--explain", second],
        "generate --concept --output": [*sample, "--concept", f"{card}:token=<a>", "--output", card],
        "generate --concept --explain": [*sample, "--concept", card, "--output", other, "--explain", card],
        "generate --image --output": [*sample, "--image", card, "--output", card],
        "generate --mask --explain": [*sample, "--mask", card, "--output", other, "--explain", card],
        "sweep --grid --plot": [*sample, "--images", pictures, "--grid", other, "--plot", other],
        "sweep --grid --csv": [*sample, "--images", pictures, "--grid", other, "--csv", other],
        "sweep --concept --grid": [*sample, "--concept", card, "--grid", card],
        "inspect --extract --heatmap": [card, "--prompt", "a", "--extract", other, "--heatmap", other],
        "inspect shown --extract": [card, "--extract", card],
        "inspect shown --heatmap": [card, "--prompt", "a", "--heatmap", card],
        "convert --checkpoint --output": ["--checkpoint", card, "--output", card],
        "convert --textual-inversion --output": ["--textual-inversion", card, "--output", card],
        "train --images --output": ["--images", tmp_path, "--superclass", "hat", "--output", card],
    }  # fmt: skip


@pytest.mark.parametrize("case", pairs(Path()))
def test_no_command_loses_one_of_two_files_of_one_name(case, tmp_path, capsys):
    card = tmp_path / "hat.png"
    Concept.load(bundle_path() / "concepts" / "gold-hat.safetensors").save(card)
    before = card.read_bytes()
    command, first, second = case.split()
    main = importlib.import_module(f"perfusion.commands.{command}").main
    assert main(list(map(str, pairs(tmp_path)[case]))) == 1
    err = capsys.readouterr().err
    assert "are the same file" in err and first in err and second in err and err.count("\n") == 1
    assert card.read_bytes() == before and os.listdir(tmp_path) == ["hat.png"]


@pytest.mark.parametrize(
    "error, code, line",
    [
        (ConceptError("It is\n  damaged."), 1, "perfusion-x: It is damaged."),
        (
            FileNotFoundError(2, "No such file or directory", "a.png"),
            1,
            "perfusion-x: a.png: no such file or directory",
        ),
        (OSError("odd"), 1, "perfusion-x: odd"),
        (MemoryError(), 1, "perfusion-x: not enough memory; close other programs or ask for a smaller size"),
        (KeyboardInterrupt(), 130, "perfusion-x: interrupted"),
    ],
)
def test_a_failure_is_one_line_on_stderr_and_an_exit_code(capsys, error, code, line):
    assert run("perfusion-x", raising(error)) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", line + "\n")


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run("perfusion-x", raising(ZeroDivisionError()))


@pytest.mark.parametrize("argument, code, meant", [
    ("--help", 0, ""), ("--version", 0, ""), ("--wrong", 2, ""), ("--qui", 2, "; did you mean --quiet?"),
])  # fmt: skip
def test_argparses_exits_become_exit_codes(capsys, argument, code, meant):
    def body():
        parser("perfusion-x", "Does x.").parse_args([argument])
        return 0

    assert run("perfusion-x", body) == code
    out, err = capsys.readouterr()
    if code == 2:
        assert err == f"perfusion-x: unrecognized arguments: {argument}{meant} (see perfusion-x --help)\n"
    if argument == "--version":
        assert out == f"perfusion-x {__version__}\n"


def test_warnings_and_log_records_are_one_line_each_and_are_undone_after(capsys):
    logger = logging.getLogger("perfusion.somewhere")

    def body():
        warnings.simplefilter("always")
        warnings.warn("the base is\nanother one", UserWarning, stacklevel=1)
        logger.warning("slow %s", "disk")
        logger.info("not shown")
        return 0

    shown = warnings.showwarning
    assert run("perfusion-x", body) == 0
    assert capsys.readouterr().err.splitlines() == [
        "perfusion-x: warning: the base is another one",
        "perfusion-x: warning: slow disk",
    ]
    assert warnings.showwarning is shown
    assert logging.getLogger("perfusion").handlers == []


@pytest.mark.parametrize("size", [1, 1_000_000])  # within Python's buffer, and beyond it
def test_a_closed_pipe_ends_quietly(size):
    code = (
        "import sys; from perfusion.commands import run\n"
        "def body():\n"
        "    sys.stdin.read()  # until the other end of the pipe is closed\n"
        f"    print('x' * {size})\n"
        "    return 0\n"
        "sys.exit(run('perfusion-x', body))"
    )
    pipe = subprocess.PIPE
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=buffered
    ) as command:
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        command.stdin.close()
        assert command.stderr.read() == b""
    assert command.returncode == 1


def shell(redirection, body, **environment):
    """What comes of a command with this body when the shell redirects its streams."""
    code = (
        "import sys; from perfusion.commands import Progress, run\n"
        f"def body():\n    {body}\n    return 0\n"
        "sys.exit(run('perfusion-x', body))"
    )
    command = ["/bin/sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, code]
    return subprocess.run(command, capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_was_closed_before_the_start_stops_no_work(redirection):
    ended = shell(redirection, "print('done'); Progress(1, 'x').__enter__().update(1)")
    assert (ended.returncode, ended.stderr) == (0, b"" if "2>" in redirection else b"x 1/1, 0:00 elapsed\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_progress_that_cannot_be_told_stops_no_work():
    ended = shell("2>/dev/full", "Progress(1, 'x').__enter__().update(1); print('done')")
    assert ended.stdout == b"done\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    "encoding, expected",
    [
        ("ascii", rb"\xe9\udcff"),
        ("utf-8:strict", b"\xc3\xa9\\udcff"),
        ("utf-8:surrogateescape", b"\xc3\xa9\xff"),
    ],
)
def test_a_name_that_stdout_cannot_show_is_escaped(encoding, expected):
    ended = shell("", r"print('\xe9\udcff')", PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, expected + b"\n", b"")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM for another process")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGBREAK"])
def test_a_command_that_is_told_to_end_leaves_nothing_half_written(tmp_path, name):
    number = signal.SIGUSR1 if name == "SIGBREAK" else getattr(signal, name)
    code = (
        "import signal, sys, time; from perfusion.commands import run; from perfusion.files import writing_folder\n"
        f"signal.{name} = signal.Signals({int(number)})  # Ctrl-Break has a signal of its own on Windows alone\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)  # nohup has it ignored, also by children\n"
        "def body():\n"
        "    with writing_folder(sys.argv[1]) as folder:\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(run('perfusion-x', body))"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert os.listdir(tmp_path)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (128 + number, "")
    assert not os.listdir(tmp_path)


def test_signals_are_as_before_after_a_command():
    before = signal.getsignal(signal.SIGTERM)

    def body():
        assert signal.getsignal(signal.SIGTERM) != before
        return 0

    assert run("perfusion-x", body) == 0
    assert signal.getsignal(signal.SIGTERM) is before


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told to."""
    now = [1000.0]
    monkeypatch.setattr("perfusion.commands.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def stderr(monkeypatch):
    """Puts a stream in the place of stderr; called inside the test, after pytest has put its own there."""

    def replace(*, terminal=False):
        stream = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return replace


def test_elsewhere_than_on_a_terminal_progress_is_a_line_every_few_seconds_and_the_last(clock, stderr):
    stream = stderr()
    with Progress(100, "training") as progress:
        for done in range(1, 101):
            clock[0] += 0.25
            progress.update(done, loss=f"{1 / done:.2f}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 20/100, 0:05 elapsed, 0:20 left, loss 0.05"
    assert lines[-1] == "training 100/100, 0:25 elapsed, loss 0.01"
    assert len(lines) == 5


# TERM
def test_on_a_terminal_progress_is_one_line_drawn_over_and_over(clock, stderr, monkeypatch):
    stream = stderr(terminal=True)
    monkeypatch.setenv("COLUMNS", "60")
    with Progress(10, "drawing") as progress:
        for done in range(1, 11):
            clock[0] += 61
            progress.update(done)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    frames = text.rstrip("\n").split("\r")[1:]
    assert len(frames) == 10
    assert all(len(frame) == 59 for frame in frames)
    assert frames[4].startswith("drawing [############............] 5/10, 5:05 elapsed")


# TERM
def test_a_terminal_is_not_redrawn_more_often_than_eyes_can_follow(clock, stderr):
    stream = stderr(terminal=True)
    with Progress(1000, "drawing") as progress:
        for done in range(1000):
            clock[0] += 0.001
            progress.update(done)
    assert 5 <= stream.getvalue().count("\r") <= 11


# TERM
def test_a_message_is_not_written_into_the_bar(clock, stderr):
    stream = stderr(terminal=True)

    def body():
        with Progress(10, "drawing") as progress:
            progress.update(1)
            logging.getLogger("perfusion").warning("careful")
        return 0

    run("perfusion-x", body)
    assert stream.getvalue().endswith("\rperfusion-x: warning: careful\n"), "nor a blank line at the end"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_progress_says_nothing(clock, stderr, terminal):
    stream = stderr(terminal=terminal)
    with Progress(2, "drawing", quiet=True) as progress:
        clock[0] += 60
        progress.update(1)
        progress.update(2)
    assert stream.getvalue() == ""


def test_the_time_left_of_a_resumed_work_is_judged_by_this_runs_speed(clock, stderr):
    stream = stderr()
    with Progress(400, "training") as progress:
        clock[0] += 100  # to load the model
        progress.update(300)
        clock[0] += 3700
        progress.update(350)
    lines = stream.getvalue().splitlines()
    assert lines == ["training 300/400, 1:40 elapsed", "training 350/400, 1:03:20 elapsed, 1:01:40 left"]


def test_no_work_at_all_is_done_at_once(clock, stderr):
    stream = stderr()
    with Progress(0, "drawing") as progress:
        progress.update(0)
    assert stream.getvalue() == "drawing 0/0, 0:00 elapsed\n"


def test_a_package_of_the_training_that_is_not_installed_is_named(capsys):
    assert run("perfusion-x", raising(ModuleNotFoundError("No module named 'torch'", name="torch.nn"))) == 1
    assert (
        capsys.readouterr().err
        == 'perfusion-x: Needs the package torch. Run pip install "perfusion-edge[train]".\n'
    )
    with pytest.raises(ModuleNotFoundError):  # a bug of ours stays one
        run("perfusion-x", raising(ModuleNotFoundError("No module named 'nothing'", name="nothing")))
