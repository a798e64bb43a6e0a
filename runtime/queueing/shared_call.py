"""Which pictures share the next call of the UNet, and how large that call is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from perfusion.bundle.call_size import CallSize
from perfusion.concept.concept_file import Concept
from perfusion.runtime.preparation import Draft
from perfusion.runtime.queueing.job import Job
from perfusion.runtime.sampling.course import Course
from perfusion.runtime.step import Step

__all__ = ["Picture", "SharedCall", "choose_call"]


class Picture:
    """A job with what it is drawn from, and its course once its turn has come."""

    def __init__(
        self, *, job: Job, draft: Draft, exact: bool, callback: Callable[[Step], object] | None
    ) -> None:
        self.job, self.draft, self.exact, self.callback = job, draft, exact, callback
        self.concepts: dict[str, Concept] = draft.concepts
        self.size = draft.call_size(1)  # of a call that it has for itself
        self.last_call = -1  # the number of the call that held it last
        self._course: Course | None = None

    def begin(self, course: Course) -> None:
        """Take the course that it follows from now on."""
        self._course = course

    @property
    def course(self) -> Course:
        """Where it is on its way; only once its turn has come."""
        assert self._course is not None
        return self._course

    def kind(self, *, reads_scale: bool) -> Hashable:
        """Pictures of one kind may share a call, as far as their steps allow."""
        request = self.draft.request
        return (
            request.width, request.height, request.guided, request.controlled, self.course.rows[-1].shape,
            request.guidance_scale if reads_scale else None,
            id(self) if self.exact else None,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SharedCall:
    """What a call of the UNet held."""

    pictures: int
    concepts: int  # different ones
    steps: int  # different ones

    @classmethod
    def of(cls, group: Sequence[Picture]) -> SharedCall:
        """The call for some pictures."""
        tokens = {token for picture in group for token in picture.concepts}
        steps = {picture.course.index for picture in group}
        return cls(pictures=len(group), concepts=len(tokens), steps=len(steps))

    @staticmethod
    def size(group: Sequence[Picture]) -> CallSize:
        """What that call needs."""
        sizes = [picture.size for picture in group]
        rows = {token: concept.rows for picture in group for token, concept in picture.concepts.items()}
        return CallSize(
            width=sizes[0].width,
            height=sizes[0].height,
            batch=len(group),
            guided=sizes[0].guided,
            concepts=sizes[0].concepts if len(group) == 1 else sum(rows.values()),
            tokens=max(size.tokens for size in sizes),
            readings=max(size.readings for size in sizes),
            image=any(size.image for size in sizes),
            control=sizes[0].control,
        )


def choose_call(
    pictures: Sequence[Picture], batch_size: int, *, own_timesteps: bool, reads_scale: bool
) -> list[Picture]:
    """The pictures of the next call, at most `batch_size`: that whose last call is the longest ago, and others with it.

    Args:
        own_timesteps: the UNet reads a timestep for each row. Without it all pictures of a call stand at one
            timestep; those that are behind go first, so that they catch up and share the calls that follow.
        reads_scale: the UNet reads the guidance scale, one for a call.
    """
    line = sorted(pictures, key=lambda picture: picture.last_call)
    if not line:
        return []
    first = line[0].kind(reads_scale=reads_scale)
    line = [picture for picture in line if picture.kind(reads_scale=reads_scale) == first]
    if not own_timesteps:
        behind = max(picture.course.timestep for picture in line)
        line = [picture for picture in line if picture.course.timestep == behind]
    group = list[Picture]()
    concepts = dict[str, Concept]()
    for picture in line:
        shared = picture.concepts.keys() & concepts.keys()
        if len(group) < batch_size and all(picture.concepts[token] is concepts[token] for token in shared):
            group.append(picture)
            concepts |= picture.concepts
    return group
