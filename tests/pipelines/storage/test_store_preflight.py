"""Every node of a cluster is asked whether it can use the object store, before a search begins."""

import dataclasses

import pytest

from cluster.node_report import Request, look, problems, unwritten
from cluster.preflight import check_nodes
from cluster.probe import AddressError
from cluster.session import ray_session
from pipelines.search.preflight import StoreOfAll
from pipelines.storage.store import ObjectStore


def test_a_node_tells_whether_it_can_use_the_store(store, monkeypatch):
    storage = StoreOfAll(store)
    request = Request(".mark", "word", storage)
    assert "not the same" in look(request, "10.0.0.2").storage
    storage.write(".mark", "other")
    assert look(request, "10.0.0.2").storage == "is another folder there"
    storage.write(".mark", "word")
    here = look(request, "10.0.0.2")
    assert here.storage == "" and unwritten(request, ["10.0.0.2"]) == []
    (problem,) = unwritten(request, ["10.0.0.3"])
    assert "10.0.0.3" in problem and store.address in problem
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # as on a node without a way there
    elsewhere = dataclasses.replace(request, storage=StoreOfAll(ObjectStore(store.address)))
    there = look(elsewhere, "10.0.0.4")
    (problem,) = problems(here, there, storage, asked=there.clock, answered=there.clock)
    assert problem.startswith(f"node 10.0.0.4: storage {store.address} cannot be read from there")
    assert "nothing answers" in problem and "give every node credentials" in problem
    assert "\n" not in problem


def test_on_a_real_cluster(store):
    """One node of Ray's, whose tasks have the store's address and their own credentials."""
    with ray_session(num_cpus=1):
        assert check_nodes(StoreOfAll(store), []).nodes == 1
        assert store.entries() == []  # nothing is left there
        with pytest.raises(AddressError, match=r"no-such-bucket.*there is no such bucket"):
            check_nodes(StoreOfAll(ObjectStore("s3://no-such-bucket/runs")), [])
