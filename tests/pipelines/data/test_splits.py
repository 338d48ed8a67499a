"""Stratified splits."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.manifest import SPLITS
from pipelines.data.splits import assign_splits, stratified_pick


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=300), st.floats(0.01, 0.9), st.integers(0, 9)
)
def test_each_class_gives_its_share_and_keeps_something(labels, fraction, seed):
    labels = np.array(labels)
    picked = stratified_pick(labels, fraction, np.random.default_rng(seed))
    for label in np.unique(labels):
        count, taken = (labels == label).sum(), picked[labels == label].sum()
        assert abs(taken - count * fraction) <= 1
        assert taken < count or (count == 1 and fraction >= 0.5)
        assert taken >= 1 or count == 1


def test_a_declared_val_split_is_kept_and_minival_comes_from_training():
    labels = np.tile(np.arange(4), 25)
    codes = assign_splits(np.arange(100) >= 80, labels, val=0.5, minival=0.1, seed=0)
    splits = np.array(SPLITS)[codes]
    assert (splits[80:] == "val").all()
    assert (splits[:80] == "minival").sum() == 8 and (splits[:80] == "train").sum() == 72


def test_splits_depend_on_the_seed_alone():
    declared, labels = np.zeros(200, bool), np.tile(np.arange(4), 50)
    first = assign_splits(declared, labels, val=0.2, minival=0.1, seed=1)
    assert (first == assign_splits(declared, labels, val=0.2, minival=0.1, seed=1)).all()
    assert (first != assign_splits(declared, labels, val=0.2, minival=0.1, seed=2)).any()
