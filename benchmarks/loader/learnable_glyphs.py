"""Are the glyphs learnable? `python -m benchmarks.loader.learnable_glyphs DATA --epochs 12`.

Trains a small dense ViT (6 blocks, width 128, 64 tokens) from scratch on prepared glyphs and
writes its minival accuracy per epoch. The default set should land between 90 and 97 %: above it
methods cannot be told apart, below it nothing is learned.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from timm.models.vision_transformer import VisionTransformer

from benchmarks.machine import command_line, machine_facts
from pipelines.data.augment import PRESETS, DeviceAugment, normalize, step_generator
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest


def main(
    data: Annotated[Path, typer.Argument(help="Prepared glyphs.")],
    epochs: Annotated[int, typer.Option()] = 12,
    batch_size: Annotated[int, typer.Option()] = 128,
    threads: Annotated[int, typer.Option()] = 2,
    lr: Annotated[float, typer.Option()] = 1e-3,
    out: Annotated[Path | None, typer.Option(help="Write the result there as JSON.")] = None,
) -> None:
    """Train and print."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = load_manifest(data)
    side = manifest.image_size
    if side is None:
        raise SystemExit(f"{data} holds images of many sizes")
    model = VisionTransformer(
        img_size=side, patch_size=side // 8, embed_dim=128, depth=6, num_heads=4,
        num_classes=manifest.num_classes,
    ).to(device)  # fmt: skip
    train = make_loader(data, "train", batch_size=batch_size, train=True)
    minival = make_loader(data, "minival", batch_size=256, train=False)
    augment = DeviceAugment(
        PRESETS["glyphs"], mean=manifest.mean, std=manifest.std, num_classes=manifest.num_classes
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    total, warmup, step = epochs * len(train), 2 * len(train), 0
    rows: list[dict[str, Any]] = []
    start = time.monotonic()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        model.train()
        for raw, labels in train:
            scale = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
            images, targets = augment(
                raw.to(device), labels.to(device), step_generator(0, epoch, step)
            )
            with torch.autocast(device.type, torch.bfloat16):
                loss = F.cross_entropy(model(images).float(), targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        model.eval()
        right = seen = 0
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for raw, labels in minival:
                scores = model(normalize(raw.to(device), manifest.mean, manifest.std))
                right += int((scores.argmax(1).cpu() == labels).sum())
                seen += len(labels)
        rows.append({"epoch": epoch, "top1_minival": round(100 * right / seen, 2)})
        print(json.dumps(rows[-1] | {"seconds": round(time.monotonic() - start)}), flush=True)
    train.close()
    minival.close()
    if out is not None:
        result = machine_facts(threads) | {
            "command": command_line(),
            "options": manifest.options,
            "train_images": manifest.splits["train"].samples,
            "seconds": round(time.monotonic() - start),
            "rows": rows,
        }
        out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
