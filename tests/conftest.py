"""What all tests share: no network, makers of concepts and their spaces, `--require-gpu` and `--require-browser`."""

import builtins
import errno
import io
import os
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from perfusion.bundle.description import Bundle
from perfusion.bundle.reader import read_bundle
from perfusion.concept.concept_file import Concept
from perfusion.concept.edit import edited_projection

TOY_BUNDLE = Path(__file__).parent / "data" / "toy_bundle"

# Set before any test imports a hub client: nothing here may be fetched, and a try should fail at once.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
# A shell lets its background jobs ignore Ctrl-C, and every process that they start; the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    for device in ("gpu", "browser"):
        text = f"fail the {device} tests that would be skipped"
        parser.addoption(f"--require-{device}", action="store_true", help=text)
    parser.addoption("--provider", default="cpu", help="what the runtime's tests draw with: cpu or openvino")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the skip of a test of a GPU or a browser into a failure when one was said to be there."""
    report = yield
    for device in ("gpu", "browser"):
        option = f"--require-{device}"
        if report.skipped and item.get_closest_marker(device) and item.config.getoption(option):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            report.outcome = "failed"
            report.longrepr = f"skipped although {option} was given: {reason}"
    return report


class ConceptMaker(Protocol):
    """Makes a valid concept of random numbers; keywords replace fields."""

    def __call__(
        self, *, rows: int = ..., text_dim: int = ..., width: int = ..., seed: int = ..., **fields: Any
    ) -> Concept: ...


@pytest.fixture(scope="session")
def toy_bundle() -> Path:
    """A committed bundle of random weights; no test may change it."""
    return TOY_BUNDLE


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    """The toy bundle, to be broken."""
    return Path(shutil.copytree(TOY_BUNDLE, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    return read_bundle(TOY_BUNDLE)


@pytest.fixture(scope="session")
def make_concept() -> ConceptMaker:
    def make(*, rows: int = 1, text_dim: int = 8, width: int = 24, seed: int = 0, **fields: Any) -> Concept:
        random = np.random.default_rng(seed)
        samples = random.normal(size=(4 * text_dim, text_dim)) + 1  # encodings have a large common part
        covariance = samples.T @ samples / len(samples)
        direction = random.normal(size=(rows, text_dim))
        scaled = np.linalg.solve(covariance, direction.T).T  # C⁻¹ i*
        energy = np.einsum("rd,rd->r", direction, scaled)
        values: dict[str, Any] = {
            "token": "<cat>",
            "superclass": "cat",
            "base": "pocket",
            "base_fingerprint": "0123456789abcdef" * 4,
            "direction": direction,
            "dual": scaled / energy[:, None],
            "energy": energy,
            "superclass_encoding": random.normal(size=(rows, text_dim)),
            "embeddings": (random.normal(size=(rows, text_dim)),),
            "target_values": random.normal(size=(rows, width)),
            "target_keys": random.normal(size=(rows, width)),
        }
        return Concept(**(values | fields))

    return make


TEXT_DIM = 24
D_OUT = 10


@dataclass(frozen=True, kw_only=True)
class Space:
    """Encodings with their covariance, and concepts in it."""

    covariance: np.ndarray  # (text_dim, text_dim)
    direction: np.ndarray  # (J, text_dim)
    encodings: np.ndarray  # (tokens, text_dim)
    weight: np.ndarray  # (d_out, text_dim)
    targets: np.ndarray  # (J, d_out)

    @property
    def energy(self):
        return np.einsum("jd,jd->j", self.direction, self._scaled())

    @property
    def dual(self):
        return self._scaled() / self.energy[:, None]

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a concept file carries."""
        return self.direction, self.dual, self.energy

    def inner(self, a, b):
        """<a, b> = aᵀ C⁻¹ b, for all pairs of rows."""
        return a @ np.linalg.solve(self.covariance, b.T)

    def edited(self, encodings, bias, temperature, strength=None):
        """The code under test, with this space's concepts."""
        return edited_projection(
            encodings, self.weight, self.targets, *self.rows, bias, temperature, strength
        )

    def _scaled(self):
        return np.linalg.solve(self.covariance, self.direction.T).T


class SpaceMaker(Protocol):
    def __call__(
        self,
        condition_number: float = ...,
        concepts: int = ...,
        seed: int = ...,
        covariance_scale: float = ...,
    ) -> Space: ...


def _make_space(
    condition_number: float = 10.0, concepts: int = 1, seed: int = 0, covariance_scale: float = 1.0
) -> Space:
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(TEXT_DIM, TEXT_DIM)))
    spectrum = np.logspace(0, -np.log10(condition_number), TEXT_DIM) * covariance_scale
    return Space(
        covariance=(rotation * spectrum) @ rotation.T,
        direction=random.normal(size=(concepts, TEXT_DIM)),
        encodings=random.normal(size=(50, TEXT_DIM)),
        weight=random.normal(size=(D_OUT, TEXT_DIM)),
        targets=random.normal(size=(concepts, D_OUT)),
    )


@pytest.fixture(scope="session")
def make_space() -> SpaceMaker:
    return _make_space


# --- Windows, imitated


@pytest.fixture
def windows_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is written without a word on line ends gets Windows' own."""
    open_file = builtins.open

    def windows_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **more):
        text = "b" not in mode and set(mode) & set("wax+")
        newline = "\r\n" if text and newline is None else newline
        return open_file(file, mode, buffering, encoding, errors, newline, *rest, **more)

    for module in (builtins, io):
        monkeypatch.setattr(module, "open", windows_open)


class FileHeldError(PermissionError):
    """What Windows says of a file that is open: ERROR_SHARING_VIOLATION."""

    winerror = 32

    def __init__(self, path: str) -> None:
        super().__init__(errno.EACCES, "The process cannot access the file", path)


_holding_counts = False
_MOVES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1}
"""The interpreter's audit events that move, replace or remove, with the number of paths each begins with."""


def _held_paths() -> set[str]:
    """What this process has open or mapped. Lock files are left out: perfusion.locking treats them otherwise there."""
    paths = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            paths.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the listing's own
            pass
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths |= {line.split(maxsplit=5)[5].rstrip("\n") for line in maps if "/" in line}
    return {path for path in paths if not path.endswith((".lock", "/lock"))}


def _refuse_held(event: str, arguments: tuple[Any, ...]) -> None:
    if not _holding_counts or event not in _MOVES:
        return
    held = _held_paths()
    for path in arguments[: _MOVES[event]]:
        place = os.path.realpath(os.fsdecode(path))
        if any(one == place or one.startswith(place + os.sep) for one in held):
            raise FileHeldError(place)


@pytest.fixture
def held_files() -> Iterator[None]:
    """Windows' rule: no file that this process has open or mapped is moved, replaced or removed."""
    global _holding_counts
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not tell which files a process has open")
    if not _hooked:
        sys.addaudithook(_refuse_held)  # which cannot be taken away again
        _hooked.append(True)
    _holding_counts = True
    try:
        yield
    finally:
        _holding_counts = False


_hooked: list[bool] = []
