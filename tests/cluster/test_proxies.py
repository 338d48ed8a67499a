"""Loopback and cluster addresses past a proxy that answers nothing; the rest still through it."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import ray
import requests
from servers import QuietHandler, address_of, serving

from cluster.jobs import JobApi
from cluster.probe import job_server
from cluster.proxies import direct_hosts, for_workers, go_direct, go_direct_if_here, host_of
from pipelines.tracking.mlflow_runs import SearchRuns
from pipelines.tracking.mlflow_server import _answers
from pipelines.tracking.tracking_store import TrackingStore

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
DEAD = "http://127.0.0.1:9"
# Each way a machine may be set up is a neighbour of the script's: clients look at these variables
# in this order or that, and at one spelling or the other.
PROXIES = {
    "as the script has it": {"http_proxy": DEAD, "https_proxy": DEAD},
    "the upper spelling": {"HTTP_PROXY": DEAD, "HTTPS_PROXY": DEAD},
    "one for all": {"all_proxy": DEAD},
    "one for all, upper": {"ALL_PROXY": DEAD},
    "with exceptions of its own": {"http_proxy": DEAD, "no_proxy": "intranet.example"},
    "exceptions in the upper spelling": {"HTTP_PROXY": DEAD, "NO_PROXY": "intranet.example"},
    "an empty lower one beside it": {
        "http_proxy": DEAD, "NO_PROXY": "intranet.example", "no_proxy": "",
    },
    "everything excepted": {"http_proxy": DEAD, "no_proxy": "*"},
}  # fmt: skip


class Page(QuietHandler):
    """What a dashboard and an MLflow server say of themselves."""

    def do_GET(self):
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "x"}
        pages = {"auth": {"authentication_mode": "disabled"}, "version": version}
        found = next((page for name, page in pages.items() if name in self.path), [])
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET


@pytest.fixture(params=PROXIES.values(), ids=PROXIES.keys())
def proxied(request, monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):  # so that they are as they were afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value)
    return request.param


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "127.0.0.2", "localhost"])
def test_a_dashboard_is_asked_directly(proxied, host):
    """127.0.0.2 stands for a node's own address: nobody knows it but from what was typed."""
    try:
        with serving(Page, "127.0.0.1" if host == "localhost" else host) as server:
            port = server.server_port
            shown = f"[{host}]" if ":" in host else host
            assert not job_server(f"http://{shown}:{port}").needs_token
            assert JobApi(f"{shown}:{port}").searches() == []  # Ray's own client
            assert _answers(port, host)
    except OSError:
        pytest.skip(f"this machine has no {host}")


def test_mlflows_client_asks_a_server_here_directly(proxied):
    with serving(Page) as server, pytest.raises(Exception) as failed:  # noqa: PT011 – MLflow's own
        SearchRuns(TrackingStore(address_of(server)), "digits", "digits@1")
    # The page is not MLflow's, but it is this server's.
    assert "roxy" not in str(failed.value) and "Max retries" not in str(failed.value)


def test_the_command_line_asks_directly(monkeypatch):
    with serving(Page) as server:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        ran = subprocess.run(
            [TOKENPOOL, "logs", "nobody", "--address", address_of(server),
             "--i-know-this-is-open"],
            capture_output=True, text=True, timeout=100, check=False,
            env={**os.environ, "http_proxy": DEAD},
        )  # fmt: skip
    assert ran.returncode == 2
    assert "no search named nobody was submitted" in ran.stderr


def test_other_hosts_keep_their_proxy(proxied):
    go_direct("http://head.cluster.example:8265", "10.1.2.3:6379")
    free = proxied.get("no_proxy") == "*"
    for url in ("http://weights.example/x", "http://10.1.2.4/", "http://[2001:db8::1]/"):
        assert requests.utils.should_bypass_proxies(url, None) is free
        assert bool(urllib.request.proxy_bypass_environment(host_of(url))) is free
    for url in ("http://head.cluster.example:8265", "http://10.1.2.3:8265", "http://127.9.9.9/"):
        assert requests.utils.should_bypass_proxies(url, None)
    if "intranet.example" in proxied.values():
        assert requests.utils.should_bypass_proxies("http://wiki.intranet.example", None)
        assert urllib.request.proxy_bypass_environment("wiki.intranet.example")


def test_an_mlflow_server_elsewhere_keeps_its_proxy(proxied):
    """It may well be outside: Databricks, or a service of the company's."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    go_direct_if_here("https://mlflow.invalid/api")
    assert before == {name: os.environ.get(name) for name in before}
    go_direct_if_here("http://0.0.0.0:5000")
    assert requests.utils.should_bypass_proxies("http://0.0.0.0:5000", None)
    assert requests.utils.should_bypass_proxies("http://127.0.0.1:5000", None)


def test_asked_twice_it_says_each_host_once(proxied):
    go_direct("10.1.2.3:6379")
    go_direct("http://10.1.2.3:8265")
    names = os.environ["no_proxy"].split(",")
    assert len(names) == len(set(names)) and os.environ["NO_PROXY"] == os.environ["no_proxy"]


def test_workers_keep_what_their_node_excepts(proxied, monkeypatch):
    """Ray's own substitution, on a node with exceptions of its own."""
    from ray._private.utils import update_envs

    variables = for_workers("10.1.2.3:6379", "http://10.1.2.3:8265")
    assert list(variables) == sorted(variables)  # Ray sorts them, and one needs the other
    monkeypatch.setenv("NO_PROXY", "node.example")
    monkeypatch.delenv("no_proxy", raising=False)
    update_envs(variables)
    assert requests.utils.should_bypass_proxies("http://10.1.2.3:8265", None)
    if direct_hosts() != "*":
        assert requests.utils.should_bypass_proxies("http://node.example", None)
        assert not requests.utils.should_bypass_proxies("http://weights.example", None)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.0.0.1:6379", "10.0.0.1"), ("http://[::1]:8265/x", "::1"), ("head", "head"),
        ("ray://Head:10001", "head"), ("", ""), ("http://[bad", ""),
        ("sqlite:////tmp/x.db", ""),
    ],
)  # fmt: skip
def test_hosts_of_addresses(address, host):
    assert host_of(address) == host
