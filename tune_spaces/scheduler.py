"""`ParetoHalving`: multi-objective early stopping for any Ray Tune experiment."""

import json
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial
from ray.tune.result import DEFAULT_METRIC
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.utils import flatten_dict

from tune_spaces.halving import Entry, HalvingRule, Verdict, geometric_rungs
from tune_spaces.rung import Rung

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """A verdict with the trial and the rung it is about."""

    trial_id: str
    rung: int
    verdict: Verdict


class ParetoHalving(FIFOScheduler):
    """Asynchronous successive halving that compares each trial with the front at its own cost.

    At each rung (a value of `time_attr`) a trial is kept by its distance to the front of all that
    have reached that rung, read at the trial's own cost, then by how alone it is; see
    `HalvingRule`. It works with any number of costs and of metrics, and needs nothing from the
    trainable but reports that carry `time_attr` and the metrics.

        scheduler = ParetoHalving({"top1": "max"}, costs=["gmacs"], rungs=[1, 3, 9], noise=0.004)
        tune.Tuner(train, param_space={"gmacs": …}, tune_config=TuneConfig(scheduler=scheduler))

    Tune pickles a scheduler once, when an experiment starts, and does not save it again: after
    `Tuner.restore` a plain scheduler has forgotten its rungs. So this one can keep them in
    `state_path`, a JSON-lines file it appends to, or can be told of them by `replay`.

    Args:
        metrics: A metric to maximise, or `{name: "max" | "min"}`.
        costs: Names of costs to minimise, looked up in the trial's config and, where they are
            not there, in its reports. Names of nested entries are joined by "/".
        time_attr: Counter in the reports that the rungs refer to; count epochs yourself, as
            Tune's `training_iteration` starts again when a trial is restarted.
        rungs: At which times trials are judged. Default: `grace_period`, then each
            `reduction_factor` times the one before, below `max_t`.
        grace_period: First rung.
        max_t: Where trials end by themselves.
        reduction_factor: One in so many goes on by rank.
        noise: Differences in a metric that mean nothing: one margin, or `{name: margin}`.
        min_spread: See `HalvingRule`.
        min_peers: See `HalvingRule`.
        state_path: File that outlives the driver; None for none.
        listener: Called with each `Decision`, e.g. to write it to a ledger. Not pickled.
        trial_key: Entry of the trial's config that names it, for a name that stays the same when
            a new experiment goes on with an old trial. Default: Tune's own id.

    Raises:
        ValueError: An argument makes no sense.
    """

    _supports_buffered_results = False

    def __init__(
        self,
        metrics: str | Mapping[str, str],
        costs: Sequence[str] = ("gmacs",),
        *,
        time_attr: str = "epoch",
        rungs: Sequence[int] | None = None,
        grace_period: int = 1,
        max_t: int = 100,
        reduction_factor: float = 2.0,
        noise: float | Mapping[str, float] = 0.0,
        min_spread: float = 0.02,
        min_peers: int = 1,
        state_path: str | os.PathLike[str] | None = None,
        listener: Callable[[Decision], None] | None = None,
        trial_key: str | None = None,
    ) -> None:
        super().__init__()
        self.metrics = {metrics: "max"} if isinstance(metrics, str) else dict(metrics)
        self.costs = [costs] if isinstance(costs, str) else list(costs)
        if not self.metrics or not set(self.metrics.values()) <= {"max", "min"}:
            raise ValueError(f"metrics must map names to 'max' or 'min', got {self.metrics}")
        if reduction_factor <= 1:
            raise ValueError(f"reduction_factor must be above 1, got {reduction_factor}")
        if isinstance(noise, Mapping):
            unknown = set(noise) - set(self.metrics)
            if unknown:
                raise ValueError(f"noise names metrics that are not judged: {sorted(unknown)}")
            margins = tuple(float(noise.get(name, 0.0)) for name in self.metrics)
        else:
            margins = (float(noise),) * len(self.metrics)
        if rungs is None:
            rungs = geometric_rungs(grace_period, max_t, reduction_factor)
        if any(rung < 1 for rung in rungs):
            raise ValueError(f"rungs must be at least 1, got {list(rungs)}")
        self.time_attr = time_attr
        self.rule = HalvingRule(1 / reduction_factor, margins, min_spread, min_peers)
        self.rungs = {rung: Rung(self.rule) for rung in sorted(set(rungs))}
        self.decisions: list[Decision] = []
        self.listener = listener
        self.trial_key = trial_key
        self.state_path = None if state_path is None else Path(state_path)
        self._loaded = False

    # ------------------------------------------------------------- Tune's side

    @property
    def metric(self) -> str:
        """Tune checks one metric by this name; it is told that there is none to check."""
        return DEFAULT_METRIC

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metrics come with the constructor; what TuneConfig names may serve others."""
        return True

    def on_trial_result(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> str:
        """Judges the trial if it has come to a new rung; otherwise it goes on."""
        trial_id = str(trial.config[self.trial_key]) if self.trial_key else trial.trial_id
        verdict = self.report(trial_id, trial.config, result)
        return TrialScheduler.CONTINUE if verdict is None or verdict.kept else TrialScheduler.STOP

    def debug_string(self) -> str:
        """One line for Tune's log."""
        self._load()
        counts = ", ".join(
            f"{rung}: {entries.num_kept} of {len(entries)} kept"
            for rung, entries in self.rungs.items()
        )
        return f"ParetoHalving on {', '.join(self.metrics)} at {', '.join(self.costs)}: {counts}"

    def save(self, checkpoint_path: str) -> None:
        """Writes the rungs and decisions, as Tune's own schedulers do."""
        with open(checkpoint_path, "wb") as file:
            pickle.dump(self.__getstate__(), file)

    def restore(self, checkpoint_path: str) -> None:
        """Takes the state that `save` wrote."""
        with open(checkpoint_path, "rb") as file:
            self.__dict__.update(pickle.load(file))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "listener": None}

    # --------------------------------------------------------------- the rungs

    def report(
        self, trial_id: str, config: Mapping[str, Any], result: Mapping[str, Any]
    ) -> Verdict | None:
        """Records a report; a verdict where it brought the trial to a rung, else None.

        A trial that comes to the same rung again (it was restarted) gets the same verdict.
        """
        self._load()
        flat = flatten_dict(dict(result))
        entry = self._entry(flatten_dict(dict(config)), flat)
        reached = [rung for rung in self.rungs if rung <= float(flat.get(self.time_attr, 0))]
        if entry is None or not reached:
            return None
        rung = reached[-1]
        entries = self.rungs[rung]
        if trial_id in entries:
            if entries[trial_id].kept:
                return None
            return Verdict(False, 0.0, 0, 0, f"was stopped at rung {rung} before")
        verdict = entries.judge(trial_id, entry)
        self._append(rung, trial_id, entries[trial_id])
        decision = Decision(trial_id, rung, verdict)
        self.decisions.append(decision)
        logger.info(
            "trial %s at rung %d %s: %s",
            trial_id,
            rung,
            "goes on" if verdict.kept else "is stopped",
            verdict.reason,
        )
        if self.listener is not None:
            self.listener(decision)
        return verdict

    def replay(
        self,
        trial_id: str,
        config: Mapping[str, Any],
        reports: Iterable[Mapping[str, Any]],
        *,
        stopped: bool = False,
    ) -> None:
        """Restores what is known of a trial from its past reports, judging nothing.

        Args:
            trial_id: As Tune will call it.
            config: The trial's config.
            reports: Its reports, oldest first.
            stopped: Whether it was stopped at the last rung it reached.
        """
        flat_config = flatten_dict(dict(config))
        found: list[tuple[int, Entry]] = []
        for result in reports:
            flat = flatten_dict(dict(result))
            entry = self._entry(flat_config, flat)
            reached = [rung for rung in self.rungs if rung <= float(flat.get(self.time_attr, 0))]
            if entry is None or not reached or reached[-1] in [rung for rung, _ in found]:
                continue
            if trial_id not in self.rungs[reached[-1]]:
                found.append((reached[-1], entry))
        if stopped and found:
            rung, entry = found.pop()
            found.append((rung, Entry(entry.costs, entry.qualities, kept=False)))
        for rung, entry in found:
            self.rungs[rung].add(trial_id, entry)

    def _entry(self, config: Mapping[str, Any], result: Mapping[str, Any]) -> Entry | None:
        """What the trial shows, or None if this report does not carry all of it."""
        if any(name not in result for name in self.metrics):
            return None
        costs = []
        for name in self.costs:
            cost = config.get(name, result.get(name))
            if cost is None:
                raise ValueError(
                    f"cost {name!r} is neither in the trial's config nor in its reports; "
                    f"the config has {', '.join(sorted(config)) or 'nothing'}"
                )
            costs.append(float(cost))
        qualities = [
            float(result[name]) * (1.0 if mode == "max" else -1.0)
            for name, mode in self.metrics.items()
        ]
        return Entry(tuple(costs), tuple(qualities))

    # ---------------------------------------------------------- the state file

    def _append(self, rung: int, trial_id: str, entry: Entry) -> None:
        if self.state_path is None:
            return
        line = json.dumps([rung, trial_id, entry.costs, entry.qualities, entry.kept])
        with self.state_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _load(self) -> None:
        """Reads the state file, once. A last line torn by a kill is dropped."""
        if self._loaded:
            return
        self._loaded = True
        if self.state_path is None:
            return
        if not self.state_path.exists():
            self.state_path.parent.mkdir(parents=True, exist_ok=True)
            return
        text = self.state_path.read_text(encoding="utf-8")
        whole, _, torn = text.rpartition("\n")
        if torn:
            os.truncate(self.state_path, len(text.encode()) - len(torn.encode()))
        for line in whole.splitlines():
            rung, trial_id, costs, qualities, kept = json.loads(line)
            if rung in self.rungs:
                self.rungs[rung].add(trial_id, Entry(tuple(costs), tuple(qualities), kept))
