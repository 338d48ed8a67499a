"""Each name of Ray's that is not promised is there, and nobody but one module asks for one."""

import re
from pathlib import Path

import pytest

from cluster import ray_private

ROOT = Path(__file__).parents[2]
PRIVATE = re.compile(
    r"from ray(\.\w+)*(\._\w+|\.v2|\.generated|\.tune\.execution|\.dashboard)(\.\w+)* import"
    r"|import ray(\.\w+)*\._"
)


@pytest.mark.parametrize("name", sorted(ray_private.PLACES))
def test_ray_has_it(name):
    assert getattr(ray_private, name) is not None


def test_what_ray_never_had_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no Nonsense"):
        _ = ray_private.Nonsense


def test_only_one_module_asks_for_them():
    for line in (
        "    from ray.train.v2._internal.callbacks import DatasetsCallback",
        "from ray._private import services",
        "from ray.tune.execution import class_cache",
    ):
        assert PRIVATE.search(line)
    assert not PRIVATE.search("from ray.train import TrainingFailedError")
    rooms = ("cluster", "pipelines", "tune_spaces", "benchmarks")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert not {path.name for path in files if PRIVATE.search(path.read_text())}
