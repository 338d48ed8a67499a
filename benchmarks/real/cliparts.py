"""Open Clip Art as an image folder that `tokenpool prepare` reads: topics with enough pictures."""

from __future__ import annotations

import warnings
from collections import defaultdict
from pathlib import Path

from PIL import Image

from pipelines.storage.durable import made_aside
from pipelines.storage.hashes import file_hash

__all__ = ["make_folder"]

_HEAPS = {"unsorted", "special", "logos"}  # folders whose names say nothing of what is in them
_LEAST, _MOST = 25, 160  # pictures of a class
_EVERY_VAL = 4
# Larger than any side the models see: 224 of 256, as is the habit.
_SHORT_SIDE = 256


def make_folder(source: Path, target: Path) -> dict[str, int]:
    """Writes `train/CLASS/*.png` and `val/CLASS/*.png`; a class is a folder of a folder.

    Pictures seen before (by their bytes) and those that Pillow takes for decompression bombs are
    left out, transparent ones are laid on white, and all are shrunk to a shorter side of 256.

    Returns:
        How many pictures were written, and how many left out for which reason.
    """
    classes: dict[str, list[Path]] = defaultdict(list)
    seen: set[str] = set()
    counts = {"written": 0, "duplicates": 0, "too large": 0}
    for path in sorted(source.rglob("*.png")):
        parts = path.relative_to(source).parts
        if len(parts) < 3 or parts[0] in _HEAPS:
            continue
        digest = file_hash(path)
        if digest in seen:
            counts["duplicates"] += 1
            continue
        seen.add(digest)
        classes["-".join(parts[:2])].append(path)
    with made_aside(target) as aside:
        for name, paths in sorted(classes.items()):
            if len(paths) < _LEAST:
                continue
            chosen = paths[:: max(1, len(paths) // _MOST)][:_MOST]
            for index, path in enumerate(chosen):
                split = "val" if index % _EVERY_VAL == 1 else "train"
                out = aside / split / name / f"{index:04d}.png"
                written = _flatten(path, out)
                counts["written" if written else "too large"] += 1
    return counts


def _flatten(path: Path, out: Path) -> bool:
    """One picture on white; False for one that is too large to be opened safely."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as opened:
                picture = opened.convert("RGBA")
        except (Image.DecompressionBombWarning, Image.DecompressionBombError):
            return False
    width, height = picture.size
    scale = _SHORT_SIDE / min(width, height)
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", picture.size, "white")
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.alpha_composite(ground, picture).convert("RGB").save(out, compress_level=1)
    return True
