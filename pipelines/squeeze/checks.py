"""What a model is refused for before anything is done with it."""

from __future__ import annotations

from typing import Any

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.search.search_space import check_method
from tokenpool.models.architecture import describe
from tokenpool.models.preprocessing import written_config


def check_poolable(model: Any, method: str) -> None:
    """Refuses a model that cannot be pooled so.

    Raises:
        UserError: it cannot, or there is no such method.
    """
    check_method(method)
    try:
        spec = tp.vit_spec(model)
        tp.vit_macs(spec, tp.Schedule.dense(spec.depth, spec.patches), method)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_savable(model: Any) -> None:
    """Refuses a model that could not be saved.

    Raises:
        UserError: it cannot be pooled or described, or its `pretrained_cfg` makes no sense.
    """
    try:
        describe(model)
        written_config(model)
    except ValueError as error:
        raise UserError(str(error)) from None
