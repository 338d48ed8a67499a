"""A whole search, from its configuration to the published front's models."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import yaml
from ray.exceptions import RayError

from cluster.session import ClusterError, ray_session
from pipelines.config import BudgetConfig, SearchConfig, deciding, differences
from pipelines.console import Screen
from pipelines.data.fetch import fetch
from pipelines.data.manifest import Manifest, verify_beton
from pipelines.errors import UserError
from pipelines.search.check_inputs import check_given
from pipelines.search.halt import (
    DeviceMeter,
    Halt,
    SearchEnded,
    ends_on_signals,
    withdraw_request,
)
from pipelines.search.ledger import read_events
from pipelines.search.old_ledgers import too_different
from pipelines.search.preflight import check_cluster
from pipelines.search.recorder import Recorder
from pipelines.search.refresh import refresh, send
from pipelines.search.search_space import check_method, dense_gmacs, make_space
from pipelines.search.stages.base_stage import run_base
from pipelines.search.stages.bounds import prepare_bounds
from pipelines.search.stages.calibrate_stage import run_calibrate
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.finals_stage import run_finals
from pipelines.search.stages.plan_stage import run_plan
from pipelines.search.stages.publish_stage import publish_done, run_publish
from pipelines.search.stages.screen_stage import run_screen
from pipelines.search.stages.supernet_stage import run_rescreen, run_supernet
from pipelines.search.stages.timed import timed_gang
from pipelines.search.state import SearchState, fold
from pipelines.search.state_records import MEASURE
from pipelines.search.stored_ledger import open_ledger
from pipelines.search.system_metrics import SystemSampler
from pipelines.storage.durable import write_text
from pipelines.storage.room import DiskFull, UntilRoom
from pipelines.storage.search_files import Search
from pipelines.trials.ray_job import gang_of
from pipelines.trials.run_trials import short_reason

_STAGES: tuple[tuple[str, str, Callable[[StageContext], None]], ...] = (
    ("base", "base models: one dense model per width", run_base),
    ("calibrate", "calibration: what pooling costs at each layer", run_calibrate),
    ("plan", "plan: the best schedules by what was calibrated", run_plan),
    ("screen", "screening: schedules scored without training", run_screen),
    ("supernet", "supernets: one set of weights for all schedules", run_supernet),
    ("rescreen", "screening again, on the supernets' weights", run_rescreen),
    ("finals", "finals: the best candidates fine-tuned", run_finals),
    ("publish", "publishing: validation top-1 of the front", run_publish),
)


class Follower(Protocol):
    """Somebody who reads the ledger as it grows."""

    def notify(self) -> None:
        """The ledger has grown; costs nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of a search.

    Attributes:
        state: The search as it stands.
        ran: Whether anything was left to do.
        ended: Why it has ended before all is done, if it has.
    """

    state: SearchState
    ran: bool
    ended: SearchEnded | None = None


def run_search(
    config: SearchConfig,
    screen: Screen,
    *,
    follow: Callable[[], AbstractContextManager[Follower]],
    write: Callable[[SearchState, Search], None],
    address: str | None = None,
) -> Outcome:
    """Runs a search, or what is left of it.

    It also returns when the search has ended in order before all is done, because its budget is
    reached or somebody stopped it; the ledger says why.

    Args:
        config: The search.
        screen: What is done is shown there.
        follow: Makes what is told of the ledger's growth for as long as stages run.
        write: Writes the results into the search's folder, while nobody else may work on it.
        address: Of a running Ray cluster; None for a local one.

    Raises:
        UserError: the data is missing or altered, the search exists with another config,
            the cluster is too small, or a stage failed.
    """
    for method in config.space.all_methods:
        check_method(method)
    search = Search.open(config.storage, config.name)
    refresh(search)
    state = fold(config.name, read_events(search.ledger), search)
    if state.exists:
        _check_same(state, config)
    if state.complete:
        screen.say(f"Search {config.name} is complete: nothing is left to run.")
        return Outcome(state, ran=False)
    store = search.store
    if store is not None:
        store.check_writable(f".check-{secrets.token_hex(8)}")
    manifest = fetch(config.data.path, config.data.address)
    make_space(config, len(manifest.classes))  # bounds that nothing meets are said now
    check_given(config, len(manifest.classes), state.stages)
    for split in manifest.splits:
        verify_beton(config.data.path, split, manifest)
    if state.exists:
        _check_same_data(state, config, manifest)
    used_up = _used_up(config, state)
    if used_up is not None:
        if not state.exists:
            raise UserError(f"{used_up}: {how_to_go_on(used_up)}")
        return Outcome(state, ran=False, ended=used_up)
    with open_ledger(search, screen.say) as ledger:
        # Read again: only what is read under the lock is sure to be the whole of it.
        state = fold(config.name, read_events(search.ledger), search)
        withdraw_request(search)  # it was meant for a driver that is gone
        recorder = Recorder(ledger, state)
        if state.exists:
            done = [name for name, status in state.stages.items() if status == "done"]
            screen.say(f"Resuming search {config.name} (done: {', '.join(done) or 'nothing yet'}).")
        ended = _run_stages(config, manifest, recorder, screen, follow, address)
        try:
            write(state, search)
        except UserError as error:
            if ended is None:
                raise
            screen.say(str(error), style="yellow")  # why it has ended is said below
        withdraw_request(search)
    return Outcome(state, ran=True, ended=ended)


def _used_up(config: SearchConfig, state: SearchState) -> SearchEnded | None:
    """Which limit of the budget is reached before anything has started, if one is."""
    halt = Halt(config.budget, state, DeviceMeter(), config.search)
    trials = Counter(trial.status for trial in state.trials.values())
    limit = config.budget.trials
    begun_all = trials["pending"] and not trials["running"] + trials["failed"]
    if limit is not None and begun_all and state.trials_begun >= limit:
        return SearchEnded(
            "budget", f"budget.trials {limit} is reached ({trials['pending']} are not trained)"
        )
    try:
        halt.check_budget()
    except SearchEnded as ended:
        return ended
    return None


def how_to_go_on(ended: SearchEnded) -> str:
    """What to do after a search has ended in order."""
    if ended.why != "budget":
        return "type the same command to go on"
    return f"raise {str(ended).split()[0]} with --set and type the command again to go on"


def _run_stages(
    config: SearchConfig,
    manifest: Manifest,
    recorder: Recorder,
    screen: Screen,
    follow: Callable[[], AbstractContextManager[Follower]],
    address: str | None,
) -> SearchEnded | None:
    """Runs what is left; returns why it ended before all was done, if it did."""
    try:
        with (
            follow() as follower,
            ray_session(address) as cluster,
        ):
            meter = DeviceMeter()
            halt = Halt(config.budget, recorder.state, meter, config.search)
            context = StageContext(config, cluster, recorder, screen, halt, meter)
            check_fits(context)
            if address is not None:
                check_cluster(config, manifest, recorder.state.stages, screen)
            if not recorder.state.exists:
                _create(recorder, config, manifest)
            recorder.add("began", budget=config.resolved()["budget"])
            screen.say(
                f"config {config.config_hash()}, ledger {config.search.ledger}",
                style="dim",
            )
            recorder.notify = follower.notify
            recorder.until_room = UntilRoom(
                partial(screen.say, style="yellow"),
                lambda: halt.ended is not None,
                config.full_disk_minutes,
            )
            sampler = SystemSampler(partial(_record_system, recorder), config.search.folder)
            with sampler, ends_on_signals(halt):
                _run_each(context)
    except SearchEnded as ended:
        return ended
    except ClusterError as error:
        raise UserError(str(error), exit_code=error.exit_code) from None
    except RayError as error:
        raise UserError(
            f"Ray failed ({short_reason(error)}): type the same command to go on", exit_code=1
        ) from error
    return None


def _run_each(context: StageContext) -> None:
    """Runs the stages that are not done.

    Raises:
        SearchEnded: it ended before that; what is done is published if the budget was the reason,
            and the ledger says why.
    """
    try:
        prepare_bounds(context)
        for number, (name, title, run) in enumerate(_STAGES, start=1):
            if context.state.stages[name] != "done":
                context.check()
                context.screen.heading(f"{number}/{len(_STAGES)} {title}")
                # To publish costs little, and without it the rest was for nothing.
                last = name == "publish"
                run(replace(context, halt=_unbounded(context)) if last else context)
    except SearchEnded as ended:
        if ended.why == "budget":
            context.screen.heading("publishing what is done")
            with suppress(SearchEnded):  # somebody will not wait even for that
                publish_done(replace(context, halt=_unbounded(context)))
        context.recorder.add("ended", why=ended.why, reason=str(ended))
        raise


def _unbounded(context: StageContext) -> Halt:
    """Ends what comes after the budget is reached only where somebody asks for it."""
    return Halt(BudgetConfig(), context.state, context.meter, context.config.search)


def check_fits(context: StageContext) -> None:
    """Raises UserError where a stage needs more than the cluster has: before any of them runs."""
    config, todo = context.config, context.state.stages
    for name, workers in (("base", config.base.workers), ("finals", config.finals.workers)):
        if todo[name] != "done":
            gang = gang_of(workers)
            context.fits(gang.num_workers, gang.cpus, gang.gpus, gang.accelerator)
    screen = config.screen
    context.fits(1, screen.cpus_per_actor, screen.gpus_per_actor)
    timed_gang(context)


def _record_system(recorder: Recorder, metrics: dict[str, float]) -> None:
    with suppress(DiskFull):  # the search itself says so, and waits
        recorder.add_all([("system", {"metrics": metrics})], wait=False)


def _create(recorder: Recorder, config: SearchConfig, manifest: Manifest) -> None:
    num_classes = len(manifest.classes)
    # The rest of it is what a ledger has always said of a base that nothing is known of.
    untrained: dict[str, Any] = {
        "status": "pending", "top1_minival": None, "top1_val": None, "checkpoint": None,
        "reason": "", "reports": [], "device_seconds": 0.0, "latency_ms": None,
    }  # fmt: skip
    bases = [
        {"width": w.width, "num_heads": w.heads, "gmacs": dense_gmacs(config, w, num_classes)}
        | untrained
        for w in config.space.widths
    ]
    recorder.add(
        "created",
        config=config.resolved(),
        config_hash=config.config_hash(),
        num_classes=num_classes,
        measure=MEASURE,
        data={name: split.sha256 for name, split in manifest.splits.items()},
        images={name: split.samples for name, split in manifest.splits.items()},
        source=manifest.source,
        bases=bases,
    )
    write_text(config.search.config_file, yaml.safe_dump(config.resolved()))
    send(config.search, config.search.config_file.name)


def _check_same(state: SearchState, config: SearchConfig) -> None:
    """Raises UserError unless the search was started with this config.

    Settings that came with a later version of the program have their defaults, and a search begun
    before it goes on.
    """
    if state.unknown_settings:
        raise too_different(config.name, f"it had {', '.join(state.unknown_settings)}")
    changed = differences(deciding(state.config.resolved()), deciding(config.resolved()))
    if not changed:
        return
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    recorded_as = f"{config.search.shown}/{config.search.config_file.name}"
    raise UserError(
        f"search {config.name} exists with another config ({changed[0]}{more}): "
        f"choose a new name with --set name=…, or go back to {recorded_as}"
    )


def _check_same_data(state: SearchState, config: SearchConfig, manifest: Manifest) -> None:
    """Raises UserError if the betons are not those the search began with."""
    for name, split in manifest.splits.items():
        if state.data.get(name) != split.sha256:
            raise UserError(
                f"{config.data.path}/{split.file} is not what search {config.name} began with: "
                "bring that data back, or choose a new name with --set name=…"
            )
