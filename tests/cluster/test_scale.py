"""The scale runs of benchmarks/, small here and whole under `slow`: what docs/scale.md claims."""

import importlib.util
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def benchmark(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def simulated(num_nodes, num_trials, **options):
    simulation = benchmark("scale_simulation").Simulation(num_nodes, num_trials, **options)
    simulation.run()
    return simulation, simulation.figures()


def test_a_simulated_search_uses_its_gpus_and_loses_no_trial():
    simulation, figures = simulated(20, 2000)
    assert figures["done"] + figures["stopped"] == 2000
    assert figures["in_use"] >= 0.95
    assert figures["restarts"] > 0  # nodes did leave
    # At the end nothing is held, and no trial was started where there was no room for it but
    # for those whose node left within the last look at the cluster.
    assert simulation.held == 0 and not simulation.running and not simulation.homeless
    assert all(gpus == 8 for gpus in simulation.free.values())
    assert figures["starts_that_waited"] <= figures["restarts"]
    # Every candidate was handed out once.
    assert len(simulation.scheduler.rungs[3]) == 2000


def test_a_slow_controller_shows_as_idle_gpus():
    """The simulation can fail: a driver that needs three seconds a report lets GPUs wait."""
    module = benchmark("scale_simulation")
    slow = module.Assumptions(tune_per_report=3.0, tune_per_start=3.0)
    _, figures = simulated(40, 600, world=slow)
    assert figures["done"] + figures["stopped"] == 600
    assert figures["driver_busy"] > 0.8
    assert figures["computing"] < 0.7


def test_without_nodes_that_leave_nobody_ever_waits_for_room():
    module = benchmark("scale_simulation")
    simulation = module.Simulation(12, 500, world=module.Assumptions(node_mtbf=1e12))
    simulation.run(grow=False)
    figures = simulation.figures()
    assert (figures["restarts"], figures["starts_that_waited"]) == (0, 0)


@pytest.mark.slow  # two minutes of computing
def test_a_thousand_nodes_and_a_hundred_thousand_trials():
    _, figures = simulated(1000, 100_000)
    assert figures["done"] + figures["stopped"] == 100_000
    assert figures["in_use"] >= 0.95
    assert figures["judge"]["median_ms"] < 1 and figures["suggest"]["median_ms"] < 1
    assert figures["judge"]["p99_ms"] < 20 and figures["suggest"]["p99_ms"] < 20


@pytest.mark.slow  # a thousand real Tune trials on nine Ray nodes
def test_a_thousand_trials_on_eight_nodes_of_eight_gpus():
    figures = benchmark("scale_ray").run(8, 1000, 4)
    assert figures["trials"] == {"ended": 1000}
    assert figures["most_running"] == figures["room"] == 16
    assert figures["resources_back"] and figures["placement_groups_left"] == 0
    assert figures["suggest"]["max_ms"] < 20 and figures["judge"]["max_ms"] < 20
    # Flat: what is added over the last three quarters, carried on to ten thousand trials, is less
    # than what one trial alone takes of this machine while it runs.
    assert figures["driver_kb_per_trial"] < 15
    first, last = figures["driver_rss_mb"][0][1], figures["driver_rss_mb"][-1][1]
    assert last < 1.05 * first
