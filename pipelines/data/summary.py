"""What became of a source, for a person to check at a glance; the same lies in the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.data.manifest import SPLITS, Group, SplitSummary, Summary
from pipelines.data.names import printable, storable
from pipelines.data.refusals import Refusal, group_refusals
from pipelines.data.shard_rows import Rows
from pipelines.data.sources.source import LeftOut, Source

_MOST = 12  # groups shown of a kind


def summarize(
    source: Source,
    rows: Rows,
    splits: np.ndarray,
    refused: Sequence[Refusal],
    notes: Sequence[str] = (),
) -> Summary:
    """Count what was made of a source of N rows.

    `splits` [N] are positions in SPLITS of those that are kept, NO_SPLIT for others; `notes` stand
    beside the source's own.
    """
    parts = {}
    for code, split in enumerate(SPLITS):
        mine = splits == code
        if mine.any():
            counts = np.bincount(rows["converted"][mine])
            by_kind = sorted(zip(counts.tolist(), rows.texts["converted"], strict=False))
            parts[split] = SplitSummary(
                origins=_origins(source, split),
                images=int(mine.sum()),
                classes=len(np.unique(rows["label"][mine])),
                converted={kind: many for many, kind in reversed(by_kind) if kind and many},
            )
    return Summary(
        source=storable(source.name),
        classes=len(source.classes),
        first_class=storable(source.classes[0]),
        last_class=storable(source.classes[-1]),
        splits=parts,
        refused=group_refusals(refused),
        left_out=[_group(entry) for entry in source.left_out],
        notes=[storable(note) for note in (*source.notes, *notes)],
    )


def _origins(source: Source, split: str) -> list[str]:
    if split == "minival":
        return ["taken out of train by the seed"]
    if split == "val" and "val" not in source.origins:
        return ["taken out of all images by the seed"]
    found = source.origins.get(split, []) + (source.origins.get("", []) if split == "train" else [])
    return [storable(origin) for origin in found] or [storable(source.name)]


def _group(entry: LeftOut) -> Group:
    return Group(
        reason=storable(entry.reason),
        count=entry.count,
        unit=entry.unit,
        first=storable(entry.first),
    )


def lines(summary: Summary) -> Iterator[str]:
    """The summary, line by line."""
    first, last = printable(summary.first_class), printable(summary.last_class)
    names = first if summary.classes == 1 else f"{first} … {last}"
    yield f"{printable(summary.source)}: {_many(summary.classes, 'classes')}, {names}"
    for split, part in summary.splits.items():
        kept = _many(part.images, "images")
        if part.classes < summary.classes:
            kept += f" of {_many(part.classes, 'classes')}"
        yield f"  {split:8}{kept}, {_from(part.origins)}"
        if part.converted:
            done = [f"{count:,} {printable(how)}" for how, count in part.converted.items()]
            more = ", …" if len(done) > _MOST else ""
            yield f"  {'':8}converted: {', '.join(done[:_MOST])}{more}"
    for title, groups in (("left out", summary.left_out), ("refused", summary.refused)):
        for group in groups[:_MOST]:
            example = f", {printable(group.first)}" if group.first else ""
            option = f" (taken with {group.option})" if group.option else ""
            why = f"{printable(group.reason)}{example}{option}"
            yield f"  {title}: {_many(group.count, group.unit)}: {why}"
        if rest := groups[_MOST:]:
            yield f"  {title}: {sum(group.count for group in rest):,} for {len(rest)} other reasons"
    for note in summary.notes:
        yield f"  note: {printable(note)}"


def _many(count: int, unit: str) -> str:
    """`1 class`, `2 images`."""
    ending = "es" if unit.endswith("sses") else "s"
    return f"{count:,} {unit.removesuffix(ending) if count == 1 else unit}"


def _from(origins: list[str]) -> str:
    shown = [printable(origin) for origin in origins]
    if len(shown) == 1 and shown[0].startswith("taken out"):
        return shown[0]
    more = f", … ({len(shown):,} in all)" if len(shown) > 3 else ""
    return f"from {', '.join(shown[:3])}{more}"
