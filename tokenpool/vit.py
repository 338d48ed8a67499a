"""The pooled form of timm's ViT block, as a view of the original (see `tokenpool.attention`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor, nn

from tokenpool.attention import AttentionRecord, ScoredAttention, View, check_pooled
from tokenpool.clustering import gather_tokens, nearest
from tokenpool.methods.base import Grid, Pooled, PoolingMethod, TokenSet
from tokenpool.options import PoolOptions
from tokenpool.patches import has_class_token
from tokenpool.rotary import pool_positions, positions_of, rotary_at, split_places

__all__ = ["LayerPlan", "PooledBlock", "SizedTokens"]


class SizedTokens(NamedTuple):
    """Tokens `[B, n, C]` with what is known of the original patch tokens they stand for.

    Passed from block to block where it is needed, and only there: hooks on blocks see the tokens
    alone.

    Attributes:
        tokens: the prefix and patch tokens.
        sizes: how many original tokens each stands for `[B, n]`; None: one, or nobody counts.
        place: which patch token stands for each original patch `[B, N]`; None: nobody asks.
        keep: whether the last block hands all this on too, instead of what the head reads.
        positions: rotary coordinates of the patch tokens, and how many patches they are the mean of
            `[B, n, 3]`; None: none are pooled yet, or the model has none.
    """

    tokens: Tensor
    sizes: Tensor | None = None
    place: Tensor | None = None
    keep: bool = False
    positions: Tensor | None = None

    def spread(self, prefix: int) -> Tensor:
        """The tokens with every original patch's in its place, `[B, prefix + N, C]`."""
        return self.tokens if self.place is None else spread(self.tokens, self.place, prefix)


@dataclass
class Carried:
    """What goes with the tokens of one block: `SizedTokens` without them, written as it changes."""

    sizes: Tensor | None = None
    place: Tensor | None = None
    keep: bool = False
    positions: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether the tokens say all there is."""
        return self.sizes is None and self.place is None and self.positions is None


@dataclass(frozen=True)
class LayerPlan:
    """What one block does: fixed when the model is pooled.

    Attributes:
        index: the number of the block, from 0.
        depth: how many blocks the model has.
        requested: the patch tokens that the schedule asks for.
        kept: the patch tokens that the method really keeps (`PoolingMethod.realise`).
        prefix: class, distillation and register tokens in front, never pooled.
        heads_read: how many prefix tokens the head reads, for `cls_only_last`; None if it reads all
            tokens.
        grid: (rows, columns) of the incoming patch tokens, for `grid`.
        method: the pooling method.
        options: the options of the method.
    """

    index: int
    depth: int
    requested: int
    kept: int
    prefix: int
    heads_read: int | None
    grid: Grid | None
    method: PoolingMethod
    options: PoolOptions


class PooledBlock(View, nn.Module):
    """timm's `Block` (or `EvaBlock`, `EvaBlockPostNorm`) with a pooling layer."""

    plan: LayerPlan
    observer: Callable[[LayerPlan, TokenSet, Pooled], None] | None
    # The origin's own, by `_take`.
    attn: Any
    mlp: Any

    def __init__(self, origin: Any, plan: LayerPlan, model: nn.Module) -> None:
        nn.Module.__init__(self)
        self._take(origin)
        modules = dict(origin._modules)
        modules["attn"] = ScoredAttention(origin.attn)
        self.__dict__["_modules"] = modules
        self.__dict__["plan"] = plan
        # Called with (plan, tokens, pooled) of every pooling while a trace is recorded.
        self.__dict__["observer"] = None
        # Asked at each pass what its head reads, which may change; in a tuple, as the origin.
        self.__dict__["_model"] = (model,)

    def restore(self) -> nn.Module:
        """The block this is a view of, with the children it has now."""
        attn = self._modules["attn"]
        origin = self._give_back({"_modules", "plan", "observer", "_model"})
        for name, child in self._modules.items():
            origin._modules[name] = child
        if isinstance(attn, ScoredAttention):
            origin._modules["attn"] = attn.restore()
        return origin

    @property
    def last(self) -> bool:
        """Whether the head comes next: the model may have lost blocks since it was pooled."""
        return self.plan.index == len(self.__dict__["_model"][0].blocks) - 1

    @property
    def spreads(self) -> bool:
        """Whether the head reads patches, so that merged ones must be given back to it in full."""
        reads: bool = self.__dict__["_model"][0].global_pool != "token"
        return reads and self.plan.method.merges

    @property
    def proportional(self) -> bool:
        """Whether log(size) is added to the attention logits."""
        chosen = self.plan.options.proportional_attention
        return self.plan.method.proportional or self.spreads if chosen is None else chosen

    @property
    def counts(self) -> bool:
        """Whether means and clustering weigh tokens by how many they stand for."""
        return self.plan.options.size_weighted or self.plan.method.needs_sizes

    def __call__(self, x: Tensor | SizedTokens, *args: Any, **kwargs: Any) -> Any:
        """Run block and hooks, which are given and give tokens alone, whatever goes with them."""
        carried = Carried()
        if isinstance(x, SizedTokens):
            carried = Carried(x.sizes, x.place, x.keep, x.positions)
            x = x.tokens
        tokens = super().__call__(x, *args, carried=carried, **kwargs)
        if carried.empty:
            return tokens
        check_pooled(self.__dict__["_model"][0])
        return SizedTokens(tokens, carried.sizes, carried.place, carried.keep, carried.positions)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        carried: Carried | None = None,
        rope: Tensor | None = None,
    ) -> Tensor:
        """Run the block and pool its patch tokens.

        Args:
            x: the tokens `[B, prefix + N, C]`.
            attn_mask: as timm takes it; only where nothing is pooled.
            is_causal: as timm takes it; only where nothing is pooled.
            carried: what goes with the tokens, changed here.
            rope: timm's sines and cosines with places beside them (`tokenpool.rotary`).

        Raises:
            ValueError: for an attention mask, which cannot be applied to pooled tokens.
        """
        plan = self.plan
        carried = Carried() if carried is None else carried
        patches = x.shape[1] - plan.prefix
        kept = min(plan.kept, patches)
        if kept < patches and not plan.method.needs_grid:
            # Other than planned where the image is not of the native size.
            kept, _ = plan.method.realise(patches, plan.requested, None)
        last = self.last and not carried.keep
        read = plan.heads_read if last and plan.options.cls_only_last and not self.spreads else None
        pools = kept < patches and read is None
        moved = carried.sizes is not None or carried.positions is not None
        if pools or moved or read is not None:
            if attn_mask is not None or is_causal:
                does = (
                    f"pools {patches} tokens to {kept}"
                    if read is None
                    else "computes only the tokens its head reads"
                )
                raise ValueError(
                    f"block {plan.index + 1} {does}: an attention mask over the original tokens "
                    "cannot be applied to pooled ones"
                )
            record = self._record(carried.sizes, pools, read)
            record.rope = self._turned(rope, carried.positions)
            if rope is not None and pools and carried.positions is None:
                carried.positions = self._placed(rope, x.shape[0])
            x = self._pooled(x, carried, kept if pools else None, record)
        else:
            # Nothing to add: the block itself, to the last bit.
            extra: dict[str, Any] = {"is_causal": True} if is_causal else {}
            if rope is not None:
                extra["rope"], _ = split_places(rope, self.attn.head_dim)
            kind: Any = type(self.origin)
            x = kind.forward(self, x, attn_mask=attn_mask, **extra)
        if last:
            if carried.place is not None:
                x = spread(x, carried.place, plan.prefix)
            carried.sizes = carried.place = carried.positions = None
        return x

    def _turned(self, rope: Tensor | None, positions: Tensor | None) -> Tensor | None:
        """The rotary embedding of tokens at these positions; None: at those of all patches."""
        if rope is None:
            return None
        if positions is None:
            return split_places(rope, self.attn.head_dim)[0]
        embedding = self.__dict__["_model"][0].rope
        return rotary_at(embedding, self.plan.index, positions, rope.dtype)

    def _placed(self, rope: Tensor, batch: int) -> Tensor:
        """The positions of all patches, which are carried from here on."""
        _, places = split_places(rope, self.attn.head_dim)
        if places is None:
            raise ValueError(
                f"block {self.plan.index + 1} was given rotary embeddings without the places of "
                "its patches: pooling needs images, all of one size"
            )
        return positions_of(self.__dict__["_model"][0].rope, places, batch)

    def _pooled(
        self, tokens: Tensor, carried: Carried, kept: int | None, record: AttentionRecord
    ) -> Tensor:
        """The block's work on sized tokens, with pooling to `kept`, if any, within or after it."""
        read = record.queries
        if not isinstance(self.attn, ScoredAttention):
            raise ValueError(
                f"the attention of block {self.plan.index + 1} was replaced after pooling: call "
                "tp.pool again"
            )
        attended = self._branch(1, tokens, partial(self.attn, record=record))
        tokens = (tokens if read is None else tokens[:, :read]) + attended
        early = self.plan.method.position(self.plan.options) == "attention"
        if kept is not None and early:
            tokens = self._pool(tokens, carried, kept, record)
        tokens = tokens + self.mix(tokens)
        if kept is not None and not early:
            tokens = self._pool(tokens, carried, kept, record)
        return tokens

    def attend(
        self,
        tokens: Tensor,
        record: AttentionRecord,
        rope: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the attention branch adds to tokens.

        Args:
            tokens: the tokens `[B, prefix + n, C]`.
            record: what is asked of attention, filled in here.
            rope: as in `forward`.
            positions: rotary coordinates of the patch tokens; None: none are pooled yet.
        """
        record.rope = self._turned(rope, positions)
        return self._branch(1, tokens, partial(self.attn, record=record))

    def mix(self, tokens: Tensor) -> Tensor:
        """What the MLP branch adds."""
        return self._branch(2, tokens, self.mlp)

    def _branch(self, number: int, tokens: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        """What the first (attention) or second (MLP) residual branch adds."""
        norm = getattr(self, f"norm{number}")
        after = isinstance(self.origin, EvaBlockPostNorm)
        out: Tensor = norm(layer(tokens)) if after else layer(norm(tokens))
        scale = getattr(self, f"ls{number}", None)
        gamma = getattr(self, f"gamma_{number}", None)
        if scale is not None:
            out = scale(out)
        elif gamma is not None:
            out = gamma * out
        dropped: Tensor = getattr(self, f"drop_path{number}")(out)
        return dropped

    def _record(self, sizes: Tensor | None, pools: bool, read: int | None) -> AttentionRecord:
        """What this block needs from its attention."""
        method, options = self.plan.method, self.plan.options
        scores = method.significance(options) if pools and method.needs_scores(options) else ""
        if scores == "cls" and not has_class_token(self.__dict__["_model"][0]):
            scores = ""
        features = method.features(options) if pools else ""
        return AttentionRecord(
            want_received=scores == "received",
            want_cls=scores == "cls",
            want_keys=features == "keys",
            want_queries=features == "queries_keys",
            log_sizes=sizes.log() if sizes is not None and self.proportional else None,
            sizes=sizes if scores and self.counts else None,
            queries=read,
        )

    def _pool(self, tokens: Tensor, carried: Carried, kept: int, record: AttentionRecord) -> Tensor:
        """Pool the patch tokens; the prefix goes in front again."""
        plan, method = self.plan, self.plan.method
        prefix = plan.prefix
        patch = tokens[:, prefix:]
        batch, count = patch.shape[:2]
        features = patch.detach() if record.keys is None else record.keys[:, prefix:]
        scores = None if record.scores is None else record.scores[:, prefix:]
        sizes, first = carried.sizes, carried.sizes is None
        if first and (self.proportional or method.needs_sizes or self.spreads):
            sizes = torch.ones(tokens.shape[:2], dtype=torch.float32, device=tokens.device)
        # Until something is pooled all count the same.
        weights = None if sizes is None or first or not self.counts else sizes[:, prefix:]
        if scores is not None and weights is not None and not self.proportional:
            # What a token receives counts all it stands for, as in proportional attention.
            scores = scores * weights
        depth = plan.index / plan.depth
        given = TokenSet(patch, features, scores, weights, plan.grid, depth, tokens)
        pooled = method.reduce(given, kept, plan.options)
        if self.observer is not None:
            self.observer(plan, given, pooled)
        if self.spreads and carried.place is None:
            carried.place = torch.arange(count, device=tokens.device).expand(batch, -1)
        if carried.place is not None:
            now = pooled.assignment if method.merges else nearest_kept(given, pooled)
            carried.place = now.gather(1, carried.place)
        if sizes is not None:
            merged = pooled.sizes
            if merged is None:
                merged = _merged_sizes(sizes[:, prefix:], pooled, kept)
            carried.sizes = torch.cat((sizes[:, :prefix], merged), 1)
        if carried.positions is not None:
            carried.positions = pool_positions(carried.positions, pooled, kept)
        if not prefix:
            return pooled.tokens
        if pooled.whole is not None:
            return pooled.whole
        return torch.cat((tokens[:, :prefix], pooled.tokens.to(tokens.dtype)), 1)


def spread(tokens: Tensor, place: Tensor, prefix: int) -> Tensor:
    """Give every original patch the token that stands for it.

    Args:
        tokens: the tokens `[B, prefix + k, C]`.
        place: the patch token, of 0..k-1, that stands for each original one `[B, N]`.
        prefix: how many tokens in front stay as they are.
    """
    patches = gather_tokens(tokens[:, prefix:], place)
    return torch.cat((tokens[:, :prefix], patches), 1) if prefix else patches


def _merged_sizes(sizes: Tensor, pooled: Pooled, kept: int) -> Tensor:
    """How many original tokens each new one stands for; dropped tokens (−1) go to none."""
    # One slot more takes the dropped tokens: a negative index would not be allowed.
    slot = torch.where(pooled.assignment < 0, kept, pooled.assignment)
    total = torch.zeros(sizes.shape[0], kept + 1, dtype=sizes.dtype, device=sizes.device)
    return total.scatter_add(1, slot, sizes)[:, :kept]


def nearest_kept(given: TokenSet, pooled: Pooled) -> Tensor:
    """The assignment `[B, N]` with every dropped token given to the kept one nearest to it."""
    _, index = nearest(given.tokens.detach(), pooled.tokens.detach())
    return torch.where(pooled.assignment < 0, index, pooled.assignment)
