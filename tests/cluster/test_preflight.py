import dataclasses
import time
from pathlib import Path

import pytest

from cluster.node_report import (
    Report,
    Request,
    SharedFolder,
    code_fingerprint,
    fingerprint,
    look,
    problems,
)
from cluster.node_report import unwritten as unwritten_by

HERE = Report(
    node="10.0.0.1",
    python="3.11.9",
    versions={"ray": "2.60.0", "torch": "2.14.1"},
    code="abc",
    clock=1000.0,
    files={"/data/val.beton": "f00d"},
    free_gb={"/shared": 100.0, "/tmp": 50.0},
)


SHARED = SharedFolder(Path("/shared"))


def judged(asked=999.0, answered=1001.0, gpus_for_ray=0.0, **changes):
    there = dataclasses.replace(HERE, node="10.0.0.2", **changes)
    return problems(HERE, there, SHARED, asked=asked, answered=answered, gpus_for_ray=gpus_for_ray)


def test_a_node_that_is_like_the_drivers_has_no_problems():
    assert judged() == []
    assert judged(gpus_for_ray=8.0, gpus=8) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3.12.1"}, "Python 3.12.1, the driver's node has 3.11.9"),
        ({"versions": {"ray": "2.60.0"}}, "torch none, the driver's node has 2.14.1"),
        ({"versions": HERE.versions | {"ffcv": "1.0.2"}}, "ffcv 1.0.2, the driver's node has none"),
        ({"code": "def"}, "another version of this program"),
        ({"files": {"/data/val.beton": "beef"}}, "/data/val.beton is not what it is on node 10.0"),
        ({"files": {"/data/val.beton": "(No such file)"}}, "cannot be read (No such file)"),
        ({"storage": "is not mounted"}, "storage /shared is not mounted"),
        ({"free_gb": {"/tmp": 0.4}}, "0.4 GB free at /tmp"),
        ({"gpus_for_ray": 8.0, "gpus": 7}, "gives out 8 GPUs and the machine has 7 GPUs"),
        ({"gpus_for_ray": 1.0}, "gives out 1 GPUs and the machine has no NVIDIA driver"),
        # Its clock reads 1000; by the driver's it was asked at 1010, so it is 10 s behind.
        ({"asked": 1010.0, "answered": 1012.0}, "clock is 10 s behind"),
        ({"asked": 980.0, "answered": 985.0}, "clock is 15 s ahead"),
    ],
)
def test_each_difference_is_named_with_its_node_and_remedy(changes, said):
    (problem,) = judged(**changes)
    assert problem.startswith("node 10.0.0.2: ") and said in problem and "\n" not in problem
    assert problem.count(": ") >= 2  # node, what is wrong, what to do


def test_a_slow_answer_is_no_wrong_clock():
    assert judged(asked=900.0, answered=1100.0) == []


def test_a_node_tells_whether_storage_is_the_same_folder(tmp_path):
    mark = tmp_path / "mark"
    request = Request(mark.name, "word", SharedFolder(tmp_path), (str(tmp_path / "beton"),))
    (tmp_path / "beton").write_bytes(b"1")
    assert "not the same" in look(request, "10.0.0.2").storage
    mark.write_text("other")
    assert look(request, "10.0.0.2").storage == "is another folder there"
    assert unwritten_by(request, ["10.0.0.2"])
    mark.write_text("word")
    report = look(request, "10.0.0.2")
    assert report.storage == "" and unwritten_by(request, ["10.0.0.2"]) == []
    assert report.code == code_fingerprint() and abs(report.clock - time.time()) < 60
    assert "torch" in report.versions and report.files.keys() == {str(tmp_path / "beton")}


def test_fingerprints_tell_files_apart_also_where_only_samples_are_read(tmp_path):
    small = tmp_path / "small"
    small.write_bytes(b"abc")
    before = fingerprint(small)
    small.write_bytes(b"abd")
    assert fingerprint(small) != before
    assert fingerprint(tmp_path / "none").startswith("(")
    large = tmp_path / "large"
    size = 200 << 20
    with large.open("wb") as file:
        file.truncate(size)  # holes: no room is taken
    first = fingerprint(large)
    assert fingerprint(large) == first
    for position in (0, size - 1):
        with large.open("r+b") as file:
            file.seek(position)
            file.write(b"x")
        assert fingerprint(large) != first
        with large.open("r+b") as file:
            file.seek(position)
            file.write(b"\0")
    with large.open("ab") as file:
        file.write(b"\0")
    assert fingerprint(large) != first
