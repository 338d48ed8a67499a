"""Packs this program's own code for a cluster, as the working directory of a job."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

_ROOMS = ("tokenpool", "tune_spaces", "cluster", "pipelines")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", ".*")
RUN = "run.sh"

# Ray was often started by its path, from an environment that nobody activated: the Python it gives
# its workers stands in the command line of the process that started this job.
_RUN = """\
# Runs `tokenpool ARGUMENTS…` with a Python that has Ray, as a job of this cluster.
check='import sys; from importlib.metadata import version as of
found, wanted = of("tokenpool"), sys.argv[1]
sys.exit(0 if found == wanted else f"tokenpool: {found} is installed on the cluster, not {wanted}: "
"name that version with --installed, or leave it out to send this machine own code")'
rays_python() {
  pid=$$
  while [ "${pid:-0}" -gt 1 ]; do
    tr '\\0' '\\n' 2>/dev/null <"/proc/$pid/cmdline" |
      sed -n 's/^--python_worker_command=\\([^ ]*\\).*/\\1/p'
    pid=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$pid/status" 2>/dev/null)
  done
}
for python in $TOKENPOOL_PYTHON $(rays_python) python3 python; do
  "$python" -c 'import importlib.util as u; exit(not u.find_spec("ray"))' 2>/dev/null || continue
  if [ -n "$TOKENPOOL_INSTALLED" ]; then
    "$python" -c "$check" "$TOKENPOOL_INSTALLED" || exit 2
  fi
  exec "$python" -m pipelines.cli "$@"
done
echo "tokenpool: no Python with Ray is to be found on this node: submit with --python PATH" >&2
exit 2
"""


def pack(folder: Path, files: dict[str, str] | None = None, *, code: bool = True) -> Path:
    """Fills a folder with what a job needs, and gives it back.

    Args:
        folder: a folder that does not exist yet, or is empty.
        files: what else goes in: name → text.
        code: whether the program itself goes in; without it the cluster's installed one runs.

    Raises:
        RuntimeError: if the program's own code is not to be found.
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
