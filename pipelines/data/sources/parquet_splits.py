"""Which split each Parquet file or row belongs to: by its path, by options, by a column."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.data.layout import Split, split_of_folder, split_of_path
from pipelines.data.options import PrepareOptions
from pipelines.data.sources.parquet_files import ParquetListing, list_parquet
from pipelines.data.sources.shard_names import refuse_two_sets, splits_of_paths
from pipelines.data.sources.source import LeftOut, Tally
from pipelines.errors import UserError
from pipelines.storage.address import is_address

_TEST = "of a test split"


@dataclass(frozen=True)
class RowSplits:
    """What a column says of the rows: (value, split) pairs, none where no column is to be asked."""

    splits: tuple[tuple[str, Split], ...] = ()
    origins: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def splits_of(
    source: str, listing: ParquetListing, options: PrepareOptions
) -> tuple[dict[str, Split], list[LeftOut]]:
    """The split of each file that is taken, by the options or its path, and what is left out.

    Raises:
        UserError: a path speaks of two splits; some speak of train or val and others of none; no
            file is of train; or the files are those of two data sets.
    """
    if options.split_column is not None:
        refuse_two_sets(source, {file: _spoken(file) for file in listing.files})
        return dict.fromkeys(listing.files, ""), []
    if options.train_from is not None or options.val_from is not None:
        return _given_splits(source, listing, options)
    splits = splits_of_paths(source, listing.files)
    left_out = Tally()
    for file, split in splits.items():
        if split == "test":
            left_out(file, _TEST)
    taken: dict[str, Split] = {file: split for file, split in splits.items() if split != "test"}
    if splits and not {"train", ""} & set(taken.values()):
        only = " and ".join(sorted(set(splits.values())))
        raise UserError(
            f"{source} has files of {only} but none of train: name them with --train (and --val), "
            "or one file as SOURCE to have it divided"
        )
    return taken, left_out.told()


def _given_splits(
    source: str, listing: ParquetListing, options: PrepareOptions
) -> tuple[dict[str, Split], list[LeftOut]]:
    """The files that the user names for train, for val, or for both."""
    given: dict[Split, dict[str, str]] = {}  # file → its path below what was named
    if options.train_from is not None:
        given["train"] = _files_at(source, listing, options.train_from, "--train")
    if options.val_from is not None:
        given["val"] = _files_at(source, listing, options.val_from, "--val")
    train, val = given.get("train", {}).keys(), given.get("val", {}).keys()
    if train == val:
        raise UserError(f"--train and --val name the same files of {source}: name two places")
    taken: dict[str, Split] = {}
    left_out = Tally()
    split: Split
    for split, files in given.items():
        other = val if split == "train" else train
        for file, below in files.items():
            if file in other and not set(files) <= other:  # the other place lies within this one
                continue
            spoken = _spoken(below)
            if spoken in ("", split):
                taken[file] = split
            else:
                left_out(file, f"of {spoken} by name, in the place given for {split}")
    rest = [file for file in listing.files if file not in train | val]
    by_name: dict[str, Split] = {}
    for file in rest:
        spoken = _spoken(file)
        wanted: Split = "val" if "train" in given else "train"
        if len(given) < 2 and (spoken == wanted or (spoken == "" and wanted == "train")):
            by_name[file] = wanted
        else:
            left_out(file, _TEST if spoken == "test" else "named by neither --train nor --val")
    refuse_two_sets(source, by_name)
    taken |= by_name
    if "train" not in taken.values():
        raise UserError(f"{source}: --train and --val leave no file for training: name others")
    return taken, left_out.told()


def _files_at(source: str, listing: ParquetListing, place: str, option: str) -> dict[str, str]:
    """The files at a place below the source, or on its own here; each with its path below it.

    Raises:
        UserError: there are none.
    """
    found = _below(listing.files, posixpath.normpath(place))
    if not found and not is_address(source):
        full, root = Path(place).resolve(), Path(listing.root).resolve()
        if full.is_relative_to(root):
            found = _below(listing.files, full.relative_to(root).as_posix())
        else:
            other = list_parquet(str(full))
            found = {other.path(file): file for file in other.files}
    if not found:
        raise UserError(f"{option} {place}: there are no Parquet files, in {source} or from here")
    return found


def _below(files: list[str], place: str) -> dict[str, str]:
    if place == ".":
        return {file: file for file in files}
    return {
        file: file[len(place) :].lstrip("/")
        for file in files
        if file == place or file.startswith(place + "/")
    }


def _spoken(path: str) -> Split:
    try:
        return split_of_path(path)
    except ValueError:
        return ""


def column_splits(
    source: str,
    files: Mapping[str, tuple[Split, str | None, Counter[str]]],
    options: PrepareOptions,
) -> RowSplits:
    """What a column of splits says, which is the one the user named, or one called so.

    A column that nobody named is only compared: it must not contradict what the paths say, and
    where these say nothing, the user is asked.

    Args:
        source: for messages.
        files: of each file the split of its path, the column, and how often each value occurs.
        options: `split_column`, or what is given in place of it.

    Raises:
        UserError: a value means no split, the column contradicts a path, or asks to be named.
    """
    if options.split_column is None:
        if options.train_from is None and options.val_from is None:
            for file, (split, column, values) in files.items():
                _compare(source, file, split, column, values)
        return RowSplits()
    total: Counter[str] = Counter()
    meant: dict[str, Split] = {}
    for file, (_, _, values) in files.items():
        for value in values:
            meant[value] = split_of_folder(value)
            if value and not meant[value]:
                raise UserError(
                    f"{file}: column {options.split_column} has {value!r}, which is neither train "
                    "nor val nor test: rename it, or name another column with --split-column"
                )
        total += values
    splits = tuple((value, split) for value, split in sorted(meant.items()) if split)
    kinds = {split for _, split in splits}
    if "train" not in kinds:
        raise UserError(
            f"{source}: column {options.split_column} says train of no row: name another with "
            "--split-column"
        )
    column = options.split_column
    origins: dict[str, list[str]] = {
        kind: [f"rows whose {column} is {value!r}" for value, split in splits if split == kind]
        for kind in ("train", "val")
        if kind in kinds
    }
    tests = sum(total[value] for value, split in splits if split == "test")
    left_out = [LeftOut(_TEST, tests, f"column {column}", "rows")] if tests else []
    return RowSplits(splits, origins, left_out, [f"splits are those of column {column}"])


def _compare(
    source: str, file: str, split: Split, column: str | None, values: Counter[str]
) -> None:
    """Refuse a column of splits that says something else than the file's path."""
    meant = {value: split_of_folder(value) for value in values}
    others = [value for value, said in meant.items() if said and said != (split or "train")]
    if not others:
        return
    ask = f"add --split-column {column} to go by it, or name the files with --train to pass over it"
    if split:
        raise UserError(
            f"{source}: {file} is of {split} by its path, but its column {column} says "
            f"{others[0]!r} of {values[others[0]]} rows: {ask}"
        )
    raise UserError(f"{source}: {file}: column {column} says {others[0]!r} of some rows: {ask}")
