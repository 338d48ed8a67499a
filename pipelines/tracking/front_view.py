"""MLflow's runs table opened as the front: filtered, sorted by cost, with the columns that matter.

MLflow keeps a shared view as a tag of the experiment, and opens it by the tag's name in the
address. Sorted by a metric the table is flat, so that the models stand in it and not their parent.
"""

from __future__ import annotations

import base64
import json
import zlib

VIEW_TAG = "mlflow.sharedViewState.front"

_STATE = {
    "searchFilter": "tags.pareto = 'true'",
    "orderByKey": "metrics.`gmacs`",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": [
        "params.`width`",
        "metrics.`gmacs`",
        "metrics.`top1_minival`",
        "metrics.`top1_val`",
        "metrics.`latency_ms_b1`",
    ],
}


def front_view() -> str:
    """The tag's value, packed as MLflow's pages do it."""
    packed = zlib.compress(json.dumps(_STATE).encode())
    return "deflate;" + base64.b64encode(packed).decode()


def front_view_url(base: str, experiment_id: str) -> str:
    """Address of the view on an MLflow server at `base`."""
    page = f"{base}/#/experiments/{experiment_id}/runs"
    return f"{page}?workflowType=machine_learning&viewStateShareKey=front"
