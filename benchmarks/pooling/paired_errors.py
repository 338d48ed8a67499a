"""What two methods lose of the very same tokens, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenpool.attention import AttentionRecord
from tokenpool.clustering import reconstruction_error
from tokenpool.methods import method as method_named
from tokenpool.methods.base import Pooled, TokenSet
from tokenpool.options import PoolOptions
from tokenpool.pooling import check_model, pooling_of
from tokenpool.vit import PooledBlock

__all__ = ["PairedError", "paired_errors"]

# What came into a block: tokens, timm's rotary embedding, positions of pooled tokens.
Entered = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class PairedError:
    """What a pooled model lost at one layer, and what a rival would have lost of the same tokens.

    Attributes:
        layer: from 1.
        tokens: how many came in.
        k: how many went out.
        own: reconstruction error of the model's own method, as in `ErrorPoint`.
        rival: of the rival, given the same tokens, keys and significance, at the same k.
    """

    layer: int
    tokens: int
    k: int
    own: float
    rival: float


@torch.inference_mode()
def paired_errors(
    model: nn.Module, batches: Iterable[Tensor], rival: str, **options: Any
) -> list[PairedError]:
    """Let a rival pool the very tokens a pooled model pools, layer by layer, to the same counts.

    Errors of two pooled models cannot be compared layer by layer: each makes its own tokens, which
    lie closer together the more was lost before. Here both pool the model's.

    Args:
        model: pooled, after whole blocks.
        batches: images.
        rival: of `tp.METHODS`.
        **options: of the rival, fields of `PoolOptions`.

    Raises:
        ValueError: if the model is not pooled, or the rival cannot make one of its counts.
    """
    chosen, strategy = PoolOptions.of(**options), method_named(rival)
    sums: dict[tuple[int, int, int], list[float]] = {}
    images = 0
    blocks = check_model(model)
    if pooling_of(model) is None:
        raise ValueError("the model is not pooled: there is nothing to compare with")

    def compare(block: PooledBlock, entered: Entered, given: TokenSet, own: Pooled) -> None:
        k = own.tokens.shape[1]
        if strategy.realise(given.tokens.shape[1], k, given.grid)[0] != k:
            raise ValueError(f"{rival} cannot make {k} tokens of {given.tokens.shape[1]}")
        prefix, sizes = block.plan.prefix, given.sizes
        if sizes is not None:
            sizes = F.pad(sizes, (prefix, 0), value=1.0)
        record = AttentionRecord(
            want_received=True,
            want_keys=True,
            log_sizes=sizes.log() if sizes is not None and block.proportional else None,
            sizes=sizes,
        )
        x, rope, positions = entered
        block.attend(x, record, rope, positions)
        assert record.scores is not None and record.keys is not None
        keys = record.keys[:, prefix:]
        features = keys if strategy.features(chosen) == "keys" else given.tokens
        same = given._replace(features=features, scores=record.scores[:, prefix:])
        theirs = strategy.reduce(same, k, chosen)
        spread = (given.tokens - given.tokens.mean(1, keepdim=True)).square().sum((1, 2))
        total = sums.setdefault((block.plan.index + 1, given.tokens.shape[1], k), [0.0, 0.0])
        for place, pooled in enumerate((own, theirs)):
            error = reconstruction_error(given.tokens, pooled.tokens) / spread
            total[place] += float(error.sum())

    def enter(block: PooledBlock, inputs: tuple[Tensor, ...], said: dict[str, Any]) -> None:
        carried = said.get("carried")
        positions = None if carried is None else carried.positions
        entered[block.plan.index] = (inputs[0], said.get("rope"), positions)

    training = model.training
    model.eval()
    pooled_blocks = [block for block in blocks if isinstance(block, PooledBlock)]
    observers = [block.observer for block in pooled_blocks]
    entered: dict[int, Entered] = {}
    handles = []
    try:
        for block in pooled_blocks:
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            block.observer = lambda plan, given, own: compare(
                pooled_blocks[plan.index], entered[plan.index], given, own
            )
        for batch in batches:
            images += len(batch)
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        for block, observer in zip(pooled_blocks, observers, strict=True):
            block.observer = observer
        model.train(training)
    if not images:
        raise ValueError("there are no images to measure on")
    return [
        PairedError(*key, own / images, theirs / images)
        for key, (own, theirs) in sorted(sums.items())
    ]
