"""What lies in a tar file and where: its headers read one after the other, nothing unpacked.

The format is POSIX pax and ustar with GNU's long names, as the standard library's `tarfile` reads
it. That one ends at a broken header as if the archive ended there, and reads names as long as a
header asks for. Here only ranges of bytes inside the file come out, whatever the headers say, and
tars inside a tar are read as ranges of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

BLOCK = 512
_LARGEST_EXTENSION = 1 << 20  # bytes of a long name or of pax records
_ZERO = bytes(BLOCK)
_STRIDE = 1 << 20
_DEEPEST = 3  # a tar in a tar in a tar
_MAGIC = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip", b"7z\xbc\xaf": "7-zip",
}  # fmt: skip
_EXTENSIONS = frozenset({b"L", b"K", b"x", b"g"})  # they tell of the member that follows
_NO_BYTES = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})  # links, devices, folders, pipes
_LEFT_OUT = {
    b"1": "links", b"2": "links", b"3": "devices", b"4": "devices", b"6": "pipes",
    b"M": "continued from another volume", b"V": "volume labels", b"S": "sparse files",
}  # fmt: skip
_ANEW = "download or make it anew"
_UNPACK = {
    "gzip": "gunzip -k", "bzip2": "bunzip2 -k", "xz": "unxz -k", "zstd": "unzstd",
    "zip": "unzip", "7-zip": "7z x",
}  # fmt: skip
COMPRESSED_ENDINGS = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip

LeaveOut = Callable[[str, str], None]
"""Called with (name, reason) of each thing that is passed over."""


class Member(NamedTuple):
    """A regular file in a tar.

    `path` has the names of inner tars, without `.tar`, as folders: `n01440764/n01440764_36.JPEG`.
    `offset` and `size` are the range in the outermost file.
    """

    path: str
    offset: int
    size: int


def scan(
    path: Path, where: str, leave_out: LeaveOut, problems: list[tuple[str, str]]
) -> Iterator[Member]:
    """The regular files of a tar, in the order they lie in it.

    Args:
        path: a file.
        where: what it is called in reports.
        leave_out: told of links, devices, sparse files, and names that lead out of the archive.
        problems: gets (name, reason) of tars, also inner ones, that are compressed, no tar at all,
            cut short or broken in the middle; what lies before that place is given all the same.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        problems.append((where, f"cannot be read: {error.strerror}"))
        return
    try:
        end = os.fstat(descriptor).st_size
        yield from _Scan(descriptor, where, leave_out, problems).tar(0, end, "", 1)
    finally:
        os.close(descriptor)


class _BrokenError(ValueError):
    """A tar that cannot be read on; the message says why."""


@dataclass
class _Scan:
    descriptor: int
    where: str
    leave_out: LeaveOut
    problems: list[tuple[str, str]]

    def tar(self, start: int, end: int, prefix: str, depth: int) -> Iterator[Member]:
        """The members between two offsets, with `prefix` before their paths."""
        try:
            for path, kind, offset, size in self._entries(start, end):
                name = self._usable(path, kind, prefix)
                if name is None:
                    continue
                if not name.lower().endswith(".tar"):
                    yield Member(prefix + name, offset, size)
                elif depth == _DEEPEST:
                    self.leave_out(self._name(prefix + name), f"tars more than {_DEEPEST} deep")
                else:
                    inner = f"{prefix}{name[:-4]}/"
                    yield from self.tar(offset, offset + size, inner, depth + 1)
        except (_BrokenError, OSError) as error:
            reason = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else error
            self.problems.append((self._name(prefix.rstrip("/")), f"{reason}"))

    def _name(self, path: str) -> str:
        return f"{self.where}:{path}" if path else self.where

    def _entries(self, start: int, end: int) -> Iterator[tuple[str, bytes, int, int]]:
        """(path, type, offset, size) of everything that has a header of its own."""
        position, long_name, records = start, None, _Records()
        ended = False
        if start == end:
            raise _BrokenError(f"is an empty file: {_ANEW}")
        if compressed := _compressed(os.pread(self.descriptor, min(BLOCK, end - start), start)):
            raise _BrokenError(compressed)
        while position < end:
            block = self._read(position, BLOCK, end)
            if block == _ZERO:
                position, ended = self._past_zeros(position, end), True
                continue
            ended = False
            header = _parse(block)
            if header is None:
                if position == start:
                    raise _BrokenError(f"is no tar file: {_ANEW}")
                raise _BrokenError(f"is broken at byte {position - start:,}: {_ANEW}")
            name, kind, size = header
            position += BLOCK
            if kind in _EXTENSIONS:
                text = self._extension(position, size, end)
                if kind == b"L":
                    long_name = text.split(b"\0")[0]
                elif kind != b"K":
                    records.read(text, everywhere=kind == b"g")
                position += _padded(size)
                continue
            path = os.fsdecode(records.get(b"path", name if long_name is None else long_name))
            size = 0 if kind in _NO_BYTES else _decimal(records.get(b"size", b""), size)
            if kind == b"S":
                position = self._past_sparse_map(block, position, end)
            elif records.sparse:
                kind = b"S"
            long_name, records = None, records.global_only()
            if position + size > end:
                lacking = f"{position + size - end:,} bytes of {path!r} are not there"
                raise _BrokenError(f"is cut short, {lacking}: {_ANEW}")
            yield path, kind, position, size
            position += _padded(size)
        if position > end:
            raise _BrokenError(f"is cut short: {_ANEW}")
        if not ended:  # every reader takes it; a writer that was stopped leaves such a tar
            self.leave_out(self.where, "end marks of tars, which may be cut short")

    def _usable(self, path: str, kind: bytes, prefix: str) -> str | None:
        """A member's path without idle parts; None for what is no file that can be taken."""
        if kind in b"5D" or (kind in b"0\0" and path.endswith("/")):
            return None  # folders
        parts = [part for part in path.split("/") if part not in ("", ".")]
        reason = "" if kind in b"0\x007" else _LEFT_OUT.get(kind, "of a type that is no file")
        if not parts or ".." in parts or path.startswith("/"):
            reason = "with a name that leads out of the archive"
        if reason:
            self.leave_out(self._name(prefix + path), reason)
            return None
        return "/".join(parts)

    def _past_zeros(self, position: int, end: int) -> int:
        """The first block that is not zero; a tar behind another one's end is part of it."""
        while position < end:
            chunk = os.pread(self.descriptor, min(_STRIDE, end - position), position)
            rest = chunk.lstrip(b"\0")
            if rest:
                return position + (len(chunk) - len(rest)) // BLOCK * BLOCK
            position += len(chunk) or end
        return end

    def _read(self, position: int, size: int, end: int) -> bytes:
        block = os.pread(self.descriptor, max(0, min(size, end - position)), position)
        if len(block) < size:
            raise _BrokenError(f"is cut short: {_ANEW}")
        return block

    def _extension(self, position: int, size: int, end: int) -> bytes:
        if size > _LARGEST_EXTENSION:
            raise _BrokenError(f"has a name of {size:,} bytes: {_ANEW}")
        return self._read(position, size, end)

    def _past_sparse_map(self, header: bytes, position: int, end: int) -> int:
        more = header[482]
        while more:
            more = self._read(position, BLOCK, end)[504]
            position += BLOCK
        return position


class _Records:
    """What pax headers say of the next member, and of all that follow."""

    def __init__(self, everywhere: dict[bytes, bytes] | None = None) -> None:
        self._everywhere = everywhere or {}
        self._next: dict[bytes, bytes] = {}

    def read(self, text: bytes, *, everywhere: bool) -> None:
        """Take `LENGTH KEY=VALUE\\n` records; what is broken among them says nothing."""
        found = self._everywhere if everywhere else self._next
        while text:
            digits, space, _ = text.partition(b" ")
            length = _decimal(digits, 0)
            if not space or length <= len(digits) + 1:
                return
            key, equals, value = text[len(digits) + 1 : length].partition(b"=")
            if equals:
                found[key] = value.removesuffix(b"\n")
            text = text[length:]

    def get(self, key: bytes, default: bytes) -> bytes:
        return self._next.get(key) or self._everywhere.get(key) or default

    @property
    def sparse(self) -> bool:
        return any(key.startswith(b"GNU.sparse.") for key in self._next)

    def global_only(self) -> _Records:
        return _Records(self._everywhere) if self._next else self


def _parse(block: bytes) -> tuple[bytes, bytes, int] | None:
    """(name, type, size) of a header; None if its checksum or size is none."""
    total, size = _number(block[148:156]), _number(block[124:136])
    if total is None or size is None or size < 0:
        return None
    unsigned = sum(block) - sum(block[148:156]) + 8 * 32
    if total != unsigned and total != _signed_sum(block):
        return None
    name = block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":  # GNU's own form has times at this place
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name, block[156:157], size


def _signed_sum(block: bytes) -> int:
    """The checksum as some old programs made it."""
    counted = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in counted)


def _number(field: bytes) -> int | None:
    """An octal number with blanks about it, or GNU's binary one."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:]) if field[0] == 0x80 else None
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits, 8) if digits else 0
    except ValueError:
        return None


def _decimal(digits: bytes, default: int) -> int:
    return int(digits) if digits.isdigit() and len(digits) < 20 else default


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _compressed(block: bytes) -> str:
    kind = next((kind for magic, kind in _MAGIC.items() if block.startswith(magic)), "")
    return kind and f"is compressed with {kind}, not a plain tar: unpack it with {_UNPACK[kind]}"
