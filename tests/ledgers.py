"""Made-up searches for the tests of this room, as ledgers that the real code reads."""

import json
from pathlib import Path
from typing import Any

from pipelines.storage.search_files import Search

PATCHES, DEPTH = 64, 6

# width, heads, GMACs, top-1
BASES = [(96, 3, 0.046, 0.97), (64, 2, 0.021, 0.93)]

# id, width, schedule, GMACs, top-1 per epoch, how it ended
TRIALS: list[tuple[str, int, list[int], float, list[float], str]] = [
    ("t001", 96, [48, 40, 32, 24, 16, 8], 0.030, [0.90, 0.95, 0.965], "done"),
    ("t002", 96, [32, 24, 16, 8, 4, 2], 0.022, [0.88, 0.93, 0.955], "done"),
    ("t003", 64, [48, 40, 32, 24, 16, 8], 0.014, [0.85, 0.90, 0.92], "done"),
    ("t004", 64, [24, 16, 8, 4, 2, 1], 0.008, [0.60, 0.70, 0.80], "done"),
    ("t005", 96, [40, 40, 40, 40, 40, 40], 0.034, [0.70], "stopped"),
    ("t006", 64, [60, 60, 60, 60, 60, 60], 0.020, [0.80, 0.85, 0.90], "done"),
    ("t007", 64, [16, 16, 16, 16, 16, 16], 0.009, [], "failed"),
]
# Worked out by hand: t002 is cheaper and better than dense-64 is not (0.022 > 0.021).
FRONT = ["t004", "t003", "dense-64", "t002", "t001", "dense-96"]


def config(name: str = "digits") -> dict[str, Any]:
    """What such a search began with, as the ledger of an early version has it."""
    return {
        "name": name,
        "data": {"source": "digits", "path": "runs/data/digits", "image_size": 32},
        "model": {"patch_size": 4, "depth": DEPTH},
        "space": {
            "widths": [{"width": width, "heads": heads} for width, heads, _, _ in BASES],
            "method": "wkmedoids",
        },
        "base": {"train": {"epochs": 2, "warmup_epochs": 0.5}},
        "screen": {},
        "finals": {"train": {"epochs": 3, "warmup_epochs": 0.5}},
    }


def events(name: str = "digits", *, complete: bool = True) -> list[dict[str, Any]]:
    """The events of a small finished search."""
    found: list[dict[str, Any]] = [
        {
            "event": "created",
            "config": config(name),
            "config_hash": "0123456789ab",
            "num_classes": 10,
            "bases": [{"width": w, "num_heads": h, "gmacs": g} for w, h, g, _ in BASES],
        }
    ]
    for width, _, _, top1 in BASES:
        for epoch in (1, 2):
            report = {
                "epoch": epoch,
                "loss": 1.0 / epoch,
                "top1_minival": top1 * epoch / 2,
                "device_seconds": 10.0 * epoch,
            }
            found.append({"event": "base_report", "width": width, "report": report})
        found.append(
            {
                "event": "base_done",
                "width": width,
                "checkpoint": f"/nowhere/base-{width}",
                "top1_minival": top1,
            }
        )
    found.append({"event": "stage_done", "stage": "base"})
    found.append(
        {
            "event": "screened",
            "width": 96,
            "rows": [[[48] * 6, 0.036, 0.9, 0.4], [[8] * 6, 0.012, 0.4, 2.0]],
        }
    )
    found.append({"event": "stage_done", "stage": "screen"})
    for trial_id, width, schedule, gmacs, curve, end in TRIALS:
        found.append(
            {
                "event": "trial_created",
                "trial_id": trial_id,
                "width": width,
                "num_heads": width // 32,
                "schedule": schedule,
                "method": "wkmedoids",
                "gmacs": gmacs,
            }
        )
        for epoch, top1 in enumerate(curve, start=1):
            report = {
                "epoch": epoch,
                "loss": 2.0 - top1,
                "top1_minival": top1,
                "lr": 1e-3 / epoch,
                "images_per_s": 1000.0,
                "device_seconds": 20.0 * epoch,
            }
            found.append({"event": "trial_report", "trial_id": trial_id, "report": report})
        if end == "done":
            found.append(
                {
                    "event": "trial_done",
                    "trial_id": trial_id,
                    "checkpoint": f"/nowhere/{trial_id}",
                    "top1_minival": curve[-1],
                }
            )
        else:
            reason = "0.05 below the front at its cost" if end == "stopped" else "worker died"
            found.append({"event": f"trial_{end}", "trial_id": trial_id, "reason": reason})
    if complete:
        found.append({"event": "stage_done", "stage": "finals"})
        found.append({"event": "published", "trial_id": "t001", "top1_val": 0.961})
        found.append({"event": "published", "width": 96, "top1_val": 0.972})
        found.append({"event": "stage_done", "stage": "publish"})
    for seconds, event in enumerate(found):
        event["time"] = 1_700_000_000.0 + seconds
    return found


# Of a trial that is only there: what `trial_created` says of it.
CREATED = {"width": 8, "num_heads": 2, "schedule": [4], "method": "kmedoids", "gmacs": 0.01}

# t001 again under two more seeds, and a constant keep-rate of 0.8 for width 96.
SEEDS = {"t001-s1": 0.960, "t001-s2": 0.976}
CONSTANT = ("c000", [51, 41, 33, 26, 21, 17], 0.031, 0.950)


def events_with_seeds(name: str = "digits") -> list[dict[str, Any]]:
    """The small search with repetitions of t001 and a baseline."""
    rows = events(name)
    at = next(i for i, row in enumerate(rows) if row.get("stage") == "finals")
    schedule = next(t[2] for t in TRIALS if t[0] == "t001")
    more = [(i, schedule, 0.030, top1, {"seed": n}) for n, (i, top1) in enumerate(SEEDS.items(), 1)]
    more.append((*CONSTANT, {"keep_rate": 0.8}))
    added: list[dict[str, Any]] = []
    for trial_id, tokens, gmacs, top1, extra in more:
        created = {"event": "trial_created", "trial_id": trial_id, "width": 96, "num_heads": 3}
        report = {"epoch": 3, "loss": 1 - top1, "top1_minival": top1, "device_seconds": 60.0}
        done = {"checkpoint": f"/nowhere/{trial_id}", "top1_minival": top1}
        added += [
            {**created, "schedule": tokens, "method": "wkmedoids", "gmacs": gmacs, **extra},
            {"event": "trial_report", "trial_id": trial_id, "report": report},
            {"event": "trial_done", "trial_id": trial_id, **done},
        ]
    rows[at:at] = added
    rows.insert(-1, {"event": "published", "trial_id": "t001-s1", "top1_val": 0.955})
    for width, latency in ((96, 4.0), (64, 2.0)):
        rows.insert(-1, {"event": "measured", "width": width, "latency_ms": {"1": latency}})
    for trial_id, latency in (("t001", 3.0), ("t002", 2.5)):
        rows.insert(-1, {"event": "measured", "trial_id": trial_id, "latency_ms": {"1": latency}})
    for seconds, row in enumerate(rows):
        row["time"] = 1_700_000_000.0 + seconds
    return rows


def write_ledger(storage: Path, name: str, rows: list[dict[str, Any]]) -> Search:
    """A ledger under `storage`, as the driver would have left it."""
    search = Search(storage, name)
    search.folder.mkdir(parents=True, exist_ok=True)
    search.ledger.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return search
