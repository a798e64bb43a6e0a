"""The server as one ASGI application: routes of all dialects behind the gate, errors as objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

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
from perfusion.serving.answers import failure, refused_routes
from perfusion.serving.concept_routes import concept_routes
from perfusion.serving.desk import Desk
from perfusion.serving.device_routes import device_routes
from perfusion.serving.front_routes import Judge, front_routes
from perfusion.serving.gate import Gate
from perfusion.serving.history import History
from perfusion.serving.inspection import inspection_routes
from perfusion.serving.job_routes import job_routes
from perfusion.serving.lesson_routes import lesson_routes
from perfusion.serving.lessons import Lessons
from perfusion.serving.library import Library, WordLibrary
from perfusion.serving.mask_routes import mask_routes
from perfusion.serving.meters import Meters
from perfusion.serving.openai_images import openai_routes
from perfusion.serving.picture_routes import picture_routes
from perfusion.serving.portraits import Portraits
from perfusion.serving.rates import Limits
from perfusion.serving.request_log import RequestLog, RequestRecord
from perfusion.serving.sign_in import sign_in_routes
from perfusion.serving.studio_page import studio_routes
from perfusion.serving.superclass_routes import superclass_routes
from perfusion.serving.sweep_routes import sweep_routes
from perfusion.serving.webui import webui_routes

__all__ = ["ServerParts", "Service", "guards"]


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """What a server is made of."""

    runtime: Runtime
    library: WordLibrary  # a `Library` can be changed over HTTP too
    history: History | None  # None: nothing is kept of clients beyond their requests
    access: Access
    limits: Limits = field(default_factory=Limits)
    settings: bool = True  # whether pictures' files say how they were drawn
    client_queue: int = 64  # pictures of one client that may wait or be drawn
    riders: int = 256  # concepts that came with requests and stay loaded for the next
    lessons: Lessons | str = "This server does not teach."  # or why it does not
    scorer: Path | None = None  # a folder of what judges pictures; None: the embedded model's own


class Service:
    """A server's application, with what it needs to end well."""

    def __init__(self, parts: ServerParts) -> None:
        self._parts = parts
        self.meters = Meters(parts.runtime)
        self.desk = Desk(
            parts.runtime, parts.library, parts.history, self.meters, settings=parts.settings,
            client_queue=parts.client_queue, riders=parts.riders,
        )  # fmt: skip
        self.application = self._application()

    def warm(self) -> None:
        """Draw a step, so that the first who asks waits no longer than the second."""
        runtime = self._parts.runtime
        # It names a concept, or the runtime would warn that no prompt names any.
        runtime.generate(next(iter(runtime.concepts), ""), num_inference_steps=1)

    def close(self) -> None:
        """Give everything back; orders that are not over are cancelled."""
        if isinstance(self._parts.lessons, Lessons):
            self._parts.lessons.close()
        self.desk.close()
        self._parts.runtime.close()
        if self._parts.history is not None:
            self._parts.history.close()

    def _application(self) -> Starlette:
        parts, desk = self._parts, self.desk

        async def healthy(request: Request) -> Response:
            return PlainTextResponse("ok")

        async def metrics(request: Request) -> Response:
            return PlainTextResponse(self.meters.text())

        async def failed(request: Request, error: Exception) -> Response:
            return failure(request.url.path, error)

        return Starlette(
            routes=[
                Route("/healthz", healthy), Route("/readyz", healthy), Route("/metrics", metrics),
                *openai_routes(desk), *webui_routes(desk), *self._keeping_routes(),
                *inspection_routes(parts.library), *device_routes(parts.runtime),
                *lesson_routes(parts.lessons), *mask_routes(parts.lessons), *superclass_routes(parts.runtime),
                *sign_in_routes(parts.access), *studio_routes(),
            ],
            middleware=guards(parts.access, parts.limits, self.meters.request),
            exception_handlers={PerfusionError: failed, HTTPException: failed, Exception: failed},
        )  # fmt: skip

    def _keeping_routes(self) -> list[Route]:
        """The routes of what stays between requests: pictures, what draws them later, and concepts."""
        history, library, routes = self._parts.history, self._parts.library, list[Route]()
        if history is None:
            routes += refused_routes(501, _NO_HISTORY, *_below("/api/jobs", "/api/sweeps", "/api/pictures"))
        else:
            routes += [*job_routes(self.desk, history), *picture_routes(history)]
        if not isinstance(library, Library):
            routes += refused_routes(501, _NO_LIBRARY, *_below("/api/concepts", "/api/sweeps", "/api/fronts"))
        else:
            routes += concept_routes(library, Portraits(self._parts.runtime))
        if history is not None and isinstance(library, Library):
            judge = Judge(library, self._parts.scorer)
            routes += sweep_routes(self.desk, library, history)
            routes += front_routes(library, history, self._parts.lessons, judge)
        return routes


def _below(*paths: str) -> list[str]:
    """Some paths and all that begin with them."""
    return [path for start in paths for path in (start, f"{start}/{{rest:path}}")]


_NO_HISTORY = (
    "This server keeps no jobs and no pictures. Ask /v1/images/generations, which answers with the picture, or with "
    "its steps and the picture where stream is true."
)
_NO_LIBRARY = (
    "This server's concepts are files in a store, which are changed there. Name them in prompts, or send your own in "
    "the field concept_files."
)


def guards(access: Access, limits: Limits, observe: Callable[[RequestRecord], object]) -> list[Middleware]:
    """What every request passes before its route: the log, which `observe` is told of too, and the gate."""
    return [
        Middleware(RequestLog, observe=observe),
        *_cors(access),
        Middleware(Gate, access=access, limits=limits),
    ]


def _cors(access: Access) -> list[Middleware]:
    """Answers to browsers that ask whether a page of another site may; none where no site may."""
    if not access.origins:
        return []
    methods, headers = ["GET", "POST", "PATCH", "DELETE"], ["Authorization", "Content-Type"]
    return [
        Middleware(
            CORSMiddleware, allow_origins=list(access.origins), allow_methods=methods, allow_headers=headers
        )
    ]
