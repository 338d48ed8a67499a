"""Runs within namespaces of its own (see test_autoscaler.py): trials on a cluster that grows.

    python autoscaling.py v1|v2

Everything is the product's (placement, what is asked of the autoscaler, Tune, Ray Train and its
restarts) but for what a worker computes: it waits, and keeps the number of its epoch as checkpoint.
Prints one JSON object of what was seen.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray
from cloud import COMMON, GCS, HEAD, ID, RAY, take_away

from cluster.capacity import Room, grows_to, nodes_on_their_way, present_nodes
from cluster.placement import Gang, fit
from cluster.session import ray_session
from pipelines.config import DataConfig, TrainConfig, WorkersConfig
from pipelines.models.model_spec import ModelSpec
from pipelines.train.spec import TrainJob
from pipelines.trials import run_trials as trials
from pipelines.trials.ray_job import gang_of

WORKERS = WorkersConfig(num_workers=1, cpus_per_worker=2)  # one job fills a machine
TRIALS, EPOCHS, MOST = 4, 3, 3


def start_head(kind, folder):
    """A head without CPUs, one machine of two, and an autoscaler that may bring two more."""
    config = {
        "cluster_name": "test",
        "max_workers": MOST,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.25,
        "provider": {
            "type": "external",
            "module": "cloud.Cloud",
            "disable_node_updaters": True,  # machines start with Ray on them
            "disable_launch_config_check": True,
        },
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "two": {
                "resources": {"CPU": 2},
                "node_config": {},
                "min_workers": 1,
                "max_workers": MOST,
            },
        },
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }
    path = Path(folder, "autoscaling.yaml")
    path.write_text(json.dumps(config))
    environment = os.environ | {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1" if kind == "v2" else "0",
        ID: HEAD,
        "RAY_NODE_TYPE_NAME": "head",
        # A machine that is gone is known to be so after two seconds, not after twenty.
        "RAY_health_check_initial_delay_ms": "1000",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    command = [RAY, "start", "--head", f"--node-ip-address={HEAD}", "--port=6379", "--num-cpus=0"]
    command += [f"--autoscaling-config={path}", "--dashboard-host=127.0.0.1", *COMMON]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def make_trainable(log):
    """`train_trial` with workers that only wait; made here it travels by value."""

    def worker(job):
        import json
        import tempfile
        import time
        from pathlib import Path

        import ray
        from ray import train

        def note(**what):
            node = ray.util.get_node_ip_address()
            with open(log, "a") as file:
                file.write(json.dumps({"job": job["job_id"], "node": node, **what}) + "\n")

        epoch, checkpoint = 0, train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                epoch = int(Path(folder, "epoch").read_text())
        note(event="began", epoch=epoch, time=time.time())
        while epoch < job["train"]["epochs"]:
            time.sleep(3)
            epoch += 1
            with tempfile.TemporaryDirectory() as aside:
                Path(aside, "epoch").write_text(str(epoch))
                checkpoint = train.Checkpoint.from_directory(aside)
                train.report({"epoch": epoch, "top1_minival": 0.5}, checkpoint=checkpoint)
        note(event="ended", epoch=epoch, time=time.time())

    def trainable(config):
        from pipelines.trials import ray_job

        ray_job.train_worker = worker
        ray_job.train_trial(config)

    return trainable


class Listener:
    """Hears the trials, and takes a machine away from one that is not the only one running."""

    def __init__(self, log):
        self.log, self.done, self.failures, self.taken = log, {}, {}, None

    def report(self, job_id, report):
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        running = {line["job"]: line["node"] for line in lines if line["event"] == "began"}
        for line in lines:
            if line["event"] == "ended":
                running.pop(line["job"], None)
        if self.taken is None and report.epoch == 1 and len(running) > 1:
            self.taken = {"job": job_id, "node": running[job_id]}
            take_away(running[job_id])

    def finished(self, job_id, report, checkpoint):
        self.done[job_id] = report.epoch

    def failed(self, job_id, reason):
        self.failures[job_id] = reason


def requests(folder):
    return [
        TrainJob(
            job_id=f"t{number}",
            storage=folder / "jobs",
            data=DataConfig(path=folder, image_size=32),
            model=ModelSpec(
                width=32, heads=2, depth=2, patch_size=8, image_size=32, num_classes=10
            ),
            train=TrainConfig(epochs=EPOCHS, warmup_epochs=0, batch_size=16),
            workers=WORKERS,
        )
        for number in range(TRIALS)
    ]


def until(condition, seconds):
    """How long it took; None where it did not come."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if condition():
            return round(time.monotonic() - start, 1)
        time.sleep(0.2)
    return None


def at_rest(gang):
    """Whether the first machine is there, and the autoscaler knows it."""
    return fit(present_nodes(), gang).jobs == 1 and not nodes_on_their_way()


def main(kind):
    gang = gang_of(WORKERS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start_head(kind, folder)
        with ray_session(GCS) as cluster:
            seen = {"first_s": until(lambda: at_rest(gang), 60)}
            assert seen["first_s"] is not None, "the first machine did not come"
            seen["too_large"] = grows_to(Gang(1, 4.0), seconds=4)
            seen["at_first"] = cluster.concurrent_jobs(1, 2.0, 0.0)
            log = folder / "workers.jsonl"
            log.touch()
            listener, room = Listener(log), Room(gang, look_every=0.5, patience=120)
            trials.train_trial = make_trainable(str(log))
            trials.run_trials(
                requests(folder),
                max_concurrent=room,
                listener=listener,
                directory=folder / "tune",
                name="growing",
            )
            room.close()
            seen |= {"done": listener.done, "failed": listener.failures, "taken": listener.taken}
            seen["workers"] = [json.loads(line) for line in log.read_text().splitlines()]
            free = ray.available_resources
            seen["free_s"] = until(
                lambda: free().get("CPU", 0) == ray.cluster_resources().get("CPU", 0), 30
            )
            seen["shrunk_s"] = until(lambda: fit(present_nodes(), gang).jobs == 1, 90)
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
