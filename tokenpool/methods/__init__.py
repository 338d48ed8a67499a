"""One strategy per pooling method, by name."""

from __future__ import annotations

from tokenpool.methods.agglomerative import ATC, Agglomerative
from tokenpool.methods.base import PoolingMethod
from tokenpool.methods.clusters import KMeans, KMedoids
from tokenpool.methods.density import DensityPeaks
from tokenpool.methods.grid import GridPool
from tokenpool.methods.leader import Leader
from tokenpool.methods.pitome import PiToMe
from tokenpool.methods.selection import Importance, PowerBert, Random
from tokenpool.methods.tome import ToMe

__all__ = ["METHODS", "PoolingMethod", "method"]

METHODS: dict[str, PoolingMethod] = {
    strategy.name: strategy
    for strategy in (
        KMeans(weighted=False),
        KMedoids(weighted=False),
        KMeans(weighted=True),
        KMedoids(weighted=True),
        PowerBert(),
        Importance(),
        Random(),
        GridPool(),
        ToMe(),
        DensityPeaks(),
        Agglomerative(),
        ATC(),
        PiToMe(),
        Leader(),
    )
}


def method(name: str) -> PoolingMethod:
    """The method of that name.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise ValueError(f"there is no pooling method {name!r}: use one of {', '.join(METHODS)}")
    return METHODS[name]
