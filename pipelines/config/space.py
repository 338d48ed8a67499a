"""What is searched: widths, schedules, methods, bounds."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from pipelines.config.common import Positive, StrictModel, Weights


class WidthConfig(StrictModel):
    """One feature width and its attention heads."""

    width: Positive
    heads: Positive

    @model_validator(mode="after")
    def _heads_divide_width(self) -> WidthConfig:
        if self.width % self.heads:
            below = self.width // self.heads * self.heads
            above = below + self.heads
            nearest = f"{below} or {above}" if below else str(above)
            raise ValueError(
                f"width {self.width} is not divisible by its {self.heads} heads: use {nearest}"
            )
        return self


class SearchWidthConfig(WidthConfig):
    """A width of a search, with what its base is if it need not be trained."""

    checkpoint: Weights | None = Field(
        default=None,
        description="A trained dense model: a timm name, a saved model's folder or a file of "
        "weights. It is the base as it is.",
    )


class SpaceConfig(StrictModel):
    """What is searched: widths × monotone schedules × methods with their options."""

    widths: tuple[SearchWidthConfig, ...] = Field(min_length=1)
    method: str | tuple[str, ...] = Field(
        default="leader",
        min_length=1,
        description="How tokens are pooled, with options: kmeans(start=matching). Several: a "
        "list to choose from.",
    )
    min_tokens: Positive = Field(default=1, description="Fewest tokens any layer may keep.")
    token_step: Positive = Field(default=1, description="Token counts are multiples of this.")
    max_gmacs: float | None = Field(
        default=None, gt=0, description="Upper bound on a candidate's GMACs."
    )
    min_gmacs: float = Field(default=0.0, ge=0, description="Lower bound on a candidate's GMACs.")
    max_mparams: float | None = Field(
        default=None, gt=0, description="Upper bound on a model's parameters, in millions."
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Upper bound on a forward pass of `latency_batch` images, predicted from "
        "blocks timed on the machine that screens.",
    )
    latency_batch: Positive = Field(default=1, description="Images of that forward pass.")

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods to choose from."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @field_validator("method")
    @classmethod
    def _methods_differ(cls, method: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(method, str) and len(set(method)) < len(method):
            raise ValueError(f"a method is listed twice: {', '.join(method)}")
        return method

    @field_validator("widths")
    @classmethod
    def _widths_differ(cls, widths: tuple[SearchWidthConfig, ...]) -> tuple[SearchWidthConfig, ...]:
        seen = [w.width for w in widths]
        for width in seen:
            if seen.count(width) > 1:
                raise ValueError(f"width {width} is listed twice")
        return widths
