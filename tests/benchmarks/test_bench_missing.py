"""`tokenpool bench` where the benchmarks are not."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "loader": "bench_loader",
    "pooling": "pooling",
    "quality": "bench_quality",
    "search": "bench_search",
    "train": "bench_train",
}

# An editable install finds its own modules whatever package their parent is.
_UNINSTALLED = "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in str(f)]"
_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_one_line_where_they_are_not_installed(name, tmp_path):
    """Neither there nor when another package is called `benchmarks` is there a traceback."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    for hide in ("sys.modules['benchmarks'] = None", f"sys.path.insert(0, {str(tmp_path)!r})"):
        code = f"import sys; {_UNINSTALLED}; {hide}; sys.argv = ['tokenpool', 'bench', {name!r}]\n"
        code += "from pipelines.cli import main; main()"
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=_ROOT
        )
        assert ran.returncode == 1, ran.stderr
        (line,) = ran.stderr.splitlines()
        assert line.startswith("tokenpool: ") and "`make install`" in line
