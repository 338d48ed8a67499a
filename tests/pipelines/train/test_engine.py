import pytest
import torch.distributed as dist
from torch import nn

from pipelines.config import TrainConfig
from pipelines.errors import UserError
from pipelines.train.engine import make_engine


def test_no_compiler_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    with pytest.raises(UserError, match=r"no C\+\+ compiler \(no-such-compiler\).*install g\+\+"):
        make_engine(nn.Linear(2, 2), TrainConfig(batch_size=4), world_size=1)
