"""Rotary positions that travel with tokens, against timm's own embedding and blocks."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

import tokenpool as tp
from benchmarks.pooling.paired_errors import paired_errors
from tokenpool.methods.base import Pooled
from tokenpool.patches import patches_of
from tokenpool.rotary import pool_positions
from tokenpool.study import analysis

# One of each kind of embedding, block and head.
NAMES = {
    "vit_small_patch16_dinov3": {"img_size": 96},
    "vit_small_plus_patch16_dinov3_qkvb": {"img_size": (48, 96)},
    "eva02_tiny_patch14_224": {"img_size": 84},
    "vit_pe_core_tiny_patch16_384": {"img_size": 96},
    "vit_small_patch16_rope_mixed_ape_224": {"img_size": 96},
    "vit_base_patch16_rope_reg1_gap_256": {"img_size": 96},
    "beit3_base_patch16_224": {"img_size": 96},
    "naflexvit_base_patch16_gap": {
        "pos_embed": "none",
        "pos_embed_grid_size": (6, 6),
        "rope_type": "dinov3",
    },
    "naflexvit_base_patch16_par_gap": {
        "pos_embed_grid_size": (6, 6),
        "rope_type": "mrope",
        "rope_mrope_section": (4, 6, 6),
    },
}
ROTARY = [name for name in NAMES if name != "beit3_base_patch16_224"]


def made(name: str) -> Any:
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 64, "num_heads": 2, "depth": 3, "num_classes": 5}
    model = timm.create_model(name, **(small | NAMES[name])).eval()
    with torch.no_grad():  # layer scales and biases that do something
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images_for(model: Any, batch: int = 2) -> torch.Tensor:
    sides = patches_of(model).img_size
    assert sides is not None
    return torch.randn(batch, 3, *sides)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_nothing_pooled_is_the_model_itself_to_the_last_bit(name):
    model = made(name)
    images, number = images_for(model), patches_of(model).number
    dense = model(images)
    features = model.forward_intermediates(images, intermediates_only=True)
    tp.pool(model, (number,) * 3)
    assert torch.equal(model(images), dense)
    for ours, theirs in zip(
        model.forward_intermediates(images, intermediates_only=True), features, strict=True
    ):
        assert torch.equal(ours, theirs)
    tp.pool(model, (number, number, number - 5))
    model(images)
    tp.pool(model, None)
    assert torch.equal(model(images), dense)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_kept_tokens_keep_their_positions(name):
    """timm's own blocks, given the rows of its embedding that belong to the tokens kept."""
    model = made(name)
    images, number, prefix = images_for(model), patches_of(model).number, model.num_prefix_tokens
    inputs: list[Any] = []
    hook = model.blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append((args[0], kwargs.get("rope"))), with_kwargs=True
    )
    model(images)
    hook.remove()
    (before, rope), block = inputs[0], model.blocks[1]
    tp.pool(model, (number // 2,) * 3, "wkmedoids", proportional_attention=False)
    seen: list[torch.Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))
    kept: list[torch.Tensor] = []
    model.blocks[0].observer = lambda plan, given, pooled: kept.append(pooled.kept)
    model(images)
    (index,) = kept
    rows = prefix + index.unsqueeze(2).expand(-1, -1, before.shape[2])
    tokens = torch.cat((before[:, :prefix], before.gather(1, rows)), 1)
    options: dict[str, Any] = {}
    if rope is not None:
        per_image = [rope[..., own, :] for own in index]
        options["rope"] = torch.stack([r if r.dim() == 3 else r.unsqueeze(0) for r in per_image])
    torch.testing.assert_close(seen[0], block(tokens, **options), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_a_mean_has_the_mean_position(name):
    """Cells of three by three patches: their mean is where the patch in their middle is."""
    model = made(name)
    images, prefix = images_for(model), model.num_prefix_tokens
    grid = patches_of(model).grid_size
    assert grid is not None
    assert grid[0] % 3 == grid[1] % 3 == 0
    middles = torch.tensor(
        [row * grid[1] + column for row in range(1, grid[0], 3) for column in range(1, grid[1], 3)]
    )
    number = len(middles)
    ropes: list[torch.Tensor] = []
    hook = model.blocks[1].register_forward_pre_hook(
        lambda module, args, kwargs: ropes.append(kwargs["rope"]), with_kwargs=True
    )
    model(images)
    hook.remove()
    block = model.blocks[1]
    tp.pool(model, (number,) * 3, "grid", proportional_attention=False)
    passed: list[Any] = []
    model.blocks[1].register_forward_hook(
        lambda module, args, output: passed.append((args[0], output))
    )
    model(images)
    ((tokens, output),) = passed
    assert tokens.shape[1] == prefix + number
    theirs = block(tokens, rope=ropes[0][..., middles, :])
    torch.testing.assert_close(output, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tokens_equal_in_content_and_position_are_one():
    """Columns of equal patches, and frequencies that do not look at rows."""
    model = made("vit_small_patch16_rope_mixed_ape_224")
    model.pos_embed.zero_()
    model.rope.freqs[1 if model.rope.grid_indexing == "xy" else 0] = 0
    images = torch.randn(2, 3, 16, 96).repeat(1, 1, 6, 1)
    dense = model(images)
    tp.pool(model, (6, 6, 6))
    torch.testing.assert_close(model(images), dense, rtol=1e-5, atol=1e-5)


def test_positions_by_hand():
    positions = torch.tensor([[[0.0, 0.0, 1], [1, 0, 1], [0, 4, 2], [5, 5, 1]]])
    tokens = torch.zeros(1, 2, 8)
    merged = pool_positions(positions, Pooled(tokens, torch.tensor([[0, 0, 0, 1]])), 2)
    assert merged.tolist() == [[[0.25, 2.0, 4.0], [5.0, 5.0, 1.0]]]
    kept = torch.tensor([[2, 3]])
    medoids = pool_positions(positions, Pooled(tokens, torch.tensor([[0, 0, 0, 1]]), kept=kept), 2)
    assert medoids.tolist() == [[[0.0, 4.0, 4.0], [5.0, 5.0, 1.0]]]
    dropped = pool_positions(positions, Pooled(tokens, torch.tensor([[-1, 0, -1, 1]])), 2)
    assert dropped.tolist() == [[[1.0, 0.0, 1.0], [5.0, 5.0, 1.0]]]


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224"]
)
@torch.no_grad()
def test_other_sizes_and_dropped_patches(name):
    model = timm.create_model(
        name, embed_dim=64, num_heads=2, depth=2, img_size=96, dynamic_img_size=True,
        patch_drop_rate=0.5,
    )  # fmt: skip
    tp.pool(model.eval(), (20, 20))
    wide = torch.randn(2, 3, 64, 128)
    pooled = model(wide)
    tp.pool(model, (32, 32))
    dense = model(wide)
    tp.pool(model, None)
    assert torch.equal(model(wide), dense) and not torch.equal(pooled, dense)
    model.train()
    torch.manual_seed(1)
    dense = model(wide)
    tp.pool(model, (16, 16))  # as many as are left of 32
    torch.manual_seed(1)
    assert torch.equal(model(wide), dense)
    tp.pool(model, (10, 10))
    assert model(wide).shape == dense.shape


def test_half_precision_autocast_and_gradients():
    model = made("vit_small_patch16_dinov3")
    images = images_for(model)
    tp.pool(model, (20, 20, 20))
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(images) - full).abs().max() < 0.1 * full.abs().max()
    model.train()(images).sum().backward()
    assert all(p.grad is not None for p in model.blocks[0].parameters() if p.requires_grad)
    model.eval().to(torch.bfloat16)
    low = model(images.bfloat16()).float()
    tp.pool(model, None)
    assert torch.isfinite(low).all()


class Doubled(nn.Module):
    """A layer around another, as adapters are."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Twice what the inner one gives."""
        return 2 * self.inner(x)


@pytest.mark.parametrize("name", ["eva02_base_patch14_224", "vit_small_patch16_rope_224"])
@pytest.mark.parametrize("counts", [(36, 36), (20, 20)])
@torch.no_grad()
def test_a_wrapped_qkv_is_called(name, counts):
    size = 84 if "14" in name else 96
    model = timm.create_model(name, embed_dim=64, num_heads=2, depth=2, img_size=size).eval()
    images = torch.randn(1, 3, size, size)
    other = timm.create_model(name, embed_dim=64, num_heads=2, depth=2, img_size=size).eval()
    other.load_state_dict(model.state_dict())
    for plain, block in zip(other.blocks, model.blocks, strict=True):
        if plain.attn.qkv is None:
            plain.attn.q_proj.weight *= 2
            plain.attn.q_proj.bias *= 2
        else:
            plain.attn.qkv.weight *= 2
            if plain.attn.qkv.bias is not None:
                plain.attn.qkv.bias *= 2
        layer = "q_proj" if block.attn.qkv is None else "qkv"
        setattr(block.attn, layer, Doubled(getattr(block.attn, layer)))
    tp.pool(model, counts)
    tp.pool(other, counts)
    torch.testing.assert_close(model(images), other(images), rtol=1e-4, atol=1e-5)


def test_what_cannot_follow_is_refused_by_name():
    model = made("vit_small_patch16_dinov3")
    tp.pool(model, (20, 20, 20))
    model.rope.jitter_coords, model.rope.aug_active = 1.5, True
    with torch.no_grad():
        model(images_for(model))
    model.train()
    with pytest.raises(ValueError, match=r"shifts or scales.*aug_active = False"):
        model(images_for(model))
    flex = made("naflexvit_base_patch16_gap")
    tp.pool(flex, (20, 20, 20))
    where = torch.stack(torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"), -1)
    padded = {
        "patches": torch.randn(1, 36, 768),
        "patch_coord": where.reshape(1, 36, 2),
        "patch_valid": torch.ones(1, 36, dtype=torch.bool),
    }
    with torch.no_grad(), pytest.raises(ValueError, match="mask"):
        flex(padded)
    with torch.no_grad():
        pooled_to_all = tp.pool(flex, (36, 36, 36))(padded)
        assert torch.equal(tp.pool(flex, None)(padded), pooled_to_all)
    strange = made("eva02_tiny_patch14_224")
    strange.rope.bands *= 2
    with pytest.raises(ValueError, match="not of a kind"):
        tp.pool(strange, (20, 20, 20))
    with pytest.raises(ValueError, match="a Eva cannot be narrowed"):
        tp.inherit_width(made("vit_small_patch16_dinov3"), 32)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224"])
def test_analyses_and_extract_vectors_see_what_the_model_does(name):
    model = made(name)
    images, number = images_for(model), patches_of(model).number
    with torch.no_grad():
        dense = model(images)
    assert {row.method for row in analysis.error_by_k(model, [images], [number // 2], ["leader"])}
    tp.pool(model, (number // 2,) * 3, "kmedoids")
    # Of equal methods on equal tokens, keys and scores, the errors are equal.
    for pair in paired_errors(model, [images], "kmedoids"):
        assert pair.own == pytest.approx(pair.rival)
    found = tp.powerbert_schedule(model, [(images, torch.zeros(2, dtype=torch.long))], 0.0)
    assert len(found.schedule) == 3
    with torch.no_grad():
        assert torch.equal(tp.pool(model, None)(images), dense)
