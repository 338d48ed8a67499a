"""MLflow's own pages in a real browser. Set TOKENPOOL_SCREENSHOTS to a folder to keep pictures."""

import os
import socket
import time
from pathlib import Path
from urllib.parse import quote

import chromium
import ledgers
import pytest

from pipelines.track.mirror import LedgerMirror
from pipelines.track.server import start_server, stop_server
from pipelines.track.store import tracking_store

FILTER = "tags.pareto = 'true'"


def keep(page: chromium.Page, name: str) -> None:
    folder = os.environ.get("TOKENPOOL_SCREENSHOTS")
    if folder:
        time.sleep(2.0)  # for the pictures only: fonts and fades
        page.screenshot(Path(folder) / f"{name}.png")


@pytest.mark.slow  # MLflow's server and its pages take half a minute to come up
@pytest.mark.skipif(chromium.EXECUTABLE is None, reason="needs Chromium: apt-get install chromium")
def test_a_colleague_browses_the_front(folder: Path) -> None:
    directory = ledgers.write_ledger(folder, "digits", ledgers.events()).parent
    store = tracking_store(folder)
    mirror = LedgerMirror(directory, store)
    mirror.read()
    mirror.send()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = f"http://127.0.0.1:{port}"
    parent = mirror.parent_url(base)
    assert parent is not None
    experiment = parent.split("/runs/")[0]
    server = start_server(store, port, folder / "server.log")
    try:
        with chromium.browse(folder / "profile") as page:
            page.size(1400, 1000)
            # The runs table under the filter: six models on the front and their parent.
            page.open(
                f"{experiment}/runs?workflowType=machine_learning&searchFilter={quote(FILTER)}"
            )
            page.wait(f"document.body.innerText.includes('{len(ledgers.FRONT) + 1} matching runs')")
            keep(page, "mlflow-runs")
            # The parent says what was found, and links its children.
            page.open(parent)
            page.wait("document.body.innerText.includes('6 of them on the front')")
            page.wait("document.body.innerText.includes('t007')")
            keep(page, "mlflow-parent")
            # The interactive front works inside MLflow's sandboxed frame.
            page.open(str(mirror.parent_url(base, "artifacts/front.html")))
            page.wait("document.querySelector('iframe') !== null")
            frame = page.wait_frame("document.querySelectorAll('#chart .point').length > 6")
            assert frame("document.getElementById('model-name').innerText") == "t003 (knee)"
            frame("document.getElementById('better').click()")
            assert frame("document.getElementById('model-name').innerText") == "dense-64"
            keep(page, "mlflow-front")
            outside = [u for u in page.requests if not u.startswith((base, "data:", "blob:"))]
            assert outside == []
    finally:
        stop_server(server)
