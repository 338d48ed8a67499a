"""Token pooling for vision transformers (arXiv 2110.03860): the operator and the pooled models.

Needs torch, timm, numpy and safetensors only. `import tokenpool as tp`.
"""

from __future__ import annotations

from tokenpool.clustering import Clustering, kmeans, kmedoids, reconstruction_error
from tokenpool.cost import MacReport, VitSpec, macs, vit_macs, vit_spec
from tokenpool.inherit import inherit_width
from tokenpool.method_text import format_method, parse_method
from tokenpool.methods import METHODS as _STRATEGIES
from tokenpool.models import build_vit
from tokenpool.options import PoolOptions
from tokenpool.pooling import method_of, options_of, pool, realised_schedule, schedule_of
from tokenpool.schedule import Schedule
from tokenpool.softextract import powerbert_schedule
from tokenpool.storage import load, save
from tokenpool.trace import Trace, record, trace, unpool

METHODS = tuple(_STRATEGIES)

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
