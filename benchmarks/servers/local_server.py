"""perfusion-serve's application over a socket of this machine, with concepts by number, and a client of it."""

import http.client
import json
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from typing_extensions import Self

from perfusion.bundle.description import Bundle
from perfusion.concept.concept_file import Concept
from perfusion.runtime import Runtime
from perfusion.serving.access import Access
from perfusion.serving.application import ServerParts, Service
from perfusion.serving.history import History
from perfusion.serving.library import Library
from perfusion.serving.patient_protocol import PatientProtocol
from perfusion.serving.rates import Limits

__all__ = ["Client", "server_of"]

SAMPLES = ("gold-hat", "pink-cake", "school-bus")


@contextmanager
def server_of(bundle: Path | None, concepts: int, batch_size: int) -> Iterator[tuple[int, Runtime]]:
    """A server that draws `<thing-0>` and so on; its port and its runtime. Without a bundle the embedded model's."""
    runtime = Runtime(bundle, batch_size=batch_size)
    for number in range(concepts):  # a concept under another token is another concept
        sample = SAMPLES[number % len(SAMPLES)] if bundle is None else random_concept(runtime.bundle, number)
        runtime.load_concept(sample, token=f"<thing-{number}>")
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        parts = ServerParts(
            runtime=runtime, library=Library(runtime, samples=False), history=History(Path(folder)),
            access=Access(), limits=Limits(rate=1e6, burst=1e6),
        )  # fmt: skip
        service = Service(parts)
        config = uvicorn.Config(
            service.application, log_config=None, access_log=False, ws="none", timeout_keep_alive=600,
            http=PatientProtocol,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1], runtime
        finally:
            server.should_exit = True
            thread.join()
            service.close()


def random_concept(bundle: Bundle, number: int) -> Concept:
    """A concept of the right sizes that means nothing."""
    random = np.random.default_rng(number)

    def row(width: int) -> np.ndarray:
        return random.standard_normal((1, width)).astype(np.float32)

    direction = row(bundle.text_dim)
    return Concept(
        token=f"<thing-{number}>", superclass="cat", base=bundle.base, base_fingerprint=bundle.base_fingerprint,
        direction=direction, dual=direction / (direction**2).sum(), energy=np.ones(1, np.float32),
        superclass_encoding=direction, embeddings=tuple(row(encoder.hidden_size) for encoder in bundle.text_encoders),
        target_values=row(bundle.unet.value_width), target_keys=row(bundle.unet.key_width),
    )  # fmt: skip


class Client:
    """A client with a connection of its own."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def draw(self, number: int, seed: int, **options: Any) -> None:
        """A picture of a concept, by OpenAI's route."""
        options["size"] = f"{options.pop('width')}x{options.pop('height')}" if "width" in options else "auto"
        self._post("/v1/images/generations", number, seed, options)

    def text(self, path: str) -> str:
        """What a route answers."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
        return body

    def first_preview(self, number: int, seed: int, **options: Any) -> int:
        """Order a picture by the server's own route; how many steps it had taken when its first preview came."""
        job = json.loads(self._post("/api/jobs", number, seed, options))
        self._connection.request("GET", f"/api/jobs/{job['id']}/events")
        answer = self._connection.getresponse()
        step, is_preview = 0, False
        for line in iter(answer.readline, b""):  # to its end, so that the connection is free again
            is_preview = line == b"event: preview\n" or (is_preview and line != b"\n")
            if is_preview and not step and line.startswith(b"data: "):
                step = json.loads(line[6:])["step"]
        assert step, "there was no preview"
        return step

    def _post(self, path: str, number: int, seed: int, options: dict[str, Any]) -> bytes:
        return self.post(
            path, {"prompt": f"a photo of a <thing-{number}> on a beach", "seed": seed, **options}
        )

    def post(self, path: str, fields: dict[str, Any]) -> bytes:
        """What a route answers to some fields."""
        self._connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == (202 if path == "/api/jobs" else 200), body  # 202: a job is only ordered
        return body
