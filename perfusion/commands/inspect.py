"""perfusion-inspect: what is in a concept file, a picture card or a bundle, and whether it is whole."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfusion.commands import check_outputs, parser, run
from perfusion.errors import PerfusionError

_MANIFEST = "bundle.json"
_BAR = 24


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-inspect --help`."""
    return run("perfusion-inspect", lambda: _inspect(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "perfusion-inspect",
        "Show what is in a concept file, a picture card or a bundle, after checking all of it: names, shapes and "
        "numbers of a concept; settings, sizes and checksums of a bundle. Of a picture, show how it was drawn; of a "
        "folder, which concepts are in it.",
    )
    command.add_argument(
        "path",
        type=Path,
        metavar="FILE|BUNDLE|DIR",
        help="a concept file, a card, a drawing of perfusion-generate, the name of a sample (school-bus), a bundle, or "
        "a folder of concept files",
    )
    command.add_argument(
        "--extract", type=Path, metavar="FILE", help="write the concept file that a card carries"
    )
    command.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="hold the concept against this bundle: does it fit, and how strong is its edit in each layer? "
        "(how far its values are off the superclass's, or how large they are where the bundle cannot tell)",
    )
    command.add_argument(
        "--prompt",
        metavar="TEXT",
        help="how far each token of this prompt opens the concept's gate (with --bundle, or the embedded pocket model)",
    )
    command.add_argument("--heatmap", type=Path, metavar="PNG", help="draw that")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _inspect(args: argparse.Namespace) -> int:
    from perfusion.hub import local_bundle, local_shared

    path: Path = local_shared(args.path)
    args.bundle = args.bundle and local_bundle(args.bundle)
    if path.name == _MANIFEST and path.is_file():
        path = path.parent
    path = _sample(path, args.bundle)
    check_outputs([("--extract", args.extract), ("--heatmap", args.heatmap)], [("The file shown", path)])
    if args.extract and not path.is_file():
        raise PerfusionError(
            f"{path} is no card, expected a PNG that carries a concept. Give one with --extract."
        )
    if (args.bundle or args.prompt is not None) and path.is_dir():
        raise PerfusionError(
            f"{path} is no concept file; only a concept is held against a --bundle or --prompt."
        )
    if args.heatmap and args.prompt is None:
        raise PerfusionError("A --heatmap shows the tokens of a prompt. Give --prompt too.")
    if path.is_dir() and not (path / _MANIFEST).is_file() and (listed := _library(path, args)) is not None:
        return listed
    after = ""
    if (path / _MANIFEST).is_file():
        facts, lines = _bundle(path)
    elif path.is_file() and (drawing := _drawing(path)):
        facts, lines = drawing
    elif path.is_file():
        facts, lines = _concept(path)
        if args.bundle:
            fit, more = _held_against(path, args.bundle)
            facts, lines = facts | fit, lines | more
        if args.prompt is not None:
            gates, table = _explained(path, args.bundle, args.prompt, args.heatmap)
            facts, after = facts | gates, table
        if args.extract:
            _extract(path, args.extract)
    else:
        problem = f"a folder without {_MANIFEST} and without concept files" if path.is_dir() else "not there"
        raise PerfusionError(
            f"{path} is {problem}, expected a concept file (as perfusion-train writes it), the name of a sample or a "
            "bundle's folder (as perfusion-export writes it)."
        )
    print(json.dumps(facts, indent=2) if args.json else _table(facts, lines) + after)
    return 0


def _library(folder: Path, args: argparse.Namespace) -> int | None:
    """List a folder of concepts; None where there are none. 1 where one of them is broken."""
    from perfusion.commands.inspect_library import concept_files, library_facts, library_table

    files = concept_files(folder)
    if not files:
        return None
    facts = library_facts(folder, files)
    print(json.dumps(facts, indent=2) if args.json else library_table(facts))
    return int(bool(facts["broken"]))


def _drawing(path: Path) -> tuple[dict[str, Any], dict[str, str]] | None:
    """The settings that a picture carries; None of a card, and of any file that carries none."""
    from perfusion.concept.card import extract
    from perfusion.errors import ConceptError, PictureError
    from perfusion.runtime.picture_settings import parameters_text, read_settings

    try:
        settings = read_settings(path)
    except PictureError:  # no picture: the reader of concept files says what it is
        return None
    if settings is None:
        return None
    try:
        extract(path.read_bytes())
    except ConceptError:
        facts = {"kind": "picture", "path": str(path), "bytes": path.stat().st_size, "settings": settings}
        lines = {name: _shown(value) for name, value in settings.items()}
        return facts | {"parameters": parameters_text(settings)}, lines
    return None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sample(path: Path, folder: Path | None) -> Path:
    """The file of the sample of this name, in the bundle or else the embedded one; any other path as it is."""
    if path.exists() or len(path.parts) != 1:
        return path
    from perfusion.bundle.reader import read_bundle
    from perfusion.embedded import bundle_path

    folders = [place for place in (folder, bundle_path()) if place and (place / _MANIFEST).is_file()]
    samples = (read_bundle(place, verify=False).samples for place in folders)
    return next((names[str(path)] for names in samples if str(path) in names), path)


def _table(facts: dict[str, Any], lines: dict[str, str]) -> str:
    """A headline, then one `name  value` a line."""
    width = max(map(len, lines))
    head = f"{facts['path']}: {facts['kind']}, {facts['bytes']:,} bytes, valid"
    return "\n".join([head, *(f"  {name:<{width}}  {value}" for name, value in lines.items())])


def _concept(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts of a concept file for a program, and for a reader."""
    from perfusion.concept.card import extract, is_card
    from perfusion.concept.concept_file import FORMAT_VERSION, Concept
    from perfusion.concept.container import DIGEST, unpack
    from perfusion.concept.settings import FILE_SETTINGS
    from perfusion.concept.storage import stored_as

    concept = Concept.load(path)  # checks all of it
    data = path.read_bytes()
    card = is_card(data)
    file = extract(data) if card else data
    tensors, metadata = unpack(file)
    facts: dict[str, Any] = {
        "kind": "concept",
        "path": str(path),
        "bytes": len(data),
        "card": card,
        "concept_bytes": len(file),
        "storage": stored_as(tensors),
        "sha256": metadata.get(DIGEST),
        "format_version": FORMAT_VERSION,
        "token": concept.token,
        "superclass": concept.superclass,
        "base": concept.base,
        "base_fingerprint": concept.base_fingerprint,
        "rows": concept.rows,
        "text_dim": concept.direction.shape[1],
        "hidden_sizes": [embedding.shape[1] for embedding in concept.embeddings],
        "value_width": concept.target_values.shape[1],
        "key_width": None if concept.target_keys is None else concept.target_keys.shape[1],
        "energy": concept.energy.tolist(),
        "direction_norm": _norms(concept.direction),
        "embedding_norms": [_norms(table) for table in concept.embeddings],
        "lock": concept.lock,
        **{name: getattr(concept, name) for name in FILE_SETTINGS},
        "created_with": concept.created_with,
        "training": dict(concept.training),
    }
    encoders = " + ".join(map(str, facts["hidden_sizes"]))
    keys = "derived from the base" if concept.target_keys is None else f"{facts['key_width']} numbers a row"
    lines = {
        "token": f"{concept.token} for a {concept.superclass}",
        "base": f"{concept.base} {concept.base_fingerprint[:12]}…",
        "rows": f"{concept.rows} of {facts['text_dim']} numbers; word embedding {encoders}",
        "values": f"{facts['value_width']} numbers a row",
        "keys": keys,
        "storage": facts["storage"] + (f", {len(file):,} bytes in a picture" if card else ""),
        "checksum": "matches" if facts["sha256"] else "none, the file's writer gave no sha256",
        "energy": _listed(facts["energy"]),
        "norms": f"direction {_listed(facts['direction_norm'])}; word embedding "
        + " + ".join(map(_listed, facts["embedding_norms"])),
        "defaults": ", ".join(
            [*(f"{name} {facts[name]:g}" for name in FILE_SETTINGS), f"{concept.lock} lock"]
        ),
        "made with": concept.created_with or "not said",
        "training": ", ".join(f"{name} {value}" for name, value in concept.training.items()) or "not said",
    }
    return facts, lines


def _held_against(path: Path, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Whether a concept can be drawn with a bundle, and how strong its edit is in every layer.

    Raises:
        ConceptError: it cannot, and why.
    """
    import numpy as np

    from perfusion.bundle.reader import read_bundle
    from perfusion.concept.concept_file import Concept
    from perfusion.runtime.concepts import Bank

    concept, bundle = Concept.load(path), read_bundle(folder, verify=False)
    Bank(bundle).load(concept)  # says why not, and warns where it is another checkpoint of the family
    names = [layer.name for layer in bundle.unet.layers]
    ends = np.cumsum([layer.value_dim for layer in bundle.unet.layers])
    values = np.split(concept.target_values.astype(np.float64), ends[:-1], axis=1)
    sizes = {name: _root_mean_square(part) for name, part in zip(names, values, strict=True)}
    same = concept.base_fingerprint == bundle.base_fingerprint
    facts: dict[str, Any] = {"bundle": str(folder), "same_checkpoint": same, "value_rms": sizes}
    strengths, what = sizes, "values"
    plain = _superclass_values(folder, names, concept.superclass_encoding)
    if plain is not None:
        facts["value_change"] = strengths = {
            name: _root_mean_square(part - before) / _root_mean_square(before)
            for name, part, before in zip(names, values, plain, strict=True)
        }
        what = f"off a {concept.superclass}'s"
    most = max(strengths.values()) or 1.0
    lines = {"fits": f"{folder}" + ("" if same else ", another checkpoint of its family")}
    for name, value in strengths.items():
        shown = f"{value:7.3g}" if plain is None else f"{value:7.0%}"
        lines[f"{what} {_short(name)}"] = f"{shown} {'#' * round(_BAR * value / most)}"
    return facts, lines


def _superclass_values(folder: Path, layers: Sequence[str], encoding: Any) -> "list[Any] | None":
    """What the base model's own projections make of the superclass in each layer, (rows, value_dim) each: where a
    concept's values began. None where a bundle does not hold its UNet's weights by their names."""
    from safetensors import safe_open

    from perfusion.concept.edit import locked_keys  # the same product, W ē, with the other projection

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if not weights.is_file():
        return None
    with safe_open(weights, framework="numpy") as file:
        return [locked_keys(file.get_tensor(f"{name}.to_v.weight"), encoding) for name in layers]


def _root_mean_square(values: Any) -> float:
    return float((values.astype("float64") ** 2).mean() ** 0.5)


def _norms(rows: Any) -> list[float]:
    """The length of each row."""
    return [float((row.astype("float64") ** 2).sum() ** 0.5) for row in rows]


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers)


def _explained(
    path: Path, bundle: Path | None, prompt: str, heatmap: Path | None
) -> tuple[dict[str, Any], str]:
    """The gates of a prompt's tokens, for a program and for a reader; and as a picture."""
    from perfusion.files import writing
    from perfusion.runtime import Runtime

    with Runtime(bundle, provider="cpu", verify=False) as runtime:
        runtime.load_concept(path)
        explanation = runtime.explain(prompt)
    if heatmap:
        with writing(heatmap) as file:
            explanation.picture().save(file, "PNG", optimize=True)
    return {"gates": explanation.as_dict()}, f"\n\n{explanation.text()}"


def _short(layer: str) -> str:
    """down_blocks.0.attentions.1.transformer_blocks.0.attn2 as down.0.1.0."""
    parts = [part for part in layer.split(".") if part not in ("attentions", "transformer_blocks", "attn2")]
    return ".".join(parts).replace("_blocks", "").replace("_block", "")


def _extract(path: Path, target: Path) -> None:
    """Write the concept file in a card, byte for byte."""
    from perfusion.concept.card import extract, is_card
    from perfusion.files import writing

    data = path.read_bytes()
    if not is_card(data):
        raise PerfusionError(
            f"{path} is a concept file already, expected a card. Copy it instead of --extract."
        )
    with writing(target) as file:
        file.write(extract(data))


def _bundle(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts of a bundle for a program, and for a reader."""
    from perfusion.bundle.reader import read_bundle

    bundle = read_bundle(folder, verify=True)
    manifest = json.loads((folder / _MANIFEST).read_bytes())  # read_bundle has just found it sound
    files = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    encoder, unet, defaults = bundle.text_encoder, bundle.unet, bundle.defaults
    engines = _engines(folder)
    facts: dict[str, Any] = {
        "kind": "bundle",
        "path": str(folder),
        "bytes": sum(files.values()),
        "format_version": manifest["format_version"],
        "base": bundle.base,
        "base_fingerprint": bundle.base_fingerprint,
        "precision": bundle.precision,
        "text_dim": bundle.text_dim,
        "vocab_size": encoder.vocab_size,
        "context_length": encoder.context_length,
        "layers": len(unet.layers),
        "key_width": unet.key_width,
        "value_width": unet.value_width,
        "width": defaults.width,
        "height": defaults.height,
        "size_step": bundle.size_step,
        "made_from": manifest.get("made_from", {}),
        "controlnets": list(bundle.controlnets),
        "engines": engines,
        "files": files,
    }
    lines = {
        "base": f"{bundle.base} {bundle.base_fingerprint[:12]}…",
        "precision": bundle.precision,
        "text": f"{encoder.vocab_size} tokens, {encoder.context_length} a prompt, text_dim {bundle.text_dim}",
        "layers": f"{len(unet.layers)}, with {unet.key_width} key and {unet.value_width} value numbers",
        "pictures": f"{defaults.width} x {defaults.height}, in steps of {bundle.size_step} pixels",
        "drawing": f"{defaults.num_inference_steps} steps, guidance scale {defaults.guidance_scale:g}",
        **({"made from": origin} if (origin := _origin(facts["made_from"])) else {}),
        **({"controlnets": ", ".join(bundle.controlnets)} if bundle.controlnets else {}),
        "engines": "; ".join(f"{name} of {', '.join(graphs)}" for name, graphs in engines.items())
        or "none, so ONNX Runtime draws; perfusion-export --engine builds some",
        **{f"file {name}": f"{size:,} bytes, checksum matches" for name, size in files.items()},
    }
    return facts, lines


def _origin(made_from: dict[str, Any]) -> str:
    """What a bundle was made from, in words; empty where its manifest does not say."""
    parts = [str(made_from[name]) for name in ("model", "file") if name in made_from]
    if "clip_skip" in made_from:
        parts.append(f"clip skip {made_from['clip_skip']}")
    parts += [f"LoRA {lora['file']} × {lora.get('scale', 1)}" for lora in made_from.get("loras", ())]
    return ", ".join(parts)


def _engines(folder: Path) -> dict[str, list[str]]:
    """The graphs of which there are engines, by flavour and target: "trt-sm87"."""
    from perfusion.tensorrt.engine_store import list_engines

    graphs: dict[str, list[str]] = {}
    for engine in list_engines(folder):
        graphs.setdefault(engine.file.parent.name, []).append(engine.key.graph)
    return {name: sorted(set(known)) for name, known in sorted(graphs.items())}


if __name__ == "__main__":
    raise SystemExit(main())
