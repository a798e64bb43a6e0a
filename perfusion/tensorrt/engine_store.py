"""The engines of a bundle on the disk: found by their keys, checked by their checksums, written whole or not at all.

    <bundle>/engines/trt-sm87/unet-0123456789abcdef.engine  the engine
    <bundle>/engines/trt-sm87/unet-0123456789abcdef.json    its key, size and checksum; written last
    <bundle>/engines/trt-sm87/.unet-0123456789abcdef.lock   held while it is built

An engine counts only with the file beside it, so a build that was killed has left nothing. Two builds of one key are
one build: the second waits for the first and takes what it made.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.errors import PerfusionError
from perfusion.files import sha256_of, writing
from perfusion.locking import HeldError, lock
from perfusion.tensorrt.build import Built, ShapeRange
from perfusion.tensorrt.keys import EngineKey, differences, folder_name
from perfusion.tensorrt.rtx import PORTABLE

__all__ = [
    "ENGINES", "Engine", "EngineSearch", "building", "engine_damage", "engine_folder", "find_engine", "find_engines",
    "list_engines", "prune_engines", "store_engine",
]  # fmt: skip

ENGINES = "engines"
FORMAT = "perfusion-engine"
FORMAT_VERSION = 2

_MOST_BYTES = 1 << 20  # a manifest has about 2 KB
_POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that was found whole."""

    file: Path
    bytes: int
    sha256: str
    key: EngineKey
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]  # kind of number, shape with named dimensions
    outputs: Mapping[str, tuple[str, tuple[int | str, ...]]]

    @property
    def shape_ranges(self) -> tuple[ShapeRange, ...]:
        """The sizes it was built for, in the order of the engine's optimisation profiles."""
        return self.key.shape_ranges

    def range_for(self, **sizes: int) -> int | None:
        """The number of the shape range that takes these sizes by name with the least waste; None where none does.

        Fewer `concepts` than it has slots are taken: they are filled up with zeros.
        """
        fitting = [
            (ranges["batch"][2] if "batch" in ranges else 0, index)
            for index, ranges in enumerate(self.shape_ranges)
            if all(
                name in ranges and (ranges[name][0] <= size or name == "concepts") and size <= ranges[name][2]
                for name, size in sizes.items()
            )
        ]
        return min(fitting)[1] if fitting else None


@dataclass(frozen=True, kw_only=True)
class EngineSearch:
    """The engine that was found, or why each candidate is not it."""

    engine: Engine | None
    reasons: tuple[str, ...]

    def explain(self) -> str:
        """The reasons as one line."""
        return "; ".join(self.reasons) or "none has been built"


def engine_folder(bundle: Path | str, flavour: str, target: str) -> Path:
    """Where the engines of a flavour for a target lie."""
    return Path(bundle) / ENGINES / folder_name(flavour, target)


def find_engine(
    bundle: Path | str,
    graph: str,
    key: EngineKey | Mapping[str, Any],
    *,
    sizes: Mapping[str, int] | None = None,
    verify: bool = True,
) -> EngineSearch:
    """The engine of `graph` that is what is wanted, or the reasons why there is none.

    Args:
        bundle: the bundle's folder.
        graph: "unet", "text_encoder", …
        key: a whole key, or the fields of one that matter; `target` is then the GPU to run on ("sm89").
        sizes: dimensions by name that one of the engine's shape ranges must take.
        verify: compare the engine's checksum, about a second a gigabyte; its size is always compared.

    An engine for exactly that GPU is preferred to one for several, and that to a portable one. Nothing is raised for
    damaged files: they are reasons.
    """
    matching, reasons = find_engines(bundle, graph, key, sizes=sizes)
    for engine in matching:
        problem = engine_damage(engine, verify=verify)
        if problem is None:
            return EngineSearch(engine=engine, reasons=reasons)
        reasons = (*reasons, f"{engine.file.parent.name}/{engine.file.stem}: {problem}")
    return EngineSearch(engine=None, reasons=reasons)


def find_engines(
    bundle: Path | str,
    graph: str,
    key: EngineKey | Mapping[str, Any],
    *,
    sizes: Mapping[str, int] | None = None,
) -> tuple[tuple[Engine, ...], tuple[str, ...]]:
    """All engines of `graph` that by their descriptions are what is wanted, the best first, and why others are not.

    See `find_engine`; the engines' bytes are not looked at.
    """
    fields = key.to_json() | {"shape_ranges": key.shape_ranges} if isinstance(key, EngineKey) else dict(key)
    matching: list[Engine] = []
    reasons: list[str] = []
    for path in _manifests(Path(bundle), graph):
        name = f"{path.parent.name}/{path.stem}"
        engine = _read(path)
        if isinstance(engine, str):
            reasons.append(f"{name}: {engine}")
            continue
        wrong = differences(engine.key, fields)
        if isinstance(key, EngineKey) and engine.key.target != key.target:
            wrong = wrong or [f"the GPU is {engine.key.target}, expected {key.target}"]
        if not wrong and sizes and engine.range_for(**sizes) is None:
            call = ", ".join(f"{dimension} {value}" for dimension, value in sizes.items())
            wrong = [f"it was built for other sizes than {call}"]
        if wrong:
            reasons.append(f"{name}: {'; '.join(wrong)}")
        else:
            matching.append(engine)
    target = fields.get("target")
    matching.sort(key=lambda one: (_rank(one.key.target, target), *_spread(one.shape_ranges), one.file.stem))
    return tuple(matching), tuple(reasons)


def list_engines(bundle: Path | str) -> list[Engine]:
    """Every engine of a bundle that is whole by its size, for whatever GPU it is."""
    engines = [_read(path) for path in sorted((Path(bundle) / ENGINES).glob("*/*.json"))]
    return [
        engine
        for engine in engines
        if isinstance(engine, Engine) and engine_damage(engine, verify=False) is None
    ]


def engine_damage(engine: Engine, *, verify: bool = True) -> str | None:
    """What is wrong with an engine's bytes, None where nothing is. `verify`: compare the checksum, not only size."""
    try:
        size = os.stat(engine.file).st_size
        if size != engine.bytes:
            return f"the engine has {size} bytes, expected {engine.bytes}: it was cut or changed"
        if verify and sha256_of(engine.file) != engine.sha256:
            return "the engine does not have its checksum: it was damaged or changed"
    except (OSError, PerfusionError):
        return "the engine is missing or cannot be read"
    return None


def store_engine(bundle: Path | str, key: EngineKey, built: Built, facts: Mapping[str, Any]) -> Engine:
    """Write an engine and what belongs to it; `facts` are kept beside the key (how long it took, who built it).

    Raises:
        PerfusionError: the disk is full, or the folder cannot be written to.
    """
    folder = engine_folder(bundle, key.flavour, key.target)
    file, manifest = folder / f"{key.name}.engine", folder / f"{key.name}.json"
    with suppress(FileNotFoundError):
        manifest.unlink()  # of a damaged engine: while the new one is written there is none
    with writing(file) as stream:
        stream.write(built.engine)
    checksum = hashlib.sha256(built.engine).hexdigest()  # not of the file, which may be a bad copy
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "key": key.to_json(),
        "engine": {"file": file.name, "bytes": built.engine.nbytes, "sha256": checksum},
        "inputs": _ends_to_json(built.inputs),
        "outputs": _ends_to_json(built.outputs),
        "built": dict(facts),
    }
    with writing(manifest, "w") as stream:
        stream.write(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    return Engine(
        file=file,
        bytes=built.engine.nbytes,
        sha256=checksum,
        key=key,
        inputs=built.inputs,
        outputs=built.outputs,
    )


def prune_engines(bundle: Path | str, keep: Callable[[Engine], bool]) -> list[Path]:
    """Remove every engine that is damaged or that `keep` does not want, and what killed builds left.

    What is being built at this moment is left alone. Returns the engines that were removed.
    """
    removed = []
    for folder in sorted(path for path in (Path(bundle) / ENGINES).glob("*") if path.is_dir()):
        names = {path.stem for path in folder.iterdir() if path.suffix in (".json", ".engine")}
        names |= {path.name[1:].split(".")[0] for path in folder.glob(".*.partial")}
        for name in sorted(names):
            with suppress(HeldError), lock(_lock_file(folder, name)):
                _remove_leftovers(folder, name)
                engine = _read(folder / f"{name}.json")
                if isinstance(engine, Engine) and engine_damage(engine) is None and keep(engine):
                    continue
                removed += [path for path in (folder / f"{name}.engine",) if path.exists()]
                for ending in ("json", "engine", "jit"):  # the last is what TensorRT for RTX compiled from it
                    (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return removed


@contextmanager
def building(bundle: Path | str, key: EngineKey, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the right to build a key; calls `waiting` once when another process has it.

    Raises:
        PerfusionError: the folder cannot be written to.
    """
    folder = engine_folder(bundle, key.flavour, key.target)
    path = _lock_file(folder, key.name)
    with ExitStack() as stack:
        told = waiting is None
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(lock(path))
                break
            except HeldError:
                if not told and waiting is not None:
                    waiting()
                told = True
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise PerfusionError(
                    f"{folder} cannot be written: {reason}. Copy the bundle to where it can be."
                ) from error
        _remove_leftovers(folder, key.name)
        yield


def _lock_file(folder: Path, name: str) -> Path:
    return folder / f".{name}.lock"


def _remove_leftovers(folder: Path, name: str) -> None:
    """What a build that was killed has left; the lock is held, so nobody else is writing it."""
    for left in folder.glob(f".{name}.*.partial"):
        left.unlink(missing_ok=True)


def _manifests(bundle: Path, graph: str) -> list[Path]:
    """The descriptions of a graph's engines."""
    return sorted((bundle / ENGINES).glob(f"*/{graph}-*.json"))


def _read(path: Path) -> Engine | str:
    """What a manifest says; the reason where it cannot be trusted."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        values: Any = json.loads(data) if len(data) <= _MOST_BYTES else None
        if values["format"] != FORMAT or values["format_version"] != FORMAT_VERSION:
            return "it is of another format version"
        key = EngineKey.from_json(values["key"])
        engine = Engine(
            file=path.with_suffix(".engine"),
            bytes=int(values["engine"]["bytes"]),
            sha256=str(values["engine"]["sha256"]),
            key=key,
            inputs=_ends_from_json(values["inputs"]),
            outputs=_ends_from_json(values["outputs"]),
        )
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "its description cannot be read"
    if path.stem != key.name or path.parent.name != folder_name(key.flavour, key.target):
        return "its description is another engine's"
    return engine


def _rank(target: str, gpu: Any) -> int:
    return 0 if target == gpu else 2 if target == PORTABLE else 1


def _spread(shape_ranges: tuple[ShapeRange, ...]) -> tuple[int, int]:
    """How many sizes are open, and the slots for concepts: fewer of either is faster."""
    opened = sum(least != most for ranges in shape_ranges for least, _, most in ranges.values())
    return opened, max((ranges["concepts"][2] for ranges in shape_ranges if "concepts" in ranges), default=0)


def _ends_to_json(ends: Mapping[str, tuple[str, tuple[int | str, ...]]]) -> dict[str, list[Any]]:
    return {name: [kind, list(shape)] for name, (kind, shape) in ends.items()}


def _ends_from_json(values: Any) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    return {
        str(name): (str(kind), tuple(size if isinstance(size, int) else str(size) for size in shape))
        for name, (kind, shape) in values.items()
    }
