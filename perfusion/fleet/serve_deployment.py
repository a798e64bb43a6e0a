"""A fleet that serves, as Ray Serve runs it: doors that listen, and replicas behind them that draw."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.types import Message

from perfusion.errors import RequestError
from perfusion.fleet.door import Call, ReplicaAnswer, ReplicaDiedError, door_application
from perfusion.fleet.replica import Replica, ReplicaSpec
from perfusion.serving.answers import StatusError

__all__ = ["APPLICATION", "FleetScale", "deploy", "start_listening", "take_down"]

APPLICATION, DOOR, REPLICA = "perfusion", "Door", "Replica"
_MOST_CALLS = 4096  # that pass through a door at a time
_OTHER_CALLS = 64  # for a replica beside those that draw: lists, health, progress
_RETRY_SECONDS = 5
_START_SECONDS = 1200.0  # for a bundle to be fetched and opened


@dataclass(frozen=True, kw_only=True)
class FleetScale:
    """How many replicas there are, and what each has of its machine.

    Raises:
        RequestError: numbers that no fleet can have.
    """

    least: int = 1
    most: int = 1
    """With more than `least` there are as many as the queues need."""
    cpus: int = 1
    gpus: float = 0.0
    spare: int = 0
    """Replicas that the cluster has room for besides: with some, new ones are up before old ones end."""
    doors: int = 1
    grace: float = 30.0
    """Seconds in which a replica that is to end finishes what it draws."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise RequestError(
                f"The fleet is to have {self.least} to {self.most} replicas, expected 1 or more, the smaller number "
                "first."
            )


def start_listening(serve: Any, host: str, port: int) -> None:
    """Start Serve's own server on the cluster; nothing happens where it runs already.

    Raises:
        RequestError: it runs, and at another address: there a fleet might be open to machines that were not meant.
    """
    from ray.serve.context import _get_global_client  # nothing public tells where Serve listens

    serve.start(http_options={"host": host, "port": port, "location": "EveryNode"})
    client: Any = _get_global_client()
    actual = client.http_config
    if (actual.host, actual.port) != (host, port):
        raise RequestError(
            f"Serve runs on this cluster and listens at {actual.host}:{actual.port}, expected {host}:{port}. Give that "
            "host and port, or another cluster."
        )


def deploy(serve: Any, spec: ReplicaSpec, scale: FleetScale) -> None:
    """Run the fleet, or change it: new replicas come and old ones finish what they draw, one after the other.

    Raises:
        RuntimeError: the replicas do not come up.
    """
    serve.run(_application(serve, spec, scale), name=APPLICATION, route_prefix="/", blocking=False)


def take_down(serve: Any) -> None:
    """End the fleet; the cluster stays, and Serve listens on."""
    serve.delete(APPLICATION)


def _application(serve: Any, spec: ReplicaSpec, scale: FleetScale) -> Any:
    door = serve.deployment(serve.ingress(_door_builder(spec))()).options(
        name=DOOR, num_replicas=scale.doors, max_ongoing_requests=_MOST_CALLS,
        # A door costs next to nothing, so new ones are up before old ones end; an old one outlives the replica that
        # it waits for, and the one that it asks then.
        max_surge_percent=100, graceful_shutdown_timeout_s=2 * scale.grace, graceful_shutdown_wait_loop_s=1.0,
        ray_actor_options={"num_cpus": 0},
    )  # fmt: skip
    replica = serve.deployment(ServedReplica).options(
        name=REPLICA, **_numbers(spec, scale),
        max_ongoing_requests=spec.queue + spec.batch_size + _OTHER_CALLS, max_queued_requests=spec.queue,
        max_surge_percent=min(100, 100 * scale.spare // scale.most),
        graceful_shutdown_timeout_s=scale.grace, graceful_shutdown_wait_loop_s=1.0,
        ray_actor_options={
            "num_cpus": scale.cpus, "num_gpus": scale.gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(scale.cpus)}},
        },
    )  # fmt: skip
    return door.bind(replica.bind(spec))


def _numbers(spec: ReplicaSpec, scale: FleetScale) -> dict[str, Any]:
    """How many replicas; with a range, so many that each has a full call in work and one that waits."""
    if scale.least == scale.most:
        return {"num_replicas": scale.least}
    return {
        "autoscaling_config": {
            "min_replicas": scale.least, "max_replicas": scale.most, "target_ongoing_requests": 2 * spec.batch_size,
        }
    }  # fmt: skip


def _door_builder(spec: ReplicaSpec) -> Callable[[], Starlette]:
    def build() -> Starlette:
        from ray import serve

        handle = serve.get_deployment_handle(REPLICA, app_name=APPLICATION)
        return door_application(ServedCrew(handle), spec.access, spec.limits)

    return build


class ServedReplica(Replica):
    """A replica as a deployment: its name and its end are those that Serve gives it."""

    def __init__(self, spec: ReplicaSpec) -> None:
        from ray import serve

        super().__init__(spec, serve.get_replica_context().replica_id.unique_id)

    def __del__(self) -> None:
        self.close()


class ServedCrew:
    """The replicas behind a handle of Serve."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def answer(self, call: Call) -> AsyncGenerator[Message]:
        """See `Crew`."""
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        messages = self._handle.options(stream=True).answer.remote(call)
        try:
            async for message in messages:
                yield message
        except RayActorError as error:
            raise ReplicaDiedError from error
        except BackPressureError as error:
            raise StatusError(
                429, "All replicas are busy, and no more requests may wait. Try again in a moment.",
                retry_after=_RETRY_SECONDS,
            ) from error  # fmt: skip
        finally:
            messages.cancel()

    async def answers(self, call: Call) -> Sequence[ReplicaAnswer]:
        """See `Crew`."""
        answers = await self._handle.broadcast("whole_answer", call).results_async(return_exceptions=True)
        return [answer for answer in answers if isinstance(answer, ReplicaAnswer)]
