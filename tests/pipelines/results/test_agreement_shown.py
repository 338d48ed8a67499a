"""What a search with supernets leaves in MLflow's terms and on the page."""

from ledgers import events

from pipelines.results.front import build_front
from pipelines.results.page import summary
from pipelines.results.status import search_status, status_text
from pipelines.search.state import fold
from pipelines.storage.search_files import Search
from pipelines.tracking.projection import PARENT, Projection


def rows(trusted=True):
    found = events()
    at = next(i for i, row in enumerate(found) if row.get("stage") == "screen") + 1
    report = {
        "epoch": 1, "loss": 0.5, "top1_minival": 0.96, "top1_minival_pooled": 0.94,
        "device_seconds": 40.0,
    }  # fmt: skip
    found[at:at] = [
        {"event": "supernet_report", "width": 96, "report": report},
        {"event": "supernet_done", "width": 96, "checkpoint": "/nowhere/s", "top1_minival": 0.96},
        {"event": "supernet_report", "width": 64, "report": report | {"top1_minival": 0.2}},
        {"event": "supernet_failed", "width": 64, "reason": "worker died"},
        {"event": "stage_done", "stage": "supernet"},
        {
            "event": "screened",
            "weights": "supernet",
            "rows": [[96, [40] * 6, 0.03, 0.95, 0.2, "wkmedoids", None]],
        },
        {"event": "stage_done", "stage": "rescreen"},
    ]
    end = next(i for i, row in enumerate(found) if row.get("stage") == "finals")
    told = {"weights": "supernet", "tau": 0.4, "pairs": 12, "bins": 2, "trusted": trusted}
    # Asked again when all finals are over, it is not decided anew.
    found[end:end] = [
        {"event": "agreement", **told},
        {"event": "agreement", **told, "tau": 0.7, "trusted": True},
    ]
    for seconds, row in enumerate(found):
        row["time"] = 1_700_000_000.0 + seconds
    return found


def test_supernets_are_runs_but_no_points_and_their_cost_counts():
    projection = Projection("digits")
    for row in rows():
        projection.apply(row)
    changes = projection.take()
    assert {"supernet-96", "supernet-64", "dense-96", "t001", PARENT} <= changes.keys()
    run = changes["supernet-96"]
    assert run.status == "FINISHED" and run.tags["tokenpool.kind"] == "supernet"
    assert {m.key: m.value for m in run.metrics}["top1_minival_pooled"] == 0.94
    assert changes["supernet-64"].status == "FAILED"
    front = build_front(projection.state)
    assert not any("supernet" in point.point_id for point in front.points)
    without = fold("digits", events())
    assert projection.state.device_seconds == without.device_seconds + 80.0
    assert [row.candidate.width for row in projection.state.rescreened] == [96]
    assert len(projection.state.screened) == len(without.screened)
    assert projection.state.weights(96) == "/nowhere/s"
    assert projection.state.weights(96, "base") == "/nowhere/base-96"
    assert projection.state.weights(64) == "/nowhere/base-64"  # its supernet failed


def test_how_screening_agreed_is_a_metric_of_the_search_and_a_sentence_on_its_page():
    projection = Projection("digits")
    for row in rows(trusted=False):
        projection.apply(row)
    parent = projection.take()[PARENT]
    values = [m.value for m in parent.metrics if m.key == "kendall_tau_supernet"]
    assert values == [0.4, 0.7]
    assert parent.tags["screening_trusted.supernet"] == "false"
    text = summary(build_front(projection.state))
    assert (
        "the supernets' weights and the finals, within slices of the cost: 0.70 (12 pairs" in text
    )
    assert "Kendall" not in summary(build_front(fold("digits", events())))


def test_status_tells_of_them(tmp_path):
    found = rows()
    cut = next(i for i, row in enumerate(found) if row["event"] == "supernet_done")
    found[0]["config"]["supernet"] = {"enabled": True, "train": {"epochs": 3, "warmup_epochs": 1}}
    state = fold("digits", found[:cut])
    text = status_text(search_status(state, Search(tmp_path, "digits")))
    assert "supernet-96: epoch 1 of 3, top-1 on minival 96" in text
    text = status_text(search_status(fold("digits", found), Search(tmp_path, "digits")))
    assert "2 schedules screened, 1 again with supernets" in text
    assert "within slices of the cost: 0.70 (12 pairs, 2 slices)" in text


def test_a_search_without_supernets_has_none_trained():
    state = fold("digits", rows()[:1])
    assert [net.status for net in state.supernets] == ["pending"] * len(state.bases) != []
    assert not state.rescreened and not state.agreement
