#!/usr/bin/env bash
# Runs containerd over `plyfs snapshotter`: real images, two containers at once, 128 layers, and by containerd's own suite.
#
# usage: snapshotter.sh PLYFS LAYOUT [FORM...]      (as root; FORM is bind or fuse3, both unless told)
#
# containerd has a root, a state and a socket of its own in a scratch directory. The suite is compiled from Debian's package
# golang-github-containerd-containerd-dev; nothing is fetched.
set -euo pipefail
plyfs=$(readlink -f "$1") layout=$(readlink -f "$2")
shift 2
forms=("${@:-bind}"); [[ $# != 0 ]] || forms=(bind fuse3)
here=$(dirname "$(readlink -f "$0")")
passed=0
ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; tail -n 20 "$scratch"/*/log >&2 2>/dev/null || true; exit 1; }
missing() { printf 'plyfs e2e/snapshotter.sh: %s\n' "$1" >> "${PLYFS_SKIPS:-/dev/stderr}"
  [[ ${PLYFS_NO_SKIP:-} != 1 ]] || { printf 'FAIL  %s\n' "$1" >&2; exit 1; }; }
for program in containerd ctr runc; do
  PATH=$PATH:/usr/sbin command -v $program >/dev/null || { missing "$program is not installed; apt-get install containerd runc"; exit 0; }
done
export PATH=$PATH:/usr/sbin:/sbin
scratch=$(mktemp -d /var/tmp/plyfs-snap.XXXXXX)
pids=()
cleanup() {
  local pid m
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; done
  # Mounts of a step that failed; their daemons end with them.
  for m in $(awk -v top="$scratch/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo | tac); do umount -l "$m" || true; done
  rm -rf "$scratch"
}
trap cleanup EXIT
until_there() { local i; for i in $(seq 300); do [[ -S $1 ]] && return; sleep 0.1; done; fail "$1 does not appear"; }

# serve DIR FORM: a snapshotter and a containerd that knows it.
serve() {
  local dir=$1 form=$2
  mkdir -p "$dir/state"
  "$plyfs" --root "$dir/store" snapshotter --address "$dir/snap.sock" --mounts "$form" 2>>"$dir/log" & pids+=($!); snapshotter=$!
  until_there "$dir/snap.sock"
  cat > "$dir/config.toml" <<C
version = 2
root = "$dir/root"
state = "$dir/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "$dir/containerd.sock"
[proxy_plugins.plyfs]
  type = "snapshot"
  address = "$dir/snap.sock"
C
  containerd --config "$dir/config.toml" >>"$dir/log" 2>&1 & pids+=($!); containerd=$!
  until_there "$dir/containerd.sock"
}
stop() { kill "$containerd"; wait "$containerd" || true; kill "$snapshotter"; wait "$snapshotter" || fail "the snapshotter ended with $?"; pids=(); }
c() { ctr --address "$dir/containerd.sock" "$@"; }
# mounted KEY: as containerd itself does it; ctr prints for mount(8), which does not know the helper's spelling.
mounted() { snap mounts "$dir/m" "$1" | sed 's#^mount -t fuse3\.\([^ ]*\) \(.*\)#mount.fuse3 \2 -t \1#' > "$dir/mount.sh" && sh "$dir/mount.sh"; }
snap() { c snapshots --snapshotter plyfs "$@"; }
run() { c run --rm --snapshotter plyfs "$@"; }

for form in "${forms[@]}"; do
  dir=$scratch/$form
  serve "$dir" "$form"
  for image in redis python; do
    skopeo copy -q "oci:$layout:$image" "oci-archive:$dir/$image.tar:$image" || fail "archive of $image"
    c images import --snapshotter plyfs --index-name "local/$image" "$dir/$image.tar" >/dev/null || fail "$form: import $image"
    rm "$dir/$image.tar"
  done
  name() { c images ls -q | grep "$1" | head -n 1; }
  python=$(name python) redis=$(name redis)
  [[ -n $python && -n $redis ]] || fail "$form: images: $(c images ls)"
  ok "$form: two images are imported"
  [[ $(run "$python" one /usr/bin/python3 -c 'print(6*7)') == 42 ]] || fail "$form: python"
  [[ $(run "$redis" two /usr/bin/redis-server --version) == *v=* ]] || fail "$form: redis"
  ok "$form: containers run"
  # Two containers at once, on one image; neither sees what the other writes.
  for n in 1 2; do
    run "$python" "at-once-$n" /bin/sh -c "echo $n > /mark; /bin/sleep 2; /bin/cat /mark" > "$dir/out$n" & waits[n]=$!
  done
  for n in 1 2; do wait "${waits[n]}" || fail "$form: container $n"; [[ $(head -n 1 "$dir/out$n") == "$n" ]] || fail "$form: container $n saw $(cat "$dir/out$n")"; done
  ok "$form: two containers at once"
  said=$(c run --rm --read-only --snapshotter plyfs "$python" three /usr/bin/python3 -c 'open("/x", "w")' 2>&1) && fail "$form: read-only root"
  [[ $said == *Read-only* ]] || fail "$form: read-only root: $said"
  ok "$form: a root that is read-only"
  snap ls > "$dir/ls"; grep -q Committed "$dir/ls" || fail "$form: snapshot ls: $(cat "$dir/ls")"
  snap usage > "$dir/usage" && [[ $(wc -l < "$dir/usage") -ge 4 ]] || fail "$form: snapshot usage: $(cat "$dir/usage")"
  ok "$form: snapshots are listed, with usage"
  # A chain of 128 layers, each with a file of its own and one that all change.
  parent=
  for n in $(seq 128); do
    snap prepare "deep-$n-a" $parent > /dev/null || fail "$form: prepare layer $n"
    mkdir -p "$dir/m"
    mounted "deep-$n-a" || fail "$form: mount layer $n"
    echo "$n" > "$dir/m/last"; echo "$n" > "$dir/m/file-$n"
    umount "$dir/m"
    snap commit "deep-$n" "deep-$n-a" || fail "$form: commit layer $n"
    parent=deep-$n
  done
  snap view deep-view deep-128 >/dev/null
  mounted deep-view
  [[ $(cat "$dir/m/last") == 128 && $(ls "$dir/m" | wc -l) == 129 && $(cat "$dir/m/file-1") == 1 ]] || fail "$form: 128 layers: $(ls "$dir/m" | wc -l)"
  ! touch "$dir/m/x" 2>/dev/null || fail "$form: a view was written to"
  umount "$dir/m"
  ok "$form: 128 layers"
  said=$(snap rm deep-5 2>&1) && fail "$form: a parent was removed"
  [[ $said == *remove* ]] || fail "$form: remove a parent: $said"
  snap rm deep-view || fail "$form: remove a view"
  for n in $(seq 128 -1 1); do snap rm "deep-$n" || fail "$form: remove layer $n"; done
  ok "$form: snapshots are removed, children first"
  stop
  [[ -z $(awk -v top="$dir/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo) ]] || fail "$form: left mounted: $(grep "$dir" /proc/self/mountinfo)"
  ok "$form: nothing is left mounted"
done

# containerd's own suite, and as a remote snapshotter: a store that has the image.
if command -v go >/dev/null && [[ -d /usr/share/gocode/src/github.com/containerd/containerd/snapshots/testsuite ]]; then
  mkdir -p "$scratch/go/src/suite"; cp "$here/suite/suite_test.go" "$scratch/go/src/suite/"
  (cd "$scratch/go/src/suite" && GO111MODULE=off GOPATH=$scratch/go:/usr/share/gocode GOCACHE=${GOCACHE:-$scratch/cache} GOFLAGS=-p=2 go test -c -o "$scratch/suite" .) || fail "compile the suite"
  for form in "${forms[@]}"; do
    PLYFS=$plyfs PLYFS_MOUNTS=$form PLYFS_IMAGE=oci:$layout:redis TMPDIR=$scratch "$scratch/suite" -test.v -test.root -test.parallel 2 > "$scratch/$form.suite" 2>&1 ||
      fail "$form: containerd's suite: $(grep -E -- '--- FAIL|_test.go|testsuite.go|panic' "$scratch/$form.suite" | head -n 20)"
    grep -q -- '--- PASS: TestRemote' "$scratch/$form.suite" || fail "$form: remote snapshots"
    ok "$form: layers that the store has are taken from it"
    ok "$form: containerd's suite: $(grep -c -- '    --- PASS' "$scratch/$form.suite") cases passed, $(grep -c -- '    --- SKIP' "$scratch/$form.suite") skipped by the suite"
  done
else
  missing "containerd's suite cannot be compiled; apt-get install golang-go golang-github-containerd-containerd-dev"
fi
printf '%s passed, 0 failed\n' "$passed"
