"""The pictures of a sweep, each kept as soon as it is drawn, so that an interrupted sweep loses at most one batch."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from perfusion.concept.concept_file import Concept
from perfusion.concept.prompt_syntax import DEFAULT_SYNTAX, ParsedPrompt, parse_prompt
from perfusion.concept.regions import Region
from perfusion.concept.settings import OFF, SETTINGS
from perfusion.concept.things import read_marks
from perfusion.errors import RequestError
from perfusion.picture_input import mask_of, open_picture
from perfusion.runtime.picture_settings import save, settings_of
from perfusion.sweep.ranges import Setting

if TYPE_CHECKING:
    from perfusion.runtime import Runtime

__all__ = ["Drawings", "Job", "identity"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to draw; without a setting the base model's, with superclasses in the concepts' places."""

    prompt: str
    seed: int
    setting: Setting | None


class Drawings:
    """Pictures in a folder, found again by all that decides how they look. Each file says how it was drawn.

    Args:
        folder: made when the first picture is kept.
        runtime: with the concepts loaded.
        options: of `Runtime.generate`, the same for every picture; neither lock nor settings.
        batch_size: pictures of one call.
    """

    def __init__(
        self, folder: Path, runtime: Runtime, options: Mapping[str, Any], *, batch_size: int = 8
    ) -> None:
        self.folder = folder
        self._runtime, self._options, self._batch_size = runtime, dict(options), batch_size
        self._identity = identity(runtime, options)

    def draw(self, jobs: Sequence[Job], report: Callable[[int], None] | None = None) -> int:
        """Draw what is not there yet; returns how many were. ``report`` is told how many of all are there."""
        missing = [job for job in dict.fromkeys(jobs) if not self._kept(job)]
        there = len(set(jobs)) - len(missing)
        if report:
            report(there)
        # one call has one lock
        for _, group in itertools.groupby(missing, key=lambda job: job.setting and job.setting.lock):
            # the latest start first: one that no step meets is refused before much is drawn
            waiting = sorted(group, key=lambda job: -job.setting.start if job.setting else 0.0)
            for start in range(0, len(waiting), self._batch_size):
                batch = waiting[start : start + self._batch_size]
                for job, picture in zip(batch, self._generate(batch), strict=True):
                    self._keep(job, picture)
                there += len(batch)
                if report:
                    report(there)
        return len(missing)

    def picture(self, job: Job) -> Image.Image:
        """A picture that has been drawn."""
        with Image.open(self._path(job)) as file:
            return file.convert("RGB")

    def _generate(self, batch: Sequence[Job]) -> list[Image.Image]:
        """Pictures of one lock, each with its own setting."""
        concepts, first = self._runtime.concepts, batch[0].setting
        return self._runtime.generate(
            [job.prompt for job in batch],
            seed=[job.seed for job in batch],
            concept_settings=[dict.fromkeys(concepts, job.setting or OFF) for job in batch],
            lock=None if first is None else first.lock,
            **self._options,
        )

    @property
    def superclasses(self) -> tuple[str, ...]:
        """Of the loaded concepts."""
        return tuple(concept.superclass for concept in self._runtime.concepts.values())

    def check(self, prompt: str) -> None:
        """Refuse a prompt that gives a concept a strength of its own: every setting would be drawn alike.

        Raises:
            RequestError: it does, or its syntax cannot be read.
        """
        parsed = self._parsed(prompt)
        for token, strength in parsed.strengths.items():
            raise RequestError(
                f"The prompt {prompt!r} gives {token} the strength {strength:g}, and a sweep gives its own. "
                "Take <lora:…> out."
            )

    def plain(self, prompt: str) -> str:
        """The prompt in the base model's own words: superclasses in the place of the concepts' tokens, no weights, no
        marks."""
        superclasses = {token: concept.superclass for token, concept in self._runtime.concepts.items()}
        return read_marks(self._parsed(prompt).text, superclasses).plain(superclasses).text

    def _parsed(self, prompt: str) -> ParsedPrompt:
        return parse_prompt(
            prompt, self._runtime.concepts, self._options.get("prompt_syntax", DEFAULT_SYNTAX)
        )

    def _kept(self, job: Job) -> bool:
        """Whether its picture is there and whole; one that is not is drawn anew."""
        try:
            self.picture(job)
        except (OSError, SyntaxError):  # Pillow's words for a broken PNG
            return False
        return True

    def _keep(self, job: Job, picture: Image.Image) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = OFF if job.setting is None else {name: getattr(job.setting, name) for name in SETTINGS}
        settings = settings_of(
            self._runtime, job.prompt, job.seed, exact=False, lock=None if job.setting is None else job.setting.lock,
            concept_settings=dict.fromkeys(self._runtime.concepts, numbers), **self._options,
        )  # fmt: skip
        save(picture, self._path(job), settings)

    def _path(self, job: Job) -> Path:
        facts = {
            "of": self._identity, "prompt": job.prompt, "seed": job.seed,
            "setting": None if job.setting is None else asdict(job.setting),
        }  # fmt: skip
        return self.folder / f"{_digest(json.dumps(facts, sort_keys=True).encode())[:32]}.png"


def identity(runtime: Runtime, options: Mapping[str, Any]) -> str:
    """A digest of the bundle, the concepts, what computes and the options: pictures of equal prompt, seed and setting
    are equal."""
    bundle = (runtime.bundle.folder / "bundle.json").read_bytes()  # holds the checksums of all files
    concepts = [_digest_of(concept) for _, concept in sorted(runtime.concepts.items())]
    computed = [runtime.provider, runtime.precision]
    text = json.dumps([_digest(bundle), concepts, computed, dict(options)], sort_keys=True, default=_text_of)
    return _digest(text.encode())


def _text_of(option: Any) -> str:
    """An option that JSON has no form for; a region's mask by what it shows, for its file may be painted anew."""
    if not isinstance(option, Region) or option.mask is None:
        return str(option)
    mask = mask_of(open_picture(option.mask))
    return f"{option.word} {mask.size} {_digest(mask.tobytes())}"


def _digest_of(concept: Concept) -> str:
    """All of a concept but its default settings: a sweep gives its own."""
    arrays = [concept.direction, concept.dual, concept.energy, concept.target_values, *concept.embeddings]
    arrays += [concept.superclass_encoding, *([] if concept.target_keys is None else [concept.target_keys])]
    parts = [concept.token.encode(), concept.superclass.encode(), concept.base_fingerprint.encode()]
    return _digest(b"\0".join(parts + [np.ascontiguousarray(array).tobytes() for array in arrays]))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
