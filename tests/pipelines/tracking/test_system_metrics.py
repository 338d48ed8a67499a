"""System metrics: sampled beside the search, kept in the ledger, on the runs they belong to."""

import time
from pathlib import Path
from typing import Any

import ledgers
import pytest
from mlflow import MlflowClient

from pipelines.search.ledger import Ledger, read_events
from pipelines.search.recorder import Recorder
from pipelines.search.state import SearchState, fold
from pipelines.search.system_metrics import SystemSampler, parse_gpus
from pipelines.storage.search_files import Search
from pipelines.tracking.mirror import LedgerMirror
from pipelines.tracking.tracking_store import tracking_store
from pipelines.tracking.upkeep import rebuild


def test_samples_and_events_of_two_threads_keep_their_lines(tmp_path: Path) -> None:
    search = Search(tmp_path, "s")
    with Ledger(search) as ledger:
        recorder = Recorder(ledger, SearchState("s"))
        with SystemSampler(
            lambda metrics: recorder.add("system", metrics=metrics), tmp_path, every=0.005
        ):
            for number in range(200):
                recorder.add("note", number=number)
                time.sleep(0.001)
    events = list(read_events(search.ledger))
    assert [e["number"] for e in events if e["event"] == "note"] == list(range(200))
    samples = [e["metrics"] for e in events if e["event"] == "system"]
    assert len(samples) > 5
    for sample in samples:
        assert 0 < sample["system_memory_usage_percentage"] <= 100
        assert sample["disk_available_megabytes"] > 0
        assert sample["network_receive_megabytes"] >= 0
    assert len(list(Search(tmp_path, "s").folder.iterdir())) == 2  # the ledger and its lock


def test_a_sampler_that_fails_ends_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(_: dict[str, float]) -> None:
        raise OSError("no space left on device")

    with SystemSampler(full, tmp_path, every=0.01):
        time.sleep(0.1)
    assert "system metrics end here: no space left" in caplog.text


def test_gpus_as_nvidia_smi_tells_of_them() -> None:
    text = "0, 87, 20480, 81920, 305.12\n1, [N/A], 0, 81920, [Not Supported]\n"
    assert parse_gpus(text) == {
        "gpu_0_utilization_percentage": 87.0,
        "gpu_0_memory_usage_megabytes": 20480.0,
        "gpu_0_memory_usage_percentage": 25.0,
        "gpu_0_power_usage_watts": 305.12,
        "gpu_1_memory_usage_megabytes": 0.0,
        "gpu_1_memory_usage_percentage": 0.0,
    }
    assert parse_gpus("No devices were found\n") == {}


def with_samples(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A sample in the midst of t001's training, and one when nothing trains."""
    at = next(i for i, row in enumerate(rows) if row.get("trial_id") == "t001" and "report" in row)
    sample = {"event": "system", "metrics": {"cpu_utilization_percentage": 50.0}}
    rows.insert(1, {**sample, "time": rows[1]["time"] - 0.5})
    rows.insert(at + 2, {**sample, "time": rows[at + 2]["time"] - 0.5})
    return rows


def test_they_are_on_the_parent_and_on_what_was_training(folder: Path) -> None:
    search = ledgers.write_ledger(folder, "digits", with_samples(ledgers.events()))
    store = tracking_store(folder)

    def system_metrics() -> dict[str, list[tuple[int, float]]]:
        mirror = LedgerMirror(search, store)
        mirror.read()
        mirror.send(with_artifacts=False)
        client = MlflowClient(tracking_uri=store.uri)
        found = {}
        for point_id in ("", "t001", "t002", "dense-96"):
            history = client.get_metric_history(
                mirror.run_id(point_id), "system/cpu_utilization_percentage"
            )
            found[point_id] = [(metric.step, metric.value) for metric in history]
        return found

    expected = {"": [(1, 50.0), (2, 50.0)], "t001": [(2, 50.0)], "t002": [], "dense-96": []}
    assert system_metrics() == expected
    rebuild(Search(folder, "digits"), store)
    assert system_metrics() == expected


def test_an_older_program_reads_past_them() -> None:
    rows = ledgers.events()
    straight = fold("digits", rows)
    assert fold("digits", with_samples(rows)).trials == straight.trials
