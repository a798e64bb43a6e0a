"""perfusion-export: turn a text-to-image model into a bundle that the runtime draws with."""

import argparse
import json
from pathlib import Path

from perfusion.commands import Progress, parser, run
from perfusion.errors import ExportError

__all__ = ["main"]

_NAME = "perfusion-export"


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's) and return its exit code."""
    return run(_NAME, lambda: _export(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    made = parser(
        _NAME, "Turn a text-to-image model into a bundle that perfusion-generate draws with, without torch."
    )
    made.add_argument(
        "--model",
        type=Path,
        metavar="DIR",
        help="a diffusers folder of Stable Diffusion 1.x or 2.x (default: the embedded pocket model)",
    )
    made.add_argument(
        "--engine", choices=["onnx"], default="onnx", help="what runs the bundle (default: %(default)s)"
    )
    made.add_argument(
        "--precision",
        choices=["fp32"],
        default="fp32",
        help="arithmetic of the graphs (default: %(default)s)",
    )
    made.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="width and height of pictures where none is asked for, in pixels (default: the model's own)",
    )
    made.add_argument("--output", type=Path, metavar="BUNDLE", required=True, help="the bundle's folder")
    made.add_argument("--json", action="store_true", help="print what was written as JSON")
    return made


def _export(arguments: argparse.Namespace) -> int:
    try:
        from perfusion.export import STAGES, export_bundle
    except ModuleNotFoundError as error:
        raise ExportError(
            f"exporting needs the package {error.name}; install perfusion-edge[export,cpu]"
        ) from error

    with Progress(len(STAGES), "export", quiet=arguments.quiet) as progress:
        exported = export_bundle(
            arguments.model,
            arguments.output,
            precision=arguments.precision,
            resolution=arguments.resolution,
            progress=lambda stage, done, total: progress.update(done, stage=stage),
        )
    manifest = exported.manifest
    if arguments.json:
        result = {
            name: manifest[name] for name in ("base", "base_fingerprint", "precision", "defaults", "parity")
        }
        print(json.dumps({"output": str(exported.folder), "bytes": exported.size, **result}, indent=1))
    else:
        worst = max(exported.parity.values())
        print(
            f"{exported.folder}: {manifest['base']}, {manifest['precision']}, {exported.size / 1e6:.1f} MB; "
            f"largest difference from torch {worst:.1e}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
