#!/bin/bash
# What needs a GPU, in one go: the tests marked `gpu`, and images/s against the bare loop.
#
#   benchmarks/gpu.sh pack        here: what a bare GPU machine lacks, into build/gpu (19 MB)
#   benchmarks/gpu.sh run [OUT]   there, in a copy of the tree with build/gpu: tests, then speed
#
# "There" needs Python 3.12 with torch, torchvision, timm, scikit-learn, psutil, PyYAML, rich, typer
# and pytest. Where everything is installed (`make install`), `run` alone will do.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

pack() {
    local site=build/gpu/site packages
    packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || exit 1
    rm -rf build/gpu && mkdir -p "$site" || exit 1
    # Pure Python travels as it is; DeepSpeed builds nothing for AdamW of torch's own.
    for name in deepspeed hjson pydantic annotated_types typing_inspection cpuinfo einops; do
        cp -r "$packages/$name" "$site/" || exit 1
    done
    cp "$packages/typing_extensions.py" "$site/" || exit 1
    local core
    core=$(.venv/bin/python -c 'import pydantic_core; print(pydantic_core.__version__)') || exit 1
    .venv/bin/python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        -d build/gpu "pydantic_core==$core" || exit 1
    (cd "$site" && .venv/bin/python -m zipfile -e ../pydantic_core-*.whl . 2>/dev/null ||
        python3 -m zipfile -e ../pydantic_core-*.whl .) || exit 1
    rm build/gpu/*.whl
    find build/gpu -name __pycache__ -prune -exec rm -r {} +
    du -sh build/gpu
}

run() {
    local out=${1:-${OUT:-build/gpu-results}} python=python3 failed=0
    mkdir -p "$out"
    if [ -x .venv/bin/python ]; then
        python=.venv/bin/python
    else
        export PYTHONPATH=$PWD/build/gpu/site:$PWD
    fi
    local bench='import typer; from pipelines.commands.bench_train import bench_train as b; typer.run(b)'
    # DeiT-S, and DeiT's recipe but for the augmentation in the second: it shows the loop alone.
    local common=(--gpu --workers 1 --width 384 --heads 6 --batch-size 256 --rounds 5 --steps 20
        --loader-threads 12 --threads 4 --precision bf16 --compile)
    "$python" -c "$bench" "${common[@]}" --out "$out/train-gpu.json" 2>&1 |
        tee "$out/train-gpu.txt" || failed=1
    "$python" -c "$bench" "${common[@]}" --augment none --out "$out/train-gpu-plain.json" 2>&1 |
        tee "$out/train-gpu-plain.txt" || failed=1
    "$python" -m pytest -q -p no:cacheprovider -m gpu tests/pipelines/train tests/tokenpool 2>&1 |
        tee "$out/pytest.txt" || failed=1
    return $failed
}

case "${1:-}" in
pack) pack ;;
run) run "${2:-}" ;;
*) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
