"""Shards made on a Ray cluster."""

import pytest

from pipelines.data.options import PrepareOptions
from pipelines.data.prepare import prepare
from pipelines.errors import UserError

OPTIONS = PrepareOptions(count=1200, size=24, workers=1)


def tree(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.slow  # starts a Ray cluster of its own
def test_a_cluster_writes_the_same_bytes_as_this_process(tmp_path):
    from cluster.session import ray_session

    prepare("glyphs", tmp_path / "here", OPTIONS)
    with ray_session(num_cpus=2) as cluster:
        options = OPTIONS.model_copy(update={"address": cluster.address})
        prepare("glyphs", tmp_path / "there", options)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")


def test_no_cluster_at_the_address_ends_in_one_line(tmp_path):
    options = OPTIONS.model_copy(update={"address": "127.0.0.1:1"})
    with pytest.raises(UserError, match=r"no Ray cluster answers at 127.0.0.1:1") as caught:
        prepare("glyphs", tmp_path / "out", options)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
