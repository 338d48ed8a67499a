"""Latency is measured on one type of GPU, which is declared where there are several."""

from types import SimpleNamespace

import pytest

from cluster.capacity import jobs_that_fit
from cluster.placement import Gang, Node
from cluster.probe import ClusterError
from pipelines.config import PublishStageConfig, ScreenStageConfig
from pipelines.errors import UserError
from pipelines.search.stages.timed import timed_gang

MIXED = [Node("a", 8, 4, "A100"), Node("b", 8, 4, "H100"), Node("c", 64)]


def context(nodes, gpus=0.25, accelerator=None):
    return SimpleNamespace(
        config=SimpleNamespace(
            screen=ScreenStageConfig(cpus_per_actor=2.0, gpus_per_actor=gpus),
            publish=PublishStageConfig(accelerator=accelerator),
        ),
        cluster=SimpleNamespace(nodes=lambda: nodes),
        fits=lambda *gang: jobs_that_fit(nodes, Gang(*gang)),
    )


def test_of_several_types_one_must_be_declared():
    with pytest.raises(UserError, match=r"several types \(A100, H100\).*publish.accelerator=A100"):
        timed_gang(context(MIXED))
    assert timed_gang(context(MIXED, accelerator="H100")) == Gang(1, 2.0, 1.0, "H100")
    with pytest.raises(ClusterError, match="type L4"):
        timed_gang(context(MIXED, accelerator="L4"))


def test_the_only_type_is_kept_to_and_cpus_have_none():
    assert timed_gang(context(MIXED[:1])) == Gang(1, 2.0, 1.0, "A100")
    assert timed_gang(context([Node("a", 8, 4)])) == Gang(1, 2.0, 1.0)  # Ray knows no name
    assert timed_gang(context(MIXED, gpus=0.0)) == Gang(1, 2.0)
