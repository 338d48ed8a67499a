"""The fused kernels compile for Hopper, on a machine without a GPU: down to machine code.

What the interpreter cannot show: that Triton's compiler takes them, and that what a program needs
of registers and shared memory is there.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

pytestmark = [
    # A minute of compiling on an idle core.
    pytest.mark.slow,
    pytest.mark.skipif(
        triton.knobs.runtime.interpret, reason="what is interpreted is not compiled"
    ),
]
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}
# Of one block on Hopper, with what the driver keeps for itself.
SHARED_MEMORY = 227 * 1024


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is launched is compiled for Hopper instead, and put into the list."""
    from tokenpool.gpu import operators

    made: list[Any] = []

    def compile_it(kernel: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
        options = {key: named.pop(key) for key in ("num_warps", "num_stages")}
        values = dict(zip([p.name for p in kernel.params], given, strict=False)) | named
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[(place,)] = "tf32x3" if parameter.name == "PRECISION" else value
                continue
            if isinstance(value, torch.Tensor):
                signature[parameter.name] = TYPES[value.dtype]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, torch.Tensor) or value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        made.append(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))

    monkeypatch.setattr(JITFunction, "run", compile_it)
    monkeypatch.setattr(operators, "_factor", lambda x: x)
    return made


def spilt(kernel: Any, folder: Path) -> int:
    """Bytes of registers that the assembler had to put into memory."""
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    (folder / "kernel.ptx").write_text(kernel.asm["ptx"])
    said = subprocess.run(
        [assembler, "-v", "-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    return max(int(size) for size in re.findall(r"(\d+) bytes spill stores", said))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tokens", "k"), [(196, 182), (91, 60), (577, 400)])
def test_for_hopper(
    compiled: list[Any], tmp_path: Path, dtype: torch.dtype, tokens: int, k: int
) -> None:
    from tokenpool.gpu import operators

    x = torch.zeros(2, tokens, 384, dtype=dtype)
    keys, scores = x[:, :, :128].contiguous(), torch.zeros(2, tokens)
    start = torch.zeros(2, k, dtype=torch.long)
    heads = torch.zeros(2, 6, tokens, 64, dtype=dtype)
    operators.leader(x, keys, scores, scores, k)
    operators.received(heads, heads, 0.125, scores, scores)
    operators.kmeans(x, x.float(), start, scores, 5)
    operators.kmedoids(x.float(), start, scores, 5)
    assert len(compiled) == 4
    for kernel in compiled:
        assert len(kernel.asm["cubin"]) > 1000
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert spilt(kernel, tmp_path) == 0, kernel.metadata.name
