"""What was measured so far, kept in a file: a squeeze that was stopped goes on from it.

Which schedules are looked at follows from what was measured before. So a second run asks the same
questions, and those that are answered in the file take no time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipelines.errors import UserError

Question = tuple[tuple[int, ...], int, int]


class Seen(NamedTuple):
    """A schedule on a part of the images.

    Attributes:
        divergence: mean KL from the dense model (nats).
        agreement: share of the images whose class is the dense model's.
        top1: share whose class is the true one; meaningless where there are no labels.
    """

    divergence: float
    agreement: float
    top1: float


class Answers:
    """Schedule and images → what was seen.

    Args:
        path: of the file; None keeps nothing beyond this run.
        key: of the model, the images and the options that the answers depend on.
        say: told when they cannot be kept any more.

    Raises:
        UserError: the file is of another squeeze, somebody writes it now, or it cannot be opened.
    """

    def __init__(self, path: Path | None, key: str, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._known: dict[Question, Seen] = {}
        self._file: TextIOWrapper | None = None
        if path is not None:
            self._open(path, key)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, question: Question) -> Seen | None:
        """The answer, if it is known."""
        return self._known.get(question)

    def add(self, found: Mapping[Question, Seen]) -> None:
        """Keeps answers; they survive whatever ends this process after that."""
        self._known.update(found)
        if self._file is None or not found:
            return
        lines = [json.dumps([*question, *seen]) for question, seen in found.items()]
        try:
            self._file.write("".join(f"{line}\n" for line in lines))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._say(
                f"{self._path} cannot be written ({error.strerror}): a stop loses what is new"
            )
            self._file = None

    def close(self) -> None:
        """Lets go of the file; whoever has kept what was found removes it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, path: Path, key: str) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path} is being written by another squeeze: give another --out"
            ) from None
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}", exit_code=1) from None
        file.seek(0)
        text = file.read()
        whole = text[: text.rfind("\n") + 1]  # a kill may have cut the last line
        header, *lines = whole.splitlines() or [""]
        if header and header != key:
            raise UserError(
                f"{path} was left by a squeeze of another model, images or options: repeat that "
                "one, give another --out, or remove the file"
            )
        try:
            for line in lines:
                schedule, start, stop, *seen = json.loads(line)
                self._known[tuple(schedule), start, stop] = Seen(*seen)
        except (ValueError, TypeError):
            raise UserError(f"{path} is damaged: remove it to begin anew") from None
        file.truncate(len(whole.encode()))
        if not header:
            file.write(f"{key}\n")
            file.flush()
        self._file = file


def fingerprint(model: nn.Module, tensors: tuple[Tensor, ...], options: Mapping[str, Any]) -> str:
    """One line that stands for a model, images and options: what answers depend on."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        _update(digest, value)
    for tensor in tensors:
        _update(digest, tensor)
    return json.dumps({"squeeze": 1, **options, "of": digest.hexdigest()}, sort_keys=True)


def _update(digest: Any, tensor: Tensor) -> None:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy())
