"""`squeeze(model, images, rate)` for notebooks, beside the command, which is the same search."""

import json
import subprocess
import sys

import pytest
import timm
import torch
import typer_runs

import tokenpool as tp
from pipelines.commands.squeeze_command import squeeze as command
from pipelines.config import DataConfig
from pipelines.errors import UserError
from pipelines.search.scorer import Scorer
from pipelines.squeeze import squeeze


@pytest.fixture(scope="module")
def minival(digits, trained):
    """Images as the command sees them, in stored order, and labels."""
    scorer = Scorer({0: str(trained)}, DataConfig(path=digits, image_size=32), batch_size=64)
    pairs = scorer._batches("minival")
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def kl(model, dense, images):
    with torch.no_grad():
        p, q = dense(images).double().softmax(1), model(images).double().softmax(1)
    return (p * (p / q).log()).sum(1).mean().item()


def test_without_labels_it_finds_what_the_command_finds(trained, digits, minival, tmp_path):
    words = [trained, digits, "--rate", 0.5, "--schedules", 20, "--json", "--out", tmp_path / "o"]
    by_command = json.loads(typer_runs.run(command, *words).stdout)
    model = tp.load(trained)
    images, _ = minival
    again, found = squeeze(
        model, images.split(50), rate=0.5, schedules=20, most_images=1000, quiet=True
    )
    assert again is model and tuple(tp.pooling_of(model).schedule) == found.best.schedule
    assert list(found.best.schedule) == by_command["best"]["schedule"]
    assert found.best.divergence == pytest.approx(by_command["best"]["divergence"], abs=1e-6)
    assert found.best.top1 is None and found.dense.top1 is None
    assert found.images == len(images)
    assert found.best.divergence == pytest.approx(kl(model, tp.load(trained), images), abs=1e-5)
    dense = tp.macs(model, tp.Schedule.dense(3, 16)).total
    assert tp.macs(model).total <= 0.5 * dense


@pytest.mark.parametrize("kind", ["pairs", "lists", "one tensor", "generator", "three of each"])
def test_every_iterable_of_batches_will_do(trained, minival, kind):
    images, labels = minival
    parts = list(zip(images.split(40), labels.split(40), strict=True))
    given = {
        "pairs": parts,
        "lists": [list(pair) for pair in parts],
        "one tensor": images,
        "generator": (x for x, _ in parts),
        "three of each": [(x, y, "name") for x, y in parts],
    }[kind]
    model = tp.load(trained).train()
    _, found = squeeze(model, given, 0.6, schedules=8, most_images=100, quiet=True)
    assert found.images == 100 and model.training
    labelled = kind not in ("one tensor", "generator")
    assert (found.best.top1 is not None) == labelled


def test_no_more_images_are_taken_than_wanted(trained, minival):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield minival[0][:30]

    _, found = squeeze(tp.load(trained), endless(), schedules=8, most_images=70, quiet=True)
    assert len(taken) == 3 and found.images == 70


def test_bad_input_is_one_line(trained, minival):
    images, labels = minival
    good = images[:20]
    cases = [
        ([], "there are no images"),
        ([good[0]], r"batch 1 is \[3, 32, 32\]"),
        ([good, good[..., :16]], r"batch 2 is \[20, 3, 32, 16\]"),
        ([good[:, :1]], r"takes floats \[B, 3, 32, 32\]"),
        ([(255 * good).to(torch.uint8)], "torch.uint8"),
        ([(good, labels[:3])], r"20 images and labels \[3\]"),
        ([(good, labels[:20]), good], "some batches have labels"),
        (["a.png"], "batch 1 is a str"),
        ([{"image": good}], "batch 1 is a dict"),
        ([good * torch.nan], "not finite"),
    ]
    for given, message in cases:
        with pytest.raises(UserError, match=message) as raised:
            squeeze(tp.load(trained), given, quiet=True)
        assert "\n" not in str(raised.value)
    for rate, message in ((0, "no share"), (1.0, "no share"), (1e-6, "raise the bound")):
        with pytest.raises(UserError, match=message):
            squeeze(tp.load(trained), [good], rate, quiet=True)
    with pytest.raises(UserError, match="no pooling method"):
        squeeze(tp.load(trained), [good], method="nothing", quiet=True)
    with pytest.raises(UserError, match="cannot be pooled"):
        squeeze(torch.nn.Linear(3, 2), [good], quiet=True)


def test_models_of_other_kinds(minival):
    """A head that averages, one that attends, no class token, channels and shape of their own."""
    torch.manual_seed(0)
    common = {"num_classes": 7, "depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 8}
    kinds = [
        {"img_size": 32, "global_pool": "avg"},
        {"img_size": 32, "global_pool": "map", "class_token": False},
        {"img_size": (32, 48), "in_chans": 1},
    ]
    for kind in kinds:
        model = timm.create_model("vit_tiny_patch16_224", **common, **kind)
        size = kind["img_size"] if isinstance(kind["img_size"], tuple) else (32, 32)
        images = torch.randn(24, kind.get("in_chans", 3), *size)
        _, found = squeeze(model, [images], 0.7, schedules=8, quiet=True)
        assert 0 <= found.best.divergence < 5 and tp.macs(model).gmacs <= 0.7 * found.dense.gmacs


def test_it_needs_no_ray_and_no_loader_of_ours():
    code = """
import sys
for name in ("ray", "ffcv", "deepspeed", "mlflow"):
    sys.modules[name] = None  # importing it raises
import timm, torch
from pipelines.squeeze import squeeze
model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
_, found = squeeze(model, [torch.randn(4, 3, 32, 32)], rate=0.9, schedules=8)
print(found.best.schedule)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
