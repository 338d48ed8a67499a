"""From a search's configuration to its space and its training jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenpool as tp
from pipelines.config import (
    DataConfig,
    DistillConfig,
    SandwichConfig,
    SearchConfig,
    SubNetConfig,
    TrainConfig,
    WidthConfig,
)
from pipelines.errors import UserError
from pipelines.search.latency_table import LatencyTable
from pipelines.search.state import TrialState
from pipelines.storage.address import join
from pipelines.storage.store import ObjectStore
from pipelines.train.outline import outline
from pipelines.train.spec import ModelSpec, TrainJob
from tune_spaces.space import Candidate, Cost, Limit, ScheduleSpace

# Where the base of a width lies that was given, in its job's folder.
LOADED = "loaded"


def check_method(method: str) -> None:
    """Raises UserError for a method or an option that does not exist."""
    try:
        tp.parse_method(method)
    except ValueError as error:
        raise UserError(str(error)) from None


def vit_spec(config: SearchConfig, width: WidthConfig, num_classes: int) -> tp.VitSpec:
    """The shapes of one width's model: all that its cost depends on.

    Raises:
        UserError: the checkpoint that tells them is not there, or cannot be counted.
    """
    try:
        return tp.vit_spec(_outline(config, width, num_classes))
    except ValueError as error:
        raise UserError(f"{getattr(width, 'checkpoint', None)}: {error}") from None


def _outline(config: SearchConfig, width: WidthConfig, num_classes: int) -> Any:
    """One width's model without values: a DeiT, or what its checkpoint is of."""
    wider = config.wider(width)
    given = width if wider is None else wider
    checkpoint = getattr(given, "checkpoint", None)
    if checkpoint is not None:
        checkpoint = _taken(base_job(config, given, num_classes)) or str(checkpoint)
    spec = _model_spec(config, width.width, width.heads, num_classes)
    return outline(spec, checkpoint, narrowed=wider is not None)


def _taken(job: TrainJob) -> str | None:
    """Where the search has its own copy of a checkpoint, which itself may be gone since."""
    if job.address is None:
        folder = job.directory / LOADED
        return str(folder) if (folder / "model.json").is_file() else None
    store = ObjectStore(job.address).child(LOADED)
    return None if store.read("model.json") is None else store.address


def is_plain(config: SearchConfig, width: WidthConfig, num_classes: int) -> bool:
    """Whether one width's model is a plain DeiT, whatever it is made from."""
    spec = _model_spec(config, width.width, width.heads, num_classes)
    return _outline(config, width, num_classes) is outline(spec, None)


def dense_gmacs(config: SearchConfig, width: WidthConfig, num_classes: int) -> float:
    """GMACs of one width without pooling."""
    spec = vit_spec(config, width, num_classes)
    return tp.vit_macs(spec, tp.Schedule.dense(spec.depth, spec.patches)).gmacs


def make_space(
    config: SearchConfig,
    num_classes: int,
    latencies: Mapping[tuple[int, str], LatencyTable] | None = None,
) -> ScheduleSpace:
    """The space of widths, schedules and methods, with the cost of each in closed form.

    Args:
        config: of the search.
        num_classes: of the data.
        latencies: by width and method; without them latency is not bounded.

    Raises:
        UserError: no schedule is within the bounds.
    """
    bounds = config.space
    specs = {w.width: vit_spec(config, w, num_classes) for w in config.space.widths}

    def cost_by(method: str) -> Cost:
        return lambda width, schedule: tp.vit_macs(specs[width], schedule, method).gmacs

    try:
        return ScheduleSpace(
            config.model.depth,
            config.model.num_patches(config.data.image_size),
            list(specs),
            {method: cost_by(method) for method in config.space.all_methods},
            min_tokens=bounds.min_tokens,
            step=bounds.token_step,
            max_gmacs=bounds.max_gmacs,
            min_gmacs=bounds.min_gmacs,
            limits=_limits(config, num_classes, latencies or {}),
        )
    except ValueError as error:
        raise UserError(f"space: {error}") from None


def _limits(
    config: SearchConfig, num_classes: int, latencies: Mapping[tuple[int, str], LatencyTable]
) -> list[Limit]:
    found, bounds = [], config.space
    if bounds.max_mparams is not None:
        millions = {w.width: count_parameters(config, w, num_classes) / 1e6 for w in bounds.widths}
        found.append(Limit("mparams", lambda width, _: millions[width], bounds.max_mparams))
    if bounds.max_latency_ms is not None and latencies:
        predictors = {arm: table.predictor() for arm, table in latencies.items()}

        def latency_by(method: str) -> Cost:
            return lambda width, schedule: predictors[width, method](schedule)

        measure = {method: latency_by(method) for method in bounds.all_methods}
        found.append(Limit("latency_ms", measure, bounds.max_latency_ms))
    return found


def count_parameters(config: SearchConfig, width: WidthConfig, num_classes: int) -> int:
    """Parameters of one width's model; pooling adds none. Nothing is allocated."""
    model = _outline(config, width, num_classes)
    return sum(parameter.numel() for parameter in model.parameters())


def base_job_id(width: int) -> str:
    """Names the base of a width, and its folder."""
    return f"base-w{width}"


def base_job(
    config: SearchConfig, width: WidthConfig, num_classes: int, wider: str | None = None
) -> TrainJob:
    """The job that trains the dense model of one width.

    Args:
        config: of the search.
        width: which.
        num_classes: of the data.
        wider: the trained base that it inherits from, which teaches it too.
    """
    stage, train = config.base, config.base.train
    if wider is not None:
        distill = train.distill or DistillConfig(teacher=wider)
        epochs = config.base_epochs(width)
        train = train.model_copy(update={"distill": distill, "epochs": epochs})
    return TrainJob(
        job_id=base_job_id(width.width),
        storage=_jobs_directory(config),
        store=_jobs_store(config),
        data=_absolute_data(config),
        model=_model_spec(config, width.width, width.heads, num_classes),
        inherits=wider,
        train=train,
        workers=stage.workers,
        stall_minutes=config.stall_minutes,
        full_disk_minutes=config.full_disk_minutes,
        seed=config.seed,
    )


def supernet_job_id(width: int) -> str:
    """Names the supernet of a width, and its folder."""
    return f"supernet-w{width}"


def supernet_job(
    config: SearchConfig,
    width: WidthConfig,
    train: TrainConfig,
    near: Sequence[Candidate],
    base: str,
    num_classes: int,
) -> TrainJob:
    """The job that makes a supernet of a width's base.

    Args:
        config: of the search.
        width: which.
        train: how.
        near: candidates of the width, whose neighbours are trained.
        base: where its weights lie.
        num_classes: of the data.
    """
    stage, bounds = config.supernet, config.space
    methods = bounds.all_methods
    return TrainJob(
        job_id=supernet_job_id(width.width),
        storage=_jobs_directory(config),
        store=_jobs_store(config),
        data=_absolute_data(config),
        model=_model_spec(config, width.width, width.heads, num_classes),
        method=methods[0],
        init=base,
        sandwich=SandwichConfig(
            near=tuple(SubNetConfig(schedule=c.schedule, method=c.method) for c in near),
            methods=methods,
            random=stage.random,
            uniform_share=stage.uniform_share,
            distill_weight=stage.distill_weight,
            min_tokens=bounds.min_tokens,
            token_step=bounds.token_step,
            max_gmacs=bounds.max_gmacs,
        ),
        train=train,
        workers=stage.workers,
        stall_minutes=config.stall_minutes,
        full_disk_minutes=config.full_disk_minutes,
        seed=config.seed,
    )


def final_job(config: SearchConfig, trial: TrialState, base: str, num_classes: int) -> TrainJob:
    """The job that fine-tunes one candidate from its width's base or supernet."""
    stage = config.finals
    return TrainJob(
        job_id=trial.trial_id,
        storage=_jobs_directory(config),
        store=_jobs_store(config),
        data=_absolute_data(config),
        model=_model_spec(config, trial.width, trial.num_heads, num_classes),
        schedule=trial.schedule,
        method=trial.method,
        init=base,
        train=stage.train,
        workers=stage.workers,
        stall_minutes=config.stall_minutes,
        full_disk_minutes=config.full_disk_minutes,
        seed=config.seed + (trial.seed or 0),
    )


def _jobs_directory(config: SearchConfig) -> Path:
    # Workers run elsewhere than the driver: every path they get is absolute.
    return (config.directory / "jobs").resolve()


def _jobs_store(config: SearchConfig) -> str | None:
    return None if config.address is None else join(config.address, "jobs")


def _absolute_data(config: SearchConfig) -> DataConfig:
    return config.data.model_copy(update={"path": config.data.path.resolve()})


def _model_spec(config: SearchConfig, width: int, heads: int, num_classes: int) -> ModelSpec:
    return ModelSpec(
        width=width,
        heads=heads,
        depth=config.model.depth,
        patch_size=config.model.patch_size,
        image_size=config.data.image_size,
        num_classes=num_classes,
    )
