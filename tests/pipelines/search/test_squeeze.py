"""`tokenpool squeeze` through typer, on digits and a model that knows a little of them."""

import json

import pytest
import torch
import typer_runs

import tokenpool as tp
from pipelines.commands.squeeze_command import squeeze
from pipelines.data.augment import normalize
from pipelines.data.loader import make_loader
from pipelines.data.manifest import load_manifest
from pipelines.errors import UserError
from pipelines.search.scorer import _spread


def run(*words):
    return typer_runs.run(squeeze, *words).stdout


def predictions(model, digits):
    """Of the whole of minival, counted here: logits and labels."""
    manifest = load_manifest(digits)
    loader = make_loader(digits, "minival", batch_size=64, train=False, image_size=32)
    with torch.no_grad():
        pairs = [
            (model(normalize(images, manifest.mean, manifest.std)), labels)
            for images, labels in loader
        ]
    loader.close()
    return tuple(torch.cat(part) for part in zip(*pairs, strict=True))


def divergence(model, dense, digits):
    """Mean KL, straight from its definition."""
    pooled = predictions(model, digits)[0].double().softmax(1)
    dense = dense.double().softmax(1)
    return (dense * (dense / pooled).log()).sum(1).mean().item()


def test_what_is_found_is_within_the_bound_and_as_good_as_said(trained, digits, tmp_path):
    found = json.loads(
        run(trained, digits, "--rate", 0.6, "--schedules", 40, "--json", "--out", tmp_path / "o")
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o"]
    model = tp.load(tmp_path / "o")
    best = found["best"]
    assert tuple(tp.pooling_of(model).schedule) == tuple(best["schedule"])
    assert tp.pooling_of(model).method == found["method"] == "leader"
    report = tp.macs(model)
    assert report.gmacs == pytest.approx(best["gmacs"])
    dense = tp.macs(model, tp.Schedule.dense(3, 16))
    assert report.total <= 0.6 * dense.total
    assert found["dense"]["gmacs"] == pytest.approx(dense.gmacs)
    own, labels = predictions(tp.load(trained), digits)
    pooled, _ = predictions(model, digits)
    assert best["divergence"] == pytest.approx(divergence(model, own, digits), abs=1e-5)
    assert best["agreement"] == pytest.approx(
        (own.argmax(1) == pooled.argmax(1)).double().mean().item(), abs=0.005
    )
    for row, logits in ((best, pooled), (found["dense"], own)):
        top1 = (logits.argmax(1) == labels).double().mean().item()
        assert row["top1"] == pytest.approx(top1, abs=0.005)
    front = found["front"]
    assert [row["gmacs"] for row in front] == sorted(row["gmacs"] for row in front)
    damages = [row["divergence"] for row in front]
    assert damages == sorted(damages, reverse=True) and damages[-1] == best["divergence"]
    # A schedule of constant rate at the same bound is no better.
    rates = [r / 100 for r in range(20, 100)]
    constant = [tp.Schedule.constant_rate(3, 16, rate) for rate in rates]
    able = [s for s in constant if tp.macs(model, s).total <= 0.6 * dense.total]
    others = [divergence(tp.pool(model, s), own, digits) for s in set(able)]
    assert best["divergence"] <= min(others) + 1e-6


def test_the_table_names_the_best_and_the_dense(trained, digits, tmp_path):
    out = tmp_path / "o"
    text = run(trained, digits, "--max-gmacs", 0.0005, "--schedules", 12, "--out", out)
    lines = [line.split() for line in text.splitlines() if line.startswith("│")]
    rows = {words[1]: words for words in lines}
    model, dense = tp.load(out), tp.macs(tp.load(trained)).gmacs
    share = 100 * tp.macs(model).gmacs / dense
    column = rows["best"].index(f"{share:.1f}")
    assert rows["dense"][column] == "100.0" and "tokenpool.load" in text
    assert tp.macs(model).gmacs <= 0.0005


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "exactly one of --max-gmacs and --rate"),
        (["--rate", 0.5, "--max-gmacs", 1], "exactly one of"),
        (["--rate", 1.5], "no share of the dense cost"),
        (["--max-gmacs", 1e-9], "no schedule costs 0 to 1e-09 GMACs"),
        (["--rate", 0.5, "--method", "x"], "no pooling method .x."),
        (["--rate", 0.5, "--device", "cuda"], "no CUDA device"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(trained, digits, tmp_path, words, message):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    out = tmp_path / "o"
    with pytest.raises(UserError, match=message):
        run(trained, digits, *words, "--out", out)
    assert not out.exists()


def test_other_classes_and_an_existing_folder_are_refused(trained, digits, tmp_path):
    other = tp.save(tp.build_vit(32, 8, 32, 3, 2, 7), tmp_path / "other")
    with pytest.raises(UserError, match="the model has 7 classes but"):
        run(other, digits, "--rate", 0.5, "--out", tmp_path / "o")
    with pytest.raises(UserError, match="exists: give another --out"):
        run(trained, digits, "--rate", 0.5, "--out", tmp_path)


def test_images_are_taken_evenly_from_a_sorted_split():
    labels = torch.arange(100)
    batches = [(part.float(), part) for part in labels.split(30)]
    kept = torch.cat([part for _, part in _spread(batches, 20)])
    assert len(kept) == 20
    assert kept.diff().unique().tolist() == [5]
    assert _spread(batches, 100) is batches
