"""DeepSpeed without what it drags in: each worker of each trial waits for its imports."""

from __future__ import annotations

import sys
from typing import Any


def import_deepspeed() -> Any:
    """The `deepspeed` module, imported without MLflow.

    Its autotuner, which nothing here uses, imports MLflow where there is one, and that takes
    longer than all the rest of DeepSpeed. `None` in `sys.modules` is Python's way to say that
    there is none; DeepSpeed copes with that. Where MLflow is imported already it costs nothing.
    """
    if "deepspeed" not in sys.modules and "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
        try:
            import deepspeed
        finally:
            del sys.modules["mlflow"]
    import deepspeed

    return deepspeed
