"""From a source to a finished directory: what is in it, and what happens when things go wrong."""

import ast
import csv
import errno
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.data import parallel, shards
from pipelines.data import prepare as module
from pipelines.data.beton import read_table
from pipelines.data.manifest import load_manifest
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.data.sources import folder
from pipelines.errors import UserError

from .conftest import jpeg, make_folder, photo

ONE = PrepareOptions(workers=1, minival=0.25)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rejected(folder: Path) -> dict[str, str]:
    with (folder / "rejected.csv").open(newline="") as file:
        return {row["source_name"]: row["reason"] for row in csv.DictReader(file)}


def test_every_sample_can_be_traced_to_its_source(photos, prepared_photos):
    index = pq.read_table(prepared_photos / "index.parquet").to_pylist()
    manifest = load_manifest(prepared_photos)
    assert Counter(row["split"] for row in index) == {"train": 27, "minival": 9, "val": 12}
    for row in index:
        data = (photos / row["source_name"]).read_bytes()
        assert hashlib.sha1(data).hexdigest() == row["source_sha1"]
        assert row["class"] == Path(row["source_name"]).parent.name
        assert manifest.classes[row["label"]] == row["class"]
        assert (row["split"] == "val") == row["source_name"].startswith("val/")
        table = read_table(prepared_photos / f"{row['split']}.beton")
        at = row["position"]
        assert table.pointer[at] == row["offset"] and table.size[at] == row["size"]
        assert (table.width[at], table.height[at]) == (row["width"], row["height"])
        assert table.label[at] == row["label"]
        beton = (prepared_photos / f"{row['split']}.beton").read_bytes()
        assert beton[row["offset"] : row["offset"] + row["size"]] == data  # kept, not re-encoded


def test_typed_again_nothing_changes(prepared_photos, photos):
    before = {p: p.stat().st_mtime_ns for p in prepared_photos.iterdir()}
    prepare(str(photos), prepared_photos, ONE)
    assert {p: p.stat().st_mtime_ns for p in prepared_photos.iterdir()} == before


def test_typed_again_a_damaged_beton_is_found(photos, tmp_path):
    out = tmp_path / "out"
    prepare(str(photos), out, ONE)
    with (out / "val.beton").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    with pytest.raises(UserError, match="altered"):
        prepare(str(photos), out, ONE)


def test_other_options_are_not_mistaken_for_the_same(prepared_photos, photos):
    with pytest.raises(UserError, match=r"minival was 0.25, is 0.5"):
        prepare(str(photos), prepared_photos, PrepareOptions(minival=0.5))


def test_any_number_of_workers_writes_the_same_bytes(
    photos, prepared_photos, tmp_path, monkeypatch
):
    from pipelines.data.sources import folder

    monkeypatch.setattr(folder, "_UNIT", 7)  # several shards, so that several processes work
    out = tmp_path / "out"
    prepare(str(photos), out, ONE.model_copy(update={"workers": 2}))
    assert tree(out) == tree(prepared_photos)


def test_modes(photos, tmp_path):
    shares = {}
    for mode in ("jpg", "raw", "proportion"):
        out = tmp_path / mode
        prepare(str(photos), out, ONE.model_copy(update={"mode": mode, "proportion": 0.4}))
        table = read_table(out / "train.beton")
        shares[mode] = (table.mode == 0).mean()
    assert shares["jpg"] == 1 and shares["raw"] == 0 and 0.1 < shares["proportion"] < 0.8


def test_classes_by_number_and_by_name(photos, tmp_path):
    first = prepare(str(photos), tmp_path / "a", ONE.model_copy(update={"classes": 2}))
    assert first.classes == ["c0", "c1"] and first.splits["val"].counts == [4, 4]
    named = prepare(str(photos), tmp_path / "b", ONE.model_copy(update={"classes": ["c2"]}))
    assert named.classes == ["c2"] and named.splits["val"].counts == [4]
    with pytest.raises(UserError, match="no class 'zebra'"):
        prepare(str(photos), tmp_path / "c", ONE.model_copy(update={"classes": ["zebra"]}))


def test_a_folder_without_splits_is_split_by_seed(photos, tmp_path):
    manifest = prepare(
        str(photos / "train"), tmp_path / "out", PrepareOptions(val=0.25, minival=0.2, workers=1)
    )
    assert {k: v.counts for k, v in manifest.splits.items()} == {
        "train": [7] * 3,
        "minival": [2] * 3,
        "val": [3] * 3,
    }


# --- interruptions ---------------------------------------------------------------------------


def _slow_glyphs(out: Path) -> list[str]:
    code = (
        "from pathlib import Path; from pipelines.data.prepare import prepare;"
        "from pipelines.data.options import PrepareOptions;"
        f"prepare('glyphs', Path({str(out)!r}), PrepareOptions(count=2048, size=32, workers=2))"
    )
    return [sys.executable, "-c", code]


def test_killed_half_way_it_goes_on_and_ends_with_the_same_bytes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = PrepareOptions(count=2048, size=32, workers=1)
    process = subprocess.Popen(_slow_glyphs(cut))
    folder = tmp_path / "cut.partial" / "shards"
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)  # workers die with their parent, by the kernel's doing
    finished = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    assert len(finished) >= 2 and not cut.exists()
    time.sleep(0.5)
    assert {p.name: p.stat().st_mtime_ns for p in folder.glob("*.parquet")} == finished

    remade = []
    original = parallel.make_shard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "make_shard", lambda *a: remade.append(a[0]) or original(*a))
        prepare("glyphs", cut, options)
    assert len(remade) == 5 - len(finished) > 0
    prepare("glyphs", whole, options)
    assert tree(cut) == tree(whole)
    assert not (tmp_path / "cut.partial").exists()


@pytest.mark.parametrize("step", ["before", "amid"])
def test_killed_while_finishing_nothing_is_made_again(photos, prepared_photos, tmp_path, step):
    """Betons and manifest are whole, but OUT has not appeared yet."""
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(str(photos), out, ONE)
    assert not out.exists()
    if step == "amid":
        shutil.rmtree(tmp_path / "out.partial" / "shards")
        (tmp_path / "out.partial" / "plan.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "make_shards", lambda *_: pytest.fail("made again"))
        manifest = prepare(str(photos), out, ONE)
    assert manifest == load_manifest(out)
    assert tree(out) == tree(prepared_photos)


def test_a_full_disk_ends_in_one_line_and_the_next_run_succeeds(photos, tmp_path, monkeypatch):
    original, calls = shards.write_durably, []

    def full(path, chunks):
        calls.append(path)
        if path.name == "000000.parquet":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        original(path, chunks)

    monkeypatch.setattr(shards, "write_durably", full)
    with pytest.raises(UserError, match=r"^no space left under .*make room") as caught:
        prepare(str(photos), tmp_path / "out", ONE)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert prepare(str(photos), tmp_path / "out", ONE).splits["val"].samples == 12


def test_a_really_full_disk(photos, tmp_path):
    """A 1 MiB file system in memory; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        with pytest.raises(UserError, match="no space left"):
            prepare(str(photos), disk / "out", ONE)
        assert not (disk / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert prepare(str(photos), disk / "out", ONE).splits["train"].samples == 27
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_at_once_are_kept_apart(photos, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with module._lock(tmp_path / "out.partial"), pytest.raises(UserError, match="another process"):
        prepare(str(photos), tmp_path / "out", ONE)


def test_a_directory_that_is_something_else_is_left_alone(photos, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not prepared data"):
        prepare(str(photos), tmp_path, ONE)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_changed_options_discard_unfinished_work(photos, tmp_path):
    bad = make_folder(tmp_path / "source", train=4, val=2)
    (bad / "train" / "c0" / "bad.jpg").write_bytes(b"no")
    with pytest.raises(UserError):
        prepare(str(bad), tmp_path / "out", ONE)
    options = ONE.model_copy(update={"skip_bad": True, "mode": "raw"})
    prepare(str(bad), tmp_path / "out", options)
    assert (read_table(tmp_path / "out" / "train.beton").mode == 1).all()


# --- bad input -------------------------------------------------------------------------------


@pytest.fixture
def bad_folder(tmp_path):
    """Good images with one of each kind of trouble among them."""
    root = make_folder(tmp_path / "source", train=6, val=3)
    good = (root / "train" / "c0" / "000.jpg").read_bytes()
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")
    bomb = bytearray(png.getvalue())
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2  # width and height of the header
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    for name, data in {
        "truncated.jpg": good[:-400],
        "empty.jpg": b"",
        "notes.txt": b"remember the milk",
        "bomb.png": bytes(bomb),
    }.items():
        (root / "train" / "c1" / name).write_bytes(data)
    shutil.copy(root / "val" / "c2" / "001.jpg", root / "train" / "c2" / "copy.jpg")
    (root / "train" / "c3").mkdir()
    (root / "train" / "c3" / "only.jpg").write_bytes(jpeg(photo(77)))
    return root


REASONS = {
    "train/c1/truncated.jpg": "pixels are missing",
    "train/c1/empty.jpg": "empty file",
    "train/c1/bomb.png": "decompression bomb",
    "train/c2/copy.jpg": "duplicate of val/c2/001.jpg in val",
    "val/c3": "class c3 has no images in val",
}


@pytest.mark.fault("corrupt images in a data set")
def test_bad_images_are_listed_and_stop_the_work(bad_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"5 of 32 images refused.*--skip-bad") as caught:
        prepare(str(bad_folder), out, ONE)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert not out.exists()
    found = rejected(tmp_path / "out.partial")
    assert found.keys() == REASONS.keys()
    for name, reason in REASONS.items():
        assert found[name].startswith(reason)


def test_skip_bad_goes_on_without_them(bad_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError):
        prepare(str(bad_folder), out, ONE)
    manifest = prepare(str(bad_folder), out, ONE.model_copy(update={"skip_bad": True}))
    assert manifest.rejected == 5 and rejected(out).keys() == REASONS.keys()
    index = pq.read_table(out / "index.parquet").to_pylist()
    names = {row["source_name"] for row in index}
    assert not names & REASONS.keys() and len(index) == 6 * 3 + 3 * 3 + 1
    assert not names & {"train/c2/copy.jpg"} and "val/c2/001.jpg" in names
    assert load_manifest(out) == manifest


def test_mended_images_are_read_again(tmp_path):
    root = make_folder(tmp_path / "source", train=4, val=2)
    bad = root / "train" / "c0" / "000.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:100])
    with pytest.raises(UserError, match="1 of 18"):
        prepare(str(root), tmp_path / "out", ONE)
    bad.write_bytes(good)
    manifest = prepare(str(root), tmp_path / "out", ONE)
    assert manifest.rejected == 0 and not (tmp_path / "out" / "rejected.csv").exists()


def test_files_replaced_between_two_runs_are_read_again_and_no_others(tmp_path, monkeypatch):
    """Same name, other bytes, in a shard that was finished before: never a stale sample."""
    monkeypatch.setattr(folder, "_UNIT", 5)
    root = make_folder(tmp_path / "source", train=4, val=2)
    bad, changed = root / "val" / "c2" / "001.jpg", root / "train" / "c1" / "002.jpg"
    good, new = bad.read_bytes(), jpeg(photo(4711, 50, 40))
    bad.write_bytes(b"")
    with pytest.raises(UserError, match="1 of 18"):
        prepare(str(root), tmp_path / "out", ONE)
    bad.write_bytes(good)
    changed.write_bytes(new)
    made = []
    original = parallel.make_shard
    monkeypatch.setattr(parallel, "make_shard", lambda *a: made.append(a[0]) or original(*a))
    prepare(str(root), tmp_path / "out", ONE)
    names = {name for unit in made for _, _, name in unit.entries}
    assert len(made) == 2 and {"val/c2/001.jpg", "train/c1/002.jpg"} <= names
    index = pq.read_table(tmp_path / "out" / "index.parquet").to_pylist()
    digests = {row["source_name"]: row["source_sha1"] for row in index}
    assert digests["train/c1/002.jpg"] == hashlib.sha1(new).hexdigest()


def test_a_class_too_small_for_val_is_reported(tmp_path):
    """No val folder: val is taken out of each class, and one image cannot be in both."""
    root = make_folder(tmp_path / "source", train=5, val=0) / "train"
    (root / "lonely").mkdir()
    (root / "lonely" / "one.jpg").write_bytes(jpeg(photo(9)))
    with pytest.raises(UserError, match=r"val/lonely: class lonely has no images"):
        prepare(str(root), tmp_path / "out", ONE)
    assert rejected(tmp_path / "out.partial").keys() == {"val/lonely"}
    manifest = prepare(str(root), tmp_path / "out", ONE.model_copy(update={"skip_bad": True}))
    assert manifest.splits["val"].counts == [1, 1, 1, 0]
    assert (
        prepare(str(root), tmp_path / "no-val", ONE.model_copy(update={"val": 0.0})).rejected == 0
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody without rights")
def test_a_really_unreadable_folder_and_file():
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pipelines.data.options import PrepareOptions\n"
        "from pipelines.data.sources.folder import folder_source\n"
        "from pipelines.data.sources.folder_tree import scan\n"
        "os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
        "root = Path(sys.argv[1])\n"
        "source = folder_source(root, PrepareOptions(), scan(root))\n"
        "read = [sample for unit in source.units for sample in unit.read()]\n"
        "print(dict(source.problems) | {s.name: s.error for s in read if s.error})"
    )
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders are root's alone
        Path(scratch).chmod(0o755)
        root = make_folder(Path(scratch) / "source", train=3, val=2)
        (root / "train" / "c1").chmod(0)
        (root / "train" / "c2" / "001.jpg").chmod(0)
        command = [sys.executable, "-c", code, str(root)]
        ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    problems = ast.literal_eval(ran.stdout)
    assert problems.keys() == {"train/c1", "train/c2/001.jpg"}
    assert problems["train/c2/001.jpg"] == "cannot be read: Permission denied"


def test_an_unreadable_folder_is_reported(tmp_path, monkeypatch):
    root = make_folder(tmp_path / "source", train=4, val=2)
    original = os.scandir

    def scandir(path):
        if str(path).endswith("val/c1"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"val/c1: cannot be read: Permission denied"):
        prepare(str(root), tmp_path / "out", ONE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: str(p / "nowhere"), "no source .*nowhere"),
        (lambda p: str(p), "has no images, Parquet files or tars"),
    ],
)
def test_sources_that_are_none(tmp_path, make, message):
    source = tmp_path / "source"
    source.mkdir()
    with pytest.raises(UserError, match=message):
        prepare(make(source), tmp_path / "out", ONE)
    assert list(tmp_path.iterdir()) == [source]


def test_progress_counts_up_to_all(photos, tmp_path):
    seen = []
    prepare(str(photos), tmp_path / "out", ONE, progress=lambda *counts: seen.append(counts))
    assert seen[0] == (0, 48) and seen[-1] == (48, 48)


def test_digits_twice_are_the_same_bytes(digits, tmp_path):
    prepare("digits", tmp_path / "digits")
    assert tree(tmp_path / "digits") == tree(digits)


def test_no_image_is_in_two_splits(prepared_photos):
    index = pq.read_table(prepared_photos / "index.parquet").to_pandas()
    assert index.groupby("source_sha1")["split"].nunique().max() == 1
    assert np.issubdtype(index["offset"].dtype, np.integer)
