"""What of a bundle its engines belong to: each graph with the checksum of all that it may read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from perfusion.bundle.description import Bundle
from perfusion.bundle.names import CONTROLNET, UNET_CONTROLNET

__all__ = ["GraphFacts", "control_facts", "graph_facts"]


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """One graph of a bundle."""

    name: str  # "unet", "text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder"
    file: str  # relative to the bundle
    sha256: str  # over the graph and every file of weights it may refer to
    needs: Mapping[str, str]  # those files, the graph among them, with their checksums


def graph_facts(bundle: Bundle) -> dict[str, GraphFacts]:
    """The graphs of a bundle by name, in the order in which a picture needs them."""
    files = {encoder.name: encoder.file for encoder in bundle.text_encoders}
    files |= {"unet": bundle.unet.file, "vae_decoder": bundle.decoder.file}
    if bundle.decoder.encoder is not None:
        files["vae_encoder"] = bundle.decoder.encoder
    no_weights = {_name(bundle, path) for path in (bundle.tokenizer, bundle.key_projections) if path}
    weights = {
        name: checksum
        for name, checksum in bundle.checksums.items()
        if name not in no_weights and not name.endswith(".onnx")
    }
    return {
        name: _graph(name, _name(bundle, path), bundle.checksums, weights) for name, path in files.items()
    }


def control_facts(bundle: Bundle) -> dict[str, GraphFacts]:
    """The graphs of the ControlNet that draws, each with all weights of the bundle; none where there is none."""
    control = bundle.controlnet
    if control is None:
        return {}
    weights = {name: checksum for name, checksum in bundle.checksums.items() if not name.endswith(".onnx")}
    files = {CONTROLNET: control.file, UNET_CONTROLNET: control.unet_file}
    return {
        name: _facts(
            name, _name(bundle, path), {_name(bundle, path): bundle.checksums[_name(bundle, path)], **weights}
        )
        for name, path in files.items()
    }


def _name(bundle: Bundle, path: Path) -> str:
    """A file of the bundle as bundle.json names it."""
    return path.relative_to(bundle.folder).as_posix()


def _graph(name: str, file: str, checksums: Mapping[str, str], weights: Mapping[str, str]) -> GraphFacts:
    """A graph with all weights that may be its own.

    Which ones a graph refers to stands inside it; counting each that is not another graph's by its name spares
    reading gigabytes when a runtime looks for its engine, and never overlooks one.
    """
    own = {
        weight: checksum
        for weight, checksum in weights.items()
        if not weight.endswith(".data") or weight == f"{file}.data"
    }
    return _facts(name, file, {file: checksums[file], **own})


def _facts(name: str, file: str, needs: Mapping[str, str]) -> GraphFacts:
    text = json.dumps(sorted(needs.items()), separators=(",", ":"))
    return GraphFacts(name=name, file=file, sha256=hashlib.sha256(text.encode()).hexdigest(), needs=needs)
