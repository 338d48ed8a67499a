"""`prepare`: from a source to a finished directory of betons, resumable, complete or absent."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.assemble import assemble, find_absent_classes, find_rejected, split_rows
from pipelines.data.compiled import native_available
from pipelines.data.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    SPLITS,
    Manifest,
    Summary,
    load_manifest,
    verify_beton,
)
from pipelines.data.options import PrepareOptions, options_hash
from pipelines.data.parallel import make_shards, workers_for
from pipelines.data.processes import WorkerProcesses
from pipelines.data.refusals import in_words, write_rejected
from pipelines.data.shard_rows import Rows, read_rows
from pipelines.data.shards import Recipe, shard_paths
from pipelines.data.sources.opening import canonical, open_source
from pipelines.data.sources.source import Source
from pipelines.data.splits import NO_SPLIT
from pipelines.data.summary import summarize
from pipelines.errors import UserError
from pipelines.secrecy.guard import redactor
from pipelines.storage.durable import flush, write_durably
from pipelines.storage.hashes import text_hash

_SHARD_FORMAT = 4  # changes with what a shard's table holds
_REMEDY = "mend them and type the same again, or add --skip-bad"

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (images done, images in all) as shards finish."""


def prepare(
    source: str,
    out: Path,
    options: PrepareOptions | None = None,
    *,
    progress: Progress | None = None,
) -> Manifest:
    """Prepare `source` as betons in `out`.

    A finished `out` is verified and left alone. Work in progress lies in `out.partial` beside it;
    a run that was killed goes on from the shards it finished. `out` is renamed into place last.

    Args:
        source: "digits", "glyphs", a class-folder directory, or Parquet shards.
        out: directory to make.
        options: see `PrepareOptions`.
        progress: told about finished images.

    Raises:
        UserError: bad source, refused images (unless `skip_bad`), other options than before, no
            space, or another process at work on `out`.
    """
    out = Path(out)
    options = options or PrepareOptions()
    _refuse_secret(source)
    if out.is_dir() and (out / MANIFEST_NAME).exists():
        return _verify_finished(source, out, options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not prepared data: choose another OUT")
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _lock(partial), _gone_if_unused(partial):
            return _prepare(source, out, partial, options, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left under {partial.parent}: make room and type the same again, "
                "finished shards are kept",
                exit_code=1,
            ) from None
        raise UserError(f"{error.filename or partial}: {error.strerror}", exit_code=1) from None


def _refuse_secret(source: str) -> None:
    shown = redactor().text(source)
    if shown != source:  # it would stand in the manifest
        raise UserError(
            f"the source {shown} is given with a password, token or key: leave "
            "it out, storage reads it from the environment or its own credentials files"
        )


def _verify_finished(source: str, out: Path, options: PrepareOptions) -> Manifest:
    manifest = load_manifest(out)
    name = str(source)
    if manifest.options_hash != options_hash(canonical(name), options):
        before = {"source": manifest.source} | manifest.options
        now = {"source": canonical(name)} | options.content()
        changed = [
            f"{key} was {before.get(key)}, is {now[key]}"
            for key in now
            if before.get(key) != now[key]
        ]
        raise UserError(
            f"{out} was prepared differently ({'; '.join(changed) or 'other options'}): "
            "choose another OUT or delete it"
        )
    for split in manifest.splits:
        verify_beton(out, split, manifest, use_cache=False)
    log.info("%s is complete: %d betons verified", out, len(manifest.splits))
    return manifest


def _prepare(
    source_name: str, out: Path, partial: Path, options: PrepareOptions, progress: Progress | None
) -> Manifest:
    assembled = _assembled(source_name, partial, options)
    if assembled is not None:
        _publish(partial, out, options.processes)
        return assembled
    shards = partial / "shards"
    source, checked = _read(source_name, options, shards, progress, partial)
    if checked.refused:
        where = write_rejected(partial, checked.refused)
        if not options.skip_bad:
            # Shards with refused images are read anew next time: the files may be mended.
            failed = np.flatnonzero(checked.rows["error"])
            for number in np.unique(checked.rows.shards_of(failed)).tolist():
                shard_paths(shards, number)[1].unlink()
            raise UserError(f"{checked.told()}; all in {where}: {_REMEDY}", exit_code=1)
    else:
        (partial / REJECTED_NAME).unlink(missing_ok=True)
    if not checked.can_train:
        raise UserError(
            f"{source_name} holds no usable image to train on: {checked.told()}", exit_code=1
        )
    manifest = assemble(
        source,
        options,
        checked.rows,
        checked.splits,
        partial,
        len(checked.refused),
        checked.summary,
    )
    _publish(partial, out, options.processes)
    return manifest


def rehearse(
    source: str, options: PrepareOptions, *, progress: Progress | None = None
) -> tuple[Summary, str]:
    """What `prepare` would make of a source: all is read and checked, nothing is kept.

    Gives (the summary, why it would end without a result: "" if it would not).

    Raises:
        UserError: as `prepare`, except for refused images.
    """
    _refuse_secret(source)
    with tempfile.TemporaryDirectory(prefix="tokenpool-") as folder:
        _, checked = _read(source, options, Path(folder), progress)
    stops = bool(checked.refused) and not options.skip_bad
    why = f"{checked.told()}: {_REMEDY}" if stops or not checked.can_train else ""
    return checked.summary, why


def _read(
    source_name: str,
    options: PrepareOptions,
    shards: Path,
    progress: Progress | None,
    partial: Path | None = None,
) -> tuple[Source, _Checked]:
    """List a source and make its shards; what was found is kept only where there is a `partial`."""
    with workers_for(options) as workers:  # they start while the source is listed
        source = open_source(source_name, options)
        if not source.units:
            raise UserError(f"{source_name} holds no images")
        if partial is not None:
            _match_plan(partial, shards, source, options)
        _make_shards(source, options, shards, progress, workers, keep=partial is not None)
    # The list of a million files is not needed any more.
    num_shards, source = len(source.units), replace(source, units=())
    return source, _check(source, options, shards, num_shards)


@dataclass
class _Checked:
    """What reading a source found: where each row goes, and what is said of them."""

    rows: Rows
    splits: np.ndarray  # [N] position in SPLITS, NO_SPLIT for refused rows
    refused: list[tuple[str, str]]
    summary: Summary

    @property
    def can_train(self) -> bool:
        return bool((self.splits == SPLITS.index("train")).any())

    def told(self) -> str:
        if not self.refused and (self.splits != NO_SPLIT).any():
            return f"all its {len(self.rows)} images are of val"
        if not self.refused:
            return f"it has {len(self.rows)} images, none of them of the classes chosen"
        groups = in_words(self.summary.refused)
        return f"{len(self.refused)} of {len(self.rows)} images refused: {groups}"


def _check(source: Source, options: PrepareOptions, shards: Path, num_shards: int) -> _Checked:
    rows = read_rows(shards, num_shards)
    splits = split_rows(rows, source, options)
    rejected, copies = find_rejected(rows, splits, source.classes)
    del rows.columns["source_sha1"]  # a third of all that is held
    good = np.ones(len(rows), np.bool_)
    good[list(rejected)] = False
    refused = [*source.problems, *rejected.values()]
    known = {reason for _, reason in source.problems}
    absent = find_absent_classes(rows, splits, good, source.classes)
    refused += [(where, reason) for where, reason in absent if reason not in known]
    splits[~good] = NO_SPLIT
    notes = [f"{copies:,} images are copies of others in their class and split"] if copies else []
    notes += _warnings(rows, good)
    summary = summarize(source, rows, splits, refused, notes)
    return _Checked(rows, splits, refused, summary)


def _warnings(rows: Rows, good: np.ndarray) -> list[str]:
    """What a person should look at among the images that are kept, by kind."""
    found = np.flatnonzero(good & (rows["warning"] != 0))
    codes, first, counts = np.unique(rows["warning"][found], return_index=True, return_counts=True)
    first = found[first]
    names = rows.names(first.tolist())
    order = np.lexsort((first, -counts))
    return [
        f"{rows.texts['warning'][codes[i]]} ({counts[i]:,} in all, first {names[int(first[i])]})"
        for i in order
    ]


def _assembled(source_name: str, partial: Path, options: PrepareOptions) -> Manifest | None:
    """The manifest of a run that was killed after its last file was written, else None."""
    try:
        manifest = load_manifest(partial)
        for split in manifest.splits:
            verify_beton(partial, split, manifest, use_cache=False)
    except UserError:
        return None
    same = manifest.options_hash == options_hash(canonical(source_name), options)
    return manifest if same and (options.skip_bad or not manifest.rejected) else None


def _publish(partial: Path, out: Path, processes: int) -> None:
    """Clear what only the work needed, and let `out` appear."""
    shards = partial / "shards"
    with ThreadPoolExecutor(processes, "tokenpool-clear") as pool:
        # Giving back gigabytes takes the kernel a while, in whichever thread asks for it.
        list(pool.map(_remove, shards.glob("*")))
    shutil.rmtree(shards, ignore_errors=True)
    for name in ("plan.json", ".lock"):
        (partial / name).unlink(missing_ok=True)
    if out.is_dir():
        out.rmdir()  # an empty directory the user made
    partial.rename(out)
    flush(out.parent)
    native_available()  # compiles the loader's decoder now, and not in every first worker at once


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _match_plan(partial: Path, shards: Path, source: Source, options: PrepareOptions) -> None:
    """Keep those of an earlier run's shards that these options would make from the same files."""
    plan = {
        "format": _SHARD_FORMAT,
        "options": options_hash(source.name, options),
        "classes": source.classes,
        "units": [text_hash(repr(unit), 32) for unit in source.units],
    }
    path = partial / "plan.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if before != plan:
        for stale in (*partial.glob("*.beton"), partial / MANIFEST_NAME):
            stale.unlink(missing_ok=True)
        _discard_shards(shards, before, plan)
        write_durably(path, [json.dumps(plan).encode()])
    shards.mkdir(exist_ok=True)


def _discard_shards(shards: Path, before: Any, plan: dict[str, Any]) -> None:
    """Drop all shards if the options are others, else those whose files were replaced since."""
    comparable = isinstance(before, dict) and before.keys() == plan.keys()
    if not comparable or any(before[key] != plan[key] for key in ("format", "options", "classes")):
        shutil.rmtree(shards, ignore_errors=True)
        return
    for number, (was, now) in enumerate(zip_longest(before["units"], plan["units"])):
        if was != now:
            for path in reversed(shard_paths(shards, number)):  # the table says it is complete
                path.unlink(missing_ok=True)


def _make_shards(
    source: Source,
    options: PrepareOptions,
    shards: Path,
    progress: Progress | None,
    workers: WorkerProcesses | None,
    *,
    keep: bool,
) -> None:
    sizes = [unit.num_samples for unit in source.units]
    numbers = [n for n in range(len(sizes)) if not shard_paths(shards, n)[1].exists()]
    total = sum(sizes)
    done = total - sum(sizes[number] for number in numbers)
    if progress is not None:
        progress(done, total)
    recipe = Recipe(options, options.mode or source.default_mode, len(source.classes))
    for number in make_shards(numbers, source.units, shards, recipe, workers, keep=keep):
        done += sizes[number]
        if progress is not None:
            progress(done, total)


@contextmanager
def _gone_if_unused(partial: Path) -> Iterator[None]:
    """A source that is refused before any work is done leaves nothing behind."""
    try:
        yield
    except UserError:
        if os.listdir(partial) == [".lock"]:
            (partial / ".lock").unlink()
            partial.rmdir()
        raise


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    with (partial / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process is preparing {partial}: wait for it or choose another OUT",
                exit_code=1,
            ) from None
        yield
