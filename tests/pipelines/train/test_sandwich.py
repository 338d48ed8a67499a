"""A supernet's step against plain PyTorch, its draws, and a job of it interrupted."""

import copy
import json
import time
from contextlib import suppress
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from gang import run_gang
from pydantic import ValidationError
from torch.nn.parallel import DistributedDataParallel

import tokenpool as tp
from pipelines.config import SandwichConfig, TrainConfig, TrainRunConfig
from pipelines.errors import UserError
from pipelines.train.sandwich import Sandwich, SubNet
from pipelines.train.spec import job_of
from tune_spaces.space import ScheduleSpace

IMAGES, STEPS, DEPTH = 6, 3, 3
NEAR = ({"schedule": [12, 9, 5]}, {"schedule": [16, 8, 2]})
SHAPE = {"image_size": 32, "patch_size": 8, "width": 32, "depth": DEPTH, "num_heads": 2}


def make_model():
    torch.manual_seed(0)
    return tp.build_vit(**SHAPE, num_classes=10)


def make_sandwich(seed=5, **settings):
    config = SandwichConfig.model_validate({"near": NEAR, **settings})
    return Sandwich(tp.vit_spec(make_model()), "wkmedoids", config, seed)


def batches():
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        images = torch.randn(world_size * IMAGES, 3, 32, 32, generator=generator)
        labels = torch.randint(10, (world_size * IMAGES,), generator=generator)
        yield images[rank::world_size], labels[rank::world_size]


def plain_ddp(sub_nets, distill_weight, lr=1e-3):
    """Every step's gradients: DDP, and the losses summed in one graph; nothing of ours."""
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    ddp = DistributedDataParallel(model)
    found = []
    for (images, labels), each in zip(batches(), sub_nets, strict=True):
        optimizer.zero_grad()
        total, soft = torch.zeros(()), None
        for schedule in each:
            tp.pool(model, schedule, "wkmedoids")
            logits = ddp(images)
            hard = F.cross_entropy(logits, labels)
            if soft is None:
                soft = logits.detach()
                total = total + hard
                continue
            log_p, p = logits.log_softmax(1), soft.softmax(1)
            taught = (p * (soft.log_softmax(1) - log_p)).sum(1).mean()
            total = total + (1 - distill_weight) * hard + distill_weight * taught
        (total / len(each)).backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()})
        optimizer.step()
    tp.pool(model, None)
    return found, model.state_dict()


def our_steps(stage, micro_batch, distill_weight, lr=1e-3):
    from deepspeed.utils import safe_get_full_grad

    from pipelines.train.engine import make_engine
    from pipelines.train.losses import training_loss
    from pipelines.train.metrics import Stopwatch
    from pipelines.train.update import Update

    model = make_model()
    sandwich = make_sandwich(distill_weight=distill_weight)
    train = TrainConfig(
        batch_size=dist.get_world_size() * IMAGES, zero_stage=stage, lr=lr, weight_decay=0.0
    )
    engine = make_engine(model, train, dist.get_world_size())
    update = Update(engine, 0.0, Stopwatch(torch.device("cpu")))
    found, step = [], engine.step

    def looked_at(*args, **kwargs):
        found.append({n: safe_get_full_grad(p).clone() for n, p in model.named_parameters()})
        return step(*args, **kwargs)

    engine.step = looked_at

    def loss_of(logits, images, labels):
        return training_loss(logits, labels, None, None)

    for number, (images, labels) in enumerate(batches()):
        passes = sandwich.passes(number, model, engine, loss_of)
        assert update(images, labels, micro_batch, passes).applied
        sandwich.put_away(model)
    return found, model.state_dict()


CASES = {
    (0, IMAGES, 1.0): "labels for the dense one alone",
    (0, 2, 0.5): "micro-batches, and labels too",
    (1, IMAGES, 1.0): "ZeRO 1",
    (2, 2, 0.5): "ZeRO 2 with micro-batches",
}


def gaps():
    dist.init_process_group("gloo")
    own = [[tuple(each.schedule) for each in make_sandwich().sub_nets(n)] for n in range(STEPS)]
    found = {}
    for stage, micro_batch, weight in CASES:
        gradients, weights = plain_ddp(own, weight)
        ours, our_weights = our_steps(stage, micro_batch, weight)
        largest = max(float(g.abs().max()) for g in gradients[0].values())
        first = max(float((ours[0][n] - g).abs().max()) for n, g in gradients[0].items())
        after = max(float((our_weights[n] - w).abs().mean()) for n, w in weights.items())
        found[stage, micro_batch, weight] = first / largest, after
    return own, found


@pytest.fixture(scope="module")
def ranks():
    return run_gang(2, gaps)


def test_all_ranks_draw_the_same_sub_nets(ranks):
    assert ranks[0][0] == ranks[1][0]


@pytest.mark.parametrize("case", CASES, ids=CASES.values())
def test_a_step_has_the_gradients_of_plain_torch_that_sums_the_losses(ranks, case):
    for _, found in ranks:
        gradients, weights = found[case]
        assert gradients < 1e-5

        if case[0] == 0:
            # Keys' biases have no gradient, but noise, along which AdamW takes whole steps of
            # 1e-3: where sums are in another order (ZeRO) they go elsewhere.
            assert weights < 1e-5


def test_a_step_is_the_sandwich_rule():
    sandwich = make_sandwich()
    space = ScheduleSpace(DEPTH, 16, [32], lambda w, s: sum(s) / 100)
    seen = [sandwich.sub_nets(step) for step in range(400)]
    for each in seen:
        assert [s.schedule for s in each[:2]] == [(16, 16, 16), (1, 1, 1)] and len(each) == 4
        assert all(space.contains(space.candidate(32, s.schedule)) for s in each)
    # A neighbour is up to three moves of one layer away; the others are from anywhere.
    near = [tuple(each["schedule"]) for each in NEAR]
    drawn = [tuple(s.schedule) for each in seen for s in each[2:]]
    moved = [min(sum(a != b for a, b in zip(s, n, strict=True)) for n in near) for s in drawn]
    assert sum(m <= 2 for m in moved) / len(drawn) > 0.6
    assert len(set(drawn)) > 100
    costs = [sum(s) for s in drawn]
    assert min(costs) < 12 and max(costs) > 40
    assert make_sandwich(seed=5).sub_nets(7) == seen[7] != make_sandwich(seed=6).sub_nets(7)


def test_the_uniform_share_is_what_is_asked_for():
    """Of what is drawn near a schedule with nothing to move, the rest is uniform."""
    stuck = [{"schedule": [8, 8, 8]}]
    sandwich = make_sandwich(near=stuck, min_tokens=8, token_step=8, uniform_share=0.2)
    neighbours = {(16, 8, 8), (16, 16, 8), (16, 16, 16), (8, 8, 8)}
    drawn = [tuple(s.schedule) for step in range(300) for s in sandwich.sub_nets(step)[2:]]
    assert set(drawn) <= neighbours
    for share, least, most in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.2, 0.15, 0.26)):
        sandwich = make_sandwich(uniform_share=share)
        with mock.patch.object(sandwich.space, "sample", wraps=sandwich.space.sample) as sample:
            for step in range(300):
                sandwich.sub_nets(step)
        assert least <= sample.call_count / 600 <= most


def test_several_methods_and_a_bound_are_kept_to():
    sandwich = make_sandwich(
        near=[{"schedule": [8, 4, 2], "method": "kmeans"}],
        methods=["wkmedoids", "kmeans"],
        max_gmacs=0.0006,
    )
    spec = tp.vit_spec(make_model())
    seen = [each for step in range(60) for each in sandwich.sub_nets(step)[1:]]
    assert {each.method for each in seen} == {"wkmedoids", "kmeans"}
    for each in seen:
        assert tp.vit_macs(spec, tp.Schedule(each.schedule), each.method).gmacs <= 0.0006


def test_what_does_not_fit_is_one_line():
    with pytest.raises(UserError, match="sandwich: the schedule has 2 layers"):
        make_sandwich(near=[{"schedule": [12, 9]}])
    with pytest.raises(UserError, match="sandwich: no schedule"):
        make_sandwich(near=[], max_gmacs=1e-9)
    values = {
        "name": "x", "data": {"path": "d", "image_size": 32},
        "model": {"patch_size": 8, "depth": 2}, "width": {"width": 32, "heads": 2},
        "sandwich": {}, "train": {"epochs": 1, "warmup_epochs": 0},
    }  # fmt: skip
    TrainRunConfig.model_validate(values)
    for change in ({"schedule": [8, 4]}, {"train": {**values["train"], "compile": True}}):
        with pytest.raises(ValidationError, match="a sandwich"):
            TrainRunConfig.model_validate(values | change)


def test_a_sub_net_runs_on_the_models_own_weights_and_leaves_it_dense():
    model = make_model().eval()
    images = torch.randn(2, 3, 32, 32)
    dense = model(images)
    own = SubNet(model, tp.Schedule((12, 9, 5)), "wkmedoids").eval()
    found = own(images)
    assert tp.pooling_of(model) is None and torch.equal(model(images), dense)
    assert torch.equal(found, tp.pool(copy.deepcopy(model), (12, 9, 5), "wkmedoids")(images))


def straight_and_broken(straight, broken, last):
    """One job to its end; the same interrupted after so many steps, and then to its end.

    In the same processes: to start them takes longer than to train.
    """
    from pipelines.train import loop
    from pipelines.train.reporter import FolderReporter

    def train(job):
        reporter = FolderReporter(job.folder)
        return loop.run_job(job, reporter, time.monotonic())

    plain, steps = loop._Training._train_step, []

    def counted(self, *args):
        if len(steps) == last:
            raise KeyboardInterrupt
        steps.append(1)
        return plain(self, *args)

    dist.init_process_group("gloo")
    train(straight)
    with mock.patch.object(loop._Training, "_train_step", counted), suppress(KeyboardInterrupt):
        train(broken)
    return train(broken).epoch


def test_a_supernet_is_a_job_like_any_other(digits, tmp_path):
    """Interrupted within an epoch it goes on to the same weights; it pools better than before."""
    jobs, found = [], {}
    for name in ("straight", "broken"):
        values = {
            "name": "super", "seed": 3, "storage": str(tmp_path / name),
            "data": {"path": str(digits), "image_size": 32},
            "model": {"patch_size": 8, "depth": 3}, "width": {"width": 32, "heads": 2},
            "sandwich": {"near": [{"schedule": [6, 4, 2]}, {"schedule": [12, 9, 5]}]},
            "train": {
                "epochs": 2, "batch_size": 64, "lr": 3e-3, "warmup_epochs": 0.5,
                "checkpoint_every_steps": 5, "ema_decay": 0.5,
            },
        }  # fmt: skip
        jobs.append(job_of(TrainRunConfig.model_validate(values)))
    assert run_gang(2, straight_and_broken, *jobs, 25) == [2, 2]
    for name in ("straight", "broken"):
        folder = tmp_path / name / "trains" / "super"
        found[name] = tp.load(folder / "epoch-0002" / "model")
        reports = [json.loads(line) for line in (folder / "reports.jsonl").open()]
    weights, others = found["straight"].state_dict(), found["broken"].state_dict()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    assert tp.pooling_of(found["straight"]) is None  # what is taken away is dense
    assert reports[-1]["top1_minival"] > 0.2  # chance is 0.1
    # Pooled to a fifth of its tokens it is nearly as good as it is dense.
    assert reports[-1]["top1_minival_pooled"] > 0.75 * reports[-1]["top1_minival"]
    assert reports[-1]["loss_minival_pooled"] < reports[0]["loss_minival_pooled"]
