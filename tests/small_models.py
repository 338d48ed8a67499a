"""A model that is trained in seconds, for tests of what needs one that knows something."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import tokenpool as tp
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.train.model import init_from_scratch

SIZES = (32, 8, 32, 3, 2, 10)  # image, patch, width, depth, heads, classes


def train_small(digits: Path) -> Any:
    """A 16-token DeiT after four epochs on digits, in evaluation mode."""
    manifest = load_manifest(digits)
    torch.manual_seed(0)
    model = init_from_scratch(tp.build_vit(*SIZES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = make_loader(digits, "train", batch_size=64, train=True, image_size=32)
    for epoch in range(4):
        loader.set_epoch(epoch)
        for images, labels in loader:
            loss = F.cross_entropy(model(normalize(images, manifest.mean, manifest.std)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loader.close()
    return model.eval()
