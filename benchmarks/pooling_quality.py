"""What each method loses on a trained model without fine-tuning.

`python benchmarks/pooling_quality.py` trains a small DeiT on scikit-learn's handwritten digits (or
takes `--model`, a saved one), pools it by every method at the same schedules, and writes top-1 and
reconstruction error as JSON rows and as a Markdown table under `benchmarks/results/`. The split is
fixed; the test images are not trained on.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import tokenpool as tp
from tokenpool.analysis import error_by_k
from tokenpool.benchmark import hardware
from tokenpool.trace import record

RESULTS = Path(__file__).parent / "results"
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7)
# Name in the table, method, options: every method as the paper has it, and our better start.
VARIANTS = [
    *((name, name, {}) for name in tp.METHODS),
    *(
        (f"{name}, start=matching", name, {"start": "matching"})
        for name in ("kmeans", "kmedoids", "wkmeans", "wkmedoids")
    ),
]
CLUSTERING = ("kmeans", "kmedoids", "wkmeans", "wkmedoids", "dpc", "agglomerative")


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images `[n, 3, 32, 32]`, normalised, and labels."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    images = F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1)
    images = (images - images.mean()) / images.std()
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1300], order[1300:]
    return images[train], labels[train], images[test], labels[test]


def validation(data: Path) -> tuple[Tensor, Tensor]:
    """The validation images of a prepared data set, normalised, and labels."""
    # Here, as the script does without FFCV where it trains its own model.
    from pipelines.commands.analyze import open_batches

    batches = list(open_batches(data, "val", 32, 100, 2**62))
    return torch.cat([x for x, _ in batches]).contiguous(), torch.cat([y for _, y in batches])


def train(epochs: int, images: Tensor, labels: Tensor) -> Any:
    """A DeiT of width 96 and depth 6 on 64 patches, trained from scratch."""
    torch.manual_seed(0)
    model = tp.build_vit(32, 4, 96, 6, 3, 10, drop_path=0.05)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * math.ceil(len(images) / 100)
    warmup = steps // 12
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * s / steps))),
    )
    padded = F.pad(images, (3, 3, 3, 3), mode="replicate")
    for epoch in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(100):
            # Shift by up to 3 pixels each way, one shift per step.
            dy, dx = torch.randint(0, 7, (2,)).tolist()
            x = padded[batch, :, dy : dy + 32, dx : dx + 32]
            loss = F.cross_entropy(model(x), labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f}", flush=True)
    return model.eval()


def schedules(model: Any) -> dict[float, tp.Schedule]:
    """For each share of the dense MACs the constant-rate schedule nearest to it (pruning cost)."""
    dense = tp.macs(model, tp.Schedule.dense(6, 64)).total
    rates = [r / 1000 for r in range(300, 1000)]
    candidates = {tp.Schedule.constant_rate(6, 64, rate) for rate in rates}
    cost = {s: tp.macs(model, s, "powerbert").total / dense for s in candidates}
    return {share: min(cost, key=lambda s: abs(cost[s] - share)) for share in SHARES}


@torch.inference_mode()
def evaluate(model: Any, images: Tensor, labels: Tensor) -> tuple[float, float | None]:
    """Top-1, and the mean over pooling layers of the share of the tokens' variance lost there."""
    lost: list[float] = []
    correct = 0
    for x, y in zip(images.split(100), labels.split(100), strict=True):
        with record(model, keep_tokens=True) as trace:
            correct += int((model(x).argmax(1) == y).sum())
        for layer in trace.layers:
            assert layer.tokens is not None and layer.pooled is not None
            error = tp.reconstruction_error(layer.tokens, layer.pooled)
            spread = layer.tokens - layer.tokens.mean(1, keepdim=True)
            lost.append(float((error / spread.square().sum((1, 2))).mean()))
    return correct / len(labels), sum(lost) / len(lost) if lost else None


def on_dense(model: Any, images: Tensor, schedule: tp.Schedule) -> dict[str, float | None]:
    """For each variant the mean over layers of the error of pooling the dense model's tokens.

    None where a method cannot make one of the schedule's counts in one step.
    """
    errors: dict[str, list[float | None]] = {name: [] for name, _, _ in VARIANTS}
    for layer, k in enumerate(schedule, start=1):
        for extra in ({}, {"start": "matching"}):
            names = {method: name for name, method, options in VARIANTS if options == extra}
            points = error_by_k(model, [images], [k], list(names), layers=[layer], **extra)
            for point in points:
                errors[names[point.method]].append(point.error if point.k == k else None)
    return {
        name: None if None in found else sum(e for e in found if e is not None) / len(found)
        for name, found in errors.items()
    }


def main() -> None:
    """Train or load, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", type=Path, help="a saved model; trained and saved there if absent"
    )
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--data", type=Path, help="prepared digits that --model was trained on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=5, help="seeds of the random methods")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    train_x, train_y, test_x, test_y = digits()
    if given.data is not None:
        test_x, test_y = validation(given.data)
    if given.model is not None and given.model.exists():
        model: Any = tp.load(given.model)
    else:
        start = time.perf_counter()
        model = train(given.epochs, train_x, train_y)
        print(f"trained in {time.perf_counter() - start:.0f} s", flush=True)
        if given.model is not None:
            tp.save(model, given.model)
    dense_top1, _ = evaluate(tp.pool(model, None), test_x, test_y)
    dense = tp.macs(model).total
    facts = {**hardware("cpu"), "dense_top1": dense_top1, "images": len(test_y)}
    rows = []
    for share, schedule in schedules(model).items():
        tp.pool(model, None)
        dense_errors = on_dense(model, test_x[:100], schedule)
        for name, method, extra in VARIANTS:
            drawn = method in ("random", "importance")
            results = []
            for seed in range(given.draws if drawn else 1):
                options: dict[str, Any] = dict(extra)
                if drawn:
                    options["generator"] = torch.Generator().manual_seed(seed)
                tp.pool(model, schedule, method, **options)
                results.append(evaluate(model, test_x, test_y))
            top1 = sum(r[0] for r in results) / len(results)
            error = sum(r[1] or 0.0 for r in results) / len(results)
            rows.append(
                {
                    **facts,
                    "method": method,
                    "variant": name,
                    "share": share,
                    "schedule": str(schedule),
                    "kept": str(tp.realised_schedule(model)),
                    "macs_share": tp.macs(model).total / dense,
                    "top1": top1,
                    "reconstruction_error": error,
                    "error_on_dense": dense_errors[name],
                }
            )
            print(f"{share} {name:24} top-1 {100 * top1:.1f} error {error:.4f}", flush=True)
    tp.pool(model, None)
    RESULTS.mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (RESULTS / "methods-digits.jsonl").write_text(lines)
    (RESULTS / "methods-digits.md").write_text(table(rows, facts))


def table(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Both measures, methods down and schedules across."""
    shares = sorted({row["share"] for row in rows})
    found = {(row["variant"], row["share"]): row for row in rows}
    text = (
        "# What each method loses without fine-tuning, on digits\n\n"
        f"DeiT of width 96, depth 6, 64 patches; dense "
        f"top-1 {100 * facts['dense_top1']:.1f} % on {facts['images']} test images. Schedules are "
        "of constant rate, at the share of the dense MACs that pruning by them leaves; every "
        "method is given the same K (`grid` and `tome` keep what they can: `kept` in the rows of "
        f"`methods-digits.jsonl`). {facts['hardware']}, torch {facts['torch']}, "
        f"timm {facts['timm']}, {facts['date']}.\n"
    )
    heading = "".join(f" {100 * share:.0f} % |" for share in shares)
    for title, key, scale in (
        ("Top-1, %", "top1", 100.0),
        (
            "Reconstruction error at each layer of the pooled model, % of the variance of what "
            "comes into it, mean over layers",
            "reconstruction_error",
            100.0,
        ),
        (
            "Reconstruction error of the dense model's tokens pooled to the schedule's K, % of "
            "their variance, mean over layers (the same tokens for all; `tome` and `grid` where "
            "they can)",
            "error_on_dense",
            100.0,
        ),
    ):
        text += f"\n## {title}\n\n| method |{heading}\n|---|{'---|' * len(shares)}\n"
        for name, method, _ in VARIANTS:
            values = [found[name, share][key] for share in shares]
            shown = f"**{name}**" if method in CLUSTERING else name
            text += (
                f"| {shown} |"
                + "".join(" – |" if v is None else f" {scale * v:.2f} |" for v in values)
                + "\n"
            )
    text += "\nSchedules: " + "; ".join(
        f"{100 * share:.0f} %: {found[tp.METHODS[0], share]['schedule']}" for share in shares
    )
    return text + ".\n"


if __name__ == "__main__":
    main()
