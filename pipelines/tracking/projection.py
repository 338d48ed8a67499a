"""What a search's events mean in MLflow's terms. Pure: the events come in, changes come out.

As everything follows from the ledger alone, and each metric carries its event's time, applying
the same events twice gives the same runs: MLflow can be caught up, resumed or rebuilt from it.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, field

from pipelines.results.points import spread
from pipelines.search.ledger import Event
from pipelines.search.standing import finished_points, mean, search_hypervolume, seed_groups
from pipelines.search.state import Model, SearchState
from pipelines.storage.hashes import json_hash
from tune_spaces import pareto
from tune_spaces.candidate import Key

PARENT = ""
"""Key of the parent run; children have their point's id."""
STATUS = {"running": "RUNNING", "done": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

_ENDS = (
    "base_done", "base_failed", "trial_done", "trial_failed", "trial_stopped",
    "supernet_done", "supernet_failed",
)  # fmt: skip

# In a report, but no measurement.
_NOT_METRICS = {"epoch", "device_seconds"}


@dataclass(frozen=True)
class MetricPoint:
    """One value of a metric; `time_ms` since the epoch."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class RunChange:
    """What is new about one run."""

    start_ms: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[MetricPoint] = field(default_factory=list)
    status: str | None = None
    end_ms: int | None = None


class Projection:
    """Folds events into the search's state and collects what each run has to be told.

    Args:
        name: The search.
    """

    def __init__(self, name: str) -> None:
        self.state = SearchState(name)
        self.changes: dict[str, RunChange] = {}
        self.front_moved = False
        self._pareto: dict[str, bool] = {}
        self._last_epoch: dict[str, int] = {}
        self._samples = 0
        self._groups: dict[Key, list[str]] = {}
        self._started: set[str] = set()

    @property
    def run_ids(self) -> set[str]:
        """The runs that there are by now."""
        return {PARENT, *self._started} if self.state.exists else set()

    def take(self) -> dict[str, RunChange]:
        """The changes since the last call, the parent first."""
        taken, self.changes = self.changes, {}
        return taken

    def apply(self, event: Event) -> None:
        """Takes in the next event of the ledger."""
        self.state.apply(event)
        now = round(event["time"] * 1000)
        kind = event["event"]
        if kind == "created":
            self._on_created(now)
        elif kind in ("base_report", "trial_report", "supernet_report"):
            self._on_report(self.state.of_event(event).model_id, now)
        elif kind in _ENDS:
            self._on_end(self.state.of_event(event).model_id, now)
        elif kind == "agreement":
            self._on_agreement(event["weights"], now)
        elif kind == "published":
            self._on_published(self.state.of_event(event).model_id, now)
        elif kind == "measured":
            self._on_measured(self.state.of_event(event).model_id, now)
        elif kind == "stage_done":
            self._on_stage(event["stage"], now)
        elif kind == "system":
            self._on_system(event["metrics"], now)

    def interrupt(self, status: str, now_ms: int, already_ended: Set[str] = frozenset()) -> None:
        """The driver ends before the search does: nothing may be left as running."""
        for point_id in {PARENT, *self._running()} - already_ended:
            change = self._change(point_id, now_ms)
            change.status, change.end_ms = status, now_ms

    def resume(self, now_ms: int) -> None:
        """The driver is back: the parent runs again, and so do the trials that were running."""
        for point_id in (PARENT, *self._running()):
            self._change(point_id, now_ms).status = "RUNNING"

    # --------------------------------------------------------------- handlers

    def _on_created(self, now: int) -> None:
        change = self._change(PARENT, now)
        change.params |= parent_params(self.state)
        change.tags |= {
            "tokenpool.kind": "search",
            "dataset_path": str(self.state.config.data.path),
        } | self._origin()
        change.status = "RUNNING"

    def _on_report(self, point_id: str, now: int) -> None:
        report = self.state.models[point_id].reports[-1]
        epoch = report.epoch
        change = self._start(point_id, now)
        change.status, change.end_ms = "RUNNING", None
        if epoch <= self._last_epoch.get(point_id, 0):
            return  # a job that resumed repeats epochs; MLflow cannot take the first ones back
        self._last_epoch[point_id] = epoch
        for key, value in report.to_json().items():
            if key not in _NOT_METRICS and math.isfinite(value):
                change.metrics.append(MetricPoint(key, float(value), now, epoch))

    def _on_end(self, point_id: str, now: int) -> None:
        point = self.state.models[point_id]
        change = self._start(point_id, now)
        epoch = self._last_epoch.get(point_id, 0)
        if point.status == "done":
            last = point.reports[-1].top1_minival if point.reports else None
            if point.top1_minival is not None and point.top1_minival != last:
                # Later than the epoch's own, so that it is what MLflow's tables show.
                final = MetricPoint("top1_minival", point.top1_minival, now, epoch)
                change.metrics.append(final)
            change.metrics.append(MetricPoint("device_seconds", point.device_seconds, now, epoch))
        change.tags["status"] = point.status
        if point.reason:
            change.tags["reason"] = point.reason
        change.status, change.end_ms = STATUS[point.status], now
        if point.status == "done":
            self._log_seeds(point_id, "top1_minival", now)
            self._update_front(now)

    def _on_published(self, point_id: str, now: int) -> None:
        top1 = self.state.models[point_id].top1_val
        if top1 is not None:
            metric = MetricPoint("top1_val", top1, now, self._last_epoch.get(point_id, 0))
            self._start(point_id, now).metrics.append(metric)
            self._log_seeds(point_id, "top1_val", now)
        self._on_measured(point_id, now)

    def _on_measured(self, point_id: str, now: int) -> None:
        epoch = self._last_epoch.get(point_id, 0)
        self._start(point_id, now).metrics.extend(
            MetricPoint(f"latency_ms_b{batch}", ms, now, epoch)
            for batch, ms in (self.state.models[point_id].latency_ms or {}).items()
        )
        self.front_moved = True

    def _on_agreement(self, weights: str, now: int) -> None:
        """How far screening is to be trusted: Kendall's τ, at the device-seconds spent by then."""
        found = self.state.agreement[weights]
        change = self._change(PARENT, now)
        change.tags[f"screening_trusted.{weights}"] = str(found.trusted).lower()
        step = int(self.state.device_seconds)
        change.metrics.append(MetricPoint(f"agreement_pairs_{weights}", found.pairs, now, step))
        if found.tau is not None:
            change.metrics.append(MetricPoint(f"kendall_tau_{weights}", found.tau, now, step))
        self.front_moved = True

    def _on_system(self, metrics: dict[str, float], now: int) -> None:
        """What the machine did goes to the parent, and to what was training meanwhile."""
        self._samples += 1
        for point_id in (PARENT, *self._running()):
            self._change(point_id, now).metrics.extend(
                MetricPoint(f"system/{key}", float(value), now, self._samples)
                for key, value in metrics.items()
                if _is_number(value)
            )

    def _on_stage(self, stage: str, now: int) -> None:
        change = self._change(PARENT, now)
        change.tags[f"stage.{stage}"] = "done"
        if self.state.complete:
            change.status, change.end_ms = "FINISHED", now
            self.front_moved = True

    def _update_front(self, now: int) -> None:
        finished = finished_points(self.state)
        mask = pareto.non_dominated([(gmacs, top1) for _, gmacs, top1 in finished])
        for (point_id, _, _), good in zip(finished, mask.tolist(), strict=True):
            for run_id in self._members(point_id):
                if self._pareto.get(run_id) is not good:
                    self._pareto[run_id] = good
                    self._change(run_id, now).tags["pareto"] = str(good).lower()
        self.front_moved = True
        step = int(self.state.device_seconds)
        self._change(PARENT, now).metrics += [
            MetricPoint("hypervolume", search_hypervolume(self.state), now, step),
            MetricPoint("device_hours", self.state.device_seconds / 3600, now, step),
            MetricPoint("front_size", float(mask.sum()), now, step),
            MetricPoint("finished_models", float(len(finished)), now, step),
        ]

    # ---------------------------------------------------------------- helpers

    def _log_seeds(self, run_id: str, metric: str, now: int) -> None:
        """Mean and spread over seeds on the run of each, so that any of them tells."""
        members = [member for member in self._members(run_id) if member in self._started]
        values = [getattr(self.state.models[m], metric) for m in members if self._is_done(m)]
        deviation = spread(values)
        if deviation is None:
            return
        for member in members:
            epoch = self._last_epoch.get(member, 0)
            self._change(member, now).metrics += [
                MetricPoint(f"{metric}_mean", mean(values) or 0.0, now, epoch),
                MetricPoint(f"{metric}_std", deviation, now, epoch),
            ]

    def _members(self, run_id: str) -> list[str]:
        """The runs of a point: its trials under all seeds, as far as they are over."""
        model = self.state.models[run_id]
        if not model.is_trial:
            return [run_id]
        same = model.candidate.key
        if run_id not in self._groups.get(same, ()):
            found = seed_groups(self.state)
            self._groups = {t[0].candidate.key: [m.model_id for m in t] for t in found}
        group = self._groups[same]
        return [member for member in group if self._is_done(member)]

    def _is_done(self, run_id: str) -> bool:
        return self.state.models[run_id].status == "done"

    def _running(self) -> list[str]:
        return [
            point_id
            for point_id in self._started
            if self.state.models[point_id].status in ("running", "pending")
        ]

    def _start(self, point_id: str, now: int) -> RunChange:
        """The change of a child run, with its params the first time."""
        change = self._change(point_id, now)
        if point_id not in self._started:
            self._started.add(point_id)
            point = self.state.models[point_id]
            change.params |= child_params(self.state, point)
            change.tags |= {
                "tokenpool.point": point_id,
                "tokenpool.kind": point.kind,
            } | self._origin()
            if point.keep_rate is not None:
                change.tags["keep_rate"] = f"{point.keep_rate:g}"
            change.metrics.append(MetricPoint("gmacs", point.gmacs, now, 0))
        return change

    def _origin(self) -> dict[str, str]:
        return {
            "dataset": dataset_name(self.state),
            "dataset_hash": dataset_hash(self.state),
            "config_hash": self.state.config_hash,
        }

    def _change(self, point_id: str, now: int) -> RunChange:
        return self.changes.setdefault(point_id, RunChange(start_ms=now))


def child_params(state: SearchState, model: Model) -> dict[str, str]:
    """The few params by which a run is found: width, heads, method, k01…kNN, config hash."""
    params = {"width": str(model.width), "heads": str(model.num_heads), "method": model.method}
    if model.seed is not None:
        params["seed"] = str(model.seed)
    if model.is_trial:
        params |= {f"k{layer:02d}": str(kept) for layer, kept in enumerate(model.schedule, start=1)}
    return params | {"config_hash": state.config_hash}


def parent_params(state: SearchState) -> dict[str, str]:
    """What the search was about, without what MLflow's `config.yaml` holds in full."""
    config, method = state.config, state.config.space.method
    wanted = {
        "source": dataset_name(state),
        "image_size": config.data.image_size,
        "patch_size": config.model.patch_size,
        "depth": config.model.depth,
        "widths": " ".join(str(base.width) for base in state.bases),
        # MLflow takes no param a second time with another text: as it always was.
        "method": method if isinstance(method, str) else list(method),
        "finals": config.finals.trials,
        "seed": config.seed,
        "config_hash": state.config_hash,
    }
    return {key: str(value) for key, value in wanted.items() if value != ""}


def dataset_name(state: SearchState) -> str:
    """What the data was prepared from; its folder's name where the ledger does not tell."""
    return state.source or state.config.data.path.name


def dataset_hash(state: SearchState) -> str:
    """First 12 hex digits of the sha256 over the sha256 of each split's beton."""
    return json_hash(state.data) if state.data else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
