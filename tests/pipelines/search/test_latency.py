from functools import partial

import pytest
import torch

import tokenpool as tp
from pipelines.search.latency import measure_latency


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_more_images_and_more_tokens_take_longer(tmp_path):
    model = tp.build_vit(64, 4, 64, 6, 2, 10).eval()
    dense = tp.save(model, tmp_path / "dense")
    pooled = tp.save(tp.pool(model, (1,) * 6, "grid"), tmp_path / "pooled")
    for _ in range(5):  # other processes may have the machine for a while
        slow, fast = (
            measure_latency(str(path), "cpu", (1, 8), num_threads=1, seconds=0.05)
            for path in (dense, pooled)
        )
        assert set(slow) == set(fast) == {"1", "8"}
        if slow["8"] > 1.5 * slow["1"] and slow["8"] > 1.5 * fast["8"]:
            return
    pytest.fail(f"dense {slow}, pooled {fast}")


def test_compiled_it_is_timed_too(tmp_path, monkeypatch):
    """With the compiler's front half: to write and build C++ takes it half a minute."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    path = tp.save(tp.build_vit(16, 8, 16, 1, 1, 2).eval(), tmp_path / "m")
    for compiled in (False, True):
        assert not graphs
        found = measure_latency(
            str(path), "cpu", (1, 2), num_threads=1, seconds=0.01, compiled=compiled
        )
        assert set(found) == {"1", "2"} and min(found.values()) > 0
    assert graphs
