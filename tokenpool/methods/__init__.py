"""One strategy per pooling method, by name; importing this registers them all."""

from tokenpool.methods import clusters, selection  # noqa: F401  (they register themselves)
from tokenpool.methods.base import METHODS, PoolingMethod, method, register_method

__all__ = ["METHODS", "PoolingMethod", "method", "register_method"]
