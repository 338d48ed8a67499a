"""From a search's configuration to its space, and what each of its models costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenpool as tp
from pipelines.config import SearchConfig, WidthConfig
from pipelines.errors import UserError
from pipelines.models.outline import outline
from pipelines.search.job_specs import base_job, copy_of_checkpoint, model_spec
from pipelines.search.latency_table import LatencyTable
from tune_spaces.limits import Cost, Limit
from tune_spaces.space import ScheduleSpace


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
        checkpoint = copy_of_checkpoint(base_job(config, given, num_classes)) or str(checkpoint)
    spec = model_spec(config, width.width, width.heads, num_classes)
    return outline(spec, checkpoint, narrowed=wider is not None)


def is_plain(config: SearchConfig, width: WidthConfig, num_classes: int) -> bool:
    """Whether one width's model is a plain DeiT, whatever it is made from."""
    spec = model_spec(config, width.width, width.heads, num_classes)
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
