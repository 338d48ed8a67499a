"""sha256 of files, texts and JSON values, in hex."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def file_hash(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_hash(text: str | bytes, digits: int) -> str:
    """The first digits of a text's."""
    content = text.encode() if isinstance(text, str) else text
    return hashlib.sha256(content).hexdigest()[:digits]


def json_hash(values: object, digits: int = 12) -> str:
    """The first digits of a JSON value's, whatever the order of its keys."""
    return text_hash(json.dumps(values, sort_keys=True), digits)
