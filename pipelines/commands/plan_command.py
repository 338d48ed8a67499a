"""`tokenpool plan CONFIG.yaml`: what a search would cost, without running it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.commands.shared_options import AsJson, Overrides
from pipelines.config import SearchConfig
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.results.status import duration
from pipelines.search.check_inputs import check_given
from pipelines.search.ledger import read_events
from pipelines.search.state import SearchState, fold

if TYPE_CHECKING:
    from pipelines.search.estimate import Estimate
    from pipelines.search.probe import Probe

MOST_SECONDS = 60.0


def plan(
    config: Annotated[Path, typer.Argument(help="YAML file, as for `search`.")],
    overrides: Overrides = None,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Time nothing: no device-hours.")
    ] = False,
    seconds: Annotated[
        float, typer.Option(min=1, max=MOST_SECONDS, help="What the probe may take.")
    ] = 30.0,
    as_json: AsJson = False,
    address: Annotated[
        str | None,
        typer.Option(help="Running Ray cluster to probe on, as for `search`; default: here."),
    ] = None,
) -> None:
    """What a search would cost: stages, trials, device-hours, bytes. Starts and writes nothing."""
    from pipelines.config_file import load_config

    loaded = load_config(config, overrides)
    # Imported only now: torch takes seconds that a wrong config need not wait for.
    from pipelines.search.estimate import estimate
    from pipelines.search.search_space import check_method, make_space

    for method in loaded.space.all_methods:
        check_method(method)
    manifest = load_manifest(loaded.data.path)
    make_space(loaded, manifest.num_classes)
    check_given(loaded, manifest.num_classes, _state(loaded).stages)
    fits, found = _look(loaded, None if no_probe else seconds, address)
    costs = estimate(loaded, manifest, found, fits)
    costs.notes.extend(_done_already(loaded))
    if as_json:
        typer.echo(json.dumps(_as_dict(costs, found, loaded), indent=2))
    else:
        _print(costs, found, loaded, address or "this machine")


def _state(config: SearchConfig) -> SearchState:

    return fold(config.name, read_events(config.search.ledger))


def _done_already(config: SearchConfig) -> list[str]:
    state = _state(config)
    if not state.exists:
        return []
    done = [stage for stage, how in state.stages.items() if how == "done"]
    return [
        f"search {config.name} has used {state.device_seconds / 3600:.2g} device-hours of this "
        f"already (done: {', '.join(done) or 'no stage'})"
    ]


Fits = Callable[[int, float, float], int]


def _look(
    config: SearchConfig, seconds: float | None, address: str | None
) -> tuple[Fits, Probe | None]:
    """What fits where the search would run, and the probe's rates from there."""
    from pipelines.search.probe import probe

    if address is None:
        return _fits_here(), None if seconds is None else probe(config, seconds)
    import ray

    from cluster.session import ClusterError, ray_session

    workers = config.finals.workers
    run: Any = probe  # Ray's types know of functions without arguments only
    try:
        with ray_session(address) as cluster:

            def fits(num: int, cpus: float, gpus: float) -> int:
                try:
                    return cluster.concurrent_jobs(num, cpus, gpus)
                except ClusterError:
                    return 0

            known = {group: fits(*group) for group in _groups(config)}
            task = ray.remote(num_cpus=workers.cpus_per_worker, num_gpus=workers.gpus_per_worker)
            found = None if seconds is None else ray.get(task(run).remote(config, seconds))
            return lambda *group: known[group], found
    except ClusterError as error:
        raise UserError(str(error)) from None


def _groups(config: SearchConfig) -> set[tuple[int, float, float]]:
    """The groups of processes that the stages are made of."""
    every = (config.base.workers, config.supernet.workers, config.finals.workers)
    groups = {(w.num_workers, w.cpus_per_worker, w.gpus_per_worker) for w in every}
    return groups | {(1, config.screen.cpus_per_actor, config.screen.gpus_per_actor)}


def _fits_here() -> Fits:
    import os

    import torch

    cpus, cards = len(os.sched_getaffinity(0)), torch.cuda.device_count()

    def fits(num: int, cpus_each: float, gpus_each: float) -> int:
        groups = int(cpus / (num * cpus_each) + 1e-6)
        return min(groups, int(cards / (num * gpus_each) + 1e-6)) if gpus_each else groups

    return fits


def _hours(seconds: tuple[float, float] | None) -> list[float] | None:
    return None if seconds is None else [round(value / 3600, 5) for value in seconds]


def _as_dict(costs: Estimate, found: Probe | None, config: SearchConfig) -> dict[str, Any]:
    return {
        "name": costs.name,
        "stages": [
            {
                "stage": stage.name,
                "what": stage.what,
                "jobs": list(stage.jobs),
                "device_hours": _hours(stage.device_seconds),
                "hours": _hours(stage.seconds),
            }
            for stage in costs.stages
        ],
        "device_hours": _hours(costs.device_seconds),
        "hours": _hours(costs.seconds),
        "trials": list(costs.trials),
        "checkpoint_bytes": list(costs.checkpoint_bytes),
        "beton_bytes": costs.beton_bytes,
        "budget": config.resolved()["budget"],
        "probe": None if found is None else asdict(found),
        "notes": costs.notes,
    }


def _print(costs: Estimate, found: Probe | None, config: SearchConfig, where: str) -> None:

    console = Console(highlight=False)
    table = Table(title=f"Plan of {costs.name}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("stage", "what"):
        table.add_column(heading)
    for heading in ("device-hours", "on the clock"):
        table.add_column(heading, justify="right", no_wrap=True)

    def row(name: str, what: str, used: Any, clock: Any, style: str | None = None) -> None:
        between = "–" if used is None else f"{used[0] / 3600:.2g} – {used[1] / 3600:.2g}"
        taken = "–" if clock is None else f"{duration(clock[0])} – {duration(clock[1])}"
        table.add_row(name, what, between, taken, style=style)

    for stage in costs.stages:
        row(stage.name, stage.what, stage.device_seconds, stage.seconds)
    low, high = costs.trials
    trials = f"{low} trials" if low == high else f"{low} to {high} trials"
    row("all", trials, costs.device_seconds, costs.seconds, "bold")
    console.print(table)
    say = console.out
    say(
        f"checkpoints {size(costs.checkpoint_bytes[0])} to {size(costs.checkpoint_bytes[1])} in "
        f"{config.search.folder}, betons {size(costs.beton_bytes)} in {config.data.path}"
    )
    if found is not None:
        say(
            f"from {found.seconds:.0f} s of timing on one {found.device}; low: trials stopped as "
            "early as can be; high: none stopped, a busy machine"
        )
    for stage in costs.stages:
        if stage.device_seconds is not None and stage.seconds is None:
            say(f"stage {stage.name} does not fit {where}: its processes need more CPUs or GPUs")
    for note in [*costs.notes, *_limits(costs, config)]:
        say(note)


def _limits(costs: Estimate, config: SearchConfig) -> list[str]:
    """What the budget has to say to the estimate."""
    budget, used, clock = config.budget, costs.device_seconds, costs.seconds
    found = []
    if (
        budget.device_hours is not None
        and used is not None
        and used[1] > 3600 * budget.device_hours
    ):
        found.append(f"budget.device_hours {budget.device_hours:g} may end it before that")
    if budget.deadline_seconds is not None and clock and clock[1] > budget.deadline_seconds:
        found.append(f"budget.deadline {budget.deadline} may end it before that")
    return found


def size(count: float) -> str:
    """Bytes as people say them: `3.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
