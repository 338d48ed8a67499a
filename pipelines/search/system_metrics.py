"""What the machine was doing meanwhile: samples under the names of MLflow's system metrics.

MLflow's own sampler writes to a run from its own thread. Here the samples go into the ledger, so
that only the tracker talks to MLflow, an outage loses none, and a rebuild has them too.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_MEGABYTE = 1e6
_GPU_QUERY = "index,utilization.gpu,memory.used,memory.total,power.draw"


class SystemSampler:
    """Samples this machine from a thread of its own, at once and then in intervals.

        with SystemSampler(lambda metrics: recorder.add("system", metrics=metrics), directory):
            …                      # the search

    Args:
        record: Called with each sample, from the thread.
        disk: A path on the disk whose use is of interest.
        every: Seconds between two samples.
    """

    def __init__(
        self, record: Callable[[dict[str, float]], object], disk: Path, *, every: float = 15.0
    ) -> None:
        self._record, self._disk, self._every = record, disk, every
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)
        self._network = psutil.net_io_counters()

    def __enter__(self) -> SystemSampler:
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        pause = min(1.0, self._every)
        while not self._closing.wait(pause):
            pause = self._every
            try:
                self._record(self.sample())
            except Exception as error:  # figures about the machine must never end a search
                logger.warning("system metrics end here: %s", error)
                return

    def sample(self) -> dict[str, float]:
        """Use of processors, memory, disk, network and GPUs, as MLflow names them."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self._disk))
        network = psutil.net_io_counters()
        found = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / _MEGABYTE,
            "system_memory_usage_percentage": memory.percent,
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGABYTE,
            "disk_available_megabytes": disk.free / _MEGABYTE,
            "network_receive_megabytes": (network.bytes_recv - self._network.bytes_recv)
            / _MEGABYTE,
            "network_transmit_megabytes": (network.bytes_sent - self._network.bytes_sent)
            / _MEGABYTE,
        }
        return {key: round(value, 1) for key, value in (found | gpu_sample()).items()}


def gpu_sample() -> dict[str, float]:
    """Use of each NVIDIA GPU; empty where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_gpus(answer.stdout)


def parse_gpus(text: str) -> dict[str, float]:
    """The lines of `nvidia-smi --query-gpu=… --format=csv,noheader,nounits` as metrics.

    A figure that a GPU does not give (`[N/A]`, `[Not Supported]`) is left out.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        index, *values = (part.strip() for part in line.split(","))
        numbers = [_number(value) for value in values]
        if len(numbers) != 4:
            continue
        used, total = numbers[1], numbers[2]
        share = 100 * used / total if used is not None and total else None
        named = {
            "utilization_percentage": numbers[0],
            "memory_usage_megabytes": used,
            "memory_usage_percentage": share,
            "power_usage_watts": numbers[3],
        }
        found |= {f"gpu_{index}_{key}": v for key, v in named.items() if v is not None}
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
