"""How much work racing saves in screening, and what it costs: measured on a trained model.

A screening as `tokenpool search` does it (calibrated, planned, evolved) is run on saved bases with
nobody dropped, and each schedule's loss on each image of minival is kept. Then the same candidates
race, on these images and on larger sets drawn from them with replacement, as minivals of larger
data are: what single images do stays as measured.

    python -m benchmarks.search.racing runs/data/digits BASE [BASE …] --out OUT.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tokenpool as tp
from benchmarks.machine import hardware
from pipelines.config import DataConfig
from pipelines.search.calibration import damage_table, plan, probe_counts, probes
from pipelines.search.race import BLOCK, Racer, images_seen
from pipelines.search.scorer import Scorer
from pipelines.search.state_records import candidate_of, candidate_row
from tune_spaces.candidate import Untrained
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings, Score
from tune_spaces.racing import looks
from tune_spaces.space import Candidate, ScheduleSpace

SIZES = (0, 1000, 5000, 20_000)  # 0: the images there are, without drawing
TOLERANCES = (0.0, 0.005)
Images = np.ndarray[Any, Any]  # [schedules, images]


def collect(
    data: Path, bases: list[str], method: str, schedules: int, generations: int
) -> tuple[list[Untrained], Images, Images]:
    """Every schedule of a screening with its loss and correctness on each image."""
    specs = {base: tp.vit_spec(tp.load(Path(base))) for base in bases}
    by_width = {spec.width: (base, spec) for base, spec in specs.items()}
    first = next(iter(specs.values()))
    space = ScheduleSpace(
        first.depth,
        first.patches,
        list(by_width),
        {method: lambda w, s: tp.vit_macs(by_width[w][1], s, method).gmacs},
    )
    side = tp.load(Path(bases[0])).patch_embed.img_size[0]
    scorer = Scorer(
        {width: base for width, (base, _) in by_width.items()},
        DataConfig(path=data, image_size=side),
        batch_size=64,
    )
    counts, planned = probe_counts(space, 6), []
    for width, (_, spec) in by_width.items():
        needed = probes(space.depth, counts)
        found = dict(zip(needed, scorer.divergence(width, needed, method, 128), strict=True))
        table = damage_table(space.depth, counts, found)
        planned += [c for c, _ in plan(space, spec, method, table, seeds=24, bins=12)]
    rows, losses, right = [], [], []
    settings = PolicySettings(schedules, generations, trials=0, rounds=1, prices=Prices(1, 1, 1, 1))
    dense = [DenseModel(width, space.cost(width, space.dense()), 1.0, 1.0) for width in by_width]
    policy = FrontPolicy(space, settings, dense, planned)
    while (asked := policy.ask()) is not None:
        assert isinstance(asked, Score)  # nothing is trained
        if asked.is_new:
            policy.asked(asked.candidates)
            continue
        for c in asked.candidates:
            ((loss, correct),) = scorer.image_scores(
                c.width, [tuple(c.schedule)], method, 0, scorer.num_images()
            )
            losses.append(loss)
            right.append(correct)
            rows.append(Untrained(c, float(correct.mean()), float(loss.mean(dtype=np.float64))))
            policy.scored(rows[-1:])
    return rows, np.array(losses), np.array(right)


def _arms(rows: list[Untrained]) -> tuple[Images, Images]:
    """Widths and costs."""
    return (
        np.array([r.candidate.width for r in rows]),
        np.array([r.candidate.gmacs for r in rows]),
    )


def front(rows: list[Untrained], mean: Images) -> list[int]:
    """Places of what no other of its width beats at no more cost."""
    width, cost = _arms(rows)
    return [
        i
        for i in range(len(rows))
        if not ((width == width[i]) & (cost <= cost[i]) & (mean < mean[i])).any()
    ]


def race(
    rows: list[Untrained],
    losses: Images,
    right: Images,
    size: int,
    tolerance: float,
    seed: int,
) -> dict[str, Any]:
    """Share of image evaluations saved, and by how much the front is worse anywhere (nats)."""
    rng = np.random.default_rng(seed)
    count = losses.shape[1]
    pick = rng.integers(count, size=size) if size else rng.permutation(count)
    losses, right = losses[:, pick], right[:, pick]
    place = {r.candidate.key: i for i, r in enumerate(rows)}

    def evaluate(some: Sequence[Candidate], start: int, stop: int) -> list[tuple[Images, Images]]:
        found = [place[c.key] for c in some]
        return [(losses[i, start:stop], right[i, start:stop]) for i in found]

    candidates = [row.candidate for row in rows]
    racer = Racer(evaluate, len(pick), tolerance=tolerance)
    raced: list[Untrained] = []
    for start in range(0, len(candidates), BLOCK):
        raced += racer.score(candidates[start : start + BLOCK], raced)
    mean = losses.mean(1, dtype=np.float64)
    kept = np.array([row.whole for row in raced])
    width, cost = _arms(rows)
    true = front(rows, mean)
    worse = [
        mean[kept & (width == width[i]) & (cost <= cost[i])].min(initial=np.inf) - mean[i]
        for i in true
    ]
    return {
        "saved": 1 - images_seen(raced, len(pick)),
        "front": len(true),
        "front_dropped": int(sum(not kept[i] for i in true)),
        "front_worse_by_nats": float(max(worse)),
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("bases", nargs="+")
    parser.add_argument("--method", default="wkmedoids")
    parser.add_argument("--schedules", type=int, default=480)
    parser.add_argument("--generations", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kept", type=Path, help="where what was measured is kept between runs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    start = time.monotonic()
    if options.kept is not None and options.kept.exists():
        stored = np.load(options.kept)
        losses, right = stored["losses"], stored["right"]
        rows = [
            Untrained(candidate_of(*candidate), top1, loss)
            for candidate, top1, loss in json.loads(str(stored["rows"]))
        ]
    else:
        rows, losses, right = collect(
            options.data, options.bases, options.method, options.schedules, options.generations
        )
        if options.kept is not None:
            text = json.dumps([(candidate_row(r.candidate), r.top1, r.loss) for r in rows])
            np.savez(options.kept, losses=losses, right=right, rows=text)
    results = []
    for size in SIZES:
        for tolerance in TOLERANCES:
            found = [
                race(rows, losses, right, size, tolerance, seed) for seed in range(options.seeds)
            ]
            row = {
                "images": size or losses.shape[1],
                "tolerance_nats": tolerance,
                "looks": looks(size or losses.shape[1]),
                **{key: round(float(np.mean([f[key] for f in found])), 4) for key in found[0]},
                "front_worse_by_nats": round(max(f["front_worse_by_nats"] for f in found), 5),
            }
            results.append(row)
            print(row, flush=True)
    answer = {
        "hardware": hardware("cpu"),
        "data": str(options.data.name),
        "schedules": len(rows),
        "measured_images": losses.shape[1],
        "seeds": options.seeds,
        "seconds": round(time.monotonic() - start, 1),
        "rows": results,
    }
    options.out.write_text(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    main()
