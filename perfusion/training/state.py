"""Everything that an exact resume needs, in one file.

safetensors: tensors named ``group/name`` (weights by group, ``optimiser.0.1/exp_avg``, ``random/torch``) and four texts
among the metadata: ``facts``, ``optimisers`` and ``random`` as JSON, ``sha256`` over the tensors. No pickle.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from perfusion import __version__
from perfusion.errors import TrainingError
from perfusion.files import sha256_of, writing

__all__ = [
    "Checkpoint",
    "Groups",
    "check_identity",
    "identity_of",
    "read_checkpoint",
    "restore_",
    "write_checkpoint",
]

Groups = dict[str, dict[str, Tensor]]
"""Tensors by group and name."""

_CONTENT = "sha256:"


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """What a file of `write_checkpoint` holds, on the CPU."""

    groups: Groups
    facts: dict[str, Any]
    optimisers: list[dict[str, Any]]
    """The parameter groups' settings, one entry an optimiser; their tensors are among `groups`."""
    python_random: list[Any]
    """The state of Python's generator."""

    def restore(
        self,
        *,
        optimisers: Sequence[torch.optim.Optimizer],
        rng: random.Random,
        generators: Mapping[str, torch.Generator],
    ) -> None:
        """Put optimisers and random generators into the saved state; for weights see `restore_`.

        A generator that the file does not know is left alone: a GPU's, on a machine that had none.

        Raises:
            TrainingError: the state is that of other optimisers.
        """
        saved_generators = self.groups.get("random", {})
        try:
            for number, (optimiser, saved) in enumerate(zip(optimisers, self.optimisers, strict=True)):
                prefix = f"optimiser.{number}."
                state = {
                    int(group[len(prefix) :]): entry
                    for group, entry in self.groups.items()
                    if group.startswith(prefix)
                }
                optimiser.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
            version, internal, gauss = self.python_random
            rng.setstate((version, tuple(internal), gauss))
            for name, generator in generators.items():
                if name in saved_generators:
                    generator.set_state(saved_generators[name])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"The saved state does not fit this training ({error}); start over from the beginning."
            ) from error


def write_checkpoint(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    *,
    optimisers: Sequence[torch.optim.Optimizer],
    rng: random.Random,
    generators: Mapping[str, torch.Generator],
    facts: Mapping[str, Any],
) -> None:
    """Write weights, optimisers, random generators and counters; the file is whole or not there.

    Args:
        tensors: by group and name; none of the groups is called ``random`` or begins with ``optimiser.``.
        generators: torch's, by a name of the caller's.
        facts: what JSON can hold: the step, the running loss, the identity.

    Raises:
        PerfusionError: the file cannot be written.
    """
    # copies: tensors that share memory cannot be stored under two names
    flat = {
        f"{group}/{name}": value.detach().to("cpu", copy=True).contiguous()
        for group, part in tensors.items()
        for name, value in part.items()
    }
    settings = []
    for number, optimiser in enumerate(optimisers):
        state = optimiser.state_dict()
        settings.append({"param_groups": state["param_groups"]})
        for index, entry in state["state"].items():
            for name, value in entry.items():
                flat[f"optimiser.{number}.{index}/{name}"] = value.detach().to("cpu", copy=True).contiguous()
    flat |= {f"random/{name}": generator.get_state() for name, generator in generators.items()}
    metadata = {
        "facts": json.dumps(dict(facts)),
        "optimisers": json.dumps(settings),
        "random": json.dumps(rng.getstate()),
        "sha256": _digest(flat),
    }
    with writing(path) as file:
        file.write(serialise(flat, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint whole; nothing is restored yet.

    Raises:
        TrainingError: the file is missing, cut off, changed or of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            # copies: the tensors lie in a map of the file, and Windows replaces no file that is mapped
            flat = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no iterator)
        facts, optimisers, rng = (json.loads(metadata[name]) for name in ("facts", "optimisers", "random"))
        if metadata.get("sha256", "") not in ("", _digest(flat)):  # files of version 0.1 have none
            raise ValueError("its numbers are not those that were written")
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such checkpoint; start from the beginning.") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().split("\n")[0]
        raise TrainingError(
            f"{path}: the saved state is damaged ({what}); delete it and start over."
        ) from error
    groups: Groups = {}
    for full, value in flat.items():
        group, _, name = full.partition("/")
        groups.setdefault(group, {})[name] = value
    return Checkpoint(groups=groups, facts=facts, optimisers=optimisers, python_random=rng)


@torch.no_grad()
def restore_(target: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved tensors into those of the same names, in place.

    Raises:
        TrainingError: other names or shapes.
    """
    expected = {name: tuple(value.shape) for name, value in target.items()}
    present = {name: tuple(value.shape) for name, value in saved.items()}
    if expected != present:
        differing = sorted(
            name for name in expected.keys() | present.keys() if expected.get(name) != present.get(name)
        )
        name = differing[0]
        raise TrainingError(
            f"The saved state has {name} as {present.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}; "
            "start over from the beginning."
        )
    for name, value in target.items():
        value.copy_(saved[name])


def identity_of(config: Any, pictures: Iterable[Path], base: str, **more: str) -> dict[str, str]:
    """What makes two trainings the same one, as texts by name.

    Args:
        config: a dataclass of options; a path among them stands for the contents of the file or folder there.
        pictures: the files that are trained on.
        base: the base model's fingerprint.
        more: what else matters.

    Raises:
        TrainingError: a file that is named cannot be read.
    """
    identity = {}
    for option in fields(config):
        value = getattr(config, option.name)
        identity[option.name] = _content(_files(value)) if isinstance(value, Path) else str(value)
    return identity | {
        "pictures": _content(sorted(pictures)), "base model": base, "version": __version__, **more,
    }  # fmt: skip


def check_identity(saved: Mapping[str, str], expected: Mapping[str, str], free: Sequence[str] = ()) -> None:
    """Refuse to go on with a training that was another one.

    Args:
        saved: identity in the saved state.
        expected: that of the training to come.
        free: names that may differ without changing what was computed so far, such as the number of steps.

    Raises:
        TrainingError: names every setting that differs, with both values.
    """
    differing = [
        name
        for name in dict.fromkeys([*expected, *saved])
        if name not in free and saved.get(name) != expected.get(name)
    ]
    if not differing:
        return
    lines = []
    for name in differing:
        before, now = saved.get(name, "nothing"), expected.get(name, "nothing")
        unspoken = before.startswith(_CONTENT) or now.startswith(_CONTENT) or len(before + now) > 120
        lines.append(f"{name} (changed since)" if unspoken else f"{name} ({before} then, {now} now)")
    raise TrainingError(
        f"The interrupted training had other settings: {', '.join(lines)}; give the same ones to --resume, or start "
        "over without it."
    )


def _files(path: Path) -> list[Path]:
    """A file, or the files directly in a folder; nothing where there is nothing."""
    if path.is_dir():
        return sorted(inside for inside in path.iterdir() if inside.is_file())
    return [path] if path.is_file() else []


def _content(paths: Iterable[Path]) -> str:
    """A digest of files' names and bytes; wherever the files lie, equal files give equal digests."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return _CONTENT + digest.hexdigest()


def _digest(flat: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(flat):
        value = flat[name]
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # as bytes: numpy knows no bfloat16
    return digest.hexdigest()
