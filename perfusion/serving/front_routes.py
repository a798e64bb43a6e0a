"""`/api/fronts`: settings of a concept measured by their pictures, with the front and the one to recommend.

The pictures are the client's own, drawn beforehand: each prompt and seed with every setting, and once with a strength
of 0, which is the superclass. The subject is shown by photos, or by a training of this server.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from perfusion.concept.settings import SETTINGS
from perfusion.embedded import is_embedded
from perfusion.judging.probes import Probes, open_probes
from perfusion.judging.scales import Similarities, similarities
from perfusion.judging.scorer import OnnxScorer, Scorer
from perfusion.picture_input import as_rgb
from perfusion.serving.answers import StatusError
from perfusion.serving.bodies import form_body, picture_of
from perfusion.serving.gate import client_of
from perfusion.serving.history import History, StoredPicture
from perfusion.serving.lessons import MOST_PHOTOS, Lessons
from perfusion.serving.library import Library
from perfusion.sweep.front import Point, points_of
from perfusion.sweep.ranges import Setting

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Judge", "front_routes"]

_MOST_PICTURES = 400


class Judge:
    """Measures pictures: the scorer that goes with the embedded model, or a folder of ONNX graphs."""

    def __init__(self, library: Library, folder: Path | None = None) -> None:
        """`folder`: of a scorer; None: the embedded model's own, for its own pictures alone."""
        self._library, self._folder = library, folder
        self._lock = threading.Lock()
        self._opened: tuple[Scorer, Probes] | None = None

    def open(self) -> tuple[Scorer, Probes]:
        """The scorer, and what sees texture.

        Raises:
            StatusError: nobody judges the pictures of this base model.
            ModelError: the folder is no scorer's.
        """
        base = self._library.runtime.bundle.base
        folder = self._folder
        if folder is None and is_embedded(base):
            from perfusion.embedded import scorer_path

            folder = scorer_path()
        if folder is None:
            raise StatusError(
                404, f"Nobody judges the pictures of {base} here. Start the server with --scorer DIR, a folder of a "
                "scorer's ONNX graphs.",
            )  # fmt: skip
        with self._lock:
            if self._opened is None:
                scorer = OnnxScorer(folder, threads=1)
                self._opened = scorer, open_probes(folder, scorer, base)
            return self._opened


@dataclass(frozen=True, kw_only=True, eq=False)
class _Drawing:
    """A picture of the history, opened."""

    prompt: str
    seed: int
    setting: Setting
    picture: Image

    @property
    def place(self) -> tuple[str, int]:
        return self.prompt, self.seed


def front_routes(library: Library, history: History, lessons: Lessons | str, judge: Judge) -> list[Route]:
    """The route that measures."""

    async def front(request: Request) -> Response:
        client = client_of(request)
        async with form_body(request) as form:
            word = library.word(str(form.get("concept") or ""))
            library.get(word[1:-1])
            subject = await _subject(form, lessons, client)
            names = _pictures_in(form)
        points = await asyncio.to_thread(_points, library, history, judge, client, word, names, subject)
        return JSONResponse({"points": [_facts(point) for point in points]})

    return [Route("/api/fronts", front, methods=["POST"])]


async def _subject(form: FormData, lessons: Lessons | str, client: str) -> list[Image]:
    """Pictures of the subject: those that came with the form, or those that a training learned from.

    Raises:
        StatusError: there are none.
    """
    uploads = [each for each in form.getlist("subject") if isinstance(each, UploadFile)][:MOST_PHOTOS]
    if uploads:
        return [as_rgb(await asyncio.to_thread(picture_of, await each.read(), "subject")) for each in uploads]
    number = str(form.get("training") or "")
    if not number or isinstance(lessons, str):
        raise StatusError(
            400,
            "There are no pictures of the subject. Send some as subject, or name a training.",
            field="subject",
        )
    lesson = lessons.get(client, number)
    return await asyncio.to_thread(lessons.subject, lesson)


def _pictures_in(form: FormData) -> list[str]:
    try:
        names = json.loads(str(form.get("pictures") or ""))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not names:
        raise StatusError(
            400,
            'The pictures are no JSON list of addresses, such as ["/api/pictures/12ab"].',
            field="pictures",
        )
    if len(names) > _MOST_PICTURES:
        raise StatusError(
            413, f"There are {len(names)} pictures, expected at most {_MOST_PICTURES}.", field="pictures"
        )
    return [name.rpartition("/")[2] for name in dict.fromkeys(names)]


def _points(
    library: Library, history: History, judge: Judge, client: str, word: str, names: Sequence[str],
    subject: Sequence[Image],
) -> tuple[Point, ...]:  # fmt: skip
    """One point a setting."""
    scorer, probes = judge.open()
    drawings = [_drawing(history, history.picture(client, name), word) for name in names]
    plain = {each.place: each for each in drawings if each.setting.strength == 0}
    by_setting: dict[Setting, dict[tuple[str, int], _Drawing]] = {}
    for each in drawings:
        if each.setting.strength != 0:
            by_setting.setdefault(each.setting, {})[each.place] = each
    places = list(plain)
    if not places or not by_setting or any(set(row) != set(places) for row in by_setting.values()):
        raise StatusError(
            400, "Each prompt and seed is needed with every setting, and once with a strength of 0 for the superclass.",
            field="pictures",
        )  # fmt: skip
    nouns = {known.word: known.concept.superclass for known in library.concepts if known.concept}
    prompts = [_spelled_out(prompt, nouns) for prompt, _ in places]
    texts, target = scorer.embed_texts(prompts), scorer.embed_pictures(subject)
    origin = scorer.embed_pictures([plain[place].picture for place in places])
    measured: dict[Setting, Similarities] = {}
    shown: dict[Setting, float] = {}
    for setting, row in by_setting.items():
        pictures = [row[place].picture for place in places]
        measured[setting] = similarities(scorer.embed_pictures(pictures), origin, target, texts)
        shown[setting] = probes(pictures, prompts, [nouns[word]]).share
    return points_of(measured, shown)


def _drawing(history: History, stored: StoredPicture | None, word: str) -> _Drawing:
    from PIL import Image

    settings = {} if stored is None else stored.settings.get("concepts", {}).get(word)
    if stored is None or not isinstance(settings, Mapping) or not settings:
        raise StatusError(
            404,
            f"One of the pictures is not there any longer, or was not drawn with {word}.",
            field="pictures",
        )
    numbers = {name: settings[name] for name in SETTINGS if settings.get(name) is not None}
    with Image.open(history.file(stored)) as picture:
        return _Drawing(
            prompt=stored.prompt, seed=int(stored.settings["seed"]), setting=Setting(**numbers),
            picture=picture.convert("RGB"),
        )  # fmt: skip


def _spelled_out(prompt: str, nouns: Mapping[str, str]) -> str:
    """A prompt with the superclasses in the places of the concepts' words."""
    for word, noun in nouns.items():
        prompt = prompt.replace(word, noun)
    return prompt


def _facts(point: Point) -> dict[str, Any]:
    values = asdict(point)
    return {"settings": {name: values["setting"][name] for name in SETTINGS}} | {
        name: values[name]
        for name in ("image", "text", "image_error", "text_error", "shown", "on_front", "recommended")
    }
