"""What every command shares: one way to parse, to fail and to report progress. Standard library only.

A command is a module with `main(argv) -> int` and nothing heavy at module level:

    def main(argv: list[str] | None = None) -> int:
        return run("perfusion-inspect", lambda: _inspect(_parser().parse_args(argv)))

Parsing belongs inside the body: `run` turns argparse's exits into exit codes too. Exit codes: 0 done, 1 could
not (one line on stderr), 2 wrong command line, 130 interrupted.
"""

import argparse
import difflib
import logging
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

from perfusion import __version__
from perfusion.errors import PerfusionError
from perfusion.numerals import decimal

__all__ = ["Progress", "check_outputs", "clock", "parser", "run", "say", "told_waits"]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and who reads 0,5 as 0.5."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", float, _decimal)  # of every option that says type=float

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{self._meant(message)} (see {self.prog} --help)\n")

    def _meant(self, message: str) -> str:
        """For an option that is none: the one like it, of this command or of its actions."""
        words = message.removeprefix("unrecognized arguments: ").split()
        if words == message.split() or not words[0].startswith("--"):
            return ""
        names = [name.removeprefix("--") for name in self._names()]  # dashes make any two options alike
        near = difflib.get_close_matches(words[0].partition("=")[0].removeprefix("--"), names, n=1)
        return f"; did you mean --{near[0]}?" if near else ""

    def _names(self) -> list[str]:
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += [name for part in action.choices.values() for name in part._option_string_actions]
        return names


def _decimal(text: str) -> float:
    try:
        return decimal(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for command `name`, with `--version` and `--quiet`."""
    command = _Parser(prog=name, description=description, allow_abbrev=False)
    command.add_argument("--version", action="version", version=f"{name} {__version__}")
    command.add_argument(
        "--quiet", action="store_true", help="no progress on stderr; warnings and errors stay"
    )
    return command


def run(name: str, body: Callable[[], int]) -> int:
    """Run a command's body and return its exit code, telling failures in one line on stderr.

    An exception that is none of `PerfusionError`, `OSError`, `MemoryError` is a bug of ours: it passes, so
    that its traceback is seen.
    """
    _prepare_streams()
    try:
        with _one_line_warnings(name), _tidy_end():
            code = body()
            sys.stdout.flush()  # here, where a closed pipe is still ours to handle
            return code
    except SystemExit as exit:  # argparse: --help, --version, a wrong command line
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except KeyboardInterrupt:
        say(f"{name}: interrupted")
        return 130
    except PerfusionError as error:
        say(f"{name}: {_one_line(error)}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAINING_PACKAGES:
            raise
        say(f'{name}: Needs the package {package}. Run pip install "perfusion-edge[train]".')
    except BrokenPipeError:
        _drop_stdout()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{name}: {where}{(error.strerror or _one_line(error)).lower()}")
    except MemoryError as error:
        detail = f" ({_one_line(error)})" if str(error) else ""
        say(f"{name}: not enough memory{detail}; close other programs or ask for a smaller size")
    return 1


_TRAINING_PACKAGES = ("torch", "diffusers", "transformers", "accelerate")
"""What an install for drawing alone has not."""


_Option = tuple[str, Path | None]
"""An option and the file it names, None where it was not given."""


def check_outputs(outputs: Iterable[_Option], inputs: Iterable[_Option] = ()) -> None:
    """Refuse, before the work, outputs that cannot be written, that would replace one another, or what is read.

    Raises:
        PerfusionError: which options, and why.
    """
    from perfusion.files import check_writable

    options = {_place(path): option for option, path in inputs if path is not None}
    for option, path in outputs:
        if path is None:
            continue
        check_writable(path)
        other = options.setdefault(_place(path), option)
        if other is not option:
            raise PerfusionError(
                f"{other} and {option} are the same file, {path}, and what one of them holds would be lost. Choose "
                f"another name for {option}."
            )


def _place(path: Path) -> str:
    """The same for every way to write a file's name."""
    return os.path.normcase(os.path.realpath(path))


class Progress:
    """How far a piece of work is: a bar on a terminal, a plain line every few seconds elsewhere, on stderr.

        with Progress(400, "training", quiet=args.quiet) as progress:
            for step in ...:
                progress.update(step, loss=f"{loss:.4f}")

    `done` counts units of `total`. The time left is estimated from the first update on: what came before it
    was loading, or was done by the work that is resumed.
    """

    def __init__(self, total: int, label: str, quiet: bool = False) -> None:
        self.total, self.label, self.quiet = total, label, quiet
        self._stream: TextIO = sys.stderr
        self._terminal = False
        self._began = self._shown = 0.0
        self._first: tuple[int, float] | None = None
        self._line: str | None = None

    def __enter__(self) -> "Progress":
        global _drawing
        self._stream = sys.stderr
        self._terminal = self._stream.isatty()
        self._began = time.monotonic()
        self._shown = self._began - (_REDRAW_SECONDS if self._terminal else 0)
        _drawing = self
        return self

    def update(self, done: int, **fields: str) -> None:
        """Say that `done` of `total` are done; `fields` are shown behind the times, in their order."""
        now = time.monotonic()
        self._first = self._first or (done, now)
        due = now - self._shown >= (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS)
        if self.quiet or not (due or done >= self.total):
            return
        self._shown = now
        line = self._describe(done, now, fields)
        if self._terminal:
            self._draw(line)
        elif line != self._line:
            self._write(line + "\n")
        self._line = line

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _drawing
        _drawing = None
        if self._terminal and self._line is not None:
            self._write("\n")

    def _write(self, text: str) -> None:
        """Nobody reading along any more is no reason to stop the work."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self.quiet = True

    def _describe(self, done: int, now: float, fields: dict[str, str]) -> str:
        """One line: the label, a bar on a terminal, the count, both times, the fields."""
        times = f"{clock(now - self._began)} elapsed"
        start, began = self._first or (done, now)
        if start < done < self.total:
            times += f", {clock((now - began) / (done - start) * (self.total - done))} left"
        share = min(max(done / self.total, 0.0), 1.0) if self.total > 0 else 1.0
        bar = f"[{'#' * round(share * _BAR):.<{_BAR}}] " if self._terminal else ""
        return ", ".join(
            [
                f"{self.label} {bar}{done}/{self.total}",
                times,
                *(f"{key} {value}" for key, value in fields.items()),
            ]
        )

    def _draw(self, line: str) -> None:
        """Replace the line the cursor is in, cut to the terminal's width so that it never wraps."""
        width = shutil.get_terminal_size().columns - 1
        self._write("\r" + line[:width].ljust(width))

    def _wipe(self) -> None:
        """Make room for a message; the next update draws the bar again."""
        if self._terminal and self._line is not None:
            self._write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._line = None


_drawing: Progress | None = None  # the bar that a message must not be written into
_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 5.0
_BAR = 24


def clock(seconds: float) -> str:
    """Seconds as 1:02 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _one_line(value: object) -> str:
    """The text of an error or a message with its line breaks removed."""
    return " ".join(str(value).split())


def say(line: str) -> None:
    """Write one line on stderr, above a bar that is being drawn."""
    if _drawing is not None:
        _drawing._wipe()
    with suppress(OSError):  # a closed pipe: nobody is there to be told
        print(line, file=sys.stderr, flush=True)


@contextmanager
def told_waits(name: str, *, quiet: bool) -> Iterator[None]:
    """Say what the library takes its time for, such as compiling a graph, as lines of command `name` on stderr."""
    logger = logging.getLogger("perfusion.waits")
    level, handler = logger.level, _LineHandler(lambda _, text: say(f"{name}: {text}"), logging.INFO)
    if not quiet:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _prepare_streams() -> None:
    """Standard streams that can be written to whatever the caller has done with them.

    Python makes a stream that was closed (`>&-`) None. A character that stdout's encoding lacks, or a byte of
    a path that is not UTF-8, is written as an escape.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the exit)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # a test's capture may have none
    if reconfigure is not None and not (sys.stdout.encoding == "utf-8" and sys.stdout.errors != "strict"):
        reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Let what is left in the buffer go nowhere, so that Python does not complain at its exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is not a file of the system (a test's capture)
        pass


@contextmanager
def _tidy_end() -> Iterator[None]:
    """Let SIGTERM, Ctrl-Break and a lost terminal end the command by an exception, so that half-written files go."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
    # one that is ignored, as under nohup, stays so; and only the main thread may set any
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _one_line_warnings(name: str) -> Iterator[None]:
    """Show warnings, and what our loggers say from WARNING on, as `name: warning: message`, each message once: what is
    odd about sixty pictures is told for the first of them."""
    lines = set[str]()

    def say_once(level: str, message: object) -> None:
        line = f"{name}: {level}: {_one_line(message)}"
        if line not in lines:
            lines.add(line)
            say(line)

    def show(message: Warning | str, *_: object, **__: object) -> None:
        say_once("warning", message)

    logger = logging.getLogger("perfusion")
    handler = _LineHandler(say_once)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)


class _LineHandler(logging.Handler):
    """Writes a record's message as one line; for tracebacks and times, add a handler of your own."""

    def __init__(self, say_line: Callable[[str, object], None], level: int = logging.WARNING) -> None:
        super().__init__(level)
        self._say = say_line

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.levelname.lower(), record.getMessage())
