"""Prepared data at an address comes to a machine whole, once, and as its manifest says."""

import threading

import pytest

from pipelines.data.fetch import fetch
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    out = tmp_path_factory.mktemp("there") / "digits"
    prepare("digits", out)
    return out


def test_what_arrives_trains_like_what_was_prepared(there, tmp_path):
    manifest = fetch(tmp_path / "here", f"file://{there}")
    assert manifest == load_manifest(there)
    here, away = (
        make_loader(path, "minival", batch_size=64, train=False)
        for path in (tmp_path / "here", there)
    )
    for (images, labels), (expected, wanted) in zip(here, away, strict=True):
        assert (images == expected).all() and (labels == wanted).all()
    here.close(), away.close()
    assert not list((tmp_path / "here").glob(".*.new"))


def test_several_processes_fetch_it_once(there, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(tmp_path / "here", f"file://{there}")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len({m.model_dump_json() for m in found}) == 1


def test_a_fetch_that_was_killed_goes_on(there, tmp_path):
    here = tmp_path / "here"
    fetch(here, f"file://{there}")
    (here / "manifest.json").unlink()  # the last to come
    train = here / load_manifest(there).splits["train"].file
    train.rename(here / f".{train.name}.new")  # half of it, say
    before = {path.name: path.stat().st_mtime_ns for path in here.iterdir()}
    fetch(here, f"file://{there}")
    val = load_manifest(there).splits["val"].file
    assert (here / val).stat().st_mtime_ns == before[val]  # not fetched again
    assert train.exists() and load_manifest(here)


def test_altered_on_the_way_or_other_data_is_refused(there, tmp_path):
    copy = tmp_path / "copy"
    fetch(copy, f"file://{there}")
    name = load_manifest(copy).splits["train"].file
    with (copy / name).open("r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=f"{name} did not arrive as its manifest says"):
        fetch(tmp_path / "here", f"file://{copy}")
    assert not (tmp_path / "here/manifest.json").exists()
    prepare("digits", tmp_path / "other", PrepareOptions(seed=1))
    with pytest.raises(UserError, match="holds other data than"):
        fetch(tmp_path / "other", f"file://{there}")


@pytest.mark.parametrize(
    ("address", "message"),
    [("file:///nowhere/at/all", "cannot fetch file:///nowhere"), ("abc://x/y", "cannot open abc")],
)
def test_a_wrong_address_is_one_line(tmp_path, address, message):
    with pytest.raises(UserError, match=message):
        fetch(tmp_path / "here", address)
