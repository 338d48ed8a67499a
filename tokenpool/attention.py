"""timm's attention, as a view of the original that also tells what pooling needs.

A view is a module of its own that holds the very children, parameters and hooks of the module it
stands for, so that weights, state-dict keys and the user's hooks stay what they were, and taking
the view away restores the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from tokenpool import gpu

__all__ = ["AttentionRecord", "ScoredAttention", "View"]


@dataclass
class AttentionRecord:
    """What a block asks of one attention call, and what it is told.

    Attributes:
        want_received: asks for the attention each token receives from all queries.
        want_cls: asks for the attention each token receives from the first (class) token.
        want_keys: asks for the mean of the keys over heads.
        want_queries: asks for the mean of the queries over heads beside that of the keys.
        log_sizes: what is added to the logits of each key `[B, N]`, or None.
        sizes: as how many queries each token counts in what is received `[B, N]`; None: as one.
        queries: how many rows are computed, from the first; None: all.
        rope: sines and cosines of the rotary angles of patch tokens, as timm has them, or None.
        scores: the significance `[B, N]` of all tokens, told by the call.
        keys: the means over heads `[B, N, head_dim]`, or `[B, N, 2·head_dim]` with those of the
            queries in front, told by the call.
    """

    want_received: bool = False
    want_cls: bool = False
    want_keys: bool = False
    want_queries: bool = False
    log_sizes: Tensor | None = None
    sizes: Tensor | None = None
    queries: int | None = None
    rope: Tensor | None = None
    scores: Tensor | None = None
    keys: Tensor | None = None


class View:
    """What the views share: taking over a module's state and giving it back."""

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
            # A call compiled for the view would run the view.
            if name not in own and name not in ("_origin", "_compiled_call_impl"):
                origin.__dict__[name] = value
        return origin


def check_pooled(model: Any) -> None:
    """Raises ValueError where a block is timm's own, which knows nothing of what goes with tokens.

    Whatever else stands for a block (a compiled or wrapped one) may hand it on.
    """
    for index, block in enumerate(model.blocks, start=1):
        if isinstance(block, Block | EvaBlock | EvaBlockPostNorm):
            raise ValueError(
                f"block {index} is a {type(block).__name__} that was put into the model after it "
                "was pooled: call tp.pool again"
            )


class ScoredAttention(View, nn.Module):
    """timm's `Attention` (or `EvaAttention`, `AttentionRope`) that also tells scores and keys."""

    # The origin's own, by `_take`.
    num_heads: int
    scale: float
    fused_attn: bool
    head_dim: int
    num_prefix_tokens: int
    qkv: Any
    q_proj: Any
    k_proj: Any
    v_proj: Any
    q_bias: Any
    k_bias: Any
    v_bias: Any
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

    @property
    def qkv_bias_separate(self) -> bool:
        """Whether `qkv` is called and its bias added after.

        `EvaAttention` takes the weight of `qkv` else, and would pass over a wrapped layer.
        """
        own = self.__dict__.get("qkv_bias_separate", False)
        return bool(own) or (self.qkv is not None and not is_plain_linear(self.qkv))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        record: AttentionRecord | None = None,
        rope: Tensor | None = None,
    ) -> Tensor:
        """Attend; without a record exactly as the origin does.

        Args:
            x: the tokens `[B, N, C]`.
            attn_mask: as timm takes it; only without a record.
            is_causal: as timm takes it; only without a record.
            record: what the block asks for, filled in here.
            rope: sines and cosines of rotary angles; with a record, they are in it.
        """
        if record is None:
            extra: dict[str, Any] = {"is_causal": True} if is_causal else {}
            if rope is not None:
                extra["rope"] = rope
            kind: Any = type(self.origin)
            plain: Tensor = kind.forward(self, x, attn_mask=attn_mask, **extra)
            return plain
        q, k, v = self._project(x, record)
        bias = None
        if record.log_sizes is not None:
            bias = record.log_sizes[:, None, None, :].to(q.dtype)
        if record.want_keys:
            record.keys = k.detach().mean(1)
        if record.want_queries and record.keys is None:
            record.keys = torch.cat((q.detach().mean(1), k.detach().mean(1)), -1)
        if record.want_cls:
            record.scores = _first_attention(q, k, self.scale, bias)
        if record.want_received and not (self.fused_attn and gpu.usable(k.shape[2], q, k)):
            out = self._attend_scored(q, k, v, bias, record)
        elif self.fused_attn:
            out = self._attend_fused(q, k, v, bias, record)
        else:
            out = self.attn_drop(_attention(q, k, self.scale, bias)) @ v
        out = out.transpose(1, 2).flatten(2)
        norm = getattr(self, "norm", None)
        out = out if norm is None else norm(out)
        gate = getattr(self, "gate", None)
        if gate is not None:
            out = out * gate(x[:, : out.shape[1]]).sigmoid()
        return self.proj_drop(self.proj(out))

    def _project(self, x: Tensor, record: AttentionRecord) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values `[B, H, n, head_dim]`; of queries the rows asked for."""
        batch, tokens, _ = x.shape
        queries = record.queries
        if self.qkv is None:
            q, k, v = (
                part.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
                for part in (self.q_proj(x[:, :queries]), self.k_proj(x), self.v_proj(x))
            )
        elif queries is None or not is_plain_linear(self.qkv):
            # Called whole, whatever it is: a wrapped or replaced layer has no weight to take apart.
            qkv = self.qkv(x)
            apart = self._bias_apart()
            qkv = qkv if apart is None else qkv + apart
            head = qkv.shape[-1] // 3 // self.num_heads
            qkv = qkv.reshape(batch, tokens, 3, self.num_heads, head)
            norms = (self.q_norm, self.k_norm)
            plain = record.rope is None and all(type(norm) is nn.Identity for norm in norms)
            if record.want_queries and plain:
                # Both in one pass, as they lie side by side.
                record.keys = _head_mean(qkv[:, :, :2].detach()).flatten(2)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            q = q if queries is None else q[:, :, :queries]
        else:
            w, b = self.qkv.weight, self.qkv.bias
            b = self._bias_apart() if b is None else b
            width = w.shape[0] // 3
            head = width // self.num_heads
            q = F.linear(x[:, :queries], w[:width], None if b is None else b[:width])
            kv = F.linear(x, w[width:], None if b is None else b[width:])
            q = q.reshape(batch, queries, self.num_heads, head).transpose(1, 2)
            kv = kv.reshape(batch, tokens, 2, self.num_heads, head).permute(2, 0, 3, 1, 4)
            k, v = kv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if record.rope is not None:
            q, k = self._rotated(q, record.rope, v), self._rotated(k, record.rope, v)
        groups = getattr(self, "num_kv_groups", 1)
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return q, k, v

    def _bias_apart(self) -> Tensor | None:
        """The bias that `EvaAttention` keeps beside `qkv`."""
        if getattr(self, "q_bias", None) is None:
            return None
        return torch.cat((self.q_bias, self.k_bias, self.v_bias))

    def _rotated(self, x: Tensor, rope: Tensor, like: Tensor) -> Tensor:
        """Queries or keys `[B, H, n, D]` with those of patches turned; the first may be all."""
        prefix = self.num_prefix_tokens
        if x.shape[2] <= prefix:
            return x.type_as(like)
        turned = apply_rot_embed_cat(
            x[:, :, prefix:], rope, half=getattr(self, "rotate_half", False)
        )
        return torch.cat((x[:, :, :prefix], turned), 2).type_as(like)

    def _attend_fused(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, record: AttentionRecord
    ) -> Tensor:
        """Attention output by a kernel that stores no probabilities; what is received likewise."""
        if record.want_received:
            record.scores = gpu.received(q, k, self.scale, record.log_sizes, record.sizes)
        dropout = self.attn_drop.p if self.training else 0.0
        if record.log_sizes is not None and q.is_cuda:
            return sized_attention(q, k, v, record.log_sizes, dropout)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

    def _attend_scored(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, record: AttentionRecord
    ) -> Tensor:
        """Attention output; what each token receives of all heads and queries is recorded.

        One softmax serves both. Outside autocast, which would keep the softmax in fp32 and cast
        back and forth; the sum over queries is accumulated in fp32.
        """
        with torch.autocast(q.device.type, enabled=False):
            v = v.to(q.dtype)
            attention = _attention(q, k.to(q.dtype), self.scale, bias)
            received, dtype = attention.detach(), torch.promote_types(q.dtype, torch.float32)
            if record.sizes is None:
                record.scores = received.sum((1, 2), dtype=dtype)
            else:
                by_query = received.sum(1, dtype=dtype)
                record.scores = (by_query * record.sizes.unsqueeze(2)).sum(1)
            return self.attn_drop(attention) @ v


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling the module is nothing but its weight and bias, so that rows may be taken."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and "forward" not in module.__dict__
        and not any(
            getattr(module, hooks)
            for hooks in (
                "_forward_hooks",
                "_forward_pre_hooks",
                "_backward_hooks",
                "_backward_pre_hooks",
            )
        )
    )


def sized_attention(
    q: Tensor, k: Tensor, v: Tensor, log_sizes: Tensor, dropout: float = 0.0
) -> Tensor:
    """Attention with log(size) added to the logits of each key, without a mask.

    Flash attention takes no bias, so it is two more columns of q and k (ones, and the bias over the
    scale with its rounding error beside it), filled up to a multiple of 8, as flash attention
    needs; v has to be as wide.

    Args:
        q: the queries `[B, H, n, D]`.
        k: the keys `[B, H, N, D]`.
        v: the values `[B, H, N, D]`.
        log_sizes: what is added to the logits of each key `[B, N]`.
        dropout: the share of the probabilities that is dropped.
    """
    head = q.shape[-1]
    scale = head**-0.5
    # A token that stands for nothing has −∞, which has no rounding error.
    bias = (log_sizes / scale).clamp_min(torch.finfo(torch.float16).min / 2)
    bias = bias[:, None, :, None].expand(-1, k.shape[1], -1, -1)
    most = bias.to(k.dtype)
    rest = (bias - most).to(k.dtype)
    more = 2 + -(head + 2) % 8
    q = F.pad(F.pad(q, (0, 2), value=1.0), (0, more - 2))
    k = F.pad(torch.cat((k, most, rest), -1), (0, more - 2))
    v = F.pad(v, (0, more))
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scale)
    return out[..., :head]


def _head_mean(values: Tensor) -> Tensor:
    """The mean over heads `[B, N, n, head_dim]` of `values [B, N, n, H, head_dim]`."""
    if not _on_cpu(values):
        return values.mean(3)
    if values.dtype == torch.float32:
        # Half the time of a mean there.
        return values.sum(3) / values.shape[3]
    if values.dtype != torch.bfloat16:
        return values.mean(3)
    # A CPU multiplies matrices of bf16 several times faster than it adds bf16 numbers.
    parts, heads, size = values.shape[2:]
    rows = torch.eye(parts * size, dtype=values.dtype).view(parts, 1, size, -1) / heads
    mean = rows.expand(-1, heads, -1, -1).flatten(0, 2)
    return (values.flatten(2) @ mean).unflatten(2, (parts, size))


def _first_attention(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """The attention of the first query to all keys, summed over heads `[B, N]`; no gradient."""
    q, k = q.detach(), k.detach()
    if not _on_cpu(q):
        return _attention(q[:, :, :1], k, scale, bias).sum((1, 2))
    # Head by head: in one product over heads all keys would be copied first.
    first = (q[:, :, 0] * scale).unsqueeze(3)
    logits = torch.cat([torch.bmm(k[:, h], first[:, h]) for h in range(q.shape[1])], 2)
    return (logits if bias is None else logits + bias.flatten(1).unsqueeze(2)).softmax(1).sum(2)


def _on_cpu(values: Tensor) -> bool:
    """Whether operations run one by one on a CPU, where what they copy counts."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _attention(q: Tensor, k: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Softmax attention `[B, H, n, N]`."""
    logits = (q * scale) @ k.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)
