"""Supernets in a search: one real one from end to end, and what makes one."""

from pathlib import Path

import pytest
from pydantic import ValidationError

import tokenpool as tp
import tune_spaces
from pipelines.commands.search_command import carry_out
from pipelines.config import SearchConfig
from pipelines.config_file import load_config
from pipelines.console import Screen
from pipelines.search.job_specs import supernet_job
from pipelines.search.ledger import read_events
from pipelines.search.stages.supernet_stage import near_front
from pipelines.search.state import SearchState, load_state
from pipelines.search.state_records import candidate_of
from pipelines.storage.search_files import Search
from tune_spaces.candidate import Untrained

ONE = {"num_workers": 1, "cpus_per_worker": 0.9}
TRAIN = {"epochs": 1, "batch_size": 64, "lr": 0.0005, "warmup_epochs": 0}


def config(place, data, checkpoint, **supernet):
    return SearchConfig.model_validate(
        {
            "name": "super",
            "storage": str(place / "runs"),
            "data": {"path": str(data), "image_size": 32},
            "model": {"patch_size": 8, "depth": 3},
            "space": {
                "widths": [{"width": 32, "heads": 2, "checkpoint": str(checkpoint)}],
                "min_tokens": 2,
            },
            "base": {"workers": ONE, "train": TRAIN},
            "calibrate": {"enabled": False},
            "screen": {"schedules": 16, "generations": 1, "cpus_per_actor": 0.9},
            "supernet": {
                "enabled": True,
                "workers": ONE,
                "train": {**TRAIN, "epochs": 2},
                "near": 4,
                "schedules": 12,
                "generations": 1,
                **supernet,
            },
            "finals": {"trials": 2, "workers": ONE, "train": TRAIN},
        }
    )


@pytest.mark.slow
def test_a_search_trains_a_supernet_screens_with_it_and_starts_its_finals_from_it(
    tmp_path, digits, trained
):
    carry_out(config(tmp_path, digits, trained), Screen())
    state = load_state(Search(tmp_path / "runs", "super"))
    assert state.complete
    net = state.supernet(32)
    assert net.status == "done" and [r.epoch for r in net.reports] == [1, 2]
    assert tp.pooling_of(tp.load(net.checkpoint)) is None
    assert state.stage_seconds["supernet"] >= net.device_seconds > 0
    assert len(state.screened) == 16 and len(state.rescreened) == 12
    # The same schedules, on weights that were trained for them: they lose less.
    before = {row.candidate.schedule: row.loss for row in state.screened if row.whole}
    after = {row.candidate.schedule: row.loss for row in state.rescreened if row.whole}
    both = before.keys() & after.keys()
    assert both and sum(after[s] < before[s] for s in both) > len(both) / 2
    assert {trial.start for trial in state.trials.values()} == {"supernet"}
    for trial in (t for t in state.trials.values() if t.seed is None):
        assert trial.status == "done" and trial.schedule in after
    assert state.agreement["supernet"].pairs <= 1
    page = (tmp_path / "runs/searches/super/front.html").read_text()
    assert "creening on the supernets" in page
    kinds = [e["event"] for e in read_events(Search(tmp_path / "runs", "super").ledger)]
    assert kinds.index("supernet_done") < kinds.index("agreement")


def test_its_config_is_checked_before_anything_starts(tmp_path):
    with pytest.raises(ValidationError, match="needs train"):
        config(tmp_path, "d", "c", train=None)
    with pytest.raises(ValidationError, match=r"train\.compile=false"):
        config(tmp_path, "d", "c", train={**TRAIN, "compile": True})
    with pytest.raises(ValidationError, match=r"supernet\.train\.batch_size 64 is not divisible"):
        config(tmp_path, "d", "c", workers={"num_workers": 3})


@pytest.mark.parametrize("name", ["deit-ti", "deit-s", "deit-b", "glyphs"])
def test_the_presets_train_supernets(name):
    preset = load_config(Path(tune_spaces.__file__).parent / "presets" / f"{name}.yaml")
    assert preset.supernet.enabled and preset.supernet.train.epochs < preset.base.train.epochs / 5


def test_the_job_is_the_bases_with_the_front_of_the_first_screening(tmp_path):
    wanted = config(tmp_path, "d", "c", random=3, uniform_share=0.1, near=6)
    state = SearchState("s")
    state.screened = [
        Untrained(candidate_of(32, (12, 8, k), 0.01 * k, "wkmedoids"), 0.5, 1 / k)
        for k in range(2, 9)
    ]
    near = near_front(state, 32, 6)
    job = supernet_job(
        wanted, wanted.space.widths[0], wanted.supernet.train, near, "/base/model", 10
    )
    assert (job.init, job.schedule, job.seed) == ("/base/model", None, wanted.seed)
    assert (job.sandwich.random, job.sandwich.uniform_share) == (3, 0.1)
    assert job.sandwich.min_tokens == 2 and len(job.sandwich.near) == 6
    assert {each.schedule for each in job.sandwich.near} <= {
        r.candidate.schedule for r in state.screened
    }
