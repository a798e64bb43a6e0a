"""perfusion-devices: which machine this is, what is wrong with it, and what fits on it or on another."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfusion.commands import parser, run

if TYPE_CHECKING:
    from perfusion.devices import Detected, DeviceProfile
    from perfusion.devices.planning.device_plan import DevicePlan

GIB = 1 << 30


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `perfusion-devices --help`."""
    return run("perfusion-devices", lambda: _devices(_parser().parse_args(argv)))


def _parser() -> argparse.ArgumentParser:
    command = parser(
        "perfusion-devices",
        "Know the machine before it fails: the devices that are known, which one this is, what is wrong with it, and "
        "whether a bundle fits on it.",
    )
    actions = command.add_subparsers(dest="action", metavar="list|detect|doctor|plan|service", required=True)
    texts = {
        "list": "every device profile",
        "detect": "which machine this is",
        "doctor": "what is wrong here, and what to do; exit code 1 when nothing can be drawn",
        "plan": "precision, engine, memory and an estimate of the time for a bundle on a device",
        "service": "a systemd unit for a program that draws: perfusion-devices service -- /path/to/program ...",
    }
    subcommands = {
        name: actions.add_parser(name, help=text, description=text) for name, text in texts.items()
    }
    for name in ("list", "detect", "doctor", "plan"):
        subcommands[name].add_argument("--json", action="store_true", help="print JSON")
    for name in ("doctor", "plan", "service"):
        subcommands[name].add_argument(
            "--bundle",
            type=Path,
            metavar="BUNDLE",
            help="a bundle's folder, or its name on the hub; by default the embedded model's",
        )
    for name in ("plan", "service"):
        _add_size(subcommands[name])
    service = subcommands["service"]
    service.add_argument("--user", metavar="NAME", help="who it runs as; by default you")
    service.add_argument(
        "--folder", type=Path, metavar="DIR", help="where it is started; by default the current folder"
    )
    service.add_argument(
        "program", nargs="+", help="the program by its whole path, and its arguments, after --"
    )
    return command


def _add_size(action: argparse.ArgumentParser) -> None:
    """The options that say on which device how much is drawn."""
    action.add_argument(
        "--device",
        metavar="PROFILE",
        help='a name or a device that `list` prints, such as orin-nano-8 or "RTX 4070"; by default this machine',
    )
    action.add_argument(
        "--resolution", type=int, metavar="N", help="width and height in pixels; by default the bundle's"
    )
    action.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures in one call of the UNet (1)"
    )
    action.add_argument("--concepts", type=int, default=4, metavar="N", help="concepts in one call (4)")
    action.add_argument(
        "--readings", type=int, default=1, metavar="N",
        help="things of a prompt with regions of their own, each of which reads it once (1)",
    )  # fmt: skip
    action.add_argument(
        "--tokens", type=int, metavar="N",
        help="of one reading: 77 for a prompt of one part, 154 for one of two (one part)",
    )  # fmt: skip
    action.add_argument("--image", action="store_true", help="count a picture to draw over")
    action.add_argument(
        "--controlnet",
        metavar="NAME",
        help="count this ControlNet of the bundle, which a control image needs",
    )


def _devices(args: argparse.Namespace) -> int:
    actions = {"list": _list, "detect": _detect, "doctor": _doctor, "plan": _plan, "service": _service}
    return actions[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from perfusion.devices import PROFILES
    from perfusion.devices.profiles import SOURCES

    if args.json:
        print(json.dumps([_profile_facts(profile) for profile in PROFILES.values()], indent=2))
        return 0
    rows = [("name", "device", "sm", "GiB", "GB/s", "fp16 TFLOP/s", "source", "engines")]
    for profile in PROFILES.values():
        sm = "".join(map(str, profile.compute_capability)) if profile.compute_capability else "-"
        speed = f"{profile.fp16_flops / 1e12:.1f}" if profile.fp16_flops and profile.kind != "cpu" else "-"
        bandwidth = f"{profile.bandwidth / 1e9:.0f}" if profile.bandwidth and profile.kind != "cpu" else "-"
        memory = f"{profile.memory // GIB}{' shared' if profile.unified else ''}"
        engines = " ".join(profile.engines)
        rows.append((profile.name, profile.title, sm, memory, bandwidth, speed, profile.source, engines))
    print(_aligned(rows))
    print("\nSources; what has none is left out (-):")
    print("\n".join(f"  {name}: {text}" for name, text in SOURCES.items()))
    return 0


def _detect(args: argparse.Namespace) -> int:
    from perfusion.devices import detect

    machine = detect()
    if args.json:
        print(json.dumps(_found_facts(machine), indent=2))
        return 0
    rows = [(name.replace("_", " "), _shown(name, value)) for name, value in machine.facts.items()]
    profile = machine.profile
    rows.append(
        ("profile", f"{profile.name} ({profile.title})" if profile else "none describes this machine")
    )
    if profile is not None:
        rows += [("engines", ", ".join(profile.engines)), ("precision", profile.precision)]
        rows += [("note", profile.note)] if profile.note else []
    print(_aligned(rows))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from perfusion.devices import detect
    from perfusion.devices.bundle_check import examine_bundle
    from perfusion.devices.doctor import examine
    from perfusion.devices.environment import read_environment

    machine, python, folder = detect(), read_environment(), _bundle_folder(args.bundle)
    findings = [*examine(machine, python, disk=folder), *examine_bundle(folder, machine, python)]
    stopped = any(finding.level == "stop" for finding in findings)
    if args.json:
        facts = {
            "machine": _found_facts(machine),
            "findings": [vars(finding) for finding in findings],
            "can_draw": not stopped,
        }
        print(json.dumps(facts, indent=2))
        return int(stopped)
    title = machine.profile.title if machine.profile else machine.facts.get("machine", "an unknown machine")
    print(f"{title}: {len(findings)} finding{'' if len(findings) == 1 else 's'}")
    for finding in findings:
        print(f"\n{finding.level}: {finding.name}\n  {finding.text}\n  -> {finding.remedy}")
    print(
        f"\n{'Nothing can be drawn here until that is done.' if stopped else 'Pictures can be drawn here.'}"
    )
    return int(stopped)


def _plan(args: argparse.Namespace) -> int:
    plan, folder = _planned(args), _bundle_folder(args.bundle)
    export = plan.export_command(folder)
    if args.json:
        print(json.dumps(_plan_facts(plan, folder) | {"export": export}, indent=2))
        return 0
    model = folder.resolve().name if args.bundle else "the embedded model"
    print(f"{model} on {plan.profile.title}: {plan.memory.explain()}\n")
    rows = [("bundle", _bundle_line(folder)), *_plan_rows(plan), *_openvino_rows(plan, folder)]
    print(_aligned([*rows, *([("export", export)] if export else [])]))
    if export and not plan.exported and not plan.embedded:
        print(
            "\nMODEL is what the bundle was exported from. Give its other options too, such as --config, --vae and "
            "--lora: a bundle does not keep them."
        )
    print("\nComputed from the graphs, not measured on the device.")
    return 0


def _openvino_rows(plan: DevicePlan, folder: Path) -> list[tuple[str, str]]:
    """What else a processor may draw with, and what that takes once for each size of pictures."""
    if plan.profile.kind != "cpu":
        return []
    from perfusion.bundle.reader import read_bundle
    from perfusion.devices.planning.openvino_memory import compile_memory
    from perfusion.shell import quoted

    need = compile_memory(read_bundle(folder, verify=False))
    command = f"perfusion-export --engine openvino --bundle {quoted(folder)}"
    return [("openvino", f"{_gib(need)} while the UNet is compiled, once for a size: {command}")]


def _bundle_line(folder: Path) -> str:
    """The bundle's own precision, which the plan's may differ from, and the engines in it."""
    from perfusion.bundle.reader import read_bundle
    from perfusion.tensorrt.engine_store import list_engines

    names = sorted({engine.file.parent.name for engine in list_engines(folder)})
    return f"{read_bundle(folder, verify=False).precision}, {'engines ' + ', '.join(names) if names else 'no engines'}"


def _service(args: argparse.Namespace) -> int:
    import getpass

    from perfusion.devices.service import service_unit

    folder = (args.folder or Path.cwd()).absolute()
    print(service_unit(_planned(args), args.program, folder, args.user or getpass.getuser()), end="")
    return 0


def _planned(args: argparse.Namespace) -> DevicePlan:
    """The plan that the options ask for."""
    from dataclasses import replace

    from perfusion.bundle.reader import read_bundle
    from perfusion.devices import detect, find_profile
    from perfusion.devices.planning.device_plan import plan_device
    from perfusion.errors import DeviceError

    here = detect().profile
    profile = here if args.device is None else find_profile(args.device)
    if profile is None:
        raise DeviceError("No profile describes this machine. Name one with --device; `list` has them all.")
    bundle = read_bundle(_bundle_folder(args.bundle), verify=False)
    usual = bundle.usual_call
    tokens = usual.tokens if args.tokens is None else args.tokens
    text = {"readings": args.readings, "tokens": args.readings * tokens}
    size = replace(usual, batch=args.batch, concepts=args.concepts, image=args.image, **text)
    if args.controlnet is not None:
        bundle, size = bundle.with_controlnet(args.controlnet), replace(size, control=True)
    if args.resolution is not None:
        size = replace(size, width=args.resolution, height=args.resolution)
    same = here is not None and here.compute_capability == profile.compute_capability
    return plan_device(bundle, profile, size, here=same)


def _plan_rows(plan: DevicePlan) -> list[tuple[str, str]]:
    memory, note = plan.memory, plan.profile.note
    anew = "" if plan.exported else ": export it anew for that"
    rows = [("engine", f"{plan.engine}, {plan.precision}{anew}")]
    for stage, size in memory.stages.items():
        rows.append((stage, f"{_gib(size)}  {', '.join(sorted(memory.resident[stage]))}"))
    rows += [
        ("usable", _gib(memory.budget)),
        ("time", str(plan.latency) if plan.latency else "not estimated: the device's speed is not known"),
    ]
    if plan.workspace is not None:
        rows.append(("workspace", f"{_gib(plan.workspace)} while an engine is built"))
    for graph, profiles in plan.shapes.items():
        sizes = (", ".join(f"{name} {most}" for name, (_, _, most) in ranges.items()) for ranges in profiles)
        rows.append(("profile", f"{graph}: {'; '.join(sizes)}"))
    return rows + ([("note", note)] if note else [])


def _bundle_folder(folder: Path | None) -> Path:
    from perfusion.embedded import bundle_path
    from perfusion.hub import local_bundle

    return bundle_path() if folder is None else local_bundle(folder)


def _profile_facts(profile: DeviceProfile) -> dict[str, Any]:
    from dataclasses import asdict

    speed = {"bandwidth": profile.bandwidth or None, "fp16_flops": profile.fp16_flops or None}
    derived = ("workspace", "optimization_level", "build_cores", "usable")
    return asdict(profile) | speed | {name: getattr(profile, name) for name in derived}


def _found_facts(machine: Detected) -> dict[str, Any]:
    return {
        "profile": machine.profile.name if machine.profile else None,
        "title": machine.profile.title if machine.profile else None,
        "facts": dict(machine.facts),
    }


def _plan_facts(plan: DevicePlan, folder: Path) -> dict[str, Any]:
    memory, size, latency = plan.memory, plan.memory.size, plan.latency
    return {
        "device": plan.profile.name,
        "bundle": str(folder),
        "engine": plan.engine,
        "precision": plan.precision,
        "exported": plan.exported,
        "workspace": plan.workspace,
        "profiles": {graph: [dict(ranges) for ranges in profiles] for graph, profiles in plan.shapes.items()},
        "width": size.width,
        "height": size.height,
        "batch": size.batch,
        "concepts": size.concepts,
        "readings": size.readings,
        "guided": size.guided,
        "fits": memory.fits,
        "budget": memory.budget,
        "peak": memory.peak,
        "stages": dict(memory.stages),
        "resident": {stage: sorted(names) for stage, names in memory.resident.items()},
        "tile": memory.tile,
        "nearest": vars(memory.nearest) if memory.nearest else None,
        "explanation": memory.explain(),
        "estimated_seconds": round(latency.total, 3) if latency else None,
        "estimate_error": latency.error if latency else "the device's speed is not known",
    }


_SIZES = ("memory", "memory_free", "swap", "main_memory")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not told"
    if name in _SIZES:
        return _gib(value)
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns of equal width, the last one ragged."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    raise SystemExit(main())
