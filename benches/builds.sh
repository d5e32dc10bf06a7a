#!/usr/bin/env bash
# Measures podman builds, containers and a commit: native overlay, plyfs-mountd and fuse-overlayfs side by side.
#
# usage: builds.sh MOUNTD LAYOUT PACKAGES FUSE_OVERLAYFS [ROUNDS [CONTESTANT...]]     (as root)
#
# LAYOUT comes from scripts/make-images.sh (the image 'python' is used). PACKAGES holds debs/*.deb, which are installed without
# looking at what they depend on, and wheels/*.whl, all that `pip install flask requests numpy` asks for. Nothing is fetched.
# Each contestant ('native', 'plyfs', 'fuse') has an empty store each round. Figures are seconds of wall time; the steps of a build
# end when podman begins the next one, so that a step includes its commit.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/../tests/e2e/checks.sh"
[ "$(id -u)" = 0 ] || fail "be root"
for tool in podman crun conmon; do command -v $tool >/dev/null || fail "$tool: missing; install the Debian package $tool"; done
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
umount /sys/fs/cgroup/unified 2>/dev/null || true
mountd=$(readlink -f "$1") layout=$(readlink -f "$2") packages=$(readlink -f "$3") fuse=$(readlink -f "$4") rounds=${5:-2}
shift $(($# < 5 ? $# : 5))
[ $# -gt 0 ] || set -- native plyfs fuse
scratch=$(mktemp -d /var/tmp/plyfs-builds.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM

files=$(ulimit -Hn) processes=$(ulimit -Hu)
limits=(--ulimit "nofile=$((files < 16384 ? files : 16384))" --ulimit "nproc=$((processes < 16384 ? processes : 16384))")
P() { podman --cgroup-manager=cgroupfs --runtime=crun --events-backend=none "$@"; }
R() { P run --cgroups=disabled --network=none "${limits[@]}" "$@"; }
say() { printf '%-8s %-34s %7.2f\n' "$contestant" "$1" "$2"; }
now() { date +%s.%N; }
since() { bc <<<"$(now) - $1"; }
wall() { # wall WHAT COMMAND...
  local what=$1 began
  shift
  began=$(now)
  "$@" >"$TMPDIR/said" 2>&1 || fail "$contestant: $what: $(tail -n 5 "$TMPDIR/said")"
  say "$what" "$(since "$began")"
}

context=$scratch/context
mkdir -p "$context"
cp -r "$packages/debs" "$packages/wheels" "$context/"
mkdir "$context/app"
for i in $(seq 200); do printf 'VALUE_%s = %s\n' "$i" "$i" > "$context/app/m$i.py"; done
cat > "$context/Containerfile" <<'C'
FROM localhost/python
ENV DEBIAN_FRONTEND=noninteractive
COPY debs /debs
RUN dpkg --force-depends -i /debs/*.deb && rm -r /debs
COPY wheels /wheels
RUN pip3 install --break-system-packages --no-index --find-links /wheels flask requests numpy
COPY app /app
RUN python3 -m compileall -q /app && rm -rf /wheels
CMD python3 /app/m1.py
C

store() { # store DIR [PROGRAM]
  mkdir -p "$1"/{home,runtime,tmp,graph,run}
  chmod 700 "$1/runtime"
  {
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n[storage.options.overlay]\n' "$1/graph" "$1/run"
    [ -z "${2-}" ] || printf 'mount_program = "%s"\n' "$2"
  } > "$1/storage.conf"
  export CONTAINERS_STORAGE_CONF=$1/storage.conf XDG_RUNTIME_DIR=$1/runtime HOME=$1/home TMPDIR=$1/tmp
}

stamped() { while IFS= read -r line; do printf '%s %s\n' "$(now)" "$line"; done; }

containers() { for _ in $(seq 20); do R --rm python true; done; }

one() { # one DIR [PROGRAM]
  local began
  store "$@"
  P tag "$(P pull -q "oci:$layout:python" 2>"$TMPDIR/pull")" localhost/python || fail "pull: $(cat "$TMPDIR/pull")"
  # What the pull left to be written is not the build's.
  sync -f "$1"
  began=$(now)
  P build --isolation=chroot --network=host -t built "$context" 2>&1 | stamped > "$TMPDIR/build"
  P image exists built || fail "$contestant: build: $(cut -d' ' -f2- "$TMPDIR/build" | tail -n 5)"
  say "build" "$(since "$began")"
  awk -v began="$began" '
    function tell() { if (step != "") printf "%s\t%.2f\n", step, $1 - at }
    $2 == "STEP" { tell(); at = $1; step = substr($0, index($0, $4)) }
    $2 == "COMMIT" { tell(); step = "the last commit"; at = $1 }
    END { tell() }' "$TMPDIR/build" | while IFS=$'\t' read -r step took; do say "  ${step:0:32}" "$took"; done
  wall "20 containers, one after the other" containers
  R --name changed python sh -c 'cp -r /usr/lib/python3 /copy; echo x >> /etc/passwd' >"$TMPDIR/said" 2>&1 || fail "run: $(cat "$TMPDIR/said")"
  wall "commit of a container" P commit -q changed committed
  P rm -fa -t 0 >/dev/null
}

for round in $(seq "$rounds"); do
  printf 'round %s, load %s\n' "$round" "$(cut -d' ' -f1 /proc/loadavg)"
  for contestant; do
    case $contestant in
      native) program= ;;
      plyfs) program=$mountd ;;
      fuse) program=$fuse ;;
      *) fail "$contestant: not 'native', 'plyfs' or 'fuse'" ;;
    esac
    one "$scratch/$contestant" $program
    clear_away "$scratch/$contestant"
    sync -f "$scratch"
  done
done
