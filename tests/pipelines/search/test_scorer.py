"""What is scored image by image, and that it comes back in order from any number of actors."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tokenpool as tp
from pipelines.config import DataConfig
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.search.race import Racer
from pipelines.search.scorer import Scorer
from pipelines.search.stages.screen_stage import _evaluate
from pipelines.search.state import SearchState
from tokenpool import Schedule
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings
from tune_spaces.space import Candidate, ScheduleSpace

METHOD = "wkmedoids"
SCHEDULES = [(16, 16, 16), (12, 8, 4), (9, 9, 2), (2, 2, 2), (16, 10, 10), (5, 4, 3)]


@pytest.fixture(scope="module")
def scorer(digits, trained):
    data = DataConfig(path=digits, image_size=32)
    return Scorer({32: str(trained)}, data, batch_size=50, num_threads=None)


@pytest.fixture(scope="module")
def truth(digits, trained):
    """Loss and whether it is right, of each image, by plain torch; sorted, as order is random."""
    manifest, model = load_manifest(digits), tp.load(trained).eval()
    loader = make_loader(digits, "minival", batch_size=64, train=False, image_size=32)
    batches = list(loader)
    loader.close()
    found = {}
    with torch.inference_mode():
        for schedule in SCHEDULES:
            tp.pool(model, schedule, METHOD)
            parts = [
                (model(normalize(images, manifest.mean, manifest.std)), labels)
                for images, labels in batches
            ]
            losses = torch.cat([F.cross_entropy(x, y, reduction="none") for x, y in parts])
            right = sum(int((x.argmax(1) == y).sum()) for x, y in parts)
            found[schedule] = np.sort(losses.numpy()), right
    return found


def test_every_image_counts_once_whatever_the_parts(scorer, truth):
    total = scorer.num_images()
    assert total == 287
    whole = scorer.image_scores(32, SCHEDULES, METHOD, 0, total)
    for schedule, (losses, right) in zip(SCHEDULES, whole, strict=True):
        expected, correct = truth[schedule]
        assert np.allclose(np.sort(losses), expected, atol=1e-4) and right.sum() == correct
    edges = [0, 36, 72, 144, total]
    parts = [scorer.image_scores(32, SCHEDULES, METHOD, a, b) for a, b in itertools.pairwise(edges)]
    for index, (losses, right) in enumerate(whole):
        joined = np.concatenate([part[index][0] for part in parts])
        assert np.allclose(joined, losses, atol=1e-4)
        assert (np.concatenate([part[index][1] for part in parts]) == right).all()


def test_the_first_images_stand_for_all(scorer, digits):
    """A split is sorted by class; the order of a race is not."""
    scorer.num_images()
    _, labels = scorer._shuffled()
    assert len(set(labels[:36].tolist())) >= 8
    top1, loss = scorer.score(32, [(16, 16, 16)], METHOD)[0]
    losses, right = scorer.image_scores(32, [(16, 16, 16)], METHOD, 0, scorer.num_images())[0]
    assert top1 == pytest.approx(right.mean()) and loss == pytest.approx(losses.mean(), abs=1e-4)


def test_beside_dense_is_the_dense_loss_plus_what_a_schedule_adds(scorer, digits):
    """So that widths compare as by their cross-entropy, and schedules by their divergence."""
    dense, pooled = (16, 16, 16), (8, 4, 2)
    total = scorer.num_images()
    beside = scorer.image_scores(32, [dense, pooled], METHOD, 3, total, "beside dense")
    own = scorer.image_scores(32, [dense], METHOD, 3, total)[0][0]
    apart = scorer.image_scores(32, [pooled], METHOD, 3, total, "divergence")[0][0]
    assert np.allclose(beside[0][0], own, atol=1e-5)
    assert np.allclose(beside[1][0], own + apart, atol=1e-5)
    entropy = scorer.image_scores(32, [pooled], METHOD, 3, total)[0][0]
    assert np.std(beside[1][0] - own) < np.std(entropy - own)


class Pool:
    """Ray's ActorPool with two actors, without Ray."""

    def __init__(self, *actors):
        self.actors, self.tasks = actors, 0

    def map(self, submit, tasks):
        for index, task in enumerate(tasks):
            self.tasks += 1
            yield submit(self.actors[index % len(self.actors)], task)


class Actor:
    def __init__(self, scorer):
        self.image_scores = self
        self.remote = scorer.image_scores


class Context:
    state = SearchState("a", measure="cross-entropy")

    def check(self):
        """Nothing ends this search."""


def test_scores_come_back_in_the_order_of_the_candidates(scorer, truth):
    candidates = [
        Candidate(32, Schedule(s), sum(s), method)
        for s in SCHEDULES
        for method in (METHOD, "kmeans")
    ]
    pool = Pool(Actor(scorer), Actor(scorer))
    found = _evaluate(Context(), pool, candidates, 0, scorer.num_images())
    assert pool.tasks == 4  # batched: a few schedules of one method to a task
    for candidate, (_, right) in zip(candidates, found, strict=True):
        if candidate.method == METHOD:
            assert right.sum() == truth[tuple(candidate.schedule)][1]


def test_thousands_of_schedules_are_bred_and_raced_in_seconds():
    """12 blocks of 49 levels, three widths: all but the models, whose losses are made up."""
    space = ScheduleSpace(
        12, 196, [192, 256, 384], lambda w, s: w * w * (196 + sum(s)) / 1e8, step=4
    )
    hard = np.random.default_rng(0).gamma(0.3, 3.0, 512).astype(np.float32)

    def evaluate(candidates, start, stop):
        found = []
        for c in candidates:
            level = 1 + 100 / c.width / np.log(np.asarray(c.schedule) + 2).mean()
            found.append((hard[start:stop] * np.float32(level), hard[start:stop] < 1))
        return found

    settings = PolicySettings(3000, 4, trials=0, rounds=1, prices=Prices(1, 1, 1, 1))
    dense = [DenseModel(width, 1.0, 0.9, 0.9) for width in space.widths]
    policy, racer, rows = FrontPolicy(space, settings, dense), Racer(evaluate, 512), []
    while (asked := policy.ask()) is not None:
        if asked.is_new:
            policy.asked(asked.candidates)
            continue
        scored = racer.score(asked.candidates[:64], rows)
        policy.scored(scored)
        rows += scored
    assert len({row.candidate.key for row in rows}) == 3000
    assert sum(row.images is not None for row in rows) > 1500
