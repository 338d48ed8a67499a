"""The DeepSpeed engine of a job."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pipelines.config import TrainConfig
from pipelines.train.imports import import_deepspeed
from pipelines.train.optim import make_optimizer


def use_right_accelerator() -> torch.device:
    """The device of this worker, told to DeepSpeed too; to be called before it is imported.

    The process group decides: a job without GPUs runs over gloo, also where the machine has one.
    """
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    os.environ["DS_ACCELERATOR"] = "cpu"
    return torch.device("cpu")


def make_engine(model: nn.Module, train: TrainConfig, world_size: int) -> Any:
    """Wraps a model and its AdamW in a DeepSpeed engine over the process group that is there.

    ZeRO buys nothing at 5 to 90 M parameters, so stage 0 with fp32 weights is the default and
    bf16 is torch's autocast around the forward pass, not DeepSpeed's bf16 optimizer (whose
    first AdamW update at stage 0 is off, ../shared/environment.md).

    Micro-batches and, at stage 0, clipping are not DeepSpeed's affair but `Update`'s: its own
    clipping at stage 0 goes through the parameters one by one and adds an all-reduce to each step.
    """
    deepspeed = import_deepspeed()
    from deepspeed.utils import logger as deepspeed_logger

    deepspeed_logger.setLevel(logging.WARNING)
    config: dict[str, Any] = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.batch_size // world_size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {
            "stage": train.zero_stage,
            # The default is 2 GB of fp32, far more than the gradients of these models.
            "reduce_bucket_size": sum(p.numel() for p in model.parameters()),
        },
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": train.clip_grad if train.zero_stage else 0.0,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=make_optimizer(model, train),
        config=config,
        dist_init_required=False,
    )
    return engine


def set_learning_rate(engine: Any, lr: float) -> None:
    """Sets the rate of every parameter group, each at its own scale."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
