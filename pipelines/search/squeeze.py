"""Schedules for one trained model without training it: calibrate, plan, screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenpool as tp
from pipelines.config import DataConfig
from pipelines.console import Screen
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.preprocessing import Preprocessing, own_preprocessing, preprocessing_of
from pipelines.errors import UserError
from pipelines.search.calibrate import damage_table, plan, probe_counts, probes
from pipelines.search.chance import check_above_chance
from pipelines.search.plan import check_method
from pipelines.search.scorer import Scorer
from pipelines.search.stages.screen import as_scored, due
from pipelines.search.state import ScreenedSchedule
from pipelines.train.class_order import match_classes, reorder_head
from tokenpool.architecture import describe
from tokenpool.preprocessing import written_config
from tune_spaces.evolution import select
from tune_spaces.space import ScheduleSpace

_GENERATIONS = 4
_PROBE_COUNTS = 6
_BINS = 12
# Of the schedules scored, the share that is planned.
_SEED_SHARE = 0.2
# A grid this fine is no better, and slower to search, where tokens are many.
_COARSE_FROM, _COARSE_STEP = 100, 4


@dataclass(frozen=True)
class SqueezeOptions:
    """How long to look, and on what.

    Attributes:
        max_gmacs: bound on the cost of one image, in 10⁹ multiply-accumulates.
        method: of `tp.METHODS`.
        schedules: how many are scored.
        images: of minival they are scored on, at most.
        batch_size: images per forward pass.
        device: where the model runs.
        seed: of the evolution.
        class_map: file of the data's class names in the model's order, where that is another.
    """

    max_gmacs: float
    method: str = "wkmedoids"
    schedules: int = 200
    images: int = 2048
    batch_size: int = 64
    device: str = "cpu"
    seed: int = 0
    class_map: Path | None = None


@dataclass(frozen=True)
class Squeezed:
    """What was found.

    Attributes:
        dense: the model as it was: its cost and scores on the same images.
        front: schedules that no other beats in both cost and loss, by ascending cost.
        best: of the front, the one of least loss.
        images: how many images the scores are from.
        notes: what was assumed or changed, each for one line.
    """

    dense: ScreenedSchedule
    front: list[ScreenedSchedule]
    best: ScreenedSchedule
    images: int
    notes: tuple[str, ...] = ()


def squeeze(model: Any, data: Path, options: SqueezeOptions, screen: Screen) -> Squeezed:
    """Finds schedules within a bound for a trained model; the model ends up with the best one.

    Args:
        model: a timm ViT, pooled or not; it is taken as if it were not.
        data: a prepared folder with the model's classes; minival is what is looked at.
        options: bound, method and effort.
        screen: where progress is reported.

    Raises:
        UserError: the model cannot be saved, the data does not fit it, it is at chance, or nothing
            is within the bound.
    """
    check_method(options.method)
    check_savable(model)
    manifest = load_manifest(data)
    _check_classes(model, data)
    preprocessing = preprocessing_of(model, manifest)
    order, note = match_classes(model, manifest.classes, options.class_map)
    notes = (str(preprocessing), note)
    for line in notes:
        screen.say(line)
    if order is not None:
        reorder_head(model, order, manifest.classes)
    tp.pool(model, None)
    spec = tp.vit_spec(model)
    space = _make_space(spec, options)
    scorer = Scorer(
        {spec.width: model},
        DataConfig(path=data, image_size=model.patch_embed.img_size[0]),
        batch_size=options.batch_size,
        device=options.device,
        num_threads=None,
        preprocessing=preprocessing,
        most_images=options.images,
    )
    predicted, labels = scorer.predictions(spec.width)
    check_above_chance(predicted, labels, manifest.classes)
    counts = probe_counts(space, _PROBE_COUNTS)
    needed = probes(space.depth, counts)
    divergence: dict[tuple[int, ...], float] = {}
    with screen.progress("probes of what pooling costs at each layer", len(needed)) as bar:
        for schedule in needed:
            found = scorer.divergence(spec.width, [schedule], options.method, options.images)
            divergence[schedule] = found[0]
            bar.advance()
    planned = plan(
        space,
        spec,
        options.method,
        damage_table(space.depth, counts, divergence),
        seeds=max(1, round(_SEED_SHARE * options.schedules)),
        bins=_BINS,
    )
    seeds = [candidate for candidate, _ in planned]
    screened: list[ScreenedSchedule] = []
    with screen.progress("schedules scored", options.schedules) as bar:
        while len(screened) < options.schedules:
            wanted, known = options.schedules, screened
            batch = due(space, known, options.seed, wanted, _GENERATIONS, seeds)
            if not batch:
                break  # the space has no more schedules
            for candidate in batch:
                schedule = tuple(candidate.schedule)
                ((top1, loss),) = scorer.score(spec.width, [schedule], options.method)
                screened.append(ScreenedSchedule(spec.width, schedule, candidate.gmacs, top1, loss))
                bar.advance(note=f"top-1 {top1:.1%} at {candidate.gmacs:.4f} GMACs")
    dense = tuple(space.dense())
    ((top1, loss),) = scorer.score(spec.width, [dense], options.method)
    dense_gmacs = tp.vit_macs(spec, tp.Schedule(dense)).gmacs
    front = _front(screened)
    best = min(front, key=lambda row: row.loss)
    tp.pool(model, best.schedule, options.method)
    _keep_preprocessing(model, manifest, preprocessing)
    total = manifest.splits["minival"].samples
    return Squeezed(
        ScreenedSchedule(spec.width, dense, dense_gmacs, top1, loss),
        front,
        best,
        min(options.images, total),
        notes,
    )


def _keep_preprocessing(model: Any, manifest: Manifest, used: Preprocessing) -> None:
    """What the model was scored with is what it will want, also where that was assumed."""
    found = own_preprocessing(manifest, used.size[0]) | {"mean": used.mean, "std": used.std}
    if used.cut is not None:
        for name in ("crop_pct", "crop_mode", "interpolation"):
            found[name] = getattr(used.cut, name)
    config = dict(getattr(model, "pretrained_cfg", None) or {}) | found
    config["input_size"] = (len(used.mean), *used.size)
    model.pretrained_cfg = model.default_cfg = config


def bound(model: Any, max_gmacs: float | None, rate: float | None) -> float:
    """The bound in GMACs, from one of the two ways to say it.

    Raises:
        UserError: neither or both are given, or the rate is no fraction.
    """
    if (max_gmacs is None) == (rate is None):
        raise UserError("squeeze needs exactly one of --max-gmacs and --rate")
    if max_gmacs is not None:
        return max_gmacs
    assert rate is not None
    if not 0 < rate < 1:
        raise UserError(f"--rate {rate:g} is no share of the dense cost: give one between 0 and 1")
    spec = tp.vit_spec(model)
    return rate * tp.vit_macs(spec, tp.Schedule.dense(spec.depth, spec.patches)).gmacs


def _make_space(spec: tp.VitSpec, options: SqueezeOptions) -> ScheduleSpace:
    step = _COARSE_STEP if spec.patches >= _COARSE_FROM else 1
    try:
        return ScheduleSpace(
            spec.depth,
            spec.patches,
            [spec.width],
            lambda width, schedule: tp.vit_macs(spec, schedule, options.method).gmacs,
            step=step,
            max_gmacs=options.max_gmacs,
        )
    except ValueError as error:
        raise UserError(f"{error}: raise --max-gmacs or --rate") from None


def _check_classes(model: Any, data: Path) -> None:
    manifest = load_manifest(data)
    if model.num_classes != len(manifest.classes):
        raise UserError(
            f"the model has {model.num_classes} classes but {data} has {len(manifest.classes)}: "
            "give data it was trained on"
        )


def check_savable(model: Any) -> None:
    """Refuses a model that could not be saved, before anything is done with it.

    Raises:
        UserError: it cannot be pooled or described, or its `pretrained_cfg` makes no sense.
    """
    try:
        describe(model)
        written_config(model)
    except ValueError as error:
        raise UserError(str(error)) from None


def _front(screened: Sequence[ScreenedSchedule]) -> list[ScreenedSchedule]:
    """By ascending cost, those of less loss than all cheaper ones."""
    rows = {(row.width, row.schedule, row.method): row for row in screened}
    front: list[ScreenedSchedule] = []
    for entry in sorted(as_scored(screened), key=lambda e: (e.candidate.gmacs, -e.quality)):
        row = rows[entry.candidate.key]
        if not front or row.loss < front[-1].loss:
            front.append(row)
    return front


def shown(front: Sequence[ScreenedSchedule], count: int) -> list[ScreenedSchedule]:
    """`count` of a front, spread over its cost, the best one among them."""
    keys = {entry.candidate.key for entry in select(as_scored(front), count)}
    return [row for row in front if (row.width, row.schedule, row.method) in keys]
