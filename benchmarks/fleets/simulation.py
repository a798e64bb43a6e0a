"""A fleet in simulated time: pictures arrive, wait at a replica, and are drawn in calls of the UNet.

Three ways to put pictures together are compared:

- `MIXED`: a call holds any pictures, each at its own step; one joins or leaves between two calls. So does
  the drawing queue.
- `BY_ADAPTER`: a call holds pictures of one adapter, as servers do that change an adapter between calls. Those of one
  adapter that wait are drawn together from the first step to the last, as many as fit.
- `MERGED`: as before, and the adapter is added to the weights first, which takes its time where it is another one.

A picture goes to the replica with the shorter queue of two taken by chance, as Ray Serve does. With adapters it goes to
a replica that has its adapter at work, where that one's queue is no longer than those of the two.
"""

from __future__ import annotations

import enum
import random
import statistics
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

__all__ = ["Costs", "Load", "Outcome", "Policy", "simulate"]

Event = Any  # of simpy
Process = Generator[Event, Any, None]


class Policy(enum.Enum):
    """How pictures are put together."""

    MIXED = "mixed"
    BY_ADAPTER = "by adapter"
    MERGED = "merged"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of a replica for what it does."""

    calls: tuple[float, ...]
    """Of a call of the UNet with 1, 2, … pictures."""
    begin: float
    """To read a picture's prompt."""
    end: float
    """To decode a picture and write it as a file."""
    read: float
    """To read a concept's file and load it."""
    merge: float
    """To add an adapter to the weights."""
    around: float = 0.0
    """Of a picture, outside the replica: the client, the way there and back."""

    def call(self, pictures: int) -> float:
        """Of a call; beyond what was measured each further picture costs what the last one did."""
        last = len(self.calls)
        if pictures <= last:
            return self.calls[pictures - 1]
        return self.calls[-1] + (pictures - last) * (self.calls[-1] - self.calls[0]) / max(1, last - 1)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked of a fleet: at `rate` pictures a second by chance (Poisson), or by `clients` of which each asks for
    its next picture when it has the last."""

    concept: Callable[[], int]
    steps: int
    pictures: int
    """In all; the first tenth is not counted."""
    rate: float = 0.0
    clients: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fleet did."""

    rate: float  # pictures a second
    latencies: list[float] = field(repr=False)
    refused: int
    reads: int  # of concept files
    calls: int
    shared: float  # pictures in a call, in the mean

    @property
    def median(self) -> float:
        """Seconds from a request to its picture."""
        return statistics.median(self.latencies)

    @property
    def p95(self) -> float:
        """As `median`: of twenty pictures nineteen take no longer."""
        return sorted(self.latencies)[int(0.95 * len(self.latencies))]


@dataclass(eq=False)
class _Picture:
    concept: int
    left: int  # steps
    done: Event


class _Replica:
    """One process that draws."""

    def __init__(
        self, env: simpy.Environment, costs: Costs, policy: Policy, *, batch: int, held: int
    ) -> None:
        self._env, self._costs, self._policy, self._batch, self._held = env, costs, policy, batch, held
        self._waiting: deque[_Picture] = deque()
        self._drawing: list[_Picture] = []
        self._shelf: OrderedDict[int, None] = OrderedDict()
        self._work: Event = env.event()
        self.adapter: int | None = None
        self.reads = self.calls = self.drawn = 0
        env.process(self._run())

    @property
    def load(self) -> int:
        """Pictures that wait or are drawn."""
        return len(self._waiting) + len(self._drawing)

    def add(self, picture: _Picture) -> None:
        self._waiting.append(picture)
        if not self._work.triggered:
            self._work.succeed()

    def _run(self) -> Process:
        while True:
            if not self.load:
                self._work = self._env.event()
                yield self._work
            yield self._env.timeout(self._let_in())
            yield self._env.timeout(self._costs.call(len(self._drawing)))
            self.calls, self.drawn = self.calls + 1, self.drawn + len(self._drawing)
            for picture in self._drawing:
                picture.left -= 1
            ready = [picture for picture in self._drawing if not picture.left]
            self._drawing = [picture for picture in self._drawing if picture.left]
            for picture in ready:
                yield self._env.timeout(self._costs.end)
                picture.done.succeed()

    def _let_in(self) -> float:
        """Begin what there is room for; the seconds that takes."""
        if self._policy is Policy.MIXED:
            pictures = [
                self._waiting.popleft()
                for _ in range(min(len(self._waiting), self._batch - len(self._drawing)))
            ]
            seconds = 0.0
        else:
            pictures, seconds = self._of_one_adapter()
        self._drawing += pictures
        return seconds + sum(self._costs.begin + self._read(picture.concept) for picture in pictures)

    def _of_one_adapter(self) -> tuple[list[_Picture], float]:
        """Once nothing is drawn, those that wait with the adapter of the first; and the seconds of a change."""
        if self._drawing or not self._waiting:
            return [], 0.0
        concept = self._waiting[0].concept
        pictures = [picture for picture in self._waiting if picture.concept == concept][: self._batch]
        taken = set(map(id, pictures))
        self._waiting = deque(picture for picture in self._waiting if id(picture) not in taken)
        is_other, self.adapter = concept != self.adapter, concept
        return pictures, self._costs.merge if is_other and self._policy is Policy.MERGED else 0.0

    def _read(self, concept: int) -> float:
        """Seconds until a concept is loaded; nothing where it is."""
        if concept in self._shelf:
            self._shelf.move_to_end(concept)
            return 0.0
        self._shelf[concept] = None
        if len(self._shelf) > self._held:
            self._shelf.popitem(last=False)
        self.reads += 1
        return self._costs.read


class _Fleet:
    def __init__(
        self, replicas: list[_Replica], policy: Policy, chance: random.Random, *, queue: int
    ) -> None:
        self._replicas, self._policy, self._chance, self._queue = replicas, policy, chance, queue
        self._homes: dict[int, _Replica] = {}  # where an adapter was sent last

    def send(self, picture: _Picture) -> bool:
        """Give a picture to a replica; False where its queue is full."""
        pair = [self._chance.choice(self._replicas) for _ in range(2)]
        replica = min(pair, key=lambda each: each.load)
        home = self._homes.get(picture.concept)
        if (
            self._policy is not Policy.MIXED
            and home is not None
            and home.load <= max(each.load for each in pair)
        ):
            replica = home
        if replica.load >= self._queue:
            return False
        if self._policy is not Policy.MIXED:
            self._homes[picture.concept] = replica
        replica.add(picture)
        return True


def simulate(
    costs: Costs, load: Load, policy: Policy, *, replicas: int, batch: int = 8, queue: int = 256, held: int = 256,
    seed: int = 0,
) -> Outcome:  # fmt: skip
    """What a fleet makes of a load.

    Args:
        batch: pictures in one call.
        queue: pictures that may wait at a replica or be drawn there; more are refused.
        held: concepts that a replica keeps loaded.
    """
    env, chance = simpy.Environment(), random.Random(seed)
    crew = [_Replica(env, costs, policy, batch=batch, held=held) for _ in range(replicas)]
    fleet = _Fleet(crew, policy, chance, queue=queue)
    spans: list[tuple[float, float]] = []
    refused = begun = 0

    def ask() -> Process:
        nonlocal refused
        began = env.now
        picture = _Picture(concept=load.concept(), left=load.steps, done=env.event())
        if not fleet.send(picture):
            refused += 1
            return
        yield picture.done
        yield env.timeout(costs.around)
        spans.append((began, env.now))

    def arrivals() -> Process:
        for _ in range(load.pictures):
            yield env.timeout(chance.expovariate(load.rate))
            env.process(ask())

    def client() -> Process:
        nonlocal begun
        while begun < load.pictures:
            begun += 1
            yield env.process(ask())

    for process in [client() for _ in range(load.clients)] or [arrivals()]:
        env.process(process)
    env.run()
    counted = sorted(spans, key=lambda span: span[1])[len(spans) // 10 :]
    seconds = counted[-1][1] - sorted(spans, key=lambda span: span[1])[len(spans) // 10 - 1][1]
    calls, drawn = sum(each.calls for each in crew), sum(each.drawn for each in crew)
    return Outcome(
        rate=len(counted) / seconds, latencies=[end - began for began, end in counted], refused=refused,
        reads=sum(each.reads for each in crew), calls=calls, shared=drawn / calls,
    )  # fmt: skip
