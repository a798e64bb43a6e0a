"""A replica of a fleet: one bundle for all its life, the drawing queue, and the application of the single server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from starlette.types import Message

from perfusion.bundle.names import MANIFEST
from perfusion.bundle.reader import read_bundle
from perfusion.embedded import bundle_path
from perfusion.errors import BundleError, DeviceError
from perfusion.files import sha256_of
from perfusion.fleet.door import Call, ReplicaAnswer
from perfusion.fleet.result_store import ResultStore
from perfusion.fleet.store_library import StoreLibrary
from perfusion.hub import local_bundle
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.application import ServerParts, Service
from perfusion.serving.rates import Limits

__all__ = ["BUNDLE_HEADER", "Replica", "ReplicaSpec", "bundle_hash"]

BUNDLE_HEADER = b"x-perfusion-bundle"
"""Which bundle drew, with every answer: the start of the hash of its description, which names its files' hashes."""


_MOST_FAULTS = 3
_END_SECONDS = 10.0  # for the step to end in which a client goes away

_log = logging.getLogger("perfusion.serving.replica")


@dataclass(frozen=True, kw_only=True)
class ReplicaSpec:
    """What a replica draws with. Two that are equal draw alike."""

    bundle: str | None = None  # None: the embedded model
    bundle_hash: str  # of `bundle`: files that were changed under a replica that starts anew are refused
    library: str | None = None  # a folder or URL of concepts
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    provider: str = "auto"
    precision: str = "fp32"
    memory: str | float = "auto"
    threads: int | None = None
    batch_size: int = 8
    queue: int = 256  # pictures that may wait
    client_queue: int = 64  # pictures of one client that may wait or be drawn
    concepts: int = 256  # of the store that are loaded at a time, and as many that came with requests
    settings: bool = True  # whether pictures' files say how they were drawn


class Replica:
    """One process of a fleet; on a cluster a deployment of Ray Serve."""

    def __init__(self, spec: ReplicaSpec, name: str = "0") -> None:
        """Open the bundle and draw a step.

        Raises:
            BundleError: it is another one than the fleet was started with.
        """
        self.name = name
        self._bundle = bundle_hash(spec.bundle)
        if self._bundle != spec.bundle_hash:
            raise BundleError(
                f"{spec.bundle} is not the bundle that the fleet was started with. Put a new bundle into a new folder, "
                "and start the fleet with it again."
            )
        runtime = Runtime(
            spec.bundle, provider=spec.provider, precision=spec.precision, memory=spec.memory, threads=spec.threads,
            batch_size=spec.batch_size, queue_size=spec.queue,
        )  # fmt: skip
        store = None if spec.library is None else ResultStore(spec.library)
        library = StoreLibrary(runtime, store, spec.concepts)
        self._service = Service(
            ServerParts(
                runtime=runtime, library=library, history=None, access=spec.access, limits=spec.limits,
                settings=spec.settings, client_queue=spec.client_queue, riders=spec.concepts,
                lessons="A fleet does not teach over HTTP. perfusion-fleet train does.",
            )
        )  # fmt: skip
        self._service.warm()

    async def answer(self, call: Call) -> AsyncGenerator[Message]:
        """The messages of an answer, as ASGI has them. Who no longer takes them ends the work for them."""
        messages, gone = asyncio.Queue[Message | None](), asyncio.Event()
        body: list[Message] = [{"type": "http.request", "body": call.body, "more_body": False}]

        async def receive() -> Message:
            if body:
                return body.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = (BUNDLE_HEADER, self._bundle[:16].encode())
                message = {**message, "headers": [*message.get("headers", ()), own]}
            messages.put_nowait(message)

        async def respond() -> None:
            try:
                await self._service.application(dict(call.scope), receive, send)
            except Exception:
                _log.exception("an answer ended early")  # what was sent of it says so already
            finally:
                messages.put_nowait(None)

        work = asyncio.create_task(respond())
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            gone.set()
            await asyncio.wait([work], timeout=_END_SECONDS)
            work.cancel()

    async def whole_answer(self, call: Call) -> ReplicaAnswer:
        """The answer, once it is whole."""
        status, body = 0, b""
        async for message in self.answer(call):
            status = message.get("status", status)
            body += message.get("body", b"")
        return ReplicaAnswer(replica=self.name, status=status, body=body)

    def check_health(self) -> None:
        """Asked from time to time; what raises is replaced.

        Raises:
            DeviceError: it fails again and again, as after an error of a graphics card.
        """
        if self._service.desk.faults >= _MOST_FAULTS:
            raise DeviceError(f"{_MOST_FAULTS} pictures in a row failed by no fault of their own.")

    def close(self) -> None:
        """Cancel what is being drawn, and give everything back."""
        self._service.close()


def bundle_hash(bundle: str | None) -> str:
    """The hash of a bundle's description.

    Raises:
        BundleError: it is no bundle.
    """
    folder = bundle_path() if bundle is None else local_bundle(bundle)
    return sha256_of(read_bundle(folder, verify=False).folder / MANIFEST)
