"""The server as one ASGI application: routes of all dialects behind the gate, errors as objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from perfusion.errors import PerfusionError
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.answers import failure
from perfusion.serving.concept_routes import concept_routes
from perfusion.serving.desk import Desk
from perfusion.serving.device_routes import device_routes
from perfusion.serving.gate import Gate
from perfusion.serving.history import History
from perfusion.serving.inspection import inspection_routes
from perfusion.serving.job_routes import job_routes
from perfusion.serving.library import Library
from perfusion.serving.openai_images import openai_routes
from perfusion.serving.picture_routes import picture_routes
from perfusion.serving.rates import Limits
from perfusion.serving.sign_in import sign_in_routes
from perfusion.serving.studio_page import studio_routes
from perfusion.serving.webui import webui_routes

__all__ = ["ServerParts", "make_application"]


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """What a server is made of."""

    runtime: Runtime
    library: Library
    history: History
    access: Access
    limits: Limits = field(default_factory=Limits)
    settings: bool = True  # whether pictures' files say how they were drawn
    client_queue: int = 64  # pictures of one client that may wait or be drawn


def make_application(parts: ServerParts) -> Starlette:
    """The application that draws for those whom its access lets in."""
    desk = Desk(
        parts.runtime, parts.library, parts.history, settings=parts.settings, client_queue=parts.client_queue
    )

    async def healthy(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(_metrics(parts.runtime))

    async def failed(request: Request, error: Exception) -> Response:
        return failure(request.url.path, error)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        desk.close()

    origins = list(parts.access.origins)
    methods, headers = ["GET", "POST", "PATCH", "DELETE"], ["Authorization", "Content-Type"]
    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=headers)
    return Starlette(
        routes=[
            Route("/healthz", healthy), Route("/readyz", healthy), Route("/metrics", metrics),
            *openai_routes(desk), *webui_routes(desk), *job_routes(desk), *concept_routes(parts.library),
            *picture_routes(parts.history), *inspection_routes(parts.library), *device_routes(parts.runtime),
            *sign_in_routes(parts.access), *studio_routes(),
        ],
        middleware=[*([cors] if origins else []), Middleware(Gate, access=parts.access, limits=parts.limits)],
        exception_handlers={PerfusionError: failed, HTTPException: failed, Exception: failed},
        lifespan=lifespan,
    )  # fmt: skip


def _metrics(runtime: Runtime) -> str:
    """Counters in Prometheus' text format."""
    lines = [
        "# TYPE perfusion_queue_waiting gauge",
        f"perfusion_queue_waiting {runtime.queue.waiting}",
        "# TYPE perfusion_unet_calls_total counter",
    ]
    for call, number in runtime.queue.calls.items():
        labels = f'pictures="{call.pictures}",concepts="{call.concepts}",steps="{call.steps}"'
        lines.append(f"perfusion_unet_calls_total{{{labels}}} {number}")
    return "\n".join(lines) + "\n"
