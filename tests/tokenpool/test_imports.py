"""The room stays importable on a bare GPU box."""

import ast
import subprocess
import sys
from pathlib import Path

import tokenpool

ALLOWED = {"torch", "timm", "numpy", "safetensors", "tokenpool", "PIL"}
ROOM = Path(tokenpool.__file__).parent


def test_only_torch_timm_numpy_and_safetensors_are_imported_at_the_top():
    for file in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                # Plots alone may use matplotlib, and import it where they draw.
                drawing = file.name == "plots.py" and top == "matplotlib"
                # Triton's kernels stand in files that a machine without Triton never loads.
                fused = file.parent.name == "gpu" and file.stem != "__init__" and top == "triton"
                known = top in ALLOWED | set(sys.stdlib_module_names)
                assert known or drawing or fused, (file, name)


def test_importing_it_loads_no_ray_deepspeed_ffcv_or_mlflow():
    code = (
        "import sys, tokenpool; "
        "print(sorted({'ray', 'deepspeed', 'ffcv', 'mlflow', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == "[]"
