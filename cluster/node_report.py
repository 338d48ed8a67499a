"""What a node of a cluster says of itself, and what is wrong with it. No Ray in here."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

PACKAGES = ("ray", "torch", "deepspeed", "timm", "numpy", "ffcv")
CLOCK_SECONDS = 5.0
LEAST_FREE_GB = 2.0
_ROOMS = ("tokenpool", "tune_spaces", "cluster", "pipelines")
_WHOLE_FILE = 64 << 20
_BLOCKS, _BLOCK = 64, 1 << 20


class Storage(Protocol):
    """What keeps searches, as every node must see it; it travels to them."""

    @property
    def place(self) -> str:
        """Its name, for people."""

    @property
    def folder(self) -> Path:
        """On this machine: where it is, or where copies of it will be."""

    @property
    def remedy(self) -> str:
        """What is to be done where a node does not see it."""

    def read(self, name: str) -> str:
        """A file's text; raises OSError if there is none, or it cannot be read."""

    def write(self, name: str, text: str) -> None:
        """Writes a file; raises OSError if it cannot."""

    def delete(self, beginning: str) -> None:
        """Deletes the files whose names begin so."""


@dataclass(frozen=True)
class SharedFolder:
    """A folder that every node sees under the same path."""

    folder: Path

    @property
    def remedy(self) -> str:
        return "set storage to a folder that every node sees, and mount it on this one"

    @property
    def place(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> str:
        os.listdir(self.folder)  # a network file system may remember that the file was not there
        return (self.folder / name).read_text()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def delete(self, beginning: str) -> None:
        for path in self.folder.glob(f"{beginning}*"):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Request:
    """What a node is asked: whether `word` stands in the file `mark`, and of the data's files."""

    mark: str
    word: str
    storage: Storage
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What one node answers.

    Attributes:
        node: the node's address.
        python: the version of Python.
        versions: package → version; only those that are there.
        code: fingerprint of this program's own code.
        clock: seconds since 1970.
        files: path → fingerprint, or in brackets what is wrong with it.
        storage: what is wrong with the storage; empty if nothing is.
        free_gb: folder → gigabytes.
        gpus: how many GPUs the driver shows; None without a driver.
    """

    node: str
    python: str
    versions: dict[str, str]
    code: str
    clock: float
    files: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    free_gb: dict[str, float] = field(default_factory=dict)
    gpus: int | None = None


def look(request: Request, node: str) -> Report:
    """What this machine has to say; writes a file `MARK.NODE` into the storage."""
    folder = request.storage.folder
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return Report(
        node=node,
        python=".".join(map(str, sys.version_info[:3])),
        versions=_versions(),
        code=code_fingerprint(),
        clock=time.time(),
        files={path: fingerprint(Path(path)) for path in request.files},
        storage=_try_storage(request, node),
        free_gb={
            str(folder): shutil.disk_usage(folder).free / 1e9
            for folder in (existing, Path(tempfile.gettempdir()))
        },
        gpus=_count_gpus(),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_fingerprint() -> str:
    """A hash of the code of this program that this process would run."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted(path for room in _ROOMS for path in (root / room).rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def fingerprint(path: Path) -> str:
    """A hash of a file: of all of it up to 64 MiB, else of 64 MiB spread over it, and its size.

    In brackets what is wrong, if it cannot be read.
    """
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            if size <= _WHOLE_FILE:
                digest.update(file.read())
            else:
                for number in range(_BLOCKS):
                    file.seek(number * (size - _BLOCK) // (_BLOCKS - 1))
                    digest.update(file.read(_BLOCK))
    except OSError as error:
        return f"({error.strerror or error})"
    return digest.hexdigest()


def _try_storage(request: Request, node: str) -> str:
    try:
        if request.storage.read(request.mark) != request.word:
            return "is another folder there"
    except FileNotFoundError:
        return "is not the same folder there, or is not mounted"
    except OSError as error:
        return f"cannot be read from there ({error.strerror or error})"
    try:
        request.storage.write(f"{request.mark}.{node}", request.word)
    except OSError as error:
        return f"cannot be written to from there ({error.strerror or error})"
    return ""


def _count_gpus() -> int | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=60)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def problems(
    here: Report,
    there: Report,
    storage: Storage,
    *,
    asked: float,
    answered: float,
    gpus_for_ray: float = 0.0,
) -> list[str]:
    """What is wrong with a node, each in one line with its remedy.

    Args:
        here: the report of the node that drives the search.
        there: the node's.
        storage: what it was asked about.
        asked: when, by this machine's clock.
        answered: when.
        gpus_for_ray: how many GPUs of it Ray gives out.
    """
    found = []
    node = f"node {there.node}"
    if there.storage:
        found.append(f"{node}: storage {storage.place} {there.storage}: {storage.remedy}")
    for path, print_here in here.files.items():
        print_there = there.files.get(path, "(not looked at)")
        if print_there.startswith("("):
            found.append(f"{node}: {path} cannot be read {print_there}: copy or mount it there")
        elif print_there != print_here:
            found.append(
                f"{node}: {path} is not what it is on node {here.node}: copy its folder there again"
            )
    if there.python != here.python:
        found.append(_differs(node, "Python", here.python, there.python))
    for name in PACKAGES:
        ours, theirs = here.versions.get(name), there.versions.get(name)
        if ours != theirs:
            found.append(_differs(node, name, ours or "none", theirs or "none"))
    if there.code != here.code:
        found.append(
            f"{node}: another version of this program is installed there: submit the search with "
            "`tokenpool submit`, which sends the program along, or install the same on every node"
        )
    ahead = max(0.0, there.clock - answered) - max(0.0, asked - there.clock)
    if abs(ahead) > CLOCK_SECONDS:
        found.append(
            f"{node}: its clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}: "
            "synchronise it (NTP)"
        )
    for folder, free in there.free_gb.items():
        if free < LEAST_FREE_GB:
            found.append(f"{node}: {free:.1f} GB free at {folder}: make room")
    if gpus_for_ray and (there.gpus or 0) < gpus_for_ray:
        sees = "no NVIDIA driver" if there.gpus is None else f"{there.gpus} GPUs"
        found.append(
            f"{node}: Ray gives out {gpus_for_ray:g} GPUs and the machine has {sees}: put the "
            "driver right, or start Ray there with the --num-gpus there are"
        )
    return found


def _differs(node: str, what: str, here: str, there: str) -> str:
    """Says that a node has another version of something than the driver's node."""
    return f"{node}: {what} {there}, the driver's node has {here}: install the same on every node"


def unwritten(request: Request, nodes: Sequence[str]) -> list[str]:
    """Nodes whose file in the storage did not arrive here."""
    storage = request.storage
    return [
        f"node {node}: what it writes to {storage.place} does not arrive at the driver's node: "
        f"{storage.remedy}"
        for node in nodes
        if not _holds(storage, f"{request.mark}.{node}", request.word)
    ]


def _holds(storage: Storage, name: str, word: str) -> bool:
    """Whether a file of the storage is there and holds just this word."""
    try:
        return storage.read(name) == word
    except OSError:
        return False
