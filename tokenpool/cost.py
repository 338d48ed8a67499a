"""What a pooled ViT costs, in multiply-accumulates, in closed form.

Per block with N tokens in all and width d: 4·N·d² for queries, keys, values and the output
projection, 2·N²·d for the two attention products, 2·N·d·h for the MLP (arXiv 2110.03860); where
other layers stand in these places, what they multiply (`tokenpool.layer_macs`).
Clustering is what the method says it multiplies. Bias, norms and softmax are not counted, as in the
papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import nn

from tokenpool.layer_macs import BlockCost, block_cost, embed_macs, head_cost
from tokenpool.methods import method as method_named
from tokenpool.methods.method_text import parse_method
from tokenpool.options import PoolOptions
from tokenpool.patches import patches_of
from tokenpool.pooling import check_model, head_reads, pooling_of, realise
from tokenpool.schedule import Schedule

__all__ = ["MacReport", "VitSpec", "block_macs", "macs", "vit_macs", "vit_spec"]


@dataclass(frozen=True)
class VitSpec:
    """The shapes of a ViT: all that its cost depends on.

    Attributes:
        width: the embedding dimension.
        depth: the number of blocks.
        grid: (rows, columns) of patches.
        prefix: how many class, distillation and register tokens there are.
        hidden: the hidden width of the MLP.
        patch_in: inputs of the patch embedding (channels · patch area).
        classes: outputs of all heads together, each reading one token.
        heads: the number of attention heads.
        head_dim: the width of one head; None: width / heads.
        pool_in: MACs of the head beside those of its classes: per patch token, and once.
        reads: how many tokens the head reads, if it reads no patch tokens.
        pool_pairs: MACs of the head per pair of tokens.
        embed: MACs of the patch embedding, where they are not those of one matrix per patch.
        blocks: MACs of the layers of each block, where they are not those of a plain ViT.
    """

    width: int
    depth: int
    grid: tuple[int, int]
    prefix: int
    hidden: int
    patch_in: int
    classes: int
    heads: int = 1
    head_dim: int | None = None
    pool_in: tuple[int, int] = (0, 0)
    reads: int | None = 1
    pool_pairs: int = 0
    embed: int | None = None
    blocks: tuple[BlockCost, ...] | None = None

    def block(self, layer: int) -> BlockCost:
        """MACs of the layers of one block; the first is 1."""
        if self.blocks is not None:
            return self.blocks[layer - 1]
        square = self.width * self.attention_width
        return BlockCost(square, 2 * square, square, 2 * self.width * self.hidden)

    @property
    def patches(self) -> int:
        """Patch tokens before any pooling."""
        return self.grid[0] * self.grid[1]

    @property
    def attention_width(self) -> int:
        """Width of queries, keys and values."""
        return self.width if self.head_dim is None else self.heads * self.head_dim


@dataclass(frozen=True)
class MacReport:
    """Multiply-accumulates of one image, by component."""

    total: int
    clustering: int
    attention: int
    qkvo: int
    mlp: int
    patch_embed: int
    head: int

    @property
    def gmacs(self) -> float:
        """The total in 10⁹ multiply-accumulates."""
        return self.total / 1e9

    def shares(self) -> Iterator[tuple[str, int, float]]:
        """(component, MACs, share of the total), in the order of computation."""
        for name in ("patch_embed", "qkvo", "attention", "mlp", "clustering", "head"):
            value = getattr(self, name)
            yield name, value, value / self.total


def macs(
    model: nn.Module,
    schedule: Schedule | tuple[int, ...] | list[int] | None = None,
    method: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> MacReport:
    """What one image costs the model under a schedule; no forward pass is made.

    Args:
        model: a timm ViT, pooled or not.
        schedule: None means the model's own (dense if it is not pooled).
        method: None means the model's own, else "wkmedoids"; with options as text, as in `tp.pool`,
            these stand in for the model's own.
        image_size: side, or height and width, in pixels; None is the native size.
        **options: fields of `PoolOptions`; none given means the model's own.

    Raises:
        ValueError: as `tp.pool`.
    """
    spec = vit_spec(model, image_size)
    own = pooling_of(model)
    name, chosen = ("wkmedoids", PoolOptions()) if own is None else (own.method, own.options)
    if method is not None:
        name, said = parse_method(method)
        chosen = chosen if said == PoolOptions() else said
    if options:
        chosen = chosen.with_(**PoolOptions.of(**options).as_dict())
    if schedule is None:
        schedule = Schedule.dense(spec.depth, spec.patches) if own is None else own.schedule
    if chosen.cls_only_last:
        head_reads(model)
    return vit_macs(spec, Schedule(schedule), name, chosen)


def vit_macs(
    spec: VitSpec, schedule: Schedule, method: str = "wkmedoids", options: PoolOptions | None = None
) -> MacReport:
    """`macs` as a pure function of shapes, cheap enough to call for every candidate of a search.

    Args:
        spec: the shapes of the model.
        schedule: the patch tokens kept after each block.
        method: one of `tp.METHODS`; where no options are given, as text with them (`parse_method`).
        options: the options of the method.

    Raises:
        ValueError: for a schedule of another depth, or an unknown method.
    """
    name, chosen = parse_method(method) if options is None else (method, options)
    return _vit_macs(spec, schedule, name, chosen)


@lru_cache(maxsize=4096)
def _vit_macs(spec: VitSpec, schedule: Schedule, method: str, options: PoolOptions) -> MacReport:
    strategy = method_named(method)
    if len(schedule) != spec.depth:
        schedule.check(spec.depth, None)
    _, counts = realise(strategy, schedule, spec.patches, spec.grid)
    clustering = attention = qkvo = mlp = 0
    incoming = spec.patches
    for layer, kept in enumerate(counts, start=1):
        block = block_macs(spec, layer, incoming, kept, method, options)
        clustering += block.clustering
        attention += block.attention
        qkvo += block.qkvo
        mlp += block.mlp
        incoming = min(kept, incoming)
    embed = spec.patches * spec.patch_in * spec.width if spec.embed is None else spec.embed
    # A head that reads patches is given merged tokens as often as they stand for one.
    read = spec.patches if spec.reads is None and strategy.merges else incoming
    head = spec.width * spec.classes + read * spec.pool_in[0] + spec.pool_in[1]
    head += (read + spec.prefix) ** 2 * spec.pool_pairs
    total = clustering + attention + qkvo + mlp + embed + head
    return MacReport(total, clustering, attention, qkvo, mlp, embed, head)


def block_macs(
    spec: VitSpec,
    layer: int,
    incoming: int,
    kept: int,
    method: str = "wkmedoids",
    options: PoolOptions | None = None,
) -> MacReport:
    """What one block and the pooling layer after it cost: a model's cost is the sum over blocks.

    Args:
        spec: the shapes of the model.
        layer: the number of the block, from 1.
        incoming: how many patch tokens enter it.
        kept: how many patch tokens leave its pooling layer, as the method really keeps them.
        method: one of `tp.METHODS`; where no options are given, as text with them (`parse_method`).
        options: the options of the method.
    """
    method, options = parse_method(method) if options is None else (method, options)
    strategy = method_named(method)
    width, inner = spec.width, spec.attention_width
    scores_row = strategy.needs_scores(options) and strategy.significance(options) == "cls"
    scores_row = scores_row and spec.prefix > 0
    head = inner // spec.heads
    widths = {"tokens": width, "keys": head, "queries_keys": 2 * head}
    feature_width = widths[strategy.features(options)]
    kept = min(kept, incoming)
    tokens = rows = incoming + spec.prefix
    pools = kept < incoming
    if options.cls_only_last and layer == spec.depth and spec.reads is not None:
        rows, pools = spec.reads, False
    early = strategy.position(options) == "attention"
    clustering = 0
    if pools:
        clustering += strategy.macs(incoming, kept, width, feature_width, options)
        clustering += tokens * inner if scores_row else 0
    cost = spec.block(layer)
    attention = 2 * rows * tokens * inner
    qkvo = (rows if cost.apart else tokens) * cost.query + tokens * cost.key_value
    qkvo += rows * cost.output
    mlp = (rows - incoming + kept if pools and early else rows) * cost.mlp
    return MacReport(clustering + attention + qkvo + mlp, clustering, attention, qkvo, mlp, 0, 0)


def vit_spec(model: nn.Module, image_size: int | tuple[int, int] | None = None) -> VitSpec:
    """The shapes of a timm ViT, at its native or another image size.

    Raises:
        ValueError: for a model that cannot be pooled or counted, a size its patches do not fill, or
            one other than its own where it takes no other.
    """
    check_model(model)
    vit: Any = model
    embed, attn = patches_of(model), vit.blocks[0].attn
    grid, sides = embed.grid_size, embed.img_size or (0, 0)
    assert grid is not None
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        grid = embed.grid_at(sides)
        if grid != embed.grid_size and not embed.dynamic:
            raise ValueError(
                f"image size {sides[0]}x{sides[1]} is not the model's own, and it was not built "
                "with dynamic_img_size"
            )
    width, patches = vit.embed_dim, grid[0] * grid[1]
    embedding = embed_macs(embed.module, sides, patches)
    blocks = tuple(block_cost(block, width) for block in vit.blocks)
    head = head_cost(vit)
    spec = VitSpec(
        width=width,
        depth=len(blocks),
        grid=grid,
        prefix=vit.num_prefix_tokens,
        hidden=blocks[0].mlp // (2 * width),
        patch_in=embedding // (patches * width),
        classes=head.classes,
        heads=attn.num_heads,
        head_dim=attn.head_dim,
        pool_in=(head.per_token, head.once),
        pool_pairs=head.per_pair,
        reads=head_reads(model) if vit.global_pool == "token" else None,
    )
    plain = spec.patches * spec.patch_in * width == embedding
    alike = all(cost == spec.block(layer) for layer, cost in enumerate(blocks, start=1))
    return replace(spec, embed=None if plain else embedding, blocks=None if alike else blocks)
