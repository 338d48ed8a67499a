import os
import socket
from pathlib import Path

import pytest
import ray
import requests

from cluster import session
from cluster.session import AddressError, Cluster, ClusterError, free_port, ray_session


def secrets():
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS")
    return {name: os.environ.get(name) for name in names}


def test_a_local_session_is_closed_imports_ours_and_leaves_nothing_behind(tmp_path, monkeypatch):
    """Started in a folder (N1 of the field) that has packages of the names of this program's.

    Neighbours: a module and an empty folder of our packages' names. What else a stranger may try
    is in test_security.py.
    """
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("raise RuntimeError('the folder own')")
    (tmp_path / "tune_spaces.py").write_text("raise RuntimeError('the folder own')")
    (tmp_path / "tokenpool").mkdir()
    monkeypatch.chdir(tmp_path)

    def places():
        import pipelines
        import tokenpool
        import tune_spaces

        return [module.__file__ for module in (pipelines, tokenpool, tune_spaces)]

    before = secrets()
    with ray_session(num_cpus=1) as cluster:
        assert (cluster.cpus, cluster.num_nodes) == (1.0, 1)
        found = ray.get(ray.remote(places).remote())
        dashboard = os.environ["RAY_API_SERVER_ADDRESS"]
        assert dashboard.startswith("http://127.0.0.1:")
        for path in ("/api/jobs/", "/api/v0/actors"):
            assert requests.get(dashboard + path, timeout=10).status_code == 401
        assert os.getcwd() == str(tmp_path)
        folder = Path(ray._private.worker._global_node.get_session_dir_path())
        assert (folder / "logs").is_dir()
    assert found == places()
    assert not [path for path in found if path.startswith(str(tmp_path))]
    assert not ray.is_initialized() and not folder.exists()
    assert secrets() == before


def test_concurrency_is_counted_node_by_node():
    cluster = Cluster(address="", cpus=2.0, gpus=0.0, num_nodes=1)
    assert cluster.concurrent_jobs(2, 0.9, 0.0) == 1
    # Drivers and controllers take no CPU, so two workers of a whole one do fit.
    assert cluster.concurrent_jobs(2, 1.0, 0.0) == 1
    with pytest.raises(ClusterError, match=r"3 workers of 1 CPU each.*2 CPUs"):
        cluster.concurrent_jobs(3, 1.0, 0.0)
    # Eight CPUs, but four on each node: none holds a worker of five.
    with pytest.raises(ClusterError, match=r"5 CPU each.*the largest with 4 CPUs"):
        Cluster(address="", cpus=8.0, gpus=0.0, num_nodes=2).concurrent_jobs(1, 5.0, 0.0)
    gpus = Cluster(address="", cpus=64.0, gpus=8.0, num_nodes=2)
    assert gpus.concurrent_jobs(4, 4.0, 1.0) == 2
    with pytest.raises(ClusterError, match="1 GPU"):
        gpus.concurrent_jobs(9, 1.0, 1.0)


def test_a_busy_port_is_passed_over(monkeypatch):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        busy = server.getsockname()[1]
        monkeypatch.setattr(session, "DASHBOARD_PORTS", range(busy, busy + 1))
        with pytest.raises(ClusterError, match="no free port"):
            free_port()
    assert free_port() == busy


def test_an_address_without_a_cluster_ends_at_once_and_changes_nothing():
    before = secrets()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        said = f"no Ray cluster answers at {dead}"
        with pytest.raises(AddressError, match=said), ray_session(dead):
            raise AssertionError("nothing is there")
    assert secrets() == before and not ray.is_initialized()


def test_a_machine_too_busy_for_ray_is_one_line(monkeypatch):
    """As Ray says it: an exception of no kind of its own, after half a minute."""

    def slow(**options):
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(ClusterError, match=r"within half a minute.*same command"), ray_session():
        pass


def test_what_else_goes_wrong_at_the_start_is_not_taken_for_that(monkeypatch):
    def broken(**options):
        raise Exception("a bug")

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(Exception, match="a bug"), ray_session():
        pass
