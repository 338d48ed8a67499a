"""From a search's configuration to its training jobs: bases, supernets, finals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.config import (
    DistillConfig,
    SandwichConfig,
    SearchConfig,
    SubNetConfig,
    TrainConfig,
    WidthConfig,
    WorkersConfig,
)
from pipelines.models.model_spec import ModelSpec
from pipelines.search.model_record import Model, job_id
from pipelines.storage.address import join
from pipelines.storage.store import ObjectStore
from pipelines.train.spec import TrainJob

if TYPE_CHECKING:
    from tune_spaces.space import Candidate  # torch takes seconds

# Where the base of a width lies that was given, in its job's folder.
LOADED = "loaded"


def copy_of_checkpoint(job: TrainJob) -> str | None:
    """Where the search has its own copy of a checkpoint, which itself may be gone since."""
    if job.address is None:
        folder = job.directory / LOADED
        return str(folder) if (folder / "model.json").is_file() else None
    store = ObjectStore(job.address).child(LOADED)
    return None if store.read("model.json") is None else store.address


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
    train = config.base.train
    if wider is not None:
        distill = train.distill or DistillConfig(teacher=wider)
        epochs = config.base_epochs(width)
        train = train.model_copy(update={"distill": distill, "epochs": epochs})
    spec = model_spec(config, width.width, width.heads, num_classes)
    return _job(
        config, job_id("dense", width.width), spec, config.base.workers, train, inherits=wider
    )


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
    return _job(
        config,
        job_id("supernet", width.width),
        model_spec(config, width.width, width.heads, num_classes),
        stage.workers,
        train,
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
    )


def final_job(config: SearchConfig, trial: Model, base: str, num_classes: int) -> TrainJob:
    """The job that fine-tunes one candidate from its width's base or supernet."""
    return _job(
        config,
        trial.job_id,
        model_spec(config, trial.width, trial.num_heads, num_classes),
        config.finals.workers,
        config.finals.train,
        schedule=trial.schedule,
        method=trial.method,
        init=base,
        seed=config.seed + (trial.seed or 0),
    )


def _job(
    config: SearchConfig,
    name: str,
    spec: ModelSpec,
    workers: WorkersConfig,
    train: TrainConfig,
    **own: Any,
) -> TrainJob:
    """A job with what all jobs of a search have in common; its own come last."""
    common = {
        # Workers run elsewhere than the driver: every path they get is absolute.
        "storage": config.search.jobs.resolve(),
        "store": None if config.address is None else join(config.address, config.search.jobs.name),
        "data": config.data.model_copy(update={"path": config.data.path.resolve()}),
        "stall_minutes": config.stall_minutes,
        "full_disk_minutes": config.full_disk_minutes,
        "seed": config.seed,
    }
    return TrainJob(job_id=name, model=spec, workers=workers, train=train, **(common | own))


def model_spec(config: SearchConfig, width: int, heads: int, num_classes: int) -> ModelSpec:
    """The shape of one width's model."""
    return ModelSpec(
        width=width,
        heads=heads,
        depth=config.model.depth,
        patch_size=config.model.patch_size,
        image_size=config.data.image_size,
        num_classes=num_classes,
    )
