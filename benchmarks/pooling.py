"""Speed of pooled models: `python benchmarks/pooling.py [--device cuda]`; see `--help`.

The same as `tokenpool bench pooling`, for machines that have only torch and timm.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from tokenpool import benchmark


def main() -> None:
    """Run, print a table, append the rows to a JSON-lines file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="CPU threads; on a busy machine use 1")
    parser.add_argument("--rate", type=float, default=0.93)
    parser.add_argument("--modes", nargs="+", default=list(benchmark.MODES))
    parser.add_argument("--only", default="", help="variants whose name holds one of these, a|b")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    rows = benchmark.run(
        given.model,
        modes=tuple(given.modes),
        only=given.only,
        rate=given.rate,
        batches=tuple(given.batch),
        rounds=given.rounds,
        device=given.device,
        progress=lambda line: print(f"\r\033[K{line}", end="", file=sys.stderr),
    )
    for row in rows:
        print(
            f"\r\033[K{row['mode']:14} {row['batch']:4} {row['variant']:38} "
            f"{row['images_per_second']:8.1f} img/s "
            f"{row['speedup']:5.2f}x of {row['mac_ratio']:.2f} = {row['realised']:.2f}  pooling "
            f"{row['pooling_ms'] or 0:7.1f} ms  peak {row['peak_mib']:7.1f} MiB",
            flush=True,
        )
        if given.out is not None:
            given.out.parent.mkdir(parents=True, exist_ok=True)
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
