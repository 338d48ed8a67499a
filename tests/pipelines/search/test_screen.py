import pytest

from pipelines.search.stages.screen import due
from pipelines.search.state import ScreenedSchedule
from tune_spaces.space import ScheduleSpace


def make_space(depth=4, patches=16):
    return ScheduleSpace(depth, patches, [8, 16], lambda width, s: width * (patches + sum(s)) / 1e3)


def score(candidate):
    loss = 10.0 / candidate.width + 1.0 / sum(candidate.schedule)
    return ScreenedSchedule(
        candidate.width, tuple(candidate.schedule), candidate.gmacs, 1 / (1 + loss), loss
    )


def screen(space, kill_after=None, wanted=40, planned=()):
    """Screens to the end; with `kill_after`, every so many scores the rest of a batch is lost."""
    screened = []
    while len(screened) < wanted:
        batch = due(space, screened, 7, wanted, 4, planned)
        if not batch:
            break
        screened += [score(candidate) for candidate in batch[:kill_after]]
    return screened


@pytest.mark.parametrize("kill_after", [1, 3, 7])
def test_killed_in_the_midst_of_generations_it_scores_the_same_schedules(kill_after):
    straight = screen(make_space())
    assert len(straight) == 40
    assert screen(make_space(), kill_after) == straight


def test_a_small_space_is_scored_once_and_ends():
    space = make_space(depth=1, patches=3)
    screened = screen(space)
    keys = [(row.width, row.schedule) for row in screened]
    assert len(set(keys)) == len(keys) <= 6


def test_what_was_planned_is_scored_first():
    space = make_space()
    planned = [space.candidate(8, (12, 8, 4, 2)), space.candidate(16, (9, 9, 1, 1))]
    screened = screen(space, planned=planned)
    assert [(row.width, row.schedule, row.method) for row in screened[:2]] == [
        c.key for c in planned
    ]
    assert len(screened) == 40
    assert screen(space, 1, planned=planned) == screened
