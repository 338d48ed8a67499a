"""Who may import whom (design.md): the rooms stay apart."""

import ast
import subprocess
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest

from pipelines.track import MOVED

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
    ROOT / "pipelines" / "commands" / f"bench_{n}_command.py"
    for n in ("loader", "pooling", "quality", "search", "train")
]
# Inside pipelines/, from the bottom: a room imports those above it in this list alone, and rooms
# in one line do not import each other. errors, streams, console and secrecy are everybody's.
FLOORS = [
    ("storage",),
    ("config",),
    ("config_file",),
    ("data",),
    ("models",),
    ("train",),
    ("trials",),
    ("search",),
    ("results", "squeeze"),
    ("export", "tracking"),
    ("track",),
    ("remote",),
    ("commands",),
    ("cli",),
]
EVERYBODYS = {"errors", "streams", "console", "secrecy"}


def modules(path):
    """Dotted names of all that a file imports, wherever in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path):
    """Top-level names of all modules a file imports, wherever in it."""
    return {name.split(".")[0] for name in modules(path)}


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_it_may(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        foreign = imported(path) & (ROOMS | HEAVY) - {room} - ALLOWED[room]
        if path in BENCH:
            foreign -= {"benchmarks"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {', '.join(sorted(foreign))}"


def inner_rooms():
    """(room, file, room it imports), of all files of pipelines/."""
    top = ROOT / "pipelines"
    for path in top.rglob("*.py"):
        room = path.relative_to(top).parts[0].removesuffix(".py")
        for name in modules(path):
            package, _, rest = name.partition(".")
            if package == "pipelines" and room != "__init__":
                yield room, path.relative_to(ROOT), rest.split(".")[0]


def test_inner_rooms_import_only_what_lies_below():
    """So there is no cycle either. What is in no list is a room that somebody has to place."""
    below = {room: {r for f in FLOORS[:i] for r in f} for i, f in enumerate(FLOORS) for room in f}
    seen = list(inner_rooms())
    assert {room for room, _, _ in seen} | EVERYBODYS == below.keys() | EVERYBODYS
    wrong = {
        f"{path} imports {target}"
        for room, path, target in seen
        if target not in EVERYBODYS | {room} | below.get(room, set())
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_a_training_job_knows_no_ray():
    assert not {path for path in (ROOT / "pipelines/train").glob("*.py") if "ray" in imported(path)}


def test_no_file_name_stands_twice_within_pipelines():
    names = Counter(path.name for path in (ROOT / "pipelines").rglob("*.py"))
    assert {name for name, count in names.items() if count > 1} <= {"__init__.py"}


def test_what_was_in_track_is_found_by_its_old_name_and_no_room_of_ours_asks_for_it():
    for old, new in MOVED.items():
        assert import_module(f"pipelines.track.{old}") is new
    assert not [path for room, path, target in inner_rooms() if target == "track" != room]


def test_the_operator_works_where_nothing_else_is_installed():
    """A schedule is pooled, counted and undone with every other package made unimportable."""
    code = f"""
import sys
from collections import Counter
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
    slow = HEAVY | {"torch", "timm", "torchvision", "matplotlib", "sklearn", "scipy"}
    assert "pipelines.cli" in ran.stdout.split() and not slow & set(ran.stdout.split())
