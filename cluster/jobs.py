"""Ray's job API: submitting, listing, following and stopping the jobs of this program."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster import ray_private
from cluster.package import RUN
from cluster.probe import AddressError, ClusterError, JobServer, check_ray_version, job_server

SEARCH, CONFIG, STORAGE = "tokenpool.search", "tokenpool.config", "tokenpool.storage"
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
# Ray's own lines in a job's log, and the modules that tell of every upload and connection.
_RAYS_LINES = re.compile(r"Running entrypoint for job |\d{4}-\d\d-\d\d .* job_manager\.py:")
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_POLL_SECONDS = 0.3
_RETRIES = 20


class JobExistsError(ClusterError):
    """Somebody has submitted a job of this id in between."""


@dataclass(frozen=True)
class Job:
    """A job that this program submitted for a search.

    `status` is PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED, `message` Ray's own words on it;
    `exit_code` is the driver's, where it ended by itself.
    """

    job_id: str
    search: str
    config: str
    storage: str
    status: str
    exit_code: int | None
    message: str

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status in ENDED


class JobApi:
    """The job server of a cluster, asked who it is and let in by it.

    Raises:
        AddressError: no Ray dashboard answers, it is of another version, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        server = job_server(address)
        self.url = server.url
        self._client = _connect(server)
        check_ray_version(server.url, str(self._client._server_ray_version or ""))

    def searches(self, name: str | None = None) -> list[Job]:
        """The jobs of searches, oldest first; of one search, where it is named."""
        with self._talking():
            found = [
                self._job(entry)
                for entry in sorted(self._client.list_jobs(), key=lambda job: job.start_time or 0)
                if entry.submission_id and SEARCH in (entry.metadata or {})
            ]
        return [job for job in found if name is None or job.search == name]

    def get(self, job_id: str) -> Job:
        """A job as it stands now."""
        with self._talking():
            return self._job(self._client.get_job_info(job_id))

    @staticmethod
    def _job(entry: Any) -> Job:
        notes = entry.metadata or {}
        return Job(
            job_id=str(entry.submission_id),
            search=notes.get(SEARCH, ""),
            config=notes.get(CONFIG, ""),
            storage=notes.get(STORAGE, ""),
            status=str(getattr(entry.status, "value", entry.status)),
            exit_code=entry.driver_exit_code,
            message=entry.message or "",
        )

    def submit(
        self,
        words: list[str],
        working_dir: Path,
        *,
        job_id: str | None = None,
        metadata: dict[str, str] | None = None,
        variables: dict[str, str] | None = None,
    ) -> str:
        """Submits `tokenpool WORDS…` and gives the job's id, Ray's choice if none is named.

        Whoever reaches the dashboard can read words, metadata and variables: they hold no secret.

        Args:
            words: the arguments.
            working_dir: the folder that `cluster.package.pack` made.
            job_id: the job's id.
            metadata: notes that are kept with the job.
            variables: variables of the driver's shell.

        Raises:
            JobExistsError: if there is a job of this id.
        """
        before = [f"{name}={value}" for name, value in (variables or {}).items()]
        entrypoint = shlex.join([*(["env", *before] if before else []), "sh", RUN, *words])
        with self._talking():
            try:
                return self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=job_id,
                    runtime_env={"working_dir": str(working_dir)},
                    metadata=metadata,
                )
            except RuntimeError as error:
                if job_id is not None and "already exists" in str(error):
                    raise JobExistsError(f"job {job_id} exists at {self.url}") from None
                raise

    def run(self, words: list[str], working_dir: Path, *, seconds: float, **options: Any) -> Job:
        """Submits a short command and waits for its end.

        Args:
            words: the arguments.
            working_dir: the folder that `cluster.package.pack` made.
            seconds: how long it may take.
            **options: further arguments of `submit`.

        Raises:
            ClusterError: if it takes longer; it is stopped then.
        """
        job_id = self.submit(words, working_dir, **options)
        if not self.wait(job_id, seconds):
            self.kill(job_id)
            raise ClusterError(f"`tokenpool {words[0]}` took over {seconds:.0f} s on {self.url}")
        return self.get(job_id)

    def wait(self, job_id: str, seconds: float) -> bool:
        """Whether a job ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while not self.get(job_id).ended:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        with self._talking():
            return without_rays_lines(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Hands on what a job prints until it ends; a connection that breaks is made again.

        Raises:
            ClusterError: the cluster is gone for good.
        """
        tail, failures = _Tail(self._client, job_id, write), 0
        while True:
            before = tail.handed
            try:
                asyncio.run(tail.read())
            except Exception as error:  # whatever aiohttp, Ray or the network throws
                problem = _one_line(str(error)) or type(error).__name__
            else:
                problem = "the connection ended"
            failures = 0 if tail.handed > before else failures + 1
            try:
                job = self.get(job_id)
                if job.ended:
                    return job
            except ClusterError as error:
                problem = str(error)
            if failures > _RETRIES:
                raise ClusterError(f"following job {job_id} at {self.url} failed: {problem}")
            time.sleep(_POLL_SECONDS * (1 + failures))

    def kill(self, job_id: str) -> None:
        """Ends a job's driver at once (SIGTERM, then SIGKILL)."""
        with self._talking():
            self._client.stop_job(job_id)

    def forget(self, job_id: str) -> None:
        """Takes a job that has ended from the list."""
        with self._talking():
            self._client.delete_job(job_id)

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            raise _refused(self.url) from None
        except (requests.exceptions.RequestException, ConnectionError):
            raise ClusterError(f"{self.url} does not answer any more") from None
        except RuntimeError as error:
            raise ClusterError(f"{self.url} says: {_one_line(str(error))}") from None


class _Tail:
    """What a job prints, each character once however often the connection is made anew."""

    def __init__(self, client: Any, job_id: str, write: Callable[[str], None]) -> None:
        self._client, self._job_id, self._write = client, job_id, write
        self.handed = 0

    async def read(self) -> None:
        """Hands on all up to the job's end."""
        passed = 0  # a new connection begins at the beginning
        async for chunk in self._client.tail_job_logs(self._job_id):
            new = chunk[max(0, self.handed - passed) :]
            passed += len(chunk)
            self.handed = max(self.handed, passed)
            if shown := without_rays_lines(new):
                self._write(shown)


def without_rays_lines(text: str) -> str:
    """A job's log without Ray's own lines on what it runs."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not _RAYS_LINES.match(line))


def _connect(server: JobServer) -> Any:
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _only_address(server):
        try:
            return JobSubmissionClient(server.url)
        except AuthenticationError:
            raise _refused(server.url) from None
        except (ConnectionError, RuntimeError) as error:
            raise AddressError(f"{server.url} cannot be used: {_one_line(str(error))}") from None


@contextmanager
def _only_address(server: JobServer) -> Iterator[None]:
    """Ray lets two variables overrule the address it is given; here the user has given one.

    A server that asks for a token gets the one that is set or lies in its default place; Ray's
    client reads it only when it is told that tokens are in use.
    """
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    mode = "token" if server.needs_token else "disabled"
    changed = before.get("RAY_AUTH_MODE") != mode
    os.environ["RAY_AUTH_MODE"] = mode
    if changed:
        ray_private.Config.initialize("")
    try:
        yield  # the token goes into the headers of all that this client ever asks
    finally:
        del os.environ["RAY_AUTH_MODE"]
        os.environ.update(before)
        if changed:
            ray_private.Config.initialize("")


def _refused(url: str) -> AddressError:
    return AddressError(
        f"{url} refuses this token, or there is none: set RAY_AUTH_TOKEN_PATH to a file with the "
        "cluster's token"
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
