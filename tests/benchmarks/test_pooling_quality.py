"""Slow: two small models are trained, and every method pools them."""

import pytest

from benchmarks.pooling import quality


@pytest.fixture(scope="module")
def rows():
    """The paired rows of `benchmarks/pooling/quality.py`, with a shorter training."""
    train_x, train_y, test_x, test_y = quality.digits()
    found = []
    for width in (96, 64):
        model = quality.train(width, 20, train_x, train_y)
        found += quality.measure(model, test_x, test_y, draws=1)
    return [row for row in found if row["kind"] == "paired"]


@pytest.mark.slow
def test_clustering_loses_less_than_every_baseline_of_its_kind(rows):
    """30-70 % of the dense MACs, five schedules, two models, the same tokens and the same K.

    A medoid is one of the tokens and a mean is not: each is held against the baselines that keep
    tokens or average them; means, against all.
    """
    seen = set()
    for row in rows:
        if row["setting"] == "start=matching, representative=mean" or (
            row["setting"] == "start=matching"
            and ("means" in row["method"] or row["baseline"] not in ("grid", "tome"))
        ):
            assert row["error"] < row["baseline_error"], row
            seen.add((row["method"], row["baseline"], row["share"]))
    assert len(seen) == 4 * 5 * 5


@pytest.mark.slow
def test_from_the_papers_start_clustering_loses_less_than_pruning(rows):
    """Without the better start: K-Means against everything that keeps tokens."""
    ours = [
        row
        for row in rows
        if row["setting"].startswith("the paper's")
        and row["method"] in ("kmeans", "wkmeans")
        and row["baseline"] in ("powerbert", "importance", "random")
    ]
    assert len(ours) == 2 * 2 * 3 * 5
    for row in ours:
        assert row["error"] < row["baseline_error"], row
