"""Pooled models on a GPU: bf16, compiled, all variants at the same counts, interleaved.

`python -m benchmarks.gpu_models --model deit_small_patch16_224 --batch 256 --out rows.jsonl` times
inference; `--train` a step with AdamW. Rows that the file has already are not measured again.
`--only NAME --rounds 0` compiles one variant and leaves it in the compiler's cache: several of
these can run at once, which takes minutes off a lease.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch

import tokenpool as tp
from benchmarks.machine import hardware
from pipelines.search.timing import seconds_of

# What is compared: the default method, the paper's, and ToMe as published.
VARIANTS: dict[str, tuple[str, dict[str, Any]] | None] = {
    "dense": None,
    "leader": ("leader", {}),
    "tome": ("tome", {"position": "attention"}),
    "kmeans": ("kmeans", {}),
    "wkmedoids": ("wkmedoids", {}),
}


def make_step(
    model: Any, variant: str, schedule: tp.Schedule, images: torch.Tensor, *, train: bool, dry: bool
) -> Callable[[], object]:
    """A call that does one step: a forward pass, or one of training."""
    ours = copy.deepcopy(model)
    chosen = VARIANTS[variant]
    if chosen is not None:
        tp.pool(ours, schedule, chosen[0], **chosen[1])
    # All variants share one forward: dynamo must keep a graph for each of them.
    torch._dynamo.config.recompile_limit = 64
    backend = "aot_eager" if dry else "inductor"
    if not train:
        ours = torch.compile(ours.eval().bfloat16(), fullgraph=True, dynamic=False, backend=backend)
        inputs = images.bfloat16()

        def infer() -> object:
            with torch.inference_mode():
                return ours(inputs)

        return infer
    ours.train()
    optimiser = torch.optim.AdamW(ours.parameters(), lr=1e-4, fused=images.is_cuda)
    compiled = torch.compile(ours, fullgraph=True, dynamic=False, backend=backend)

    def learn() -> object:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype=torch.bfloat16):
            loss = compiled(images).float().square().mean()
        loss.backward()
        optimiser.step()
        return loss.detach()

    return learn


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=0.93, help="constant keep rate of all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--train", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="these variants"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true", help="a tiny model on the CPU")
    given = parser.parse_args()
    device = "cpu" if given.dry else "cuda"
    facts = {
        "model": given.model,
        "batch": given.batch,
        "work": "train" if given.train else "inference",
        "rate": given.rate,
    }
    out: Path | None = given.out
    if out is not None and out.exists():
        for line in out.read_text().splitlines():
            row = json.loads(line)
            if all(row.get(key) == value for key, value in facts.items()):
                print(f"{given.model}, batch {given.batch}, {facts['work']}: measured already")
                return
    torch.manual_seed(0)
    tiny: dict[str, Any] = (
        {"img_size": 32, "embed_dim": 48, "num_heads": 3, "depth": 2} if given.dry else {}
    )
    model: Any = timm.create_model(given.model, **tiny).to(device)
    schedule = tp.Schedule.constant_rate(
        len(model.blocks), model.patch_embed.num_patches, given.rate
    )
    images = torch.randn(given.batch, 3, *model.patch_embed.img_size, device=device)
    names = given.only
    steps = {}
    for name in names:
        began = time.perf_counter()
        steps[name] = make_step(model, name, schedule, images, train=given.train, dry=given.dry)
        for _ in range(3):
            seconds_of(steps[name], device)
        print(f"{name}: ready after {time.perf_counter() - began:.1f} s", flush=True)
    if not given.rounds:
        return
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            seconds[name].append(seconds_of(steps[name], device))
    dense = tp.macs(model).total
    rows = []
    for name in names:
        chosen = VARIANTS[name]
        cost = dense if chosen is None else tp.macs(model, schedule, chosen[0], **chosen[1]).total
        first = seconds[names[0]]
        speedup = statistics.median(a / b for a, b in zip(first, seconds[name], strict=True))
        ideal = dense / cost
        rows.append(
            {
                **facts,
                "variant": name,
                "images_per_second": round(given.batch / statistics.median(seconds[name]), 1),
                "speedup": round(speedup, 4),
                "mac_ratio": round(ideal, 4),
                "realised": round(speedup / ideal, 4),
                "seconds": [round(value, 6) for value in seconds[name]],
                "schedule": str(schedule),
                **hardware(device),
            }
        )
        print(
            f"{given.model} {given.batch} {facts['work']:9} {name:10} "
            f"{rows[-1]['images_per_second']:9.1f} img/s  {speedup:5.3f}x of {ideal:5.3f} "
            f"= {speedup / ideal:.3f}",
            flush=True,
        )
    if out is not None:
        with out.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
