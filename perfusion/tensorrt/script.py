"""A build script to carry to a device: one Python file with everything in it, beside the bundle's graphs.

The device needs TensorRT and nothing else. The script holds the modules of this package that build and store engines,
word for word, so what is built there is what `perfusion-export` would have built, under the same names.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from perfusion import __version__
from perfusion.errors import DeviceError
from perfusion.files import writing
from perfusion.tensorrt.build import BuildOptions
from perfusion.tensorrt.engine_store import find_engine
from perfusion.tensorrt.engines import EngineJob, EngineSettings, build_engines, room_for
from perfusion.tensorrt.flavour import import_tensorrt
from perfusion.tensorrt.keys import folder_name

__all__ = ["build_from_recipe", "script_text", "write_script"]

_SECONDS = 10
_MODULES = (
    *("errors", "locking", "files"),
    *("tensorrt.interrupts", "tensorrt.rtx", "tensorrt.logger", "tensorrt.build", "tensorrt.driver"),
    *("tensorrt.flavour", "tensorrt.targets", "tensorrt.keys", "tensorrt.engine_store"),
    *("tensorrt.build_cores", "tensorrt.engines", "tensorrt.script"),
)
"""What the script carries, each after the modules that it imports. The jobs say what it needs to know of the bundle."""

_HEAD = '''#!/usr/bin/env python3
"""Build the TensorRT engines of the bundle this file lies in, on the device that will run them.

    python3 {name} [--dry-run] [--help]

It needs Python 3.10 or newer and TensorRT {oldest} or newer, which a Jetson has from JetPack. Nothing is
downloaded. Engines that are there and fit are kept. Made by perfusion-edge {version} for {target}; the sources below
are its own modules, unchanged.
"""

import sys
import types

RECIPE = r"""{recipe}"""

SOURCES = {{
'''

_TAIL = '''}


def load(name, source):
    """Make a module of this file's own sources, also where the package itself is installed."""
    module = types.ModuleType(name)
    module.__dict__["__file__"] = f"{__file__}:{name}"
    sys.modules[name] = module
    parent, _, last = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], last, module)
    exec(compile(source, f"<{name}>", "exec"), module.__dict__)


if __name__ == "__main__":
    for name, source in SOURCES.items():
        load(name, source)
    sys.exit(sys.modules["perfusion.tensorrt.script"].build_from_recipe(RECIPE, __file__, sys.argv[1:]))
'''


def write_script(bundle: Path | str, jobs: Sequence[EngineJob], settings: EngineSettings) -> Path:
    """Write the build script of a bundle's engines into the bundle's folder; its path.

    Raises:
        PerfusionError: the folder cannot be written to.
    """
    path = Path(bundle) / f"build_engines_{folder_name(settings.flavour, settings.target)}.py"
    with writing(path, "w") as file:
        file.write(script_text(jobs, settings, path.name))
    return path


def script_text(jobs: Sequence[EngineJob], settings: EngineSettings, name: str) -> str:
    """The script, as text."""
    recipe = {"jobs": [job.to_json() for job in jobs], "settings": asdict(settings)}
    head = _HEAD.format(
        name=name,
        oldest="10.3",
        version=__version__,
        target=settings.target,
        recipe=json.dumps(recipe, indent=1),
    )
    package = f"__version__ = {__version__!r}\n"
    sources = {"perfusion": package, "perfusion.tensorrt": ""}
    sources |= {f"perfusion.{module}": _source(f"perfusion.{module}") for module in _MODULES}
    return head + "".join(f"    {name!r}: {_literal(source)},\n" for name, source in sources.items()) + _TAIL


def build_from_recipe(recipe: str, script: str, arguments: Sequence[str] = ()) -> int:
    """What the script does: build the engines of the bundle it lies in, or show them. Returns the exit code."""
    facts = json.loads(recipe)
    jobs = [EngineJob.from_json(job) for job in facts["jobs"]]
    options = BuildOptions(**facts["settings"].pop("options"))
    settings = EngineSettings(**facts["settings"], options=options)
    path = Path(script).resolve()
    args = _parser(path.name, settings).parse_args(list(arguments))
    if args.dry_run:
        _show(path.parent, jobs, settings)
        return 0
    try:
        trt = import_tensorrt("trt" if settings.flavour == "trt" else "trt-rtx")
        outcomes = build_engines(trt, path.parent, jobs, settings, progress=_Shown())
    except Exception as error:
        if type(error).__module__ != DeviceError.__module__:
            raise
        sys.stderr.write(f"{path.name}: {' '.join(str(error).split())}\n")
        return 1
    for outcome in outcomes:
        done = f"built in {outcome.seconds:.0f} s" if outcome.built else "was there"
        sys.stdout.write(f"{outcome.engine.file}: {outcome.engine.bytes / 1e6:.1f} MB, {done}\n")
    size = sum(outcome.engine.bytes for outcome in outcomes) / 1e6
    seconds = sum(outcome.seconds for outcome in outcomes)
    sys.stdout.write(
        f"{len(outcomes)} engines, {size:.1f} MB, {seconds:.0f} s. Next: {_next(path.parent, settings)}\n"
    )
    return 0


def _parser(name: str, settings: EngineSettings) -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog=name,
        description=f"Build the TensorRT engines of the bundle that this file lies in, for {settings.target} in "
        f"{settings.precision}. Engines that are there and fit are kept, and a build that is killed leaves nothing "
        "that looks finished.",
        epilog="It takes minutes a graph, on a small board up to an hour. Close other programs first.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="show what would be built, and how large it may get; build nothing",
    )
    return command


def _show(bundle: Path, jobs: Sequence[EngineJob], settings: EngineSettings) -> None:
    """What would be built, without TensorRT."""
    fields = {"flavour": settings.flavour, "target": settings.target, "precision": settings.precision}
    total = 0
    for job in jobs:
        wanted = fields | {"graph_sha256": job.sha256, "shape_ranges": job.shape_ranges}
        there = find_engine(bundle, job.graph, wanted).engine
        total += 0 if there else room_for(bundle, job)
        state = (
            f"is there, {there.bytes / 1e6:.1f} MB"
            if there
            else f"up to {room_for(bundle, job) / 1e6:.0f} MB"
        )
        sys.stdout.write(f"{job.graph}: {state}\n")
        for sizes in job.shape_ranges:
            most = ", ".join(f"{dimension} {ends[-1]}" for dimension, ends in sizes.items())
            sys.stdout.write(f"  {most}\n")
    free = shutil.disk_usage(bundle).free
    sys.stdout.write(f"Up to {total / 1e9:.1f} GB in all, and {free / 1e9:.1f} GB are free.\n")


def _next(bundle: Path, settings: EngineSettings) -> str:
    """The command that draws with the engines."""
    command = ["perfusion-generate", "--bundle", str(bundle), "--provider", settings.flavour]
    return shlex.join([*command, "--prompt", "a cat on a beach", "--output", "cat.png"])


class _Shown:
    """Progress as lines on stderr: one for each graph, and one every ten seconds."""

    def __init__(self) -> None:
        self.graph, self.due = "", 0.0

    def __call__(self, graph: str, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if graph != self.graph or now >= self.due:
            self.graph, self.due = graph, now + _SECONDS
            sys.stderr.write(f"{graph}: {phase} {done}/{total}\n")


def _source(module: str) -> str:
    """A module's own text."""
    spec = importlib.util.find_spec(module)
    loader: Any = spec.loader if spec else None
    source = loader.get_source(module) if loader else None
    if source is None:
        raise DeviceError(f"The source of {module} is not installed, so that no script can be written.")
    return str(source)


def _literal(source: str) -> str:
    """A text as a Python literal that reads like the text."""
    if "'''" in source or source.endswith("\\"):
        return repr(source)
    return f"r'''{source}'''"
