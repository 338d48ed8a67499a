"""The fused kernels against the reference on a device: same assignments, and the time of both.

`python -m benchmarks.gpu_kernels --out kernels.jsonl`; with `--dry` on the CPU, tiny, under
Triton's interpreter (set TRITON_INTERPRET=1). Exits with 1 where assignments differ beyond near
ties. Sizes that the file has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import hardware
from pipelines.search.timing import median_ms
from tokenpool import gpu
from tokenpool.attention import sized_attention
from tokenpool.methods import method
from tokenpool.methods.base import TokenSet
from tokenpool.options import PoolOptions

# Sums in another order flip near ties, and a flip in K-Means moves a centre; no more than this.
ALIKE = 0.999


def reference(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with nothing fused."""

    def unfused() -> Any:
        before, gpu.LARGEST = gpu.LARGEST, 0
        try:
            return call()
        finally:
            gpu.LARGEST = before

    return unfused


def pooling(device: str, batch: int, tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Each method on random tokens: the share of equal labels, the error of the means, times."""
    random = torch.Generator().manual_seed(tokens)
    k = max(1, round(0.93 * tokens))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(batch, tokens, 384, generator=random).to(device, dtype)
        keys = torch.randn(batch, tokens, 128, generator=random).to(device, dtype)
        scores = torch.rand(batch, tokens, generator=random).to(device)
        sizes = torch.randint(1, 9, (batch, tokens), generator=random).float().to(device)
        for name, features in (("leader", keys), ("kmeans", x), ("wkmedoids", x)):
            given = TokenSet(x, features, scores, sizes if name == "leader" else None, None)

            def fused(name: str = name, given: TokenSet = given) -> Any:
                with torch.inference_mode():
                    return method(name).reduce(given, k, PoolOptions())

            ours, expected = fused(), reference(fused)()
            error = (ours.tokens.float() - expected.tokens.float()).abs().amax((1, 2))
            alike = (ours.assignment == expected.assignment).all(1)
            yield {
                "kernel": name,
                "dtype": str(dtype).removeprefix("torch."),
                "batch": batch,
                "tokens": tokens,
                "k": k,
                "labels_alike": (ours.assignment == expected.assignment).float().mean().item(),
                "repeatable": torch.equal(ours.tokens, fused().tokens),
                "images_alike": alike.float().mean().item(),
                "error_of_means": error[alike].max().item() if bool(alike.any()) else None,
                "fused_ms": median_ms(fused, device, least=repeats),
                "reference_ms": median_ms(reference(fused), device, least=repeats),
            }


def attention(device: str, batch: int, tokens: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Received attention, and proportional attention: by columns, by a bias, and without."""
    random = torch.Generator().manual_seed(tokens)
    dtype = torch.bfloat16
    qkv = torch.randn(batch, tokens, 3, 6, 64, generator=random).to(device, dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    logs = torch.randint(1, 9, (batch, tokens), generator=random).float().log().to(device)
    bias = logs[:, None, None].to(dtype)

    def plain() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)

    def biased() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def columns() -> Tensor:
        return sized_attention(q, k, v, logs)

    def received() -> Tensor:
        return gpu.received(q, k, 0.125, logs)

    def unfused() -> Tensor:
        logits = (q.float() @ k.float().transpose(-1, -2)) * 0.125 + logs[:, None, None]
        return logits.softmax(-1).sum((1, 2))

    calls = {"plain": plain, "bias": biased, "columns": columns, "received": received}
    if device == "cuda":
        for name in ("bias", "columns"):
            calls[f"{name}_compiled"] = torch.compile(calls[name], dynamic=False)
    yield {
        "kernel": "attention",
        "batch": batch,
        "tokens": tokens,
        "columns_error": (columns() - biased()).abs().max().item(),
        "received_error": ((received() - unfused()).abs() / unfused()).max().item(),
        **{f"{name}_ms": median_ms(call, device, least=repeats) for name, call in calls.items()},
        "unfused_received_ms": median_ms(unfused, device, least=1),
    }


def main() -> None:
    """Check and time; say what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU")
    given = parser.parse_args()
    device = "cpu" if given.dry else "cuda"
    batch, repeats = (1, 1) if given.dry else (256, 10)
    counts = (20,) if given.dry else (196, 91, 256, 577, 1024)
    wrong = False
    done = set()
    if given.out is not None and given.out.exists():
        rows_there = [json.loads(line) for line in given.out.read_text().splitlines()]
        # Attention comes last at each size.
        done = {row["tokens"] for row in rows_there if row["kernel"] == "attention"}
        wrong = not all(row["right"] for row in rows_there)
    for tokens in counts:
        if tokens in done:
            continue
        images = batch if tokens <= 256 else max(1, batch // 4)
        for rows in (pooling, attention):
            for row in rows(device, images, tokens, repeats):
                print(json.dumps(row), flush=True)
                row["right"] = (
                    row.get("labels_alike", 1.0) >= ALIKE
                    and row.get("repeatable", True)
                    and row.get("received_error", 0.0) < 0.02
                )
                wrong |= not row["right"]
                if given.out is not None:
                    with given.out.open("a") as file:
                        file.write(json.dumps({**row, **hardware(device)}) + "\n")
    if wrong:
        print("some results differ from the reference: see the lines above", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
