"""FrontSearcher: where it looks next, by hand, and with the scheduler in a real experiment."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune
from ray.tune.search import Searcher

from tune_spaces.scheduler import ParetoHalving
from tune_spaces.searcher import FrontSearcher

NUM_TRIALS = int(os.environ.get("TOKENPOOL_NUM_TRIALS", "1000"))


def pool(*costs: float) -> list[dict[str, float]]:
    return [{"gmacs": cost} for cost in costs]


def order_of(searcher: FrontSearcher) -> list[float]:
    found = []
    while (config := searcher.suggest(f"t{len(found)}")) != Searcher.FINISHED:
        assert isinstance(config, dict)
        found.append(config["gmacs"])
    return found


def test_it_fills_the_widest_gap_first() -> None:
    # The dearest, then the farthest from it, then the middle, then the middles of the halves.
    assert order_of(FrontSearcher(pool(0, 1, 2, 3, 4))) == [4, 0, 2, 1, 3]


def test_candidates_expected_to_be_dominated_come_later() -> None:
    candidates = [
        {"gmacs": 1.0, "score": 0.5},
        {"gmacs": 2.0, "score": 0.4},  # dearer and worse
        {"gmacs": 3.0, "score": 0.7},
        {"gmacs": 5.0, "score": 0.9},
    ]
    # 2.0 and 3.0 lie as far from what is known, but 3.0 is expected on the front.
    assert order_of(FrontSearcher(candidates, predicted="score")) == [5.0, 1.0, 3.0, 2.0]


def test_of_equal_costs_the_better_expected_comes_first() -> None:
    candidates = [
        {"gmacs": 1.0, "score": 0.3},
        {"gmacs": 1.0, "score": 0.5},
        {"gmacs": 9.0, "score": 0.9},
    ]
    searcher = FrontSearcher(candidates, predicted="score")
    scores = [searcher.suggest(name)["score"] for name in "abc"]  # type: ignore[index, call-overload]
    assert scores == [0.9, 0.5, 0.3]


def test_a_failed_trial_leaves_its_place_open() -> None:
    searcher = FrontSearcher(pool(0, 1.9, 2, 4))
    assert [searcher.suggest(name)["gmacs"] for name in "abc"] == [4, 0, 2]  # type: ignore[index, call-overload]
    searcher.on_trial_complete("c", error=True)
    assert searcher.suggest("d") == {"gmacs": 1.9}
    assert searcher.suggest("e") == Searcher.FINISHED
    assert searcher.num_left == 0


def test_several_costs_and_nested_names() -> None:
    candidates = [{"job": {"gmacs": g, "ms": m}} for g, m in ((0, 0), (1, 0), (0, 1), (1, 1))]
    searcher = FrontSearcher(candidates, costs=["job/gmacs", "job/ms"])
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {"job": {"gmacs": 1, "ms": 1}}
    assert second == {"job": {"gmacs": 0, "ms": 0}}


def test_saved_and_restored_it_goes_on(tmp_path: Path) -> None:
    searcher = FrontSearcher(pool(0, 1, 2, 3, 4))
    for name in "ab":
        searcher.suggest(name)
    searcher.save(str(tmp_path / "searcher"))
    restored = FrontSearcher(pool(7))
    restored.restore(str(tmp_path / "searcher"))
    assert order_of(restored) == [2, 1, 3]


def test_trials_of_an_earlier_run_are_counted() -> None:
    searcher = FrontSearcher(pool(0, 1, 2, 3, 4))
    searcher.mark("earlier", 0)
    assert order_of(searcher) == [4, 2, 1, 3]


def test_senseless_pools_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        FrontSearcher([])
    with pytest.raises(ValueError, match="candidate 1 has no 'gmacs'"):
        FrontSearcher([{"gmacs": 1.0}, {"latency": 1.0}])


def test_a_suggestion_takes_under_20_ms_at_a_thousand_trials() -> None:
    rng = np.random.default_rng(0)
    candidates = [{"gmacs": float(g), "q": float(q)} for g, q in rng.random((2000, 2))]
    searcher = FrontSearcher(candidates, predicted="q")
    seconds = []
    for number in range(1010):
        start = time.perf_counter()
        searcher.suggest(str(number))
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds[-10:]) < 0.020


def no_op() -> type[tune.Trainable]:
    """A class made here travels to the workers by value: they cannot import this file."""

    class NoOp(tune.Trainable):
        """A trial whose top-1 grows with its cost, and costs nothing."""

        def setup(self, config: dict[str, Any]) -> None:
            self.final = config["quality"]

        def step(self) -> dict[str, Any]:
            return {
                "epoch": self.iteration + 1,
                "top1": self.final * (self.iteration + 1) / 4,
                "done": self.iteration == 3,
            }

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.final = new_config["quality"]
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            return None

        def load_checkpoint(self, checkpoint: Any) -> None:
            return None

    return NoOp


# Processor time: what other processes on the machine take is not ours.
DECISIONS: list[float] = []
SUGGESTIONS: list[float] = []


class TimedScheduler(ParetoHalving):
    def on_trial_result(self, *arguments: Any) -> str:
        start = time.thread_time()
        answer = super().on_trial_result(*arguments)
        DECISIONS.append(time.thread_time() - start)
        return answer


class TimedSearcher(FrontSearcher):
    def suggest(self, trial_id: str) -> Any:
        start = time.thread_time()
        answer = super().suggest(trial_id)
        SUGGESTIONS.append(time.thread_time() - start)
        return answer


@pytest.mark.slow  # a thousand real Tune trials
def test_a_thousand_trials_with_both_in_place(tmp_path: Path) -> None:
    import psutil

    rng = np.random.default_rng(0)
    gmacs = rng.random(NUM_TRIALS)
    quality = np.sqrt(gmacs) - 0.1 * rng.random(NUM_TRIALS)
    candidates = [
        {"gmacs": float(g), "quality": float(q)} for g, q in zip(gmacs, quality, strict=True)
    ]
    scheduler = TimedScheduler("top1", rungs=[1, 2], noise=0.005)
    searcher = TimedSearcher(candidates, predicted="quality")
    driver = psutil.Process()
    before = driver.memory_info().rss
    ray.init(
        "local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False
    )
    try:
        results = tune.Tuner(
            no_op(),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=NUM_TRIALS,
                max_concurrent_trials=2,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    assert len(results) == NUM_TRIALS
    assert np.max(DECISIONS[-100:]) < 0.020
    assert np.max(SUGGESTIONS[-100:]) < 0.020
    stopped = sum(not d.verdict.kept for d in scheduler.decisions)
    assert stopped > NUM_TRIALS // 5
    # Nothing on the final front was stopped on the way.
    last = scheduler.rungs[2]
    assert all(last[name].kept for name in last if scheduler.rule.judge(name, last).lack <= -1e-12)
    assert driver.memory_info().rss - before < 1 << 30
