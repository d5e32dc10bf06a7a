#!/bin/bash
# Measures every workload for which plyfs has a target, beside the kernel's overlayfs and fuse-overlayfs, within twelve minutes.
#
#   benches/targets.sh LAYOUT [OUT] [FUSE_OVERLAYFS] [ORDINARY_USER]
#
# LAYOUT is an OCI layout with the tags sci, build and node (scripts/make-images.sh makes it); the results go to the directory OUT as
# tables, JSON and HTML. To be run by root on a machine that does nothing else, after `cargo build --release`. The last part is
# run by ORDINARY_USER in a user namespace, and left out without one.
set -euo pipefail
layout=${1:?which OCI layout?} out=${2:-targets} fuse=${3:-} user=${4:-}
plyfs=$(dirname "$0")/../target/release/plyfs
mkdir -p "$out"
others=(--without 'plyfs dirs')
[ -z "$fuse" ] || others+=(--fuse-overlayfs "$fuse")

part() {
    local name=$1
    shift
    echo "== $name" >&2
    "$plyfs" bench "$@" --verbose --json "$out/$name.json" --html "$out/$name.html" | tee "$out/$name.txt"
}

part mounts meta data write cow programs start sharing depth parallel --image "oci:$layout:sci" "${others[@]}"
# The images are what is loaded; one round of podman and tar takes over a minute.
part store store --rounds 1 --image "oci:$layout:sci" --image "oci:$layout:build" --image "oci:$layout:node"
if [ -n "$user" ]; then
    echo "== rootless" >&2
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    chmod 755 "$copy"
    cp "$plyfs" "$copy/plyfs"
    su "$user" -c "'$copy/plyfs' --root /var/tmp/plyfs-bench-$user bench data --quick --rounds 3 --without 'plyfs dirs'" |
        tee "$out/rootless.txt"
fi
