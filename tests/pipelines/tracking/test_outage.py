"""An MLflow server that goes away in mid-search, or is in trouble, and comes back."""

import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import ledgers
import pytest
from mlflow import MlflowClient
from test_mlflow_errors import answering

from pipelines.search.ledger import Ledger
from pipelines.storage.search_files import Search
from pipelines.tracking.mlflow_server import start_server, stop_server
from pipelines.tracking.mlflow_tracker import MlflowTracker
from pipelines.tracking.tracking_store import TrackingStore, tracking_store

OUTAGE_SECONDS = float(os.environ.get("TOKENPOOL_OUTAGE_SECONDS", "15"))


@pytest.mark.slow  # starts MLflow's server twice and waits while it is away
@pytest.mark.fault("MLflow's server away, or answering 500")
@pytest.mark.parametrize("answers", [None, 500])
def test_what_happened_meanwhile_appears_once_in_order(folder: Path, answers, told, caplog) -> None:
    local = tracking_store(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    remote = TrackingStore(f"http://127.0.0.1:{port}")
    rows = ledgers.events()
    third = len(rows) // 3
    appends: list[float] = []
    server = start_server(local, port, folder / "server.log")
    try:
        search = Search(folder, "digits")
        with (
            Ledger(search) as ledger,
            MlflowTracker(search, remote, retry_every=0.5) as tracker,
        ):

            def run(part: list[dict], pause: float) -> None:
                for row in part:
                    start = time.perf_counter()
                    fields = {k: v for k, v in row.items() if k not in ("event", "time")}
                    ledger.append(row["event"], **fields)
                    tracker.notify()
                    appends.append(time.perf_counter() - start)
                    time.sleep(pause)

            run(rows[:third], 0.1)
            deadline = time.monotonic() + 60
            while not reported(remote) and time.monotonic() < deadline:
                time.sleep(0.5)
            before = reported(remote)
            assert before
            stop_server(server)
            with answering(answers, b"in trouble", port) if answers else nullcontext():
                seconds = min(OUTAGE_SECONDS, 60) if answers else OUTAGE_SECONDS
                run(rows[third : 2 * third], seconds / third)
            begun = time.monotonic()
            server = start_server(local, port, folder / "server.log")
            run(rows[2 * third :], 0.1)
        seconds = time.monotonic() - begun  # until all is there
        # Appending an event is one fsync, and no slower for the server being away.
        assert sorted(appends)[len(appends) // 2] < 0.1
        for point, losses in reported(remote).items():
            expected = [r["report"]["loss"] for r in rows if is_report(r, point)]
            assert [value for _, value in losses] == expected
            assert [step for step, _ in losses] == list(range(1, len(expected) + 1))
        assert len(reported(remote)) == len(ledgers.BASES) + len(ledgers.TRIALS)
        # It was noticed and told, in a line or two and in no library's words.
        lines = [line for line in caplog.messages if "MLflow" in line]
        assert 1 <= len(lines) <= 3 and "Traceback" not in caplog.text, caplog.text
        told("MLflow's server away, or answering 500", 0, seconds=seconds)
    finally:
        stop_server(server)


def is_report(row: dict, point: str) -> bool:
    owner = row.get("trial_id") or f"dense-{row.get('width')}"
    return row["event"] in ("trial_report", "base_report") and owner == point


def reported(store: TrackingStore) -> dict[str, list[tuple[int, float]]]:
    """Point → (step, loss) as MLflow has them."""
    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.get_experiment_by_name("digits")
    if experiment is None:
        return {}
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        point = run.data.tags.get("tokenpool.point")
        if point:
            assert point not in found
            history = client.get_metric_history(run.info.run_id, "loss")
            found[point] = [(metric.step, metric.value) for metric in history]
    return found
