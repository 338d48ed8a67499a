"""What Tune keeps and writes of its trials, held small: the ledger has all that a search needs.

Left to itself Tune's driver grows by some fifty kilobytes with each trial until an experiment ends,
and writes the state of all of them again and again, to restore an experiment from. Nothing here is
ever restored from that.
"""

from __future__ import annotations

import os
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

_KEPT_OF_RESULT = ("trial_id", "done", "training_iteration", "epoch")
_KEPT_OF_CONFIG = ("trial_id",)
_NEVER = 10 * 365 * 86400  # seconds
# Where Tune keeps the answer of a trial's process to a question of its own; no public name has it.
_ANSWER = "_default_result_or_future"


def write_little() -> None:
    """Has Tune write no state of an experiment before its end, and no files of every report."""
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(_NEVER)
    # For TensorBoard and others.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"


class Forgetting(Callback):
    """Empties Tune's records of trials that are over; who listens to Tune must come before it."""

    def __init__(self) -> None:
        self._resources: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_resources": {}}

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        """See `Callback`."""
        self._forget(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """See `Callback`."""
        self._forget(trial)

    def _forget(self, trial: Trial) -> None:
        # Some of it must stay: with an empty result Tune would ask the trial's process, which is
        # gone, and its status decides what becomes of it.
        last = trial.last_result
        trial.run_metadata.last_result = {
            "done": True,
            **{name: last[name] for name in _KEPT_OF_RESULT if name in last},
        }
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()
        trial.evaluated_params.clear()
        config = {name: trial.config[name] for name in _KEPT_OF_CONFIG if name in trial.config}
        trial.config.clear()
        trial.config.update(config)
        # Tune looks trials up by what they ask for, and gives each a copy of its own.
        asked = trial.placement_group_factory
        trial.placement_group_factory = self._resources.setdefault(asked, asked)
        if hasattr(trial, _ANSWER):
            setattr(trial, _ANSWER, None)
        trial.invalidate_json_state()
