"""What a disk may hold after the power goes, at each system call of what writes to it.

The model is that of file systems with an ordered journal (ext4, xfs, btrfs): of names made,
renamed and deleted some are there, up to a moment; of a file's content all that was flushed is
there (fsync), and of the rest anything.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

# What a file holds whose content was not flushed.
LOST: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
}
_CHANGES = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate"}


@dataclass(frozen=True)
class Moment:
    """A folder as it was right before a system call.

    Attributes:
        call: what was about to be done.
        label: of the work it belongs to.
        copy: of the folder, as a process that is killed leaves it.
        volatile: the files whose content was not flushed, by their names in the folder.
    """

    call: str
    label: str
    copy: Path
    volatile: tuple[str, ...]

    def states(self, into: Path) -> Iterator[tuple[str, Path]]:
        """Each state that the folder may be in, one after the other, in a folder of its own."""
        several = [[name] for name in self.volatile] if len(self.volatile) > 1 else []
        cases = [("all", [])] + [
            (how, names)
            for names in [list(self.volatile), *several]
            if names
            for how in LOST
        ]  # fmt: skip
        for how, names in cases:
            shutil.rmtree(into, ignore_errors=True)
            _copy(self.copy, into)
            for name in names:
                content = (into / name).read_bytes()
                (into / name).unlink()  # it may have another name, as links have
                (into / name).write_bytes(LOST[how](content))
            yield f"{self.label}, before {self.call}: {how} of {names}", into


class Recorder:
    """Keeps a copy of a folder for each system call of this process that changes it.

    Args:
        folder: which.
        copies: where they lie.
    """

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder, self._copies = folder, copies
        self._on = False
        self._flushed: dict[int, str] = {}
        self.moments: list[Moment] = []
        self.label = ""
        sys.addaudithook(self._heard)  # for good: there is no way to take it back

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Records until the block ends."""
        real = os.fsync

        def fsync(handle: int) -> None:
            real(handle)
            self._on = False
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            if path.is_file():
                self._flushed[path.stat().st_ino] = _digest(path)
            self._on = True

        os.fsync = fsync
        self._on = True
        try:
            yield
            self.look("the end")
        finally:
            self._on = False
            os.fsync = real

    def look(self, call: str) -> None:
        """Keeps the folder as it is now."""
        self._on = False
        copy = self._copies / f"{len(self.moments):04d}"
        _copy(self._folder, copy)
        files = [path for path in sorted(self._folder.rglob("*")) if path.is_file()]
        volatile = tuple(
            str(path.relative_to(self._folder))
            for path in files
            if path.stat().st_size and self._flushed.get(path.stat().st_ino) != _digest(path)
        )
        self.moments.append(Moment(call, self.label, copy, volatile))
        self._on = True

    def _heard(self, event: str, values: tuple[Any, ...]) -> None:
        if not self._on:
            return
        writes = event == "open" and isinstance(values[2], int) and values[2] & 3
        if event in _CHANGES or writes:
            self.look(f"{event} {str(values[0]).removeprefix(str(self._folder))}")


def _copy(folder: Path, into: Path) -> None:
    """A copy in which links are links."""
    seen: dict[int, Path] = {}
    into.mkdir(parents=True)
    for path in sorted(folder.rglob("*")):
        target = into / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        elif path.stat().st_ino in seen:
            os.link(seen[path.stat().st_ino], target)
        else:
            shutil.copy2(path, target)
            seen[path.stat().st_ino] = target


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
