"""`tokenpool bench` where the benchmarks are not."""

from pathlib import Path

from one_process import run_commands

COMMANDS = [("bench", name) for name in ("loader", "pooling", "quality", "search", "train")]

# An editable install finds its own modules whatever package their parent is.
_UNINSTALLED = "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in str(f)]"
_ROOT = Path(__file__).parents[2]


def test_one_line_where_they_are_not_installed(tmp_path):
    """Neither there nor when another package is called `benchmarks` is there a traceback."""
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    for hide in ("sys.modules['benchmarks'] = None", f"sys.path.insert(0, {str(tmp_path)!r})"):
        ran = run_commands(COMMANDS, f"{_UNINSTALLED}; {hide}", text=True, timeout=120, cwd=_ROOT)
        assert ran.stdout.count("=== exit 1") == len(COMMANDS), ran.stderr
        lines = ran.stderr.splitlines()
        assert len(lines) == len(COMMANDS)
        assert all(line.startswith("tokenpool: ") and "`make install`" in line for line in lines)
