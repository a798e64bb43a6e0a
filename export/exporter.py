"""From a diffusers folder to a bundle: the graphs, the tokenizer, the key projections and the manifest."""

from __future__ import annotations

import gc
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.numpy

from perfusion.base.attention import install, key_projections
from perfusion.base.base_model import BaseModel
from perfusion.base.model_options import ModelOptions
from perfusion.bundle.names import KEY_PROJECTIONS, MANIFEST, TOKENIZER, UNET_CONTROLNET
from perfusion.errors import ExportError
from perfusion.export.control_parts import (
    control_entry,
    control_graphs,
    is_control,
    local_controlnets,
    places_of,
    room_for_control,
    with_control,
)
from perfusion.export.convert import OPSET, check_opset, to_onnx
from perfusion.export.graph_modules import Graph, graphs_of
from perfusion.export.half import check_places, in_half, kept_places
from perfusion.export.keep_engines import keep_engines
from perfusion.export.manifest import file_table, make_manifest
from perfusion.export.preview import fit_latent_rgb
from perfusion.export.proof.parity import TOLERANCES, DivergenceError, compare, explain
from perfusion.export.proof.probe import Probe, make_probe, probe
from perfusion.export.proof.trials import make_trials
from perfusion.export.quantize import quantize
from perfusion.export.source import check_room, open_model
from perfusion.export.weights import (
    exact_float16,
    forget_weights,
    link_weights,
    save,
    share_weights,
    store_as_float16,
    stored_tensors,
)
from perfusion.files import writing_folder
from perfusion.hub import local_model

__all__ = ["PRECISIONS", "STAGES", "Exported", "export_bundle"]

PRECISIONS = tuple(TOLERANCES)
STAGES = ("text encoder", "unet", "vae decoder", "vae encoder", "bundle")
"""What ``progress`` is told, in this order. Each graph is converted, written and held against torch in its stage; the
graphs of ControlNets have stages of their own."""

_WEIGHTS = ("text_encoder", "text_encoder_2", "unet", "vae")
_QUANTIZED = ("text_encoder", "text_encoder_2", "unet", UNET_CONTROLNET)
"""A VAE is convolutions, which stay as they are, and what a ControlNet adds is to be exact."""


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


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What was asked for, checked."""

    precision: str
    opset: int
    keep_fp32: tuple[str, ...]
    resolution: int | None
    tolerance: float
    link: bool


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that is to be written, and the only hold on the model: its parts go with the graphs, one after the other."""

    settings: _Settings
    places: tuple[str, ...]
    """What stays in float32, see `perfusion.export.half`."""
    manifest: dict[str, Any]
    tokenizer: str
    vocab_sizes: tuple[int, ...]
    probe: Probe | None
    graphs: list[Graph]
    reopen: Callable[[str], Graph]


def export_bundle(
    model: Path | str | None,
    output: Path | str,
    *,
    precision: str = "fp32",
    opset: int = OPSET,
    keep_fp32: Sequence[str] = (),
    resolution: int | None = None,
    tolerance: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    link_weights: bool = False,
    config: Path | str | None = None,
    options: ModelOptions | None = None,
    controlnets: Mapping[str, Path | str] | None = None,
) -> Exported:
    """Write a Stable Diffusion 1.x, 2.x or XL model, or one distilled from them, as a bundle for `perfusion.runtime`.

    One part of the model is worked on at a time, and dropped before ONNX Runtime opens what was made of it.

    Args:
        model: the diffusers folder, or a single-file checkpoint; None is the embedded pocket model.
        output: the bundle's folder. It appears complete or not at all; an older bundle there is replaced, but for
            the engines of graphs that came out the same.
        precision: of the graphs' arithmetic: "fp32"; "fp16", for GPUs; "int8", which is fp32 with the matrix products
            of text encoders and UNet in eight bits, for CPUs. Weights that float16 holds exactly are stored so in all.
        opset: of ONNX; 23 has attention as one operator, for engines that know it.
        keep_fp32: with fp16, what else stays in float32 than is known to need it: graphs ("vae_decoder"), modules
            ("unet.mid_block") or the attention scores of one ("unet.attention").
        resolution: default width and height of pictures in pixels; None is the model's own.
        tolerance: the largest relative L2 error between ONNX Runtime and torch that passes; None is the precision's.
        progress: called with a stage's name, how many stages are done and how many there are; at the end with
            "done".
        link_weights: ``output`` is the model's own folder, and the graphs refer to the weights in its
            safetensors files in place of holding them, so that they are stored once.
        config: for a single file, the folder of a model of the same architecture; None: its family's settings.
        options: what you know of the model better than its files.
        controlnets: by the name that each is to have, the folder, file or name on the hub of a ControlNet.

    Raises:
        ModelError: ``model`` cannot be used.
        ExportError: torch could not convert it, the graphs' numbers differ from torch's or are none, or the disk has
            too little room.
        PerfusionError: ``output`` cannot be written.
    """
    _check_settings(precision, opset, keep_fp32, link_weights)
    source, settled = (None if path is None else Path(path) for path in (model, config))
    source = source and local_model(source)
    output = Path(output)
    plan = _plan(
        partial(open_model, source, settled, options),
        local_controlnets(controlnets or {}),
        output,
        _Settings(
            precision=precision,
            opset=opset,
            keep_fp32=tuple(keep_fp32),
            resolution=resolution,
            tolerance=TOLERANCES[precision] if tolerance is None else tolerance,
            link=link_weights,
        ),
    )
    stage = _stages(progress, len(STAGES) + sum(map(is_control, plan.graphs)))
    with _inside(output) if link_weights else writing_folder(output) as folder:
        (folder / TOKENIZER).write_text(plan.tokenizer, encoding="utf-8", newline="\n")
        paths, parity, latent_rgb = _write_graphs(plan, folder, stage)
        stage("bundle")
        if plan.probe is not None:
            probe(plan.probe, paths)
        plan.manifest["vae"]["latent_rgb"] = latent_rgb
        plan.manifest["parity"] = parity
        _write_manifest(plan.manifest, folder)
        if not link_weights:  # which replaces nothing
            keep_engines(output, folder)
    stage("done")
    return Exported(folder=output, manifest=plan.manifest)


def _plan(
    open_base: Callable[[], BaseModel], controlnets: Mapping[str, Path], output: Path, settings: _Settings
) -> _Plan:
    """Open the model and refuse what can be refused before the minutes begin."""
    base = open_base()
    control = control_graphs(base, controlnets)
    _check_output(base.folder, output, settings.link)
    manifest = make_manifest(
        base,
        precision=settings.precision,
        resolution=settings.resolution,
        opset=settings.opset,
        keep_fp32=settings.keep_fp32,
        files={},
        parity={},
    )
    install(base.unet)
    if control:
        manifest["controlnets"] = control_entry(control, controlnets)
    graphs = with_control(graphs_of(base), control)
    check_places(graphs, settings.keep_fp32)
    places = kept_places(base, settings.keep_fp32)
    if not settings.link:
        check_room(base, output, settings.precision, places, more=room_for_control(base, control))
    half = settings.precision == "fp16"
    return _Plan(
        settings=settings,
        places=places,
        manifest=manifest,
        tokenizer=_tokenizer_text(base),
        vocab_sizes=base.vocab_sizes,
        probe=make_probe(base, manifest["defaults"]["width"]) if half else None,
        graphs=graphs,
        reopen=partial(_reopen, open_base, controlnets),
    )


def _reopen(open_base: Callable[[], BaseModel], controlnets: Mapping[str, Path], name: str) -> Graph:
    """A graph with its module once more, after both were let go."""
    base = open_base()
    control = control_graphs(base, controlnets)
    install(base.unet)
    return next(graph for graph in (*graphs_of(base), *control) if graph.name == name)


def _check_settings(precision: str, opset: int, keep_fp32: Sequence[str], link: bool) -> None:
    if precision not in PRECISIONS:
        raise ExportError(f"precision {precision!r} is not known, expected one of {', '.join(PRECISIONS)}")
    check_opset(opset)
    if keep_fp32 and precision != "fp16":
        raise ExportError(f"keep in float32: {precision} computes in float32 already; it goes with fp16")
    if link and precision != "fp32":
        raise ExportError(f"linked weights: the model's files hold none of {precision}; it goes with fp32")


def _write_graphs(
    plan: _Plan, folder: Path, stage: Callable[[str], None]
) -> tuple[dict[str, Path], dict[str, float], dict[str, Any]]:
    """Write every graph and hold it against torch, emptying the plan's list.

    Returns the files by graph, the errors by graph, and the colours of the VAE's latents.
    """
    paths, parity = {}, {}
    latent_rgb: dict[str, Any] = {}
    linkable = stored_tensors(folder, *_WEIGHTS) if plan.settings.link else None
    while plan.graphs:
        graph = plan.graphs.pop(0)
        if graph.name != "text_encoder_2":  # two text encoders are one stage
            stage(graph.name.replace("_", " "))
        path = paths[graph.name] = folder / f"{graph.name}.onnx"
        ends = _write_graph(graph, path, plan, linkable)
        vocab_size = plan.vocab_sizes[-1 if graph.name == "text_encoder_2" else 0]
        trials = make_trials(graph, vocab_size=vocab_size, exported=ends)
        if graph.name == "unet":
            _write_key_projections(graph.module.unet, folder / KEY_PROJECTIONS)
        if graph.name == "vae_encoder":
            latent_rgb = fit_latent_rgb(graph.module.vae)
        name, outputs = graph.name, [end.name for end in graph.outputs]
        del graph, ends
        gc.collect()  # a traced module is part of a circle
        try:
            error = compare(name, outputs, path, trials, tolerance=plan.settings.tolerance)
        except DivergenceError as divergence:
            again = partial(plan.reopen, name)
            raise explain(divergence, path, plan.settings.tolerance, again) from divergence
        parity[name] = float(f"{error:.1e}")  # the further digits are of one run and its threads
    return paths, parity, latent_rgb


def _write_graph(graph: Graph, path: Path, plan: _Plan, linkable: Mapping[str, Any] | None) -> Graph:
    """Convert ``graph`` to its file; gives it back with the ends it was written with, see `in_half`."""
    precision = plan.settings.precision
    written = in_half(graph, places_of(graph, plan.places)) if precision == "fp16" else graph
    model = to_onnx(written, opset=plan.settings.opset)
    if precision == "int8" and graph.name in _QUANTIZED:
        quantize(model)
    if linkable is not None:
        link_weights(model, path.parent, linkable)
    elif precision != "fp16":
        store_as_float16(model)
    if graph.name == UNET_CONTROLNET:
        share_weights(model, path.with_name("unet.onnx"))
    save(model, path)
    forget_weights(model)
    return written


def _tokenizer_text(base: BaseModel) -> str:
    """The tokenizer as the `tokenizers` package reads it; padding and truncation are left to the runtime."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(base.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text: str = tokenizer.to_str()
    return text


def _write_key_projections(unet: Any, path: Path) -> None:
    """All to_k weights, (Σ key_dim, text_dim): from them a runtime derives a superclass's locked keys."""
    stacked = key_projections(unet).float().numpy()
    half = exact_float16(stacked)
    path.write_bytes(safetensors.numpy.save({"key_projections": stacked if half is None else half}))


def _write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """bundle.json, with the sizes and digests of all that lies in ``folder``."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest["files"] = file_table(folder, names)
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")


def _check_output(model: Path, output: Path, link: bool) -> None:
    """Refuse an output that would replace a model, and for linked weights any but the model's own folder."""
    source, target = model.resolve(), output.resolve()
    if link:
        if source != target:
            raise ExportError(
                f"linked weights: the output is {output}, expected the model's own folder {model}"
            )
        linked = [path for path in _weights_in(model) if path.is_symlink()]
        if linked:
            raise ExportError(
                f"linked weights: {linked[0]} is a symbolic link, and no runtime follows one out of a bundle's folder; "
                "copy the model with its weights first"
            )
    elif target == source or target in source.parents or (target / "model_index.json").exists():
        raise ExportError(f"{output} holds a diffusers model and would be replaced; choose another output")


def _weights_in(model: Path) -> list[Path]:
    """The files of a model's weights."""
    return sorted(path for part in _WEIGHTS for path in (model / part).glob("*.safetensors"))


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder`` at the end, the manifest last.

    It holds copies of the model's weights under the names they have in ``folder``, so that graphs which refer
    to them run in both places. Copies, because ONNX's tools follow no link out of a graph's folder.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
        try:
            for path in _weights_in(folder):
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


def _stages(progress: Callable[[str, int, int], None] | None, total: int) -> Callable[[str], None]:
    """Count the stages for ``progress``."""
    done = iter(range(total + 1))

    def stage(name: str) -> None:
        if progress is not None:
            progress(name, next(done), total)

    return stage
