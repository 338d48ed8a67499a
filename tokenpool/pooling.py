"""`pool`: a timm ViT into its pooled form and back."""

from typing import Any

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from tokenpool.attention import ScoredAttention
from tokenpool.dense_features import give_dense_features, take_dense_features
from tokenpool.method_text import with_options
from tokenpool.methods import method as method_named
from tokenpool.methods.base import Grid, PoolingMethod
from tokenpool.options import PoolOptions
from tokenpool.schedule import Schedule
from tokenpool.vit import LayerPlan, PooledBlock

__all__ = ["method_of", "options_of", "plans", "pool", "realised_schedule", "schedule_of"]

# What `ScoredAttention` and `PooledBlock` compute with; anything else would be passed over.
_BLOCK_CHILDREN = {
    "norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2",
}  # fmt: skip
_ATTENTION_CHILDREN = {
    "qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop",
}  # fmt: skip


_KINDS = (VisionTransformer, VisionTransformerDistilled)
# Where torch.compile, data-parallel and timm's feature wrappers keep the model itself.
_WRAPPERS = ("_orig_mod", "module", "model")


def pool(
    model: nn.Module,
    schedule: Schedule | tuple[int, ...] | list[int] | str | None,
    method: str = "leader",
    **options: Any,
) -> VisionTransformer:
    """Turn a timm `VisionTransformer` into its pooled form, in place, and give it back.

    Weights, state-dict keys and hooks stay. A model that is pooled already is given the new
    schedule, method and options. A layer whose count is that of the layer before is left as it is.

    A head that reads the class token is given the k tokens left, so `forward_features` is
    `[B, prefix + k, C]`. A head that reads patches (averages, takes the maximum of or attends over
    them, or gives them all out) is given each merged token as often as it stands for a patch,
    `[B, prefix + N, C]`: merging equal tokens changes nothing. Methods that drop tokens give the
    k kept ones to either head. `forward_intermediates` and `get_intermediate_layers` give full
    maps, with every patch in its place.

    Args:
        model: DeiT, distilled DeiT, DeiT-3, AugReg ViT and their like.
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
        return vit
    schedule = Schedule.parse(schedule) if isinstance(schedule, str) else Schedule(schedule)
    name, chosen = with_options(method, **options)
    layers = plans(model, schedule, method_named(name), chosen)
    for index, (block, plan) in enumerate(zip(blocks, layers, strict=True)):
        if isinstance(block, PooledBlock):
            block.plan = plan
            if not isinstance(block.attn, ScoredAttention):
                block.attn = ScoredAttention(block.attn)
        else:
            vit.blocks[index] = PooledBlock(block, plan, model)
    give_dense_features(model)
    return vit


def plans(
    model: nn.Module, schedule: Schedule, strategy: PoolingMethod, options: PoolOptions
) -> list[LayerPlan]:
    """What each block of the model will do under this schedule."""
    vit: Any = model
    grid: Grid = tuple(vit.patch_embed.grid_size)
    patches = grid[0] * grid[1]
    schedule.check(len(vit.blocks), None if vit.dynamic_img_size else patches)
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
    """The grid that comes into each layer and the count the method really keeps there."""
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


def realised_schedule(model: nn.Module) -> Schedule | None:
    """The counts a pooled model really keeps at its native size, or None if it is not pooled.

    They differ from `schedule_of` where a method cannot make every count (`grid`, `tome`).
    """
    layers = _plans_of(model)
    return None if layers is None else Schedule(plan.kept for plan in layers)


def schedule_of(model: nn.Module) -> Schedule | None:
    """The schedule a model was pooled with, or None."""
    layers = _plans_of(model)
    return None if layers is None else Schedule(plan.requested for plan in layers)


def method_of(model: nn.Module) -> str | None:
    """The name of the method a model was pooled with, or None."""
    layers = _plans_of(model)
    return None if layers is None else layers[0].method.name


def options_of(model: nn.Module) -> PoolOptions | None:
    """The options a model was pooled with, or None."""
    layers = _plans_of(model)
    return None if layers is None else layers[0].options


def _plans_of(model: nn.Module) -> list[LayerPlan] | None:
    blocks = check_model(model)
    if not all(isinstance(block, PooledBlock) for block in blocks):
        return None
    return [block.plan for block in blocks]


def check_model(model: nn.Module) -> list[Any]:
    """The blocks of a model that can be pooled.

    Raises:
        ValueError: for any other model, naming what is in the way.
    """
    name = type(model).__name__
    if type(model) not in _KINDS:
        inner = [a for a in _WRAPPERS if type(getattr(model, a, None)) in _KINDS]
        advice = f"; pool its .{inner[0]}" if inner else ""
        raise ValueError(
            f"{name} cannot be pooled: only timm's VisionTransformer and its distilled form can"
            f"{advice}"
        )
    vit: Any = model
    blocks = list(vit.blocks)
    if not blocks:
        raise ValueError(f"this {name} has no blocks: there is nothing to pool")
    embed, grid = vit.patch_embed, getattr(vit.patch_embed, "grid_size", None)
    if grid is None or grid[0] * grid[1] != embed.num_patches:
        raise ValueError(
            f"the {type(embed).__name__} of this {name} does not say which grid its patches form, "
            "so it cannot be pooled"
        )
    for index, block in enumerate(blocks, start=1):
        pooled = isinstance(block, PooledBlock)
        place = f"block {index}"
        _check_module(block, PooledBlock if pooled else Block, _BLOCK_CHILDREN, place)
        if not pooled or not isinstance(block.attn, ScoredAttention):
            _check_module(block.attn, Attention, _ATTENTION_CHILDREN, place)
    return blocks


def _check_module(module: nn.Module, kind: type, known: set[str], place: str) -> None:
    """Refuse a module that a view could not stand for, since it would compute something else."""
    if type(module) is not kind:
        raise ValueError(
            f"{place} is or holds a {type(module).__name__}, which cannot be pooled: only timm's "
            f"{kind.__name__} can"
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
    vit: Any = model
    scores = strategy.needs_scores(options)
    cls = scores and strategy.significance(options) == "cls"
    if cls and not vit.has_class_token and not strategy.scores_optional:
        raise ValueError("significance 'cls' needs a class token, but this model has none")
    if strategy.needs_grid and bool(getattr(vit.patch_drop, "prob", 0)):
        raise ValueError(
            f"{strategy.name} pools a whole grid of tokens, but this model's patch_drop leaves "
            "some out in training: set patch_drop_rate to 0 or use another method"
        )
    if options.generator is not None and not isinstance(options.generator, torch.Generator):
        raise ValueError(f"generator is a {type(options.generator).__name__}, not torch.Generator")
