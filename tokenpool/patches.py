"""Where a model's patches come from: one interface to timm's kinds of patch embedding."""

from __future__ import annotations

from typing import Any, NamedTuple

from timm.models.naflexvit import NaFlexVit
from torch import nn

__all__ = ["Patches", "fixed_size", "has_class_token", "image_size", "patches_of"]


class Patches(NamedTuple):
    """The patch embedding of a model.

    Attributes:
        module: the patch embedding itself.
        grid_size: (rows, columns) at the native image size, None if the patches form no grid.
        img_size: the native (height, width) of images in pixels, None if there is none.
        patch_size: (height, width) of a patch in pixels.
        dynamic: whether the model takes images of other sizes.
    """

    module: Any
    grid_size: tuple[int, int] | None
    img_size: tuple[int, int] | None
    patch_size: tuple[int, int]
    dynamic: bool

    @property
    def number(self) -> int:
        """How many patches there are at the native size; 0 if they form no grid."""
        return 0 if self.grid_size is None else self.grid_size[0] * self.grid_size[1]

    def grid_at(self, sides: tuple[int, int]) -> tuple[int, int]:
        """The grid (rows, columns) of an image of (height, width) pixels."""
        rows, columns = self.module.dynamic_feat_size(sides)
        return int(rows), int(columns)


def patches_of(model: nn.Module) -> Patches:
    """The patch embedding of a timm ViT.

    `NaFlexVit` has no size of its own: it takes that of the grid of its positions, else that of the
    images it was pretrained on.
    """
    vit: Any = model
    if isinstance(model, NaFlexVit):
        embeds: Any = model.embeds
        sides = embeds.default_img_size
        if sides is None and embeds.pos_embed_grid_size is not None:
            shapes = zip(embeds.pos_embed_grid_size, embeds.patch_size, strict=True)
            sides = [count * side for count, side in shapes]
        if sides is None:
            sides = (getattr(model, "pretrained_cfg", None) or {}).get("input_size", (3, 256, 256))
            sides = sides[1:]
        grid = embeds.dynamic_feat_size(sides)
        return Patches(embeds, _pair(grid), _pair(sides), _pair(embeds.patch_size), True)
    embed = vit.patch_embed
    grid = getattr(embed, "grid_size", None)
    if grid is not None and grid[0] * grid[1] != embed.num_patches:
        grid = None
    sides = getattr(embed, "img_size", None)
    return Patches(
        embed,
        None if grid is None else _pair(grid),
        None if sides is None else _pair(sides),
        _pair(getattr(embed, "patch_size", (0, 0))),
        bool(getattr(vit, "dynamic_img_size", False)),
    )


def image_size(model: nn.Module) -> tuple[int, int] | None:
    """The native (height, width) of any timm model's images, as far as the model says it."""
    if not isinstance(model, NaFlexVit) and not hasattr(model, "patch_embed"):
        return None
    return patches_of(model).img_size


def fixed_size(model: nn.Module) -> tuple[int, int] | None:
    """The (height, width) of images where any timm model takes no other."""
    return None if isinstance(model, NaFlexVit) else image_size(model)


def has_class_token(model: nn.Module) -> bool:
    """Whether the first token is a class token."""
    known = getattr(model, "has_class_token", None)
    return getattr(model, "cls_token", None) is not None if known is None else bool(known)


def _pair(values: Any) -> tuple[int, int]:
    if isinstance(values, int):
        return values, values
    first, second = values
    return int(first), int(second)
