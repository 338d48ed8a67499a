#!/bin/bash
# What needs a GPU, in one go and at most 8 minutes: fused kernels against the reference, pooled
# models against dense ones, the tests marked `gpu`, and training's images/s against the bare loop.
#
#   benchmarks/gpu.sh pack        here: what a bare GPU machine lacks, into build/gpu (19 MB)
#   benchmarks/gpu.sh run [OUT]   there, in a copy of the tree with build/gpu: tests, then speed
#
# "There" needs Python 3.12 with torch, torchvision, timm, scikit-learn, psutil, PyYAML, rich, typer
# and pytest. Where everything is installed (`make install`), `run` alone will do. `run` may be cut
# off at any time: each row is kept as it comes, and another `run` with the same OUT does the rest.
# GPU_SH_SECONDS (480) is what it may take; GPU_SH_DRY=1 tries it on a CPU, tiny, but for training.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
MODELS="deit_small_patch16_224 deit_base_patch16_224"
VARIANTS="dense leader tome kmeans wkmedoids"
TRAINED="dense leader tome"
[ -z "${GPU_SH_DRY:-}" ] || MODELS=deit_small_patch16_224 VARIANTS="dense leader wkmedoids" TRAINED="dense leader"
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-/tmp/tokenpool-inductor}
export TORCHINDUCTOR_FX_GRAPH_CACHE=1 TORCHINDUCTOR_COMPILE_THREADS=2

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
    local out=${1:-${OUT:-build/gpu-results}} python=python3 failed=0 dry=()
    mkdir -p "$out"
    SECONDS=0
    if [ -x .venv/bin/python ]; then
        python=.venv/bin/python
    else
        export PYTHONPATH=$PWD/build/gpu/site:$PWD
    fi
    export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
    if [ -n "${GPU_SH_DRY:-}" ]; then
        dry=(--dry)
        export TRITON_INTERPRET=1
    fi
    # Compiling leaves the GPU idle, and tests measure nothing: both at once.
    tests "$out" "$python" &
    compile "$out" "$python"
    wait
    grep -qx tests "$out/done.txt" || failed=1
    part kernels 60 "$out" "$python" -m benchmarks.gpu_kernels "${dry[@]}" --out "$out/kernels.jsonl"
    models "$out" "$python" "" 256 1024
    models "$out" "$python" --train 256
    [ -n "${GPU_SH_DRY:-}" ] || training "$out" "$python"
    models "$out" "$python" --train 1024
    echo "took $SECONDS s; results in $out"
    return $failed
}

# part NAME SECONDS OUT COMMAND…: run it for at most so long, or as long as is left, unless it is done.
part() {
    local name=$1 limit=$2 out=$3 left=$((${GPU_SH_SECONDS:-480} - SECONDS))
    shift 3
    [ -z "${GPU_SH_DRY:-}" ] || limit=$((limit * 10)) left=3600
    if grep -qx -- "$name" "$out/done.txt" 2>/dev/null; then
        echo "== $name: done before"
        return
    fi
    if [ "$left" -lt 10 ]; then
        echo "== $name: no time left; run again with the same OUT"
        failed=1
        return
    fi
    echo "== $name (at $SECONDS s)"
    if timeout $((limit < left ? limit : left)) "$@" 2>&1 | tee -a "$out/log.txt"; then
        echo "$name" >>"$out/done.txt"
    else
        failed=1
        echo "== $name: did not end well"
    fi
}

# What is timed later, one variant a process and many at once: it lies in the compiler's cache then.
compile() {
    local out=$1 python=$2 model variant list
    list=$(mktemp)
    {
        for model in $MODELS; do
            for variant in $VARIANTS; do
                echo "--model $model --batch 256 --only $variant"
                echo "--model $model --batch 1024 --only $variant"
            done
            for variant in $TRAINED; do
                echo "--model $model --batch 256 --only $variant --train"
            done
        done
    } >"$list"
    [ -z "${GPU_SH_DRY:-}" ] || sed -i 's/--batch [0-9]*/--batch 2 --dry/; 2,7d' "$list"
    part compile 150 "$out" xargs -a "$list" -L 1 -P "${GPU_SH_JOBS:-10}" \
        "$python" -m benchmarks.gpu_models --rounds 0
    rm "$list"
}

# models OUT PYTHON WORK SIZE…: pooled against dense, for inference or (WORK is --train) training.
models() {
    local out=$1 python=$2 work=$3 model size options=(--rounds 15) variants=$VARIANTS
    shift 3
    [ -z "$work" ] || variants=$TRAINED options+=("$work")
    [ -z "${GPU_SH_DRY:-}" ] || options+=(--dry --rounds 1)
    for model in $MODELS; do
        for size in "$@"; do
            # shellcheck disable=SC2086
            part "$model-$size$work" 75 "$out" "$python" -m benchmarks.gpu_models "${options[@]}" \
                --model $model --batch "$([ -z "${GPU_SH_DRY:-}" ] && echo "$size" || echo 2)" \
                --only $variants --out "$out/models.jsonl"
        done
    done
}

tests() {
    local out=$1 python=$2 many=()
    if [ -n "${GPU_SH_DRY:-}" ]; then
        part tests 600 "$out" "$python" -m pytest -q -p no:cacheprovider \
            tests/tokenpool/test_triton.py -k "columns"
        return
    fi
    # Most of the time goes into compiling kernels, each for itself.
    ! "$python" -c 'import xdist' 2>/dev/null || many=(-n 5)
    part tests 150 "$out" "$python" -m pytest -q -p no:cacheprovider "${many[@]}" -m gpu \
        tests/pipelines/train tests/tokenpool/test_triton.py
}

training() {
    local out=$1 python=$2
    local bench='import typer; from pipelines.commands.bench_train_command import bench_train as b; typer.run(b)'
    # DeiT-S, and DeiT's recipe but for the augmentation in the second: it shows the loop alone.
    local common=(--gpu --workers 1 --width 384 --heads 6 --batch-size 256 --rounds 5 --steps 20
        --loader-threads 12 --threads 4 --precision bf16 --compile)
    part train-gpu 100 "$out" "$python" -c "$bench" "${common[@]}" --out "$out/train-gpu.json"
    part train-gpu-plain 100 "$out" "$python" -c "$bench" "${common[@]}" --augment none \
        --out "$out/train-gpu-plain.json"
}

case "${1:-}" in
pack) pack ;;
run) run "${2:-}" ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
