"""A client of the soak: it draws, cancels, goes away, sends rubbish and swaps concepts, and checks what it gets."""

from __future__ import annotations

import base64
import io
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from perfusion.runtime import Runtime

__all__ = ["Findings", "References", "SoakClient"]

SAMPLES = ("gold-hat", "pink-cake", "school-bus")
STRENGTHS, SEEDS, STEPS, SIDE = (1.0, 0.6), (0, 1, 2), (2, 4), 64
LEAST_DECIBELS, MOST_LEVELS = 50.0, 4


class References:
    """The exact picture of each sample, strength, seed and number of steps, drawn once; for several threads."""

    def __init__(self) -> None:
        self._runtime = Runtime(provider="cpu", threads=1)
        self._lock = threading.Lock()
        self._pictures: dict[tuple[str, float, int, int], np.ndarray] = {}
        for sample in SAMPLES:
            self._runtime.load_concept(sample)
        self.guidance_scale = (
            self._runtime.bundle.defaults.guidance_scale
        )  # as A1111's clients always send one

    def picture(self, sample: str, strength: float, seed: int, steps: int) -> np.ndarray:
        """(height, width, 3), whole numbers from 0 to 255."""
        with self._lock:
            key = (sample, strength, seed, steps)
            if key not in self._pictures:
                drawing = self._runtime.generate(
                    f"a photo of a <{sample}>", seed=seed, num_inference_steps=steps, width=SIDE, height=SIDE,
                    concept_settings={f"<{sample}>": {"strength": strength}},
                )  # fmt: skip
                self._pictures[key] = np.asarray(drawing.convert("RGB"), int)
            return self._pictures[key]


@dataclass
class Findings:
    """What all clients saw; for several threads."""

    actions: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    pictures: int = 0  # that were compared with their exact ones
    least_decibels: float = np.inf
    most_levels: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def compare(self, drawing: np.ndarray, expected: np.ndarray, what: str) -> None:
        """Take note of how far a picture is from its exact one."""
        difference = np.abs(drawing - expected)
        square = float(np.square(difference).mean())
        decibels = np.inf if square == 0 else 10 * np.log10(255**2 / square)
        with self.lock:
            self.pictures += 1
            self.least_decibels = min(self.least_decibels, decibels)
            self.most_levels = max(self.most_levels, int(difference.max()))
        if decibels < LEAST_DECIBELS or difference.max() > MOST_LEVELS:
            self.fault(f"{what}: {decibels:.1f} dB, up to {difference.max()} levels from its exact picture")

    def fault(self, what: str) -> None:
        """Take note of what should not have been."""
        with self.lock:
            self.faults.append(what)


class SoakClient(threading.Thread):
    """One client, until it is told to end. While `is_down` is set, the server is being killed and started."""

    def __init__(
        self, number: int, address: str, key: str, references: References, findings: Findings, is_down: threading.Event
    ) -> None:  # fmt: skip
        super().__init__(name=f"soak-{number}", daemon=True)
        self._random = random.Random(number)
        self._number, self._references, self._findings, self._is_down = number, references, findings, is_down
        self._http = httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}", "Connection": "close"}, timeout=300
        )
        self._ends = threading.Event()
        self._actions: list[Callable[[], None]] = [
            *[self.draw] * 4, *[self.draw_as_webui] * 2, self.draw_as_job, self.cancel_a_job, self.go_away,
            self.interrupt, self.send_rubbish, self.swap_a_concept, self.look_at_the_history, self.look_around,
        ]  # fmt: skip

    def run(self) -> None:
        """Do one thing after another by chance."""
        with self._http:
            while not self._ends.is_set():
                action = self._random.choice(self._actions)
                with self._findings.lock:
                    self._findings.actions[action.__name__] += 1
                try:
                    action()
                except Exception as error:
                    if not self._is_down.is_set():
                        self._findings.fault(f"{action.__name__}: {type(error).__name__} {error}")
                    time.sleep(0.5)

    def stop(self) -> None:
        """End after what it does now."""
        self._ends.set()

    def draw(self) -> None:
        """A picture by OpenAI's route."""
        sample, strength, seed, steps = self._choice()
        answer = self._ask("POST", "/v1/images/generations", json=self._fields(sample, strength, seed, steps))
        self._check(base64.b64decode(answer.json()["data"][0]["b64_json"]), sample, strength, seed, steps)

    def draw_as_webui(self) -> None:
        """A picture by A1111's route."""
        sample, strength, seed, steps = self._choice()
        fields = {
            "prompt": f"a photo of a <{sample}><lora:{sample}:{strength}>", "seed": seed, "steps": steps, "width": SIDE,
            "height": SIDE, "cfg_scale": self._references.guidance_scale,
        }  # fmt: skip
        answer = self._ask("POST", "/sdapi/v1/txt2img", json=fields)
        self._check(base64.b64decode(answer.json()["images"][0]), sample, strength, seed, steps)

    def draw_as_job(self) -> None:
        """A picture by the server's own route, watched to its end, marked and perhaps removed."""
        sample, strength, seed, steps = self._choice()
        job = self._ask("POST", "/api/jobs", json=self._fields(sample, strength, seed, steps)).json()
        facts = self._ended(job["id"])
        assert facts["state"] == "done", f"a job is {facts['state']}: {facts['error']}"
        (address,) = facts["pictures"]
        self._check(self._ask("GET", address).content, sample, strength, seed, steps)
        if self._random.random() < 0.8:
            self._ask("DELETE", address)

    def cancel_a_job(self) -> None:
        """A long job, cancelled soon."""
        job = self._ask(
            "POST", "/api/jobs", json=self._fields(*self._choice()) | {"num_inference_steps": 500}
        ).json()
        time.sleep(self._random.random())
        self._ask("DELETE", f"/api/jobs/{job['id']}", also=(409,))
        assert self._ended(job["id"])["state"] == "cancelled", "a cancelled job is not"

    def go_away(self) -> None:
        """A long stream that is left."""
        fields = self._fields(*self._choice()) | {
            "stream": True,
            "partial_images": 3,
            "num_inference_steps": 500,
        }
        with self._http.stream("POST", "/v1/images/generations", json=fields) as answer:
            self._note(answer, ())
            time.sleep(self._random.random())

    def interrupt(self) -> None:
        """A long picture, interrupted: it comes as far as it was drawn."""
        fields = {"prompt": "a photo of a <gold-hat>", "steps": 150, "width": SIDE, "height": SIDE}
        answers: list[httpx.Response] = []

        def draw() -> None:
            with suppress(httpx.TransportError):  # the interrupts meet it too, and tell
                answers.append(self._http.post("/sdapi/v1/txt2img", json=fields))

        thread = threading.Thread(target=draw)
        thread.start()
        time.sleep(self._random.random())
        while thread.is_alive():
            self._ask("POST", "/sdapi/v1/interrupt")
            thread.join(0.5)
        for answer in answers:
            self._note(answer, ())

    def send_rubbish(self) -> None:
        """What is no concept, no picture and no JSON."""
        data = self._random.randbytes(self._random.randint(0, 4000))
        also = (400, 413)
        self._ask(
            "POST", "/api/concepts", also, files={"file": ("x.safetensors", data)}, data={"name": "rubbish"}
        )
        self._ask(
            "POST", "/v1/images/edits", also, files={"image": ("x.png", data)}, data={"prompt": "a cat"}
        )
        self._ask("POST", "/api/inspect", also, files={"file": ("x", data)})
        self._ask(
            "POST", self._random.choice(["/api/jobs", "/sdapi/v1/txt2img", "/api/sweeps"]), also, content=data
        )

    def swap_a_concept(self) -> None:
        """A concept under a name of its own: it comes, is drawn with, and goes."""
        sample, strength, seed, steps = self._choice()
        name = f"soak-{self._number}"
        data = self._ask("GET", f"/api/concepts/{sample}/file").content
        self._ask("DELETE", f"/api/concepts/{name}", (404,))
        self._ask("POST", "/api/concepts", files={"file": ("x.safetensors", data)}, data={"name": name})
        answer = self._ask("POST", "/v1/images/generations", json=self._fields(name, strength, seed, steps))
        self._check(base64.b64decode(answer.json()["data"][0]["b64_json"]), sample, strength, seed, steps)
        self._ask("DELETE", f"/api/concepts/{name}")

    def look_at_the_history(self) -> None:
        """Each picture that is listed is there."""
        for picture in self._ask("GET", "/api/pictures", params={"limit": 20}).json()[:3]:
            self._ask("GET", picture["url"], (404,))
        assert all(
            job["state"] != "drawing" or job["step"] is not None
            for job in self._ask("GET", "/api/jobs").json()
        ), "a job is half done, and nobody draws it"

    def look_around(self) -> None:
        """The lists."""
        for path in ("/api/concepts", "/sdapi/v1/progress", "/v1/models", "/metrics", "/"):
            self._ask("GET", path)

    def _choice(self) -> tuple[str, float, int, int]:
        choose = self._random.choice
        return choose(SAMPLES), choose(STRENGTHS), choose(SEEDS), choose(STEPS)

    def _fields(self, name: str, strength: float, seed: int, steps: int) -> dict[str, Any]:
        settings = {f"<{name}>": {"strength": strength}}
        return {
            "prompt": f"a photo of a <{name}>", "seed": seed, "num_inference_steps": steps, "concepts": settings,
            "concept_settings": settings, "size": f"{SIDE}x{SIDE}", "width": SIDE, "height": SIDE,
        }  # fmt: skip

    def _check(self, data: bytes, sample: str, strength: float, seed: int, steps: int) -> None:
        with Image.open(io.BytesIO(data)) as picture:
            drawing = np.asarray(picture.convert("RGB"), int)
        expected = self._references.picture(sample, strength, seed, steps)
        self._findings.compare(drawing, expected, f"<{sample}> at {strength}, seed {seed}, {steps} steps")

    def _ended(self, job: str) -> dict[str, Any]:
        while True:
            facts: dict[str, Any] = self._ask("GET", f"/api/jobs/{job}").json()
            if facts["state"] not in ("waiting", "drawing"):
                return facts
            time.sleep(0.2)

    def _ask(self, method: str, path: str, also: tuple[int, ...] = (), **options: Any) -> httpx.Response:
        """An answer, asked for again where the server is busy; `also`: statuses that are right beside success."""
        while True:
            answer = self._http.request(method, path, **options)
            self._note(answer, (*also, 429))
            if answer.status_code != 429:
                return answer
            time.sleep(self._random.random())

    def _note(self, answer: httpx.Response, also: tuple[int, ...]) -> None:
        with self._findings.lock:
            self._findings.statuses[answer.status_code] += 1
        is_right = answer.status_code < 300 or answer.status_code in also
        assert is_right, f"{answer.request.method} {answer.request.url.path} is {answer.status_code}"
