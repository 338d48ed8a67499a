"""A user's night on real pictures, from a pretrained ViT to a file for ONNX Runtime.

    python -m benchmarks.story [--folder runs/story] [--image-size 112] [--out FILE]

Weights and pictures are fetched, prepared, squeezed, searched with fine-tuning, and the knee is
exported; each step is the command a user would type. Typed again, it goes on where it was. What it
took and what came out is one JSON file.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import tokenpool as tp
from benchmarks.machine import hardware
from benchmarks.real import downloads
from benchmarks.real.setting import model_for, prepared_set
from pipelines.errors import UserError
from pipelines.search.state import load_state
from pipelines.storage.durable import write_text
from pipelines.storage.search_files import Search

__all__ = ["Night"]

_NAME = "pretrained"


class Night:
    """The steps, each with its time and what it printed, kept beside the work.

    Args:
        folder: where everything is kept but what was fetched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._notes = folder / "steps.json"
        self.steps: dict[str, Any] = (
            json.loads(self._notes.read_text()) if self._notes.exists() else {}
        )

    def step(self, name: str, *words: str, out: Path | None = None) -> Any:
        """Runs `tokenpool WORDS`, unless it was done; gives back what it printed as JSON.

        Args:
            name: of the step.
            words: of the command.
            out: a folder that it makes; what a kill left there is removed.

        Raises:
            UserError: it failed, or was done with other settings.
        """
        text = shlex.join(["tokenpool", *words])
        known = self.steps.get(name)
        if known is not None:
            if known["command"] != text:
                raise UserError(f"{self.folder} holds {known['command']}: give another --folder")
            return known["found"]
        if out is not None:
            shutil.rmtree(out, ignore_errors=True)
        print(f"\n$ {text}", file=sys.stderr, flush=True)
        begin = time.monotonic()
        as_json = "--json" in words
        ran = subprocess.run(
            [sys.executable, "-m", "pipelines.cli", *words],
            stdout=subprocess.PIPE if as_json else sys.stderr,
            text=True,
            check=False,
        )
        if ran.returncode:
            raise UserError(f"{text} failed: see above", exit_code=ran.returncode)
        found = json.loads(ran.stdout) if as_json else None
        self.keep(name, text, time.monotonic() - begin, found)
        return found

    def keep(self, name: str, command: str, seconds: float, found: Any) -> None:
        """Notes that a step is done."""
        self.steps[name] = {"command": command, "seconds": round(seconds, 1), "found": found}
        write_text(self._notes, json.dumps(self.steps, indent=1) + "\n")


def run(night: Night, image_size: int, settings: Sequence[str], say: Any) -> None:
    """All steps.

    Args:
        night: keeps them.
        image_size: side of the pictures, a multiple of 14.
        settings: of the search, as `key=value`.
        say: told what is fetched and made.
    """
    cache = downloads.cache_dir()
    data = prepared_set(cache, None, say)
    model = model_for(cache, data, image_size, say)
    storage = str(night.folder)
    for rate in ("0.6", "0.4"):
        out = str(night.folder / f"squeezed-{rate}")
        words = ["squeeze", str(model), str(data), "--rate", rate, "--images", "256"]
        night.step(f"squeeze {rate}", *words, "--out", out, "--json", out=Path(out))
    preset = str(files("tune_spaces") / "presets" / "pretrained.yaml")
    given = [
        f"name={_NAME}",
        f"storage={storage}",
        f"data.path={data}",
        f"data.image_size={image_size}",
        f"space.max_gmacs={0.98 * tp.macs(tp.load(model)).total / 1e9:.4g}",
        "space.widths="
        + json.dumps(
            [{"width": 384, "heads": 6, "checkpoint": str(model)}, {"width": 192, "heads": 3}]
        ),
        *settings,
    ]
    words = [word for setting in given for word in ("--set", setting)]
    _search(night, preset, words)
    night.step("front", "front", _NAME, "--all", "--json", "--storage", storage)
    knee = night.step("pick", "pick", _NAME, "--knee", "--json", "--storage", storage)
    out = str(night.folder / "knee-onnx")
    words = ["export", _NAME, str(knee["id"]), "--format", "onnx", "--out", out]
    night.step("export", *words, "--storage", storage, "--json", out=Path(out))


def _search(night: Night, preset: str, words: Sequence[str]) -> None:
    """The search, to its end: it knows by itself what is done, and what it took.

    Raises:
        UserError: it failed, or ended before all was done.
    """
    night.steps.pop("search", None)
    night.step("search", "search", preset, *words)
    state = load_state(Search.open(night.folder, _NAME))
    if not state.complete:
        raise UserError(f"the search has ended before all was done ({state.ended}): type it again")
    night.keep("search", night.steps["search"]["command"], state.seconds_at_work(), None)


def main() -> None:
    """Goes through the night, and stores what it came to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/story"))
    parser.add_argument("--image-size", type=int, default=112, help="a multiple of 14")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="a setting of the search"
    )
    parser.add_argument("--out", type=Path, help="where to store what it came to")
    asked = parser.parse_args()
    night = Night(asked.folder.resolve())

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        run(night, asked.image_size, asked.settings, say)
    except UserError as error:
        sys.stderr.write(f"benchmarks.story: {error}\n")
        sys.exit(error.exit_code)
    found = {**hardware("cpu"), "steps": night.steps}
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
