#!/usr/bin/env bash
# Runs the mounted tests on ext4, xfs, btrfs (in files) and tmpfs: as root and as an ordinary user in a user namespace.
#
# usage: matrix.sh [--short] [ext4|xfs|btrfs|tmpfs]...      (as root, where the sources are)
#
# Every test of mountd/tests/semantics runs with passthrough and without, and so does the model; without privilege there is none.
# The whole takes about twenty minutes; --short takes what depends on the filesystem most, in two or three.
# PLYFS_TEST_USER is the ordinary user. What failed and what was skipped is told at the end, and the script ends with 1 if anything
# failed; with PLYFS_NO_SKIP=1 a skip is a failure.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
short= filesystems=()
for word; do
  case $word in
    --short) short=1 ;;
    ext4 | xfs | btrfs | tmpfs) filesystems+=("$word") ;;
    *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 2 ;;
  esac
done
[[ ${#filesystems[@]} -gt 0 ]] || filesystems=(ext4 xfs btrfs tmpfs)
die() { printf 'matrix.sh: %s\n' "$*" >&2; exit 2; }
[[ $(id -u) == 0 ]] || die "be root: disks are mounted and users changed"
PATH=$PATH:/usr/sbin:/sbin

# In a mount namespace of its own the script leaves no mount behind, however it ends.
if [[ -z ${PLYFS_TEST_NAMESPACE:-} ]]; then
  export PLYFS_TEST_NAMESPACE=1
  # shellcheck disable=SC2016
  exec unshare --mount --propagation private sh -c 'mount --make-rshared / && exec "$0" "$@"' "$0" "$@"
fi

scratch=$(mktemp -d /var/tmp/plyfs-matrix.XXXXXX) || exit 2
disk=$scratch/disk
cleanup() {
  mountpoint -q "$disk" && { umount "$disk" 2>/dev/null || umount -l "$disk"; }
  rm -rf "$scratch"
}
trap cleanup EXIT
mkdir "$disk"
chmod 755 "$scratch"

# The whole workspace, as ./test builds it: fewer packages would have their dependencies built once more, with other features.
cargo test --quiet --workspace --no-run --message-format=json >"$scratch/built" || die "the tests do not build"
# program PACKAGE NAME: the path of a built test program.
program() {
  local path
  path=$(python3 - "$scratch/built" "$@" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    said = json.loads(line)
    if said["reason"] == "compiler-artifact" and said["executable"] and said["target"]["kind"] == ["test"] \
            and f"/{sys.argv[2]}#" in said["package_id"] and said["target"]["name"] == sys.argv[3]:
        print(said["executable"])
PYTHON
)
  [[ -n $path ]] || die "there is no test program $2 of $1"
  realpath "$path"
}
semantics=$(program mountd semantics) || exit 2
mounted=$(program mountd mounted) || exit 2
crash=$(program mountd crash) || exit 2
model=$(program tests model_mounted) || exit 2

# Copies that an ordinary user can reach, wherever the sources are.
install -m 755 "$semantics" "$scratch/semantics"
install -m 755 "$(dirname "$semantics")/../plyfs-mountd" "$scratch/plyfs-mountd"

# put_up FILESYSTEM: an empty one on $disk.
put_up() {
  case $1 in
    tmpfs) mount -t tmpfs -o size=6G,mode=755 tmpfs "$disk" ;;
    *)
      rm -f "$scratch/image"
      truncate -s 8G "$scratch/image"
      "mkfs.$1" -q "$scratch/image" >/dev/null && mount -o loop "$scratch/image" "$disk"
      ;;
  esac || die "$1: cannot be made or mounted (install e2fsprogs, xfsprogs, btrfs-progs)"
  install -d -m 1777 "$disk/tmp"
}

failures=() skips=()
# round TITLE COMMAND...: runs a test program; notes what failed.
round() {
  local title=$1 began=$SECONDS status
  shift
  "$@" >"$scratch/said" 2>&1
  status=$?
  mapfile -t -O ${#failures[@]} failures < <(sed -nE "s/^test (.*) \.\.\. FAILED.*/$title: \1/p" "$scratch/said")
  mapfile -t -O ${#skips[@]} skips < <(sed -nE "s/^([a-z0-9_]+): skipped: (.*)/$title: \1: \2/p" "$scratch/said" | sort -u)
  if [[ $status != 0 ]]; then
    cat "$scratch/said"
    grep -q '\.\.\. FAILED' "$scratch/said" || failures+=("$title: ended with $status")
  fi
  printf '%-28s %5d tests, %3d failed, %4d s\n' "$title" "$(grep -cE '^test .*\.\.\. ok' "$scratch/said")" \
    "$(grep -cE '^test .*\.\.\. FAILED' "$scratch/said")" $((SECONDS - began))
  # What a test leaves would be found by nobody else.
  local left
  left=$(find "$disk/tmp" -mindepth 1 -maxdepth 1 -not -name '.*')
  [[ -z $left ]] || { failures+=("$title: left behind: ${left//$'\n'/ }"); rm -rf "$disk/tmp"/*; }
}

# Those that make filesystems of their own, and those about documents, are the same everywhere.
everywhere=(--skip disks:: --skip documents::)
unprivileged=(--skip root:: --skip owners:: --skip user_namespace::)
[[ -z $short ]] || everywhere=(copy_up:: lazy:: io:: renames::)

as_user() {
  # shellcheck disable=SC2016
  setpriv --reuid "$PLYFS_TEST_USER" --regid "$(id -g "$PLYFS_TEST_USER")" --clear-groups --inh-caps=-all \
    env "TMPDIR=$disk/tmp" "HOME=$disk/tmp" "PLYFS_TEST_MOUNTD=$scratch/plyfs-mountd" unshare -Urm --propagation private "$@"
}

for filesystem in "${filesystems[@]}"; do
  put_up "$filesystem"
  export TMPDIR=$disk/tmp
  round "$filesystem, root" "$semantics" --skip user_namespace:: "${everywhere[@]}"
  PLYFS_MODEL_STACKS=${short:+4} round "$filesystem, model" "$model"
  if [[ -z $short ]]; then
    round "$filesystem, daemon" "$mounted"
    round "$filesystem, killed" "$crash" killed
  fi
  if [[ -z ${PLYFS_TEST_USER:-} ]]; then
    skips+=("$filesystem, user: set PLYFS_TEST_USER to an ordinary user")
  else
    round "$filesystem, user" as_user "$scratch/semantics" "${unprivileged[@]}" "${everywhere[@]}"
  fi
  umount "$disk" || die "$filesystem: something is still open there"
done

printf '\n-- matrix of filesystems ----------------------------------------------------------\n'
for line in "${skips[@]}"; do printf 'skipped  %s\n' "$line"; done
for line in "${failures[@]}"; do printf 'failed   %s\n' "$line"; done
[[ ${#failures[@]} == 0 && (${#skips[@]} == 0 || -z ${PLYFS_NO_SKIP:-}) ]] && echo PASSED || { echo FAILED; exit 1; }
