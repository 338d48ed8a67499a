"""Who may import whom (design.md): the rooms stay apart."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"ray", "deepspeed", "ffcv", "mlflow"}
ROOMS = {"tokenpool", "tune_spaces", "pipelines", "cluster", "benchmarks"}
ALLOWED = {
    "tokenpool": set(),
    "tune_spaces": {"tokenpool", "ray"},
    "cluster": {"ray"},
    "pipelines": ROOMS - {"benchmarks"} | HEAVY,
    "benchmarks": ROOMS | HEAVY,
}
# `tokenpool bench` alone calls the benchmarks.
BENCH = [
    ROOT / "pipelines" / "commands" / f"bench_{n}.py"
    for n in ("loader", "pooling", "search", "train")
]


def imported(path):
    """Top-level names of all modules a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = imported(path) & (ROOMS | HEAVY) - {room} - ALLOWED[room]
        if path in BENCH:
            foreign -= {"benchmarks"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def test_the_operator_works_where_nothing_else_is_installed():
    """A schedule is pooled, counted and undone with every other package made unimportable."""
    code = f"""
import sys
for name in {sorted(HEAVY | {"pyarrow", "moocore", "pydantic", "sklearn"})}:
    sys.modules[name] = None  # importing it raises
import torch, tokenpool as tp
model = tp.build_vit(32, 8, 32, 2, 2, 10)
images = torch.randn(2, 3, 32, 32)
dense = model.eval()(images)
pooled = tp.pool(model, (8, 4))(images)
assert pooled.shape == dense.shape and tp.macs(model).clustering > 0
assert torch.equal(tp.pool(model, None)(images), dense)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_the_command_line_starts_without_what_takes_seconds():
    """Every command, `--help` too, waits for what the modules of all commands import."""
    code = "import sys, pipelines.cli; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = HEAVY | {"torch", "timm", "torchvision", "matplotlib", "sklearn", "tokenpool"}
    assert "pipelines.cli" in ran.stdout.split() and not slow & set(ran.stdout.split())
