"""Slow: two small trainings, which is what the claim is about."""

import pytest
import torch
import torch.nn.functional as F

import tokenpool as tp
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.train.engine import learning_rate
from pipelines.train.model import init_from_scratch

EPOCHS = 4


def train(digits, init):
    """Top-1 on minival of a 64-wide DeiT after a few epochs from one start."""
    manifest = load_manifest(digits)
    torch.manual_seed(0)
    model = init(tp.build_vit(32, 4, 64, 6, 2, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loader = make_loader(digits, "train", batch_size=32, train=True, image_size=32)
    for epoch in range(EPOCHS):
        loader.set_epoch(epoch)
        for step, (images, labels) in enumerate(loader):
            optimizer.param_groups[0]["lr"] = learning_rate(
                epoch * len(loader) + step,
                num_steps=EPOCHS * len(loader),
                warmup_steps=len(loader),
                peak=2e-3,
                low=1e-5,
            )
            logits = model(normalize(images, manifest.mean, manifest.std))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    loader.close()
    held_out = make_loader(digits, "minival", batch_size=512, train=False, image_size=32)
    ((images, labels),) = list(held_out)
    held_out.close()
    with torch.no_grad():
        logits = model.eval()(normalize(images, manifest.mean, manifest.std))
    return (logits.argmax(1) == labels).float().mean().item()


@pytest.mark.slow
def test_a_narrow_model_learns_sooner_from_this_start_than_from_deits(digits):
    ours = train(digits, init_from_scratch)
    deits = train(digits, lambda model: model)
    assert ours > deits + 0.2, (ours, deits)
