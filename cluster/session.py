"""Connecting to Ray: a local instance that is ended again, or a cluster at an address."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

DASHBOARD_PORT = 8265
# How often a Train controller looks at its workers; Ray's 2 s shows in trials of a few seconds.
_HEALTH_CHECK_S = "0.25"


class ClusterError(Exception):
    """A cluster cannot be reached or cannot hold what is asked of it; one line."""


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers."""

    address: str
    cpus: float
    gpus: float
    num_nodes: int

    def concurrent_jobs(
        self, num_workers: int, cpus_per_worker: float, gpus_per_worker: float
    ) -> int:
        """How many jobs of so many workers fit side by side.

        Raises:
            ClusterError: not even one does.
        """
        fits = [(self.cpus - _SPARE_CPUS) / (num_workers * cpus_per_worker)]
        if gpus_per_worker:
            fits.append(self.gpus / (num_workers * gpus_per_worker))
        jobs = int(min(fits) + 1e-6)
        if jobs < 1:
            gpus = f" and {gpus_per_worker:g} GPU" if gpus_per_worker else ""
            raise ClusterError(
                f"one job needs {num_workers} workers of {cpus_per_worker:g} CPU{gpus} each, but "
                f"the cluster has {self.cpus:g} CPUs and {self.gpus:g} GPUs of which "
                f"{_SPARE_CPUS:g} CPU is kept for drivers: lower workers.num_workers or "
                "workers.cpus_per_worker"
            )
        return jobs


# Drivers of trials, controllers and cleaners take slivers of CPU that workers must leave over.
_SPARE_CPUS = 0.1


def free_port(preferred: int) -> int:
    """`preferred` if nothing listens there on loopback, else any free port."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ClusterError("no free port on loopback")


def _environment() -> dict[str, str]:
    return {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": _HEALTH_CHECK_S}


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """A connection to Ray for as long as the block runs.

    Without an address a Ray instance is started on this machine, on loopback, and ended with
    the block. It always has a dashboard on a port known beforehand: when a trial is stopped,
    the detached cleaner that frees its workers asks the State API there, and without it every
    later trial waits for ever (../shared/environment.md).

    Args:
        address: of a running cluster, or None.
        num_cpus: of a local instance; default all cores.

    Raises:
        ClusterError: nothing answers at the address.
    """
    for name, value in _environment().items():
        os.environ.setdefault(name, value)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": "ERROR",
        "ignore_reinit_error": False,
    }
    previous = os.environ.get("RAY_API_SERVER_ADDRESS")
    if address is None:
        port = free_port(DASHBOARD_PORT)
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            **common,
        )
    else:
        try:
            ray.init(address=address, **common)
        except (ConnectionError, ValueError) as error:
            raise ClusterError(f"no Ray cluster answers at {address}: {error}") from None
    try:
        resources = ray.cluster_resources()
        yield Cluster(
            address=ray.get_runtime_context().gcs_address,
            cpus=resources.get("CPU", 0.0),
            gpus=resources.get("GPU", 0.0),
            num_nodes=len([node for node in ray.nodes() if node["Alive"]]),
        )
    finally:
        ray.shutdown()
        if address is None:
            if previous is None:
                os.environ.pop("RAY_API_SERVER_ADDRESS", None)
            else:
                os.environ["RAY_API_SERVER_ADDRESS"] = previous
