#!/bin/bash
# Measures how long a pull from a registry on this machine takes until it is on the disk, for plyfs and for podman, both with
# empty storage, in interleaved rounds.
#
#   benches/pull.sh LAYOUT [TAG] [ROUNDS]       (as root; after `cargo build --release`; TAG is sci, ROUNDS are 3 unless told)
#
# LAYOUT is an OCI layout (scripts/make-images.sh makes one). The registry is Debian's docker-registry; skopeo fills it. Each round
# gives podman (overlay driver) and plyfs a new, empty store in the same directory ($PLYFS_BENCH_DIR, else /var/tmp); the registry's
# files are in the page cache for both. The time ends when sync has returned. Printed are wall and processor time in seconds, the
# peak of resident memory of the largest process, and what lies on the disk.
set -euo pipefail
layout=$(readlink -f "${1:?which OCI layout?}") tag=${2:-sci} rounds=${3:-3}
plyfs=$(readlink -f "$(dirname "$0")/../target/release/plyfs")
for program in docker-registry skopeo podman python3; do
    command -v "$program" >/dev/null || { echo "$program: not found; install it" >&2; exit 1; }
done
scratch=$(mktemp -d "${PLYFS_BENCH_DIR:-/var/tmp}/plyfs-pull.XXXXXX")
registry=
# Podman keeps its storage bound to itself while it is in use.
clear_store() {
    umount "$1/podman/overlay" 2>/dev/null || true
    rm -rf --one-file-system "$1"
}
cleanup() {
    [ -z "$registry" ] || { kill "$registry" && wait "$registry" || true; } 2>/dev/null
    [ ! -d "$scratch/round" ] || clear_store "$scratch/round"
    rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT

cat >"$scratch/config.yml" <<YAML
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $scratch/registry}}
http: {addr: 127.0.0.1:0}
YAML
docker-registry serve "$scratch/config.yml" >"$scratch/log" 2>&1 &
registry=$!
address=
for _ in $(seq 200); do
    address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\)[^0-9].*/\1/p' "$scratch/log" | head -1)
    [ -z "$address" ] || break
    sleep 0.1
done
[ -n "$address" ] || { cat "$scratch/log" >&2; exit 1; }
skopeo copy --quiet --dest-tls-verify=false "oci:$layout:$tag" "docker://$address/bench/$tag:1"

# measured NAME STORE COMMAND...: a row of the table.
measured() {
    python3 - "$@" <<'PY'
import os, resource, subprocess, sys, time
name, store, command = sys.argv[1], sys.argv[2], sys.argv[3:]
os.sync()
began = time.monotonic()
done = subprocess.run(command, stdout=subprocess.DEVNULL)
os.sync()
wall = time.monotonic() - began
if done.returncode:
    sys.exit(f"{name}: exit status {done.returncode}")
use = resource.getrusage(resource.RUSAGE_CHILDREN)
disk = int(subprocess.run(["du", "-s", "--block-size=1", store], stdout=subprocess.PIPE, check=True).stdout.split()[0])
print(f"{name:<12} {wall:7.2f} {use.ru_utime + use.ru_stime:9.2f} {use.ru_maxrss / 1024:10.1f} {disk / 2**20:10.1f}", flush=True)
PY
}
round() {
    local store=$scratch/round
    mkdir "$store"
    export TMPDIR=$store/tmp
    mkdir "$TMPDIR"
    if [ "$1" = podman ]; then
        measured "podman pull" "$store/podman" podman --root "$store/podman" --runroot "$store/run" --storage-driver overlay \
            --cgroup-manager cgroupfs pull --quiet --tls-verify=false "$address/bench/$tag:1"
    else
        measured "plyfs pull" "$store/plyfs" "$plyfs" --root "$store/plyfs" pull --quiet --plain-http "$address/bench/$tag:1"
    fi
    clear_store "$store"
}

printf '%-12s %7s %9s %10s %10s\n' "$tag" "wall s" "cpu s" "peak MiB" "disk MiB"
cat "$scratch"/registry/docker/registry/v2/blobs/sha256/*/*/data >/dev/null
for _ in $(seq "$rounds"); do
    round podman
    round plyfs
done | tee "$scratch/table"
python3 - "$scratch/table" <<'PY'
import statistics, sys
rows = [line.split() for line in open(sys.argv[1])]
column = lambda name, at: statistics.median(float(row[at]) for row in rows if row[0] == name)
print("medians, plyfs / podman:", "  ".join(
    f"{what} {column('plyfs', at) / column('podman', at):.2f}x" for what, at in (("wall", 2), ("cpu", 3), ("disk", 5))))
PY
