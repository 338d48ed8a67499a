"""What each method loses on a trained model without fine-tuning.

`python -m benchmarks.pooling.quality` trains small DeiTs on scikit-learn's handwritten digits,
pools them by every method at the same schedules, and writes top-1 and reconstruction error as JSON
rows and as Markdown tables under `benchmarks/results/`. The split is fixed; the test images are not
trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

import tokenpool as tp
from benchmarks.machine import hardware
from benchmarks.pooling.paired_errors import paired_errors
from tokenpool.token_trace import record

RESULTS = Path(__file__).parents[1] / "results"
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
BASELINES = ("powerbert", "importance", "random", "grid", "tome")
DRAWN = ("random", "importance")
# How the clustering methods are set for the comparison on equal tokens.
SETTINGS: dict[str, dict[str, Any]] = {
    "the paper's: start at the most significant tokens": {},
    "start=matching": {"start": "matching"},
    "start=matching, representative=mean": {"start": "matching", "representative": "mean"},
}


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
    # Here: what trains its own models needs torch and timm alone.
    from pipelines.data.manifest import load_manifest
    from pipelines.data.preprocessing import data_preprocessing
    from pipelines.data.split_batches import split_batches

    view = data_preprocessing(load_manifest(data), 32)
    images, labels = zip(*split_batches(data, "val", view, 100), strict=True)
    return view(torch.cat(images)).contiguous(), torch.cat(labels)


def train(width: int, epochs: int, images: Tensor, labels: Tensor) -> Any:
    """A DeiT of depth 6 on 64 patches, trained from scratch."""
    torch.manual_seed(0)
    model = tp.build_vit(32, 4, width, 6, width // 32, 10, drop_path=0.05)
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


def paired(model: Any, images: Tensor, schedule: tp.Schedule, draws: int) -> list[dict[str, Any]]:
    """For each baseline what each clustering method loses of the very tokens the baseline pools.

    Errors are means over layers, and over draws where the baseline is random.
    """
    rows = []
    for baseline in BASELINES:
        drawn = baseline in DRAWN
        for setting, extra in SETTINGS.items():
            for rival in CLUSTERING[:4]:
                points = []
                for seed in range(draws if drawn else 1):
                    tp.pool(model, None)
                    options = {"generator": generator(seed)} if drawn else {}
                    tp.pool(model, schedule, baseline, **options)
                    points += paired_errors(model, [images], rival, **extra)
                rows.append(
                    {
                        "baseline": baseline,
                        "method": rival,
                        "setting": setting,
                        "baseline_error": sum(p.own for p in points) / len(points),
                        "error": sum(p.rival for p in points) / len(points),
                    }
                )
    tp.pool(model, None)
    return rows


def generator(seed: int) -> torch.Generator:
    """What a random method draws from."""
    return torch.Generator().manual_seed(seed)


def measure(model: Any, images: Tensor, labels: Tensor, draws: int) -> list[dict[str, Any]]:
    """The rows of one trained model: of kind "pooled" (each variant) and "paired"."""
    tp.pool(model, None)
    dense_top1, _ = evaluate(model, images, labels)
    dense = tp.macs(model).total
    facts = {"width": model.embed_dim, "dense_top1": dense_top1, "images": len(labels)}
    rows: list[dict[str, Any]] = []
    for share, schedule in schedules(model).items():
        where = {**facts, "share": share, "schedule": str(schedule)}
        for name, method, extra in VARIANTS:
            results = []
            for seed in range(draws if method in DRAWN else 1):
                options: dict[str, Any] = dict(extra)
                if method in DRAWN:
                    options["generator"] = generator(seed)
                tp.pool(model, schedule, method, **options)
                results.append(evaluate(model, images, labels))
            pooling = tp.pooling_of(model)
            assert pooling is not None
            rows.append(
                {
                    "kind": "pooled",
                    **where,
                    "method": method,
                    "variant": name,
                    "kept": str(pooling.realised),
                    "macs_share": tp.macs(model).total / dense,
                    "top1": sum(r[0] for r in results) / len(results),
                    "reconstruction_error": sum(r[1] or 0.0 for r in results) / len(results),
                }
            )
        rows += [
            {"kind": "paired", **where, **row}
            for row in paired(model, images[:64], schedule, min(draws, 2))
        ]
        print(f"width {model.embed_dim}, {100 * share:.0f} % of the MACs: done", flush=True)
    tp.pool(model, None)
    return rows


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 64])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument(
        "--models", type=Path, nargs="*", help="saved models instead of trained ones; needs --data"
    )
    parser.add_argument("--data", type=Path, help="prepared digits the models were trained on")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--draws", type=int, default=5, help="seeds of the random methods")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    if given.models:
        test_x, test_y = validation(given.data)
        for path in given.models:
            rows += measure(tp.load(path).eval(), test_x, test_y, given.draws)
    else:
        train_x, train_y, test_x, test_y = digits()
        for width in given.widths:
            start = time.perf_counter()
            model = train(width, given.epochs, train_x, train_y)
            print(f"width {width}: trained in {time.perf_counter() - start:.0f} s", flush=True)
            rows += measure(model, test_x, test_y, given.draws)
    facts = hardware("cpu")
    given.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({**facts, **row}) + "\n" for row in rows)
    (given.out / "methods-digits.jsonl").write_text(lines)
    (given.out / "methods-digits.md").write_text(report(rows, facts))


def report(rows: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Every measure, methods down and schedules across, for each width."""
    text = (
        "# What each method loses without fine-tuning, on digits\n\n"
        "DeiT of depth 6, 64 patches. Schedules are of constant rate, at the share of the dense "
        "MACs that pruning by them leaves; every method is given the same K (`grid` and `tome` "
        "keep what they can: `kept` in the rows of `methods-digits.jsonl`). "
        f"{facts['hardware']}, torch {facts['torch']}, timm {facts['timm']}, {facts['date']}. "
        f"Made by `python -m benchmarks.pooling.quality {shlex.join(sys.argv[1:])}`.\n"
    )
    for width in dict.fromkeys(row["width"] for row in rows):
        mine = [row for row in rows if row["width"] == width]
        shares = sorted({row["share"] for row in mine})
        first = mine[0]
        text += (
            f"\n# Width {width}\n\nDense top-1 {100 * first['dense_top1']:.1f} % on "
            f"{first['images']} test images. Schedules: "
            + "; ".join(
                f"{100 * share:.0f} %: "
                + next(row["schedule"] for row in mine if row["share"] == share)
                for share in shares
            )
            + ".\n"
        )
        text += pooled_tables(mine, shares) + paired_tables(mine, shares)
    return text


def heading(first: str, shares: list[float]) -> str:
    """The head of a Markdown table with a column for each share."""
    columns = "".join(f" {100 * share:.0f} % |" for share in shares)
    return f"\n| {first} |{columns}\n|{'---|' * (len(shares) + first.count('|') + 1)}\n"


def pooled_tables(rows: list[dict[str, Any]], shares: list[float]) -> str:
    """Top-1 and error of the pooled models."""
    found = {(r["variant"], r["share"]): r for r in rows if r["kind"] == "pooled"}
    text = ""
    for title, key in (
        ("Top-1, %", "top1"),
        (
            "Reconstruction error at each layer of the pooled model, % of the variance of what "
            "comes into it, mean over layers (each method pools tokens of its own making)",
            "reconstruction_error",
        ),
    ):
        text += f"\n## {title}\n" + heading("method", shares)
        for name, method, _ in VARIANTS:
            shown = f"**{name}**" if method in CLUSTERING else name
            values = (100 * found[name, share][key] for share in shares)
            text += f"| {shown} |" + "".join(f" {v:.2f} |" for v in values) + "\n"
    return text


def paired_tables(rows: list[dict[str, Any]], shares: list[float]) -> str:
    """Error of clustering over error of the baseline on the same tokens; above 1 in bold."""
    found = {
        (r["setting"], r["method"], r["baseline"], r["share"]): r["error"] / r["baseline_error"]
        for r in rows
        if r["kind"] == "paired"
    }
    text = (
        "\n## Reconstruction error on equal terms\n\nIn a model pooled by each baseline, every "
        "clustering method pools the very tokens the baseline pools, to the same count. Its error "
        "over the baseline's, means over layers; below 1 clustering loses less, **above 1** more. "
        "`powerbert`, `importance`, `random` keep tokens as K-Medoids does; `grid` and `tome` "
        "average, as K-Means does.\n"
    )
    for setting in SETTINGS:
        text += f"\n### {setting}\n" + heading("method | baseline", shares)
        for method in CLUSTERING[:4]:
            for baseline in BASELINES:
                ratios = (found[setting, method, baseline, share] for share in shares)
                cells = "".join(f" {r:.2f} |" if r < 1 else f" **{r:.2f}** |" for r in ratios)
                text += f"| {method} | {baseline} |{cells}\n"
    return text


if __name__ == "__main__":
    main()
