"""The state of a search: what its ledger's events add up to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipelines.config import BudgetConfig, SearchConfig
from pipelines.errors import UserError
from pipelines.search.latency_table import LatencyTable
from pipelines.search.ledger import Event, read_events
from pipelines.search.model_record import (
    LEDGER_NAMES,
    WIDTH_KINDS,
    Kind,
    Model,
    Status,
    Weights,
    of_width,
    width_id,
)
from pipelines.search.old_ledgers import recorded_config, upgraded
from pipelines.search.refresh import names_in_store, refresh
from pipelines.search.state_records import (
    CANDIDATE_KEYS,
    STAGES,
    AgreementState,
    Calibration,
    Measure,
    candidate_of,
)
from pipelines.storage.search_files import SEARCHES, Search
from pipelines.storage.working import store_of
from pipelines.train.reports import Report
from tune_spaces.candidate import Candidate, Untrained

__all__ = [
    "STAGES",
    "AgreementState",
    "Calibration",
    "Model",
    "SearchState",
    "Weights",
    "fold",
    "load_state",
    "search_names",
]


@dataclass
class SearchState:
    """All that is known of a search.

    Attributes:
        search: Where its files lie now: the ledger names checkpoints relative to its folder. None
            leaves them as they are.
        data: split → sha256 of its beton.
        images: split → number of images; empty where an older program began the search.
        source: what the data was prepared from.
        measure: what the losses of schedules that were screened are.
        models: every model by its id: each width's base and supernet, then trials as they came.
        screened: scored on the bases' weights.
        rescreened: scored on the supernets' weights.
        agreement: whose weights the scores were from → how they agreed with the finals.
        recorded: what it began with; None before it did. See `config`.
        unknown_settings: what an earlier version recorded beside that, and this one does not know.
        budget: what the driver that is or was last at work was given.
        spent: stage → device-seconds that no model's report tells of: screening, publishing, and
            what a training that was cut short had not reported.
        ended: why the last driver ended in order before all was done; empty if it did not.
    """

    name: str
    search: Search | None = field(default=None, compare=False)
    source: str = ""
    images: dict[str, int] = field(default_factory=dict)
    recorded: SearchConfig | None = None
    unknown_settings: tuple[str, ...] = ()
    config_hash: str = ""
    data: dict[str, str] = field(default_factory=dict)
    created: float = 0.0
    updated: float = 0.0
    stages: dict[str, Literal["pending", "done"]] = field(
        default_factory=lambda: dict.fromkeys(STAGES, "pending")
    )
    num_classes: int = 0
    measure: Measure = "cross-entropy"
    models: dict[str, Model] = field(default_factory=dict)
    calibrations: dict[tuple[int, str], Calibration] = field(default_factory=dict)
    latency_tables: dict[tuple[int, str], LatencyTable] = field(default_factory=dict)
    planned: list[Candidate] = field(default_factory=list)
    screened: list[Untrained] = field(default_factory=list)
    rescreened: list[Untrained] = field(default_factory=list)
    agreement: dict[str, AgreementState] = field(default_factory=dict)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    spent: dict[str, float] = field(default_factory=dict)
    ended: str = ""
    _began: float = field(default=0.0, repr=False)
    _worked: float = field(default=0.0, repr=False)

    @property
    def config(self) -> SearchConfig:
        """What the search began with.

        Raises:
            ValueError: it has not begun.
        """
        if self.recorded is None:
            raise ValueError(f"search {self.name} has not begun")
        return self.recorded

    @property
    def exists(self) -> bool:
        """Whether anything was ever recorded under this name."""
        return self.created > 0

    @property
    def complete(self) -> bool:
        """Whether every stage is done."""
        return all(status == "done" for status in self.stages.values())

    @property
    def bases(self) -> list[Model]:
        """The dense model of each width."""
        return self._of_kind("dense")

    @property
    def supernets(self) -> list[Model]:
        """The supernet of each width, trained or not."""
        return self._of_kind("supernet")

    @property
    def trials(self) -> dict[str, Model]:
        """Finals and what is trained beside them, by their ids."""
        return {name: model for name, model in self.models.items() if model.is_trial}

    @property
    def device_seconds(self) -> float:
        """Workers × seconds spent so far, over all stages."""
        return sum(self.stage_seconds.values())

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Device-seconds by stage, of those that have cost any."""
        trained = {
            "base": sum(base.device_seconds for base in self.bases),
            "supernet": sum(supernet.device_seconds for supernet in self.supernets),
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
        """Where a checkpoint of the ledger lies now: `Search.located`."""
        return checkpoint if self.search is None else self.search.located(checkpoint)

    def base(self, width: int) -> Model:
        """The base of a width."""
        return self.models[width_id("dense", width)]

    def supernet(self, width: int) -> Model:
        """The supernet of a width; one that nothing is known of where there is none."""
        return self.models[width_id("supernet", width)]

    def of_job(self, job_id: str) -> Model:
        """The model that a training job makes."""
        return next(model for model in self.models.values() if model.job_id == job_id)

    def of_event(self, event: Event) -> Model:
        """The model that an event tells of."""
        if "trial_id" in event:
            return self.models[event["trial_id"]]
        kind: Kind = "supernet" if event["event"].startswith("supernet") else "dense"
        return self.models[width_id(kind, event["width"])]

    def _of_kind(self, kind: Kind) -> list[Model]:
        return [model for model in self.models.values() if model.kind == kind]

    def weights(self, width: int, start: Weights = "supernet") -> str:
        """The checkpoint of a width's supernet, if it is wanted and was trained; or its base's."""
        if start == "supernet" and self.supernet(width).status == "done":
            return str(self.supernet(width).checkpoint)
        return str(self.base(width).checkpoint)

    def apply(self, event: Event) -> None:
        """Adds one event. An unknown kind is left out: an older program reads a newer ledger."""
        event = upgraded(event, self.recorded)
        before, self.updated = self.updated, event["time"]
        if event["event"] == "began":
            self._worked += max(0.0, before - self._began)
            self._began = self.updated
        who, _, what = event["event"].partition("_")
        if who in LEDGER_NAMES.values() and what in _STATUS:
            self._tell(self.of_event(event), what, event)
        elif (handler := getattr(self, f"_on_{event['event']}", None)) is not None:
            handler(event)

    def _on_began(self, event: Event) -> None:
        self.ended = ""
        try:
            known = {k: v for k, v in event["budget"].items() if k in BudgetConfig.model_fields}
            self.budget = BudgetConfig.model_validate(known)
        except ValidationError:  # of another version; this driver's comes with its own
            self.budget = BudgetConfig()

    def _on_ended(self, event: Event) -> None:
        self.ended = event["reason"]

    def _on_spent(self, event: Event) -> None:
        stage = event["stage"]
        self.spent[stage] = self.spent.get(stage, 0.0) + event["device_seconds"]

    def _on_created(self, event: Event) -> None:
        self.created = self._began = event["time"]
        self.recorded, self.unknown_settings = recorded_config(self.name, event["config"])
        self.config_hash = event["config_hash"]
        self.num_classes = event["num_classes"]
        self.measure, self.source = event["measure"], event["source"]
        self.data, self.images = event["data"], event["images"]
        for base in event["bases"]:
            for kind in WIDTH_KINDS:
                model = of_width(
                    kind, base["width"], base["num_heads"], base["gmacs"], self.recorded
                )
                self.models[model.model_id] = model

    def _on_stage_done(self, event: Event) -> None:
        # Stages before it are done too: a search begun before a stage existed goes on without it.
        for name in STAGES[: STAGES.index(event["stage"]) + 1]:
            self.stages[name] = "done"

    def _on_calibrated(self, event: Event) -> None:
        self.calibrations[event["width"], event["method"]] = Calibration(
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
            candidate_of(width, schedule, gmacs, method)
            for width, schedule, gmacs, _damage, method in event["rows"]
        ]

    def _on_screened(self, event: Event) -> None:
        rows = self.rescreened if event["weights"] == "supernet" else self.screened
        rows += screened_rows(event)

    def _on_agreement(self, event: Event) -> None:
        before = self.agreement.get(event["weights"])
        trusted = event["trusted"] if before is None else before.trusted  # decided once
        self.agreement[event["weights"]] = AgreementState(
            event["tau"], event["pairs"], event["bins"], trusted
        )

    def _on_trial_created(self, event: Event) -> None:
        rate = event.get("keep_rate")
        self.models[event["trial_id"]] = Model(
            model_id=event["trial_id"],
            kind="final" if rate is None else "constant",
            candidate=candidate_of(**{key: event[key] for key in CANDIDATE_KEYS}),
            num_heads=event["num_heads"],
            seed=event.get("seed"),
            keep_rate=rate,
            start=event.get("start", "base"),
        )

    def _on_published(self, event: Event) -> None:
        model = self.of_event(event)
        model.top1_val = event["top1_val"]
        model.latency_ms = event.get("latency_ms", model.latency_ms)

    def _on_measured(self, event: Event) -> None:
        self.of_event(event).latency_ms = event["latency_ms"]

    def _tell(self, model: Model, what: str, event: Event) -> None:
        """What an event says of a model's training."""
        model.status = _STATUS[what]
        if what == "report":
            report = Report.of(event["report"])
            # A job that resumed repeats the epochs after its last checkpoint: the newer one counts.
            kept = [before for before in model.reports if before.epoch < report.epoch]
            model.reports = [*kept, report]
            model.top1_minival = report.top1_minival
            if report.device_seconds is not None:
                model.device_seconds = report.device_seconds
        elif what == "done":
            model.reason = ""
            model.checkpoint = self.located(event["checkpoint"])
            model.top1_minival = event["top1_minival"]
        elif what in ("stopped", "failed"):
            model.reason = event["reason"]


# The status of a model by what was told last of its training.
_STATUS: dict[str, Status] = {
    "report": "running",
    "done": "done",
    "failed": "failed",
    "stopped": "stopped",
    "paused": "paused",
    "resumed": "running",
}


def screened_rows(event: Event) -> list[Untrained]:
    """The scores of a `screened` event."""
    return [
        Untrained(candidate_of(width, schedule, gmacs, method), top1, loss, images)
        for width, schedule, gmacs, top1, loss, method, images in event["rows"]
    ]


def fold(name: str, events: Iterable[Event], search: Search | None = None) -> SearchState:
    """The state that a sequence of events adds up to.

    Args:
        name: of the search.
        events: its ledger's.
        search: where its files lie, that checkpoints are relative to.

    Raises:
        UserError: an event is not of the form its kind has.
    """
    state = SearchState(name, search)
    for number, event in enumerate(events, start=1):
        try:
            state.apply(event)
        except (KeyError, TypeError, AttributeError, ValueError):
            raise UserError(
                f"the ledger of search {name} is damaged in line {number}: restore it from a "
                "backup, or start the search again under another name",
                exit_code=1,
            ) from None
    return state


def search_names(root: Path) -> list[str]:
    """Names of the searches kept under a storage folder, or at the address it stands for."""
    stored = names_in_store(root)
    if stored is not None:
        return stored
    found = [Search(root, folder.name) for folder in root.glob(f"{SEARCHES}/*")]
    # Empty where a driver was killed, or gave up, before it had anything to record.
    return sorted(s.name for s in found if s.ledger.is_file() and s.ledger.stat().st_size)


def load_state(search: Search) -> SearchState:
    """Reads a search's state from its ledger.

    Raises:
        UserError: there is no such search; near matches are offered.
    """
    refresh(search)
    state = fold(search.name, read_events(search.ledger), search)
    if not state.exists:
        names = search_names(search.root)
        near = difflib.get_close_matches(search.name, names, n=3) or names[:5]
        hint = f"there is {', '.join(near)}" if near else "run `tokenpool search CONFIG.yaml` first"
        store = store_of(search.root)
        where = search.root if store is None else store.address
        raise UserError(f"no search named {search.name} under {where}: {hint}")
    return state
