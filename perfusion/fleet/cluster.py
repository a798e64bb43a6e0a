"""Ray, started or joined in one place: nothing is reported to its maker, and nothing is open to other machines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from perfusion.errors import DeviceError

__all__ = ["cluster", "last_line"]

START_SECONDS = "120"
"""Ray's own limit for its processes to come up is 30, which a busy machine or a small board exceeds."""

STARTS = 3
"""So often Ray is started: some of its own limits are 30 seconds and cannot be set."""

STORE_BYTES = 256 << 20
"""Of memory that processes share: requests, answers and jobs are small. Ray would take a third of the machine."""


@contextmanager
def cluster(address: str | None, *, cpus: int | None = None) -> Iterator[Any]:
    """The module `ray`, connected for the length of a with block.

    Args:
        address: of a running cluster, "auto" for the one that runs on this machine; None: the cluster that
            $RAY_ADDRESS names, else one of this machine alone, which ends with the block.
        cpus: cores that a cluster of this machine alone may use; None: all.

    Raises:
        DeviceError: Ray is missing, does not start, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", START_SECONDS)
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # what a job without a GPU sees stays as it is
    try:
        import ray
    except ImportError as error:
        raise DeviceError('Ray is not installed. pip install "perfusion-edge[fleet]".') from error
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = (
        {"address": address}
        if address
        else {
            "address": "local",
            "num_cpus": cpus,
            "dashboard_host": "127.0.0.1",
            "object_store_memory": STORE_BYTES,
        }
    )
    _start(ray, options, tries=1 if address else STARTS)
    try:
        yield ray
    finally:
        ray.shutdown()


def _start(ray: Any, options: dict[str, Any], *, tries: int) -> None:
    """Connect, and where Ray's processes do not come up in time, start them again."""
    while True:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except Exception as error:  # Ray raises a bare one where its processes are slow
            ray.shutdown()
            tries -= 1
            if not tries:
                address = options["address"]
                where = "a cluster on this machine" if address == "local" else f"the cluster at {address}"
                raise DeviceError(f"Ray cannot use {where}: {str(error).splitlines()[0]}") from error


def last_line(error: Exception) -> str:
    """Of an error with a traceback that came from another process: the error itself."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
