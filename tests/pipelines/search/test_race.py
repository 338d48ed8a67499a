"""Racing against scoring everything on all images, by brute force."""

import numpy as np
import pytest

from pipelines.search.race import BLOCK, Racer, images_seen
from pipelines.search.stages.screen_stage import best_of
from pipelines.search.state_records import candidate_of
from tokenpool import Schedule
from tune_spaces.candidate import Untrained
from tune_spaces.racing import looks
from tune_spaces.space import Candidate

IMAGES = 2000


def make_set(seed, count=192, images=IMAGES, widths=(64, 96)):
    """Candidates and their losses on each image, as screening has them.

    Measured on digits (240 schedules of a trained model, 287 images): the mean loss over images
    falls with the cost and lies up to a few tenths of a nat above the front; differences of two
    schedules have most of their size on few images, hard ones for all.
    """
    rng = np.random.default_rng(seed)
    hard = rng.gamma(0.25, 4.0, images)  # of an image: most are easy, few are very hard
    candidates, losses = [], []
    for index in range(count):
        width = widths[index % len(widths)]
        keep = rng.uniform(0.1, 0.9)
        worse = rng.exponential(0.15) * (rng.random() < 0.8)  # the rest is as good as can be
        level = 0.1 + 0.3 * (1 - keep) ** 2 + worse
        own = hard * level * rng.lognormal(0.0, 0.3, images) + rng.gamma(0.1, 0.1, images)
        tokens = int(keep * 4000) + index
        candidates.append(Candidate(width, Schedule((tokens, tokens)), keep * width / 96, "m"))
        losses.append(own.astype(np.float32))
    return candidates, dict(zip([c.key for c in candidates], losses, strict=True))


def race(candidates, losses, *, order=None, block=BLOCK, images=IMAGES, log=None, **settings):
    """All candidates through a racer, block after block."""
    order = np.arange(images) if order is None else order

    def evaluate(some, start, stop):
        if log is not None:
            log.append(len(some) * (stop - start))
        mine = [losses[c.key][order[start:stop]] for c in some]
        return [(loss, loss < 0.5) for loss in mine]

    racer, rows = Racer(evaluate, images, **settings), []
    for start in range(0, len(candidates), block):
        rows += racer.score(candidates[start : start + block], rows)
    return rows


def front(candidates, losses):
    """Keys of what no other of its width beats at no more cost, by trying everything."""
    mean = {key: loss.mean(dtype=np.float64) for key, loss in losses.items()}
    return {
        c.key
        for c in candidates
        if not any(
            o.width == c.width and o.gmacs <= c.gmacs and mean[o.key] < mean[c.key]
            for o in candidates
        )
    }


def complete(rows):
    return {row.candidate.key for row in rows if row.whole}


def test_the_front_survives_and_most_of_the_work_is_saved():
    """Over many orders of the images: what is dropped was dominated, to the last one."""
    rng = np.random.default_rng(0)
    saved = []
    for seed in range(8):
        candidates, losses = make_set(seed)
        true = front(candidates, losses)
        for _ in range(2):
            log = []
            rows = race(candidates, losses, order=rng.permutation(IMAGES), log=log)
            assert true <= complete(rows)
            assert sum(log) == pytest.approx(images_seen(rows, IMAGES) * IMAGES * len(rows))
            saved.append(1 - sum(log) / (IMAGES * len(rows)))
    assert np.mean(saved) > 0.4


def test_with_a_tolerance_no_more_than_that_is_lost_and_more_work_is_saved():
    candidates, losses = make_set(3)
    exact = race(candidates, losses)
    rows = race(candidates, losses, tolerance=0.01)
    assert images_seen(rows, IMAGES) < images_seen(exact, IMAGES)
    mean = {key: float(loss.mean(dtype=np.float64)) for key, loss in losses.items()}
    kept = [c for c in candidates if c.key in complete(rows)]
    for best in (c for c in candidates if c.key in front(candidates, losses)):
        rivals = [k for k in kept if k.width == best.width and k.gmacs <= best.gmacs]
        assert min(mean[k.key] for k in rivals) <= mean[best.key] + 0.01


def test_a_rule_that_errs_would_be_seen():
    """Equal candidates of rising cost: whoever is dropped is dropped by chance alone."""
    rng = np.random.default_rng(1)
    families = 0
    for _ in range(40):
        hard = rng.gamma(0.3, 3.0, 800)
        losses, candidates = {}, []
        for index in range(24):
            own = (hard * rng.lognormal(0, 0.5, 800)).astype(np.float32)
            own += np.float32(1.0) - own.mean(dtype=np.float64).astype(np.float32)
            candidates.append(Candidate(8, Schedule((100 + index,)), 0.1 + 0.01 * index, "m"))
            losses[candidates[-1].key] = own
        rows = race(candidates, losses, images=800)
        families += any(row.images is not None for row in rows)
    assert families <= 4  # 5 % of 40 are 2


def test_estimates_of_the_dropped_are_near_the_truth():
    candidates, losses = make_set(5)
    rows = race(candidates, losses)
    dropped = [row for row in rows if row.images is not None]
    assert len(dropped) > 50 and {row.images for row in dropped} < set(looks(IMAGES))
    true = np.array([losses[r.candidate.key].mean() for r in dropped])
    found = np.array([row.loss for row in dropped])
    plain = np.array([losses[r.candidate.key][: r.images].mean() for r in dropped])
    assert np.abs(found - true).mean() < 0.5 * np.abs(plain - true).mean()
    assert np.corrcoef(found, true)[0, 1] > 0.98
    assert all(0 <= row.top1 <= 1 for row in rows)


def test_those_scored_on_all_images_have_their_plain_scores():
    candidates, losses = make_set(6, count=40)
    for row in race(candidates, losses, racing=False):
        own = losses[row.candidate.key]
        assert row.images is None and row.loss == pytest.approx(own.mean(dtype=np.float64))
        assert row.top1 == pytest.approx((own < 0.5).mean())


def test_a_search_that_is_resumed_races_on_as_if_nothing_had_happened():
    candidates, losses = make_set(7, count=96)
    straight = race(candidates, losses, block=32, tolerance=0.005)
    rows = []
    for start in range(0, 96, 32):  # a racer of its own for each block knows the ledger alone
        part = candidates[start : start + 32]

        def evaluate(some, first, last):
            mine = [losses[c.key][first:last] for c in some]
            return [(loss, loss < 0.5) for loss in mine]

        rows += Racer(evaluate, IMAGES, tolerance=0.005).score(part, rows)
    assert rows == straight


def test_the_dropped_are_chosen_last():
    rows = [
        Untrained(candidate_of(8, (k,), 0.1 * k, "m"), 0.5, 1 / k, images)
        for k, images in ((1, None), (2, 32), (3, None), (4, 32))
    ]
    chosen = [entry.candidate.schedule[0] for entry in best_of(rows, 3)]
    assert chosen[:2] == [1, 3] and len(chosen) == 3
    assert [e.candidate.schedule[0] for e in best_of(rows, 2)] == [1, 3]
