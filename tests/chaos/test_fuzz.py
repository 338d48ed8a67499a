"""Files and words that are not what they should be: a right answer, or a line that says why not.

Each starts from something that is right and changes a byte, a value or a few of them.
TOKENPOOL_FUZZ says how many cases the dearest kind has; what costs less has more.
"""

import contextlib
import json
import os
import random
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import ledgers
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.train import CheckpointConfig

import tokenpool as tp
from cluster.ray_private import CheckpointManager, StorageContext
from pipelines.config import SearchConfig, TrainRunConfig
from pipelines.config_file import load_as, load_config
from pipelines.data.manifest import Manifest, load_manifest, verify_beton
from pipelines.data.names import printable
from pipelines.errors import UserError
from pipelines.search.ledger import read_events
from pipelines.search.state import fold
from pipelines.storage.checked_lines import checked_line, has_checksum, parse_line
from pipelines.storage.search_files import Search
from pipelines.train.checkpoint import (
    JobProgress,
    damage,
    read_progress,
    seal,
    write_progress,
)
from pipelines.train.job_folder import PathFolder
from pipelines.train.reports import Report
from pipelines.trials.last_signs import LastSign, read_last_signs, write_last_signs
from pipelines.trials.ray_record import mend_record

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

CASES = int(os.environ.get("TOKENPOOL_FUZZ", "300"))
PRESETS = sorted((Path(__file__).parents[2] / "tune_spaces" / "presets").glob("*.yaml"))


def cases(times=1.0):
    return settings(
        max_examples=max(1, round(CASES * times)),
        deadline=timedelta(seconds=30),  # a hang
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Values -----------------------------------------------------------------------------------------

WORDS = ["", " ", "nan", "inf", "-1", "1e999", "../x", "/", "\0", "a\nb", "ü", "true"]
WORDS += [
    "2001-99-99",
    "0x",
    "1:2:3",
    "s3://",
    "s3://a:b@c/d",
    "${HOME}",
    "[",
    "{",
    "*a",
    "!!int x",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.integers(),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.lists(st.integers(-2, 60), max_size=4),
    st.dictionaries(st.sampled_from(["a", "width", "epochs"]), st.integers(), max_size=2),
)


def places(value, at=()):
    """The paths of all values within a value."""
    yield at
    items = value.items() if isinstance(value, dict) else []
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*at, key))


@st.composite
def changed(draw, value):
    """A JSON value of which up to three parts are gone, others, or under other names."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            if draw(st.integers(0, 19)) == 0:
                return draw(LEAVES)
            continue
        *parents, last = path
        node = value
        for key in parents:
            node = node[key]
        how = draw(st.sampled_from(["set", "set", "delete", "rename", "wrap"]))
        if how == "delete":
            del node[last]
        elif how == "rename" and isinstance(node, dict):
            node[draw(st.sampled_from(["", " ", "../x", "ü", f"{last}s", "epochs"]))] = node.pop(
                last
            )
        elif how == "wrap":
            node[last] = [node[last]]
        else:
            node[last] = draw(LEAVES)
    return value


@st.composite
def torn(draw, content):
    """Bytes of which a few are gone, others, or too many."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        some = draw(st.binary(min_size=1, max_size=4))
        how = draw(st.sampled_from(["flip", "cut", "delete", "insert", "zeros", "put"]))
        if how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del content[at:]
        elif how == "delete":
            del content[at : at + draw(st.integers(1, 40))]
        elif how == "insert":
            content[at:at] = some
        elif how == "zeros":
            content[at : at + 16] = bytes(len(content[at : at + 16]))
        else:
            content[at : at + len(some)] = some
    return bytes(content)


def spoilt(value):
    """A JSON file: with other values, or with other bytes."""
    text = st.builds(lambda v: json.dumps(v).encode(), changed(value))
    return st.one_of(text, torn(json.dumps(value).encode()))


@contextlib.contextmanager
def one_line(*kinds):
    """What is refused is refused in one line that is not empty."""
    said = None
    try:
        yield
    except kinds as error:
        said = error
    if said is not None:
        assert str(said).strip() and "Traceback" not in str(said)
    if isinstance(said, UserError):
        assert "\n" not in printable(str(said)), str(said)  # as the command line shows it


# Configurations ---------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.yaml"


CONFIGS = [yaml.safe_load(path.read_text()) for path in PRESETS]


@pytest.mark.fault("fuzzing: configurations")
@cases(4)
@given(data=st.data())
def test_configurations(file, told, data):
    values = data.draw(changed(data.draw(st.sampled_from(CONFIGS))))
    content = yaml.safe_dump(values, allow_unicode=True).encode()
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(torn(content))
    file.write_bytes(content)
    with one_line(UserError):
        config = load_config(file)
        # It is one: all that is computed of it can be, and read back it is the same.
        again = SearchConfig.model_validate(json.loads(json.dumps(config.resolved())))
        assert again.resolved() == config.resolved()
    told("fuzzing: configurations")


@pytest.mark.fault("fuzzing: configurations")
@cases(2)
@given(
    content=st.one_of(st.binary(max_size=60), st.text("[]{}:,&*!|>-'\"#%@ \n\t?0ax", max_size=60))
)
def test_what_is_no_configuration(file, told, content):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for kind in (SearchConfig, TrainRunConfig):
        with one_line(UserError):
            load_as(kind, file)
    told("fuzzing: configurations")


KEYS = ["seed", "name", "finals.trials", "base.train.lr", "budget.deadline", "space.widths"]
KEYS += [
    "data.path",
    "storage",
    "finals",
    "finals.train.epochs",
    "space.max_gmacs",
    "a..b",
    ".",
    "=",
    "",
]


@pytest.mark.fault("fuzzing: --set")
@cases(4)
@given(
    overrides=st.lists(
        st.one_of(
            st.builds(
                "{}={}".format,
                st.sampled_from(KEYS),
                st.one_of(st.sampled_from(WORDS), LEAVES.map(str), st.text(max_size=8)),
            ),
            st.text(max_size=12),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_overrides(told, overrides):
    with one_line(UserError):
        load_config(PRESETS[0], overrides)
    told("fuzzing: --set")


# Schedules --------------------------------------------------------------------------------------


@pytest.mark.fault("fuzzing: schedules")
@cases(6)
@given(
    text=st.one_of(
        st.text(max_size=20),
        st.text("0123456789,- ._eEx+", max_size=20),
        st.lists(st.integers(-1, 50), max_size=6).map(lambda v: ",".join(map(str, v))),
    )
)
def test_schedules(told, text):
    with one_line(ValueError):
        schedule = tp.Schedule.parse(text)
        assert list(schedule) == sorted(schedule, reverse=True) and schedule[-1] >= 1
        assert list(schedule) == [int(word) for word in text.split(",")]
        assert tp.Schedule.parse(str(schedule)) == schedule
    told("fuzzing: schedules")


# Ledgers ----------------------------------------------------------------------------------------

EVENTS = [
    {"event": "created", "time": 1.0, "config": ledgers.config(), "config_hash": "x",
     "num_classes": 10, "bases": [{"width": 32, "num_heads": 2, "gmacs": 0.1}]},
    {"event": "began", "time": 2.0, "host": "h", "pid": 1},
    {"event": "base_report", "time": 3.0, "width": 32, "report": {"epoch": 1, "top1_minival": 0.5}},
    {"event": "stage_done", "time": 4.0, "stage": "base"},
    {"event": "spent", "time": 5.0, "stage": "base", "device_seconds": 3.5},
]  # fmt: skip


LEDGER = b"".join(map(checked_line, EVENTS))


@pytest.mark.fault("fuzzing: ledgers")
@cases(6)
@given(content=torn(LEDGER))
def test_ledgers(tmp_path, told, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    found = []
    with one_line(UserError):
        for event in read_events(path):
            found.append(event)
    # What was read before the damage is what was written, some of it perhaps cut out: a line that
    # is whole is as it was. As long as none has a checksum, they may be an older version's.
    left = iter(EVENTS)
    lines = content.splitlines()
    assert all(
        event in left
        for number, event in enumerate(found)
        if any(map(has_checksum, lines[: number + 1]))
    )
    if found[:1] == EVENTS[:1]:
        with one_line(UserError):
            fold("s", found, Search(tmp_path, "s"))
    told("fuzzing: ledgers")


@pytest.mark.fault("fuzzing: ledgers")
@cases(4)
@given(content=st.one_of(st.binary(max_size=80), *(torn(checked_line(event)) for event in EVENTS)))
def test_lines(told, content):
    with contextlib.suppress(ValueError):
        assert parse_line(content) in EVENTS or not has_checksum(content)  # an older version's
    told("fuzzing: ledgers")


# Manifests --------------------------------------------------------------------------------------

MANIFEST = {
    "source": "elsewhere", "seed": 0, "classes": ["a", "b"], "image_size": 32, "max_width": 32,
    "max_height": 32, "mean": [0.5] * 3, "std": [0.5] * 3,
    "splits": {
        "train": {
            "file": "train.beton", "sha256": "0" * 64, "size_bytes": 4,
            "samples": 3, "counts": [1, 2],
        }
    },
}  # fmt: skip


@pytest.mark.fault("fuzzing: manifests")
@cases(4)
@given(content=spoilt(MANIFEST))
def test_manifests(tmp_path, told, content):
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "train.beton").write_bytes(b"four")
    with one_line(UserError):
        manifest = load_manifest(tmp_path)
        assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
        for split in [*manifest.splits, "train"]:
            with one_line(UserError):
                assert verify_beton(tmp_path, split, manifest, use_cache=False) is None, "altered"
    told("fuzzing: manifests")


# Checkpoints ------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job" / "epoch-0001"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "weights.pt").write_bytes(b"weights")
    write_progress(folder, JobProgress(1, 1, 2.5, Report(epoch=1, top1_minival=0.5)))
    seal(folder, 0)
    for epoch, top1 in ((1, 0.5), (2, 0.6)):
        PathFolder(folder.parent).add_report(Report(epoch=epoch, top1_minival=top1))
    write_last_signs(folder.parent, [LastSign(0, "host", 3, "computing a step", 1.0)])
    return folder


def put(path, kept, content):
    """Writes a file that was right before."""
    kept.setdefault(path, path.read_bytes())
    for other, right in kept.items():
        if other.read_bytes() != right:
            other.write_bytes(right)
    path.write_bytes(content)


@pytest.mark.fault("fuzzing: checkpoints' metadata")
@cases(6)
@given(data=st.data())
def test_checkpoints(job, told, data):
    name = data.draw(st.sampled_from(["state.json", "manifest-rank0.json"]))
    kept = KEPT.setdefault(str(job), {})
    path = job / name
    right = kept.get(path, path.read_bytes())
    content = data.draw(st.one_of(spoilt(json.loads(right)), torn(right)))
    put(path, kept, content)
    problem = damage(job)
    assert problem is None or "\n" not in problem
    score = PathFolder(job.parent).score(job.name)
    assert score is None or isinstance(score, float)
    if problem is None:
        assert read_progress(job) == JobProgress(1, 1, 2.5, Report(epoch=1, top1_minival=0.5))
    told("fuzzing: checkpoints' metadata")


KEPT = {}


@pytest.mark.fault("fuzzing: checkpoints' metadata")
@cases(3)
@given(data=st.data())
def test_reports_and_signs(job, told, data):
    name = data.draw(st.sampled_from(["reports.jsonl", "last-signs.json"]))
    kept = KEPT.setdefault(str(job), {})
    path = job.parent / name
    put(path, kept, data.draw(torn(kept.get(path, path.read_bytes()))))
    with one_line(UserError):
        reports = PathFolder(job.parent).reports()
        assert [report.epoch for report in reports] in ([], [1], [1, 2])
    assert all(isinstance(sign, LastSign) for sign in read_last_signs(job.parent))
    told("fuzzing: checkpoints' metadata")


RECORD = {
    "ray_version": "2.60.0", "checkpoint_report_indices": [0], "current_report_index": 1,
    "checkpoint_results": [{"version": 0, "checkpoint_dir_name": "epoch-0001", "metrics": {}}],
    "latest_checkpoint_result": {"version": 0, "checkpoint_dir_name": "epoch-0001", "metrics": {}},
    "pending_training_results": [], "pending_validation_specs": [],
    "validated_checkpoint_dir_names": [], "timed_out_validation_checkpoint_dir_names": [],
    "failed_validation_checkpoint_dir_names": [],
}  # fmt: skip


@pytest.mark.fault("fuzzing: checkpoints' metadata")
@cases(2)
@given(content=torn(json.dumps(RECORD).encode()))
def test_records_of_ray(job, told, content):
    (job.parent / "checkpoint_manager_snapshot.json").write_bytes(content)
    mend_record(job.parent, heard=True)
    place = StorageContext(job.parent.parent, job.parent.name)
    latest = CheckpointManager(CheckpointConfig(), place).latest_checkpoint_result
    assert latest is None or Path(latest.checkpoint.path).name == "epoch-0001"
    told("fuzzing: checkpoints' metadata")


# Saved models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    random.seed(0)
    path = tmp_path_factory.mktemp("saved") / "model"
    model = tp.pool(tp.build_vit(32, 8, 16, 2, 2, 10), (8, 4))
    tp.save(model, path)
    header = json.loads((path / "model.json").read_text())
    return SimpleNamespace(path=path, header=header, shapes=shapes(model))


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.fault("fuzzing: saved models")
@cases(1)
@given(data=st.data())
def test_saved_models(saved, told, data):
    (saved.path / "model.json").write_bytes(data.draw(spoilt(saved.header)))
    with one_line(ValueError):
        assert shapes(tp.load(saved.path)) == saved.shapes
    told("fuzzing: saved models")
