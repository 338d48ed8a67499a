"""The search within a bound, on made damages whose best shape is known."""

import numpy as np
import pytest

import tokenpool as tp
from pipelines.squeeze.within_bound import SqueezeOptions, look_within
from tokenpool import Schedule
from tune_spaces.image_halving import ImageHalving, looks_of
from tune_spaces.shapes import shapes
from tune_spaces.space import ScheduleSpace

DEPTH, PATCHES, IMAGES = 8, 64, 256
SPEC = tp.vit_spec(tp.build_vit(64, 8, 24, DEPTH, 3, 10))
# The share of what is dropped that the layers should drop.
IDEAL = np.array([0.25, 0.05, 0.15, 0.05, 0.2, 0.02, 0.08, 0.2])
HARD = np.random.default_rng(7).exponential(size=IMAGES)


def make_space(share=0.4):
    def cost(width, schedule):
        return tp.vit_macs(SPEC, schedule, "leader").gmacs

    dense = cost(24, Schedule.dense(DEPTH, PATCHES))
    return ScheduleSpace(DEPTH, PATCHES, [24], cost, max_gmacs=share * dense)


def truth(schedule):
    rates = -np.diff(np.log([PATCHES, *schedule]))
    return 0.05 + 2 * float(((rates / rates.sum() - IDEAL) ** 2).sum()) + rates.sum() / 100


def on_images(schedule):
    """Some images are hard for all schedules, and each schedule is lucky with some."""
    luck = np.random.default_rng([PATCHES, *schedule]).normal(size=IMAGES)
    return truth(schedule) * HARD * np.exp(0.4 * luck)


def play(space=None, schedules=120, seed=0, images=IMAGES, planned=(), damage=on_images):
    """What was found, and what was asked: schedules, first image, one after the last."""
    space, asked = space or make_space(), []

    def see(candidates, start, stop):
        schedules = [tuple(c.schedule) for c in candidates]
        asked.append((schedules, start, stop))
        return [damage(s)[start:stop].mean() for s in schedules]

    options = SqueezeOptions(space.max_gmacs, schedules=schedules, images=images, seed=seed)
    return look_within(space, options, planned, images, see), asked


@pytest.mark.parametrize("seed", [0, 1])
def test_it_gets_nearer_to_the_best_shape_than_every_start_and_chance(seed):
    space = make_space()
    rows, _ = play(space, seed=seed)
    best = truth(tuple(rows[0].candidate.schedule))
    starts = shapes(DEPTH, PATCHES, lambda s: space.cost(24, s), space.max_gmacs)
    rng = np.random.default_rng(seed)
    near = [c for c in space.sample(rng, 400) if c.gmacs > 0.8 * space.max_gmacs][:120]
    floor = 0.05
    known = min(truth(tuple(s)) for s in starts.values())
    assert best - floor < 0.6 * (known - floor)
    assert best < min(truth(tuple(c.schedule)) for c in near)


def test_no_schedule_is_dearer_than_the_bound_and_the_search_spends_it():
    space = make_space()
    _, asked = play(space)
    seen = {s for schedules, *_ in asked for s in schedules}
    costs = [space.cost(24, Schedule(s)) for s in seen]
    assert len(seen) == 120 and max(costs) <= space.max_gmacs
    # But for the four of the end, which are the best one's shape at less cost.
    assert sum(cost < 0.97 * space.max_gmacs for cost in costs) == 4
    *_, (cheaper, *_), (complete, *_) = asked
    shares = [space.cost(24, Schedule(s)) / space.max_gmacs for s in cheaper]
    assert shares == pytest.approx([0.95, 0.9, 0.8, 0.7], abs=0.03)
    assert complete == cheaper


def test_the_same_answers_make_the_same_questions():
    """As a run that was stopped and is repeated needs it."""
    assert play(schedules=40, seed=3) == play(schedules=40, seed=3)
    assert play(schedules=40, seed=3) != play(schedules=40, seed=4)


def test_few_are_seen_on_all_images_and_the_best_of_them_comes_first():
    rows, asked = play()
    assert sum(len(schedules) * (stop - start) for schedules, start, stop in asked) < (
        0.55 * 120 * IMAGES
    )
    assert [row.loss for row in rows] == sorted(row.loss for row in rows)
    for row in rows:
        assert row.loss == pytest.approx(on_images(tuple(row.candidate.schedule)).mean())


def test_of_who_was_seen_on_few_what_all_would_have_said():
    space = make_space()
    candidates = list({c.key: c for c in space.sample(np.random.default_rng(0), 60)}.values())

    def see(some, start, stop):
        return [on_images(tuple(c.schedule))[start:stop].mean() for c in some]

    rows = ImageHalving(IMAGES, see).judge(candidates)
    others = [row for row in rows if not row.whole]
    assert len(others) == len(rows) - round(len(rows) / 3)
    ratio = np.mean([r.loss / on_images(tuple(r.candidate.schedule)).mean() for r in others])
    # Not what 64 images said, which may be easy ones.
    assert ratio == pytest.approx(1, abs=0.1)
    assert not np.isclose(HARD[:64].mean() / HARD.mean(), 1, atol=0.02)


def test_the_plan_is_looked_at_first_and_at_the_bound():
    space = make_space()
    planned = space.candidate(24, (40, 30, 22, 14, 10, 7, 5, 2))
    _, [(first, *_), *_] = play(space, planned=[planned])
    drops = [np.diff(np.log([PATCHES, *s])) for s in first]
    wanted = np.diff(np.log([PATCHES, *planned.schedule]))
    cosine = [d @ wanted / np.linalg.norm(d) / np.linalg.norm(wanted) for d in drops]
    assert max(cosine[:2]) > 0.99


def test_looks_grow_fourfold_from_a_sample():
    assert looks_of(10) == [10] and looks_of(255) == [255]
    assert looks_of(256) == [64, 256] and looks_of(2048) == [128, 512, 2048]


def test_a_space_of_few_schedules_is_searched_and_ends():
    spec = tp.vit_spec(tp.build_vit(16, 8, 24, 2, 3, 10))  # four patches, two layers

    def cost(width, schedule):
        return tp.vit_macs(spec, schedule, "leader").gmacs

    space = ScheduleSpace(2, 4, [24], cost, max_gmacs=0.8 * cost(24, Schedule.dense(2, 4)))
    rows, asked = play(
        space, schedules=50, images=8, damage=lambda s: np.full(8, 1 / sum(s), dtype=np.float64)
    )
    seen = [s for schedules, *_ in asked for s in schedules]
    assert rows and len(seen) == len(set(seen)) <= 15
