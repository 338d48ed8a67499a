"""`pool`: a timm ViT into its pooled form and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from timm.layers import Attention, AttentionRope
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.naflexvit import NaFlexVit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tokenpool.attention import ScoredAttention, check_pooled
from tokenpool.dense_features import give_dense_features, take_dense_features
from tokenpool.methods import method as method_named
from tokenpool.methods.base import Grid, PoolingMethod
from tokenpool.methods.method_text import format_method, with_options
from tokenpool.options import PoolOptions
from tokenpool.patches import has_class_token, patches_of
from tokenpool.rotary import check_rotary, give_places, take_places
from tokenpool.schedule import Schedule
from tokenpool.vit import LayerPlan, PooledBlock

__all__ = ["Pooling", "check_model", "pool", "pooling_of", "realise", "unpooled"]

# What `ScoredAttention` and `PooledBlock` compute with; anything else would be passed over.
_BLOCK_CHILDREN = {
    "norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2",
}  # fmt: skip
_ATTENTION_CHILDREN = {
    "qkv", "q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj",
    "proj_drop",
}  # fmt: skip
# The attention that each kind of block can have.
_EVA = (EvaAttention, AttentionRope)
_BLOCKS: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    Block: (Attention,), EvaBlock: _EVA, EvaBlockPostNorm: _EVA,
}  # fmt: skip
KINDS = (VisionTransformer, VisionTransformerDistilled, Eva, NaFlexVit)
# Where torch.compile, data-parallel and timm's feature wrappers keep the model itself.
_WRAPPERS = ("_orig_mod", "module", "model")


def pool(
    model: nn.Module,
    schedule: Schedule | tuple[int, ...] | list[int] | str | None,
    method: str = "leader",
    **options: Any,
) -> VisionTransformer:
    """Turn a timm ViT into its pooled form, in place, and give it back.

    Weights, state-dict keys and hooks stay. A model that is pooled already is given the new
    schedule, method and options. A layer whose count is that of the layer before is left as it is.

    A head that reads the class token is given the k tokens left, so `forward_features` is
    `[B, prefix + k, C]`. A head that reads patches (averages, takes the maximum of or attends over
    them, or gives them all out) is given each merged token as often as it stands for a patch,
    `[B, prefix + N, C]`: merging equal tokens changes nothing. Methods that drop tokens give the
    k kept ones to either head. `forward_intermediates` and `get_intermediate_layers` give full
    maps, with every patch in its place.

    Rotary positions travel with tokens: a medoid keeps its own, a mean has the mean of its members'
    angles, each counted as often as the patches it stands for.

    Args:
        model: a `VisionTransformer` (DeiT, DINOv2, CLIP, SigLIP and their like), an `Eva` (EVA-02,
            DINOv3, Perception Encoder, RoPE-ViT) or a `NaFlexVit`, given images of one size.
        schedule: patch tokens kept after each block (`Schedule`, a sequence, or "49,40,…");
            None takes the pooling away again.
        method: one of `tp.METHODS`, or with options as text: `wkmedoids(start=matching)`.
        **options: fields of `PoolOptions`.

    Raises:
        ValueError: for a model, schedule, method or option that does not fit, by name.
    """
    blocks = check_model(model)
    vit: Any = model
    if schedule is None:
        for index, block in enumerate(blocks):
            if isinstance(block, PooledBlock):
                vit.blocks[index] = block.restore()
        take_dense_features(model)
        take_places(model)
        return vit
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else Schedule(schedule)
    name, chosen = with_options(method, **options)
    layers = _plans(model, schedule, method_named(name), chosen)
    check_rotary(model)
    for index, (block, plan) in enumerate(zip(blocks, layers, strict=True)):
        if isinstance(block, PooledBlock):
            block.plan = plan
            if not isinstance(block.attn, ScoredAttention):
                block.attn = ScoredAttention(block.attn)
        else:
            vit.blocks[index] = PooledBlock(block, plan, model)
    give_dense_features(model)
    give_places(model)
    return vit


def _plans(
    model: nn.Module, schedule: Schedule, strategy: PoolingMethod, options: PoolOptions
) -> list[LayerPlan]:
    """What each block of the model will do under this schedule, or a ValueError."""
    vit: Any = model
    embed = patches_of(model)
    grid, patches = embed.grid_size, embed.number
    assert grid is not None
    schedule.check(len(vit.blocks), None if embed.dynamic else patches)
    _check_options(model, strategy, options)
    read = head_reads(model) if options.cls_only_last else None
    layers = []
    for index, (incoming, kept, wanted) in enumerate(
        zip(*realise(strategy, schedule, patches, grid), schedule, strict=True)
    ):
        layers.append(
            LayerPlan(
                index=index,
                depth=len(schedule),
                requested=wanted,
                kept=kept,
                prefix=vit.num_prefix_tokens,
                heads_read=read,
                grid=incoming,
                method=strategy,
                options=options,
            )
        )
    return layers


def realise(
    strategy: PoolingMethod, schedule: Schedule, patches: int, grid: Grid | None
) -> tuple[list[Grid | None], list[int]]:
    """The grid that comes into each layer, and the count that the method really keeps there.

    Args:
        strategy: the pooling method.
        schedule: the counts that are asked for.
        patches: the patch tokens that enter the first block.
        grid: (rows, columns) of them, or None.
    """
    grids: list[Grid | None] = []
    counts: list[int] = []
    for wanted in schedule:
        grids.append(grid)
        if wanted < patches:
            patches, grid = strategy.realise(patches, wanted, grid)
        elif not counts and wanted > patches:
            # A model of dynamic image size may see more patches than its native ones.
            patches = wanted
        counts.append(patches)
    return grids, counts


class Pooling(NamedTuple):
    """How a model is pooled.

    Attributes:
        schedule: the patch tokens asked for after each block.
        method: the name of the method.
        options: the options of the method.
        realised: the patch tokens really kept at the native image size; not those of `schedule`
            where the method cannot make every count (`grid`, `tome`).
    """

    schedule: Schedule
    method: str
    options: PoolOptions
    realised: Schedule

    @property
    def method_text(self) -> str:
        """The method with its options, as `parse_method` reads it."""
        return format_method(self.method, self.options)


def pooling_of(model: nn.Module) -> Pooling | None:
    """How a model is pooled, or None if it is not.

    Raises:
        ValueError: for a model that cannot be pooled, by name.
    """
    blocks = check_model(model)
    if not any(isinstance(block, PooledBlock) for block in blocks):
        return None
    check_pooled(model)
    layers: list[LayerPlan] = [block.plan for block in blocks]
    return Pooling(
        Schedule(plan.requested for plan in layers),
        layers[0].method.name,
        layers[0].options,
        Schedule(plan.kept for plan in layers),
    )


@contextmanager
def unpooled(model: nn.Module) -> Iterator[None]:
    """Take a model's pooling away while the block runs; then it is pooled, or not, as before.

    Raises:
        ValueError: for a model that cannot be pooled, by name.
    """
    vit: Any = model
    before, training = pooling_of(model), model.training
    layers = [getattr(block, "plan", None) for block in vit.blocks]
    pool(model, None)
    try:
        yield
    finally:
        pool(model, None)
        if before is not None:
            pool(model, before.schedule)
            for block, plan in zip(vit.blocks, layers, strict=True):
                block.plan = plan
        model.train(training)


def check_model(model: nn.Module) -> list[Any]:
    """The blocks of a model, if it can be pooled.

    Raises:
        ValueError: for a model that cannot be pooled, naming what is in the way.
    """
    name = type(model).__name__
    if type(model) not in KINDS:
        inner = [a for a in _WRAPPERS if type(getattr(model, a, None)) in KINDS]
        advice = f"; pool its .{inner[0]}" if inner else ""
        raise ValueError(
            f"{name} cannot be pooled: only timm's VisionTransformer (also distilled), Eva and "
            f"NaFlexVit can{advice}"
        )
    vit: Any = model
    blocks = list(vit.blocks)
    if not blocks:
        raise ValueError(f"this {name} has no blocks: there is nothing to pool")
    embed = patches_of(model)
    if embed.grid_size is None:
        raise ValueError(
            f"the {type(embed.module).__name__} of this {name} does not say which grid its patches "
            "form, so it cannot be pooled"
        )
    for index, block in enumerate(blocks, start=1):
        pooled = isinstance(block, PooledBlock)
        place = f"block {index}"
        _check_module(block, (PooledBlock,) if pooled else tuple(_BLOCKS), _BLOCK_CHILDREN, place)
        if not pooled or not isinstance(block.attn, ScoredAttention):
            kinds = _BLOCKS[type(block.origin if pooled else block)]
            _check_module(block.attn, kinds, _ATTENTION_CHILDREN, place)
    return blocks


def _check_module(
    module: nn.Module, kinds: tuple[type[nn.Module], ...], known: set[str], place: str
) -> None:
    """Refuse a module that a view could not stand for, since it would compute something else."""
    kind = type(module)
    if kind not in kinds:
        raise ValueError(
            f"{place} is or holds a {kind.__name__}, which cannot be pooled: only timm's "
            f"{' or '.join(one.__name__ for one in kinds)} can"
        )
    strange = [child for child in module._modules if child not in known]
    if strange:
        raise ValueError(
            f"the {kind.__name__} of {place} has a child {strange[0]!r} that this version of "
            "tokenpool does not know"
        )
    if "forward" in module.__dict__:
        raise ValueError(
            f"the {kind.__name__} of {place} has a forward of its own in place of timm's, which "
            "pooling would pass over: take it away first"
        )
    if kind is not PooledBlock and module.__dict__.get("_compiled_call_impl") is not None:
        raise ValueError(
            f"the {kind.__name__} of {place} is compiled already: pool first, compile after"
        )


def head_reads(model: nn.Module) -> int:
    """How many of the first tokens the head reads, if it reads no patch tokens.

    Raises:
        ValueError: if it reads patch tokens.
    """
    vit: Any = model
    if vit.global_pool != "token":
        raise ValueError(
            f"cls_only_last needs a head that reads the class token, but this one pools by "
            f"{vit.global_pool!r}"
        )
    return 2 if isinstance(model, VisionTransformerDistilled) else 1


def _check_options(model: nn.Module, strategy: PoolingMethod, options: PoolOptions) -> None:
    """Refuse options and methods that do not fit this model."""
    vit: Any = model
    scores = strategy.needs_scores(options)
    cls = scores and strategy.significance(options) == "cls"
    if cls and not has_class_token(model) and not strategy.scores_optional:
        raise ValueError("significance 'cls' needs a class token, but this model has none")
    if strategy.needs_grid and bool(getattr(vit.patch_drop, "prob", 0)):
        raise ValueError(
            f"{strategy.name} pools a whole grid of tokens, but this model's patch_drop leaves "
            "some out in training: set patch_drop_rate to 0 or use another method"
        )
    if options.generator is not None and not isinstance(options.generator, torch.Generator):
        raise ValueError(f"generator is a {type(options.generator).__name__}, not torch.Generator")
