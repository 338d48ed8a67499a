"""What `make search` took and found: the stages' times and the front, read from its ledger.

    make search && .venv/bin/python -m benchmarks.make_search

Writes benchmarks/results/make-search.json.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.machine import hardware
from pipelines.results.front import build_front
from pipelines.search.ledger import read_events
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search

PACKAGES = ("torch", "timm", "ray", "deepspeed", "ffcv", "mlflow", "numpy")


def measure(storage: Path, name: str) -> dict[str, object]:
    """Seconds of each stage from the one before, accuracies, and the front."""
    search = Search(storage, name)
    events, state = list(read_events(search.ledger)), load_state(search)
    seconds: dict[str, float] = {}
    last = events[0]["time"]
    for event in events:
        if event["event"] == "stage_done":
            seconds[event["stage"]] = round(event["time"] - last, 1)
            last = event["time"]
    front = build_front(state)
    return {
        "command": "make search",
        "date": datetime.fromtimestamp(state.created, UTC).isoformat(timespec="seconds"),
        "hardware": hardware("cpu"),
        "versions": {package: version(package) for package in PACKAGES},
        "config_hash": state.config_hash,
        "seconds": {**seconds, "total": round(events[-1]["time"] - events[0]["time"], 1)},
        "device_seconds": round(state.device_seconds, 1),
        "schedules_screened": len(state.screened),
        "dense": [
            {"width": b.width, "gmacs": b.gmacs, "minival": b.top1_minival, "val": b.top1_val}
            for b in state.bases
        ],
        "hypervolume": front.hypervolume,
        "points": [point.as_dict() | {"checkpoint": None} for point in front.points],
    }


def main() -> None:
    """Measures the search named on the command line and stores the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--name", default="digits")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/make-search.json"))
    options = parser.parse_args()
    result = measure(options.storage, options.name)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["seconds"]))


if __name__ == "__main__":
    main()
