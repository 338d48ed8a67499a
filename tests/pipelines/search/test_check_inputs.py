"""Weights that a config names are looked at before anything starts, here and where it is sent.

The field's script has `checkpoint` and `teacher` as a relative path and as one that is not there.
Its neighbours here: every other setting that names a place, found by looking through the config
itself; empty folders, models for other classes, addresses, timm's names and near misses of them.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from thinning import fast

import tokenpool as tp
from pipelines.config import SearchConfig, TrainRunConfig
from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.remote import _check_paths
from pipelines.search.check_inputs import check_given, named_places, needed
from pipelines.search.job_specs import base_job

PRESET = Path(__file__).parents[3] / "tune_spaces/presets/digits.yaml"
TRAIN = yaml.safe_load(PRESET.read_text())["base"]["train"]
PLACES = ["storage=/shared/runs", "data.path=/shared/digits"]
WIDTHS = (
    'space.widths=[{{"width": 64, "heads": 2}}, {{"width": 96, "heads": 3, "checkpoint": "{}"}}]'
)
SETTINGS = {  # key → how it is set to a place
    "space.widths.1.checkpoint": WIDTHS,
    "base.train.distill.teacher": "base.train.distill.teacher={}",
    "finals.train.distill.teacher": "finals.train.distill.teacher={}",
    "supernet.train.distill.teacher": (
        'supernet={{"enabled": true, "train": {{"epochs": 6, "distill": {{"teacher": "{}"}}}}}}'
    ),
}


def config(*settings: str) -> SearchConfig:
    return load_config(PRESET, [*PLACES, *settings])


def given(key: str, place: str | Path) -> SearchConfig:
    return config(SETTINGS[key].format(place))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tp.save(tp.build_vit(32, 8, 32, 2, 2, 10), tmp_path / "mine")
    return tmp_path


def refusal(check, *args) -> str:
    with pytest.raises(UserError) as refused:
        check(*args)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2
    return str(refused.value)


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize(
    "place", ["mine", "./mine", "../elsewhere/mine", "~/mine", "no-such-model", "local-dir:mine"]
)
def test_a_relative_path_is_not_submitted(here, key, place):
    assert refusal(_check_paths, given(key, place)).startswith(key)


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize(
    "place",
    ["/shared/mine", "s3://bucket/mine", "gs://bucket/w.pth?x=1", "vit_tiny_patch16_224",
     "deit_tiny_patch16_224.fb_in1k", "hf-hub:timm/any", "local-dir:/shared/hub"],
)  # fmt: skip
def test_what_means_the_same_everywhere_is_submitted(here, key, place):
    _check_paths(given(key, place))


def test_a_folder_with_the_name_of_a_model_is_not_submitted(here):
    """Here it is the folder, and there it would be timm's."""
    (here / "vit_tiny_patch16_224").mkdir()
    key = "base.train.distill.teacher"
    assert "means another folder" in refusal(_check_paths, given(key, "vit_tiny_patch16_224"))


@pytest.mark.parametrize(
    ("setting", "key"),
    [("storage=runs", "storage"), ("data.path=digits", "data.path"),
     ("data.address=digits", "data.address")],
)  # fmt: skip
def test_the_other_places_of_a_config(here, setting, key):
    assert refusal(_check_paths, config(setting)).startswith(f"{key} ")
    _check_paths(config("storage=s3://bucket/runs", "data.address=s3://bucket/digits"))


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize(
    "place", ["/nowhere/mine", "nowhere", "vit_tiny_patch16_2244", "mine.pth", "local-dir:gone"]
)
def test_what_is_not_there(here, key, place):
    line = refusal(check_given, given(key, place), 10, {})
    assert line.startswith(f"{key}: there is no {place} here") and "saved model's folder" in line


@pytest.mark.parametrize("key", SETTINGS)
def test_what_is_there_and_is_not_meant(here, key):
    (here / "empty").mkdir()
    assert "is empty" in refusal(check_given, given(key, "empty"), 10, {})
    assert "knows 10 classes, the data has 12" in refusal(check_given, given(key, "mine"), 12, {})
    assert "knows 1000 classes" in refusal(check_given, given(key, "vit_tiny_patch16_224"), 10, {})
    assert "has no weights" in refusal(check_given, given(key, "vit_giant_patch14_224"), 10, {})
    address = f"file://{here}/gone"
    assert f"there is no {address}" in refusal(check_given, given(key, address), 10, {})
    assert "names no bucket" in refusal(check_given, given(key, "s3:///mine"), 10, {})


@pytest.mark.parametrize("key", SETTINGS)
def test_what_is_there(here, key):
    (here / "weights.pth").write_bytes(b"anything")
    for place in ("mine", here / "mine", "weights.pth", f"file://{here}/mine"):
        check_given(given(key, place), 10, {})
    check_given(given(key, f"file://{here}/weights.pth"), 10, {})
    check_given(given(key, "vit_tiny_patch16_224"), 1000, {})


@pytest.mark.parametrize("place", ["mine", "one.pth"])
def test_what_is_in_a_bucket(place):
    """Looked for there, and not fetched; fsspec's memory stands for a bucket."""
    import fsspec

    key = "base.train.distill.teacher"
    bucket = fsspec.filesystem("memory")
    for name in ("mine/model.json", "one.pth"):
        bucket.pipe(f"/given/{name}", b"anything")
    check_given(given(key, f"memory://given/{place}"), 10, {})
    line = refusal(check_given, given(key, f"memory://given/{place}.gone"), 10, {})
    assert f"nothing is at memory://given/{place}.gone" in line


def test_a_storage_folder_that_only_this_file_system_can_name(tmp_path):
    root = tmp_path / "gr\udcfcn"
    line = refusal(check_given, config().model_copy(update={"storage": root}), 10, {})
    assert "no UTF-8" in line


def test_what_is_over_is_not_asked_for():
    """A search goes on though the weights it began with are gone."""
    gone = given("space.widths.1.checkpoint", "/gone")
    check_given(gone, 10, {"base": "done"})
    assert [named.key for named in needed(gone, {})] == ["space.widths.1.checkpoint"]
    off = config(
        'supernet={"enabled": false, "train": {"epochs": 6, "distill": {"teacher": "/gone"}}}'
    )
    check_given(off, 10, {})


def test_every_setting_that_names_a_place_is_found():
    """By its type, so that one that is added later is found as well."""
    found = {named.key for named in named_places(given("space.widths.1.checkpoint", "x"))}
    assert found == {"storage", "data.path", "space.widths.1.checkpoint"}
    alone = TrainRunConfig.model_validate(
        {
            "name": "x", "data": {"path": "d", "address": "a", "image_size": 32}, "model": {},
            "width": {"width": 32, "heads": 2}, "init": "i",
            "train": TRAIN | {"distill": {"teacher": "t"}},
        }
    )  # fmt: skip
    kinds = {named.key: named.what for named in named_places(alone)}
    assert kinds == {
        "storage": "folder", "data.path": "folder", "data.address": "data", "init": "weights",
        "train.distill.teacher": "weights",
    }  # fmt: skip
    schema = json.dumps(SearchConfig.model_json_schema()) + json.dumps(
        TrainRunConfig.model_json_schema()
    )
    described = schema.count("timm name") + schema.count("timm model")
    assert described == 4  # checkpoint, teacher (in both) and init: all that say so are marked


def test_workers_are_told_where_it_lies(here, monkeypatch):
    """They run in folders of their own, where a relative path leads nowhere."""
    for place in ("mine", "local-dir:mine", "vit_tiny_patch16_224", "s3://bucket/mine"):
        monkeypatch.chdir(here)
        chosen = given("base.train.distill.teacher", place)
        distill = base_job(chosen, chosen.space.widths[0], 10).train.distill
        assert distill is not None
        monkeypatch.chdir("/")
        found = Path(distill.teacher.removeprefix("local-dir:"))
        assert found.is_dir() if "mine" in place and "s3" not in place else distill.teacher == place


def test_nodes_are_asked_for_the_files(here):
    named = needed(given("finals.train.distill.teacher", "mine"), {})
    assert {path.name for path in named[0].files} == {
        path.name for path in (here / "mine").iterdir()
    }
    assert all(path.is_absolute() for path in named[0].files)
    assert not needed(given("finals.train.distill.teacher", "vit_tiny_patch16_224"), {})[0].files


@pytest.mark.parametrize("command", fast(1, ["plan", "search"]))
def test_the_commands_say_so_at_once(tmp_path, command):
    tokenpool = str(Path(sys.executable).parent / "tokenpool")
    for words in (
        ["prepare", "digits", "data", "--workers", "1"],
        [command, str(PRESET), "--set", "data.path=data",
         "--set", "finals.train.distill.teacher=/nowhere"],
    ):  # fmt: skip
        ran = subprocess.run(
            [tokenpool, *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert ran.returncode == 2
    assert ran.stderr.startswith(
        "tokenpool: finals.train.distill.teacher: there is no /nowhere here"
    )
    assert ran.stderr.count("\n") == 1
    assert not (tmp_path / "runs/searches/digits/ledger.jsonl").exists()
