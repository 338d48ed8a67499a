import contextlib
import io
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
from one_process import assert_refused
from ray.core.generated import gcs_service_pb2
from servers import QuietHandler, address_of, serving

from cluster.jobs import Job, JobApi, without_rays_lines
from cluster.package import pack
from cluster.probe import AddressError, ClusterError, check_gcs, dashboard_url, job_server, resolve
from pipelines.config_file import load_config
from pipelines.errors import UserError
from pipelines.remote import Remote


@contextlib.contextmanager
def web(answers, received=None):
    """A server with a page for each path, and 404 for the rest; it notes what it is sent."""

    class Handler(QuietHandler):
        def do_GET(self):
            found = answers.get(self.path)
            self.send_response(200 if found is not None else 404)
            self.end_headers()
            self.wfile.write((found or "<html>").encode())

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.received.append((self.path, body))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"job_id": "made", "submission_id": "made"}).encode())

        do_POST = do_PUT

    with serving(Handler, received=[] if received is None else received) as server:
        yield address_of(server)


@contextlib.contextmanager
def gcs(version):
    """What answers as Ray's control service of some version does."""

    class Answer(grpc.GenericRpcHandler):
        def service(self, call):
            if not call.method.endswith("NodeInfoGcsService/CheckAlive"):
                return None
            reply = gcs_service_pb2.CheckAliveReply(ray_version=version).SerializeToString()
            return grpc.unary_unary_rpc_method_handler(lambda *_: reply)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Answer()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def dashboard(version):
    return {
        "/api/authentication_mode": json.dumps({"authentication_mode": "disabled"}),
        "/api/version": json.dumps({"ray_version": version, "version": "4"}),
        "/api/jobs/": "[]",
    }


def refused(call, *words):
    with pytest.raises(AddressError) as caught:
        call(*words)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def test_what_does_not_answer_or_is_no_cluster_is_said_at_once():
    with web({"/": "hello"}) as url:
        host = url.removeprefix("http://")
        assert "not the dashboard" in refused(job_server, url)
        assert "does not speak Ray's protocol" in refused(check_gcs, host)
    assert "nothing answers" in refused(job_server, url)
    assert "no Ray cluster answers" in refused(check_gcs, host)


def test_a_cluster_of_another_version_is_refused_by_name():
    with web(dashboard("2.40.0")) as url:
        assert f"runs Ray 2.40.0 and this is Ray {ray.__version__}" in refused(JobApi, url)
    with web(dashboard(ray.__version__)) as url:
        assert JobApi(url).searches() == []
    with gcs("2.40.0") as address:
        assert "runs Ray 2.40.0" in refused(check_gcs, address)
    with gcs(ray.__version__) as address:
        check_gcs(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "http://10.0.0.1:8265", "ray://h:10001", ":1"])
def test_what_is_no_address_of_a_cluster(address):
    assert "HOST:PORT" in refused(check_gcs, address)


def test_addresses_of_dashboards():
    assert dashboard_url("10.0.0.1") == "http://10.0.0.1:8265"
    assert dashboard_url("http://head:80/") == "http://head:80"
    assert dashboard_url("https://ray.example.org/a/") == "https://ray.example.org/a"
    assert "HOST:8265" in refused(dashboard_url, "ray://head:10001")
    assert "HOST:8265" in refused(dashboard_url, "http://head:x")
    said = refused(dashboard_url, "http://me:hunter2@head:8265")
    assert "hunter2" not in said and "password" in said


def test_auto_is_the_cluster_that_ray_names(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve("auto") == "10.0.0.1:6379"
    assert resolve("10.0.0.2:6379") == "10.0.0.2:6379"


def test_rays_own_lines_are_left_out():
    log = (
        "2026-11-23 03:40:17,756\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
        "Running entrypoint for job a: sh run.sh\nRunning on\n2026-11-23 is a date\n"
    )
    assert without_rays_lines(log) == "Running on\n2026-11-23 is a date\n"


def run_packed(folder, *words, path=None, **variables):
    python = str(Path(sys.executable).parent) if path is None else path
    return subprocess.run(
        ["sh", "run.sh", *words], cwd=folder, capture_output=True, text=True, check=False,
        env={"PATH": f"{python}:/usr/bin:/bin", **variables},
    )  # fmt: skip


def test_the_packed_program_runs_by_itself_from_its_own_folder(tmp_path):
    folder = pack(tmp_path / "job", {"search.yaml": "name: x\n"})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert size < 5e6 and not list(folder.rglob("__pycache__"))
    result = run_packed(folder, "search", "search.yaml", "--set", "nme=1")
    assert result.returncode == 2 and "did you mean name" in result.stderr
    code = "import pipelines, tokenpool; print(pipelines.__file__, tokenpool.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.split()
    assert all(Path(path).is_relative_to(folder) for path in found)
    assert (folder / "pipelines/results/assets/page.html").is_file()
    assert (folder / "tune_spaces/presets/digits.yaml").is_file()


def test_an_installed_version_is_used_only_if_it_is_the_one(tmp_path):
    folder = pack(tmp_path / "job", code=False)
    assert not (folder / "pipelines").exists()
    wrong = run_packed(folder, "status", "--help", TOKENPOOL_INSTALLED="9.9.9")
    assert wrong.returncode == 2 and "0.1.0 is installed on the cluster, not 9.9.9" in wrong.stderr
    right = run_packed(folder, "status", "--help", TOKENPOOL_INSTALLED="0.1.0")
    assert right.returncode == 0 and "How far a search is" in right.stdout


def test_a_cluster_without_python_and_ray_says_so(tmp_path):
    empty = tmp_path / "bin"
    empty.mkdir()
    (empty / "python3").write_text("#!/bin/sh\nexit 1\n")
    (empty / "python3").chmod(0o755)
    (empty / "python").symlink_to("python3")
    folder = pack(tmp_path / "job", code=False)
    result = run_packed(folder, "status", path=str(empty))
    assert result.returncode == 2 and "--python PATH" in result.stderr
    start = "import subprocess, sys; sys.exit(subprocess.call(['sh', 'run.sh', '--help']))"
    raylet = [sys.executable, "-c", start, f"--python_worker_command={sys.executable} worker.py"]
    ray_has_one = subprocess.run(
        raylet, cwd=folder, env={"PATH": f"{empty}:/usr/bin:/bin"}, capture_output=True, check=False
    )
    assert ray_has_one.returncode == 0 and b"Usage" in ray_has_one.stdout
    named = run_packed(folder, "--help", path=str(empty), TOKENPOOL_PYTHON=sys.executable)
    assert named.returncode == 0


def test_bad_input_ends_in_one_line(tmp_path):
    nobody = ["--address", "http://127.0.0.1:9"]
    said = {
        ("logs", "x"): "no search named x",
        ("logs", "x", *nobody): "nothing answers",
        ("status", "x", *nobody): "nothing answers",
        ("stop", "x", *nobody): "nothing answers",
        ("front", "x", "--address", "ray://127.0.0.1:9"): "not the address of a dashboard",
    }
    assert_refused(said.keys(), *said.values(), cwd=tmp_path)


def test_a_connection_that_breaks_is_made_again_and_nothing_is_shown_twice(monkeypatch):
    connections = [["Running entrypoint for job j\n", "one\n", "tw"], [], None]

    class Client:
        async def tail_job_logs(self, job_id):
            now = connections.pop(0)
            for chunk in ["Running entrypoint for job j\none\n", "two\n"] if now is None else now:
                yield chunk
            if now is not None:
                raise RuntimeError("the connection broke")

    states = ["RUNNING", "RUNNING", "SUCCEEDED"]
    api = object.__new__(JobApi)
    api.url, api._client = "http://head:8265", Client()
    monkeypatch.setattr(api, "get", lambda job_id: job(states.pop(0)))
    monkeypatch.setattr("cluster.jobs._POLL_SECONDS", 0.0)
    shown = []
    assert api.follow("j", shown.append).status == "SUCCEEDED"
    assert "".join(shown) == "one\ntwo\n"


def test_a_cluster_that_is_gone_for_good_ends_the_following(monkeypatch):
    class Client:
        async def tail_job_logs(self, job_id):
            raise RuntimeError("gone")
            yield

    def get(job_id):
        raise ClusterError("http://head:8265 does not answer any more")

    api = object.__new__(JobApi)
    api.url, api._client = "http://head:8265", Client()
    monkeypatch.setattr(api, "get", get)
    monkeypatch.setattr("cluster.jobs._POLL_SECONDS", 0.0)
    with pytest.raises(ClusterError, match="does not answer any more"):
        api.follow("j", print)


def job(status):
    return Job("j", "s", "hash", "/shared", status, 0 if status == "SUCCEEDED" else None, "")


def test_what_is_submitted_holds_the_config_the_code_and_no_secret(tmp_path, monkeypatch):
    secrets = {"AWS_SECRET_ACCESS_KEY": "h0nEst-Abe", "MLFLOW_TRACKING_PASSWORD": "swordf1sh"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:swordf1sh@mlflow.example.org")
    preset = Path(__file__).parents[2] / "tune_spaces/presets/digits.yaml"
    config = load_config(preset, ["storage=/shared/runs", "data.path=/shared/digits"])
    received = []
    with web(dashboard(ray.__version__), received) as url:
        job_id, new = Remote(url, allow_open=True).submit(config)
        assert new and job_id == "tokenpool-digits-1"
    (_, package), (_, body) = received
    request = json.loads(body)
    assert request["submission_id"] == "tokenpool-digits-1"
    assert "sh run.sh search search.yaml --address auto" in request["entrypoint"]
    assert request["metadata"] == {
        "tokenpool.search": "digits",
        "tokenpool.config": config.config_hash(),
        "tokenpool.storage": "/shared/runs",
    }
    assert request["runtime_env"].keys() <= {"working_dir", "_ray_commit"}
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    assert "pipelines/cli.py" in content
    assert load_config_text(content["search.yaml"], tmp_path) == config
    for text in (body, *content.values()):
        assert not any(value.encode() in text for value in secrets.values())


def load_config_text(text, folder):
    (folder / "search.yaml").write_bytes(text)
    return load_config(folder / "search.yaml")


@pytest.mark.parametrize("key", ["storage", "data.path"])
def test_a_folder_that_means_another_one_elsewhere_is_refused(key):
    preset = Path(__file__).parents[2] / "tune_spaces/presets/digits.yaml"
    paths = {"storage": "/shared/runs", "data.path": "/shared/digits"} | {key: "runs/here"}
    config = load_config(preset, [f"{name}={path}" for name, path in paths.items()])
    with web(dashboard(ray.__version__)) as url:
        remote = Remote(url, allow_open=True)
        with pytest.raises(UserError, match=f"{key} runs/here means another folder"):
            remote.submit(config)
