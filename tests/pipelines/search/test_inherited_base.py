"""Bases that start from a wider one: who inherits from whom, when, and what comes of it."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

import tokenpool as tp
from pipelines.config import SearchConfig
from pipelines.search.job_specs import base_job
from pipelines.search.model_record import of_width
from pipelines.search.search_space import dense_gmacs
from pipelines.search.stages import base_stage as base
from pipelines.search.stages import train_models
from pipelines.search.state import SearchState
from pipelines.train.model import build_model
from pipelines.train.reports import Report

TRAIN = {"epochs": 6, "batch_size": 64, "lr": 0.0005, "warmup_epochs": 0}


def config(widths, data="d", **stage):
    return SearchConfig.model_validate(
        {
            "name": "heirs",
            "data": {"path": str(data), "image_size": 32},
            "model": {"patch_size": 8, "depth": 3},
            "space": {"widths": widths},
            "screen": {},
            "finals": {"train": TRAIN},
            **({"base": stage} if stage else {}),
        }
    )


def width(value, heads, checkpoint=None):
    return {"width": value, "heads": heads} | ({"checkpoint": checkpoint} if checkpoint else {})


@pytest.mark.parametrize(
    ("widths", "inherit", "expected"),
    [
        # Where a wider one has a checkpoint, unless it is switched off.
        ([width(64, 4, "x"), width(32, 2)], None, {32: 64}),
        ([width(64, 4, "x"), width(32, 2)], False, {}),
        # Without any, only where it is asked for; then from the widest.
        ([width(64, 4), width(48, 3), width(32, 2)], None, {}),
        ([width(64, 4), width(48, 3), width(32, 2)], True, {48: 64, 32: 64}),
        # From the narrowest with a checkpoint, and never from a narrower one.
        ([width(64, 4, "x"), width(48, 3, "y"), width(32, 2)], None, {32: 48}),
        ([width(64, 4), width(48, 3, "y"), width(32, 2)], None, {32: 48}),
        # Heads are kept whole.
        ([width(64, 4, "x"), width(32, 4)], None, {}),
    ],
)
def test_who_inherits_from_whom(widths, inherit, expected):
    found = config(widths, inherit=inherit, train=TRAIN)
    heirs = {w.width: wider.width for w in found.space.widths if (wider := found.wider(w))}
    assert heirs == expected
    epochs = {w.width: found.base_epochs(w) for w in found.space.widths}
    assert all(epochs[w] == (2 if w in expected else 6) for w in epochs)


def test_what_cannot_be_is_said_with_what_could():
    with pytest.raises(ValidationError, match=r"use \{width: 32, heads: 2\}, or base\.inherit=fal"):
        config([width(64, 4), width(36, 4)], inherit=True, train=TRAIN)
    with pytest.raises(ValidationError, match=r"base\.train is missing: width 32 has no chec"):
        config([width(64, 4, "x"), width(32, 2)])
    # Where every width has a checkpoint there is nothing to train.
    assert config([width(64, 4, "x"), width(32, 2, "y")]).base.train is not None


def test_a_job_starts_from_the_best_of_the_wider_model_and_learns_from_it(trained):
    wide = width(32, 2, str(trained))
    found = config([wide, width(16, 1)], train=TRAIN, inherit_epochs=5)
    narrow = found.space.widths[1]
    job = base_job(found, narrow, 10, str(trained))
    assert (job.train.epochs, job.train.distill.teacher) == (5, str(trained))
    images = torch.randn(4, 3, 32, 32)
    expected = tp.inherit_width(tp.load(trained), 16).eval()(images)
    assert torch.equal(build_model(job).eval()(images), expected)
    # What it costs is known before.
    assert dense_gmacs(found, narrow, 10) == pytest.approx(tp.macs(build_model(job)).gmacs)
    own = base_job(found, narrow, 10)
    assert own.inherits is None and own.train.distill is None and own.train.epochs == 6


def test_a_teacher_that_was_asked_for_stays(trained):
    distilled = TRAIN | {"distill": {"teacher": "deit_small_patch16_224"}}
    found = config([width(32, 2, str(trained)), width(16, 1)], train=distilled)
    job = base_job(found, found.space.widths[1], 10, str(trained))
    assert job.train.distill.teacher == "deit_small_patch16_224"


def test_the_wider_one_is_trained_before_its_heirs_and_they_side_by_side(monkeypatch):
    found = config([width(32, 2), width(64, 4), width(48, 3)], inherit=True, train=TRAIN)
    bases = [of_width("dense", w, w // 16, 1, found) for w in (32, 64, 48)]
    state = SearchState("s", num_classes=10, models={base.model_id: base for base in bases})
    waves, said = [], []

    class Recorder:
        def add(self, kind, **fields):
            self.add_all([(kind, fields)])

        def add_all(self, events):
            ((kind, fields),) = events
            if kind == "base_done":
                known = state.base(fields["width"])
                known.status, known.checkpoint = "done", fields["checkpoint"]
                known.top1_minival = fields["top1_minival"]

    Recorder.state = state

    @contextmanager
    def nothing(*_):
        yield SimpleNamespace(advance=lambda *_, **__: None)

    def run_trials(jobs, *, listener, **_):
        waves.append([(job.job_id, job.inherits, job.train.epochs) for job in jobs])
        for job in jobs:
            report = Report(epoch=job.train.epochs, top1_minival=0.9)
            listener.finished(job.job_id, report, f"/{job.job_id}")

    context = SimpleNamespace(
        config=found, state=state, recorder=Recorder(), room=nothing, watch=nothing,
        check=lambda: None,
        screen=SimpleNamespace(progress=nothing, say=lambda text, **_: said.append(text)),
    )  # fmt: skip
    monkeypatch.setattr(train_models, "run_trials", run_trials)
    base.run_base(context)
    assert waves == [
        [("base-w64", None, 6)],
        [("base-w32", "/base-w64/model", 2), ("base-w48", "/base-w64/model", 2)],
    ]
    assert "width 32 inherits from width 64: 2 epochs" in said
