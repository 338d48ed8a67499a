"""Token pooling for vision transformers (arXiv 2110.03860): the operator and the pooled models.

Needs torch, timm, numpy and safetensors only. `import tokenpool as tp`. Each name is imported when
it is first asked for, so that who wants a schedule alone does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenpool.clustering import Clustering, kmeans, kmedoids, reconstruction_error
    from tokenpool.cost import MacReport, VitSpec, macs, vit_macs, vit_spec
    from tokenpool.inherit import inherit_width
    from tokenpool.method_text import format_method, parse_method
    from tokenpool.models import build_vit
    from tokenpool.options import PoolOptions
    from tokenpool.pooling import method_of, options_of, pool, realised_schedule, schedule_of
    from tokenpool.schedule import Schedule
    from tokenpool.softextract import powerbert_schedule
    from tokenpool.storage import load, save
    from tokenpool.token_trace import Trace, record, trace, unpool

    METHODS: tuple[str, ...]

__all__ = [
    "METHODS",
    "Clustering",
    "MacReport",
    "PoolOptions",
    "Schedule",
    "Trace",
    "VitSpec",
    "build_vit",
    "format_method",
    "inherit_width",
    "kmeans",
    "kmedoids",
    "load",
    "macs",
    "method_of",
    "options_of",
    "parse_method",
    "pool",
    "powerbert_schedule",
    "realised_schedule",
    "reconstruction_error",
    "record",
    "save",
    "schedule_of",
    "trace",
    "unpool",
    "vit_macs",
    "vit_spec",
]

_PLACES = {
    "Clustering": "clustering",
    "kmeans": "clustering",
    "kmedoids": "clustering",
    "reconstruction_error": "clustering",
    "MacReport": "cost",
    "VitSpec": "cost",
    "macs": "cost",
    "vit_macs": "cost",
    "vit_spec": "cost",
    "inherit_width": "inherit",
    "format_method": "method_text",
    "parse_method": "method_text",
    "build_vit": "models",
    "PoolOptions": "options",
    "method_of": "pooling",
    "options_of": "pooling",
    "pool": "pooling",
    "realised_schedule": "pooling",
    "schedule_of": "pooling",
    "Schedule": "schedule",
    "powerbert_schedule": "softextract",
    "load": "storage",
    "save": "storage",
    "Trace": "token_trace",
    "record": "token_trace",
    "trace": "token_trace",
    "unpool": "token_trace",
}


def __getattr__(name: str) -> Any:
    if name == "METHODS":
        value: Any = tuple(import_module("tokenpool.methods").METHODS)
    elif name in _PLACES:
        value = getattr(import_module(f"tokenpool.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'tokenpool' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
