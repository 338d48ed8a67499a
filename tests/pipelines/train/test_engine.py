"""The engine needs no compiler: DeepSpeed would build an operator for inference on a CPU."""

import os
import subprocess
import sys


def test_nothing_is_built(tmp_path):
    code = """
import torch
import torch.distributed as dist
from pipelines.config import TrainConfig
from pipelines.train.engine import make_engine, use_right_accelerator

dist.init_process_group("gloo")
use_right_accelerator()
model = torch.nn.Linear(3, 3)
engine = make_engine(model, TrainConfig(batch_size=4), world_size=1)
before = model.weight.detach().clone()
engine.backward(engine(torch.ones(4, 3)).square().sum())
engine.step()
assert not torch.equal(model.weight, before)
dist.destroy_process_group()
"""
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "CXX": "no-such-compiler",
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
        **{"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"},
    }
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "built").exists()
