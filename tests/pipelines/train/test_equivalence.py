"""A step of the job against plain PyTorch: DistributedDataParallel and AdamW, in fp32."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from gang import run_gang, train_as_torchrun_does
from thinning import fast
from torch.nn.parallel import DistributedDataParallel

import tokenpool as tp
from pipelines.config import TrainConfig

IMAGES = 4  # of each rank and pass
STEPS = 20
DENSE, SMALLEST, RANDOM = (16, 16), (4, 2), (9, 5)


def make_model(device="cpu"):
    torch.manual_seed(0)
    model = tp.build_vit(
        image_size=32, patch_size=8, width=32, depth=2, num_heads=2, num_classes=10
    )
    return tp.pool(model, RANDOM).to(device)


def rates():
    return [1e-3 * min(1.0, (step + 1) / 5) for step in range(STEPS)]


def batches(device):
    """This rank's images and labels of each step."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(world_size * IMAGES, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (world_size * IMAGES,), generator=generator)
        yield images[rank::world_size].to(device), labels[rank::world_size].to(device)


def plain_ddp(schedules, clip, device):
    """Gradients of the first step and weights after all, without anything of ours."""
    model = make_model(device)
    decayed = [
        p for n, p in model.named_parameters() if p.ndim > 1 and n not in _not_decayed(model)
    ]
    others = [p for n, p in model.named_parameters() if p.ndim <= 1 or n in _not_decayed(model)]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}],
        lr=1e-3,
        fused=True,  # torch's faster form, which the job uses: it rounds otherwise
    )
    ddp = DistributedDataParallel(model)
    first = None
    for (images, labels), lr in zip(batches(device), rates(), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        for schedule in schedules[:-1]:
            tp.pool(model, schedule)
            with ddp.no_sync():
                (F.cross_entropy(ddp(images), labels) / len(schedules)).backward()
        tp.pool(model, schedules[-1])
        (F.cross_entropy(ddp(images), labels) / len(schedules)).backward()
        if first is None:
            first = {n: p.grad.clone() for n, p in model.named_parameters()}
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return first, model.state_dict()


def _not_decayed(model):
    return model.no_weight_decay()


def our_job(schedules, stage, clip, device):
    """The same through the engine and the update of the training loop.

    A step that runs the module several times gets its images as often as it has schedules, one
    micro-batch for each, with a backward pass of its own.
    """
    from deepspeed.utils import safe_get_full_grad

    from pipelines.train.engine import make_engine, set_learning_rate
    from pipelines.train.metrics import Stopwatch
    from pipelines.train.update import Update

    world_size = dist.get_world_size()
    model = make_model(device)
    train = TrainConfig(
        batch_size=world_size * IMAGES * len(schedules), zero_stage=stage, clip_grad=clip
    )
    engine = make_engine(model, train, world_size)
    update = Update(engine, clip, Stopwatch(torch.device(device)))
    gradients = {}
    step = engine.step

    def looked_at(*args, **kwargs):
        if not gradients:
            for name, parameter in model.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()
        return step(*args, **kwargs)

    engine.step = looked_at
    passes = []

    def loss_of(images, labels):
        tp.pool(model, schedules[len(passes) % len(schedules)])
        passes.append(1)
        return F.cross_entropy(engine(images), labels)

    for (images, labels), lr in zip(batches(device), rates(), strict=True):
        set_learning_rate(engine.optimizer, lr)
        times = len(schedules)
        outcome = update(images.repeat(times, 1, 1, 1), labels.repeat(times), IMAGES, loss_of)
        assert outcome.applied
    assert len(passes) == STEPS * len(schedules)
    return gradients, model.state_dict()


KINDS = {"plain": (RANDOM,), "sandwich": (DENSE, SMALLEST, RANDOM)}
STAGES = (0, 1, 2)


def differences(device):
    """Of each kind of step and stage: gradients' (relative to the largest) and weights'.

    The third number is how far the weights went.
    """
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    start = make_model(device).state_dict()
    found = {}
    for kind, schedules in KINDS.items():
        gradients, _ = plain_ddp(schedules, clip=0.0, device=device)
        _, weights = plain_ddp(schedules, clip=0.5, device=device)
        for stage in STAGES:
            our_gradients, _ = our_job(schedules, stage, clip=0.0, device=device)
            _, our_weights = our_job(schedules, stage, clip=0.5, device=device)
            largest = max(gradient.abs().max() for gradient in gradients.values())
            found[kind, stage] = (
                distance(our_gradients, gradients) / float(largest),
                distance(our_weights, weights),
                distance(start, weights),
            )
    return found


def distance(some, others):
    assert some.keys() == others.keys()
    return max(float((some[name] - others[name]).abs().max()) for name in others)


@pytest.fixture(scope="module")
def ranks():
    return run_gang(2, differences, "cpu")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_do_what_ddp_and_adamw_do(ranks, kind, stage):
    for found in ranks:
        gradients, weights, moved = found[kind, stage]
        assert moved > 5e-3  # 20 steps at up to 1e-3: there is something to compare
        assert gradients < 1e-6
        assert weights < 1e-5
        if stage == 0:
            assert (gradients, weights) == (0, 0)  # to the bit: the order of sums is the same


@pytest.mark.parametrize("counts", fast(1, [[1, 2], [1, 2, 4]]))
def test_one_two_and_four_workers_have_the_same_losses(digits, tmp_path, counts):
    losses = {}
    for world_size in counts:
        storage = tmp_path / str(world_size)
        config = tmp_path / f"{world_size}.yaml"
        values = {
            "name": "job",
            "seed": 3,
            "storage": str(storage),
            "data": {"path": str(digits), "image_size": 32},
            "model": {"patch_size": 8, "depth": 2},
            "width": {"width": 32, "heads": 2},
            "schedule": [8, 4],
            # Its choice of tokens does not turn on the last bit of a product, which depends on how
            # many images are multiplied at once.
            "method": "wkmedoids",
            "train": {
                "epochs": 2, "batch_size": 64, "lr": 2e-3, "warmup_epochs": 1,
                "augment": {"rotate": 5.0, "translate": 0.05},
            },
        }  # fmt: skip
        config.write_text(yaml.safe_dump(values))
        assert run_gang(world_size, train_as_torchrun_does, config) == [0] * world_size
        reports = (storage / "trains" / "job" / "reports.jsonl").read_text().splitlines()
        losses[world_size] = [json.loads(line)["loss"] for line in reports]
    assert len(losses[1]) == 2 and losses[1][1] < losses[1][0] - 0.1  # it learns
    for world_size in counts[1:]:
        assert losses[world_size] == pytest.approx(losses[1], abs=1e-5)
