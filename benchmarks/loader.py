"""Speed of the loader: `python benchmarks/loader.py [--cores 2] [--out FILE]`; see `--help`.

The same as `tokenpool bench loader`; kept results lie beside in `results/loader*.json`.
"""

import typer

from pipelines.commands.bench_loader import bench_loader

if __name__ == "__main__":
    typer.run(bench_loader)
