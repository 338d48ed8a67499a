"""Schedules that share what they begin with, against each run from the start."""

import pytest
import timm
import torch

import tokenpool as tp
from pipelines.search.calibration import probes
from pipelines.search.shared_prefixes import run_schedules, shared_work
from tokenpool.cost import block_macs

DEPTH, COUNTS = 3, (4, 9, 16)
SCHEDULES = [*probes(DEPTH, COUNTS)[::-1], (16, 12, 3), (16,) * DEPTH, (16, 12, 9)]
DRAWN = {"random", "importance"}


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    return tp.build_vit(32, 8, 24, DEPTH, 3, 10).eval(), torch.randn(3, 3, 32, 32)


@pytest.mark.parametrize(
    "options", ["", "(position=attention, proportional_attention=true)", "(cls_only_last=true)"]
)
@pytest.mark.parametrize("name", sorted(set(tp.METHODS) - DRAWN))
@torch.inference_mode()
def test_every_schedule_gives_what_it_gives_from_the_start(setting, name, options):
    model, images = setting
    found = dict(run_schedules(model, images, SCHEDULES, name + options))
    assert sorted(found) == list(range(len(SCHEDULES)))
    for place, schedule in enumerate(SCHEDULES):
        assert torch.equal(found[place], tp.pool(model, schedule, name + options)(images))
    dense = tp.pool(model, None)(images)
    assert torch.allclose(found[SCHEDULES.index((16,) * DEPTH)], dense, atol=1e-6)


@pytest.mark.parametrize("head", ["avg", "map"])
@torch.inference_mode()
def test_a_head_that_reads_patches_is_given_their_sizes(head):
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=5,
        img_size=64,
        depth=3,
        global_pool=head,
        class_token=head == "avg",
    ).eval()
    images = torch.randn(2, 3, 64, 64)
    schedules = [(16, 8, 8), (16, 8, 4), (12, 12, 12), (12, 12, 12)]
    for place, logits in run_schedules(model, images, schedules, "kmeans(start=matching)"):
        wanted = tp.pool(model, schedules[place], "kmeans(start=matching)")(images)
        assert torch.allclose(logits, wanted, atol=1e-6)


def test_the_model_is_as_before_even_where_a_run_fails(setting):
    model, images = setting
    children = [type(block) for block in tp.pool(model, None).blocks]
    with pytest.raises(AssertionError, match="Input width"):
        list(run_schedules(model, images[..., :5], SCHEDULES, "tome"))
    assert "forward" not in model.patch_embed.__dict__
    assert [type(block) for block in tp.pool(model, None).blocks] == children


@torch.inference_mode()
def test_work_is_counted_as_it_is_done(setting):
    """By the blocks that really run, counted at their MLPs."""
    model, images = setting
    ran = []
    hooks = [
        b.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, b in enumerate(model.blocks)
    ]
    list(run_schedules(model, images, SCHEDULES, "tome"))
    for hook in hooks:
        hook.remove()
    counted = shared_work(SCHEDULES, lambda layer, k_in, k_out: 1.0, 16)
    assert len(ran) == sum(work for _, work in counted)
    assert len(ran) < 0.7 * DEPTH * len(SCHEDULES)
    assert [place for place, _ in counted] == [
        p for p, _ in run_schedules(model, images, SCHEDULES, "tome")
    ]


def test_probes_cost_a_quarter_at_the_real_models_size():
    spec = tp.vit_spec(timm.create_model("vit_small_patch14_dinov2", img_size=224))
    needed = probes(12, (4, 12, 24, 52, 116, 256))
    method = "tome"

    def cost(layer, k_in, k_out):
        return block_macs(spec, layer, k_in, k_out, method).total

    shared = sum(work for _, work in shared_work(needed, cost, 256))
    alone = sum(tp.vit_macs(spec, tp.Schedule(s), method).total for s in needed)
    assert shared < 0.27 * alone
