"""Small tars whose images are texts that say which class and split they are truly of."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from pipelines.data.options import PrepareOptions
from pipelines.data.sources.opening import open_source
from pipelines.data.sources.source import Source

Files = Iterable[tuple[str, bytes]]


def tar_bytes(files: Files, format: int = tarfile.GNU_FORMAT, **headers: str) -> bytes:
    """A tar, as the standard library writes it; `headers` are pax headers of all of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, pax_headers=headers) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put(path: Path, files: Files, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, **options))
    return path


def said(*parts: object) -> bytes:
    """An image that says what it is."""
    return " ".join(map(str, parts)).encode()


def class_files(
    split: str, classes: str, each: int = 2, under: str = ""
) -> list[tuple[str, bytes]]:
    """CLASS/i.jpg of one split."""
    return [(f"{under}{c}/{i}.jpg", said(split, c, i)) for c in classes for i in range(each)]


def open_made(root: Path, **options) -> Source:
    return open_source(str(root), PrepareOptions(**options))


def taken(source: Source) -> list[tuple[str, str, str]]:
    """(split, class name, image as text) of every sample; errors stand where the class would."""
    return [
        (s.split, s.error or source.classes[s.label], bytes(s.data).decode())
        for unit in source.units
        for s in unit.read()
    ]


def all_true(source: Source) -> bool:
    """Whether every sample is of the split and class that its bytes name."""
    return all(text.split()[:2] == [split, name] for split, name, text in taken(source))


def left_out(source: Source) -> dict[str, int]:
    return {entry.reason: entry.count for entry in source.left_out}
