"""From what a caller says to what is drawn: checked, read, admitted to the memory, encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perfusion.bundle.call_size import CallSize
from perfusion.bundle.description import Bundle
from perfusion.concept.concept_file import Concept
from perfusion.runtime.compute.graphs import Graphs
from perfusion.runtime.request import Options, Request, check_names, make_request
from perfusion.runtime.sampling.course import Phase
from perfusion.runtime.sampling.loop import call_slices
from perfusion.runtime.sampling.schedule import Schedule
from perfusion.runtime.sampling.schedulers import make_schedule
from perfusion.runtime.text.prompt_encoder import PromptEncoder
from perfusion.runtime.text.prompt_spec import PromptSpec

__all__ = ["Draft", "Preparation"]

_log = logging.getLogger(__name__)
_LARGE = 2.25  # times the usual pixels: half as long again on both sides


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A request with its schedule and the parts of its prompts; nothing is encoded yet."""

    request: Request
    schedule: Schedule
    specs: tuple[PromptSpec, ...]  # one a picture

    @property
    def concepts(self) -> dict[str, Concept]:
        """The concepts that its prompts name, by their tokens."""
        phases = [phase for spec in self.specs for phase in spec.phases]
        return {concept.token: concept for phase in phases for concept in phase.bank.identity(phase.active)}

    def call_size(self, batch: int) -> CallSize:
        """The largest call of the UNet where `batch` of its pictures share one."""
        starts = {phase.start for spec in self.specs for phase in spec.phases}
        concepts = [
            {token: rows for spec in now[group] for token, rows in spec.slots.items()}
            for now in ([spec.at(start) for spec in self.specs] for start in starts)
            for group in call_slices([spec.shape for spec in now], batch)
        ]
        phases = [phase for spec in self.specs for phase in spec.phases]
        return CallSize(
            width=self.request.width,
            height=self.request.height,
            batch=min(batch, len(self.specs)),
            guided=self.request.guided,
            concepts=max(sum(slots.values()) for slots in concepts),
            tokens=max(phase.tokens for phase in phases),
            readings=max(phase.shape[1] for phase in phases),
            image=bool(self.request.images),
            control=self.request.controlled,
        )


class Preparation:
    """What a runtime does with a request before the first step."""

    def __init__(self, bundle: Bundle, graphs: Graphs, prompts: PromptEncoder) -> None:
        self._bundle, self._graphs, self._prompts = bundle, graphs, prompts
        self._large_sizes: set[tuple[int, int]] = set()  # that were warned of

    def draft(
        self,
        prompt: str | list[str] | tuple[str, ...],
        seed: int | list[int] | tuple[int, ...],
        count: int | None,
        options: Options,
    ) -> Draft:
        """Check a request and read its prompts, with the concepts as they are now. No graph is run.

        Raises:
            RequestError: a prompt, seed, size or option that cannot be served.
        """
        check_names(options)
        request = make_request(self._bundle, prompt, seed, count, **options)
        self._warn_of_size(request.width, request.height)
        schedule = make_schedule(request.scheduler, self._bundle.noise_model, request.num_inference_steps)
        if request.images:
            schedule.last_part(request.image_strength)  # what it refuses is refused before the first step
        specs = tuple(self._prompts.specs(request))
        schedule.check_start(max(spec.start for spec in specs))
        return Draft(request=request, schedule=schedule, specs=specs)

    def _warn_of_size(self, width: int, height: int) -> None:
        """Say once of a size that it is far from what the model learned from: things come twice there."""
        usual = self._bundle.defaults
        far = width * height > _LARGE * usual.width * usual.height
        if far and (width, height) not in self._large_sizes:
            self._large_sizes.add((width, height))
            _log.warning(
                "%d × %d pixels are far more than the %d × %d that the model learned from, so things may come several "
                "times; draw smaller, and enlarge the picture", width, height, usual.width, usual.height,
            )  # fmt: skip

    def admit(self, size: CallSize) -> None:
        """Make the graphs ready for a call, or refuse it; again where another one came between.

        Raises:
            RequestError: it does not fit.
        """
        self._graphs.admit(size)

    def phases(self, draft: Draft, check: Callable[[], None]) -> list[Sequence[Phase]]:
        """The prompts encoded; `check` is called before each picture's."""
        phases = list[Sequence[Phase]]()
        for spec in draft.specs:
            check()
            phases.append(
                [
                    Phase(start=phase.start, rows=self._prompts.encode(phase, draft.request))
                    for phase in spec.phases
                ]
            )
        return phases
