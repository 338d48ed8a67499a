"""MACs against an operator-level counter and the figures of the literature."""

import timeit

import pytest
import timm
import torch
from thinning import crossed
from torch.utils.flop_counter import FlopCounterMode

import tokenpool as tp

SCHEDULE = tp.Schedule((13, 9, 9, 5))


def counted(model, image_size):
    """MACs of the matrix products and convolutions one image runs through, bias left out."""
    # Fused attention on a CPU is an operator the counter does not know; unfused it is two products.
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    model.requires_grad_(False)
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    device = next(model.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *sides, device=device))
    return counter.get_total_flops() / 2


def on_meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options).eval()


def by_width(width):
    with torch.device("meta"):
        return tp.build_vit(224, 16, width, 12, width // 64 if width % 64 == 0 else 3, 1000)


# GMACs and shares of shared/paper.md: computed there, and read off the paper's plots.
@pytest.mark.parametrize(
    ("width", "gmacs", "attention", "connected", "mlp"),
    [
        (192, 1.254, 14.3, 83.4, 55.6),
        (252, 2.074, 11.3, 86.8, 57.9),
        (318, 3.213, 9.2, 89.3, 59.5),
        (384, 4.599, 7.8, 91.0, 60.6),
        (768, 17.56, 4.1, 95.3, 63.5),
    ],
)
def test_the_dense_figures_of_the_literature(width, gmacs, attention, connected, mlp):
    model = by_width(width)
    report = tp.macs(model)
    assert report.gmacs == pytest.approx(gmacs, rel=0.0005)
    assert 100 * report.attention / report.total == pytest.approx(attention, abs=0.06)
    assert 100 * (report.mlp + report.qkvo) / report.total == pytest.approx(connected, abs=0.06)
    assert 100 * report.mlp / report.total == pytest.approx(mlp, abs=0.06)
    assert report.clustering == 0
    parts = [value for _, value, _ in report.shares()]
    assert sum(parts) == report.total
    assert counted(model, 224) == pytest.approx(report.total, rel=0.001)


@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224",
        "deit_small_patch16_224",
        "deit_base_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit3_small_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "vit_medium_patch16_gap_240",
        "vit_base_patch16_siglip_224",
    ],
)
def test_dense_timm_models_agree_with_the_counter(name):
    model = on_meta(name)
    assert counted(model, model.patch_embed.img_size) == pytest.approx(
        tp.macs(model).total, rel=0.001
    )


OPTIONS = [
    {},
    {"features": "keys"},
    {"representative": "mean"},
    {"representative": "medoid"},
    {"representative": "weighted_mean"},
    {"significance": "cls"},
    {"proportional_attention": True},
    {"cls_only_last": True},
    {"position": "attention"},
    {"iterations": 2},
    {"start": "matching"},
]
BY_WORTH = ["wkmedoids", *(method for method in tp.METHODS if method != "wkmedoids")]


@pytest.mark.parametrize(("method", "options"), crossed(BY_WORTH, OPTIONS), ids=str)
def test_the_pooled_figure_agrees_with_the_counter(method, options):
    """At a small size, where clustering is a large share and an error in it would show."""
    model = tp.build_vit(16, 4, 24, 4, 3, 5).eval()
    tp.pool(model, SCHEDULE, method, **options)
    assert counted(model, 16) == pytest.approx(tp.macs(model).total, rel=1e-9)


@pytest.mark.parametrize("method", ["kmeans", "wkmedoids", "powerbert", "tome"])
def test_a_pooled_deit_s_agrees_with_the_counter(method):
    model = timm.create_model("deit_small_patch16_224").eval()
    tp.pool(model, tp.Schedule.constant_rate(12, 196, 0.9), method)
    assert counted(model, 224) == pytest.approx(tp.macs(model).total, rel=0.001)


def test_clustering_costs_what_the_paper_counts():
    """N²·C for the distances of each pooling layer."""
    model = tp.build_vit(16, 4, 24, 4, 3, 5)
    report = tp.macs(model, SCHEDULE, "wkmedoids")
    # The third layer keeps what comes in and costs nothing.
    assert report.clustering == (16**2 + 13**2 + 9**2) * 24
    keys = tp.macs(model, SCHEDULE, "wkmedoids", features="keys")
    assert keys.clustering == (16**2 + 13**2 + 9**2) * 8
    assert tp.macs(model, SCHEDULE, "powerbert").clustering == 0


def test_a_pooled_model_tells_its_own_cost():
    model = tp.build_vit(16, 4, 24, 4, 3, 5)
    dense = tp.macs(model)
    wanted = tp.macs(model, SCHEDULE, "kmeans", features="keys")
    tp.pool(model, SCHEDULE, "kmeans", features="keys")
    assert tp.macs(model) == wanted
    assert tp.macs(model, tp.Schedule.dense(4, 16)) == dense
    tp.pool(model, None)
    assert tp.macs(model) == dense


def test_the_last_block_for_the_class_token_alone_saves_what_was_computed():
    model = on_meta("deit_small_patch16_224")
    dense = tp.macs(model).total
    short = tp.macs(model, tp.Schedule.dense(12, 196), cls_only_last=True).total
    assert 1 - short / dense == pytest.approx(0.069, abs=0.0005)


def test_other_image_sizes():
    model = on_meta("vit_tiny_patch16_224", dynamic_img_size=True)
    native = tp.macs(model)
    assert tp.macs(model, image_size=224) == native
    larger = tp.macs(model, image_size=(256, 192))
    assert larger.patch_embed == 16 * 12 * 768 * 192
    tp.pool(model, tp.Schedule.constant_rate(12, 196, 0.9))
    assert tp.macs(model, image_size=320).total > tp.macs(model).total
    with pytest.raises(ValueError, match="image size 320x320 is not the model's own"):
        tp.macs(on_meta("vit_tiny_patch16_224"), image_size=320)


def test_a_search_can_call_it_a_hundred_thousand_times():
    """At most 100 µs a schedule on a machine that counts to a million in 50 ms.

    What else runs slows both down alike.
    """
    spec = tp.vit_spec(on_meta("deit_small_patch16_224"))
    schedules = [tp.Schedule.constant_rate(12, 196, 0.8 + i / 10_000) for i in range(1000)]

    def fastest(work):
        return min(timeit.repeat(work, number=1, repeat=5))

    took = fastest(lambda: [tp.vit_macs(spec, s) for s in schedules])
    counting = fastest(lambda: sum(range(1_000_000))) / 0.05
    assert took / len(schedules) < 100e-6 * max(1.0, counting)
