"""The front's page: what is in it, and how it behaves in a real browser."""

import json
import re
from pathlib import Path

import chromium
import ledgers
import pytest

from pipelines.results.front import build_front, history
from pipelines.results.page import OutsideFront, OutsidePoint, render_page, summary
from pipelines.results.plot import front_figure
from pipelines.results.status import search_status, status_text
from pipelines.results.table import caption
from pipelines.search.state import SearchState
from pipelines.storage.search_files import Search


def render(state: SearchState, **options: object) -> str:
    return render_page(build_front(state), history("digits", ledgers.events()), **options)  # type: ignore[arg-type]


def page_json(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_every_point(state: SearchState) -> None:
    data = page_json(render(state))
    assert [point["id"] for point in data["points"] if point["pareto"]] == ledgers.FRONT
    assert len(data["points"]) == len(ledgers.TRIALS) + len(ledgers.BASES)
    by_id = {point["id"]: point for point in data["points"]}
    assert by_id["t001"]["schedule"] == [48, 40, 32, 24, 16, 8]
    assert by_id["t001"]["command"] == "tokenpool export digits t001 --format timm"
    assert by_id["t007"]["command"] is None
    assert len(data["history"]) == 7


def test_what_a_worker_wrote_cannot_break_out_of_the_page(state: SearchState) -> None:
    state.trials["t007"].reason = "</script><script>alert(1)</script>"
    text = render(state)
    assert "<script>alert" not in text
    by_id = {point["id"]: point for point in page_json(text)["points"]}
    assert by_id["t007"]["reason"] == "</script><script>alert(1)</script>"


def test_the_summary_says_what_pooling_saves(state: SearchState) -> None:
    front = build_front(state)
    assert "Knee: t003 with 92.00 % at 0.014 GMACs, 30 % of the dense model's." in summary(front)
    assert "No pooled model reaches the best dense one, dense-96." in summary(front)
    state.trials["t001"].top1_minival = 0.975
    assert (
        "t001 is as accurate as the best dense model, dense-96, with 35 % fewer GMACs."
        in summary(build_front(state))
    )
    assert summary(build_front(SearchState("new"))) == "No model is finished yet."


def test_points_get_error_bars_where_the_images_are_counted(state: SearchState) -> None:
    data = page_json(render(state, samples={"minival": 100, "val": 400}))
    by_id = {point["id"]: point for point in data["points"]}
    # sqrt(0.8 * 0.2 / 100) and sqrt(0.961 * 0.039 / 400).
    assert by_id["t004"]["minival_error"] == pytest.approx(0.04)
    assert by_id["t001"]["val_error"] == pytest.approx(0.00968, abs=1e-5)
    assert by_id["t004"]["val_error"] is None
    assert "100 on minival, 400 on val" in data["note"]
    assert page_json(render(state))["points"][0]["minival_error"] is None


def test_every_model_says_whether_it_saves_time(state: SearchState) -> None:
    # Of two widths, so that each is held against the dense one of its own.
    state.bases[0].latency_ms = {"1": 2.0, "32": 40.0}
    state.bases[1].latency_ms = {"1": 1.0}
    state.trials["t001"].latency_ms = {"1": 2.5, "32": 32.0}
    state.trials["t003"].latency_ms = {"1": 0.8, "32": 10.0}
    state.trials["t002"].latency_ms = {"1": 2.0}
    data = page_json(render(state))
    said = {point["id"]: point["time_saved"] for point in data["points"]}
    assert said["t001"] == (
        "slower than dense at batch 1 (×0.80), faster than dense at batch 32 (×1.25)"
    )
    assert said["t003"] == "faster than dense at batch 1 (×1.25)"
    assert said["t002"] == "as fast as dense at batch 1 (×1.00)"
    assert said["dense-96"] == said["dense-64"] == said["t004"] == ""
    slower = "Slower than the dense model of their width at batch 1: t001."
    assert slower in data["summary"]
    assert slower in caption(build_front(state))
    assert slower in status_text(search_status(state, Search(Path("nowhere"), "digits")))
    assert build_front(state).point("t001").as_dict()["times_dense_b1"] == 0.8
    state.trials["t001"].latency_ms = {"1": 1.9}
    assert "Slower" not in summary(build_front(state)) + caption(build_front(state))


def test_the_picture_is_written(state: SearchState, tmp_path: Path) -> None:
    for name, shown in (("full", state), ("empty", SearchState("new"))):
        front_figure(build_front(shown)).savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.png", "full.png"]


@chromium.needed
def test_the_page_in_a_browser(state: SearchState, tmp_path: Path) -> None:
    path = tmp_path / "front.html"
    published = OutsideFront("DeiT <b>paper</b>", (OutsidePoint("DeiT-Ti", 0.02, 0.91),))
    state.trials["t001"].latency_ms, state.bases[0].latency_ms = {"1": 3.0}, {"1": 2.0}
    path.write_text(render(state, others=[published]), encoding="utf-8")
    with chromium.browse(tmp_path / "profile") as page:
        page.size(1280, 900)
        page.open(path.as_uri())
        page.wait("document.querySelectorAll('#chart .point').length > 6")
        # It begins at the knee.
        assert page.text("#model-name") == "t003 (knee)"
        assert page.text("#command") == "tokenpool export digits t003 --format timm"
        counts = page.evaluate("[...document.querySelectorAll('#bars li')].map(x => x.innerText)")
        assert [int(count.split()[-1]) for count in counts] == [48, 40, 32, 24, 16, 8]

        # Keys walk along the front.
        page.key("ArrowRight")
        assert page.text("#model-name") == "dense-64"
        page.key("ArrowLeft")
        page.key("ArrowLeft")
        assert page.text("#model-name") == "t004"
        assert page.evaluate("document.getElementById('cheaper').disabled") is True

        # Hovering shows, leaving shows the chosen again, clicking chooses.
        x, y = page.evaluate(chromium.place_of("t001"))
        page.mouse("mouseMoved", x, y)
        page.wait("document.getElementById('model-name').innerText === 't001'")
        page.mouse("mouseMoved", 5, 5)
        page.wait("document.getElementById('model-name').innerText === 't004'")
        page.click(x, y)
        page.wait("document.querySelector('tr.chosen')?.dataset.id === 't001'")

        # The switch for dominated points, and another cost axis.
        assert "t006" in drawn(page)
        page.evaluate("document.getElementById('dominated').click()")
        assert "t006" not in drawn(page)
        page.evaluate(
            "(() => { const s = document.getElementById('cost'); s.value = 'latency_1';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        assert drawn(page) == {"t001", "dense-96"}
        time = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('#rows tr')]"
            ".map(row => [row.dataset.id, row.lastChild.innerText]))"
        )
        assert page.text("#head th:last-child").lower() == "time against dense"
        assert time["t001"] == "slower than dense at batch 1 (×0.67)"
        assert time["t003"] == time["dense-96"] == "–"
        assert page.evaluate("document.querySelectorAll('#chart b').length") == 0

        # On a phone nothing is wider than the screen.
        page.size(390, 800, phone=True)
        page.wait("document.documentElement.scrollWidth <= 390")
        assert page.console == []
        outside = [u for u in page.requests if not u.startswith((path.as_uri(), "data:", "blob:"))]
        assert outside == []


@chromium.needed
def test_a_page_without_models_says_so(tmp_path: Path) -> None:
    path = tmp_path / "front.html"
    path.write_text(render_page(build_front(SearchState("new"))), encoding="utf-8")
    with chromium.browse(tmp_path / "profile") as page:
        page.open(path.as_uri())
        assert page.text("#chart") == "No finished model yet."
        assert page.console == []


def drawn(page: chromium.Page) -> set[str]:
    """Ids of the points in the chart."""
    return set(
        page.evaluate("document.getElementById('chart').data.flatMap(t => t.customdata || [])")
    )
