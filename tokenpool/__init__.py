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
    from tokenpool.methods.method_text import format_method, parse_method
    from tokenpool.models.build_vit import build_vit
    from tokenpool.models.inherit import inherit_width
    from tokenpool.models.storage import load, save
    from tokenpool.options import PoolOptions
    from tokenpool.pooling import Pooling, pool, pooling_of
    from tokenpool.schedule import Schedule
    from tokenpool.study.soft_extract import powerbert_schedule
    from tokenpool.study.text_encoder import PooledEncoder
    from tokenpool.token_trace import Trace, record, trace, unpool

    METHODS: tuple[str, ...]

__all__ = [
    "METHODS",
    "Clustering",
    "MacReport",
    "PoolOptions",
    "PooledEncoder",
    "Pooling",
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
    "parse_method",
    "pool",
    "pooling_of",
    "powerbert_schedule",
    "reconstruction_error",
    "record",
    "save",
    "trace",
    "unpool",
    "vit_macs",
    "vit_spec",
]

# By module, what is imported from it.
_MODULES = {
    "clustering": "Clustering kmeans kmedoids reconstruction_error",
    "cost": "MacReport VitSpec macs vit_macs vit_spec",
    "models.inherit": "inherit_width",
    "methods.method_text": "format_method parse_method",
    "models.build_vit": "build_vit",
    "options": "PoolOptions",
    "pooling": "Pooling pool pooling_of",
    "schedule": "Schedule",
    "models.storage": "load save",
    "study.soft_extract": "powerbert_schedule",
    "study.text_encoder": "PooledEncoder",
    "token_trace": "Trace record trace unpool",
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names.split()}


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
