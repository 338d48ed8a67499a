import pytest
from stores import BUCKET, s3_server

from pipelines.storage.store import ObjectStore
from pipelines.storage.working import open_root


@pytest.fixture(scope="session")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture
def address(server, monkeypatch, tmp_path, request):
    """A place of searches of this test's own, and a cache."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "cache"))
    return f"s3://{BUCKET}/{request.node.name.replace('[', '-').strip(']')}"


@pytest.fixture
def store(address):
    return ObjectStore(address)


@pytest.fixture
def directory(address):
    """A search's folder that stands for one at the address."""
    return open_root(address) / "searches" / "pets"
