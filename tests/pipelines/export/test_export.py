"""Exports: the same model in each format, without this package where promised, or nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from thinning import fast

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.export import export_formats, export_model
from pipelines.results.points import standard_error
from pipelines.search.state import SearchState


@pytest.fixture
def search(
    state: SearchState, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SearchState:
    """The made-up search with a real (untrained) checkpoint and real data."""
    monkeypatch.setattr(export_model, "_SECONDS_PER_TIMING", 0.05)
    torch.manual_seed(0)
    model = tp.build_vit(32, 4, 96, 6, 3, 10)
    for parameter in model.parameters():
        # Untrained logits are so alike that a wrong model could pass for the right one.
        torch.nn.init.normal_(parameter, std=0.2)
    tp.pool(model, state.trials["t001"].schedule, "wkmedoids")
    state.trials["t001"].checkpoint = str(tp.save(model.eval(), tmp_path / "checkpoint"))
    there = state.config.data.model_copy(update={"path": digits})
    state.recorded = state.config.model_copy(update={"data": there})
    return state


def test_timm_format(search: SearchState, tmp_path: Path) -> None:
    out = tmp_path / "out" / "timm"
    facts = export_model.export_point(search, "t001", "timm", out)
    assert facts["check"]["images"] == 64
    pooled = tp.load(out)
    assert tp.pooling_of(pooled).schedule == (48, 40, 32, 24, 16, 8)
    # timm alone reads the dense weights.
    dense = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(dense(images), tp.pool(pooled, None)(images))
    card = (out / "README.md").read_text()
    assert "48 40 32 24 16 8" in card
    assert "96.10 ± " in card
    assert "digits, 10 classes" in card
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "export.json",
        "model.json",
        "model.safetensors",
    }
    assert [path.name for path in out.parent.iterdir()] == ["timm"]


@pytest.mark.slow  # torch.export and ONNX conversion of a pooled model take half a minute each
def test_torch_export_runs_without_this_package(search: SearchState, tmp_path: Path) -> None:
    out = tmp_path / "program"
    export_model.export_point(search, "t001", "torch-export", out)
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    script = (
        "import sys, torch\n"
        "sys.modules.update({n: None for n in ('tokenpool', 'pipelines', 'tune_spaces', 'timm')})\n"
        "model = torch.export.load(sys.argv[1]).module()\n"
        "torch.save(model(torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    command = [sys.executable, "-c", script, out / "model.pt2", tmp_path / "images.pt"]
    subprocess.run([*command, tmp_path / "logits.pt"], check=True, cwd=tmp_path)
    expected = tp.load(Path(str(search.trials["t001"].checkpoint)))(images)
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), expected, atol=1e-4)


@pytest.mark.slow  # as above
def test_onnx_has_a_dynamic_batch(search: SearchState, tmp_path: Path) -> None:
    import onnxruntime

    out = tmp_path / "onnx"
    facts = export_model.export_point(search, "t001", "onnx", out)
    assert facts["check"]["largest_logit_difference"] <= 1e-4
    session = onnxruntime.InferenceSession(out / "model.onnx")
    model = tp.load(Path(str(search.trials["t001"].checkpoint)))
    for batch in (1, 7):
        images = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(None, {"images": images.numpy()})
        assert torch.allclose(torch.from_numpy(logits), model(images), atol=1e-4)


def test_an_export_that_is_another_model_is_refused(
    search: SearchState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_dense(model: torch.nn.Module, name: str, folder: Path, *said: Any) -> None:
        export_formats.write_format(tp.pool(tp.load(search_path), None), name, folder, *said)

    search_path = Path(str(search.trials["t001"].checkpoint))
    monkeypatch.setattr(export_model, "_IMAGES", 8)  # each that differs is looked at many times
    monkeypatch.setattr(export_model, "write_format", write_dense)
    with pytest.raises(UserError, match="is not the same model: logits differ by") as caught:
        export_model.export_point(search, "t001", "timm", tmp_path / "out")
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".out")] == []


@pytest.mark.parametrize(
    ("model", "format_name", "message", "code"),
    [
        ("t01", "timm", "no model t01: there is t001", 2),
        ("t001", "coreml", "--format coreml is unknown: use one of timm, onnx, torch-export", 2),
        ("t007", "timm", r"t007 of digits has no checkpoint \(failed\)", 1),
        ("t002", "timm", "the checkpoint of t002: there is no saved model at /nowhere/t002", 1),
    ],
)
def test_refusals_are_one_line(
    search: SearchState, tmp_path: Path, model: str, format_name: str, message: str, code: int
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        export_model.export_point(search, model, format_name, tmp_path / "out")
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_targets_and_data_that_do_not_serve(search: SearchState, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists: remove it or choose another"):
        export_model.export_point(search, "t001", "timm", tmp_path / "there")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*; choose another"):
        export_model.export_point(search, "t001", "timm", tmp_path / "file" / "out")
    with pytest.raises(UserError, match="no prepared data at"):
        export_model.export_point(search, "t001", "timm", tmp_path / "out", data=tmp_path / "gone")


def test_standard_error_by_hand() -> None:
    assert standard_error(0.9, 100) == pytest.approx(0.03)


def test_facts_are_json(search: SearchState, tmp_path: Path) -> None:
    facts = export_model.export_point(search, "t001", "timm", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == facts
    assert [row["batch"] for row in facts["speed"]["batches"]] == [1, 32]


# A head that reads a token, and one that reads patches, of grey images.
_HEADS: list[dict[str, Any]] = [{}, {"global_pool": "avg", "class_token": False, "in_chans": 1}]
_TIMM, _PROGRAM = (
    [(name, options, count) for count in (1, 2, 3, 5) for options in _HEADS]
    for name in ("timm", "torch-export")
)


@pytest.mark.parametrize(
    ("name", "options", "count"), fast(len(_TIMM) + 1, _TIMM + _PROGRAM), ids=str
)
def test_any_number_of_images_is_enough_to_check_with(
    name: str, options: dict[str, Any], count: int, tmp_path: Path
) -> None:
    """Fewer than four as well."""
    torch.manual_seed(0)
    model = tp.build_vit(16, 4, 16, 2, 2, 5, **options).eval()
    tp.pool(model, [8, 4], "wkmedoids(start=matching)")
    channels = int(options.get("in_chans", 3))
    facts = {"image_size": 16, "mean": [0.5] * channels, "std": [0.5] * channels}
    export_formats.write_format(model, name, tmp_path, facts)
    run = export_formats.open_format(name, tmp_path)
    check = export_model.compare(model, run, torch.randn(count, channels, 16, 16))
    assert check.passed and check.images == count
    if name == "timm":
        dense = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        images = torch.randn(2, channels, 16, 16)
        torch.testing.assert_close(dense(images), tp.pool(model, None)(images))


def test_a_tie_may_fall_either_way_but_another_class_may_not() -> None:
    """Equal logits, nearly equal ones, and ones that differ: only the last is another model."""

    class Fixed(torch.nn.Module):
        def __init__(self, *logits: float) -> None:
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.logits.expand(len(images), -1)

    images = torch.zeros(2, 3, 4, 4)
    for ours, theirs, passed in (
        ((1.0, 1.0), (1.0, 1.00005), True),
        ((1.0, 0.99996), (0.99996, 1.0), True),
        ((1.0, 0.9), (0.9, 1.0), False),
        ((1.0, 0.9), (1.0, 0.9002), False),
    ):
        assert export_model.compare(Fixed(*ours), Fixed(*theirs), images).passed is passed


# What has an output whose shape hangs on its input's values.
_UNSHAPED = {"NonZero", "Unique", "Compress", "NonMaxSuppression", "If", "Loop"}


def _rotary() -> Any:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch16_dinov3",
        **{"img_size": 32, "patch_size": 4, "embed_dim": 96, "num_heads": 3, "depth": 2},
        num_classes=10,
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return tp.pool(model.eval(), (40, 20))


@pytest.mark.slow  # as above
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", ["plain", "rotary"])
def test_a_folder_as_onnx(
    search: SearchState, digits: Path, tmp_path: Path, precision: str, kind: str
) -> None:
    import onnx

    folder = Path(str(search.trials["t001"].checkpoint))
    if kind == "rotary":
        folder = tp.save(_rotary(), tmp_path / "rotary")
    form = export_formats.OnnxForm(precision, opset=20 if kind == "rotary" else 18)
    facts = export_model.export_folder(folder, "onnx", tmp_path / "out", data=digits, form=form)
    check = facts["check"]
    assert check["within_tolerance"] + check["ties"] == 64 and check["same_top1"]
    assert check["ties"] <= 6
    written = onnx.load(tmp_path / "out" / "model.onnx")
    assert written.ir_version == 9
    assert {o.domain: o.version for o in written.opset_import}[""] == form.opset
    assert _UNSHAPED.isdisjoint(node.op_type for node in written.graph.node)
    sizes = written.graph.input[0].type.tensor_type.shape.dim
    assert [bool(size.dim_value) for size in sizes] == [False, True, True, True]
    kinds = {t.data_type for t in written.graph.initializer}
    wanted = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    assert wanted.get(precision, onnx.TensorProto.INT8) in kinds
    if precision == "fp32":
        return
    reduced = facts["reduced"]
    assert reduced["images"] > 300 and set(reduced["top1"]) == {"fp32", precision}
    assert reduced["same_class"] > (0.95 if precision == "fp16" else 0.6)
    assert {"ms", "fp32_ms", "pytorch_ms"} < set(facts["speed"]["batches"][0])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"this export ({precision})" in card and "the same class for" in card


def test_a_folder_for_timm_and_what_is_asked_wrongly(
    search: SearchState, digits: Path, tmp_path: Path
) -> None:
    folder = Path(str(search.trials["t001"].checkpoint))
    facts = export_model.export_folder(folder, "timm", tmp_path / "out", data=digits)
    assert facts["model"]["schedule"] == [48, 40, 32, 24, 16, 8]
    assert facts["model"]["dense_share"] < 1
    assert "saved by tokenpool" in (tmp_path / "out" / "README.md").read_text()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"precision": "fp8"}, "--precision fp8 is unknown: use one of fp32, fp16, int8"),
        ({"opset": 12}, "--opset 12 is too old: 18 is the least"),
        ({"ir_version": 3}, "--ir-version 3 is too old: 8 is the least"),
    ]
    for words, message in wrong:
        with pytest.raises(UserError, match=message):
            export_formats.OnnxForm(**words)
    half = export_formats.OnnxForm("fp16")
    with pytest.raises(UserError, match="are of ONNX files, not of timm exports"):
        export_model.export_folder(folder, "timm", tmp_path / "other", data=digits, form=half)
    with pytest.raises(UserError, match="there is no saved model at"):
        export_model.export_folder(tmp_path / "none", "timm", tmp_path / "other", data=digits)


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_a_tie_is_told_from_another_model(weight: float) -> None:
    """A model that decides by a sign: an export may decide a near-zero the other way, no more.

    Also where that is another class (the second logit is the larger with a weight of 2).
    """

    class Signs(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            differs = x[:, 0, 0, 0] - x[:, 0, 0, 1]
            return torch.stack((torch.ones_like(differs), weight * (differs > 0)), 1)

    images = torch.ones(3, 1, 1, 2)
    images[0, 0, 0, 0], images[1, 0, 0, 0], images[2, 0, 0, 1] = 1 + 1e-7, 2.0, 2.0

    def flipped(which: int, by: float) -> export_model.Run:
        def run(x: torch.Tensor) -> torch.Tensor:
            out = Signs()(x)
            hit = (x == images[which]).flatten(1).all(1)
            out[hit, 1] = by
            return out

        return run

    check = export_model.compare(Signs(), flipped(0, 0.0), images)
    assert check.passed and (check.within, check.ties) == (2, 1)
    for which, by in [(0, 0.05), (1, 0.0), (2, weight)]:
        check = export_model.compare(Signs(), flipped(which, by), images)
        assert not check.passed and (check.within, check.ties) == (2, 0)


def test_a_file_that_the_runtime_does_not_know_is_one_line(tmp_path: Path) -> None:
    (tmp_path / export_formats.ONNX_NAME).write_bytes(b"\x08\x63")
    with pytest.raises(UserError, match=r"ONNX Runtime [\d.]+ cannot open .*--ir-version"):
        export_formats.open_format("onnx", tmp_path)
