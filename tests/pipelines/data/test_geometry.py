"""Crops against torchvision's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop

from pipelines.data.geometry import Geometry, centre_crops, random_resized_crops


@given(
    st.integers(1, 900), st.integers(1, 900), st.floats(0.01, 1), st.floats(0.2, 1), st.integers()
)
@settings(max_examples=200)
def test_boxes_lie_inside_their_image(height, width, scale, ratio, seed):
    geometry = Geometry(crop_scale=(scale, 1.0), crop_ratio=(ratio, 1 / ratio))
    rng = np.random.default_rng(abs(seed))
    boxes = random_resized_crops(np.full(8, height), np.full(8, width), geometry, rng)
    for top, left, box_height, box_width in boxes:
        assert top >= 0 and left >= 0 and box_height >= 1 and box_width >= 1
        assert top + box_height <= height and left + box_width <= width
    centre = centre_crops(np.full(8, height), np.full(8, width), geometry, 1 + abs(seed) % 300)
    for top, left, box_height, box_width in centre:
        assert top >= 0 and left >= 0 and box_height > 0 and box_width > 0
        assert top + box_height < height + 1e-6 and left + box_width < width + 1e-6


@pytest.mark.parametrize(("height", "width"), [(375, 500), (64, 64), (30, 300)])
def test_crops_are_distributed_as_torchvisions(height, width):
    """Means of area, ratio and place over 4,000 draws of each, within four standard errors."""
    count = 4000
    ours = random_resized_crops(
        np.full(count, height), np.full(count, width), Geometry(), np.random.default_rng(0)
    )
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(count)]
    )

    def features(boxes):
        top, left, h, w = boxes.T
        return np.stack([h * w / (height * width), np.log(w / h), top + h / 2, left + w / 2])

    a, b = features(ours), features(theirs)
    error = np.sqrt((a.var(axis=1) + b.var(axis=1)) / count) + 1e-9
    assert (np.abs(a.mean(axis=1) - b.mean(axis=1)) < 4 * error + 0.01).all()


def test_the_centre_crop_is_resize_256_crop_224():
    """375 × 500 becomes 256 × 341; of that, 224 from row 16 and column 58 on."""
    box = centre_crops(np.array([375]), np.array([500]), Geometry(), 224)[0]
    down, across = 375 / 256, 500 / 341
    np.testing.assert_allclose(box, [16 * down, 58 * across, 224 * down, 224 * across])


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": (0, 1)}, {"crop_ratio": (2, 1)}, {"flip": 2}, {"eval_ratio": 0}]
)
def test_impossible_geometry(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Geometry(**wrong)
