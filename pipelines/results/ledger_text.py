"""A search's ledger as lines for people: what happened, in the order it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pipelines.search.ledger import Event

_QUIET = frozenset({"system"})
_LONGEST = 160


def story(events: Iterator[Event]) -> Iterator[str]:
    """A line for each event that a person would want to hear of."""
    for event in events:
        if event["event"] not in _QUIET:
            clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
            yield f"{clock}  {_said(event)}"[:_LONGEST]


def _said(event: Event) -> str:
    kind = event["event"].replace("_", " ")
    who = event.get("trial_id") or (f"width {event['width']}" if "width" in event else "")
    words = [kind, who, *_details(event)]
    return "  ".join(word for word in words if word)


def _details(event: Event) -> Iterator[str]:
    report: dict[str, Any] = event.get("report") or {}
    if "epoch" in report:
        yield f"epoch {report['epoch']}"
    for name, form in (("loss", "loss {:.4f}"), ("top1_minival", "top-1 {:.2%}")):
        value = report.get(name, event.get(name))
        if isinstance(value, (int, float)):
            yield form.format(value)
    if isinstance(event.get("top1_val"), (int, float)):
        yield f"top-1 on val {event['top1_val']:.2%}"
    if "stage" in event:
        yield str(event["stage"])
    if event["event"] in ("generation", "screened"):
        yield f"{len(event.get('rows', ()))} schedules"
    if isinstance(event.get("gmacs"), (int, float)):
        yield f"{event['gmacs']:.4f} GMACs"
    if event.get("reason"):
        yield str(event["reason"])
