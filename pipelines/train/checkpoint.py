"""Checkpoints of a training job: complete and unaltered, or not there.

A checkpoint is a folder. Every rank that writes into it lists its files with their sha256 in
`manifest-rank<r>.json`, written last; `state.json` names the epoch and how many manifests
there must be. A folder whose manifests are missing or do not agree with its files is passed
over for the one before.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STATE_NAME = "state.json"
MODEL_NAME = "model"


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes:
        epoch: epochs completed.
        num_manifests: ranks that wrote files.
        device_seconds: workers × seconds spent so far, over all restarts.
        metrics: what was reported with this checkpoint.
    """

    epoch: int
    num_manifests: int
    device_seconds: float
    metrics: dict[str, Any] = field(default_factory=dict)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_name(rank: int) -> str:
    return f"manifest-rank{rank}.json"


def write_progress(folder: Path, progress: JobProgress) -> None:
    """Writes `state.json`."""
    (folder / STATE_NAME).write_text(json.dumps(asdict(progress)))


def read_progress(folder: Path) -> JobProgress:
    """Reads `state.json`."""
    return JobProgress(**json.loads((folder / STATE_NAME).read_text()))


def seal(folder: Path, rank: int) -> None:
    """Lists this rank's files with their sha256; to be called when all of them are written."""
    files = {
        str(path.relative_to(folder)): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("manifest-rank")
    }
    (folder / _manifest_name(rank)).write_text(json.dumps(files))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is complete and unaltered."""
    try:
        progress = read_progress(folder)
    except (OSError, ValueError, TypeError):
        return f"{STATE_NAME} is missing or torn"
    for rank in range(progress.num_manifests):
        try:
            files = json.loads((folder / _manifest_name(rank)).read_text())
        except (OSError, ValueError):
            return f"{_manifest_name(rank)} is missing or torn"
        for name, digest in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != digest:
                return f"{name} was altered"
    return None
