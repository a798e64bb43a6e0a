"""From a diffusers folder to a bundle: the graphs, the tokenizer, the key projections and the manifest."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy

from perfusion.attention import installed, key_projections
from perfusion.base import BaseModel, load_base
from perfusion.errors import ExportError
from perfusion.export.convert import to_onnx
from perfusion.export.graphs import Graph, graphs_of
from perfusion.export.manifest import KEY_PROJECTIONS, MANIFEST, TOKENIZER, file_table, make_manifest
from perfusion.export.parity import TOLERANCE, check_parity
from perfusion.export.weights import exact_float16, link_weights, save, store_as_float16, stored_tensors
from perfusion.files import writing_folder

__all__ = ["PRECISIONS", "STAGES", "Exported", "export_bundle"]

PRECISIONS = ("fp32",)
STAGES = ("text encoder", "unet", "vae decoder", "vae encoder", "parity")
"""What ``progress`` is told, in this order."""

_WEIGHTS = ("text_encoder", "unet", "vae")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A bundle that was written: its folder and the content of its bundle.json."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def parity(self) -> Mapping[str, float]:
        """Relative L2 error of ONNX Runtime against torch, by graph."""
        parity: Mapping[str, float] = self.manifest["parity"]
        return parity

    @property
    def size(self) -> int:
        """Bytes of all files of the bundle but bundle.json."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())


def export_bundle(
    model: Path | str | None,
    output: Path | str,
    *,
    precision: str = "fp32",
    resolution: int | None = None,
    tolerance: float = TOLERANCE,
    progress: Callable[[str, int, int], None] | None = None,
    link_weights: bool = False,
) -> Exported:
    """Write a diffusers folder of Stable Diffusion 1.x or 2.x as a bundle for `perfusion.runtime`.

    Args:
        model: the diffusers folder; None is the embedded pocket model.
        output: the bundle's folder. It appears complete or not at all; an older bundle there is replaced.
        precision: of the graphs' arithmetic; weights that float16 holds exactly are stored so all the same.
        resolution: default width and height of pictures in pixels; None is the model's own.
        tolerance: the largest relative L2 error between ONNX Runtime and torch that passes.
        progress: called with a stage's name, how many stages are done and how many there are; at the end with
            "done".
        link_weights: ``output`` is the model's own folder, and the graphs refer to the weights in its
            safetensors files in place of holding them, so that they are stored once.

    Raises:
        ModelError: ``model`` cannot be used.
        ExportError: torch could not convert it, or the graphs' numbers differ from torch's.
        PerfusionError: ``output`` cannot be written.
    """
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is not known, expected one of {', '.join(PRECISIONS)}")
    base = load_base(None if model is None else Path(model))
    _check_exportable(base)
    output = Path(output)
    _check_output(base.folder, output, link_weights)
    # what the manifest may refuse is refused before the minutes begin
    make_manifest(base, files={}, parity={}, precision=precision, resolution=resolution)
    stage = _stages(progress)
    with _inside(base.folder) if link_weights else writing_folder(output) as folder:
        _write_tokenizer(base, folder / TOKENIZER)
        _write_key_projections(base, folder / KEY_PROJECTIONS)
        with installed(base.unet):
            parity = _write_graphs(base, folder, tolerance=tolerance, link=link_weights, stage=stage)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = file_table(folder, names)
        manifest = make_manifest(base, files=files, parity=parity, precision=precision, resolution=resolution)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    stage("done")
    return Exported(folder=output, manifest=manifest)


def _write_graphs(
    base: BaseModel, folder: Path, *, tolerance: float, link: bool, stage: Callable[[str], None]
) -> dict[str, float]:
    """Convert and write every graph, then compare each with torch; returns the errors by graph."""
    graphs = graphs_of(base)
    linkable = stored_tensors(folder, *_WEIGHTS) if link else None
    for graph in graphs:
        stage(graph.name.replace("_", " "))
        model = to_onnx(graph)
        if linkable is None:
            store_as_float16(model)
        else:
            link_weights(model, folder, linkable)
        save(model, _path(graph, folder))
    stage("parity")
    errors = {}
    for graph in graphs:
        error = check_parity(graph, _path(graph, folder), vocab_size=base.vocab_size, tolerance=tolerance)
        errors[graph.name] = float(f"{error:.1e}")  # the digits that are the same each time
    return errors


def _path(graph: Graph, folder: Path) -> Path:
    return folder / f"{graph.name}.onnx"


def _write_tokenizer(base: BaseModel, path: Path) -> None:
    """The tokenizer as the `tokenizers` package reads it; padding and truncation are left to the runtime."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(base.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    path.write_text(tokenizer.to_str(), encoding="utf-8")


def _write_key_projections(base: BaseModel, path: Path) -> None:
    """All to_k weights, (Σ key_dim, text_dim): from them a runtime derives a superclass's locked keys."""
    stacked = key_projections(base.unet).cpu().numpy()
    half = exact_float16(stacked)
    path.write_bytes(safetensors.numpy.save({"key_projections": stacked if half is None else half}))


def _check_exportable(base: BaseModel) -> None:
    """Refuse models whose UNet takes conditions that the graphs have no inputs for yet; concepts train on them."""
    if len(base.text_encoders) > 1:
        raise ExportError(
            f"{base.folder}: it has two text encoders ({base.family}), which no bundle describes yet; concepts for it "
            "can be trained and used with diffusers, export takes Stable Diffusion 1.x and 2.x"
        )
    if base.unet.config.time_cond_proj_dim is not None:
        raise ExportError(
            f"{base.folder}: its UNet reads the guidance scale (time_cond_proj_dim), as LCM does, which no bundle "
            "describes yet; export takes a model that does not"
        )


def _check_output(model: Path, output: Path, link: bool) -> None:
    """Refuse an output that would replace a model, and for linked weights any but the model's own folder."""
    source, target = model.resolve(), output.resolve()
    if link:
        if source != target:
            raise ExportError(
                f"linked weights: the output is {output}, expected the model's own folder {model}"
            )
    elif target == source or target in source.parents or (target / "model_index.json").exists():
        raise ExportError(f"{output} holds a diffusers model and would be replaced; choose another output")


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` at the end, the manifest last.

    It holds copies of the model's weights under the names they have in ``folder``, so that graphs which refer
    to them run in both places. Copies, because ONNX's tools follow no link out of a graph's folder.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        try:
            for path in sorted(path for part in _WEIGHTS for path in (folder / part).glob("*.safetensors")):
                (temporary / path.parent.name).mkdir(exist_ok=True)
                shutil.copyfile(path, temporary / path.parent.name / path.name)
            yield temporary
            # no bundle from here on, until the new one is whole
            (folder / MANIFEST).unlink(missing_ok=True)
            written = [path for path in temporary.iterdir() if path.is_file()]
            for path in sorted(written, key=lambda path: path.name == MANIFEST):
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {error.strerror or error}") from error


def _stages(progress: Callable[[str, int, int], None] | None) -> Callable[[str], None]:
    """Count the stages for ``progress``."""
    done = iter(range(len(STAGES) + 1))

    def stage(name: str) -> None:
        if progress is not None:
            progress(name, next(done), len(STAGES))

    return stage
