"""An object store that answers 503 amid a training: it goes on, and nothing is lost."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from stores import BUCKET, for_a_while, in_trouble, s3_server

from pipelines.data.prepare import prepare

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
EPOCHS = 6
CONFIG = {
    "name": "job",
    "storage": f"s3://{BUCKET}/runs",
    "data": {"path": "digits", "image_size": 32},
    "model": {"patch_size": 8, "depth": 2},
    "width": {"width": 16, "heads": 2},
    "workers": {"num_workers": 1, "cpus_per_worker": 0.9, "max_failures": 0},
    "train": {"epochs": EPOCHS, "batch_size": 32, "lr": 0.003, "warmup_epochs": 0.5},
}


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.fault("object store answering 503 amid a training")
def test_a_training_waits_for_its_store(tmp_path, monkeypatch, told):
    """Slow, as what waits and tries again starts a job's processes anew."""
    prepare("digits", tmp_path / "digits")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(CONFIG))
    with s3_server() as server:
        trouble = in_trouble(monkeypatch)
        environment = os.environ | server.environment | {"TOKENPOOL_CACHE": str(tmp_path / "cache")}
        with (tmp_path / "log").open("w") as log:
            command = subprocess.Popen(
                [TOKENPOOL, "train", "job.yaml"],
                cwd=tmp_path, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            said = (tmp_path / "log").read_text
            deadline = time.monotonic() + 500
            while "epoch 2/" not in said():
                assert command.poll() is None and time.monotonic() < deadline, said()
                time.sleep(0.1)
            with for_a_while(trouble, "503", 90):
                while trouble.kind is not None:
                    assert command.poll() is None, said()
                    time.sleep(0.1)
            begun = time.monotonic()
            assert trouble.hits > 3
            assert command.wait(600) == 0, said()
        finally:
            command.kill()
        assert "Traceback" not in said() and "(restart" not in said(), said()
        epochs = re.findall(r"epoch (\d)/6 ", said())
        assert sorted(set(epochs)) == [str(n + 1) for n in range(EPOCHS)]
        names = server.names("runs/trains/job/epoch-0006")
        assert any(name.endswith("model.safetensors") for name in names)
        told("object store answering 503 amid a training", 0, seconds=time.monotonic() - begun)
