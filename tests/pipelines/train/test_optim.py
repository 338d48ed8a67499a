import pytest
import torch
from timm.scheduler import CosineLRScheduler

import tokenpool as tp
from pipelines.train.engine import learning_rate, parameter_groups
from pipelines.train.model import init_from_scratch, sincos_positions


def tiny(width=32):
    return tp.build_vit(16, 4, width, 2, 2, 5)


def test_warmup_then_cosine_as_timm_does_it():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    timm = CosineLRScheduler(
        optimizer,
        t_initial=100,
        lr_min=0.1,
        warmup_t=10,
        warmup_lr_init=0.1,
        t_in_epochs=False,
        warmup_prefix=True,
    )
    for step in range(90):
        timm.step_update(step + 10)
        ours = learning_rate(step + 10, num_steps=110, warmup_steps=10, peak=1.0, low=0.1)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
    ramp = [learning_rate(s, num_steps=110, warmup_steps=10, peak=1.0, low=0.0) for s in range(10)]
    assert ramp == pytest.approx([0.1 * (s + 1) for s in range(10)])


def test_every_parameter_is_in_one_group_and_biases_do_not_decay():
    model = tiny()
    plain, decayed = sorted(parameter_groups(model, 0.05), key=lambda g: g["weight_decay"])
    names = {id(p): name for name, p in model.named_parameters()}
    in_decayed = {names[id(p)] for p in decayed["params"]}
    in_plain = {names[id(p)] for p in plain["params"]}
    assert in_decayed | in_plain == set(names.values()) and not in_decayed & in_plain
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert "blocks.0.attn.qkv.weight" in in_decayed
    assert {"pos_embed", "cls_token", "norm.weight", "blocks.0.attn.qkv.bias"} <= in_plain


def test_layer_decay_slows_the_early_blocks():
    model = tiny()
    scale = {}
    for group in parameter_groups(model, 0.05, layer_decay=0.5):
        for name, parameter in model.named_parameters():
            if any(parameter is p for p in group["params"]):
                scale[name] = group["lr_scale"]
    assert scale.keys() == dict(model.named_parameters()).keys()
    assert scale["head.weight"] == 1.0
    assert scale["blocks.0.mlp.fc1.weight"] == 0.5 * scale["blocks.1.mlp.fc1.weight"]
    assert scale["patch_embed.proj.weight"] < scale["blocks.0.mlp.fc1.weight"]


def test_warmup_stable_decay():
    def rate(step):
        return learning_rate(
            step, num_steps=100, warmup_steps=10, peak=1.0, low=0.0, decay_fraction=0.2
        )

    assert rate(4) == pytest.approx(0.5)
    assert [rate(step) for step in (10, 50, 79, 80)] == [1.0] * 4
    assert rate(90) == pytest.approx(0.5) and rate(99) == pytest.approx(0.05)


def test_positions_differ_and_neighbours_are_alike():
    table = sincos_positions(4, 6, 32, temperature=60.0)
    assert table.shape == (24, 32)
    gram = torch.nn.functional.cosine_similarity(table[:, None], table[None], dim=-1)
    assert (gram.fill_diagonal_(0) < 1 - 1e-4).all()
    here = 2 * 6 + 2
    assert gram[here, here + 1] > gram[here, here + 3]  # along a row
    assert gram[here, here + 6] > gram[here, here - 12]  # along a column
    with pytest.raises(ValueError, match="divisible by 4"):
        sincos_positions(2, 2, 30)


def test_the_start_is_decided_by_the_seed():
    def start(seed):
        torch.manual_seed(seed)
        return init_from_scratch(tiny()).state_dict()

    first, again, other = start(0), start(0), start(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def test_a_width_without_sincos_still_starts():
    init_from_scratch(tp.build_vit(16, 4, 30, 1, 3, 5))
