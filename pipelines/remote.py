"""Searches on a cluster elsewhere: submitted, followed, looked at and stopped over its job API."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cluster.security.doors import FLAG, OpenToNetworkError, refuse_open
from pipelines.config import SearchConfig
from pipelines.console import program
from pipelines.errors import UserError
from pipelines.search.check_inputs import check_weights, named_places
from pipelines.secrecy.guard import redactor
from pipelines.secrecy.redact import secret_places

CONFIG_FILE = "search.yaml"
STOPPED_BY_HAND = 130  # what shells give a command that Ctrl-C ended
_COMMAND_SECONDS = 120.0
_END_SECONDS = 60.0  # from a search's last event to the end of its job
_NARROWEST = 100

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="TOKENPOOL_ADDRESS",
        help="Dashboard of the Ray cluster it runs on, http://HOST:8265; default: this machine.",
    ),
]
Open = Annotated[
    bool,
    typer.Option(FLAG, help="Use a cluster that asks nobody for a token all the same."),
]


def refuse_open_cluster(address: str | None, allow_open: bool) -> None:
    """Refuses a Ray cluster that lets strangers in, unless the user has said that it may.

    Raises:
        UserError: it does, or this is no address; one line.
    """

    try:
        refuse_open(address, allow_open)
    except (OpenToNetworkError, ValueError) as error:
        raise UserError(str(error)) from None


class Remote:
    """A cluster's job server, as the commands use it.

    Args:
        address: of its dashboard.
        allow_open: whether it may be one that asks for no token.

    Raises:
        UserError: it cannot be used; one line.
    """

    def __init__(self, address: str, *, allow_open: bool = False) -> None:
        from cluster.jobs import JobApi  # here: Ray takes a second
        from cluster.probe import dashboard_url

        with one_line():
            url = dashboard_url(address)
            refuse_open_cluster(url, allow_open)
            self.api = JobApi(url)
        self.url = self.api.url
        self._allow_open = allow_open

    def submit(
        self, config: SearchConfig, *, installed: str | None = None, python: str | None = None
    ) -> tuple[str, bool]:
        """Submits a search, or finds the job that runs it already.

        Args:
            config: of the search.
            installed: the version that is installed there, to be used; default this one's code.
            python: the interpreter on the cluster.

        Returns:
            The job's id, and whether it is new.

        Raises:
            UserError: a search of this name runs there with another config or elsewhere.
        """
        from cluster.jobs import CONFIG, SEARCH, STORAGE, JobExistsError
        from cluster.package import pack

        _check_paths(config)
        notes = {
            SEARCH: config.name,
            CONFIG: config.config_hash(),
            STORAGE: str(config.storage),
        }
        variables = _shell(python)
        if installed is not None:
            variables["TOKENPOOL_INSTALLED"] = installed
        files = {CONFIG_FILE: yaml.safe_dump(config.resolved(), sort_keys=False)}
        with one_line(), tempfile.TemporaryDirectory() as folder:
            while True:
                jobs = self.api.searches(config.name)
                for job in jobs:
                    if not job.ended:
                        _check_same(job.config, job.storage, config)
                        return job.job_id, False
                # Whoever submits the same search at the same moment finds the same number, and
                # Ray takes it once.
                job_id = f"tokenpool-{config.name}-{len(jobs) + 1}"
                package = pack(Path(folder, job_id), files, code=installed is None)
                try:
                    words = ["search", CONFIG_FILE, "--address", "auto"]
                    if self._allow_open:
                        words.append(FLAG)
                    refuse_secrets(words, notes, variables)
                    self.api.submit(
                        words, package, job_id=job_id, metadata=notes, variables=variables
                    )
                except JobExistsError:
                    shutil.rmtree(package)
                    continue
                return job_id, True

    def follow(self, job_id: str, name: str) -> int:
        """Shows what a job prints until it ends, or until Ctrl-C, which leaves it running.

        Returns:
            The exit code for this command: the search's own.
        """
        try:
            with one_line():
                job = self.api.follow(job_id, _write)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"\ndetached: the search goes on. `{program()} logs {name} --follow --address "
                f"{self.url}` shows it again, `{program()} stop {name} --address {self.url}` "
                "ends it\n"
            )
            return STOPPED_BY_HAND
        if job.status == "SUCCEEDED":
            return 0
        if job.exit_code:
            return job.exit_code
        raise UserError(
            f"job {job_id} ended as {job.status}: {_first_line(job.message)}", exit_code=1
        )

    def newest(self, name: str) -> str:
        """The id of the newest job of a search.

        Raises:
            UserError: it was never submitted here.
        """
        with one_line():
            jobs = self.api.searches()
        own = [job for job in jobs if job.search == name]
        if not own:
            names = ", ".join(sorted({job.search for job in jobs})) or "none"
            raise UserError(f"no search named {name} was submitted to {self.url}; there: {names}")
        return own[-1].job_id

    def storage(self, name: str | None, given: str) -> str:
        """The storage of a search, as the cluster sees it.

        Args:
            name: of the search; None for any.
            given: what the user said; `runs`, which is the default, means nothing.
        """
        if given != "runs":
            return given
        with one_line():
            jobs = self.api.searches(name)
        if not jobs:
            raise UserError(
                f"{self.url} knows no job of {'search ' + name if name else 'any search'}: say "
                "with --storage where it is kept"
            )
        return jobs[-1].storage

    def run(self, words: list[str], *, seconds: float = _COMMAND_SECONDS) -> int:
        """Runs a short command on the cluster, and prints what it prints here.

        Args:
            words: of the command.
            seconds: it may take.

        Returns:
            Its exit code.
        """
        from cluster.package import pack

        variables = _shell(None)
        refuse_secrets(words, {}, variables)
        with one_line(), tempfile.TemporaryDirectory() as folder:
            package = pack(Path(folder, "code"))
            job = self.api.run(words, package, seconds=seconds, variables=variables)
            printed = self.api.logs(job.job_id)
            self.api.forget(job.job_id)
        code = 0 if job.status == "SUCCEEDED" else job.exit_code or 1
        stream = sys.stderr if code else sys.stdout
        stream.write(printed or (f"tokenpool: {_first_line(job.message)}\n" if code else ""))
        stream.flush()
        return code


def refuse_secrets(words: list[str], metadata: dict[str, str], variables: dict[str, str]) -> None:
    """Refuses to describe a job by a secret: whoever reaches the dashboard reads descriptions.

    Raises:
        UserError: a password, token or key stands in it; one line, without it.
    """
    seen = {"arguments": words, "metadata": metadata, "variables": variables}
    places = secret_places(seen, redactor())
    if places:
        raise UserError(
            f"{places[0]} of the job would hold a password, token or key: leave it out, it "
            "belongs into the environment of the cluster's nodes"
        )


@contextmanager
def one_line() -> Iterator[None]:
    """A cluster's errors as the user's."""
    from cluster.probe import ClusterError

    try:
        yield
    except ClusterError as error:
        raise UserError(str(error), exit_code=error.exit_code) from None


def run_there(
    address: str, words: list[str], name: str | None, storage: str, *, allow_open: bool
) -> None:
    """Runs a command on a cluster, on what it keeps there.

    Raises:
        typer.Exit: it failed there.
    """
    remote = Remote(address, allow_open=allow_open)
    code = remote.run([*words, "--storage", remote.storage(name, storage)])
    if code:
        raise typer.Exit(code)


def stop_there(address: str, name: str, storage: str, wait: float, *, allow_open: bool) -> None:
    """Ends a search on a cluster in order, and its job with it.

    A driver that does not listen any more is ended all the same.

    Raises:
        UserError: the search is unknown there.
        typer.Exit: the command failed there.
    """
    remote = Remote(address, allow_open=allow_open)
    where = remote.storage(name, storage)
    words = ["stop", name, "--wait", f"{wait:g}", "--storage", where]
    code = remote.run(words, seconds=wait + _COMMAND_SECONDS)
    if not wait:
        return
    with one_line():
        left = [job for job in remote.api.searches(name) if not job.ended]
        for job in left:
            if not remote.api.wait(job.job_id, _END_SECONDS):
                remote.api.kill(job.job_id)
                remote.api.wait(job.job_id, _END_SECONDS)
                typer.echo(f"job {job.job_id} did not end by itself and was ended")
    if code and not left:
        raise typer.Exit(code)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _shell(python: str | None) -> dict[str, str]:
    """What a driver's shell is told. Never anything secret: it can be read in the dashboard."""
    width = max(_NARROWEST, shutil.get_terminal_size((_NARROWEST, 24)).columns)
    return {"COLUMNS": str(width)} | ({"TOKENPOOL_PYTHON": python} if python else {})


def _check_paths(config: SearchConfig) -> None:
    """Refuses what means something else, or nothing, where the search will run.

    Raises:
        UserError: a path that is not absolute; one line that names its key.
    """
    for named in named_places(config):
        if named.is_in_a_hub or named.address is not None or named.path.is_absolute():
            continue
        if named.what == "weights" and not named.path.exists():
            check_weights(named, None)  # so it must be the name of a model
            continue
        raise UserError(
            f"{named.key} {named.place} means another {'file' if named.is_file else 'folder'} on "
            f"each machine: name one that every node of the cluster sees, e.g. --set "
            f"{named.key}=/shared/{named.path.name}"
        )


def _check_same(config_hash: str, storage: str, config: SearchConfig) -> None:
    if storage != str(config.storage):
        raise UserError(
            f"a search named {config.name} is running there on storage {storage}: wait for it, "
            "stop it, or choose a new name with --set name=…"
        )
    if config_hash != config.config_hash():
        raise UserError(
            f"search {config.name} is running there with another config (hash {config_hash}, this "
            f"one has {config.config_hash()}): stop it, or choose a new name with --set name=…"
        )


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else "Ray gave no reason"
