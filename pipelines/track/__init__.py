"""What stood here is in `export/` and `tracking/`; whoever imports it by its old name finds it.

The program itself does not.
"""

from __future__ import annotations

import sys

from pipelines.export import export_formats, export_model
from pipelines.tracking import mlflow_server, tracking_store, upkeep

MOVED = {
    "export": export_model,
    "export_formats": export_formats,
    "server": mlflow_server,
    "store": tracking_store,
    "upkeep": upkeep,
}

sys.modules |= {f"{__name__}.{name}": module for name, module in MOVED.items()}
