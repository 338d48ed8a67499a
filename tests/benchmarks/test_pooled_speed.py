"""`tokenpool bench pooling`: rows of all variants, in turn, and what they say."""

import functools
import json

import pytest
import typer_runs

import tokenpool as tp
from benchmarks.pooling import pooled_speed
from pipelines.commands.bench_pooling_command import pooling
from pipelines.errors import UserError


def run(*words):
    return typer_runs.run(pooling, *words).stdout


def test_the_benchmark_times_all_variants_in_turn(tmp_path, monkeypatch):
    variants = [
        pooled_speed.Variant("dense"),
        pooled_speed.Variant("pooled", "wkmedoids", tp.Schedule((10, 5)), {"features": "keys"}),
    ]
    small = functools.partial(
        pooled_speed.run,
        variants=variants,
        model_options={
            "img_size": 16,
            "patch_size": 4,
            "embed_dim": 24,
            "num_heads": 3,
            "depth": 2,
        },
    )
    steps = []
    found = list(
        small(
            "vit_tiny_patch16_224",
            modes=("fp32-eager", "bf16-eager"),
            batches=(2, 1),
            rounds=2,
            progress=steps.append,
        )
    )
    assert [(r["mode"], r["batch"], r["variant"]) for r in found] == [
        (mode, batch, name)
        for mode in ("fp32-eager", "bf16-eager")
        for batch in (2, 1)
        for name in ("dense", "pooled")
    ]
    assert [step.rpartition(" ")[2] for step in steps[:4]] == ["dense", "pooled"] * 2
    for row in found:
        assert row["images_per_second"] > 0 and row["peak_mib"] > 0 and len(row["seconds"]) == 2
        assert row["realised"] == pytest.approx(row["speedup"] / row["mac_ratio"], abs=0.01)
        assert row["hardware"] and row["torch"] and row["date"] and row["command"]
    assert found[0]["mac_ratio"] == 1 and found[1]["mac_ratio"] > 1
    assert found[0]["pooling_ms"] is None and found[1]["pooling_ms"] > 0

    monkeypatch.setattr(pooled_speed, "run", small)
    out = tmp_path / "rows.jsonl"
    text = run(
        "--model", "vit_tiny_patch16_224", "--mode", "fp32-eager", "--rounds", 1,
        "--batch-size", 2, "--out", out, "--json",
    )  # fmt: skip
    assert [json.loads(line)["variant"] for line in out.read_text().splitlines()] == [
        "dense",
        "pooled",
    ]
    assert len(json.loads(text)) == 2
    with pytest.raises(UserError, match="no mode 'fp8'"):
        run("--mode", "fp8")
    with pytest.raises(UserError, match="--width is 40"):
        run("--width", 40)


def test_the_benchmark_runs_the_demos_model_in_a_form_of_the_callers():
    seen = []

    def runner(model):
        pooling = tp.pooling_of(model)
        seen.append((pooling and pooling.method, model.embed_dim))
        return lambda images: seen.append(tuple(images.shape))

    found = list(
        pooled_speed.run(
            "demo",
            model=tp.build_vit(32, 4, 32, 2, 1, 10),
            modes=("mine",),
            runners={"mine": runner},
            only="leader|ToMe, same",
            batches=(1,),
            rounds=1,
            details=False,
            cpu_time=True,
        )
    )
    assert [row["variant"] for row in found] == ["dense", "leader", "ToMe, same counts"]
    assert [entry for entry in seen if entry[1] == 32] == [
        (None, 32),
        ("leader", 32),
        ("tome", 32),
    ]
    # Two rounds to warm up and one that counts, of each.
    assert seen.count((1, 3, 32, 32)) == 9
    assert "peak_mib" not in found[0] and found[0]["model"] == "demo"
    assert found[0]["clock"] == "cpu"
