"""`/api/device` and `/api/plan`: what draws here, what is wrong with it, and what fits."""

from __future__ import annotations

import asyncio
import functools
import time
from dataclasses import asdict, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion import __version__
from perfusion.runtime import SCHEDULERS, Runtime
from perfusion.serving.answers import StatusError
from perfusion.serving.body_fields import whole_of

__all__ = ["device_routes"]

_FRESH_SECONDS = 60.0  # findings are looked for again after so long


def device_routes(runtime: Runtime) -> list[Route]:
    """The routes of the machine."""

    @functools.lru_cache(1)
    def findings(_minute: int) -> list[dict[str, Any]]:
        return _findings(runtime)

    async def device(request: Request) -> Response:
        present = await asyncio.to_thread(findings, int(time.monotonic() / _FRESH_SECONDS))
        return JSONResponse(
            {
                "device": await asyncio.to_thread(_title), "provider": runtime.provider,
                "provider_reason": runtime.provider_reason, "precision": runtime.precision,
                "bundle": _bundle_facts(runtime), "findings": present, "version": __version__,
            }
        )  # fmt: skip

    async def plan(request: Request) -> Response:
        query: dict[str, Any] = dict(request.query_params)
        sizes = {name: whole_of(query, name) for name in ("width", "height", "batch")}
        return JSONResponse(await asyncio.to_thread(_plan, runtime, sizes))

    return [Route("/api/device", device), Route("/api/plan", plan)]


def _bundle_facts(runtime: Runtime) -> dict[str, Any]:
    bundle, defaults = runtime.bundle, runtime.bundle.defaults
    return {
        "name": bundle.folder.name, "base": bundle.base, "family": bundle.base, "precision": bundle.precision,
        "fingerprint": bundle.base_fingerprint, "width": defaults.width, "height": defaults.height,
        "size_step": bundle.size_step, "num_inference_steps": defaults.num_inference_steps,
        "guidance_scale": defaults.guidance_scale, "scheduler": defaults.scheduler, "schedulers": list(SCHEDULERS),
        "regions": bundle.has_regions, "reads_pictures": bundle.decoder.encoder is not None,
    }  # fmt: skip


def _title() -> str:
    from perfusion.devices import detect

    machine = detect()
    return (
        machine.profile.title if machine.profile else str(machine.facts.get("machine", "an unknown machine"))
    )


def _findings(runtime: Runtime) -> list[dict[str, Any]]:
    """What `perfusion-devices doctor` says here."""
    from perfusion.devices import detect
    from perfusion.devices.bundle_check import examine_bundle
    from perfusion.devices.doctor import examine
    from perfusion.devices.environment import read_environment

    machine, python, folder = detect(), read_environment(), runtime.bundle.folder
    findings = [*examine(machine, python, disk=folder), *examine_bundle(folder, machine, python)]
    return [
        {"name": each.name, "severity": each.level, "text": each.text, "remedy": each.remedy}
        for each in findings
    ]


def _plan(runtime: Runtime, sizes: dict[str, int | None]) -> dict[str, Any]:
    """Whether a size fits into what is free now.

    Raises:
        RequestError: no picture has such a size.
    """
    from perfusion.devices import detect
    from perfusion.devices.planning.memory_plan import plan_memory

    free = detect().free
    if free is None:
        raise StatusError(404, "This machine does not say how much memory is free.")
    usual = runtime.bundle.usual_call
    size = replace(
        usual,
        width=sizes["width"] or usual.width,
        height=sizes["height"] or usual.height,
        batch=sizes["batch"] or 1,
    )
    plan = plan_memory(runtime.bundle, size, budget=free)
    return {
        "needed": plan.peak, "free": free, "fits": plan.fits, "sentence": plan.explain(),
        "nearest": asdict(plan.nearest) if plan.nearest else None,
    }  # fmt: skip
