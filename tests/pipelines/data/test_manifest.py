"""The manifest, and the proof that a beton is the one it speaks of."""

import os
import shutil

import numpy as np
import pytest

from pipelines.data import manifest as module
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest, verify_beton
from pipelines.errors import UserError


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "digits")


def test_the_digits_manifest(digits):
    manifest = load_manifest(digits)
    assert manifest.classes == [str(i) for i in range(10)]
    assert sum(split.samples for split in manifest.splits.values()) == 1797
    assert {name: split.samples for name, split in manifest.splits.items()} == {
        "train": 1151,
        "minival": 287,
        "val": 359,
    }
    for split in manifest.splits.values():
        assert sum(split.counts) == split.samples and min(split.counts) > 0
    assert manifest.image_size == 32


def test_mean_and_deviation_are_those_of_the_training_pixels(digits):
    manifest = load_manifest(digits)
    loader = make_loader(digits, "train", batch_size=1151, train=True)
    pixels = next(iter(loader))[0].numpy().transpose(1, 0, 2, 3).reshape(3, -1) / 255
    loader.close()
    np.testing.assert_allclose(manifest.mean, pixels.mean(1), atol=1e-9)
    np.testing.assert_allclose(manifest.std, pixels.std(1), atol=1e-9)


def test_absent_data_names_the_command(tmp_path):
    with pytest.raises(UserError) as caught:
        load_manifest(tmp_path / "digits")
    out = tmp_path / "digits"
    assert str(caught.value) == f"no prepared data at {out}: run `tokenpool prepare digits {out}`"


@pytest.mark.parametrize("text", ["{}", "not json", '{"surprise": 1}'])
def test_a_broken_manifest_ends_in_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="is not a manifest") as caught:
        load_manifest(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.fault("beton with an altered byte")
def test_one_altered_byte_is_refused_at_load(copy):
    path = copy / "train.beton"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(UserError, match=r"train.beton was altered .* prepare digits"):
        make_loader(copy, "train", batch_size=8, train=True)


def test_a_byte_altered_after_a_first_load_is_refused_too(copy):
    """Also where size and modification time are put back to what they were."""
    manifest = load_manifest(copy)
    path = verify_beton(copy, "val", manifest)
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match="altered"):
        verify_beton(copy, "val", manifest)


@pytest.mark.fault("beton missing or cut short")
def test_missing_and_truncated_betons(copy):
    manifest = load_manifest(copy)
    with (copy / "val.beton").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(UserError, match=r"val.beton has 1000 bytes"):
        verify_beton(copy, "val", manifest)
    (copy / "train.beton").unlink()
    with pytest.raises(UserError, match=r"train.beton is missing"):
        verify_beton(copy, "train", manifest)


def test_the_checksum_is_computed_once_per_file(copy, monkeypatch):
    manifest, calls = load_manifest(copy), []
    original = module.file_hash
    monkeypatch.setattr(module, "file_hash", lambda path: calls.append(path) or original(path))
    for _ in range(3):
        verify_beton(copy, "train", manifest)
    assert len(calls) == 1
    os.utime(copy / "train.beton")
    verify_beton(copy, "train", manifest)
    assert len(calls) == 2


def test_an_unwritable_cache_only_costs_time(copy, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert verify_beton(copy, "val", load_manifest(copy)).name == "val.beton"
