#!/usr/bin/env bash
# Start: cluster/install.sh   (`make install`)
#
# Sets up a fresh Debian or Ubuntu machine, or a fresh clone: the system packages that FFCV and the
# JPEG decoder build with, .venv, and the pinned packages of constraints.txt. What is there already
# is not done again. `make install`, the Dockerfile and the cloud nodes all run this file.
#
#   cluster/install.sh --run      only what a search needs, without the tools of development
#   PYTHON=python3.12 cluster/install.sh
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '== %s\n' "$*"; }
die() { printf 'install: %s\n' "$*" >&2; exit 1; }

case "${1-}" in
    "") extras=search,dev ;;
    --run) extras=search ;;
    *) die "unknown option $1: use --run or nothing" ;;
esac
python=${PYTHON:-python3}
venv=.venv
stamp=$venv/.installed
system_packages=(g++ libjpeg-dev libopencv-dev libturbojpeg0-dev pkg-config)
# Tests use them where they are (`ip` for hosts in network namespaces); nothing else needs them, so
# this does not fail for want of them. With CI set, as .ci/run does, the tests do.
helpful_packages=()
[ "$extras" = search ] || helpful_packages=(chromium iproute2 shellcheck)

wanted=$(cat constraints.txt pyproject.toml cluster/install.sh | sha256sum | cut -d' ' -f1)
installed=
[ ! -f "$stamp" ] || installed=$(cat "$stamp")
# What was installed for development serves a search as well.
if [ "$installed" = "$wanted search,dev" ] || [ "$installed" = "$wanted $extras" ]; then
    exit 0
fi

command -v "$python" >/dev/null || die "no $python: install Python 3.11 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version) is too old: install Python 3.11 or newer, or set PYTHON"

lacks() { ! dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
missing=()
for package in "${system_packages[@]}"; do
    if lacks "$package"; then missing+=("$package"); fi
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing+=(python3-dev)
helpful=()
for package in "${helpful_packages[@]}"; do
    if lacks "$package"; then helpful+=("$package"); fi
done

# A fresh cloud machine is often still updating itself: wait for its lock.
apt_options=(-qq -o DPkg::Lock::Timeout=300)
install_packages() { # [as whom …] -- package …
    local -a as=()
    while [ "$1" != -- ]; do as+=("$1"); shift; done
    shift
    "${as[@]}" apt-get "${apt_options[@]}" update &&
        "${as[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get "${apt_options[@]}" install -y --no-install-recommends "$@" >/dev/null
}
if ((${#missing[@]})); then
    say "system packages: ${missing[*]}"
    command -v apt-get >/dev/null ||
        die "this is not Debian or Ubuntu: install the equivalents of ${missing[*]} by hand"
    if [ "$(id -u)" = 0 ]; then
        install_packages -- "${missing[@]}"
    elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        install_packages sudo -- "${missing[@]}"
    else
        die "not root and no sudo: ask an administrator to run: apt-get install ${missing[*]}"
    fi
fi
if ((${#helpful[@]})) && command -v apt-get >/dev/null; then
    say "where they can be had: ${helpful[*]}"
    if [ "$(id -u)" = 0 ]; then
        install_packages -- "${helpful[@]}" || true
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        install_packages sudo -- "${helpful[@]}" || true
    fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# Some of the builds below call ninja and the new interpreter by name.
PATH=$PWD/$venv/bin:$PATH
export PATH
pip=(python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt)

say "torch and what the builds need (about 5 GB)"
"${pip[@]}" torch torchvision numpy setuptools wheel ninja
say "the rest; FFCV and DeepSpeed are built here"
"${pip[@]}" --no-build-isolation --editable ".[$extras]"
python -m pip --disable-pip-version-check check

printf '%s' "$wanted $extras" >"$stamp"
say "installed in $venv"
