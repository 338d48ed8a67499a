"""A trained model squeezed on prepared data, seen as the model wants to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenpool as tp
from pipelines.config import DataConfig
from pipelines.console import Screen
from pipelines.data.manifest import Manifest, load_manifest
from pipelines.data.preprocessing import Preprocessing, own_preprocessing, preprocessing_of
from pipelines.errors import UserError
from pipelines.models.class_order import match_classes, reorder_head
from pipelines.search.chance import check_above_chance
from pipelines.search.scorer import Scorer
from pipelines.squeeze.checks import check_poolable, check_savable
from pipelines.squeeze.within_bound import Squeezed, SqueezeOptions, find_schedule, make_space


def squeeze_on(
    model: Any,
    data: Path,
    options: SqueezeOptions,
    screen: Screen,
    *,
    class_map: Path | None = None,
    kept_in: Path | None = None,
) -> Squeezed:
    """Finds a schedule within a bound for a trained model, which ends up pooled by it.

    Args:
        model: a timm ViT, pooled or not; it is taken as if it were not.
        data: a prepared folder with the model's classes; minival is what is looked at.
        options: bound, method and effort.
        screen: where progress is reported.
        class_map: file of the data's class names in the model's order, where that is another.
        kept_in: a file for what was measured until the end (`find_schedule`).

    Raises:
        UserError: the model cannot be saved, the data does not fit it, it is at chance, or nothing
            is within the bound.
    """
    check_poolable(model, options.method)
    check_savable(model)
    manifest = load_manifest(data)
    if model.num_classes != len(manifest.classes):
        raise UserError(
            f"the model has {model.num_classes} classes but {data} has {len(manifest.classes)}: "
            "give data it was trained on"
        )
    preprocessing = preprocessing_of(model, manifest)
    order, note = match_classes(model, manifest.classes, class_map)
    notes = (str(preprocessing), note)
    for line in notes:
        screen.say(line)
    if order is not None:
        reorder_head(model, order, manifest.classes)
    tp.pool(model, None)
    spec = tp.vit_spec(model)
    make_space(spec, options)  # before any image is read
    scorer = Scorer(
        {spec.width: model},
        DataConfig(path=data, image_size=preprocessing.size[0]),
        batch_size=options.batch_size,
        device=options.device,
        num_threads=None,
        preprocessing=preprocessing,
        most_images=options.images,
    )
    predicted, labels = scorer.predictions(spec.width)
    check_above_chance(predicted, labels, manifest.classes)
    found = find_schedule(
        model, scorer, options, screen, labelled=True, kept_in=kept_in, notes=notes
    )
    _keep_preprocessing(model, manifest, preprocessing)
    return found


def _keep_preprocessing(model: Any, manifest: Manifest, used: Preprocessing) -> None:
    """What the model was scored with is what it will want, also where that was assumed."""
    found = own_preprocessing(manifest, used.size[0]) | {"mean": used.mean, "std": used.std}
    if used.cut is not None:
        for name in ("crop_pct", "crop_mode", "interpolation"):
            found[name] = getattr(used.cut, name)
    config = dict(getattr(model, "pretrained_cfg", None) or {}) | found
    config["input_size"] = (len(used.mean), *used.size)
    model.pretrained_cfg = model.default_cfg = config
