"""How far each worker of a running job is: a small file beside the job, for `tokenpool status`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.storage.durable import write_durably

NAME = "last-signs.json"


@dataclass(frozen=True)
class LastSign:
    """Where a worker stands.

    Attributes:
        rank: which.
        host: of its machine.
        step: the last that it has done; None before the first.
        doing: what it does now.
        time: of that step, or of its start; seconds since the epoch.
    """

    rank: int
    host: str
    step: int | None
    doing: str
    time: float


def write_last_signs(directory: Path, signs: Sequence[LastSign]) -> None:
    """Replaces the file. A disk that takes no file must not end a training for it."""
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(directory / NAME, [json.dumps([asdict(sign) for sign in signs]).encode()])


def forget_last_signs(directory: Path) -> None:
    """The job's workers have ended."""
    with suppress(OSError):
        (directory / NAME).unlink(missing_ok=True)


def read_last_signs(directory: Path) -> list[LastSign]:
    """What the file of a job says; nothing where there is none, or it is of another version."""
    try:
        return [LastSign(**sign) for sign in json.loads((directory / NAME).read_text())]
    except (OSError, ValueError, TypeError):
        return []
