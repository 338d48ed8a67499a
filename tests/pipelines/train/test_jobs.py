"""Jobs on two workers: of which one has a NaN or no memory left, and with unusual recipes.

`jobs.py` has the jobs. One run of torchrun does them all, since a start costs as much as several.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from thinning import fast

import tokenpool as tp
from pipelines.train.checkpoint import read_progress
from pipelines.train.reports import PHASES

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def out(request, digits, tmp_path_factory):
    """What came of all jobs; of those of slow tests, where such are run."""
    here = [item for item in request.session.items if item.path == request.path]
    slow = any(item.get_closest_marker("slow") for item in here)
    path = tmp_path_factory.mktemp("jobs")
    command = [
        str(Path(sys.executable).parent / "torchrun"),
        "--standalone",
        "--nproc-per-node=2",
        str(HERE / "jobs.py"),
        str(path),
        str(digits),
        "all" if slow else "few",
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (path / "stderr").write_text(done.stderr)
    return path


def result(out, name):
    return json.loads((out / f"{name}.json").read_text())


def folder(out, name, epoch=2):
    return out / "trains" / name / f"epoch-{epoch:04d}"


def tensors(value, prefix=""):
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from tensors(inner, f"{prefix}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from tensors(inner, f"{prefix}.{index}")


def everything(out, name, epoch=2):
    """All tensors of a checkpoint: average, weights, optimizer with its step counts."""
    path = folder(out, name, epoch)
    found = {f"ema.{key}": value for key, value in tp.load(path / "model").state_dict().items()}
    for file in sorted((path / "engine").glob("*.pt")):
        state = torch.load(file, weights_only=False)
        found |= dict(tensors(state, file.stem))
    assert any("exp_avg" in key for key in found)
    return found


def assert_same_bits(out, name, measure):
    ours, theirs = everything(out, name), everything(out, measure)
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.slow
def test_guards_change_no_bit_of_a_run_without_trouble(out):
    assert_same_bits(out, "straight", "unguarded")
    straight, unguarded = result(out, "straight"), result(out, "unguarded")
    for key in ("loss", "top1_minival", "top1_minival_raw", "loss_minival"):
        assert straight[key] == unguarded[key]
    assert straight["skipped_steps"] == 0 and straight["rollbacks"] == 0


@pytest.mark.parametrize(
    ("name", "measure"),
    fast(
        4,
        [
            ("nan-loss", "left-out"),
            ("nan-gradient", "left-out"),
            ("infinite-part", "left-out-of-parts"),
            ("nan-loss-2", "left-out-2"),
            ("nan-loss-1", "left-out-1"),
        ],
    ),
)
@pytest.mark.fault("NaN in one rank's loss or gradient")
def test_a_bad_step_on_one_worker_is_left_out_on_all(out, name, measure):
    # Not the weights, the moments, the average, nor the rates of the steps after it are touched.
    assert_same_bits(out, name, measure)
    assert result(out, name)["skipped_steps"] == 1
    assert result(out, name)["loss"] == result(out, measure)["loss"]
    assert not torch.equal(
        *(everything(out, n)["ema.head.weight"] for n in ("nan-loss", "straight"))
    )


@pytest.mark.fault("NaN for several steps: back to the last checkpoint")
def test_after_several_in_a_row_it_goes_back_and_passes_over_their_images(out):
    assert_same_bits(out, "goes-back", "went-back")
    assert result(out, "goes-back")["rollbacks"] == 1
    assert result(out, "goes-back")["skipped_steps"] == 3
    assert "goes back to the weights of epoch-0001" in (out / "stderr").read_text()


@pytest.mark.fault("loss spike on one rank")
def test_a_spike_that_is_finite_is_clipped(out):
    spike, straight = result(out, "spike"), result(out, "straight")
    assert spike["loss"] != straight["loss"] and spike["skipped_steps"] == 0
    assert spike["loss_minival"] == pytest.approx(straight["loss_minival"], rel=0.1)


@pytest.mark.fault("trial that always diverges")
def test_it_fails_in_one_line_when_going_back_does_not_help(out):
    error = result(out, "gives-up")["error"]
    # Steps 22 to 24 and, after going back, 25 to 27.
    assert error.startswith("numeric: the loss is nan at step 27 of gives-up at learning rate 0.00")
    assert "gone back 1 times" in error and "\n" not in error
    error = result(out, "nothing-to-go-back-to")["error"]
    assert error.startswith("numeric: the loss is nan at step 5 of ") and "no checkpoint" in error


@pytest.mark.parametrize(
    "name",
    fast(
        3,
        [
            "out-of-memory",
            "out-of-memory-behind",
            "out-of-memory-behind-2",
            "out-of-memory-2",
            "out-of-memory-1",
            "out-of-memory-behind-1",
        ],
    ),
)
@pytest.mark.fault("out of memory on one worker")
def test_out_of_memory_on_one_worker_halves_on_all_and_changes_no_loss(out, name):
    measure, ours = result(out, "enough-memory"), result(out, name)
    assert measure["micro_batch"] == 32 and ours["micro_batch"] == 8
    assert ours["skipped_steps"] == 0
    assert ours["loss"] == pytest.approx(measure["loss"], abs=1e-5)
    assert ours["loss_minival"] == pytest.approx(measure["loss_minival"], abs=1e-5)
    lines = [line for line in (out / "stderr").read_text().splitlines() if f"{name} ran" in line]
    steps = {line.split("at step ")[1].split(":")[0] for line in lines}
    assert steps == {"4" if "behind" in name else "1"}
    assert "micro-batches of 8 instead of 16" in lines[-1]


def test_the_size_that_fits_is_remembered(out):
    measure, ours = result(out, "enough-memory"), result(out, "interrupted")
    assert (out / "goes-on-times").read_text() == "0"
    assert ours["micro_batch"] == 8
    assert ours["loss"] == pytest.approx(measure["loss"], abs=1e-5)
    best = read_progress(out / "trains" / "interrupted" / "best")
    assert best.micro_batch == 8 and best.config_hash


def test_only_the_job_that_was_begun_goes_on(out):
    directory = out / "trains" / "interrupted"
    assert result(out, "asked-otherwise")["error"] == (
        "interrupted was begun with another setting, train.lr: 0.001 → 0.002: set it back, take "
        f"another name, or delete {directory}"
    )
    assert result(out, "asked-again") == result(out, "interrupted")  # it had finished


@pytest.mark.fault("out of memory with one image")
def test_no_memory_for_one_image_ends_in_one_line(out):
    error = result(out, "no-memory")["error"]
    assert error.startswith("out of memory with one image at a time: ") and "\n" not in error


def test_every_recipe_trains(out):
    plain = result(out, "enough-memory")
    recomputing = result(out, "recomputing")
    assert recomputing["loss"] == pytest.approx(plain["loss"], abs=1e-5)

    slow_start = result(out, "warmup-stable-decay")
    assert slow_start["loss"] != plain["loss"] and slow_start["loss"] < 2.4
    # Half of the 34 steps decay from 1e-3 to 1e-5; the last is one step above the end.
    assert slow_start["lr"] == pytest.approx(1e-5 + (1e-3 - 1e-5) / 17)
    rates = [
        group["lr"]
        for group in torch.load(
            folder(out, "warmup-stable-decay") / "engine" / "mp_rank_00_model_states.pt",
            weights_only=False,
        )["optimizer"]["param_groups"]
    ]
    assert max(rates) == slow_start["lr"]
    assert min(rates) == pytest.approx(slow_start["lr"] * 0.7**3)  # two blocks and the head above

    half = result(out, "half-precision")
    assert half["loss"] != plain["loss"] and half["loss"] == pytest.approx(plain["loss"], abs=0.05)


def test_teachers_take_part_in_the_loss(out):
    plain, taught = result(out, "enough-memory"), result(out, "taught")
    # A soft teacher that has hardly learned makes half of the loss much smaller.
    assert 0.3 * plain["loss"] < taught["loss"] < 0.8 * plain["loss"]
    by_timm = result(out, "taught-by-timm")
    assert by_timm["loss"] != plain["loss"] and 0 < by_timm["loss"] < 3


def test_a_report_says_where_the_time_went(out):
    report = result(out, "straight")
    shares = [report[f"share_{phase}"] for phase in PHASES]
    assert all(share > 0 for share in shares) and sum(shares) == pytest.approx(1, abs=0.01)
    assert 0.1 <= report["top1_minival"] <= report["top5_minival"] <= 1
    assert report["top1_minival_raw"] != report["top1_minival"]
    assert "top1_minival_raw" not in result(out, "enough-memory")  # it has no average
