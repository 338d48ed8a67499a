"""What a prepared data directory holds, and the proof that its files are the ones prepared."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import UserError
from pipelines.storage.durable import write_durably
from pipelines.storage.hashes import file_hash, text_hash

MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.parquet"
REJECTED_NAME = "rejected.csv"
SPLITS = ("train", "minival", "val")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SplitManifest(_Strict):
    """One beton: its file, checksum and class counts."""

    # A plain name: a manifest that came from elsewhere must not name files outside its folder.
    file: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=1)
    samples: int = Field(ge=1)
    counts: list[int] = Field(description="Samples of each class, in the order of `classes`.")


class Group(_Strict):
    """Things left out or refused for one reason.

    `first` is the name of one of them and `example` its reason in full; `option` would take them.
    """

    reason: str
    count: int
    unit: str = "images"
    first: str = ""
    option: str = ""
    example: str = ""


class SplitSummary(_Strict):
    """Where a split came from (folders or files), what is in it, and what was converted how."""

    origins: list[str]
    images: int
    classes: int = Field(description="Classes with an image in this split.")
    converted: dict[str, int] = Field(default_factory=dict)


class Summary(_Strict):
    """What `prepare` made of a source: what was taken for what, and what was not taken."""

    source: str
    classes: int
    first_class: str
    last_class: str
    splits: dict[str, SplitSummary]
    refused: list[Group] = Field(default_factory=list)
    left_out: list[Group] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class Manifest(_Strict):
    """The contents of `manifest.json`.

    `mean` and `std` are per channel (R, G, B) over the training pixels, as fractions of 255.
    `image_size` is the side of the stored images where all are square and equal, else None: then
    a loader needs an `image_size` to crop and resize to.
    """

    format_version: int = 1
    source: str
    seed: int
    classes: list[str]
    image_size: int | None
    max_width: int
    max_height: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    splits: dict[str, SplitManifest]
    rejected: int = 0
    options: dict[str, Any] = Field(default_factory=dict)
    options_hash: str = ""
    summary: Summary | None = Field(default=None, description="None in data of earlier programs.")

    @property
    def num_classes(self) -> int:
        """How many classes there are, also those without a sample in some split."""
        return len(self.classes)


def load_manifest(out: Path) -> Manifest:
    """Read and check `out/manifest.json`.

    Raises:
        UserError: it is absent or is not a manifest of this version; the message has the remedy.
    """
    out = Path(out)
    path = out / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        source = out.name if out.name in ("digits", "glyphs") else "SOURCE"
        raise UserError(
            f"no prepared data at {out}: run `tokenpool prepare {source} {out}`"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", exit_code=1) from None
    try:
        manifest = parse_manifest(content)
    except ValueError as error:
        raise UserError(
            f"{path} is not a manifest: {error}; delete {out} and prepare it again", exit_code=1
        ) from None
    if manifest.format_version != 1:
        raise UserError(
            f"{path} has format version {manifest.format_version}, this program reads 1: "
            f"delete {out} and prepare it again",
            exit_code=1,
        )
    return manifest


def parse_manifest(content: bytes) -> Manifest:
    """A manifest's text.

    Raises:
        ValueError: it is none; names what is wrong with which key.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{where}: {first['msg']}") from None


def verify_beton(out: Path, split: str, manifest: Manifest, *, use_cache: bool = True) -> Path:
    """The path of a split's beton, which is the one that the manifest was written for.

    The hash is computed once per machine and file: a note under the user's cache directory
    remembers path, size, inode, modification and change times it was computed for. FFCV checks
    neither sizes nor pointers, so nothing unverified may reach its decoder.

    Raises:
        UserError: no such split, or the file is missing or altered.
    """
    entry = manifest.splits.get(split)
    if entry is None:
        raise UserError(
            f"no split {split!r} in {out}: it has {', '.join(manifest.splits) or 'none'}"
        )
    path = Path(out) / entry.file
    remedy = f"delete {out} and run `tokenpool prepare {manifest.source} {out}` again"
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} is missing ({error.strerror}): {remedy}", exit_code=1) from None
    if stat.st_size != entry.size_bytes:
        raise UserError(
            f"{path} has {stat.st_size} bytes, its manifest says {entry.size_bytes}: {remedy}",
            exit_code=1,
        )
    resolved = str(path.resolve())
    identity: list[Any] = [
        resolved,
        stat.st_size,
        stat.st_mtime_ns,
        stat.st_ctime_ns,
        stat.st_ino,
        entry.sha256,
    ]
    note = user_cache_path("tokenpool") / "verified" / text_hash(os.fsencode(resolved), 32)
    if use_cache:
        try:
            if json.loads(note.read_text(encoding="utf-8")) == identity:
                return path
        except (OSError, ValueError):
            pass  # no usable note: compute
    try:
        actual = file_hash(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", exit_code=1) from None
    if actual != entry.sha256:
        raise UserError(
            f"{path} was altered (its sha256 is not the manifest's): {remedy}", exit_code=1
        )
    _remember(note, identity)
    return path


def _remember(note: Path, identity: list[Any]) -> None:
    """A cache that cannot be written is only slower."""
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        write_durably(note, [json.dumps(identity).encode()])
