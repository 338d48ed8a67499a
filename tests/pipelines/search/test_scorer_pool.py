"""Actors that die under their work, without Ray: calls are answered at once or raise."""

from types import SimpleNamespace

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from pipelines.errors import UserError
from pipelines.search.stages import scorer_pool
from pipelines.search.stages.scorer_pool import ScorerPool

MEMORY = "Memory on the node (IP: 10.0.0.7, ID: 3f) was 30.4GB used / 32.0GB limit (0.95)"
DIED = RayActorError(error_msg="The actor died: its worker process has died.")
TAKEN = RayActorError(error_msg="its node died", preempted=True)


class Reference:
    """Of a call; what it comes to."""

    def __init__(self, value):
        self.value = value


def get(reference):
    if isinstance(reference.value, Exception):
        raise reference.value
    return reference.value


@pytest.fixture
def pool(monkeypatch):
    killed = []
    fake = SimpleNamespace(wait=lambda refs, **_: (refs, []), get=get, kill=killed.append)
    monkeypatch.setattr(scorer_pool, "ray", fake)
    made, told = iter(range(100)), []
    pool = ScorerPool(
        lambda: next(made), 2, "screen", None, lambda who, line: told.append((who, line))
    )
    pool.told, pool.killed = told, killed
    return pool


def failing(*errors):
    """Work whose task 1 fails so, and is done by whoever is asked then."""
    left = list(errors)

    def submit(actor, task):
        return Reference(left.pop(0) if task == 1 and left else (actor, 10 * task))

    return submit


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (DIED, "it died: The actor died: its worker process has died."),
        (OutOfMemoryError(MEMORY), "out of memory on the host, so that Ray ended one of its"),
    ],
)
@pytest.mark.fault("scorer killed, or ended where memory ran out")
def test_its_work_is_done_again_by_another(pool, error, says):
    found = list(pool.map(failing(error, error), range(4)))
    assert [value for _, value in found] == [0, 10, 20, 30]
    assert len(pool.told) == 2 and len(pool.killed) == 2
    for who, line in pool.told:
        assert who.startswith("scorer-") and says in line
        assert line.endswith(": it is replaced, and its work done again")


def test_work_that_ends_whoever_does_it_ends_the_stage_in_one_line(pool):
    with pytest.raises(UserError, match=r"the same work failed 3 times.*on 10\.0\.0\.7") as raised:
        list(pool.map(failing(*[OutOfMemoryError(MEMORY)] * 9), range(4)))
    assert "\n" not in str(raised.value) and "type the same command" in str(raised.value)


def test_a_machine_that_is_taken_away_is_not_held_against_the_work(pool):
    assert len(list(pool.map(failing(*[TAKEN] * 9), range(4)))) == 4
    assert len(pool.told) == 9
