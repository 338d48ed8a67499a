"""A cheaper form of one trained model, without training: `squeeze(model, images, rate=0.5)`.

`tokenpool squeeze` is the same on prepared data. Needs no Ray.
"""

from __future__ import annotations

from pipelines.squeeze.on_images import squeeze
from pipelines.squeeze.within_bound import Squeezed, SqueezedSchedule, SqueezeOptions

__all__ = ["SqueezeOptions", "Squeezed", "SqueezedSchedule", "squeeze"]
