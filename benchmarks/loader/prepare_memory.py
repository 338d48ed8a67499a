"""What `prepare` holds in memory as sources grow.

    python -m benchmarks.loader.prepare_memory --out FILE

ImageNet's forms are made small, of distinct JPEGs of 32 px: the tar of class tars with a flat val
tar and its ground truth, the hub's 294 Parquet shards, WebDataset shards, and class folders. Each
is prepared by `tokenpool prepare` at every size; given are the rate and the peak resident memory of
the driver and of the largest worker. What grows with the number of images is in the driver: its
growth per image between the smallest and the largest size is taken on to a million.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from benchmarks.machine import command_line, machine_facts

_BASES = 64  # pictures; each image is one of them with a comment of its own
_VAL = 20  # every so many-th image is of val
_PARQUET_SHARDS = 294
_MILLION = 1_000_000


def main(
    sizes: Annotated[str, typer.Option(help="Images, by size.")] = "50000,200000",
    forms: Annotated[
        str, typer.Option(help="ilsvrc-tar, parquet, webdataset, folder; with commas.")
    ] = "ilsvrc-tar,parquet,webdataset,folder",
    classes: Annotated[int, typer.Option(help="Classes.")] = 1000,
    workers: Annotated[int, typer.Option(help="Processes; 0: one per core.")] = 0,
    scratch: Annotated[
        Path | None, typer.Option(help="Where sources are made and deleted.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Measure and print."""
    result: dict[str, Any] = machine_facts(workers or len(os.sched_getaffinity(0)))
    result |= {
        "command": command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "images_are": "distinct JPEGs of 32 px",
        "classes": classes,
        "rows": [],
        "to_a_million": {},
    }
    for form in forms.split(","):
        rows = []
        for images in sorted(map(int, sizes.split(","))):
            with tempfile.TemporaryDirectory(prefix="tokenpool-bench-", dir=scratch) as folder:
                rows.append(measure(form, images, classes, workers, Path(folder)))
                print(json.dumps(rows[-1]), flush=True)
        result["rows"] += rows
        if len(rows) > 1:
            result["to_a_million"][form] = extrapolate(rows[0], rows[-1])
            print(form, json.dumps(result["to_a_million"][form]), flush=True)
        if out is not None:
            out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def extrapolate(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    """Driver memory at a million images, if it goes on growing as between two sizes."""
    grown = (large["driver_peak_mib"] - small["driver_peak_mib"]) * 2**20
    each = grown / (large["images"] - small["images"])
    more = (_MILLION - large["images"]) * each / 2**20
    return {
        "driver_bytes_per_image": round(each),
        "driver_peak_mib": round(large["driver_peak_mib"] + more),
        "worker_peak_mib": large["worker_peak_mib"],
    }


def measure(form: str, images: int, classes: int, workers: int, scratch: Path) -> dict[str, Any]:
    """Make a source, prepare it, and say what that took."""
    source = scratch / "source"
    source.mkdir()
    start = time.perf_counter()
    MAKERS[form](source, images, classes)
    made = time.perf_counter() - start
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    command = ["prepare", str(source), str(scratch / "out"), "--workers", str(workers), "--json"]
    start = time.perf_counter()
    with (scratch / "manifest.json").open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "tokenpool"), *command], stdout=output
        )
        driver, worker = peaks(process)
    wall = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"tokenpool {' '.join(command)} ended with {process.returncode}")
    manifest = json.loads((scratch / "manifest.json").read_text())
    samples = {split: part["samples"] for split, part in manifest["splits"].items()}
    if sum(samples.values()) != images:
        sys.exit(f"{form}: {samples} are not {images:,} images")
    return {
        "form": form,
        "images": images,
        "source_mib": round(size / 2**20, 1),
        "made_in_s": round(made, 1),
        "prepared_in_s": round(wall, 1),
        "images_per_s": round(images / wall),
        "driver_peak_mib": round(driver / 2**20, 1),
        "worker_peak_mib": round(worker / 2**20, 1),
    }


def peaks(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Peak resident bytes of a process and of the largest one below it, as the kernel counts."""
    top, driver, worker = psutil.Process(process.pid), 0, 0
    while process.poll() is None:
        for one in [top, *top.children(recursive=True)]:
            peak = _high_water(one.pid)
            if one.pid == top.pid:
                driver = max(driver, peak)
            else:
                worker = max(worker, peak)
        time.sleep(0.1)
    return driver, worker


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def pictures(count: int) -> Iterator[bytes]:
    """So many JPEGs, no two of them alike: a few, with the number in a comment segment."""
    from PIL import Image

    bases = []
    for seed in range(_BASES):
        noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((32, 32)).save(buffer, "JPEG")
        bases.append(buffer.getvalue())
    for i in range(count):
        base, text = bases[i % _BASES], b"%012d" % i
        yield base[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text + base[2:]


def wnid(label: int) -> str:
    """The name of a class in ImageNet's manner."""
    return f"n{1_440_764 + 7 * label:08d}"


def plan(images: int, classes: int) -> Iterator[tuple[str, int, bytes]]:
    """(split, label, picture) of each image."""
    counts = {"train": 0, "val": 0}
    for i, data in enumerate(pictures(images)):
        split = "train" if i % _VAL else "val"
        yield split, counts[split] % classes, data
        counts[split] += 1


def make_ilsvrc_tar(root: Path, images: int, classes: int) -> None:
    """The two tars of ILSVRC 2012 and Kaggle's table."""
    held: list[list[bytes]] = [[] for _ in range(classes)]
    solution = ["ImageId,PredictionString"]
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as val:
        for split, label, data in plan(images, classes):
            if split == "train":
                held[label].append(data)
                continue
            name = f"ILSVRC2012_val_{len(solution):08d}"
            solution.append(f"{name},{wnid(label)} 1 2 3 4 ")
            _add(val, f"{name}.JPEG", data)
    (root / "LOC_val_solution.csv").write_text("\n".join(solution))
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as train:
        for label, blobs in enumerate(held):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i, data in enumerate(blobs):
                    _add(tar, f"{wnid(label)}_{i}.JPEG", data)
            _add(train, f"{wnid(label)}.tar", inner.getvalue())


def make_webdataset(root: Path, images: int, classes: int) -> None:
    """Shards of 2,000 images with `.cls`, as the hub has them."""
    tars: dict[str, tarfile.TarFile] = {}
    counts = {"train": 0, "val": 0}
    for split, label, data in plan(images, classes):
        number = counts[split]
        if number % 2000 == 0:
            if split in tars:
                tars[split].close()
            tars[split] = tarfile.open(root / f"imagenet-{split}-{number // 2000:04d}.tar", "w")  # noqa: SIM115
        counts[split] += 1
        _add(tars[split], f"{number:08d}.jpg", data)
        _add(tars[split], f"{number:08d}.cls", str(label).encode())
    for tar in tars.values():
        tar.close()


def make_parquet(root: Path, images: int, classes: int) -> None:
    """The hub's shards: 294 of train, 14 of validation, with the names of classes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[str, list[tuple[dict[str, Any], int]]] = {"train": [], "val": []}
    for split, label, data in plan(images, classes):
        rows[split].append(({"bytes": data, "path": None}, label))
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [wnid(label) for label in range(classes)]},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    (root / "data").mkdir()
    for split, name, shards in (("train", "train", _PARQUET_SHARDS), ("val", "validation", 14)):
        for shard in range(shards):
            mine = rows[split][shard::shards]
            table = pa.table(
                {
                    "image": pa.array([image for image, _ in mine], kind),
                    "label": pa.array([label for _, label in mine], pa.int64()),
                }
            ).replace_schema_metadata(metadata)
            path = root / "data" / f"{name}-{shard:05d}-of-{shards:05d}.parquet"
            pq.write_table(table, path, row_group_size=100)


def make_folder(root: Path, images: int, classes: int) -> None:
    """`train/CLASS/…` and `val/CLASS/…`."""
    for split in ("train", "val"):
        for label in range(classes):
            (root / split / wnid(label)).mkdir(parents=True)
    for i, (split, label, data) in enumerate(plan(images, classes)):
        (root / split / wnid(label) / f"{wnid(label)}_{i}.JPEG").write_bytes(data)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


MAKERS = {
    "ilsvrc-tar": make_ilsvrc_tar,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
    "folder": make_folder,
}

if __name__ == "__main__":
    typer.run(main)
