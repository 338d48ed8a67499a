"""The scale runs of benchmarks/, small here and whole under `slow`: what docs/scale.md claims."""

import pytest

from benchmarks import scale_ray, scale_simulation


def simulated(module, num_nodes, num_trials, grow=True, **assumptions):
    simulation = module.Simulation(num_nodes, num_trials, world=module.Assumptions(**assumptions))
    simulation.run(grow)
    return simulation, simulation.figures()


def test_a_simulated_search_ends_loses_no_trial_and_holds_nothing():
    # Nodes that live for an hour, so that trials lose theirs.
    simulation, figures = simulated(scale_simulation, 8, 70, node_mtbf=3600.0, node_repair=300.0)
    assert figures["restarts"] > 0
    # No trial was started where there was no room for it but for those whose node left within the
    # last look at the cluster.
    assert figures["starts_that_waited"] <= figures["restarts"]
    assert simulation.held == 0 and not simulation.running and not simulation.homeless
    assert all(gpus == 8 for gpus in simulation.free.values())
    assert figures["scored"] == 140 and 40 < figures["trials"] <= 70
    # Whoever began was stopped at the rung, waits there, or is done.
    waiting = simulation.policy.paused_trials
    assert figures["done"] + figures["stopped"] + len(waiting) == figures["trials"]
    epochs = {trial.epoch for trial in simulation.trials.values()}
    assert epochs == {3, 27}


def test_a_slow_controller_shows_as_idle_gpus():
    """The simulation can fail: a driver that needs thirty seconds a report lets GPUs wait."""
    (_, quick), (_, slow) = (
        simulated(scale_simulation, 16, 80, tune_per_report=seconds, tune_per_start=seconds)
        for seconds in (0.006, 30.0)
    )
    assert slow["driver_busy"] > 0.8 > 0.1 > quick["driver_busy"]
    assert slow["computing"] < 0.5 * quick["computing"]


def test_without_nodes_that_leave_nobody_ever_waits_for_room():
    _, figures = simulated(scale_simulation, 12, 60, grow=False, node_mtbf=1e12)
    assert (figures["restarts"], figures["starts_that_waited"]) == (0, 0)


@pytest.mark.slow  # minutes of computing
def test_three_hundred_nodes_and_three_thousand_trials():
    _, figures = simulated(scale_simulation, 300, 3000)
    assert figures["trials"] > 2000
    assert figures["choose"]["median_ms"] < 100 and figures["judge"]["median_ms"] < 100
    assert figures["driver_busy"] < 0.3


@pytest.mark.slow  # hundreds of real Tune trials on nine Ray nodes
def test_seven_hundred_trainings_on_eight_nodes_of_eight_gpus():
    figures = scale_ray.run(8, 700, 4)
    trainings = figures["trainings"]
    assert set(figures["trials"]) == {"ended"}
    assert figures["trials"]["ended"] == trainings["begun"] + trainings["resumed"]
    assert trainings["begun"] > 400 and "failed" not in trainings
    assert figures["most_running"] == figures["room"] == 16
    assert figures["resources_back"] and figures["placement_groups_left"] == 0
    assert figures["suggest"]["median_ms"] < 100 and figures["report"]["median_ms"] < 100
    # Flat: what is added over the last three quarters, carried on to ten thousand trials, is less
    # than what one trial alone takes of this machine while it runs.
    assert figures["driver_kb_per_trial"] < 40
    first, last = figures["driver_rss_mb"][0][1], figures["driver_rss_mb"][-1][1]
    assert last < 1.05 * first
