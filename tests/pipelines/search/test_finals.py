from types import SimpleNamespace

import pytest

from pipelines.config import SearchConfig
from pipelines.console import Bar, Screen
from pipelines.search.ledger import LEDGER_NAME, Ledger, read_events
from pipelines.search.plan import final_job
from pipelines.search.recorder import Recorder
from pipelines.search.stages.companions import companions, is_companion
from pipelines.search.stages.finalists import choose_finalists
from pipelines.search.stages.finals import _create_trials, _FinalsListener
from pipelines.search.state import BaseState, ScreenedSchedule, SearchState, TrialState, fold
from tune_spaces.halving import Verdict
from tune_spaces.scheduler import Decision


def screened(width, gmacs, loss):
    return ScreenedSchedule(width, (int(gmacs * 1000),), gmacs, 1 - loss, loss)


def test_each_width_gets_its_share_of_its_own_front_and_dense_is_left_out():
    state = SearchState("s", bases=[BaseState(8, 2, 0.05), BaseState(16, 2, 0.1)])
    state.screened = [
        *(screened(8, 0.01 * k, 0.9 - 0.1 * k) for k in range(1, 6)),  # the last one is dense
        *(screened(16, 0.01 * k + 0.001, 2.0 - 0.1 * k) for k in range(1, 9)),  # all dominated
        screened(8, 0.035, 5.0),  # dominated within its own width
    ]
    chosen = [entry.candidate for entry in choose_finalists(state, 6)]
    assert [c.width for c in chosen].count(8) == 3 and [c.width for c in chosen].count(16) == 3
    # Each next one is farthest from all before it: whatever is trained by then spans the range.
    costs = [c.gmacs for c in chosen]
    assert {min(costs), max(costs)} <= set(costs[:3])
    own = [c.gmacs for c in chosen if c.width == 8]
    assert 0.05 not in own and 0.035 not in own and {0.01, 0.04} <= set(own)


def test_nothing_to_choose_from_gives_nothing():
    state = SearchState("s", bases=[BaseState(8, 2, 0.05)])
    state.screened = [screened(8, 0.05, 0.1)]
    assert choose_finalists(state, 4) == []


@pytest.fixture
def recorder(tmp_path):
    with Ledger(tmp_path / "s") as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        for trial_id in ("t000", "t001"):
            recorder.add(
                "trial_created",
                trial_id=trial_id,
                width=8,
                num_heads=2,
                schedule=[4],
                method="kmedoids",
                gmacs=0.01,
            )
        yield recorder


def report(epoch, top1):
    return {"epoch": epoch, "top1_minival": top1, "loss": 1.0}


def test_a_stop_is_on_disk_with_the_report_it_came_from(recorder, tmp_path):
    listener = _FinalsListener(recorder, 6, Bar(Screen(), "x", 12))
    listener.decided(Decision("t000", 2, Verdict(False, 0.1, 3, 1, "0.1 below the front")))
    listener.report("t000", report(2, 0.5))
    # A driver killed here, before Tune has ended the trial, must not start it again.
    state = fold("s", read_events(tmp_path / "s" / LEDGER_NAME))
    assert state.trials["t000"].status == "stopped"
    assert state.trials["t000"].reason == "at epoch 2: 0.1 below the front"
    listener.finished("t000", report(2, 0.5), "/x")
    assert recorder.state.trials["t000"].status == "stopped"


def test_a_trial_that_ends_early_by_itself_is_a_failure(recorder):
    listener = _FinalsListener(recorder, 6, Bar(Screen(), "x", 12))
    listener.report("t001", report(3, 0.5))
    listener.finished("t001", report(3, 0.5), "/x")
    assert recorder.state.trials["t001"].status == "failed"
    listener.report("t001", report(6, 0.7))
    listener.finished("t001", report(6, 0.7), "/x/epoch-0006")
    trial = recorder.state.trials["t001"]
    assert (trial.status, trial.top1_minival, trial.reason) == ("done", 0.7, "")
    assert trial.checkpoint == "/x/epoch-0006/model"


def test_a_kill_between_two_records_loses_no_trial(recorder):
    config = SimpleNamespace(
        space=SimpleNamespace(widths=[SimpleNamespace(width=8, heads=2)], method="kmedoids"),
        finals=SimpleNamespace(trials=3),
    )
    state = recorder.state
    state.trials.clear()
    state.bases = [BaseState(8, 2, 0.05)]
    state.screened = [screened(8, 0.01 * k, 0.9 - 0.1 * k) for k in range(1, 5)]
    context = SimpleNamespace(config=config, state=state, recorder=recorder)
    _create_trials(context, choose_finalists(state, 3), "base")
    straight = {name: trial.schedule for name, trial in state.trials.items()}
    assert sorted(straight) == ["t000", "t001", "t002"]
    for lost in (["t002"], ["t001", "t002"], sorted(straight)):
        for name in lost:
            del state.trials[name]
        _create_trials(context, choose_finalists(state, 3), "base")
        assert {name: trial.schedule for name, trial in state.trials.items()} == straight


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
    trial = TrialState(trial_id, 8, 2, schedule, "leader", gmacs, status=status)
    trial.top1_minival = top1
    return trial


def test_baselines_and_further_seeds_follow_from_the_finals_alone():
    config = SearchConfig.model_validate(CONFIG)
    bases = [BaseState(8, 2, 0.5, "done", 0.9), BaseState(16, 2, 1.0, "done", 0.95)]
    state = SearchState("s", config=config.resolved(), num_classes=10, bases=bases)
    for trial in (
        over("t000", (32, 16, 8), 0.2, 0.8),  # on the front, but a constant keep-rate already
        over("t001", (40, 20, 10), 0.3, 0.7),  # dominated
        over("t002", (50, 40, 30), 0.4, 0.9),  # on the front
        over("t003", (60, 50, 40), 0.1, 0.85, status="stopped"),
    ):
        state.trials[trial.trial_id] = trial
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
        assert is_companion(made)
        state.trials[made.trial_id] = made
    assert companions(config, state) == due
    assert made.seed == 2
    assert final_job(config, made, "base", 10).seed == config.seed + 2
    assert final_job(config, state.trials["t002"], "base", 10).seed == config.seed
