"""Speed of pooled against dense models: all variants interleaved in one run.

Every round times one batch of every variant, in turn, so that whatever else the machine does falls
on all alike; what is reported is the median over rounds and the median ratio to the dense model of
the same round. Needs torch and timm only, and runs on CPU and CUDA unchanged.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.machine import hardware
from pipelines.search.timing import seconds_of
from tokenpool.cost import macs
from tokenpool.methods import method as method_named
from tokenpool.options import PoolOptions
from tokenpool.patches import patches_of
from tokenpool.pooling import pool
from tokenpool.schedule import Schedule
from tokenpool.vit import LayerPlan, PooledBlock, TokenSet

__all__ = [
    "MODES",
    "Runner",
    "Variant",
    "default_method_variants",
    "default_variants",
    "run",
]

MODES = ("fp32-eager", "bf16-eager", "fp32-compiled")

Runner = Callable[[nn.Module], Callable[[Tensor], object]]
"""Makes a model a call that takes images."""

_NO_RUNNERS: Mapping[str, Runner] = MappingProxyType({})


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        name: for the table.
        method: of `tp.METHODS`, or None for the dense model.
        schedule: None for the dense model.
        options: of the pooling.
    """

    name: str
    method: str | None = None
    schedule: Schedule | None = None
    options: dict[str, Any] = field(default_factory=dict)


def default_variants(depth: int, patches: int, rate: float) -> list[Variant]:
    """The rows of the speed table in `shared/environment.md`.

    Args:
        depth: blocks.
        patches: tokens before pooling.
        rate: keep rate of the schedule shared by all rows but ToMe, which merges 13 per layer.
    """
    shared = Schedule.constant_rate(depth, patches, rate)
    # ToMe as published: between attention and MLP, r = 13 tokens a layer at 196 patches.
    removed = max(1, round(13 * patches / 196))
    counts = [max(1, patches - removed * layer) for layer in range(1, depth + 1)]
    return [
        Variant("dense"),
        Variant("PoWER-BERT pruning", "powerbert", shared),
        Variant("PoWER-BERT, CLS significance", "powerbert", shared, {"significance": "cls"}),
        Variant("K-Medoids, 5 iterations", "kmedoids", shared),
        Variant("WK-Medoids, 5 iterations", "wkmedoids", shared),
        Variant("K-Medoids on keys", "kmedoids", shared, {"features": "keys"}),
        Variant("WK-Medoids on keys", "wkmedoids", shared, {"features": "keys"}),
        Variant(
            "WK-Medoids on keys, CLS significance",
            "wkmedoids",
            shared,
            {"features": "keys", "significance": "cls"},
        ),
        Variant("K-Means, 3 iterations", "kmeans", shared, {"iterations": 3}),
        Variant("K-Means, 5 iterations", "kmeans", shared),
        Variant("grid", "grid", shared),
        *default_method_variants(shared),
        Variant(f"ToMe r = {removed}", "tome", Schedule(counts), {"position": "attention"}),
    ]


def default_method_variants(schedule: Schedule) -> list[Variant]:
    """The default method, and what else merges alike tokens into means, at the same counts."""
    return [
        Variant("leader", "leader", schedule),
        Variant("ToMe, same counts", "tome", schedule, {"position": "attention"}),
        Variant(
            "K-Means on keys, matching, 1 iteration",
            "kmeans",
            schedule,
            {"features": "keys", "start": "matching", "iterations": 1},
        ),
    ]


def run(
    model_name: str = "deit_small_patch16_224",
    *,
    modes: tuple[str, ...] = MODES,
    variants: list[Variant] | None = None,
    only: str = "",
    rate: float = 0.93,
    batches: tuple[int, ...] = (32,),
    rounds: int = 7,
    device: str = "cpu",
    model: nn.Module | None = None,
    model_options: dict[str, Any] | None = None,
    runners: Mapping[str, Runner] = _NO_RUNNERS,
    details: bool = True,
    cpu_time: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Time the variants and give one row of JSON values for each, mode by mode.

    Args:
        model_name: of timm; weights are random, which does not change the speed.
        modes: of `MODES` and `runners`.
        variants: None: `default_variants`.
        only: variants whose name holds one of these, a|b, beside the dense model; empty: all.
        rate: keep rate of the default variants.
        batches: images a step, one measurement each.
        rounds: timed steps of each variant, after two to warm up.
        device: "cpu" or "cuda".
        model: dense, in place of one that timm makes; then `model_name` is what rows call it.
        model_options: further arguments of `timm.create_model`.
        runners: further modes: what makes of a model a call that takes images.
        details: measure the time of pooling alone and the peak memory too.
        cpu_time: count the processor time of this process in place of the clock's: what other
            programs do then falls on nobody. With one thread, as threads wait by spinning.
        progress: called with a line for each step.
    """
    for mode in modes:
        if mode not in MODES and mode not in runners:
            known = ", ".join((*MODES, *runners))
            raise ValueError(f"there is no mode {mode!r}: use {known}")
    torch.manual_seed(0)
    vit: Any = model or timm.create_model(model_name, **(model_options or {}))
    vit = vit.eval().to(device)
    embed = patches_of(vit)
    depth, patches = len(vit.blocks), embed.number
    variants = variants or default_variants(depth, patches, rate)
    parts = only.split("|")
    variants = [v for v in variants if v.method is None or any(part in v.name for part in parts)]
    facts, clock = hardware(device), time.process_time if cpu_time else time.perf_counter
    for mode in modes:
        forwards = {v.name: _forward(vit, v, mode, runners) for v in variants}
        for batch in batches:
            images = torch.randn(batch, vit.in_chans, *(embed.img_size or ()), device=device)
            steps = {name: _step(forward, mode, images) for name, forward in forwards.items()}
            seconds: dict[str, list[float]] = {v.name: [] for v in variants}
            for turn in range(rounds + 2):
                for variant in variants:
                    if progress is not None:
                        where = f"{mode}, batch {batch}: round {turn + 1}/{rounds + 2}"
                        progress(f"{where}, {variant.name}")
                    took = seconds_of(steps[variant.name], device, clock)
                    if turn >= 2:
                        seconds[variant.name].append(took)
            against = seconds[variants[0].name]
            for variant in variants:
                taken = seconds[variant.name]
                row = {**facts, "model": model_name, "mode": mode, "batch": batch, "rounds": rounds}
                row["clock"] = "cpu" if cpu_time else "wall"
                row |= _described(vit, variant, taken, against)
                row["images_per_second"] = round(batch / statistics.median(taken), 2)
                if details:
                    layer = _pooling_seconds(vit, variant, mode, images)
                    row["pooling_ms"] = None if layer is None else round(layer * 1e3, 2)
                    peak = _peak_bytes(steps[variant.name], device)
                    row["peak_mib"] = round(peak / 2**20, 3)
                yield row


def _described(
    model: nn.Module, variant: Variant, taken: list[float], against: list[float]
) -> dict[str, Any]:
    """What a row says of one variant: what it is, what it costs, how long it took.

    Args:
        model: dense.
        variant: which was timed.
        taken: seconds of each round.
        against: seconds of the dense model in the same rounds.
    """
    cost = macs(model, variant.schedule, variant.method or "wkmedoids", **variant.options)
    speedup = statistics.median(a / b for a, b in zip(against, taken, strict=True))
    ideal = macs(model).total / cost.total
    return {
        "variant": variant.name,
        "method": variant.method,
        "options": variant.options,
        "schedule": None if variant.schedule is None else str(variant.schedule),
        "gmacs": round(cost.gmacs, 4),
        "gmacs_clustering": round(cost.clustering / 1e9, 4),
        "milliseconds": round(1e3 * statistics.median(taken), 3),
        "seconds": [round(value, 5) for value in taken],
        "speedup": round(speedup, 3),
        "mac_ratio": round(ideal, 3),
        "realised": round(speedup / ideal, 3),
    }


def _forward(
    model: nn.Module, variant: Variant, mode: str, runners: Mapping[str, Runner]
) -> Callable[[Tensor], object]:
    """A call that runs the variant on images, in the form that the mode wants."""
    ours: Any = copy.deepcopy(model)
    if variant.schedule is not None and variant.method is not None:
        pool(ours, variant.schedule, variant.method, **variant.options)
    if mode in runners:
        return runners[mode](ours)
    if mode == "fp32-compiled":
        # All variants share one forward: dynamo must keep a graph for each of them.
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(256, dynamo.recompile_limit)
        ours = torch.compile(ours, fullgraph=True, dynamic=False)
    forward: Callable[[Tensor], object] = ours
    return forward


def _step(forward: Callable[[Tensor], object], mode: str, images: Tensor) -> Callable[[], object]:
    """A call that runs one batch."""

    def step() -> object:
        with torch.inference_mode(), _autocast(mode, images):
            return forward(images)

    return step


def _autocast(mode: str, images: Tensor) -> AbstractContextManager[Any]:
    if mode == "bf16-eager":
        return torch.autocast(images.device.type, dtype=torch.bfloat16)
    return nullcontext()


def _pooling_seconds(model: nn.Module, variant: Variant, mode: str, images: Tensor) -> float | None:
    """Seconds of all pooling layers alone, eager, on the tokens they really get."""
    if variant.schedule is None or variant.method is None:
        return None
    ours: Any = pool(copy.deepcopy(model), variant.schedule, variant.method, **variant.options)
    seen: list[tuple[TokenSet, LayerPlan]] = []
    for block in ours.blocks:
        assert isinstance(block, PooledBlock)
        block.observer = lambda plan, given, pooled: seen.append((given, plan))
    with torch.inference_mode(), _autocast(mode, images):
        ours(images)
    strategy, options = method_named(variant.method), PoolOptions.of(**variant.options)

    def all_layers() -> None:
        with torch.inference_mode(), _autocast(mode, images):
            for given, plan in seen:
                strategy.reduce(given, plan.kept, options)

    all_layers()
    return min(seconds_of(all_layers, str(images.device)) for _ in range(5))


def _peak_bytes(step: Callable[[], object], device: str) -> int:
    """Most bytes of tensors alive during one call, beyond those before it."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        step()
    results: Any = profiler.profiler
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
