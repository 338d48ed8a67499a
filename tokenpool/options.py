"""The options every pooling method shares; the defaults are the paper's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

__all__ = ["PoolOptions"]

Features = Literal["tokens", "keys", "queries_keys"]
Representative = Literal["medoid", "mean", "weighted_mean"]
Significance = Literal["received", "cls"]
Position = Literal["block", "attention"]
Start = Literal["significance", "matching"]
Linkage = Literal["average", "complete", "single", "ward"]

_CHOICES = {
    "features": get_args(Features),
    "representative": get_args(Representative),
    "significance": get_args(Significance),
    "position": get_args(Position),
    "start": get_args(Start),
    "linkage": get_args(Linkage),
}


@dataclass(frozen=True)
class PoolOptions:
    """How tokens are pooled, beyond method and schedule.

    Attributes:
        iterations: how often K-Means and K-Medoids move their centres.
        features: what is clustered: the "tokens" the block puts out, or the head-mean "keys" of its
            attention, which are narrower, or its queries and keys side by side. None: the method's
            own, "tokens" for the paper's.
        representative: what stands for a cluster: its "medoid", the "mean" of its tokens or their
            "weighted_mean" by significance. None: what the method is named after.
        significance: the attention a token receives, from all queries ("received") or from the
            class token alone ("cls"), summed over heads. None: the method's own, "received" for the
            paper's.
        proportional_attention: add log(cluster size) to the attention logits, so that a cluster
            counts as many keys. None: only for `tome`, as published, for `leader`, and in models
            whose head reads patch tokens (averages or attends over them), so that there merging
            equal tokens changes nothing.
        size_weighted: where blocks hand cluster sizes on (as proportional attention and heads that
            read patch tokens need them), let means, clustering and significance count a token as
            many as it stands for. Where they do not, as in the paper's methods with a class token,
            every token counts as one.
        cls_only_last: compute the last block's queries and MLP only for the tokens the head reads.
        position: pool after the whole "block" (the paper), or after its "attention" and before its
            MLP (ToMe as published). None: the method's own, "block" for the paper's.
        start: where K-Means and K-Medoids start: at the k tokens of highest "significance" (the
            paper), or at those left when the tokens most like another one are dropped, found by
            bipartite "matching": it loses several times less at high keep rates.
        linkage: how far apart `atc` and `agglomerative` call two clusters: the "average", largest
            ("complete") or smallest ("single") distance between their tokens, or what merging adds
            to the squared error ("ward"). None: the method's own, "average" for `atc`, "ward" for
            `agglomerative`.
        generator: where `random` and `importance` draw from; None is torch's global generator.
    """

    iterations: int = 5
    features: Features | None = None
    representative: Representative | None = None
    significance: Significance | None = None
    proportional_attention: bool | None = None
    size_weighted: bool = True
    cls_only_last: bool = False
    position: Position | None = None
    start: Start = "significance"
    linkage: Linkage | None = None
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name != "start" and value is None):
                raise ValueError(f"{name} is {value!r} but must be one of {', '.join(choices)}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations!r} but must be a whole number >= 0")

    @classmethod
    def of(cls, **values: Any) -> PoolOptions:
        """Options from keywords.

        Raises:
            ValueError: for an unknown option, listing those there are, or a value that is none.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ValueError(f"there is no pooling option {name!r}: use {', '.join(known)}")
        return cls(**values)

    def with_(self, **values: Any) -> PoolOptions:
        """A copy with these options changed."""
        return replace(self, **values)

    def as_dict(self) -> dict[str, Any]:
        """The options that differ from the defaults, without the generator: worth storing."""
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "generator" and getattr(self, field.name) != field.default
        }
