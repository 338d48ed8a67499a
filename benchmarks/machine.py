"""What a measurement was made on: the machine, the versions, the date, the command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch


def hardware(device: str) -> dict[str, Any]:
    """What a measurement has to name: machine, versions, date, command."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
        name = models[0] if models else platform.processor()
        name = f"{name}, {torch.get_num_threads()} threads"
    return {
        "hardware": name,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command_line(),
    }


def machine_facts(cores: int) -> dict[str, Any]:
    """What the figures were measured on, with which versions and when."""
    facts = dict(hardware("cpu"))
    facts["hardware"] = f"{facts['hardware'].rsplit(',', 1)[0]}, {cores} of {os.cpu_count()} cores"
    for package in ("torchvision", "timm", "ffcv", "pillow", "numba", "numpy"):
        facts[package] = version(package)
    return facts


def command_line() -> str:
    """How this process was started, as one would type it."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    if module is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", module.name.removesuffix(".__main__"), *sys.argv[1:]])
