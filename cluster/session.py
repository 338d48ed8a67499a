"""Connecting to Ray: a local instance that is ended again, or a cluster at an address."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Drivers of trials take slivers of a CPU, so there are more processes than cores by design;
# Ray warns of that on the user's screen unless told not to before it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started")

import ray

from cluster import leftovers, ray_private
from cluster.capacity import grows_to, jobs_that_fit, present_nodes
from cluster.placement import Gang, Node, fit
from cluster.probe import AddressError, ClusterError, check_gcs, resolve
from cluster.proxies import for_workers, go_direct
from cluster.ray_folder import private_folder, session_folder

__all__ = ["AddressError", "Cluster", "ClusterError", "free_port", "ray_session"]

logger = logging.getLogger(__name__)

DASHBOARD_PORTS = range(8265, 9265)
_TOKEN = secrets.token_hex(32)  # Ray reads it once a process
_SETTINGS = {
    # How often a Train controller looks at its workers; Ray's 2 s shows in trials of seconds.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # Whether a worker hangs is decided by `pipelines.trials.stall_callback`, which says so to the
    # user; Ray would end a worker that answers nothing without a word, and no other kind.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "86400",
    # Workers without a GPU of their own see the machine's as Ray's future default has it; a job
    # without GPUs does not touch them (pipelines.train.engine).
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


# Ray's words, in an exception of no kind of its own.
_TOO_SLOW = "timed out during startup"

# Ray shows its figures to whoever asks, on every interface and without a token; nobody reads
# those of an instance that lives as long as a search. There is no port −1.
_NO_METRICS = {
    "RAY_enable_metrics_collection": "0",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
}


@dataclass(frozen=True)
class Cluster:
    """What a connected cluster offers."""

    address: str
    cpus: float
    gpus: float
    num_nodes: int
    nodes: Callable[[], Sequence[Node]] | None = None
    """Looks at them now; None: the resources are spread evenly."""
    local: bool = True

    def concurrent_jobs(
        self,
        num_workers: int,
        cpus_per_worker: float,
        gpus_per_worker: float,
        accelerator: str | None = None,
    ) -> int:
        """How many jobs fit side by side (cluster.placement).

        Args:
            num_workers: how many workers a job has.
            cpus_per_worker: how many CPUs each worker has.
            gpus_per_worker: how many GPUs each worker has.
            accelerator: the type of GPU they must run on; None: any.

        Raises:
            ClusterError: if not even one does, and no autoscaler may bring what it needs.
        """
        gang = Gang(num_workers, cpus_per_worker, gpus_per_worker, accelerator)
        if self.nodes is not None:
            nodes = self.nodes()
            grows = not self.local and not fit(nodes, gang).jobs and grows_to(gang)
            return jobs_that_fit(nodes, gang, grows=grows)
        share = Node("", self.cpus / self.num_nodes, self.gpus / self.num_nodes)
        return jobs_that_fit([share] * self.num_nodes, gang)


def free_port() -> int:
    """A port for a dashboard, free on loopback.

    Drawn at random, so that two sessions that start at the same moment do not both find the same
    one free; below the range from which Ray's own processes are given theirs.

    Raises:
        ClusterError: if no port is free.
    """
    for port in random.SystemRandom().sample(DASHBOARD_PORTS, len(DASHBOARD_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ClusterError(f"no free port on loopback among {DASHBOARD_PORTS}")


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables and puts back what there was."""
    names = (*values, "RAY_AUTH_MODE")  # Ray sets the last one itself
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _read_auth_mode_again() -> None:
    """Ray reads the variable when it is imported, and remembers it."""
    ray_private.Config.initialize("")


def _forget_token() -> None:
    """Ray remembers the token, too.

    A process that still asked for it would refuse the next cluster's questions about its actors,
    and that cluster would take them for given up.
    """
    _read_auth_mode_again()
    ray_private.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[Cluster]:
    """A connection to Ray for as long as the block runs.

    Without an address a Ray instance is started on this machine and ended with the block; only
    this process and its workers know its token. It always has a dashboard on a port known
    beforehand: when a trial is stopped, the detached cleaner that frees its workers asks the
    State API there, and without it every later trial waits for ever
    (../shared/environment.md). At an address (`HOST:PORT`, or `auto` on a cluster's node) the
    cluster's own dashboard does that; there, what this process still holds when the block ends,
    however it ends, is given back.

    Raises:
        AddressError: nothing answers there, or what answers is no cluster that lets us in.
        ClusterError: Ray does not start or connect.
    """
    local = address is None
    port = free_port()
    go_direct()
    if local:
        # Ray's own ports listen on every interface, whatever address it is given. So it asks for a
        # token, also where the environment would have it ask none; one that lives in this process
        # and its workers alone is safer than the file in the home directory that Ray would write.
        environment = _NO_METRICS | {
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": _TOKEN,
        }
        options: dict[str, Any] = {
            "address": "local",
            "num_cpus": num_cpus,
            "include_dashboard": True,
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "_temp_dir": str(private_folder()),
        }
    else:
        environment, options = _remote(resolve(str(address)))
    with ExitStack() as stack:
        if local:
            stack.callback(_forget_token)  # once the variables are as they were
        stack.enter_context(_environment(_SETTINGS | environment))
        if local:
            _read_auth_mode_again()
        try:
            with _imports_of_ours():
                made: Any = ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError, SystemExit) as error:
            raise _no_connection(options["address"], error) from None
        except Exception as error:
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            raise ClusterError(
                "Ray did not come up on this machine within half a minute: others leave it too "
                "little CPU; look what else runs (`top`), and type the same command to go on"
            ) from None
        try:
            if local:
                stack.enter_context(session_folder(Path(made.address_info["session_dir"])))
            else:
                leftovers.remove(leftovers.stale_groups())
            resources = ray.cluster_resources()
            yield Cluster(
                address=ray.get_runtime_context().gcs_address,
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                num_nodes=len([node for node in ray.nodes() if node["Alive"]]),
                nodes=present_nodes,
                local=local,
            )
        finally:
            try:
                if not local:
                    _give_back()
            finally:
                ray.shutdown()


@contextmanager
def _imports_of_ours() -> Iterator[None]:
    """Lets workers import this program's packages, whatever the current folder holds.

    Ray puts the folder that a driver connects from before all that its workers import from, and
    many projects have a package called `pipelines` or `cluster` of their own.
    """
    token = os.environ.get("RAY_AUTH_TOKEN_PATH")
    absolute = {"RAY_AUTH_TOKEN_PATH": os.path.abspath(token)} if token else {}
    with _environment(absolute), contextlib.chdir(Path(__file__).parents[1]):
        yield


def _no_connection(address: str, error: BaseException) -> ClusterError:
    """Why Ray did not start or connect, in one line."""
    text = " ".join(str(error.__cause__ or error).split())
    if "ersion mismatch" in text:
        return AddressError(f"the cluster at {address} runs other versions than this: {text}")
    where = "on this machine" if address == "local" else f"at {address}"
    return ClusterError(f"cannot connect to Ray {where}: {text}")


def _give_back() -> None:
    """Removes what this driver holds; a cluster that is gone must not hide why the driver ends."""
    try:
        leftovers.remove(leftovers.own_groups())
    except Exception as error:  # whatever Ray throws when it is cut off
        logger.warning("what this search held on the cluster could not be given back: %s", error)


def _remote(address: str) -> tuple[dict[str, str], dict[str, Any]]:
    """The environment and the options of `ray.init` for a running cluster.

    Its processes were started by somebody else, with an environment of their own: what they need
    travels in the runtime environment. Nothing secret may.
    """
    check_gcs(address)
    with _environment({"RAY_ADDRESS": address}):
        dashboard = _dashboard_of(address)
    go_direct(address, dashboard)
    # Ray's own actors ask the dashboard, too, from wherever they run.
    variables = _SETTINGS | for_workers(address, dashboard) | {"RAY_API_SERVER_ADDRESS": dashboard}
    return (
        {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": dashboard},
        {"address": address, "runtime_env": {"env_vars": variables}},
    )


def _dashboard_of(address: str) -> str:
    """Where Ray itself says that the cluster's dashboard is.

    Raises:
        AddressError: if it has none.
    """
    try:
        return str(ray_private.ray_address_to_api_server_url(address))
    except (ValueError, RuntimeError):
        raise AddressError(
            f"the cluster at {address} has no dashboard, which frees the workers of trials that "
            "are stopped: start its head with --include-dashboard=true"
        ) from None
