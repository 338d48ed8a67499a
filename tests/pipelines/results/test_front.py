"""The front's rows, checked against a search small enough to do by hand."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import ledgers
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipelines.errors import UserError
from pipelines.results.front import build_front, history
from pipelines.results.result_files import to_csv, to_json, write_parquet
from pipelines.results.table import compact_schedule, front_table
from pipelines.search.state import SearchState, fold
from pipelines.storage.durable import write_text


def test_the_front_by_hand(state: SearchState) -> None:
    front = build_front(state)
    assert [point.point_id for point in front.on_front] == ledgers.FRONT
    assert len(front.points) == len(ledgers.TRIALS) + len(ledgers.BASES)
    assert [point.gmacs for point in front.points] == sorted(p.gmacs for p in front.points)


def test_a_point_carries_what_people_ask_for(state: SearchState) -> None:
    front = build_front(state)
    point = front.point("t001")
    assert point is not None
    assert point.schedule_text == "48,40,32,24,16,8"
    assert point.dense_share == pytest.approx(0.030 / 0.046)
    assert (point.top1_minival, point.top1_val, point.epochs) == (0.965, 0.961, 3)
    dense = front.point("dense-96")
    assert dense is not None
    assert dense.schedule == (64,) * 6
    assert dense.dense_share == 1.0


def test_hypervolume_by_hand(state: SearchState) -> None:
    # Steps between neighbouring costs, each as high above chance 0.1 as the best so far.
    steps = [(0.008, 0.80), (0.014, 0.92), (0.021, 0.93), (0.022, 0.955), (0.030, 0.965)]
    ends = [cost for cost, _ in steps[1:]] + [0.046]
    area = sum((end - cost) * (top1 - 0.1) for (cost, top1), end in zip(steps, ends, strict=True))
    assert build_front(state).hypervolume == pytest.approx(area / (0.046 * 0.9))


def test_unfinished_trials_are_not_on_the_front(state: SearchState) -> None:
    # Cheapest of all at its last report, but only half trained.
    trial = state.trials["t005"]
    trial.candidate = replace(trial.candidate, gmacs=0.001)
    assert "t005" not in {point.point_id for point in build_front(state).on_front}


def test_the_knee_is_on_the_front_and_only_one(state: SearchState) -> None:
    front = build_front(state)
    assert front.knee is not None
    # Scaled to 0..1 from t004 to dense-96, t003 is highest above the diagonal.
    assert front.knee.point_id == "t003"
    assert sum(point.is_knee for point in front.points) == 1


def test_a_search_that_has_only_begun() -> None:
    state = fold("new", ledgers.events("new")[:1])
    front = build_front(state)
    assert front.on_front == ()
    assert front.knee is None
    assert front.hypervolume == 0.0
    assert build_front(SearchState("nothing")).points == ()


def test_history_never_falls_and_ends_at_the_front(state: SearchState) -> None:
    steps = history("digits", ledgers.events())
    volumes = [step.hypervolume for step in steps]
    assert len(steps) == 2 + 5
    assert volumes == sorted(volumes)
    assert volumes[-1] == build_front(state).hypervolume
    assert [s.device_seconds for s in steps] == sorted(s.device_seconds for s in steps)


def test_csv_json_and_parquet_say_the_same(state: SearchState, tmp_path: Path) -> None:
    front = build_front(state)
    from_csv = list(csv.DictReader(io.StringIO(to_csv(front.points))))
    from_json = json.loads(to_json(front, front.points))["points"]
    write_parquet(front.points, tmp_path / "results.parquet")
    from_parquet = pq.read_table(tmp_path / "results.parquet").to_pylist()
    for text, plain, typed, point in zip(
        from_csv, from_json, from_parquet, front.points, strict=True
    ):
        assert text["id"] == plain["id"] == typed["id"] == point.point_id
        assert float(text["gmacs"]) == plain["gmacs"] == typed["gmacs"] == point.gmacs
        assert text["top1_val"] == ("" if point.top1_val is None else str(point.top1_val))
        assert typed["tokens"] == list(point.schedule)


def test_an_unwritable_target_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*choose another target") as caught:
        write_text(tmp_path / "file" / "front.csv", "x")
    assert caught.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_table_shows_every_front_point(state: SearchState) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(front_table(build_front(state)))
    text = console.export_text()
    for name in ledgers.FRONT:
        assert name in text
    assert "t005" not in text
    assert "6 of 7 finished models are on the front" in text
    assert "★ knee" in text
    assert "96.50" in text
    assert "96.10" in text


def test_compact_schedule() -> None:
    assert compact_schedule((64, 64, 48, 32, 32, 32)) == "64×2 48 32×3"
    assert compact_schedule(()) == ""
