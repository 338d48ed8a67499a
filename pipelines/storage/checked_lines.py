"""Lines of JSON that end with their checksum: one that was altered is seen."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

# The last key of a line: the CRC-32 of all that stands before it.
_CHECKSUM = b',"crc":"'


def checked_line(values: Mapping[str, Any]) -> bytes:
    """The line of an object that is not empty."""
    content = json.dumps(values, separators=(",", ":")).encode()[:-1]
    return content + _CHECKSUM + b'%08x"}\n' % zlib.crc32(content)


def has_checksum(line: bytes) -> bool:
    """Whether a line says what its checksum is; those of older versions do not."""
    return _CHECKSUM in line


def parse_line(line: bytes) -> dict[str, Any]:
    """The object of a complete line.

    Raises:
        ValueError: it is none, or not what was written, by its checksum if it has one.
    """
    content, mark, rest = line.rstrip(b"\n").rpartition(_CHECKSUM)
    if mark and (rest[8:] != b'"}' or int(rest[:8], 16) != zlib.crc32(content)):
        raise ValueError("the checksum is another")
    values = json.loads(content + b"}" if mark else line)
    if not isinstance(values, dict):
        raise ValueError("no object")
    return values
