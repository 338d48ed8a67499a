"""Pooled forms of timm's ViT block and attention, as views of the originals.

A view is a module of its own that holds the very children, parameters and hooks of the block it
stands for, so that weights, state-dict keys and the user's hooks stay what they were, and taking
the view away restores the model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tokenpool.clustering import nearest
from tokenpool.methods.base import Grid, Pooled, PoolingMethod, TokenSet
from tokenpool.options import PoolOptions

__all__ = ["LayerPlan", "PooledBlock", "ScoredAttention", "SizedTokens"]


class SizedTokens(NamedTuple):
    """Tokens `[B, N, C]` with how many original tokens each stands for `[B, N]`.

    Passed from block to block by the methods that weigh tokens by size, and only by those.
    """

    tokens: Tensor
    sizes: Tensor


@dataclass
class AttentionRecord:
    """What a block wants of one attention call, and what it gets.

    Attributes:
        want_received: ask for the attention each token receives from all queries.
        want_cls: ask for the attention each token receives from the first (class) token.
        want_keys: ask for the head-mean keys.
        log_sizes: added to the logits of each key `[B, N]`, or None.
        queries: compute only the first `queries` rows, or all if None.
        scores: significance `[B, N]` of all tokens, once attended.
        keys: `[B, N, head_dim]`, once attended.
    """

    want_received: bool = False
    want_cls: bool = False
    want_keys: bool = False
    log_sizes: Tensor | None = None
    queries: int | None = None
    scores: Tensor | None = None
    keys: Tensor | None = None


@dataclass(frozen=True)
class LayerPlan:
    """What one block does: fixed when the model is pooled.

    Attributes:
        index: of the block, from 0.
        depth: number of blocks.
        requested: patch tokens the schedule asks for.
        kept: patch tokens the method really keeps (`PoolingMethod.realise`).
        prefix: class, distillation and register tokens in front, never pooled.
        heads_read: prefix tokens the head reads, for `cls_only_last`; None if it reads all tokens.
        grid: (rows, columns) of the incoming patch tokens, for `grid`.
        method: the strategy.
        options: its options.
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

    @property
    def last(self) -> bool:
        """Whether this is the last block."""
        return self.index == self.depth - 1

    @property
    def proportional(self) -> bool:
        """Whether log(size) is added to the attention logits."""
        chosen = self.options.proportional_attention
        return self.method.proportional if chosen is None else chosen

    @property
    def carries_sizes(self) -> bool:
        """Whether blocks hand sizes on."""
        return self.proportional or self.method.needs_sizes


class View:
    """What both views share: taking over a module's state and giving it back."""

    def _take(self, origin: nn.Module) -> None:
        # Shallow: children, parameters and hook dictionaries are the origin's own objects.
        self.__dict__.update(origin.__dict__)
        # In a tuple, so that nn.Module does not register it as a second child.
        self.__dict__["_origin"] = (origin,)

    @property
    def origin(self) -> nn.Module:
        """The module this is a view of."""
        module: nn.Module = self.__dict__["_origin"][0]
        return module

    def _give_back(self, own: set[str]) -> nn.Module:
        """The origin, with whatever was changed on the view since."""
        origin = self.origin
        for name, value in self.__dict__.items():
            if name not in own and name != "_origin":
                origin.__dict__[name] = value
        return origin


class ScoredAttention(View, nn.Module):
    """timm's `Attention` that also tells its significance scores and keys when asked."""

    # The origin's own, by `_take`.
    num_heads: int
    scale: float
    fused_attn: bool
    qkv: Any
    q_norm: Any
    k_norm: Any
    attn_drop: Any
    proj: Any
    proj_drop: Any

    def __init__(self, origin: Any) -> None:
        nn.Module.__init__(self)
        self._take(origin)

    def restore(self) -> nn.Module:
        """The attention this is a view of."""
        return self._give_back(set())

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        record: AttentionRecord | None = None,
    ) -> Tensor:
        """Attend `x [B, N, C]`; without a record exactly as the origin does."""
        if record is None:
            extra: dict[str, Any] = {"is_causal": True} if is_causal else {}
            origin_forward: Any = Attention.forward
            plain: Tensor = origin_forward(self, x, attn_mask=attn_mask, **extra)
            return plain
        q, k, v = self._project(x, record.queries)
        bias = None
        if record.log_sizes is not None:
            bias = record.log_sizes[:, None, None, :].to(q.dtype)
        if record.want_keys:
            record.keys = k.detach().mean(1)
        if record.want_cls:
            record.scores = _attention(q[:, :, :1], k, self.scale, bias).detach().sum((1, 2))
        if record.want_received:
            out, record.scores = _attend_scored(
                q, k, v, self.scale, bias, self.attn_drop.p if self.training else 0.0
            )
        elif self.fused_attn:
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, dropout_p=self.attn_drop.p if self.training else 0.0
            )
        else:
            out = self.attn_drop(_attention(q, k, self.scale, bias)) @ v
        out = out.transpose(1, 2).flatten(2)
        norm = getattr(self, "norm", None)
        out = out if norm is None else norm(out)
        gate = getattr(self, "gate", None)
        if gate is not None:
            out = out * gate(x[:, : out.shape[1]]).sigmoid()
        return self.proj_drop(self.proj(out))

    def _project(self, x: Tensor, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values `[B, H, n, head_dim]`; queries of the first rows alone if told."""
        batch, tokens, _ = x.shape
        heads = self.num_heads
        if queries is None:
            qkv = self.qkv(x).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0)
        else:
            width = self.qkv.weight.shape[0] // 3
            w, b = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, :queries], w[:width], None if b is None else b[:width])
            kv = F.linear(x, w[width:], None if b is None else b[width:])
            q = q.reshape(batch, queries, heads, -1).transpose(1, 2)
            k, v = kv.reshape(batch, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.q_norm(q), self.k_norm(k), v


class PooledBlock(View, nn.Module):
    """timm's `Block` followed by a pooling layer."""

    plan: LayerPlan
    observer: Callable[[LayerPlan, TokenSet, Pooled], None] | None
    # The origin's own, by `_take`.
    norm1: Any
    attn: Any
    ls1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    ls2: Any
    drop_path2: Any

    def __init__(self, origin: Any, plan: LayerPlan) -> None:
        nn.Module.__init__(self)
        self._take(origin)
        modules = dict(origin._modules)
        modules["attn"] = ScoredAttention(origin.attn)
        self.__dict__["_modules"] = modules
        self.__dict__["plan"] = plan
        # Called with (plan, tokens, pooled) of every pooling while a trace is recorded.
        self.__dict__["observer"] = None

    def restore(self) -> nn.Module:
        """The block this is a view of, with the children it has now."""
        attn = self._modules["attn"]
        origin = self._give_back({"_modules", "plan", "observer"})
        for name, child in self._modules.items():
            origin._modules[name] = child
        if isinstance(attn, ScoredAttention):
            origin._modules["attn"] = attn.restore()
        return origin

    def forward(
        self,
        x: Tensor | SizedTokens,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor | SizedTokens:
        """Run the block on `[B, prefix + N, C]` and pool the N patch tokens."""
        tokens, sizes = (x.tokens, x.sizes) if isinstance(x, SizedTokens) else (x, None)
        plan = self.plan
        patches = tokens.shape[1] - plan.prefix
        kept = min(plan.kept, patches)
        read = plan.heads_read if plan.last and plan.options.cls_only_last else None
        pools = kept < patches and read is None
        if not pools and sizes is None and read is None:
            # Nothing to add: the block itself, to the last bit.
            extra: dict[str, Any] = {"is_causal": True} if is_causal else {}
            origin_forward: Any = Block.forward
            plain: Tensor = origin_forward(self, tokens, attn_mask=attn_mask, **extra)
            return plain
        if attn_mask is not None or is_causal:
            raise ValueError(
                f"block {plan.index + 1} pools {patches} tokens to {kept}: an attention mask over "
                "the original tokens cannot be applied to pooled ones"
            )
        record = self._record(sizes, pools, read)
        attended = self.attn(self.norm1(tokens), record=record)
        tokens = (tokens if read is None else tokens[:, :read]) + self.drop_path1(
            self.ls1(attended)
        )
        early = plan.options.position == "attention"
        if pools and early:
            tokens, sizes = self._pool(tokens, sizes, kept, record)
        tokens = tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))
        if pools and not early:
            tokens, sizes = self._pool(tokens, sizes, kept, record)
        return tokens if sizes is None or plan.last else SizedTokens(tokens, sizes)

    def _record(self, sizes: Tensor | None, pools: bool, read: int | None) -> AttentionRecord:
        """What this block needs from its attention."""
        plan = self.plan
        scores = pools and plan.method.needs_scores(plan.options)
        return AttentionRecord(
            want_received=scores and plan.options.significance == "received",
            want_cls=scores and plan.options.significance == "cls",
            want_keys=pools and plan.method.features(plan.options) == "keys",
            log_sizes=sizes.log() if sizes is not None and plan.proportional else None,
            queries=read,
        )

    def _pool(
        self, tokens: Tensor, sizes: Tensor | None, kept: int, record: AttentionRecord
    ) -> tuple[Tensor, Tensor | None]:
        """Pool the patch tokens; the prefix goes in front again."""
        plan = self.plan
        prefix = plan.prefix
        patch = tokens[:, prefix:]
        features = patch.detach() if record.keys is None else record.keys[:, prefix:]
        scores = None if record.scores is None else record.scores[:, prefix:]
        if plan.carries_sizes and sizes is None:
            sizes = torch.ones(tokens.shape[:2], dtype=torch.float32, device=tokens.device)
        given = TokenSet(
            patch, features, scores, None if sizes is None else sizes[:, prefix:], plan.grid
        )
        pooled = plan.method.reduce(given, kept, plan.options)
        if self.observer is not None:
            self.observer(plan, given, pooled)
        if prefix:
            tokens = torch.cat((tokens[:, :prefix], pooled.tokens.to(tokens.dtype)), 1)
        else:
            tokens = pooled.tokens
        if sizes is not None:
            merged = _merged_sizes(sizes[:, prefix:], pooled, kept)
            sizes = torch.cat((sizes[:, :prefix], merged), 1)
        return tokens, sizes


def _merged_sizes(sizes: Tensor, pooled: Pooled, kept: int) -> Tensor:
    """How many original tokens each new one stands for; dropped tokens (−1) go to none."""
    # One slot more takes the dropped tokens: a negative index would not be allowed.
    slot = torch.where(pooled.assignment < 0, kept, pooled.assignment)
    total = torch.zeros(sizes.shape[0], kept + 1, dtype=sizes.dtype, device=sizes.device)
    return total.scatter_add(1, slot, sizes)[:, :kept]


def _attention(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Softmax attention `[B, H, n, N]`."""
    logits = (q * scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def _attend_scored(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, dropout: float
) -> tuple[Tensor, Tensor]:
    """Attention output, and what each token receives summed over heads and queries `[B, N]`.

    One softmax serves both. Outside autocast, which would keep the softmax in fp32 and cast back
    and forth; the sum over queries is accumulated in fp32.
    """
    with torch.autocast(q.device.type, enabled=False):
        v = v.to(q.dtype)
        attention = _attention(q, k.to(q.dtype), scale, bias)
        scores = attention.detach().sum((1, 2), dtype=torch.promote_types(q.dtype, torch.float32))
        if dropout:
            attention = F.dropout(attention, dropout)
        return attention @ v, scores


def nearest_kept(given: TokenSet, pooled: Pooled) -> Tensor:
    """The assignment `[B, N]` with every dropped token given to the kept one nearest to it."""
    _, index = nearest(given.tokens.detach(), pooled.tokens.detach())
    return torch.where(pooled.assignment < 0, index, pooled.assignment)
