"""What pooling saves at equal accuracy: the front against the plain model of each width."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.results.front import Front, Point
from pipelines.results.table import percent


@dataclass(frozen=True)
class Matched:
    """A plain model, and the cheapest pooled one on the front that is at least as good on val.

    Attributes:
        plain: A model that pools nothing: a width's base, or that base trained on as long as the
            finals (`finals.constant_rates: [1]`), whichever is better on val.
        pooled: None where no pooled model on the front is as good.
    """

    plain: Point
    pooled: Point | None

    @property
    def saved(self) -> float | None:
        """Share of the plain model's GMACs that the pooled one does not need."""
        return None if self.pooled is None else 1 - self.pooled.gmacs / self.plain.gmacs

    @property
    def text(self) -> str:
        """One sentence."""
        wanted = f"plain width {self.plain.width} ({percent(self.plain.top1_val)} % on val)"
        if self.pooled is None or self.saved is None:
            return f"No pooled model on the front is as good as {wanted}."
        return (
            f"{self.pooled.point_id} of width {self.pooled.width} "
            f"({percent(self.pooled.top1_val)} %) is as good as {wanted} with "
            f"{100 * self.saved:.0f} % fewer GMACs."
        )


def matched(front: Front) -> list[Matched]:
    """One row for each width whose plain model was validated, narrowest first.

    Top-1 on val decides, the mean over seeds; the front itself was chosen on minival.
    """
    plain: dict[int, Point] = {}
    for point in front.points:
        if not (point.finished and point.top1_val is not None):
            continue
        if point.kind == "dense" or point.keep_rate == 1:
            best = plain.get(point.width)
            if best is None or point.top1_val > (best.top1_val or 0.0):
                plain[point.width] = point
    pooled = [p for p in front.on_front if p.kind == "final" and p.top1_val is not None]
    return [
        Matched(
            point, next((p for p in pooled if (p.top1_val or 0.0) >= (point.top1_val or 0.0)), None)
        )
        for _, point in sorted(plain.items())
    ]
