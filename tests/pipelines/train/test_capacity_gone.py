"""A cluster that loses its only host for good: a job waits, says so, and ends in order.

Slow: two Ray hosts share this machine's cores, and the job starts three times.
"""

import os
import shutil
from pathlib import Path

import pytest
import test_multi_node
from gang import run_gang, train_as_torchrun_does
from hosts import need_namespaces, ray_hosts
from test_multi_node import Run, goes_on

from pipelines.data.prepare import prepare
from pipelines.train.job_folder import PathFolder

CHAOS = Path(__file__).parents[2] / "chaos"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault("capacity that does not come back")
def test_it_is_waited_for_and_then_the_job_ends_in_order(tmp_path, told):
    need_namespaces()
    prepare("digits", tmp_path / "digits")
    path = test_multi_node.config(tmp_path, "straight", workers=2)
    assert run_gang(2, train_as_torchrun_does, path) == [0] * 2
    rows = PathFolder(tmp_path / "runs" / "trains" / "straight").reports()
    straight = {row.epoch: (row.loss, row.top1_minival) for row in rows}
    (tmp_path / "hooks").mkdir()
    shutil.copy(CHAOS / "hooks.py", tmp_path / "hooks" / "sitecustomize.py")
    hasty = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "hooks"), os.environ.get("PYTHONPATH", "")]),
        "TOKENPOOL_PATIENCE": "40",  # in place of half an hour
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "5",
    }
    with ray_hosts(1, cpus=2, environment=hasty) as hosts:
        run = Run(hosts, tmp_path, "gone", workers=2)
        before = run.wait_for_epochs(2)
        assert run.is_under_way()
        hosts.kill(1)
        line = run.wait_for_line("waits for room on the cluster")
        assert "gone (2 workers of 0.9 CPU)" in line and "the cluster is too small now" in line
        assert run.process.wait(300) == 1
        text = run.log.read_text()
        assert "training gone failed: gone (2 workers of 0.9 CPU): there was no room" in text
        assert "look at the cluster, and type the same command" in text and "Traceback" not in text
        assert text.count("waits for room") == 1
        # It comes back after all.
        hosts.start_ray(1)
        run.type()
        goes_on(run, before, straight)
    told("capacity that does not come back", 0)
