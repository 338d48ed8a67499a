"""Where a job's reports and checkpoints lie: a folder that all its machines share, or a store's.

One writer at a time in a job's folder: who came last; who was before it finds itself fenced off. A
host that is cut off goes on training while the job is started again elsewhere. Once it can be
reached again, or where it reaches the storage all the time, it must not write over what is newer.

Needs no torch until a checkpoint is saved.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.errors import UserError
from pipelines.storage.address import join
from pipelines.storage.checked_lines import checked_line, parse_line
from pipelines.storage.copies import RESUMED, local_copy
from pipelines.storage.durable import flush, flush_tree, write_durably
from pipelines.storage.room import MINUTES
from pipelines.storage.store import ObjectStore
from pipelines.train.checkpoint import (
    BEST_NAME,
    STATE_NAME,
    checkpoint_folders,
    damage,
    progress_in,
)
from pipelines.train.checkpoint_room import part_of_checkpoint
from pipelines.train.reports import Report

logger = logging.getLogger(__name__)
REPORTS_NAME, WRITER_NAME = "reports.jsonl", "writer"
# Fills a folder with this rank's part of a checkpoint; called on every rank.
WriteCheckpoint = Callable[[Path], None]


class JobFolder(ABC):
    """The folder of one job; checkpoints in it go by their names.

    Args:
        minutes: how long a full disk is waited for.
    """

    directory: Path | None = None
    """Where it is a folder."""

    def __init__(self, minutes: float = MINUTES) -> None:
        self._minutes, self._token = minutes, b""

    @abstractmethod
    def place(self, name: str) -> str:
        """The path or address of what has this name."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Puts a small file there, whole, in the place of one of this name."""

    @abstractmethod
    def checkpoints(self) -> list[str]:
        """The names of the checkpoints, newest first, whole or not."""

    @abstractmethod
    def _fetch(self, name: str) -> Path:
        """A checkpoint on this machine; its processes share the copy of one in a store."""

    @abstractmethod
    def put(self, part: Path, name: str) -> None:
        """Adds a rank's part to a checkpoint."""

    @abstractmethod
    def _delete(self, name: str) -> None:
        """Deletes a checkpoint."""

    @abstractmethod
    def bests(self) -> list[str]:
        """The copies there are of what scored best: one, or none; after a kill perhaps two."""

    @abstractmethod
    def _keep_best(self, name: str) -> None:
        """Copies a checkpoint, and deletes the copy before it when that is whole."""

    def take_over(self) -> None:
        """From now on this process is the one that writes; the first rank's, before it reads."""
        if not self._token:
            self._token = secrets.token_hex(8).encode()
            self.write(WRITER_NAME, self._token)

    def check_writer(self) -> None:
        """To be called before each write.

        Raises:
            UserError: another process has taken this one's place.
        """
        if self._token and self.read(WRITER_NAME) != self._token:
            raise UserError("this job was started anew elsewhere, and goes on there", exit_code=1)

    def newest_undamaged(self, names: Iterable[str]) -> Path | None:
        """The first of some checkpoints that is complete and unaltered, on this machine."""
        for name in names:
            copy = self._fetch(name)
            problem = damage(copy)
            if problem is None:
                return copy
            logger.warning("checkpoint %s is left out: %s", self.place(name), problem)
        return None

    def part(self, write: WriteCheckpoint) -> AbstractContextManager[Path]:
        """See `part_of_checkpoint`."""
        return part_of_checkpoint(write, self.directory, self._minutes)

    def save(self, name: str, write: WriteCheckpoint) -> None:
        """Stores a checkpoint; every rank calls this, and after it all of it is there."""
        import torch.distributed as dist

        is_first = dist.get_rank() == 0
        if is_first:
            self.check_writer()
            self._make_way()
        with self.part(write) as own:
            dist.barrier()
            self.put(own, self._aside(name))
        dist.barrier()
        if is_first:
            self.check_writer()
            self._make_visible(name)

    @abstractmethod
    def _make_way(self) -> None:
        """Deletes what was left over of a checkpoint that was not finished."""

    @abstractmethod
    def _aside(self, name: str) -> str:
        """What a checkpoint is called until it is whole."""

    @abstractmethod
    def _make_visible(self, name: str) -> None:
        """Gives a checkpoint that is whole its name."""

    def delete_superseded(self, keep: int, only: Callable[[str], bool] = lambda _: True) -> None:
        """Deletes the checkpoints that are older than the newest `keep`."""
        for name in filter(only, self.checkpoints()[keep:]):
            self._delete(name)

    def score(self, name: str) -> float | None:
        """Top-1 on minival that a checkpoint was reported with; None if it cannot be told."""
        try:
            report = progress_in(self.read(f"{name}/{STATE_NAME}") or b"").metrics
        except (OSError, ValueError):
            return None
        return None if report is None else report.top1_minival

    def keep_if_best(self, name: str, score: float) -> None:
        """Copies an epoch's checkpoint if none before it scored as high."""
        records = [self.score(best) for best in self.bests()]
        if all(record is None or record < score for record in records):
            self._keep_best(name)

    def add_report(self, report: Report) -> None:
        """Keeps an epoch's report; what came after that epoch before is forgotten."""
        kept = [before for before in self.reports() if before.epoch < report.epoch]
        lines = (checked_line(each.to_json()) for each in [*kept, report])
        self.write(REPORTS_NAME, b"".join(lines))

    def reports(self) -> list[Report]:
        """The reports, by epoch; none if there are none.

        A driver that was killed may not have heard of the last of them, and the job, which goes on
        after them, does not tell them again.

        Raises:
            UserError: they were altered.
        """
        found = []
        lines = (self.read(REPORTS_NAME) or b"").splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                found.append(Report.of(parse_line(line)))
            except ValueError:
                raise UserError(
                    f"{self.place(REPORTS_NAME)} line {number} is damaged: delete the file, as the "
                    "ledger has its reports, and type the same command to go on",
                    exit_code=1,
                ) from None
        return found


class PathFolder(JobFolder):
    """A folder of a file system: a checkpoint is renamed when it is whole.

    Args:
        directory: the job's folder, which all ranks share.
        minutes: how long a full disk is waited for.
    """

    def __init__(self, directory: Path, minutes: float = MINUTES) -> None:
        super().__init__(minutes)
        self.directory: Path = directory

    def place(self, name: str) -> str:
        """See `JobFolder`."""
        return str(self.directory / name)

    def read(self, name: str) -> bytes | None:
        """See `JobFolder`."""
        try:
            return (self.directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """See `JobFolder`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_durably(self.directory / name, [content])
        flush(self.directory)

    def checkpoints(self) -> list[str]:
        """See `JobFolder`."""
        return [folder.name for folder in checkpoint_folders(self.directory)]

    def _fetch(self, name: str) -> Path:
        return self.directory / name

    def put(self, part: Path, name: str) -> None:
        """See `JobFolder`."""
        shutil.copytree(part, self.directory / name, dirs_exist_ok=True)
        flush_tree(self.directory / name)
        flush(self.directory)

    def _delete(self, name: str) -> None:
        shutil.rmtree(self.directory / name)

    def _make_way(self) -> None:
        for left_over in self.directory.glob(".writing-*"):
            shutil.rmtree(left_over)

    def _aside(self, name: str) -> str:
        return f".writing-{name}"

    def _make_visible(self, name: str) -> None:
        shutil.rmtree(self.directory / name, ignore_errors=True)
        os.replace(self.directory / self._aside(name), self.directory / name)
        flush(self.directory)

    def bests(self) -> list[str]:
        """See `JobFolder`."""
        best, old = self.directory / BEST_NAME, self.directory / f".{BEST_NAME}-old"
        if old.exists() and not best.exists():
            os.replace(old, best)  # the job was killed between the two renames below
        return [BEST_NAME] if best.exists() else []

    def _keep_best(self, name: str) -> None:
        """Its files are hard links where the disk can: they take no room while both are there."""
        best = self.directory / BEST_NAME
        aside, old = (self.directory / f".{BEST_NAME}-{which}" for which in ("new", "old"))
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(self.directory / name, aside, copy_function=_link)
        flush_tree(aside)
        if best.exists():
            os.replace(best, old)
        os.replace(aside, best)
        shutil.rmtree(old, ignore_errors=True)


class StoreFolder(JobFolder):
    """A folder of an object store.

    Args:
        store: the job's folder.
        minutes: how long a full disk is waited for.
    """

    def __init__(self, store: ObjectStore, minutes: float = MINUTES) -> None:
        super().__init__(minutes)
        self._store = store

    def place(self, name: str) -> str:
        """See `JobFolder`."""
        return join(self._store.address, name)

    def read(self, name: str) -> bytes | None:
        """See `JobFolder`."""
        return self._store.read(name)

    def write(self, name: str, content: bytes) -> None:
        """See `JobFolder`."""
        self._store.write(name, content)

    def checkpoints(self) -> list[str]:
        """See `JobFolder`."""
        return sorted(self._named("epoch-"), reverse=True)

    def _named(self, prefix: str) -> list[str]:
        return [name for name in self._store.folders() if name.startswith(prefix)]

    def _fetch(self, name: str) -> Path:
        return local_copy(self._store.child(name), RESUMED, only=True)

    def put(self, part: Path, name: str) -> None:
        """See `JobFolder`."""
        for path in sorted(part.rglob("*")):
            if path.is_file():
                self._store.upload(path, f"{name}/{path.relative_to(part)}")

    def _delete(self, name: str) -> None:
        self._store.delete_folder(name)

    def _make_way(self) -> None:
        """Nothing is written aside, as nothing can be renamed: manifests tell what is whole."""

    def _aside(self, name: str) -> str:
        return name

    def _make_visible(self, name: str) -> None:
        """It has its name."""

    def bests(self) -> list[str]:
        """See `JobFolder`."""
        return self._named(f"{BEST_NAME}-")

    def _keep_best(self, name: str) -> None:
        """It is whole once its state is there, which comes last; only then others are deleted."""
        before, target = self.bests(), f"{BEST_NAME}-{name}"
        entries = [entry.name for entry in self._store.entries(name, recursive=True)]
        for entry in sorted(entries, key=lambda entry: entry == f"{name}/{STATE_NAME}"):
            self._store.copy(entry, f"{BEST_NAME}-{entry}")
        for folder in before:
            if folder != target:
                self._delete(folder)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
