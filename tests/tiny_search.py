"""What searches of end-to-end tests have in common: one of everything, as small as can be."""

import sys
from pathlib import Path

TOKENPOOL = str(Path(sys.executable).parent / "tokenpool")
ONE_WORKER = {"num_workers": 1, "cpus_per_worker": 0.9}
LEARNS = {"batch_size": 32, "lr": 0.001, "warmup_epochs": 0.5}
TINY = {
    "name": "tiny",
    "storage": "runs",
    "data": {"path": "data/digits", "image_size": 32},
    "model": {"patch_size": 8, "depth": 2},
    "space": {"widths": [{"width": 16, "heads": 2}]},
    "base": {"workers": ONE_WORKER, "train": LEARNS | {"epochs": 3, "lr": 0.003}},
    "calibrate": {"enabled": False},
    "screen": {"schedules": 12, "generations": 1, "actors": 1, "cpus_per_actor": 0.9},
}
