"""What Tune's driver keeps of trials that are over, on Tune itself with trials that do nothing."""

import gc
import logging
import tracemalloc
from collections import Counter

import pytest
from ray import tune
from ray.tune.search import Searcher

from cluster.session import ray_session
from pipelines.trials.tune_records import Forgetting, write_little

BEFORE, TRIALS = 20, 120


def idle():
    """Made here it travels to the workers by value: they cannot import this file."""

    class Idle(tune.Trainable):
        def setup(self, config):
            pass

        def step(self):
            return {"epoch": self.iteration + 1, "top1": 0.5, "done": self.iteration == 1}

        def reset_config(self, new_config):
            return True

    return Idle


class Given(Searcher):
    """Gives out trials four at a time, and looks at what is kept of those that are over."""

    def __init__(self):
        super().__init__(metric="top1", mode="max")
        self.given, self.over, self.bytes, self.kinds = 0, 0, {}, {}

    def __getstate__(self):
        return {}

    def suggest(self, trial_id):
        if self.given == TRIALS:
            return Searcher.FINISHED
        if self.given - self.over >= 4:
            return None
        self.given += 1
        job = {f"setting{i}": i / 7 for i in range(60)}  # as large as that of a search
        return {"trial_id": f"t{self.given}", "gmacs": 1.0, "job": job}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.over += 1
        if self.over in (BEFORE, TRIALS):
            gc.collect()
            self.bytes[self.over] = tracemalloc.get_traced_memory()[0]
            self.kinds[self.over] = Counter(type(each).__name__ for each in gc.get_objects())

    def save(self, checkpoint_path):
        pass


class Heard(tune.Callback):
    """Comes before what forgets: it must find everything."""

    def __init__(self):
        self.found = []

    def __getstate__(self):
        return {}

    def on_trial_complete(self, iteration, trials, trial, **_):
        self.found.append((trial.config["trial_id"], trial.last_result["top1"]))


def kept_kb(tmp_path, callbacks):
    """KB that Python holds for each trial, and the objects that it holds for them."""
    searcher = Given()
    tracemalloc.start()
    try:
        results = tune.Tuner(
            tune.with_resources(idle(), {"CPU": 0.5}),
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=TRIALS, reuse_actors=True),
            run_config=tune.RunConfig(
                storage_path=str(tmp_path),
                verbose=0,
                callbacks=callbacks,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    finally:
        tracemalloc.stop()
    assert results.num_terminated == TRIALS and results.num_errors == 0
    more = searcher.kinds[TRIALS] - searcher.kinds[BEFORE]
    return (searcher.bytes[TRIALS] - searcher.bytes[BEFORE]) / 1024 / (TRIALS - BEFORE), more


@pytest.mark.slow
def test_of_a_trial_that_is_over_little_is_kept(tmp_path, monkeypatch):
    for name in ("TUNE_GLOBAL_CHECKPOINT_S", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"):
        monkeypatch.setenv(name, "")  # put back at the end
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "0")
    write_little()
    heard = Heard()
    with ray_session(num_cpus=2):
        logging.getLogger("ray.tune").setLevel(logging.ERROR)
        kb, more = kept_kb(tmp_path, [heard, Forgetting()])
    assert {name for name, _ in heard.found} == {f"t{n + 1}" for n in range(TRIALS)}
    assert {top1 for _, top1 in heard.found} == {0.5}
    assert kb < 8, more.most_common(10)
    assert more["deque"] < TRIALS / 2 and more["ObjectRef"] < TRIALS / 2
