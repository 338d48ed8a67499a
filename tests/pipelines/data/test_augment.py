"""Device augmentation against torchvision, timm and arithmetic."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from pipelines.data import augment_ops as ops
from pipelines.data.augment import PRESETS, AugmentConfig, DeviceAugment, normalize, step_generator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count=16, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def augment(config, batch, labels=None, *, step=0, rank=0, world_size=1, num_classes=10):
    module = DeviceAugment(
        AugmentConfig(**config) if isinstance(config, dict) else config,
        mean=MEAN, std=STD, num_classes=num_classes, rank=rank, world_size=world_size,
    )  # fmt: skip
    if labels is None:
        labels = torch.arange(len(batch)) % num_classes
    return module(batch, labels, step_generator(0, 0, step))


def undo(normalised):
    shape = (1, 3, 1, 1)
    return normalised * torch.tensor(STD).view(shape) + torch.tensor(MEAN).view(shape)


def test_normalize_is_torchvisions():
    batch = images()
    expected = tv.normalize(batch.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(normalize(batch, MEAN, STD), expected)
    last = batch.contiguous(memory_format=torch.channels_last)
    assert normalize(last, MEAN, STD).is_contiguous(memory_format=torch.channels_last)


def test_no_augmentation_is_normalisation():
    batch = images()
    out, targets = augment({}, batch)
    torch.testing.assert_close(out, normalize(batch, MEAN, STD))
    assert targets.dtype == torch.int64


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({"angle": np.pi / 6}, {"angle": -30.0}),
        ({"shift_x": 0.25, "shift_y": -0.125}, {"translate": [8, -4]}),
        ({"scale": 1.5}, {"scale": 1.5}),
    ],
)
def test_warps_are_torchvisions(mine, theirs):
    batch = images(4).float() / 255
    zero = torch.zeros(4)
    parameters = {n: zero for n in ("angle", "shear_x", "shear_y", "shift_x", "shift_y")}
    parameters["scale"] = zero + 1
    parameters |= {name: zero + value for name, value in mine.items()}
    arguments = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]} | theirs
    expected = tv.affine(batch, **arguments, interpolation=tv.InterpolationMode.BILINEAR)
    warped = ops.warp(batch, ops.affine_matrices(**parameters))
    # torchvision masks beyond the edge where grid_sample fades out: compare away from it.
    inner = (slice(None), slice(None), slice(10, 22), slice(10, 22))
    torch.testing.assert_close(warped[inner], expected[inner], atol=2e-3, rtol=0)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_colour_operations_are_torchvisions(factor):
    batch = images(4).float() / 255
    one, factors = torch.ones(4), torch.full((4,), factor)
    for order, reference in (
        ((factors, one, one), tv.adjust_brightness),
        ((one, factors, one), tv.adjust_contrast),
        ((one, one, factors), tv.adjust_saturation),
    ):
        expected = reference(batch, factor)
        torch.testing.assert_close(ops.colour_jitter(batch, *order), expected, atol=2e-3, rtol=0)


def test_three_augment_operations():
    batch = images(4).float() / 255
    mask = torch.tensor([True, False, True, False])
    grey = ops.grayscale(batch, mask)
    torch.testing.assert_close(grey[::2], tv.rgb_to_grayscale(batch, 3)[::2], atol=2e-3, rtol=0)
    sun = ops.solarize(batch, mask)
    torch.testing.assert_close(sun[::2], tv.solarize(batch, 128 / 255)[::2])
    sigma = torch.tensor([0.5, 1.0, 1.5, 2.0])
    blur = ops.gaussian_blur(batch, mask, sigma)
    for i in (0, 2):
        expected = tv.gaussian_blur(batch[i], [13, 13], [float(sigma[i])] * 2)
        torch.testing.assert_close(blur[i], expected, atol=1e-4, rtol=0)
    for changed in (grey, sun, blur):
        assert torch.equal(changed[1::2], batch[1::2])


def test_parameters_are_drawn_per_sample():
    one = images(1).expand(32, -1, -1, -1)
    out, _ = augment(PRESETS["digits"], one)
    assert len(torch.unique(out.flatten(1), dim=0)) == 32


def test_digits_are_moved_but_never_mirrored():
    assert PRESETS["digits"].flip == 0
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(64, 3, 32, 32)
    out = undo(augment(PRESETS["digits"], ramp)[0])
    assert (out[:, 0, 16, 24] > out[:, 0, 16, 8]).all()


def test_flips():
    batch = images(400)
    out, _ = augment({"flip": 0.25}, batch)
    plain = normalize(batch, MEAN, STD)
    flipped = [torch.allclose(a, b.flip(2), atol=1e-4) for a, b in zip(out, plain, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-4) for a, b in zip(out, plain, strict=True)]
    assert sum(flipped) + sum(kept) == 400 and 60 < sum(flipped) < 140


def test_the_same_step_gives_the_same_batch_and_others_do_not():
    batch = images()
    for config in PRESETS.values():
        first = augment(config, batch, step=3)
        again = augment(config, batch, step=3)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(
        augment(PRESETS["deit"], batch)[0], augment(PRESETS["deit"], batch, step=1)[0]
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_do_what_one_does(world):
    batch, labels = images(16), torch.arange(16) % 10
    config = {"rotate": 20, "flip": 0.5, "colour_jitter": 0.3, "three_augment": True}
    whole, _ = augment(config, batch, labels)
    for rank in range(world):
        mine = slice(rank, None, world)
        part, _ = augment(config, batch[mine], labels[mine], rank=rank, world_size=world)
        torch.testing.assert_close(part, whole[mine])


def test_random_erasing_replaces_a_box_by_noise():
    batch = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8)
    out, _ = augment({"erase": 0.5}, batch)
    changed = (out - normalize(batch, MEAN, STD)).abs().sum(1) > 1e-4
    touched = changed.flatten(1).any(1)
    assert 70 < touched.sum() < 130
    for mask in changed[touched][:40]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and 0.01 < mask.float().mean() < 0.36


def test_label_smoothing_is_timms():
    from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

    labels = torch.arange(8) % 10
    _, targets = augment({"label_smoothing": 0.1}, images(8), labels)
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        SoftTargetCrossEntropy()(logits, targets), LabelSmoothingCrossEntropy(0.1)(logits, labels)
    )


def test_mixup_mixes_images_and_targets_by_the_same_share():
    batch = images(8)
    plain = normalize(batch, MEAN, STD)
    out, targets = augment({"mixup": 0.8}, batch, torch.arange(8))
    for i in range(8):
        share = targets[i, i]
        expected = share * plain[i] + (1 - share) * plain[7 - i]
        torch.testing.assert_close(out[i], expected, atol=1e-5, rtol=0)
        assert targets[i].sum() == pytest.approx(1) and targets[i, 7 - i] == 1 - share


def test_cutmix_shares_are_the_areas():
    batch = torch.stack([torch.full((3, 32, 32), 20 * i, dtype=torch.uint8) for i in range(8)])
    out, targets = augment({"cutmix": 1.0}, batch, torch.arange(8))
    plain = normalize(batch, MEAN, STD)
    for i in range(8):
        own = (out[i] - plain[i]).abs().amax(0) < 1e-5
        assert own.float().mean().item() == pytest.approx(targets[i, i].item(), abs=1e-6)
        assert ((out[i] - plain[7 - i]).abs().amax(0) < 1e-5)[~own].all()


def test_mixing_leaves_the_unchosen_alone():
    batch, labels = images(400, 8), torch.arange(400) % 10
    out, targets = augment({"mixup": 1.0, "mix_probability": 0.3}, batch, labels)
    plain = normalize(batch, MEAN, STD)
    hard = (targets.max(1).values == 1) & (targets.argmax(1) == labels)
    same = (out - plain).flatten(1).abs().amax(1) < 1e-5
    assert (same <= hard).all() and 230 < same.sum() < 330


def test_mixing_shares_follow_their_beta_distribution():
    batch, labels = images(2000, 4), torch.arange(2000) % 1000
    _, targets = augment({"mixup": 0.8}, batch, labels, num_classes=1000)
    own = targets[torch.arange(2000), labels]
    # labels of partners differ (999 - i), so own is the share: Beta(a, a) has variance 1/(8a+4).
    assert own.mean().item() == pytest.approx(0.5, abs=0.03)
    assert own.var().item() == pytest.approx(1 / (8 * 0.8 + 4), rel=0.1)


@pytest.mark.parametrize(
    "wrong", [{"rotate": -1}, {"scale": (2, 1)}, {"flipp": 0.5}, {"label_smoothing": 1}]
)
def test_impossible_configurations(wrong):
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)


def test_neighbouring_steps_draw_unrelated_numbers():
    draws = torch.stack(
        [torch.rand(200, generator=step_generator(0, e, s)) for e in range(5) for s in range(5)]
    )
    correlation = torch.corrcoef(draws) - torch.eye(25)
    assert correlation.abs().max() < 0.35
