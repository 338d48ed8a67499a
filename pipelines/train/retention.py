"""Which checkpoints of a job stay: the newest few, and the one of the best epoch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipelines.storage.durable import flush_tree
from pipelines.train.checkpoint import read_progress

BEST_NAME = "best"
SCORE = "top1_minival"


def folder_name(epoch: int, step: int = 0) -> str:
    """The name of a checkpoint after so many epochs and steps; names sort as time goes."""
    return f"epoch-{epoch:04d}" + (f"-step-{step:06d}" if step else "")


def is_within_epoch(folder: Path) -> bool:
    """Whether a checkpoint was made in the midst of an epoch."""
    return "-step-" in folder.name


def checkpoint_folders(directory: Path) -> list[Path]:
    """The checkpoint folders of a job, newest first, whole or not."""
    return sorted(directory.glob("epoch-*"), reverse=True)


def superseded(directory: Path, keep: int) -> list[Path]:
    """The checkpoints that are older than the newest `keep`."""
    return checkpoint_folders(directory)[keep:]


def score_of(folder: Path) -> float | None:
    """Top-1 on minival that a checkpoint was reported with; None if it cannot be told."""
    try:
        score = read_progress(folder).metrics.get(SCORE)
        return None if score is None else float(score)
    except (OSError, ValueError, TypeError):
        return None


def keep_if_best(directory: Path, folder: Path) -> None:
    """Makes `best` a copy of an epoch's checkpoint if none before it scored as high.

    Its files are hard links where the disk can: they take no room until the original is deleted.
    """
    best = directory / BEST_NAME
    aside, old = directory / f".{BEST_NAME}-new", directory / f".{BEST_NAME}-old"
    if old.exists() and not best.exists():
        os.replace(old, best)  # the job was killed between the two renames below
    score, record = score_of(folder), score_of(best)
    if score is None or (record is not None and score <= record):
        return
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(folder, aside, copy_function=_link)
    flush_tree(aside)
    if best.exists():
        os.replace(best, old)
    os.replace(aside, best)
    shutil.rmtree(old, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
