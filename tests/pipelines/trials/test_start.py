"""What a job's processes do not import: each trial waits for it (benchmarks/train/start.py)."""

import gc
import subprocess
import sys

import pytest
from small_jobs import small_job

from cluster.interfaces import interface_of, use_interface_of
from pipelines.config import TrainConfig, WorkersConfig
from pipelines.train.imports import without_collector


def fresh(code, *arguments):
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_the_driver_of_a_trial_does_not_import_torch(tmp_path):
    workers = WorkersConfig(num_workers=2)
    job = small_job(tmp_path, tmp_path, "j", workers, TrainConfig(), width=32, depth=2)
    code = """
import sys
import ray.tune.integration.ray_train as integration
from pipelines.trials import ray_job, run_trials as trials
from ray.train import UserCallback
import cluster.capacity
from cluster.placement import Node
cluster.capacity.present_nodes = lambda: [Node("n", 4.0)]  # no Ray runs here
integration.TuneReportCallback = UserCallback  # its own can be made within a trial only
ray_job._reports = lambda: None  # so can this
ray_job._make_trainer(ray_job.TrainJob.model_validate_json(sys.argv[1]))
print(*{"torch", "timm", "deepspeed", "mlflow", "ray"} & set(sys.modules))
"""
    assert fresh(code, job.model_dump_json()) == ["ray"]


def test_deepspeed_comes_without_mlflow_which_can_still_be_imported_after_it():
    code = """
import os, sys
os.environ["DS_ACCELERATOR"] = "cpu"
from pipelines.train.imports import import_deepspeed
deepspeed = import_deepspeed()
print(deepspeed.initialize.__name__, "mlflow" in sys.modules)
import mlflow
print(mlflow.__name__, import_deepspeed() is deepspeed)
"""
    assert fresh(code)[-4:] == ["initialize", "False", "mlflow", "True"]


def test_the_interface_is_the_one_that_has_the_address(monkeypatch):
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None  # kept for documentation: nobody has it
    environment = {}
    monkeypatch.setattr("cluster.interfaces.os.environ", environment)
    use_interface_of("203.0.113.7")
    assert environment == {}
    use_interface_of("127.0.0.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "lo"}


def test_what_the_user_has_chosen_stays(monkeypatch):
    environment = {"GLOO_SOCKET_IFNAME": "eth7", "NCCL_SOCKET_IFNAME": "eth7"}
    monkeypatch.setattr("cluster.interfaces.os.environ", environment)
    monkeypatch.setattr("cluster.interfaces.interface_of", lambda address: "net0")
    use_interface_of("10.0.0.1")
    assert set(environment.values()) == {"eth7"}
    environment.clear()
    use_interface_of("10.0.0.1")
    assert environment == {"GLOO_SOCKET_IFNAME": "net0", "NCCL_SOCKET_IFNAME": "=net0"}


def test_the_collector_rests_while_modules_are_imported_and_then_goes_on():
    assert gc.isenabled()
    with without_collector():
        assert not gc.isenabled()
        with without_collector():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), without_collector():
        raise ImportError
    assert gc.isenabled()
