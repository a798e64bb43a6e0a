"""What of a bundle decides its engines: the graphs with their checksums, and the sizes the sizes of inputs follow from.

The command reads the whole bundle with `perfusion.runtime.read_bundle` before; here only these few fields are read,
so that the runtime's modules need not be there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfusion.bundle.guidance import is_guided
from perfusion.errors import BundleError

__all__ = ["BundleFacts", "GraphFacts", "read_facts"]


@dataclass(frozen=True, kw_only=True)
class GraphFacts:
    """One graph of a bundle."""

    name: str  # "unet", "text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder"
    file: str  # relative to the bundle
    sha256: str  # over the graph and every file of weights it may refer to
    needs: Mapping[str, str]  # those files, the graph among them, with their checksums


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """The fields of bundle.json that engines depend on."""

    graphs: Mapping[str, GraphFacts]
    precision: str
    downscale: int  # pixels of a picture to one of the latents
    size_multiple: int  # of the latents' sides
    context_length: int  # tokens of a prompt
    width: int  # default size of pictures, pixels
    height: int
    guided: bool  # whether pictures are drawn with guidance where a request does not say

    @property
    def size_step(self) -> int:
        """Pictures' sides are multiples of this many pixels."""
        return self.downscale * self.size_multiple


def read_facts(bundle: Path | str) -> BundleFacts:
    """Read bundle.json.

    Raises:
        BundleError: it is missing, or a field has another type than expected.
    """
    path = Path(bundle) / "bundle.json"
    try:
        manifest = json.loads(path.read_bytes())
        files = {str(name): str(entry["sha256"]) for name, entry in manifest["files"].items()}
        vae, unet, defaults = manifest["vae"], manifest["unet"], manifest["defaults"]
        return BundleFacts(
            graphs={one.name: one for one in _graphs(manifest, files)},
            precision=str(manifest["precision"]),
            downscale=int(vae["downscale"]),
            size_multiple=int(unet["size_multiple"]),
            context_length=int(manifest["text_encoders"][0]["context_length"]),
            width=int(defaults["width"]),
            height=int(defaults["height"]),
            guided=is_guided(
                float(defaults["guidance_scale"]), reads_scale="timestep_cond" in unet.get("conditions", {})
            ),
        )
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BundleError(f"{path} is not a bundle's ({error}). Export the bundle again.") from error


def _graphs(manifest: dict[str, Any], files: Mapping[str, str]) -> list[GraphFacts]:
    """The graphs in the order in which a picture needs them."""
    encoders = manifest["text_encoders"]
    named = {
        "text_encoder" if at == 0 else f"text_encoder_{at + 1}": one["file"]
        for at, one in enumerate(encoders)
    }
    named |= {"unet": manifest["unet"]["file"], "vae_decoder": manifest["vae"]["decoder"]}
    if "encoder" in manifest["vae"]:
        named["vae_encoder"] = manifest["vae"]["encoder"]
    others = {manifest["tokenizer"], manifest.get("key_projections")}
    weights = {name: sha for name, sha in files.items() if name not in others and not name.endswith(".onnx")}
    return [_graph(name, file, files, weights) for name, file in named.items()]


def _graph(name: str, file: str, files: Mapping[str, str], weights: Mapping[str, str]) -> GraphFacts:
    """A graph with all weights that may be its own.

    Which ones a graph refers to stands inside it; counting each that is not another graph's by its name spares
    reading gigabytes when a runtime looks for its engine, and never overlooks one.
    """
    owned = {one: sha for one, sha in weights.items() if not one.endswith(".data") or one == f"{file}.data"}
    needs = {file: files[file], **owned}
    text = json.dumps(sorted(needs.items()), separators=(",", ":"))
    return GraphFacts(name=name, file=file, sha256=hashlib.sha256(text.encode()).hexdigest(), needs=needs)
