"""What our planner makes of a calibration: the schedule it expects least damage of at a cost."""

from __future__ import annotations

import json
from pathlib import Path

import tokenpool as tp
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from pipelines.search.scorer import Scorer
from pipelines.storage.hashes import text_hash
from tune_spaces.space import ScheduleSpace

__all__ = ["planned_schedule"]

_PROBE_COUNTS, _IMAGES = 6, 64


def planned_schedule(
    scorer: Scorer, spec: tp.VitSpec, method: str, target: float, folder: Path
) -> tp.Schedule | None:
    """Planned on minival, within a target of MACs; None where none is, or none can be planned.

    Args:
        scorer: holds the model and the pictures.
        spec: of the model.
        method: of `tp.METHODS`, with its options as text.
        target: the most it may cost.
        folder: where calibrations are kept, one a method.
    """

    def cost(schedule: tp.Schedule) -> float:
        return tp.vit_macs(spec, schedule, method).gmacs

    if cost(tp.Schedule([1] * spec.depth)) > target / 1e9:
        return None
    space = ScheduleSpace(
        spec.depth,
        spec.patches,
        [spec.width],
        lambda width, schedule: cost(schedule),
        step=4 if spec.patches >= 100 else 1,
        max_gmacs=target / 1e9,
    )
    counts = probe_counts(space, _PROBE_COUNTS)
    needed = probes(space.depth, counts)
    path = folder / f"{text_hash(method, 16)}.json"
    if path.exists():
        found = json.loads(path.read_text())["divergence"]
    else:
        found = scorer.divergence(spec.width, needed, method, _IMAGES)
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"method": method, "divergence": found}))
    table = damage_table(space.depth, counts, dict(zip(needed, found, strict=True)))
    planned = plan(space, spec, method, table, seeds=64, bins=16)
    if not planned:
        return None
    return max(planned, key=lambda entry: entry[0].gmacs)[0].schedule
