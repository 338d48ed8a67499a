"""Where the multiply-accumulates of a ViT go, dense and pooled: shapes alone, no model is run.

    python -m benchmarks.cost_by_part --out benchmarks/results/cost-by-part.json

The widths are those of the paper's plots (`shared/paper.md`, cost model); "fully connected" are
queries, keys, values, the output projection and the MLP of all blocks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.machine import hardware
from tokenpool.cost import VitSpec, vit_macs
from tokenpool.schedule import Schedule

WIDTHS = {"DeiT-Ti": 192, "e252": 252, "e318": 318, "DeiT-S": 384, "DeiT-B": 768}
DEPTH, SIDE = 12, 14
POOLED = Schedule.constant_rate(DEPTH, SIDE * SIDE, 0.93)  # as in pooling-cpu.jsonl


def cost(name: str, width: int, schedule: Schedule, method: str | None) -> dict[str, object]:
    """GMACs of one image, and the parts' shares of them."""
    shape = VitSpec(width, DEPTH, (SIDE, SIDE), 1, 4 * width, 3 * 16 * 16, 1000, width // 64)
    found = vit_macs(shape, schedule, method or "wkmedoids")
    shares = {part: share for part, _, share in found.shares()}
    shares["fully_connected"] = shares["qkvo"] + shares["mlp"]
    return {
        "model": name,
        "method": method,
        "schedule": str(schedule),
        "gmacs": round(found.gmacs, 4),
        "shares": {part: round(share, 4) for part, share in shares.items()},
    }


def main() -> None:
    """Count and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    dense = Schedule.dense(DEPTH, SIDE * SIDE)
    rows = [cost(name, width, dense, None) for name, width in WIDTHS.items()]
    rows += [cost("DeiT-S", 384, POOLED, method) for method in ("leader", "wkmedoids")]
    result = {**hardware("cpu"), "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
