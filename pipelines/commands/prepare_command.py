"""`tokenpool prepare`: options in, a progress bar, and what was made out."""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from pipelines.console import Screen
from pipelines.data.names import printable
from pipelines.errors import UserError
from pipelines.remote import Open, refuse_open_cluster

_SECONDS_BETWEEN_LINES = 5.0


def prepare(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="digits, glyphs, a folder train/CLASS/IMAGE (and val/CLASS/IMAGE), tar files, "
            "or Parquet shards (a path or any fsspec address). docs/data.md tells all layouts."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Directory to make.")],
    minival: Annotated[
        float | None,
        typer.Option(
            help="Share of the training images for minival, stratified. Default: by source."
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            help="Share of all images for val, where the source has no val. Default: by source. "
            "Or the folder or file of the val images."
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="Folder or file of the training images, below SOURCE or on its own; '.' takes all "
            "folders of SOURCE as classes. Default: by name."
        ),
    ] = None,
    kind: Annotated[
        Literal["folder", "parquet", "tar"] | None,
        typer.Option("--source", help="What to read, where SOURCE holds several kinds."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="CSV file of image and class, for images that lie in no class folders."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the splits, and what glyphs look like.")] = 0,
    resolution: Annotated[
        int | None, typer.Option(help="Shrink images so that a side is at most this.")
    ] = None,
    resolution_side: Annotated[
        Literal["longest", "shortest"], typer.Option(help="The side meant.")
    ] = "longest",
    mode: Annotated[
        Literal["jpg", "raw", "proportion"] | None,
        typer.Option(
            help="Store JPEGs, raw pixels, or JPEGs for a proportion. Default: by source."
        ),
    ] = None,
    proportion: Annotated[float, typer.Option(help="Share of JPEGs in mode proportion.")] = 0.5,
    quality: Annotated[int, typer.Option(help="JPEG quality where images are encoded.")] = 90,
    reencode: Annotated[
        bool, typer.Option("--reencode", help="Encode anew even JPEGs that could be kept.")
    ] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            help="The first so many classes (a number), or names with commas between them; a "
            "name may hold commas itself where that can be read in one way only."
        ),
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option(
            "--class", help="One class by its name, whatever is in it; give it once for each."
        ),
    ] = None,
    image_column: Annotated[
        str | None,
        typer.Option(help="Parquet, --labels: the column of images. Default: by metadata or name."),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Parquet, --labels: the column of labels. Default: by metadata or name."),
    ] = None,
    split_column: Annotated[
        str | None,
        typer.Option(
            help="Parquet, --labels: the column that says train, val or test. Default: by path."
        ),
    ] = None,
    share_names: Annotated[
        bool,
        typer.Option(
            "--share-names",
            help="Parquet: files without class names number classes as those with names do.",
        ),
    ] = False,
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images as decompression bombs.")
    ] = 100_000_000,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Go on without the images that are refused.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="Write shards on this Ray cluster instead.")
    ] = None,
    i_know_this_is_open: Open = False,
    count: Annotated[int, typer.Option(help="glyphs: how many images.")] = 50_000,
    size: Annotated[int, typer.Option(help="glyphs: side in pixels.")] = 64,
    num_glyphs: Annotated[int, typer.Option(help="glyphs: classes, up to 62.")] = 36,
    clutter: Annotated[float, typer.Option(help="glyphs: background clutter, 0 to 1.")] = 0.5,
    variation: Annotated[
        float, typer.Option(help="glyphs: spread of place, size, angle and colour, 0 to 1.")
    ] = 0.5,
    glyph_scale: Annotated[
        float, typer.Option(help="glyphs: character height over image side, 0.2 to 0.8.")
    ] = 0.62,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Read and check everything, say what would be made, write nothing."
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the manifest (--dry-run: the summary) as JSON.")
    ] = False,
) -> None:
    """Turn images into FFCV betons with a manifest, checking every image.

    Typed again on a finished OUT it verifies the checksums and changes nothing; a run that was
    stopped goes on where it was. OUT appears complete or not at all. At the end it says what was
    taken for what, what was converted and what was left out. Refused images are listed in
    rejected.csv with the reason.
    """
    from pipelines.data.class_choice import read_classes
    from pipelines.data.options import PrepareOptions, parse_options
    from pipelines.data.prepare import prepare as run
    from pipelines.data.prepare import rehearse
    from pipelines.data.summary import lines

    refuse_open_cluster(address, i_know_this_is_open)
    share, val_from = _share_or_place(val)
    given = {k: v for k, v in context.params.items() if k in PrepareOptions.model_fields}
    options = parse_options(
        **given
        | {"val": share, "val_from": val_from, "train_from": train, "source": kind}
        | {"classes": read_classes(classes, class_ or [])}
    )
    screen = Screen(Console(highlight=False, emoji=False))
    console = Console(stderr=True, highlight=False)
    if dry_run:
        with _Progress(console) as progress:
            summary, why = rehearse(source, options, progress=progress.update)
        if as_json:
            sys.stdout.write(json.dumps(summary.model_dump(mode="json"), indent=2) + "\n")
        else:
            for line in lines(summary):
                screen.say(line)
        if why:
            raise UserError(why, exit_code=1)
        return
    finished = (out / "manifest.json").exists()
    with _Progress(console) as progress:
        manifest = run(source, out, options, progress=progress.update)
    if as_json:
        sys.stdout.write(json.dumps(manifest.model_dump(mode="json"), indent=2) + "\n")
        return
    parts = ", ".join(f"{name} {split.samples:,}" for name, split in manifest.splits.items())
    state = "is complete and verified" if finished else "prepared"
    for line in lines(manifest.summary) if manifest.summary else ():
        screen.say(line)
    screen.say(f"{printable(out)} {state}: {parts} images of {manifest.num_classes} classes")
    if manifest.rejected:
        screen.say(f"{manifest.rejected} refused: {printable(out / 'rejected.csv')}")


def _share_or_place(text: str | None) -> tuple[float | None, str | None]:
    """`--val` as a share of the images, or as a folder or file."""
    try:
        return (None if text is None else float(text)), None
    except ValueError:
        return None, text


class _Progress:
    """Images done, images per second and time left: a bar, or plain lines off a terminal.

    Shown only once there is work. What an earlier run finished does not count towards the rate.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("preparing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._begun: tuple[float, int] | None = None
        self._said = 0.0

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._task is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        """Called with images done and images in all."""
        if not self._console.is_terminal:
            self._say(done, total)
        elif self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done, rate="")
        else:
            self._bar.update(self._task, completed=done)
            speed = self._bar.tasks[0].speed or 0
            self._bar.update(self._task, rate=f"{speed:,.0f} images/s")

    def _say(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._said = (now, done), now
            earlier = f", {done:,} of them done before" if done else ""
            self._console.print(f"preparing {total:,} images{earlier}", soft_wrap=True)
            return
        if now - self._said < _SECONDS_BETWEEN_LINES and done < total:
            return
        self._said = now
        rate = (done - self._begun[1]) / max(now - self._begun[0], 1e-9)
        left = timedelta(seconds=round((total - done) / max(rate, 1e-9)))
        self._console.print(
            f"{done:,} of {total:,} images, {rate:,.0f} images/s, {left} left", soft_wrap=True
        )
