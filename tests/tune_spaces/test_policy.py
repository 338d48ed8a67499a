"""The policy, driven through a world whose trainings are a formula, killed and asked again."""

import random

import moocore
import numpy as np
import pytest

from tune_spaces.candidate import Untrained
from tune_spaces.halving import rung_of
from tune_spaces.outlook import DenseModel, Prices
from tune_spaces.policy import FrontPolicy, PolicySettings, Score, Train, Wait
from tune_spaces.space import ScheduleSpace

PATCHES, DEPTH = 64, 6
FIRST, LAST = 2, 6
TOP1 = {16: 0.8, 24: 0.9}


def make_space(depth=DEPTH, patches=PATCHES):
    return ScheduleSpace(depth, patches, list(TOP1), lambda w, s: w * (2 * patches + sum(s)) / 1e4)


def make_policy(space=None, planned=(), **settings):
    space = space or make_space()
    chosen = {
        "schedules": 48, "generations": 4, "trials": 12, "rounds": 4, "keep": 0.5, "noise": 0.004,
        "seed": 3, "prices": Prices(FIRST, LAST, images=100, measured=50, floor=0.1),
    } | settings  # fmt: skip
    dense = [DenseModel(w, space.cost(w, space.dense()), t, t - 0.02) for w, t in TOP1.items()]
    return FrontPolicy(space, PolicySettings(**chosen), dense, planned)


def lost(candidate):
    kept = np.log(np.array(candidate.schedule) / candidate.schedule[0] + 0.02)
    return float(0.3 * (1 - sum(candidate.schedule) / 400) + 0.01 * kept.std())


def untrained(candidate):
    top1 = max(0.05, TOP1[candidate.width] - 0.02 - 2 * lost(candidate))
    return Untrained(candidate, round(top1, 2), -np.log(top1))


def trained(candidate, epoch):
    draw = random.Random(f"{candidate.key} {epoch}").gauss(0, 0.003)
    return TOP1[candidate.width] - lost(candidate) * (1.3 - epoch / LAST) + draw


def tell(policy, event):
    kind, *fields = event
    getattr(policy, kind)(*fields)


def drive(policy, log=None, *, most=None, block=5):
    """Does what the policy says, one thing after the other; `most` events, then it is killed.

    Returns:
        The events, as a ledger would have them.
    """
    log = [] if log is None else log

    def add(*event):
        log.append(event)
        return most is not None and len(log) >= most

    while (action := policy.ask()) is not None:
        assert policy.ask() is action
        if isinstance(action, Score):
            rows = action.candidates if action.is_new else [untrained(c) for c in action.candidates]
            event = ("asked", rows) if action.is_new else ("scored", rows[:block])
            tell(policy, event)
            if add(*event):
                return log
            continue
        assert isinstance(action, Train)
        known = action.trial_id in {event[1] for event in log if event[0] == "began"}
        assert known != action.is_new
        if action.is_new:
            event = ("began", action.trial_id, action.candidate)
        else:
            event = ("resumed", action.trial_id)
        tell(policy, event)
        if add(*event):
            return log
        epoch = max((e[2] for e in log if e[:2] == ("reported", action.trial_id)), default=0)
        while epoch < LAST:
            epoch += 1
            top1 = trained(action.candidate, epoch)
            verdict = policy.reported(action.trial_id, epoch, top1)
            killed = add("reported", action.trial_id, epoch, top1)
            if verdict is not None and not (verdict.kept and policy.goes_on(action.trial_id)):
                # One record: a kill comes before or after both.
                kind = "paused" if verdict.kept else "stopped"
                killed = add(kind, action.trial_id)
            if killed:
                return log
            if log[-1][0] != "reported":
                break
        else:
            policy.done(action.trial_id)
            if add("done", action.trial_id):
                return log
    return log


def decisions(log):
    """What was decided, without a new driver's going on with what the last one had begun."""
    running, interrupted, found = set(), set(), []
    for event in log:
        kind, name = event[0], event[1] if len(event) > 1 else None
        if kind == "restarted":
            interrupted |= running
        elif kind == "resumed" and name in interrupted:
            interrupted.remove(name)
        else:
            found.append(event)
        if kind in ("began", "resumed"):
            running.add(name)
        elif kind in ("done", "stopped", "paused"):
            running.discard(name)
    return found


@pytest.fixture(scope="module")
def calm():
    return drive(make_policy())


def test_a_search_scores_and_trains_what_it_may_and_no_more(calm):
    began = [event[2] for event in calm if event[0] == "began"]
    keys = {candidate.key for candidate in began}
    assert len(keys) == len(began) <= 12
    rows = [row for event in calm if event[0] == "scored" for row in event[1]]
    assert len({row.candidate.key for row in rows}) == len(rows) == 48
    assert keys <= {row.candidate.key for row in rows}
    space = make_space()
    assert all(c.gmacs < space.cost(c.width, space.dense()) for c in began)
    ended = {kind: {e[1] for e in calm if e[0] == kind} for kind in ("done", "stopped", "paused")}
    assert len(ended["done"]) >= 4, "what the front is made of is trained to the end"
    assert not ended["done"] & ended["stopped"], "who is stopped at the rung never goes on"
    # In each round a quarter of both, and scoring goes before.
    kinds = [event[0] for event in calm if event[0] in ("asked", "began")]
    assert kinds.count("asked") == 4
    for place, kind in enumerate(kinds):
        rounds = kinds[:place].count("asked")
        assert kind == "asked" or kinds[:place].count("began") < 3 * rounds
    assert any(e[0] == "resumed" for e in calm), "who waited at the rung goes on"


@pytest.mark.parametrize("block", [1, 5])
def test_the_same_told_is_the_same_decided_wherever_it_was_killed(calm, block):
    calm = calm if block == 5 else drive(make_policy(), block=block)
    for most in range(1, len(calm), 10 if block == 5 else 24):
        log = drive(make_policy(), most=most, block=block)
        again = make_policy()
        for event in log:
            tell(again, event)
        again.restarted()
        log.append(("restarted",))
        assert decisions(drive(again, log, block=block)) == calm, most


def test_the_first_training_is_the_one_of_most_hypervolume_for_its_price(calm):
    policy = make_policy(noise=0.0)
    log = drive(policy, most=next(i for i, e in enumerate(calm) if e[0] == "began"))
    rows = [row for event in log if event[0] == "scored" for row in event[1]]
    space, dense = policy.space, {model.width: model for model in policy.dense}
    top = max(model.gmacs for model in dense.values())
    points = [[model.gmacs, model.top1] for model in dense.values()]

    def volume(extra):
        return moocore.hypervolume(
            np.array(points + extra), ref=np.array([top, 0.1]), maximise=[False, True]
        )

    # The best top-1 of a width goes to its least cross-entropy, and so on; half its lack is left.
    found = []
    for row in rows:
        own = [r for r in rows if r.candidate.width == row.candidate.width]
        place = sorted(own, key=lambda r: r.loss).index(row)
        top1 = sorted((r.top1 for r in own), reverse=True)[place]
        model, candidate = dense[row.candidate.width], row.candidate
        guess = model.top1 - 0.5 * max(0, model.untrained - top1)
        gain = volume([[candidate.gmacs, guess]]) - volume([])
        if candidate.gmacs < space.cost(candidate.width, space.dense()):
            found.append((gain / (candidate.gmacs + top / 6), candidate.key))
    action = policy.ask()
    assert isinstance(action, Train) and action.candidate.key == max(found)[1]


@pytest.mark.parametrize("slots", [2, 3, 8])
def test_several_at_once_are_different_ones_and_all_come_to_an_end(slots):
    policy, running, over = make_policy(), {}, set()
    draws = random.Random(slots)
    for _ in range(10_000):
        action = policy.ask()
        if isinstance(action, Train) and len(running) < slots:
            assert action.trial_id not in running
            running[action.trial_id] = action
            if action.is_new:
                policy.began(action.trial_id, action.candidate)
            else:
                policy.resumed(action.trial_id)
            continue
        if isinstance(action, Score):
            assert not running, "scoring waits for what runs, as it takes the same devices"
            if action.is_new:
                policy.asked(action.candidates)
            else:
                policy.scored([untrained(c) for c in action.candidates])
            continue
        if action is None:
            break
        assert running and isinstance(action, Wait | Train)
        name = draws.choice(sorted(running))
        leg = running.pop(name)
        verdict = policy.reported(name, leg.until, trained(leg.candidate, leg.until))
        if verdict is None:
            policy.done(name)
            over.add(name)
        elif verdict.kept and policy.goes_on(name):
            running[name] = Train(name, leg.candidate, LAST, False)
    assert action is None and not running and len(over) >= 4


def test_what_runs_is_expected_to_come_true_so_its_neighbour_is_not_begun_beside_it():
    alone, beside = make_policy(trials=2, rounds=1), make_policy(trials=2, rounds=1)
    for policy in (alone, beside):
        drive(policy, most=1 + -(-48 // 5) + 3)
        while isinstance(action := policy.ask(), Score):
            rows = [untrained(c) for c in action.candidates]
            policy.asked(action.candidates) if action.is_new else policy.scored(rows)
    first = alone.ask()
    alone.began(first.trial_id, first.candidate)
    second = alone.ask()
    assert isinstance(second, Train) and second.is_new
    near = abs(second.candidate.gmacs - first.candidate.gmacs)
    assert near > 0.02 * first.candidate.gmacs or second.candidate.width != first.candidate.width


def test_a_trial_that_failed_is_tried_again_by_a_new_driver_alone():
    policy = make_policy()
    log = drive(policy, most=next(i for i, e in enumerate(drive(make_policy())) if e[0] == "began"))
    action = policy.ask()
    policy.began(action.trial_id, action.candidate)
    policy.failed(action.trial_id)
    after = policy.ask()
    assert after.trial_id != action.trial_id and after.candidate.key != action.candidate.key
    policy.restarted()
    again = policy.ask()
    assert (again.trial_id, again.until, again.is_new) == (action.trial_id, FIRST, False)
    assert log


def test_a_search_that_promises_nothing_trains_one_model_all_the_same():
    """The narrow dense model is as good as the wide one: nothing adds to the front of these two."""
    space = ScheduleSpace(DEPTH, PATCHES, [24], lambda w, s: w * (2 * PATCHES + sum(s)) / 1e4)
    low, high = space.cost(24, space.smallest()), space.cost(24, space.dense())
    dense = [DenseModel(24, high, 0.9, 0.88), DenseModel(16, low / 2, 0.9, 0.88)]
    for trials in (1, 5):
        settings = PolicySettings(
            24, 2, trials, 2, Prices(FIRST, LAST, images=100, measured=50, floor=0.1)
        )
        log = drive(FrontPolicy(space, settings, dense))
        assert [e[0] for e in log].count("done") == 1 and log[-1] == ("done", "t000")


def test_a_small_space_is_scored_once_and_ends():
    space = ScheduleSpace(1, 3, list(TOP1), lambda w, s: w * (3 + sum(s)) / 1e4)
    log = drive(make_policy(space))
    rows = [row.candidate.key for event in log if event[0] == "scored" for row in event[1]]
    assert len(set(rows)) == len(rows) <= 6 and log[-1] == ("asked", ())
    assert any(event[0] == "began" for event in log)


def test_what_was_planned_is_scored_first_and_without_trials_nothing_is_trained():
    space = make_space(depth=4, patches=16)
    planned = [space.candidate(16, (12, 8, 4, 2)), space.candidate(24, (9, 9, 1, 1))]
    log = drive(make_policy(space, planned, trials=0, rounds=1))
    rows = [row.candidate.key for event in log if event[0] == "scored" for row in event[1]]
    assert rows[:2] == [c.key for c in planned] and len(rows) == 48
    assert {event[0] for event in log} == {"asked", "scored"}


def test_a_search_of_the_program_before_goes_on_with_the_trials_it_had_chosen():
    """It scored all at first, created all trials at once, and knew no generations."""
    space = make_space()
    policy, rng = make_policy(space, trials=4), np.random.default_rng(0)
    candidates = list({c.key: c for c in space.sample(rng, 60)}.values())[:48]
    policy.scored([untrained(c) for c in candidates])
    for number, candidate in enumerate(candidates[:4]):
        policy.began(f"t{number:03d}", candidate)
    policy.reported("t000", 1, 0.5)
    policy.stopped("t001")
    policy.restarted()
    assert [policy.ask().trial_id for _ in range(2)] == ["t000", "t000"]
    log = [("began", f"t{n:03d}", c) for n, c in enumerate(candidates[:4])]
    log = drive(policy, log)
    assert {event[0] for event in log} <= {
        "began", "resumed", "reported", "paused", "stopped", "done"
    }  # fmt: skip
    assert len([event for event in log if event[0] == "began"]) == 4
    assert {event[1] for event in log if event[0] == "resumed"} >= {"t000", "t002", "t003"}


def test_costs_on_a_log_axis_send_training_to_cheaper_models():
    def cheapest(log_cost):
        prices = Prices(FIRST, LAST, images=100, measured=50, floor=0.1, log_cost=log_cost)
        log = drive(make_policy(prices=prices))
        return np.log([event[2].gmacs for event in log if event[0] == "began"]).mean()

    assert cheapest(True) < cheapest(False)


@pytest.mark.parametrize(("grace", "epochs", "rung"), [(1, 4, 1), (9, 4, 3), (2, 1, 1), (1, 2, 1)])
def test_the_rung_is_never_the_last_epoch_unless_there_is_but_one(grace, epochs, rung):
    assert rung_of(grace, epochs) == rung
