"""Folders that a command writes at its end: looked at before it begins."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipelines.errors import UserError


def check_new_folder(out: Path) -> None:
    """Refuses a folder that is there already, or cannot be made.

    Raises:
        UserError: either of these.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists: give another --out folder, or remove it")
    check_writable(out.parent)


def check_writable(folder: Path) -> None:
    """Refuses a folder that cannot be written into, or made.

    Raises:
        UserError: it is a file, lies in one, or permissions or a full disk are in the way.
    """
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.NamedTemporaryFile(dir=there) as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}: give another --out folder", exit_code=1
        ) from None
