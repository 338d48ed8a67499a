import pytest
from stores import BUCKET, s3_server

from pipelines.storage.search_files import Search
from pipelines.storage.store import ObjectStore


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
def search(address):
    """A search whose folder stands for one at the address."""
    return Search.open(address, "pets")
