"""What an object store does, on a real S3 server."""

import pickle

import pytest
from stores import KEYS

from pipelines.storage.copies import RESUMED, WEIGHTS, local_copy, local_path
from pipelines.storage.store import ObjectStore, StoreError, explain
from pipelines.storage.working import cache_root


def test_objects_are_written_read_listed_and_deleted(store):
    assert store.read("a/1") is None and store.entries("a") == []
    store.write("a/1", b"one")
    store.write("a/1", b"two")
    store.write("a/b/2", b"2")
    assert store.read("a/1") == b"two"
    assert [entry.name for entry in store.entries("a")] == ["a/1"]
    found = store.entries(recursive=True)
    assert [(entry.name, entry.size) for entry in found] == [("a/1", 3), ("a/b/2", 1)]
    assert store.child("a").read("b/2") == b"2" and store.folders("a") == ["b"]
    store.delete("a/1"), store.delete("a/1")
    assert store.read("a/1") is None
    store.delete_folder("a"), store.delete_folder("a")
    assert store.entries(recursive=True) == []


def test_it_travels_without_credentials(store):
    store.write("x", b"1")
    for travels in (store, store.filesystem):
        data = pickle.dumps(travels)
        assert not any(secret.encode() in data for secret in list(KEYS.values())[:2])
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


def test_places_below_it_are_known_by_address_and_path(store):
    below = store.child("jobs/t000?x")  # options would stay at the end
    assert store.relative(below.address.partition("?")[0]) == "jobs/t000"
    assert store.relative(f"{store.path}/jobs/t000/model") == "jobs/t000/model"
    assert store.relative("s3://elsewhere/jobs") is None and store.relative("/tmp/x") is None


def test_a_folder_comes_whole_once_and_anew_when_it_has_changed(store, tmp_path):
    store.write("jobs/a/model/weights", b"w" * 5000)
    store.write("jobs/a/model/model.json", b"{}")
    address = store.child("jobs/a/model").address
    copy = local_path(address)
    assert copy.name == "model" and (copy / "weights").read_bytes() == b"w" * 5000
    assert {path.name for path in copy.iterdir()} == {"weights", "model.json"}
    before = (copy / "weights").stat().st_mtime_ns
    assert local_path(address) == copy and (copy / "weights").stat().st_mtime_ns == before
    store.write("jobs/a/model/weights", b"v" * 5001)
    assert (local_path(address) / "weights").read_bytes() == b"v" * 5001
    assert not list(cache_root().glob("**/.new-*"))
    assert local_path("/some/where") == local_path("/some/where")  # a path is left as it is


def test_of_checkpoints_to_go_on_from_only_the_newest_copy_stays(store):
    for epoch in (1, 2):
        store.write(f"jobs/a/epoch-{epoch}/state.json", b"%d" % epoch)
        last = local_copy(store.child(f"jobs/a/epoch-{epoch}"), RESUMED, only=True)
    assert last.name == "epoch-2"
    assert [path.name for path in (cache_root() / RESUMED).glob("*/*/*")] == ["epoch-2"]


def test_a_single_file_may_be_named_too(store):
    store.write("weights.safetensors", b"abc")
    copy = local_copy(store.child("weights.safetensors"), WEIGHTS)
    assert copy.name == "weights.safetensors" and copy.read_bytes() == b"abc"


def test_weights_at_an_address_of_fsspecs_are_fetched(tmp_path, address):
    (tmp_path / "there/model").mkdir(parents=True)
    (tmp_path / "there/model/weights").write_bytes(b"abc")
    copy = local_copy(ObjectStore(f"local://{tmp_path}/there/model"), WEIGHTS)
    assert copy != tmp_path / "there/model" and (copy / "weights").read_bytes() == b"abc"


def test_what_is_not_there_is_one_line(store):
    with pytest.raises(Exception, match="nothing is at s3://") as found:
        local_path(store.child("gone").address)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("AWS Error NO_SUCH_BUCKET during PutObject operation: no", "no such bucket"),
        ("AWS Error ACCESS_DENIED during PutObject operation: Access Denied", "credentials"),
        ("AWS Error NETWORK_CONNECTION during ListObjectsV2 operation: curlCode: 7", "endpoint"),
        ("google::cloud::Status(PERMISSION_DENIED: no permission)", "credentials"),
        ("something else", "set storage to a place"),
    ],
)
def test_each_fault_has_its_remedy(words, said):
    text = explain(OSError(words))
    assert said in text and "\n" not in text


def test_a_bucket_that_is_not_there_is_named(address):
    nowhere = ObjectStore("s3://no-such-bucket/runs")
    for use in (
        lambda: nowhere.entries("ledger"),
        lambda: nowhere.write("x", b""),
        lambda: nowhere.check_writable(".check"),
    ):
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/runs.*there is no such bucket"):
            use()


def test_a_server_that_does_not_answer_is_named(address, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="nothing answers: check the network and the endpoint"):
        ObjectStore(address).entries()
