"""The state of a search: what its ledger's events add up to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipelines.errors import UserError
from pipelines.search.latency_table import LatencyTable
from pipelines.search.ledger import LEDGER_NAME, Event, read_events
from pipelines.search.refresh import names_in_store, refresh
from pipelines.search.state_records import (
    CANDIDATE_KEYS,
    STAGES,
    AgreementState,
    BaseState,
    Calibration,
    Measure,
    TrialState,
    TrialStatus,
    Weights,
    candidate_of,
)
from pipelines.storage.address import is_address, join
from pipelines.storage.working import search_folder, search_store, store_of
from pipelines.train.reports import Report
from tune_spaces.candidate import Candidate, Untrained

__all__ = [
    "STAGES",
    "AgreementState",
    "BaseState",
    "Calibration",
    "SearchState",
    "TrialState",
    "TrialStatus",
    "Weights",
    "fold",
    "load_state",
    "search_names",
]


@dataclass
class SearchState:
    """All that is known of a search.

    Attributes:
        directory: The search's folder, where it lies now: the ledger names checkpoints relative
            to it. None leaves them as they are.
        address: Where it lies in truth, if that is in an object store.
        data: split → sha256 of its beton.
        images: split → number of images; empty where an older program began the search.
        source: what the data was prepared from.
        measure: what the losses of schedules that were screened are.
        screened: scored on the bases' weights.
        supernets: width → its supernet, told of as a base is.
        rescreened: scored on the supernets' weights.
        agreement: whose weights the scores were from → how they agreed with the finals.
        budget: what the driver that is or was last at work was given, as its config has it.
        spent: stage → device-seconds that no model's report tells of: screening, publishing, and
            what a training that was cut short had not reported.
        ended: why the last driver ended in order before all was done; empty if it did not.
    """

    name: str
    directory: Path | None = field(default=None, compare=False)
    address: str | None = field(default=None, compare=False)
    source: str = ""
    images: dict[str, int] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    config_hash: str = ""
    data: dict[str, str] = field(default_factory=dict)
    created: float = 0.0
    updated: float = 0.0
    stages: dict[str, Literal["pending", "done"]] = field(
        default_factory=lambda: dict.fromkeys(STAGES, "pending")
    )
    num_classes: int = 0
    measure: Measure = "cross-entropy"
    bases: list[BaseState] = field(default_factory=list)
    calibrations: dict[tuple[int, str], Calibration] = field(default_factory=dict)
    latency_tables: dict[tuple[int, str], LatencyTable] = field(default_factory=dict)
    planned: list[Candidate] = field(default_factory=list)
    screened: list[Untrained] = field(default_factory=list)
    supernets: dict[int, BaseState] = field(default_factory=dict)
    rescreened: list[Untrained] = field(default_factory=list)
    agreement: dict[str, AgreementState] = field(default_factory=dict)
    trials: dict[str, TrialState] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    _began: float = field(default=0.0, repr=False)
    _worked: float = field(default=0.0, repr=False)

    @property
    def exists(self) -> bool:
        """Whether anything was ever recorded under this name."""
        return self.created > 0

    @property
    def complete(self) -> bool:
        """Whether every stage is done."""
        return all(status == "done" for status in self.stages.values())

    @property
    def device_seconds(self) -> float:
        """Workers × seconds spent so far, over all stages."""
        return sum(self.stage_seconds.values())

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Device-seconds by stage, of those that have cost any."""
        trained = {
            "base": sum(base.device_seconds for base in self.bases),
            "supernet": sum(supernet.device_seconds for supernet in self.supernets.values()),
            "finals": sum(trial.device_seconds for trial in self.trials.values()),
        }
        stages = {stage: trained.get(stage, 0.0) + self.spent.get(stage, 0.0) for stage in STAGES}
        return {stage: seconds for stage, seconds in stages.items() if seconds}

    @property
    def trials_begun(self) -> int:
        """Trials that were trained, or begun."""
        return sum(trial.status != "pending" for trial in self.trials.values())

    @property
    def began(self) -> float:
        """When the driver that is or was last at work began, in seconds since the epoch."""
        return self._began

    def seconds_at_work(self, now: float | None = None) -> float:
        """Wall-clock seconds that drivers were at work on the search.

        Args:
            now: seconds since the epoch, where a driver is at work; default: as of the last event.
        """
        return self._worked + max(0.0, (self.updated if now is None else now) - self._began)

    def located(self, checkpoint: str) -> str:
        """Where a checkpoint of the ledger lies now; a storage folder may have been moved.

        A path, or an address (see `pipelines.storage.copies`).
        """
        if self.address is not None and not (is_address(checkpoint) or checkpoint.startswith("/")):
            return join(self.address, checkpoint)
        return checkpoint if self.directory is None else str(self.directory / checkpoint)

    def base(self, width: int) -> BaseState:
        """The base of a width."""
        return next(base for base in self.bases if base.width == width)

    def supernet(self, width: int) -> BaseState:
        """The supernet of a width; one that nothing is known of where there is none yet."""
        if width not in self.supernets:
            base = self.base(width)
            self.supernets[width] = BaseState(width, base.num_heads, base.gmacs)
        return self.supernets[width]

    def weights(self, width: int, start: Weights = "supernet") -> str:
        """The checkpoint of a width's supernet, if it is wanted and was trained; or its base's."""
        supernet = self.supernets.get(width)
        if start == "supernet" and supernet is not None and supernet.status == "done":
            return str(supernet.checkpoint)
        return str(self.base(width).checkpoint)

    def apply(self, event: Event) -> None:
        """Adds one event. An unknown kind is left out: an older program reads a newer ledger."""
        before, self.updated = self.updated, event["time"]
        if event["event"] == "began":
            self._worked += max(0.0, before - self._began)
            self._began = self.updated
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _on_began(self, event: Event) -> None:
        self.budget, self.ended = event["budget"], ""

    def _on_ended(self, event: Event) -> None:
        self.ended = event["reason"]

    def _on_spent(self, event: Event) -> None:
        stage = event["stage"]
        self.spent[stage] = self.spent.get(stage, 0.0) + event["device_seconds"]

    def _on_created(self, event: Event) -> None:
        self.created = self._began = event["time"]
        self.config = event["config"]
        self.config_hash = event["config_hash"]
        self.num_classes = event["num_classes"]
        self.measure = event.get("measure", "cross-entropy")
        self.data = event.get("data", {})
        self.images, self.source = event.get("images", {}), event.get("source", "")
        self.bases = [BaseState(**base) for base in event["bases"]]

    def _on_stage_done(self, event: Event) -> None:
        # Stages before it are done too: a search begun before a stage existed goes on without it.
        for name in STAGES[: STAGES.index(event["stage"]) + 1]:
            self.stages[name] = "done"

    def _on_base_report(self, event: Event) -> None:
        self._add_report(self.base(event["width"]), event)

    def _on_base_done(self, event: Event) -> None:
        base = self.base(event["width"])
        base.status = "done"
        base.checkpoint = self.located(event["checkpoint"])
        base.top1_minival = event["top1_minival"]

    def _on_base_failed(self, event: Event) -> None:
        base = self.base(event["width"])
        base.status, base.reason = "failed", event["reason"]

    def _on_calibrated(self, event: Event) -> None:
        self.calibrations[event["width"], self._method(event)] = Calibration(
            event["width"],
            tuple(event["counts"]),
            {tuple(schedule): value for schedule, value in event["rows"]},
        )

    def _on_latency_table(self, event: Event) -> None:
        self.latency_tables[event["width"], event["method"]] = LatencyTable(
            tuple(event["counts"]), tuple(tuple(row) for row in event["blocks"]), event["rest"]
        )

    def _on_planned(self, event: Event) -> None:
        self.planned = [
            candidate_of(width, schedule, gmacs, *method or (self._method({}),))
            for width, schedule, gmacs, _damage, *method in event["rows"]
        ]

    def _on_screened(self, event: Event) -> None:
        rows = self.rescreened if event.get("weights") == "supernet" else self.screened
        rows += self.screened_rows(event)

    def screened_rows(self, event: Event) -> list[Untrained]:
        """The scores of a `screened` event."""
        if "width" in event:  # before there was racing
            width, method = event["width"], self._method(event)
            return [
                Untrained(candidate_of(width, schedule, gmacs, method), top1, loss)
                for schedule, gmacs, top1, loss in event["rows"]
            ]
        return [
            Untrained(candidate_of(width, schedule, gmacs, method), top1, loss, images)
            for width, schedule, gmacs, top1, loss, method, images in event["rows"]
        ]

    def _on_supernet_report(self, event: Event) -> None:
        self._add_report(self.supernet(event["width"]), event)

    def _on_supernet_done(self, event: Event) -> None:
        supernet = self.supernet(event["width"])
        supernet.status, supernet.reason = "done", ""
        supernet.checkpoint = self.located(event["checkpoint"])
        supernet.top1_minival = event["top1_minival"]

    def _on_supernet_failed(self, event: Event) -> None:
        supernet = self.supernet(event["width"])
        supernet.status, supernet.reason = "failed", event["reason"]

    def _on_agreement(self, event: Event) -> None:
        before = self.agreement.get(event["weights"])
        trusted = event["trusted"] if before is None else before.trusted  # decided once
        self.agreement[event["weights"]] = AgreementState(
            event["tau"], event["pairs"], event["bins"], trusted
        )

    def _on_trial_created(self, event: Event) -> None:
        self.trials[event["trial_id"]] = TrialState(
            trial_id=event["trial_id"],
            candidate=candidate_of(**{key: event[key] for key in CANDIDATE_KEYS}),
            num_heads=event["num_heads"],
            seed=event.get("seed"),
            keep_rate=event.get("keep_rate"),
            start=event.get("start", "base"),
        )

    def _on_trial_report(self, event: Event) -> None:
        self._add_report(self.trials[event["trial_id"]], event)

    def _on_trial_done(self, event: Event) -> None:
        trial = self.trials[event["trial_id"]]
        trial.status, trial.reason = "done", ""
        trial.checkpoint = self.located(event["checkpoint"])
        trial.top1_minival = event["top1_minival"]

    def _on_trial_stopped(self, event: Event) -> None:
        trial = self.trials[event["trial_id"]]
        trial.status, trial.reason = "stopped", event["reason"]

    def _on_trial_paused(self, event: Event) -> None:
        self.trials[event["trial_id"]].status = "paused"

    def _on_trial_resumed(self, event: Event) -> None:
        self.trials[event["trial_id"]].status = "running"

    def _on_trial_failed(self, event: Event) -> None:
        trial = self.trials[event["trial_id"]]
        trial.status, trial.reason = "failed", event["reason"]

    def _on_published(self, event: Event) -> None:
        point = self._model(event)
        point.top1_val = event["top1_val"]
        point.latency_ms = event.get("latency_ms", point.latency_ms)

    def _on_measured(self, event: Event) -> None:
        self._model(event).latency_ms = event["latency_ms"]

    def _model(self, event: Event) -> BaseState | TrialState:
        if "trial_id" in event:
            return self.trials[event["trial_id"]]
        return self.base(event["width"])

    def _method(self, event: Event) -> str:
        """An event's method; that of the config where a search had but one."""
        configured = self.config.get("space", {}).get("method", "")
        only = configured if isinstance(configured, str) else configured[0]
        return str(event.get("method") or only)

    @staticmethod
    def _add_report(point: BaseState | TrialState, event: Event) -> None:
        report = Report.of(event["report"])
        # A job that resumed repeats the epochs after its last checkpoint: the newer one counts.
        kept = [before for before in point.reports if before.epoch < report.epoch]
        point.reports = [*kept, report]
        point.status = "running"
        point.top1_minival = report.top1_minival
        if report.device_seconds is not None:
            point.device_seconds = report.device_seconds


def fold(name: str, events: Iterable[Event], directory: Path | None = None) -> SearchState:
    """The state that a sequence of events adds up to.

    Args:
        name: of the search.
        events: its ledger's.
        directory: its folder, that checkpoints are relative to.

    Raises:
        UserError: an event is not of the form its kind has.
    """
    state = SearchState(name, directory=None if directory is None else directory.resolve())
    store = None if directory is None else search_store(directory)
    state.address = None if store is None else store.address
    for number, event in enumerate(events, start=1):
        try:
            state.apply(event)
        except (KeyError, TypeError, AttributeError, StopIteration, ValueError):
            raise UserError(
                f"the ledger of search {name} is damaged in line {number}: restore it from a "
                "backup, or start the search again under another name",
                exit_code=1,
            ) from None
    return state


def search_names(storage: Path) -> list[str]:
    """Names of the searches kept under a storage folder, or at the address it stands for."""
    stored = names_in_store(storage)
    if stored is not None:
        return stored
    found = storage.glob(f"searches/*/{LEDGER_NAME}")
    # Empty where a driver was killed, or gave up, before it had anything to record.
    return sorted(path.parent.name for path in found if path.stat().st_size)


def load_state(storage: Path, name: str) -> SearchState:
    """Reads a search's state from its ledger.

    Raises:
        UserError: there is no such search; near matches are offered.
    """
    directory = search_folder(storage, name)
    refresh(directory)
    state = fold(name, read_events(directory / LEDGER_NAME), directory)
    if not state.exists:
        names = search_names(storage)
        near = difflib.get_close_matches(name, names, n=3) or names[:5]
        hint = f"there is {', '.join(near)}" if near else "run `tokenpool search CONFIG.yaml` first"
        store = store_of(storage)
        where = storage if store is None else store.address
        raise UserError(f"no search named {name} under {where}: {hint}")
    return state
