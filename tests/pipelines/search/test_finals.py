from types import SimpleNamespace

import pytest
from ledgers import CREATED

from pipelines.config import SearchConfig
from pipelines.console import Bar, Screen
from pipelines.search.job_specs import final_job
from pipelines.search.ledger import Ledger, read_events
from pipelines.search.model_record import of_width
from pipelines.search.recorder import Recorder
from pipelines.search.stages.companions import companions
from pipelines.search.stages.train_models import ModelListener
from pipelines.search.state import Model, SearchState, fold
from pipelines.search.state_records import candidate_of
from pipelines.storage.search_files import Search
from pipelines.train.reports import Report
from tune_spaces.halving import Verdict


@pytest.fixture
def recorder(tmp_path):
    with Ledger(Search(tmp_path, "s")) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        for trial_id in ("t000", "t001"):
            recorder.add("trial_created", trial_id=trial_id, **CREATED)
        yield recorder


def listening(recorder, policy):
    values = CONFIG | {"finals": {"train": {"epochs": 6, "warmup_epochs": 0}}}
    config = SearchConfig.model_validate(values)
    context = SimpleNamespace(config=config, recorder=recorder, state=recorder.state)
    return ModelListener(context, Bar(Screen(), "x", 12), policy)


def report(epoch, top1):
    return Report(epoch=epoch, top1_minival=top1, loss=1.0)


class Policy:
    """Says what a test wants it to."""

    def __init__(self, kept, goes_on=False):
        self.verdict, self.on = Verdict(kept, 0.1, 3, 1, "0.1 below the front"), goes_on
        self.told = []

    def reported(self, trial_id, epoch, top1):
        return self.verdict if epoch == 2 else None

    def goes_on(self, trial_id):
        return self.on

    def done(self, trial_id):
        self.told.append(("done", trial_id))

    def failed(self, trial_id):
        self.told.append(("failed", trial_id))


@pytest.mark.parametrize(
    ("policy", "status", "goes_on"),
    [
        (Policy(False), "stopped", False),
        (Policy(True), "paused", False),
        (Policy(True, goes_on=True), "running", True),
    ],
)
def test_what_becomes_of_a_trial_is_on_disk_with_the_report_it_came_from(
    recorder, tmp_path, policy, status, goes_on
):
    listener = listening(recorder, policy)
    assert listener.report("t000", report(1, 0.4))
    assert listener.report("t000", report(2, 0.5)) is goes_on
    # A driver killed here, before Tune has ended the trial, must not start it again.
    state = fold("s", read_events(Search(tmp_path, "s").ledger))
    assert state.trials["t000"].status == status
    assert state.trials["t000"].reason == (
        "at epoch 2: 0.1 below the front" if status == "stopped" else ""
    )
    if goes_on:
        return
    assert listener.leaving == {"t000"}, "its processes may still be there"
    listener.finished("t000", report(2, 0.5), "/x")
    assert recorder.state.trials["t000"].status == status
    assert not listener.leaving and not policy.told


def test_a_trial_that_is_stopped_by_what_nobody_lived_to_hear_does_not_leave(recorder, tmp_path):
    candidate = recorder.state.trials["t000"]
    listener = listening(recorder, Policy(False))
    job = final_job(listener._context.config, candidate, "base", 10)
    job = job.model_copy(update={"storage": tmp_path})
    job.directory.mkdir()
    for epoch in (1, 2, 3):
        job.folder.add_report(report(epoch, 0.5))
    assert not listener.catch_up(job)
    assert candidate.status == "stopped" and candidate.epochs == 2
    assert not listener.leaving, "nothing of it runs that could come to its end"


def test_a_trial_that_ends_early_by_itself_is_a_failure(recorder):
    policy = Policy(True)
    listener = listening(recorder, policy)
    listener.report("t001", report(3, 0.5))
    listener.finished("t001", report(3, 0.5), "/x")
    assert recorder.state.trials["t001"].status == "failed"
    listener.report("t001", report(6, 0.7))
    listener.finished("t001", report(6, 0.7), "/x/epoch-0006")
    trial = recorder.state.trials["t001"]
    assert (trial.status, trial.top1_minival, trial.reason) == ("done", 0.7, "")
    assert trial.checkpoint == "/x/epoch-0006/model"
    assert policy.told == [("failed", "t001"), ("done", "t001")]


CONFIG = {
    "name": "s",
    "data": {"path": "data", "image_size": 32},
    "model": {"patch_size": 4, "depth": 3},
    "space": {"widths": [{"width": 8, "heads": 2}, {"width": 16, "heads": 2}]},
    "base": {"train": {"epochs": 2, "warmup_epochs": 0}},
    "screen": {},
    "finals": {
        "train": {"epochs": 2, "warmup_epochs": 0},
        "seeds": 3,
        "constant_rates": [0.5, 0.9],
    },
}


def over(trial_id, schedule, gmacs, top1, status="done"):
    candidate = candidate_of(8, schedule, gmacs, "leader")
    return Model(trial_id, "final", candidate, 2, status=status, top1_minival=top1)


def test_baselines_and_further_seeds_follow_from_the_finals_alone():
    config = SearchConfig.model_validate(CONFIG)
    state = SearchState("s", recorded=config, num_classes=10)
    for width, gmacs, top1 in ((8, 0.5, 0.9), (16, 1.0, 0.95)):
        base = of_width("dense", width, 2, gmacs, config)
        base.status, base.top1_minival = "done", top1
        state.models[base.model_id] = base
    for trial in (
        over("t000", (32, 16, 8), 0.2, 0.8),  # on the front, but a constant keep-rate already
        over("t001", (40, 20, 10), 0.3, 0.7),  # dominated
        over("t002", (50, 40, 30), 0.4, 0.9),  # on the front
        over("t003", (60, 50, 40), 0.1, 0.85, status="stopped"),
    ):
        state.models[trial.model_id] = trial
    due = companions(config, state)
    assert [fields["trial_id"] for fields in due] == [
        *("c000", "c001", "c002"),
        *(f"c{number:03d}-s{seed}" for number in range(3) for seed in (1, 2)),
        *("t000-s1", "t000-s2", "t002-s1", "t002-s2"),
    ]
    # A comparison of means needs as many seeds on either side.
    assert [(f["keep_rate"], f["schedule"], f["seed"]) for f in due[3:5]] == [
        (0.9, [58, 52, 47], 1),
        (0.9, [58, 52, 47], 2),
    ]
    assert [(f["width"], f["keep_rate"], f["schedule"]) for f in due[:3]] == [
        (8, 0.9, [58, 52, 47]),
        (16, 0.5, [32, 16, 8]),
        (16, 0.9, [58, 52, 47]),
    ]
    assert (due[9]["schedule"], due[9]["seed"]) == ([32, 16, 8], 1)
    # A driver that died amid them finds the same ones, whatever the first of them came to.
    for fields in due[:11]:
        made = over(fields["trial_id"], tuple(fields["schedule"]), fields["gmacs"], 0.1)
        made.seed, made.keep_rate = fields.get("seed"), fields.get("keep_rate")
        assert made.is_companion
        state.models[made.model_id] = made
    assert companions(config, state) == due
    assert made.seed == 2
    assert final_job(config, made, "base", 10).seed == config.seed + 2
    assert final_job(config, state.trials["t002"], "base", 10).seed == config.seed
