"""Checkpoints of a training job: complete and unaltered, or not there.

A checkpoint is a folder. Every rank that writes into it lists its files with their sha256 in
`manifest-rank<r>.json`, written last; `state.json` says how far the job was and how many manifests
there must be. A folder whose manifests are missing or do not agree with its files is passed
over for the one before.

Random generators need no storing: all that is drawn is a function of seed, epoch and step.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from pipelines.storage.hashes import file_hash
from pipelines.train.reports import Report
from pipelines.train.step_faults import BadSteps

STATE_NAME = "state.json"
MODEL_NAME = "model"
BEST_NAME = "best"


@dataclass
class EpochSums:
    """What has added up since an epoch began, over all restarts.

    Attributes:
        steps: steps whose loss is counted: those that were applied.
        losses: the sum of this rank's losses, one for each rank.
        seconds: spent on the epoch's steps before the last restart, by rank 0's clock.
        phases: likewise, by phase (`reports.PHASES`).
    """

    steps: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JobProgress:
    """How far a job is.

    Attributes:
        epoch: epochs completed.
        num_manifests: ranks that wrote files.
        device_seconds: workers × seconds spent so far, over all restarts.
        metrics: what was reported last, if anything.
        step: steps done of the epoch after those.
        sums: of that epoch.
        bad: steps that were left out.
        micro_batch: images a worker computes at a time.
        settings: what decides the job's result (`saving.deciding_settings`).
        config_hash: of the settings.
    """

    epoch: int
    num_manifests: int
    device_seconds: float
    metrics: Annotated[Report | None, BeforeValidator(lambda found: found or None)] = None
    step: int = 0
    sums: EpochSums = field(default_factory=EpochSums)
    bad: BadSteps = field(default_factory=BadSteps)
    micro_batch: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""


_PROGRESS = TypeAdapter(JobProgress)
_FILES = TypeAdapter(dict[str, str])  # name → sha256


def _manifest_name(rank: int) -> str:
    return f"manifest-rank{rank}.json"


def write_progress(folder: Path, progress: JobProgress) -> None:
    """Writes `state.json`."""
    (folder / STATE_NAME).write_text(json.dumps(asdict(progress)))


def read_progress(folder: Path) -> JobProgress:
    """Reads `state.json`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is something else.
    """
    return progress_in((folder / STATE_NAME).read_bytes())


def progress_in(content: bytes) -> JobProgress:
    """What a `state.json` says.

    Raises:
        ValueError: it is something else.
    """
    return _PROGRESS.validate_json(content)


def seal(folder: Path, rank: int) -> None:
    """Lists this rank's files with their sha256; to be called when all of them are written."""
    files = {
        str(path.relative_to(folder)): file_hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("manifest-rank")
    }
    (folder / _manifest_name(rank)).write_text(json.dumps(files))


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when it is complete and unaltered."""
    try:
        progress = read_progress(folder)
    except (OSError, ValueError):
        return f"{STATE_NAME} is missing or torn"
    # At least the first rank's, which lists the state that says how many there are.
    for rank in range(max(1, progress.num_manifests)):
        try:
            files = _FILES.validate_json((folder / _manifest_name(rank)).read_bytes())
        except (OSError, ValueError):
            return f"{_manifest_name(rank)} is missing or torn"
        for name, digest in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if file_hash(path) != digest:
                return f"{name} was altered"
    return None


def folder_name(epoch: int, step: int = 0) -> str:
    """The name of a checkpoint after so many epochs and steps; names sort as time goes."""
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def is_within_epoch(name: str) -> bool:
    """Whether a checkpoint of this name was made in the midst of an epoch."""
    return "-step-" in name


def checkpoint_folders(directory: Path) -> list[Path]:
    """The checkpoint folders of a job, newest first, whole or not."""
    return sorted(directory.glob("epoch-*"), reverse=True)
