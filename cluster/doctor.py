"""What `tokenpool doctor` finds, and its checks of the machine a search is to run on."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path

_MIN_DISK_GB = 5.0
_MIN_SHM_GB = 1.0
_C_COMPILERS = ("cc", "gcc", "clang")  # in the order pipelines.data.compiled looks for them
# Distribution → what must import for it to be of use.
_PACKAGES = {
    "torch": "torch",
    "timm": "timm",
    "ray": "ray.train.torch, ray.tune",
    "deepspeed": "deepspeed",
    "ffcv": "ffcv._libffcv",
    "mlflow": "mlflow",
    "pyarrow": "pyarrow",
    "moocore": "moocore",
}
_SHOWN = 4


@dataclass(frozen=True)
class Check:
    """One finding; `remedy` is empty when all is well.

    Attributes:
        is_door: Whether it says that something stands open to the network, which may be meant.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    is_door: bool = False


def some(names: list[str]) -> str:
    """The first few of some names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def run_checks(storage: Path, *, ui_port: int) -> list[Check]:
    """All checks, in the order a person would go through them."""
    return [
        check_python(),
        *(check_package(name, module) for name, module in _PACKAGES.items()),
        check_jpeg_decoder(),
        check_gpu(),
        check_disk(storage),
        check_shared_memory(),
        check_port("tokenpool ui", ui_port, "use `tokenpool ui --port` with a free one"),
    ]


def check_python() -> Check:
    """The interpreter; an older one than 3.11 could not have installed the package."""
    return Check("python", "ok", ".".join(map(str, sys.version_info[:3])))


def check_package(name: str, modules: str) -> Check:
    """Whether a package is there and imports, in a process of its own."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", "run `make install`")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    # FFCV's native library needs torch's own to be loaded first.
    code = f"import torch\nimport {modules}" if name == "ffcv" else f"import {modules}"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        return Check(name, "fail", lines[-1] if lines else "import failed", "run `make install`")
    return Check(name, "ok", version)


def check_jpeg_decoder() -> Check:
    """Whether the fast loader's decoder can be built here, by building one line against libjpeg.

    Nothing else compiles: training and its models need no compiler. Without it `loader: auto`
    goes on with torchvision, at about a third of the speed; `loader: ffcv` fails.
    """
    name = "JPEG decoder"
    slower = "images are decoded by torchvision, about 3 times slower, and `loader: ffcv` fails"
    native = user_cache_path("tokenpool") / "native"
    if any(native.glob("decode_rows-*.so")):
        return Check(name, "ok", f"built, kept in {native}")
    found = next(filter(None, map(shutil.which, _C_COMPILERS)), None)
    if found is None:
        return Check(
            name, "warn", f"no C compiler ({', '.join(_C_COMPILERS)}): {slower}",
            "install gcc (`make install` does)",
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tokenpool-doctor-") as folder:
        result = subprocess.run(
            [found, "-x", "c", "-", "-o", str(Path(folder, "probe")), "-ljpeg", "-lm"],
            input="#include <stdio.h>\n#include <jpeglib.h>\nint main(void) { struct "
            "jpeg_error_mgr e; return jpeg_std_error(&e) == 0; }\n",
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        return Check(
            name, "warn", f"{found} finds no libjpeg or its headers: {slower}",
            "install libjpeg-dev (`make install` does)",
        )  # fmt: skip
    return Check(name, "ok", f"{found} and libjpeg: builds here, once per kind of machine")


def check_gpu() -> Check:
    """GPUs by their driver's own tool; none is no fault."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", "ok", "none: everything runs on the CPU")
    result = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    if result.returncode:
        return Check("gpu", "warn", "nvidia-smi fails", "check the NVIDIA driver")
    names = [line.split(":", 1)[1].split("(")[0].strip() for line in result.stdout.splitlines()]
    return Check("gpu", "ok", f"{len(names)} × {names[0]}" if names else "none")


def check_disk(storage: Path) -> Check:
    """Room where checkpoints and betons go."""
    existing = next(p for p in [storage.absolute(), *storage.absolute().parents] if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < _MIN_DISK_GB:
        return Check("disk", "warn", f"{free:.1f} GB free at {existing}", "make room")
    return Check("disk", "ok", f"{free:.0f} GB free at {existing}")


def check_shared_memory() -> Check:
    """Ray's object store and DeepSpeed's reductions live in /dev/shm."""
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("shared memory", "warn", "no /dev/shm", "Ray falls back to slow files")
    free = shutil.disk_usage(shm).free / 1e9
    if free < _MIN_SHM_GB:
        return Check(
            "shared memory", "warn", f"{free:.1f} GB free", "in Docker, start with --shm-size=4g"
        )
    return Check("shared memory", "ok", f"{free:.1f} GB free")


def check_port(what: str, port: int, remedy: str) -> Check:
    """Whether something listens on a port of loopback.

    Args:
        what: what wants to listen there.
        port: the port.
        remedy: what to do where it is in use.
    """
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return Check(what, "warn", f"port {port} is in use", remedy)
    return Check(what, "ok", f"port {port} is free")
