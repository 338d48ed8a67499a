"""What earlier versions of this program recorded of a search, read as today's."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from pipelines.config import SearchConfig
from pipelines.config.common import RECORDED
from pipelines.errors import UserError
from pipelines.search.ledger import Event


def recorded_config(name: str, values: Any) -> tuple[SearchConfig, tuple[str, ...]]:
    """The configuration of a ledger, and the settings in it that this version does not know.

    Settings that came later have their defaults.

    Args:
        name: the search's.
        values: as the `created` event has them.

    Raises:
        UserError: it is no configuration of a search to this version.
    """
    values = deepcopy(values)
    unknown: list[str] = []
    while True:
        try:
            return SearchConfig.model_validate(values, context=RECORDED), tuple(unknown)
        except ValidationError as error:
            problems = error.errors()
        extra = [problem["loc"] for problem in problems if problem["type"] == "extra_forbidden"]
        if not extra:
            where = ".".join(map(str, problems[0]["loc"]))
            why = problems[0]["msg"].removeprefix("Value error, ")
            raise too_different(name, f"{where}: {why}" if where else why)
        for *parents, key in extra:
            holder = values
            for parent in parents:
                holder = holder[parent]
            del holder[key]
        unknown += [".".join(map(str, place)) for place in extra if place != ("data", "source")]


def too_different(name: str, why: str) -> UserError:
    """That this version cannot go on with a search, and how it is finished."""
    return UserError(
        f"search {name} was begun by a version of this program that is too different ({why}): "
        "finish it with that one, or choose a new name with --set name=…"
    )


def upgraded(event: Event, config: SearchConfig | None) -> Event:
    """An event as it would be recorded today.

    Args:
        event: of any version.
        config: what the ledger has recorded before it.

    Raises:
        ValueError: nothing was created before an event that counts on it.
    """
    kind = event["event"]
    if kind == "created":
        source = event["config"].get("data", {}).get("source", "")
        return {"data": {}, "images": {}, "source": source, "measure": "cross-entropy"} | event
    if kind == "calibrated" and "method" not in event:
        return event | {"method": _only_method(config)}
    if kind == "planned":  # before a space had several methods
        rows = [[*row, _only_method(config)] if len(row) == 4 else row for row in event["rows"]]
        return event | {"rows": rows}
    if kind == "screened" and "width" in event:  # before there was racing
        width, method = event["width"], event.get("method") or _only_method(config)
        rows = [
            [width, schedule, gmacs, top1, loss, method, None]
            for schedule, gmacs, top1, loss in event["rows"]
        ]
        return {"weights": "base"} | event | {"rows": rows}
    if kind in ("screened", "generation"):
        return {"weights": "base"} | event
    return event


def _only_method(config: SearchConfig | None) -> str:
    if config is None:
        raise ValueError("nothing was created yet")
    return config.space.all_methods[0]
