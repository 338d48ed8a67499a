"""`prepare`: from a source to a finished directory of betons, resumable, complete or absent."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.security.secrecy import redactor
from pipelines.data.assemble import (
    assemble,
    find_absent_classes,
    find_rejected,
    read_rows,
    split_rows,
)
from pipelines.data.compiled import native_available
from pipelines.data.manifest import (
    MANIFEST_NAME,
    REJECTED_NAME,
    Manifest,
    load_manifest,
    verify_beton,
)
from pipelines.data.options import PrepareOptions, options_hash
from pipelines.data.parallel import make_shards, workers_for
from pipelines.data.processes import WorkerProcesses
from pipelines.data.shards import shard_paths, write_durably
from pipelines.data.sources.base import Source
from pipelines.errors import UserError

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
    shown = redactor().text(str(source))
    if shown != str(source):  # it would stand in the manifest
        raise UserError(
            f"the source {shown} is given with a password, token or key: leave "
            "it out, storage reads it from the environment or its own credentials files"
        )
    if out.is_dir() and (out / MANIFEST_NAME).exists():
        return _verify_finished(source, out, options)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not prepared data: choose another OUT")
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _lock(partial):
            return _prepare(source, out, partial, options, progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left under {partial.parent}: make room and type the same again, "
                "finished shards are kept",
                exit_code=1,
            ) from None
        raise UserError(f"{error.filename or partial}: {error.strerror}", exit_code=1) from None


def _verify_finished(source: str, out: Path, options: PrepareOptions) -> Manifest:
    manifest = load_manifest(out)
    name = str(source)
    if manifest.options_hash != options_hash(_canonical(name), options):
        before = {"source": manifest.source} | manifest.options
        now = {"source": _canonical(name)} | options.content()
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


def _canonical(source: str) -> str:
    """A source's name as the manifest has it: made-up ones by name, paths in full."""
    if source in ("digits", "glyphs") or "://" in source:
        return source
    return str(Path(source).resolve())


def open_source(source: str, options: PrepareOptions) -> Source:
    """List a source.

    Raises:
        UserError: there is no such source, or it holds no images.
    """
    if source == "digits":
        from pipelines.data.sources.digits import digits_source

        return digits_source()
    if source == "glyphs":
        from pipelines.data.sources.glyphs import glyph_source

        return glyph_source(options)
    from pipelines.data.sources.parquet import list_parquet, parquet_source

    if "://" not in source:
        if not Path(source).exists():
            raise UserError(
                f"no source {source}: give digits, glyphs, a folder of class folders, or Parquet"
            )
        source = _canonical(source)
    paths = list_parquet(source)
    if paths:
        return parquet_source(source, paths, options.classes)
    if "://" in source or not Path(source).is_dir():
        raise UserError(f"{source} holds no Parquet files")
    from pipelines.data.sources.folder import folder_source

    return folder_source(Path(source), options.classes)


def _prepare(
    source_name: str,
    out: Path,
    partial: Path,
    options: PrepareOptions,
    progress: Progress | None,
) -> Manifest:
    assembled = _assembled(source_name, partial, options)
    if assembled is not None:
        _publish(partial, out, options.processes)
        return assembled
    shards = partial / "shards"
    with workers_for(options) as workers:  # they start while the source is listed
        source = open_source(source_name, options)
        if not source.units:
            raise UserError(f"{source_name} holds no images")
        _match_plan(partial, shards, source, options)
        _make_shards(source, options, shards, progress, workers)
    rows = read_rows(shards, len(source.units))
    splits = split_rows(rows, source, options)
    reasons = find_rejected(rows, splits)
    rejected = list(source.problems)
    rejected += [(str(rows["name"][i]), str(reasons[i])) for i in (reasons != "").nonzero()[0]]
    known = {reason for _, reason in source.problems}
    absent = find_absent_classes(rows, splits, reasons, source.classes)
    rejected += [(where, reason) for where, reason in absent if reason not in known]
    if rejected:
        _write_rejected(partial, rejected)
        if not options.skip_bad:
            # Shards with refused images are read anew next time: the files may be mended.
            for number in sorted(set(rows.shard[rows["error"] != ""].tolist())):
                shard_paths(shards, number)[1].unlink()
            raise UserError(
                f"{len(rejected)} of {len(rows)} images refused, the first: "
                f"{rejected[0][0]}: {rejected[0][1]}; all in {partial / REJECTED_NAME}: "
                "mend them and type the same again, or add --skip-bad",
                exit_code=1,
            )
    else:
        (partial / REJECTED_NAME).unlink(missing_ok=True)
    good = reasons == ""
    if not good.any():
        raise UserError(f"{source_name} holds no usable image: see {partial / REJECTED_NAME}")
    manifest = assemble(source, options, rows.keep(good), splits[good], partial, len(rejected))
    _publish(partial, out, options.processes)
    return manifest


def _assembled(source_name: str, partial: Path, options: PrepareOptions) -> Manifest | None:
    """The manifest of a run that was killed after its last file was written, else None."""
    try:
        manifest = load_manifest(partial)
        for split in manifest.splits:
            verify_beton(partial, split, manifest, use_cache=False)
    except UserError:
        return None
    same = manifest.options_hash == options_hash(_canonical(source_name), options)
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
    _sync_directory(out.parent)
    native_available()  # compiles the loader's decoder now, and not in every first worker at once


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _match_plan(partial: Path, shards: Path, source: Source, options: PrepareOptions) -> None:
    """Keep those of an earlier run's shards that these options would make from the same files."""
    plan = {
        "options": options_hash(source.name, options),
        "classes": source.classes,
        "units": [hashlib.sha256(repr(unit).encode()).hexdigest()[:32] for unit in source.units],
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
    if not comparable or any(before[key] != plan[key] for key in ("options", "classes")):
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
) -> None:
    tasks = [
        (number, unit)
        for number, unit in enumerate(source.units)
        if not shard_paths(shards, number)[1].exists()
    ]
    total = sum(unit.num_samples for unit in source.units)
    done = total - sum(unit.num_samples for _, unit in tasks)
    if progress is not None:
        progress(done, total)
    mode = options.mode or source.default_mode
    for _, unit in make_shards(tasks, shards, options, mode, len(source.classes), workers):
        done += unit.num_samples
        if progress is not None:
            progress(done, total)


def _write_rejected(partial: Path, rejected: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["source_name", "reason"])
    writer.writerows(rejected)
    write_durably(partial / REJECTED_NAME, [text.getvalue().encode()])


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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
