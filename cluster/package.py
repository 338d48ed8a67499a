"""Packs this program's own code for a cluster, as the working directory of a job."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

_ROOMS = ("tokenpool", "tune_spaces", "cluster", "pipelines")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", ".*")
RUN = "run.sh"

# A job's shell finds what is on the PATH that Ray was started with; `--python` says otherwise.
_RUN = """\
# Runs `tokenpool ARGUMENTS…` with a Python that has Ray, as a job of this cluster.
check='import sys; from importlib.metadata import version as of
found, wanted = of("tokenpool"), sys.argv[1]
sys.exit(0 if found == wanted else f"tokenpool: {found} is installed on the cluster, not {wanted}: "
"name that version with --installed, or leave it out to send this machine own code")'
for python in $TOKENPOOL_PYTHON python3 python; do
  "$python" -c 'import importlib.util as u; exit(not u.find_spec("ray"))' 2>/dev/null || continue
  if [ -n "$TOKENPOOL_INSTALLED" ]; then
    "$python" -c "$check" "$TOKENPOOL_INSTALLED" || exit 2
  fi
  exec "$python" -m pipelines.cli "$@"
done
echo "tokenpool: no Python with Ray on the PATH that the head's Ray was started with: submit with \
--python PATH" >&2
exit 2
"""


def pack(folder: Path, files: dict[str, str] | None = None, *, code: bool = True) -> Path:
    """Fills a folder with what a job needs.

    Args:
        folder: does not exist yet, or is empty.
        files: name → text of what else goes in.
        code: whether the program itself does; without it the cluster's installed one runs.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(_RUN, encoding="utf-8")
    for name, text in (files or {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    for room in _ROOMS if code else ():
        spec = importlib.util.find_spec(room)
        if spec is None or not spec.submodule_search_locations:
            raise RuntimeError(f"the package {room} is not to be found: install the program again")
        shutil.copytree(spec.submodule_search_locations[0], folder / room, ignore=_LEFT_OUT)
    return folder
