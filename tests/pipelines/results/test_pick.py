"""Picking from a front small enough to do by hand, and the commands around it."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer_runs

from pipelines.commands.front_command import front as front_command
from pipelines.commands.pick_command import pick as pick_command
from pipelines.errors import UserError
from pipelines.results import pick
from pipelines.results.front import Front, build_front
from pipelines.search.state import SearchState


@pytest.fixture
def front(state: SearchState) -> Front:
    for trial_id, milliseconds in (("t001", 3.0), ("t002", 2.0), ("t006", 1.5), ("t004", 1.0)):
        state.trials[trial_id].latency_ms = {"1": milliseconds, "32": 20 * milliseconds}
    return build_front(state)


@pytest.mark.parametrize(
    ("choose", "chosen"),
    [
        (lambda f: pick.pick_max_gmacs(f, 0.0219), "dense-64"),
        (lambda f: pick.pick_max_gmacs(f, 0.022), "t002"),
        (lambda f: pick.pick_max_gmacs(f, 99.0), "dense-96"),
        (lambda f: pick.pick_min_top1(f, 0.94), "t002"),
        (lambda f: pick.pick_min_top1(f, 94), "t002"),
        (lambda f: pick.pick_min_top1(f, 0.0), "t004"),
        (lambda f: pick.pick_max_latency(f, 2.5), "t002"),
        (lambda f: pick.pick_max_latency(f, 1.7), "t006"),  # beaten on GMACs, but fast enough
        (lambda f: pick.pick_max_latency(f, 70.0, "32"), "t001"),
        (lambda f: pick.pick_knee(f), "t003"),
    ],
)
def test_choices_by_hand(front: Front, choose: Callable[[Front], pick.Choice], chosen: str) -> None:
    assert choose(front).point.point_id == chosen


def test_the_steps_up_and_down_are_the_neighbours(front: Front) -> None:
    choice = pick.pick_max_gmacs(front, 0.022)
    assert choice.cheaper is not None
    assert choice.better is not None
    assert (choice.cheaper.point_id, choice.better.point_id) == ("dense-64", "t001")
    text = pick.explain_choice(front, choice)
    assert "most accurate within 0.022 GMACs" in text
    assert "One step cheaper: dense-64, -5 % GMACs for -2.50 points" in text
    assert "One step better: t001, +36 % GMACs for +1.00 points" in text
    ends = pick.explain_choice(front, pick.pick_max_gmacs(front, 99.0))
    assert "Nothing on the front is more accurate." in ends


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (
            lambda f: pick.pick_max_gmacs(f, 0.001),
            "no model of digits costs at most 0.001 GMACs: the cheapest is t004 with 0.008 GMACs",
        ),
        (
            lambda f: pick.pick_min_top1(f, 0.99),
            "no model of digits reaches 99 % top-1: the best is dense-96 with 0.046 GMACs, 97.00 %",
        ),
        (
            lambda f: pick.pick_max_latency(f, 0.5),
            "takes at most 0.5 ms for a batch of 1: the fastest takes 1 ms, t004",
        ),
    ],
)
def test_a_bound_nobody_meets_names_the_nearest(
    front: Front, choose: Callable[[Front], pick.Choice], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        choose(front)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1


def test_impossible_requests(front: Front, state: SearchState) -> None:
    with pytest.raises(UserError, match="no accuracy") as caught:
        pick.pick_min_top1(front, 101)
    assert caught.value.exit_code == 2
    with pytest.raises(UserError, match="batch 7: there is 1, 32"):
        pick.pick_max_latency(front, 1.0, "7")
    for trial in state.trials.values():
        trial.latency_ms = None
    with pytest.raises(UserError, match="no latency was measured"):
        pick.pick_max_latency(build_front(state), 1.0)
    with pytest.raises(UserError, match="no model of new is finished yet"):
        pick.pick_knee(build_front(SearchState("new")))


@pytest.fixture
def run(storage: Path) -> Callable[..., str]:
    app = typer.Typer()
    app.command("front")(front_command)
    app.command("pick")(pick_command)
    return lambda *words: typer_runs.run(app, *words, "--storage", storage).output


def test_front_command(run: Callable[..., str]) -> None:
    assert "t003" in run("front", "digits")
    found = json.loads(run("front", "digits", "--json"))
    assert found["points"][0]["id"] == "t004"
    assert 0 < found["hypervolume"] < 1
    rows = list(csv.DictReader(io.StringIO(run("front", "digits", "--csv", "--all"))))
    assert {row["status"] for row in rows} == {"done", "stopped", "failed"}


def test_pick_command(run: Callable[..., str]) -> None:
    assert run("pick", "digits", "--knee").startswith("t003: 0.014 GMACs, 92.00 % top-1")
    found = json.loads(run("pick", "digits", "--min-top1", "0.96", "--json"))
    assert (found["id"], found["one_step_cheaper"], found["one_step_better"]) == (
        "t001",
        "t002",
        "dense-96",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pick", "digits"], "exactly one of"),
        (["pick", "digits", "--knee", "--max-gmacs", "1"], "exactly one of"),
        (["pick", "digit", "--knee"], "no search named digit .*: there is digits"),
        (["front", "digits", "--json", "--csv"], "exclude each other"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(
    run: Callable[..., str], arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
