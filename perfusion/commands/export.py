"""perfusion-export: turn a text-to-image model into a bundle that the runtime draws with, and build its engines."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfusion.base.model_arguments import (
    FUSING_ARGUMENTS,
    MODEL_ARGUMENTS,
    add_fusing_arguments,
    add_model_arguments,
    model_options,
)
from perfusion.commands import Progress, parser, run
from perfusion.commands.drawing_arguments import at_least_one
from perfusion.commands.export_report import as_json, as_lines
from perfusion.errors import ExportError
from perfusion.hub import local_bundle

if TYPE_CHECKING:
    from perfusion.export import Exported
    from perfusion.tensorrt.engines import EngineOutcome

__all__ = ["main"]

_NAME = "perfusion-export"
_PRECISIONS = ("fp32", "fp16", "int8", "bf16", "fp8", "fp4")  # known words; what is exported is less


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv`` (default: the process's) and return its exit code."""
    return run(_NAME, lambda: _export(_arguments(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        _NAME,
        "Turn a text-to-image model into a bundle that perfusion-generate draws with, without torch, and build "
        "TensorRT engines for it, or compile it for OpenVINO.",
    )
    model = command.add_argument_group("model")
    add_model_arguments(model)
    add_fusing_arguments(model)
    command.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="build or compile for this bundle; nothing is exported, torch not needed",
    )
    command.add_argument("--output", type=Path, metavar="BUNDLE", help="the folder of the bundle to write")
    command.add_argument(
        "--engine",
        type=_engine,
        default="onnx",
        metavar="onnx|trt|trt-rtx|openvino",
        help="what runs the bundle: ONNX Runtime, TensorRT, TensorRT for RTX, or OpenVINO on this machine, also as "
        "openvino:GPU and the like (default: %(default)s)",
    )
    command.add_argument(
        "--controlnet",
        type=_controlnet,
        action="append",
        metavar="PATH[=NAME]",
        help="write this ControlNet too: a diffusers folder, a .safetensors file or a name on the hub; may be repeated",
    )
    _add_graph_options(command)
    _add_engine_options(command.add_argument_group("engines"))
    _add_compile_options(command.add_argument_group("openvino"))
    command.add_argument("--json", action="store_true", help="print what was written as JSON")
    return command


def _add_graph_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", metavar="PROFILE", help="the device to export for: orin-nano-8, rtx-4070, ..."
    )
    command.add_argument(
        "--precision",
        type=_precision,
        metavar="fp32|fp16|int8",
        help="arithmetic of the graphs (default: fp32 for onnx, fp16 for engines)",
    )
    command.add_argument(
        "--resolution",
        type=int,
        metavar="N",
        help="width and height of pictures in pixels; engines are built for it (default: the model's own)",
    )
    command.add_argument(
        "--opset", type=int, metavar="N", help="ONNX opset of the graphs, 20 or 23 (default: 20)"
    )
    command.add_argument(
        "--keep-fp32",
        action="append",
        metavar="NAME",
        help="with fp16: a graph or module that stays in fp32; may be repeated",
    )


def _add_engine_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--target",
        metavar="SM",
        help="the GPU by its compute capability: sm89, or sm86,sm89 or portable for trt-rtx (default: the device's)",
    )
    group.add_argument(
        "--batch",
        type=_numbers,
        metavar="N,N",
        help="pictures drawn in one call, each a shape range of the engine (default: 1,2)",
    )
    group.add_argument(
        "--readings",
        type=_numbers,
        metavar="N,N",
        help="readings of a prompt, one for each region of the picture (default: 1,2)",
    )
    group.add_argument(
        "--tokens",
        type=_numbers,
        metavar="N,N",
        help="tokens of one reading: 77 for a prompt of one part, 154 for one of two (default: of one part)",
    )
    group.add_argument("--concepts", type=int, metavar="N", help="slots for concepts (default: 4)")
    group.add_argument(
        "--dynamic",
        action="store_true",
        help="one engine for all batches, and for sides from half the resolution on: slower",
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        metavar="0-5",
        help="the builder's effort (default: the device's)",
    )
    group.add_argument(
        "--workspace", type=float, metavar="GB", help="scratch memory of an engine (default: the device's)"
    )
    group.add_argument(
        "--build-cores",
        type=int,
        metavar="N",
        help="processor cores that a build on Linux may use (default: the device's)",
    )
    group.add_argument(
        "--script",
        action="store_true",
        help="write a script that builds the engines on the device, and build nothing",
    )
    group.add_argument(
        "--prune", action="store_true", help="remove the bundle's engines that no longer fit it"
    )


def _add_compile_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--compute",
        choices=["fp32", "bf16", "fp16"],
        help="what pictures will be computed in: perfusion-generate's --precision (default: fp32)",
    )
    group.add_argument(
        "--threads",
        type=at_least_one,
        metavar="N",
        help="perfusion-generate's --threads (default: all there are)",
    )


_SIZES = ("batch", "readings", "tokens", "concepts")
_ENGINES_ONLY = (
    "target", "dynamic", "optimization_level", "workspace", "build_cores", "script", "prune",
)  # fmt: skip
_OPENVINO_ONLY = ("compute", "threads")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line, options that do not go together refused."""
    command = _parser()
    args = command.parse_args(argv)
    if args.bundle is None and args.output is None:
        command.error("the following arguments are required: --output, or --bundle")
    if args.bundle is not None:
        for name in (*MODEL_ARGUMENTS, *FUSING_ARGUMENTS, "controlnet", "output", "opset", "keep_fp32"):
            if getattr(args, name) is not None:
                command.error(
                    f"argument --{name.replace('_', '-')}: not with --bundle, whose graphs are there"
                )
        if args.engine == "onnx":
            command.error("argument --bundle: needs --engine trt, trt-rtx or openvino; its graphs are there")
    library = args.engine.partition(":")[0]
    foreign = {
        "--engine trt or trt-rtx": () if library in ("trt", "trt-rtx") else _ENGINES_ONLY,
        "--engine openvino": () if library == "openvino" else _OPENVINO_ONLY,
        "--engine trt, trt-rtx or openvino": _SIZES if library == "onnx" else (),
    }
    for engines, names in foreign.items():
        for name in names:
            if getattr(args, name) is not None and getattr(args, name) is not False:  # 0 is a level
                command.error(f"argument --{name.replace('_', '-')}: only with {engines}")
    if library == "openvino" and args.device is not None:
        command.error("argument --device: not with --engine openvino, which compiles for this machine")
    if args.script and args.prune:
        command.error(
            "argument --prune: not with --script, which builds nothing that would take the place of engines"
        )
    return args


def _engine(text: str) -> str:
    name, colon, device = text.partition(":")
    if name not in ("onnx", "trt", "trt-rtx", "openvino") or (colon and (name != "openvino" or not device)):
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} (choose from onnx, trt, trt-rtx, openvino, openvino:DEVICE)"
        )
    return text


def _controlnet(text: str) -> tuple[str, str]:
    """PATH or PATH=NAME, as the name and the path; without a name the path's last part is it."""
    path, equals, name = text.rpartition("=")
    if not equals or Path(text).exists():
        path, name = text, ""
    return name or re.sub(r"[^a-z0-9._-]", "-", Path(path.partition("@")[0]).stem.lower()), path


def _precision(text: str) -> str:
    if text not in _PRECISIONS:
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from fp32, fp16, int8)")
    return text


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number or numbers with commas between") from None


def _export(args: argparse.Namespace) -> int:
    """Refuse what cannot be done, export, build."""
    from perfusion.commands import engine_steps as steps

    exported: Exported | None
    profile = steps.device_profile(args)
    if args.engine == "onnx":
        exported = _export_bundle(args, args.precision or "fp32")
        if profile is not None:
            steps.check_memory(args, exported.folder, profile)
        return _say(args, args.output, exported)
    if args.engine.startswith("openvino"):
        return _export_and_compile(args)
    target = steps.choose_target(args, profile)
    trt = None if args.script else steps.find_tensorrt(args.engine, target)
    exported = None
    folder = args.bundle and local_bundle(args.bundle)
    if folder is None:
        precision = args.precision or "fp16"
        steps.check_request(args, target, precision)
        exported = _export_bundle(args, precision)
        folder = exported.folder
    jobs, settings = steps.prepare(args, folder, target, profile)
    if args.script:
        from perfusion.tensorrt.script import write_script

        return _say_script(args, folder, exported, write_script(folder, jobs, settings), target)
    outcomes = steps.build(args, trt, folder, jobs, settings)
    return _say(args, folder, exported, outcomes, steps.prune(folder, outcomes) if args.prune else [])


def _export_and_compile(args: argparse.Namespace) -> int:
    """Export a bundle where none is there, and compile it for OpenVINO on this machine."""
    from perfusion.commands import compile_steps as steps

    steps.check(args)
    exported = None if args.bundle is not None else _export_bundle(args, args.precision or "fp32")
    folder = args.bundle if exported is None else exported.folder
    graphs = steps.compile_graphs(args, folder)
    if args.json:
        print(as_json(folder, exported, (), compiled=steps.as_dicts(graphs)))
    else:
        print(*([] if exported is None else as_lines(exported, (), ())), *steps.as_lines(graphs), sep="\n")
    return 0


def _export_bundle(args: argparse.Namespace, precision: str) -> Exported:
    try:
        from perfusion.export import PRECISIONS, STAGES, export_bundle
    except ModuleNotFoundError as error:
        raise ExportError(
            f"Exporting needs the package {error.name}. Install perfusion-edge[export,cpu]."
        ) from error

    if precision not in PRECISIONS:
        raise ExportError(f"Graphs are not written in {precision}. Choose one of {', '.join(PRECISIONS)}.")
    further = {
        "config": args.config,
        "options": model_options(args),
        "opset": args.opset,
        "keep_fp32": tuple(args.keep_fp32) if args.keep_fp32 else None,
        "controlnets": _controlnets(args.controlnet),
    }
    with Progress(len(STAGES), "export", quiet=args.quiet) as progress:

        def advance(stage: str, done: int, total: int) -> None:
            """ControlNets have stages of their own."""
            progress.total = total
            progress.update(done, stage=stage)

        return export_bundle(
            args.model,
            args.output,
            precision=precision,
            resolution=args.resolution,
            progress=advance,
            **{name: value for name, value in further.items() if value is not None},
        )


def _controlnets(pairs: Sequence[tuple[str, str]] | None) -> dict[str, str] | None:
    """The ControlNets by name. Raises ExportError for two of one name."""
    if pairs is None:
        return None
    if len(dict(pairs)) < len(pairs):
        raise ExportError("Two ControlNets have one name. Give them others: --controlnet PATH=NAME.")
    return dict(pairs)


def _say(
    args: argparse.Namespace,
    folder: Path,
    exported: Exported | None,
    outcomes: Sequence[EngineOutcome] = (),
    removed: Sequence[Path] = (),
) -> int:
    if args.json:
        further = {"removed": [str(path) for path in removed]} if outcomes else {}
        print(as_json(folder, exported, outcomes, **further))
    else:
        print(*as_lines(exported, outcomes, removed), sep="\n")
    return 0


def _say_script(
    args: argparse.Namespace, folder: Path, exported: Exported | None, path: Path, target: str
) -> int:
    if args.json:
        print(as_json(folder, exported, (), script=str(path), target=target))
        return 0
    print(*as_lines(exported, (), ()), sep="\n", end="\n" if exported else "")
    print(f"{path}: copy {folder} to the device and run it there with python3; it builds for {target}")
    print(f"Next, on the device: python3 {path.name} --dry-run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
