"""What a data set and a scale mean, and the data themselves where they are to be made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

from benchmarks.quality.config import QualityConfig
from benchmarks.real import downloads
from benchmarks.real.setting import model_for, prepared_set
from pipelines.config_file import load_as
from pipelines.errors import UserError

__all__ = ["load_config"]

REAL = "real"


def load_config(
    data: str,
    scale: str,
    config_file: Path | None,
    overrides: Sequence[str],
    say: Callable[[str], None],
) -> QualityConfig:
    """The preset of a data set at a scale, with its data and models there.

    Args:
        data: glyphs, digits, real, or a prepared folder, which is compared by the recipe of glyphs.
        scale: small or full.
        config_file: in place of the preset.
        overrides: settings, as `key=value`.
        say: told what is made.

    Raises:
        UserError: there is no such preset or folder, or a setting is wrong.
    """
    folder = Path(str(files("tune_spaces") / "presets"))
    own = Path(data) if data not in ("glyphs", "digits", REAL) else None
    if own is not None and not (own / "manifest.json").is_file():
        raise UserError(
            f"--data {data}: neither glyphs, digits, real nor a folder that tokenpool prepare made"
        )
    path = config_file or folder / f"quality-{'glyphs' if own else data}-{scale}.yaml"
    if not path.is_file():
        raise UserError(f"no preset for --data {data} --scale {scale}: give --config FILE")
    given = list(overrides)
    if own is not None:
        own = own.resolve()
        given = [
            f"name={json.dumps(f'{own.name}-{scale}')}",
            f"data.path={json.dumps(str(own))}",
            *given,
        ]
    config = load_as(QualityConfig, path, given)
    if data == REAL and config_file is None:
        cache, size = downloads.cache_dir(), config.data.image_size
        prepared = prepared_set(cache, None, say)
        model = model_for(cache, prepared, size, say)
        where = f"data.path={json.dumps(str(prepared))}", f"models={json.dumps([str(model)])}"
        given = [*where, *given]
        return load_as(QualityConfig, path, given)
    if not (config.data.path / "manifest.json").is_file():
        if config_file is not None or own is not None:
            raise UserError(
                f"data.path {config.data.path} is no folder that tokenpool prepare made"
            )
        _prepare(data, config, say)
    return config


def _prepare(data: str, config: QualityConfig, say: Callable[[str], None]) -> None:
    size = str(config.data.image_size)
    words = ["prepare", data, str(config.data.path), "--size", size]
    if data == "glyphs":
        words += ["--count", "10000", "--num-glyphs", "10", "--clutter", "0.3"]
    say("tokenpool " + " ".join(words))
    if subprocess.run([sys.executable, "-m", "pipelines.cli", *words], check=False).returncode:
        raise UserError("tokenpool prepare failed: see above", exit_code=1)
