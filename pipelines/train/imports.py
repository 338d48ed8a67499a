"""Imports that take less time, as each worker of each trial waits for them; what DeepSpeed hides.

The names of DeepSpeed that it does not promise are here, and nowhere else.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def without_collector() -> Iterator[None]:
    """Imports inside take two thirds of their time.

    They make a million objects that stay, through which Python's collector of cycles would go
    again and again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def import_deepspeed() -> Any:
    """The `deepspeed` module, imported without MLflow, and told to compile nothing.

    Its autotuner, which nothing here uses, imports MLflow where there is one, and that takes
    longer than all the rest of DeepSpeed. `None` in `sys.modules` is Python's way to say that
    there is none; DeepSpeed copes with that. Where MLflow is imported already it costs nothing.

    On a CPU every process that initialises DeepSpeed would build, or look whether it must build,
    an all-reduce for inference. Workers that do so at the same time, or are killed meanwhile,
    spoil the build for each other, and a minute goes by each time. Training needs none of
    DeepSpeed's operators.
    """
    if "deepspeed" not in sys.modules and "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
        try:
            import deepspeed
        finally:
            del sys.modules["mlflow"]
    import deepspeed
    import deepspeed.ops

    # Kept by DeepSpeed as the list of operators that it may build.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def forget_backward(optimizer: Any) -> None:
    """Lets DeepSpeed's ZeRO optimizer begin a backward pass after one that broke off.

    It counts those it is inside of, and nobody tells it of one that ends with an error.
    """
    optimizer._backward_active_depth = 0
