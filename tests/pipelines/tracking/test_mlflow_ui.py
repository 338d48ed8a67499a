"""`tokenpool ui` and MLflow's own pages in a real browser.

Set TOKENPOOL_SCREENSHOTS to a folder to keep pictures, and TOKENPOOL_BROWSE to a storage folder
to browse the search `digits` in it instead of the made-up one.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chromium
import ledgers
import pytest

from pipelines.results.front import build_front
from pipelines.search.state import load_state
from pipelines.storage.search_files import Search
from pipelines.tracking.mlflow_server import check_port

FILTER = "tags.pareto = 'true'"
TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
# MLflow asks who is logged in, also where nobody can be.
NOT_OURS = "/ajax-api/2.0/mlflow/users/current"


def keep(page: chromium.Page, name: str) -> None:
    folder = os.environ.get("TOKENPOOL_SCREENSHOTS")
    if folder:
        time.sleep(2.0)  # for the pictures only: fonts and fades
        page.screenshot(Path(folder) / f"{name}.png")


@contextmanager
def mlflow_ui(storage: Path) -> Iterator[tuple[str, str, str]]:
    """Runs `tokenpool ui digits`; gives three addresses: its own, the search's, the front's."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [TOKENPOOL, "ui", "digits", "--storage", str(storage), "--port", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first == f"MLflow: http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        address = re.fullmatch(r"  digits: (http://\S+)\n", second)
        assert address is not None, second
        front = re.fullmatch(r" +its front: (http://\S+)\n", process.stdout.readline())
        assert front is not None
        yield f"http://127.0.0.1:{port}", address[1], front[1]
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(30) == 0
        check_port(port)  # nothing of it is left
    finally:
        process.terminate()  # its server goes with it
        process.wait(60)


@pytest.mark.slow  # MLflow's server and its pages take half a minute to come up
@chromium.needed
def test_a_colleague_browses_the_front(folder: Path) -> None:
    storage = Path(os.environ.get("TOKENPOOL_BROWSE", folder))
    if storage == folder:
        ledgers.write_ledger(folder, "digits", ledgers.events_with_seeds())
    front = build_front(load_state(Search(storage, "digits")))
    rows = sum(sum(t.is_finished for t in point.trainings) for point in front.on_front)
    assert front.knee is not None
    knee = f"{front.knee.point_id} (knee)"
    with mlflow_ui(storage) as (base, parent, table), chromium.browse(folder / "profile") as page:
        page.size(1400, 620)
        page.open(base)
        # The panel of MLflow's assistant would hide half of every page.
        for key, value in (("panelOpen_v1", "false"), ("fab.autoOpenedOnFirstLoad_v1", "true")):
            page.evaluate(f"localStorage.setItem('mlflow.assistant.{key}', '{value}')")
        # The runs table: the models on the front, each of their seeds, cheapest first.
        page.open(table)
        page.wait(f"document.body.innerText.includes('{rows} matching runs')")
        assert page.evaluate(f"document.body.innerText.includes({FILTER!r})") or page.evaluate(
            f"[...document.querySelectorAll('input, textarea')].some(e => e.value === {FILTER!r})"
        )
        names = [t.model_id for point in front.on_front for t in point.trainings if t.is_finished]
        for name in names:
            page.wait(f"[...document.querySelectorAll('a')].some(a => a.innerText === {name!r})")
        known = {t.model_id for point in front.points for t in point.trainings}
        links = page.evaluate("[...document.querySelectorAll('a')].map(a => a.innerText)")
        shown = [link for link in links if link in known]
        assert set(shown) == set(names)
        costs = [p.gmacs for name in shown if (p := front.point(name)) is not None]
        assert costs == sorted(costs)
        keep(page, "mlflow-runs")
        # The parent says what was found, and links its children.
        page.size(1400, 1150)
        page.open(parent)
        page.wait(f"document.body.innerText.includes('{len(front.on_front)} of them on the front')")
        page.wait(f"document.body.innerText.includes('{front.on_front[0].point_id}')")
        keep(page, "mlflow-parent")
        # The interactive front works inside MLflow's sandboxed frame.
        page.size(1400, 820)
        said = len(page.console)  # MLflow's own table warns of what it uses
        page.open(parent.replace("?", "/artifacts/front.html?"))
        page.wait("document.querySelector('iframe') !== null")
        enough = f"document.querySelectorAll('#chart .point').length > {len(front.on_front)}"
        frame = page.wait_frame(enough)
        assert frame("document.getElementById('model-name').innerText") == knee
        last = front.on_front[-1]
        hover_and_click(page, frame, last.point_id)
        assert frame("document.getElementById('model-name').innerText") == last.point_id
        assert frame("document.getElementById('better').disabled") is True
        frame("document.getElementById('cheaper').click()")
        before = front.on_front[-2].point_id
        shown = frame("document.getElementById('model-name').innerText")
        assert shown.removesuffix(" (knee)") == before
        keep(page, "mlflow-front")
        assert [line for line in page.console[said:] if NOT_OURS not in line] == []
        outside = [u for u in page.requests if not u.startswith((base, "data:", "blob:"))]
        assert outside == []


def hover_and_click(page: chromium.Page, frame: Callable[[str], Any], point_id: str) -> None:
    """Moves the mouse to a point inside the frame, sees it shown, leaves, comes back, clicks."""
    frame("document.getElementById('chart').scrollIntoView()")
    inside = frame(chromium.place_of(point_id))
    corner = page.evaluate(
        "(() => { const b = document.querySelector('iframe').getBoundingClientRect();"
        " return [b.left, b.top]; })()"
    )
    x, y = corner[0] + inside[0], corner[1] + inside[1]

    def shows(name: str) -> None:
        deadline = time.monotonic() + 10
        while name not in frame("document.getElementById('model-name').innerText"):
            assert time.monotonic() < deadline, f"{name} is not shown"
            time.sleep(0.1)

    page.mouse("mouseMoved", x, y)
    shows(point_id)
    page.mouse("mouseMoved", x - 5, y + 150)
    shows("(knee)")
    page.click(x, y)
    shows(point_id)
    chosen = frame("document.querySelector('tr.chosen').dataset.id")
    assert chosen == point_id
