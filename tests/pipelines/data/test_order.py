"""Orders and shards."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.order import eval_order, train_order


@given(st.integers(8, 500), st.sampled_from([4, 8]), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_shows_each_sample_at_most_once_and_drops_less_than_a_batch(n, batch, seed, epoch):
    rows = train_order(n, global_batch=batch, seed=seed, epoch=epoch)
    flat = rows.ravel()
    assert len(np.unique(flat)) == len(flat) == n // batch * batch
    assert flat.min() >= 0 and flat.max() < n


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return train_order(1000, global_batch=10, seed=seed, epoch=epoch)

    np.testing.assert_array_equal(order(3, 4), order(3, 4))
    assert (order(3, 4) != order(3, 5)).any() and (order(3, 4) != order(4, 4)).any()


def test_repeats_come_side_by_side_and_leave_the_length():
    rows = train_order(90, global_batch=9, seed=0, epoch=0, repeats=3)
    triples = rows.reshape(-1, 3)
    assert (triples == triples[:, :1]).all()
    assert len(np.unique(rows)) == 30


def test_too_few_samples_for_one_batch():
    with pytest.raises(ValueError, match="5 training samples do not fill one global batch of 8"):
        train_order(5, global_batch=8, seed=0, epoch=0)


@given(st.integers(1, 200), st.integers(1, 7), st.integers(1, 5))
def test_evaluation_sees_each_sample_exactly_once_over_all_ranks(n, batch, world):
    seen = [
        i
        for rank in range(world)
        for part in eval_order(n, batch_size=batch, rank=rank, world_size=world)
        for i in part
    ]
    assert sorted(seen) == list(range(n))
