"""What somebody who wishes us ill could hand in, and what it must not do."""

import json
import os
from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.data import compiled
from pipelines.data.fetch import fetch
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.remote import Remote, refuse_secrets
from pipelines.storage.hashes import file_hash

SHA = "0" * 64


def manifest(file):
    split = {"file": file, "sha256": SHA, "size_bytes": 4, "samples": 1, "counts": [1]}
    return {
        "source": "elsewhere",
        "seed": 0,
        "classes": ["a"],
        "image_size": 32,
        "max_width": 32,
        "max_height": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "splits": {"train": split},
    }


@pytest.mark.parametrize(
    "file", ["../escaped", "/tmp/escaped", "a/../../escaped", ".hidden", "..", "a\n", "a/b", ""]
)
def test_a_manifest_from_elsewhere_names_no_file_outside_its_folder(tmp_path, file):
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "escaped").write_text("mine")
    written = manifest(file)
    if (there / file).is_file():
        written["splits"]["train"]["sha256"] = file_hash(there / file)
    (there / "manifest.json").write_text(json.dumps(written))
    here = tmp_path / "deep/here"
    with pytest.raises(UserError, match="is not a manifest") as caught:
        fetch(here, f"file://{there}")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in here.iterdir()) in (
        [".fetch.lock", ".manifest.json.new"],
        [".fetch.lock"],
    )
    assert (tmp_path / "escaped").read_text() == "mine"
    with pytest.raises(UserError, match="is not a manifest"):
        load_manifest(there)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"splits": 3}', "<html>", "\udc80{}"])
def test_what_is_no_manifest_is_one_line(tmp_path, text):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="is not a manifest") as caught:
        fetch(tmp_path / "here", f"file://{tmp_path}/there")
    assert "\n" not in str(caught.value)


def test_no_library_is_loaded_that_others_could_have_placed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = compiled.built()
    assert compiled.built() == path
    for one in (path, path.parent):
        mode = one.stat().st_mode
        one.chmod(mode | 0o002)
        with pytest.raises(OSError, match="others can write"):
            compiled.built()
        one.chmod(mode)
    if os.getuid() == 0:
        os.chown(path, 12345, 12345)
        with pytest.raises(OSError, match="others can write"):
            compiled.built()


class Api:
    """A cluster's job API, which must not be asked to run anything."""

    def searches(self, name):
        return []

    def run(self, *_, **__):
        raise AssertionError("submitted")

    submit = run


@pytest.mark.parametrize(
    ("words", "metadata", "variables"),
    [
        (["search", "x.yaml", "--set", "data.path=s3://k:pLaNt3d@b/x"], {}, {}),
        (["search", "x.yaml"], {"api_key": "pLaNt3d"}, {}),
        (["search", "x.yaml"], {}, {"HF_TOKEN": "pLaNt3d"}),
        (["search", "pLaNt3d-known"], {}, {}),
    ],
)
def test_a_jobs_description_holds_no_secret(monkeypatch, words, metadata, variables):
    monkeypatch.setenv("SOME_SECRET", "pLaNt3d-known")
    with pytest.raises(UserError, match="leave it out") as caught:
        refuse_secrets(words, metadata, variables)
    assert "pLaNt3d" not in str(caught.value)


def test_nothing_is_submitted_with_a_secret_in_it(monkeypatch):
    """By either way that a job is described: a search of its own, and a short command."""
    remote = Remote.__new__(Remote)
    remote.url, remote.api, remote._allow_open = "http://127.0.0.1:9", Api(), False
    preset = Path(__file__).parents[2] / "tune_spaces/presets/digits.yaml"
    config = load_config(preset, ["storage=/shared/pLaNt3d-later", "data.path=/shared/digits"])
    monkeypatch.setenv("SOME_SECRET", "pLaNt3d-later")  # since the config was read
    for asked in (
        lambda: remote.submit(config),
        lambda: remote.run(["status", "--storage", "/shared/pLaNt3d-later"]),
    ):
        with pytest.raises(UserError, match="leave it out") as caught:
            asked()
        assert "pLaNt3d" not in str(caught.value)
