"""Servers on the toy bundle, over sockets of this machine."""

import base64
import io
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.application import ServerParts, Service
from perfusion.serving.history import Bounds, History
from perfusion.serving.lessons import Lessons
from perfusion.serving.library import Library
from perfusion.serving.patient_protocol import PatientProtocol


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """A server that answers."""

    address: str
    parts: ServerParts
    folder: Path

    @property
    def runtime(self):
        return self.parts.runtime


@pytest.fixture(scope="module")
def toy_concept(bundle, make_concept):
    """Makes concepts that fit the toy bundle."""

    def make(**fields):
        traits = {"base": bundle.base, "base_fingerprint": bundle.base_fingerprint}
        return make_concept(text_dim=bundle.text_dim, width=bundle.unet.key_width, **(traits | fields))

    return make


@pytest.fixture(scope="module")
def serve(bundle, toy_concept, tmp_path_factory):
    """Starts servers with `<cat>` in their libraries."""
    stops = []

    def serve(*, keys=(), access=None, bounds=None, files=None, queue_size=256, teaches=False, **options):
        folder = tmp_path_factory.mktemp("server")
        runtime = Runtime(bundle.folder, provider="cpu", threads=1, batch_size=4, queue_size=queue_size)
        (folder / "concepts").mkdir()
        toy_concept().save(folder / "concepts" / "cat.safetensors")
        for name, concept in (files or {}).items():
            concept.save(folder / "concepts" / name)
        history = History(folder, bounds or Bounds())
        library = Library(runtime, folder / "concepts", samples=False, embeddings=folder / "embeddings")
        if teaches:
            options["lessons"] = Lessons(folder / "trainings", library)
        parts = ServerParts(
            runtime=runtime, library=library, history=history, access=access or Access.of("127.0.0.1", keys),
            **options,
        )  # fmt: skip
        listener = socket.create_server(("127.0.0.1", 0))
        service = Service(parts)
        config = uvicorn.Config(
            service.application, log_level="error", ws="none", proxy_headers=False, http=PatientProtocol
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()

        def stop():
            server.should_exit = True
            thread.join()
            listener.close()
            service.close()

        stops.append(stop)
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        return RunningServer(address=address, parts=parts, folder=folder)

    yield serve
    for stop in stops:
        stop()


@pytest.fixture(scope="module")
def server(serve):
    return serve(teaches=True)


@pytest.fixture(scope="module")
def locked(serve):
    return serve(keys=["open sesame", "another key"])


def picture_of(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def wait_for(condition, seconds=20.0):
    """Wait until a condition holds, and give its value."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError("the condition did not come to hold")
