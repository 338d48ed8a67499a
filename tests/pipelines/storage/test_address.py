"""Which addresses are taken, and what becomes of them."""

from pathlib import Path

import pytest

from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.storage.address import join, open_filesystem, parent, parse_place, parse_storage
from pipelines.storage.search_files import Search
from pipelines.storage.working import local_root, open_root

PRESET = Path(__file__).parents[3] / "tune_spaces/presets/digits.yaml"


def test_folders_are_paths_and_addresses_texts():
    assert parse_storage("runs") == Path("runs")
    assert parse_storage("file:///shared/my%20runs") == Path("/shared/my runs")
    assert parse_storage("s3://bucket/runs/") == "s3://bucket/runs"
    assert parse_storage("gs://bucket") == "gs://bucket"


def test_names_are_joined_before_the_options():
    address = "s3://bucket/runs?region=eu-west-1"
    assert join(address, "searches/x") == "s3://bucket/runs/searches/x?region=eu-west-1"
    assert parent(join(address, "searches")) == address


@pytest.mark.parametrize(
    "address",
    [
        "s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI@bucket/runs",
        "s3://bucket/runs?secret_key=wJalrXUtnFEMI",
        "gs://bucket/runs?access_token=wJalrXUtnFEMI",
    ],
)
def test_an_address_with_a_key_in_it_is_refused_without_repeating_it(address):
    for refuse in (
        lambda: load_config(PRESET, [f"storage={address}"]),
        lambda: open_root(address),
    ):
        with pytest.raises(UserError) as found:
            refuse()
        text = str(found.value)
        assert "wJalrXUtnFEMI" not in text and "\n" not in text and found.value.exit_code == 2
        assert "leave it out" in text


@pytest.mark.parametrize("address", ["hdfs://host/runs", "az://bucket/runs", "memory://x/runs"])
def test_where_searches_cannot_be_kept_is_one_line_that_says_where_they_can(address):
    with pytest.raises(UserError, match=r"at an address at s3://, gs:// or abfs://") as found:
        open_root(address)
    assert "\n" not in str(found.value) and found.value.exit_code == 2
    with pytest.raises(UserError, match=r"at an address at s3://, gs:// or abfs://"):
        load_config(PRESET, [f"storage={address}"])
    assert parse_place(address) == address  # data and weights may lie there


@pytest.mark.parametrize(
    ("address", "says"),
    [("s3://bucket/my runs", "syntax error"), ("s3://bucket/runs?regoin=x", "'regoin'")],
)
def test_what_is_wrong_with_an_address_is_said(address, says):
    with pytest.raises(UserError, match=says) as found:
        open_filesystem(address)
    assert str(found.value).startswith(f"cannot open {address}: ")
    assert "\n" not in str(found.value)


def test_no_bucket_is_said():
    with pytest.raises(UserError, match="names no bucket"):
        load_config(PRESET, ["storage=s3:///runs"])


def test_where_a_search_lies_decides_nothing_of_its_result(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path))
    folder = load_config(PRESET)
    stored = load_config(PRESET, ["storage=s3://bucket/runs"])
    assert stored.config_hash() == folder.config_hash()
    assert stored.resolved()["storage"] == "s3://bucket/runs"
    assert stored.address == "s3://bucket/runs/searches/digits" and folder.address is None
    assert folder.search.folder == Path("runs/searches/digits")
    assert stored.search.folder.is_relative_to(tmp_path)
    assert not any(tmp_path.iterdir())  # reading a config makes nothing


def test_a_working_folder_knows_what_it_stands_for(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path))
    root = open_root("s3://bucket/runs?region=eu-west-1")
    found = Search(root, "pets").store
    assert found is not None
    assert found.address == "s3://bucket/runs/searches/pets?region=eu-west-1"
    assert Search(tmp_path / "elsewhere", "pets").store is None
    assert open_root(str(root)) == root  # the folder itself may be named too
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert local_root("s3://bucket/runs?region=eu-west-1") != root
