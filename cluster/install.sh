#!/usr/bin/env bash
# Sets up a fresh Debian or Ubuntu machine, or a fresh clone: system packages that FFCV and
# DeepSpeed build with, .venv, and the pinned packages of constraints.txt. What is there already
# is not done again. `make install` and the Dockerfile both run this file.
#
#   cluster/install.sh            everything, for development too
#   PYTHON=python3.12 cluster/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv
stamp=$venv/.installed
system_packages=(g++ libjpeg-dev libopencv-dev libturbojpeg0-dev pkg-config)

say() { printf '== %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

wanted=$(cat constraints.txt pyproject.toml cluster/install.sh | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi

command -v "$python" >/dev/null || die "no $python: install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) is too old: install Python 3.11 or newer, or set PYTHON"

missing=()
for package in "${system_packages[@]}"; do
    if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
        missing+=("$package")
    fi
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing+=(python3-dev)
if ((${#missing[@]})); then
    say "system packages: ${missing[*]}"
    command -v apt-get >/dev/null ||
        die "this is not Debian or Ubuntu: install the equivalents of ${missing[*]} by hand"
    if [ "$(id -u)" = 0 ]; then
        as_root=()
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        as_root=(sudo)
    else
        die "not root and no sudo: ask an administrator to run: apt-get install ${missing[*]}"
    fi
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Some of the builds below call ninja and the new interpreter by name.
PATH=$PWD/$venv/bin:$PATH
export PATH
pip=(python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt)

say "torch and what the builds need (about 5 GB)"
"${pip[@]}" torch torchvision numpy setuptools wheel ninja
say "the rest; FFCV and DeepSpeed are built here"
"${pip[@]}" --no-build-isolation --editable '.[search,dev]'
python -m pip --disable-pip-version-check check

say "DeepSpeed's CPU communication op (built once, kept in $venv)"
TORCH_EXTENSIONS_DIR=$PWD/$venv/torch_extensions DS_ACCELERATOR=cpu python - >/dev/null <<'PYTHON'
from deepspeed.accelerator import get_accelerator

get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
PYTHON

printf '%s' "$wanted" >"$stamp"
say "installed in $venv"
