"""A server from its start to its end: listening, opening, ready, and going down without losing what is being drawn."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from perfusion.serving.application import Service
from perfusion.serving.doorway import Doorway
from perfusion.serving.notify import notify, watchdog_seconds
from perfusion.serving.patient_protocol import PatientProtocol

__all__ = ["Listening", "run_service"]

_MOST_CONNECTIONS = 1024
_MARGIN_SECONDS = 5  # for answers to leave after what they tell was cancelled


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where and how a server listens."""

    host: str = "127.0.0.1"
    port: int = 8188
    certificate: Path | None = None  # for TLS
    certificate_key: Path | None = None
    grace: float = 30.0  # seconds in which what is under way is finished at the end


def run_service(make: Callable[[], Service], listening: Listening) -> None:
    """Listen, open the service that `make` makes in a thread, and serve until SIGTERM or Ctrl-C.

    Raises:
        PerfusionError: what `make` raises.
    """
    services: list[Service] = []

    def make_application() -> ASGIApp:
        services.append(make())
        services[0].warm()
        return services[0].application

    def stop() -> None:
        notify("STOPPING=1")
        for service in services:
            service.desk.stop()
            asyncio.get_running_loop().call_later(listening.grace, service.desk.cancel_all)

    async def finish() -> None:
        for service in services:
            await service.desk.finished()

    server = _Server(_config(listening), stop)
    doorway = Doorway(
        make_application, when_open=lambda: notify("READY=1"), when_failed=server.end, finish=finish
    )
    server.config.app = doorway
    try:
        server.run()
    finally:
        for service in services:
            service.close()
    if doorway.error is not None:
        raise doorway.error


def _config(listening: Listening) -> uvicorn.Config:
    watchdog = watchdog_seconds()

    async def sign_of_life() -> None:
        notify("WATCHDOG=1")

    return uvicorn.Config(
        "", host=listening.host, port=listening.port, http=PatientProtocol, ws="none", lifespan="on",
        server_header=False, proxy_headers=False, access_log=False, log_config=None,
        limit_concurrency=_MOST_CONNECTIONS, timeout_graceful_shutdown=round(listening.grace) + _MARGIN_SECONDS,
        ssl_certfile=listening.certificate, ssl_keyfile=listening.certificate_key,
        callback_notify=sign_of_life if watchdog else None, timeout_notify=max(1, int(watchdog or 1)),
    )  # fmt: skip


class _Server(uvicorn.Server):
    """uvicorn's server, which tells of its end when it begins, and ends without an error."""

    def __init__(self, config: uvicorn.Config, when_stopped: Callable[[], object]) -> None:
        super().__init__(config)
        self._when_stopped = when_stopped

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals end the server; uvicorn would raise them once more afterwards."""
        names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.end)

        before = {number: signal.signal(number, handle) for number in numbers if _is_free(number)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def end(self) -> None:
        """Stop; the second time at once."""
        if self.should_exit:
            self.force_exit = True
            return
        self.should_exit = True
        self._when_stopped()


def _is_free(number: int) -> bool:
    """Whether a signal is not ignored, as SIGHUP is under nohup."""
    return signal.getsignal(number) is not signal.SIG_IGN
