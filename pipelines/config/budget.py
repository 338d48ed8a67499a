"""What a search may use at most."""

from __future__ import annotations

import re
from datetime import date, datetime

from pydantic import Field, field_validator, model_validator

from pipelines.config.common import Positive, StrictModel

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")


_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class BudgetConfig(StrictModel):
    """What a search may use at most; reaching a limit ends it in order, with the front so far.

    It is no part of what decides a result: a search goes on when it is typed again with more.
    """

    device_hours: float | None = Field(
        default=None, gt=0, description="Workers × hours, over all stages."
    )
    deadline: str | None = Field(
        default=None,
        description="Time at work as 90s, 45m, 8h or 2d, or a point in time: 2026-12-01T08:00.",
    )
    trials: Positive | None = Field(
        default=None, description="Trainings of finals and what is trained beside them."
    )

    @field_validator("deadline", mode="before")
    @classmethod
    def _deadline_is_text(cls, deadline: object) -> object:
        # YAML reads a bare ISO time as a datetime, and a bare number as one.
        if isinstance(deadline, date):
            return deadline.isoformat()
        return str(deadline) if isinstance(deadline, int | float) else deadline

    @model_validator(mode="after")
    def _deadline_can_be_read(self) -> BudgetConfig:
        if self.deadline is not None and self.deadline_seconds is None:
            _ = self.deadline_time
        return self

    @property
    def deadline_seconds(self) -> float | None:
        """The deadline where it is a duration, in seconds."""
        match = _DURATION.fullmatch(self.deadline or "")
        if match is None or float(match[1]) <= 0:
            return None
        return float(match[1]) * _UNITS[match[2]]

    @property
    def deadline_time(self) -> float | None:
        """The deadline where it is a point in time, in seconds since the epoch.

        Without a zone it is the local one.
        """
        if self.deadline is None or self.deadline_seconds is not None:
            return None
        try:
            return datetime.fromisoformat(self.deadline).timestamp()
        except ValueError:
            raise ValueError(
                f"deadline {self.deadline} is neither a duration like 45m or 8h nor a time like "
                "2026-12-01T08:00"
            ) from None
