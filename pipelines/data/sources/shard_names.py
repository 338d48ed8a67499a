"""What the paths of shards tell of them: their splits, their series, whether all are there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from pipelines.data.layout import Split, split_of_folder, split_of_path
from pipelines.errors import UserError

_SHARD = re.compile(r"(?P<name>.+)-(?P<number>\d{3,})-of-(?P<count>\d{3,})(?P<rest>.*)")
_SETTLE = "say what is what with --train and --val"


def splits_of_paths(source: str, files: Iterable[str]) -> dict[str, Split]:
    """The split that each file's own path below the source, with slashes, speaks of.

    Raises:
        UserError: a path speaks of two splits; some speak of train or val and others of none; or
            the files are those of two data sets.
    """
    splits: dict[str, Split] = {}
    first: dict[Split, str] = {}
    for file in files:
        try:
            splits[file] = split_of_path(file)
        except ValueError as error:
            raise UserError(f"{source}: {error}: rename it, or {_SETTLE}") from None
        first.setdefault(splits[file], file)
    spoken = first.get("train") or first.get("val")
    if "" in first and spoken:
        raise UserError(
            f"{source}: {spoken} is of {splits[spoken]}, but the name of {first['']} tells no "
            f"split: rename or move it, or {_SETTLE}"
        )
    refuse_two_sets(source, {file: split for file, split in splits.items() if split != "test"})
    return splits


def origin_of(files: list[str]) -> list[str]:
    """Files of one split as a person would name them: a folder once, and how many it holds."""
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(file.rpartition("/")[0], []).append(file)
    return [
        held[0] if len(held) == 1 else f"{held[0]} … {held[-1].rpartition('/')[2]} ({len(held)})"
        for held in folders.values()
    ]


def missing_shards(files: list[str]) -> list[str]:
    """A sentence for each series `NAME-00000-of-00294` of which not all shards are there."""
    present: Counter[tuple[str, str]] = Counter()
    for file in files:
        if match := _SHARD.fullmatch(file):
            present[match["name"], match["count"]] += 1
    return [
        f"{name}: {count} of {int(whole)} shards are here"
        for (name, whole), count in present.items()
        if count < int(whole)
    ]


def refuse_two_sets(source: str, splits: Mapping[str, Split]) -> None:
    """Refuse files that do not make up one data set, such as two configurations of the hub.

    Within a split all files lie in one folder and are shards of one series; apart from the parts
    that name splits, all splits lie in the same folder. Folders like `year=2012` divide one table.

    Raises:
        UserError: names two files that may be of different data sets.
    """
    places: dict[Split, dict[str, str]] = {}
    shared: dict[str, str] = {}
    series: dict[Split, dict[tuple[str, str] | None, str]] = {}
    numbers: dict[tuple[Split, str, str], str] = {}
    for file, split in splits.items():
        folder, _, name = file.rpartition("/")
        parts = [part for part in folder.split("/") if part]
        parts = [part for part in parts if "=" not in part or split_of_folder(part)]
        places.setdefault(split, {}).setdefault("/".join(parts), file)
        shared.setdefault("/".join(p for p in parts if not split_of_folder(p)), file)
        match = _SHARD.fullmatch(name)
        known = series.setdefault(split, {})
        known.setdefault((match["name"], match["count"]) if match else None, file)
        twin = numbers.setdefault((split, folder, match["number"]), file) if match else file
        if len(known) > 1 or twin != file:
            first = twin if twin != file else next(iter(known.values()))
            raise UserError(
                f"{source}: {first} and {file} are of different series of shards: move one of "
                f"them away, or {_SETTLE}"
            )
    for found in (*places.values(), shared):
        if len(found) > 1:
            first, second, *_ = found.values()
            raise UserError(
                f"{source} holds shards in several folders that may be different data sets, as "
                f"{first} and {second}: name one folder as SOURCE, or {_SETTLE}"
            )
