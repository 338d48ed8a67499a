"""What stood here is in `pipelines.models`; whoever imports it by its old name finds it."""

from __future__ import annotations

from pipelines.models.initial_weights import load_into

__all__ = ["load_into"]
