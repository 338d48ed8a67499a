"""Which screened candidates become finals, and in which order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pipelines.search.stages.screen import best_of
from pipelines.search.state import SearchState, Weights
from tune_spaces.evolution import Scored
from tune_spaces.searcher import FrontSearcher


def choose_finalists(
    state: SearchState,
    count: int,
    weights: Weights = "base",
    known: Collection[tuple[int, tuple[int, ...], str]] = (),
) -> list[Scored]:
    """The screened candidates worth training, an equal share of each width.

    A width may look worse before fine-tuning and be better after it, so each has its own
    front and its own share. Dense schedules are left out: they are the bases.

    Args:
        state: of the search.
        count: how many.
        weights: whose scores decide: the bases' or the supernets'.
        known: keys of candidates that are finals already.

    Returns:
        Each where the front is least known by then (`FrontSearcher`), so that a search that is
        ended early leaves a coarse front rather than a part of one.
    """
    rows = state.rescreened if weights == "supernet" else state.screened
    widths = sorted({row.width for row in rows})
    dense = {base.width: base.gmacs for base in state.bases}
    chosen: list[Scored] = []
    for index, width in enumerate(widths):
        share = count // len(widths) + (index < count % len(widths))
        own = [
            row
            for row in rows
            if row.width == width
            and row.gmacs < dense[width]
            and (row.width, tuple(row.schedule), row.method) not in known
        ]
        chosen += best_of(own, share)
    return _most_telling_first(sorted(chosen, key=lambda entry: entry.candidate.gmacs))


def _most_telling_first(chosen: list[Scored]) -> list[Scored]:
    if not chosen:
        return []
    pool: list[dict[str, Any]] = [
        {"place": place, "gmacs": entry.candidate.gmacs, "screened": entry.quality}
        for place, entry in enumerate(chosen)
    ]
    searcher = FrontSearcher(pool, costs=["gmacs"], predicted="screened")
    suggestions = (searcher.suggest(str(number)) for number in range(len(chosen)))
    return [chosen[config["place"]] for config in suggestions if isinstance(config, dict)]
