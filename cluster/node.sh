#!/usr/bin/env bash
# Start: cluster/node.sh NFS_SERVER:/EXPORT   (aws.yaml and gcp.yaml do so on each machine)
#        cluster/node.sh none                 where data and searches lie in an object store
#
# Makes a bare cloud machine a node of the cluster: looks for Ray's token, mounts the file system
# that all nodes share at /shared, and installs.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'node: %s\n' "$*" >&2; exit 1; }

nfs=${1-}
shared=${SHARED:-/shared}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

case $nfs in
    *CHANGE-ME*) die "setup_commands still says $nfs: write the address of your shared file system" ;;
    none | *:/*) ;;
    *) die "no shared file system: say cluster/node.sh NFS_SERVER:/EXPORT (or none) in setup_commands" ;;
esac
[ -s "$token" ] || die "no token in $token: make one where you type ray up (docs/README.md)"
chmod 600 "$token"

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }
if [ "$nfs" != none ] && ! mountpoint -q "$shared"; then
    if ! command -v mount.nfs4 >/dev/null; then
        as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 \
            install -y --no-install-recommends nfs-common >/dev/null
    fi
    as_root mkdir -p "$shared"
    # hard: a search waits for a server that is gone for a while, instead of losing writes.
    as_root mount -t nfs4 -o nfsvers=4.1,hard,timeo=600,noresvport "$nfs" "$shared" ||
        die "cannot mount $nfs at $shared: is it reachable from this subnet?"
fi
if [ "$nfs" != none ]; then
    [ -w "$shared" ] || as_root chown "$(id -u):$(id -g)" "$shared"
    [ -w "$shared" ] || die "$shared cannot be written by $(id -un)"
fi

cluster/install.sh --run
