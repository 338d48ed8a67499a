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


def screen(space, kill_after=None, wanted=40):
    """Screens to the end; with `kill_after`, every so many scores the rest of a batch is lost."""
    screened = []
    while len(screened) < wanted:
        batch = due(space, screened, 7, wanted, 4)
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
