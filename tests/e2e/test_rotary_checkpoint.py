"""A model with rotary positions the whole way: trained, squeezed, searched, exported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

import tokenpool as tp
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.data.prepare import prepare

TOKENPOOL = Path(sys.executable).with_name("tokenpool")
CONFIG = """
name: rotary
storage: runs
data: {path: digits, image_size: 32}
model: {patch_size: 4, depth: 4}
space:
  widths: [{width: 96, heads: 3, checkpoint: trained}]
calibrate: {counts: 3, images: 64}
plan: {seeds: 8}
screen: {schedules: 16, generations: 1, actors: 1, cpus_per_actor: 0.9, batch_size: 64}
base:
  workers: {num_workers: 1, cpus_per_worker: 0.9}
  train: {epochs: 2, batch_size: 32, lr: 0.002, warmup_epochs: 0.5}
finals:
  trials: 2
  workers: {num_workers: 1, cpus_per_worker: 0.9}
  train: {epochs: 2, batch_size: 32, lr: 0.0005, warmup_epochs: 0.5}
"""


# A rotary one, and one that has no image size but a grid of positions, and a head that attends.
NAMES: dict[str, dict[str, Any]] = {
    "vit_small_patch16_dinov3": {"img_size": 32},
    "naflexvit_base_patch16_map": {"pos_embed_grid_size": (8, 8)},
}


def trained(name: str, data: Path, epochs: int = 8) -> Any:
    """A small model of a name that has learned digits."""
    torch.manual_seed(0)
    size = {"patch_size": 4, "embed_dim": 96, "num_heads": 3, "depth": 4}
    model = timm.create_model(name, num_classes=10, **size, **NAMES[name]).train()
    manifest = load_manifest(data)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (manifest.mean, manifest.std))
    loader = make_loader(data, "train", batch_size=64, train=True, image_size=32)
    optimizer = torch.optim.AdamW(model.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(loader))
    for _ in range(epochs):
        for images, labels in loader:
            loss = F.cross_entropy(model((images.float() / 255 - mean) / std), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    loader.close()
    model.pretrained_cfg |= {
        "mean": manifest.mean, "std": manifest.std, "crop_pct": 1.0, "input_size": (3, 32, 32),
        "label_names": manifest.classes,
    }  # fmt: skip
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trained_squeezed_searched_and_exported(name: str, tmp_path: Path) -> None:
    def run(*words: str) -> str:
        ran = subprocess.run(
            [TOKENPOOL, *words], cwd=tmp_path, capture_output=True, text=True, timeout=900,
            check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    data = tmp_path / "digits"
    prepare("digits", data)
    model = trained(name, data)
    tp.save(model, tmp_path / "trained")
    found = json.loads(
        run("squeeze", "trained", "digits", "--rate", "0.6", "--out", "squeezed", "--json")
    )
    assert found
    squeezed = tp.load(tmp_path / "squeezed")
    assert tp.macs(squeezed).total <= 0.6 * tp.macs(model).total
    (tmp_path / "rotary.yaml").write_text(CONFIG)
    said = run("search", "rotary.yaml")
    assert "its own cut of images (crop_pct 1.0, crop_mode center, interpolation bicubic)" in said
    front = json.loads(run("front", "rotary", "--all", "--json"))
    dense, best = front["points"][-1], front["points"][-2]
    assert dense["gmacs"] == pytest.approx(tp.macs(model).gmacs, rel=1e-4)
    assert best["top1_val"] > 0.4
    for format_name in ("timm", "onnx", "torch-export"):
        facts = json.loads(run("export", "rotary", best["id"], "--format", format_name, "--json"))
        assert facts["check"]["same_top1"] and facts["check"]["within_tolerance"] >= 58
        assert facts["check"]["within_tolerance"] + facts["check"]["ties"] == 64
    taken = tp.load(tmp_path / "exports" / f"rotary-{best['id']}-timm")
    assert type(taken) is type(model) and str(tp.pooling_of(taken).schedule) == best["schedule"]
    half = json.loads(
        run("export", "squeezed", "--data", "digits", "--format", "onnx",
            "--precision", "int8", "--json")
    )  # fmt: skip
    assert half["reduced"]["same_class"] > 0.6
