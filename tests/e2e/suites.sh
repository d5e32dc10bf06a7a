#!/usr/bin/env bash
# Runs public suites on a mount and on the disk below it: pjdfstest, fsx, and stress-ng's filesystem stressors.
#
# usage: suites.sh MOUNTD [--long] [pjdfstest|fsx|stress-ng]...      (as root; MOUNTD is the built plyfs-mountd)
#
# A test that passes on the disk and not on the mount is a failure, and the script ends with 1. What it needs and does not find:
# pjdfstest and fsx are installed by cargo, in their pinned versions, into $PLYFS_SUITES (default ~/.cache/plyfs-suites);
# stress-ng must be there, fuse3 and e2fsprogs too. PLYFS_TEST_USER, an ordinary user with subordinate ids, adds pjdfstest in user
# namespaces. --long: 10^6 operations of fsx instead of 32,000, stressors for 5 seconds instead of 1 and
# without passthrough too.
set -euo pipefail
trap 'echo "suites.sh: line $LINENO ended with $?" >&2' ERR
mountd=$(readlink -f "${1:?usage: suites.sh MOUNTD [--long] [SUITE]...}")
shift
long= suites=()
for word; do case $word in --long) long=1 ;; *) suites+=("$word") ;; esac; done
[[ ${#suites[@]} -gt 0 ]] || suites=(pjdfstest fsx stress-ng)
PJDFSTEST=0.2.2 FSX=0.3.2
cache=${PLYFS_SUITES:-${XDG_CACHE_HOME:-$HOME/.cache}/plyfs-suites}
PATH=$PATH:/usr/sbin:/sbin
failed=0
fail() { printf 'FAIL  %s\n' "$*"; failed=$((failed + 1)); }
die() { printf '%s\n' "$*" >&2; exit 2; }
[[ $(id -u) == 0 ]] || die "suites.sh: be root: disks are mounted and users changed"

scratch=$(mktemp -d /var/tmp/plyfs-suites.XXXXXX)
disk=$scratch/disk
cleanup() {
  for m in "$scratch"/merged "$disk"/merged "$disk"; do
    mountpoint -q "$m" 2>/dev/null && { umount "$m" 2>/dev/null || umount -l "$m" || true; }
  done
  rm -rf "$scratch"
}
trap cleanup EXIT

# The path of a pinned program: one that is installed, else one that cargo installs.
program() {
  local name=$1 version=$2 found
  for found in "$(command -v "$name" || true)" "$cache/bin/$name"; do
    if [[ -x $found && $("$found" --version 2>/dev/null) == "$name $version" ]]; then printf '%s\n' "$found"; return; fi
  done
  cargo install --quiet --locked --version "$version" --root "$cache" "$name" >&2 || die "suites.sh: cargo cannot install $name $version"
  printf '%s\n' "$cache/bin/$name"
}

# A disk of its own: one file system for lower, upper and what is compared with.
truncate -s 3G "$scratch/image"
mkfs.ext4 -q "$scratch/image"
mkdir "$disk"
mount -o loop "$scratch/image" "$disk"
chmod 755 "$scratch" "$disk"
mkdir "$disk"/{lower,merged,plain}

# mount_union [OPTION]: a union with an empty upper on $disk/merged, and the lower's hash before it.
mount_union() {
  rm -rf "$disk"/{upper,work}
  mkdir "$disk"/{upper,work}
  before=$(lower_hash)
  "$mountd" -o "lowerdir=$disk/lower,upperdir=$disk/upper,workdir=$disk/work,plyfs.log=$scratch/log${1:+,$1}" "$disk/merged"
}
unmount_union() {
  umount "$disk/merged"
  # The daemon settles the upper before it lets go.
  for _ in $(seq 600); do flock -n "$disk/work/plyfs/lock" true 2>/dev/null && break; sleep 0.1; done
  [[ $(lower_hash) == "$before" ]] || fail "$1: the lower changed"
}
lower_hash() {
  (cd "$disk/lower" && { find . -printf '%P %y %m %U %G %s %T@ %l\n' | sort; find . -type f -print0 | sort -z | xargs -0r sha256sum; }) | sha256sum
}
ways() { printf '%s\n' "passthrough on|" "passthrough off|plyfs.disable=passthrough"; }

# --- pjdfstest -----------------------------------------------------------------------------------------------------------
# pjd OUT DIR: runs the suite in DIR.
pjd() {
  local out=$1 dir=$2
  # Remounts need a process of their own: other tests keep files open for writing.
  { "$pjdfstest" -c "$scratch/tests.toml" -p "$dir" -s /dev/shm || true
    PATH=$scratch/bin:$PATH "$pjdfstest" -c "$scratch/remount.toml" -p "$dir" erofs || true
  } 2>&1 | results "$out"
}

# results OUT: what pjdfstest says, as one line "TEST ok|FAILED|skipped REASON" each.
results() {
  sed 's/\x1b\[[0-9;]*m//g' | awk '
    /^[a-z_:]+ +(ok|FAILED|skipped)$/ { name = $1; state[name] = $2; next }
    /^\t/ && !(name in why) { sub(/^\t/, ""); why[name] = $0 }
    END { for (name in state) print name, state[name], why[name] }' | sort > "$1"
  [[ $(wc -l < "$1") -gt 300 ]] || fail "pjdfstest did not run: $(head -c 1000 "$scratch/said" 2>/dev/null)"
}

# compare WHAT DISK MOUNT: a device numbered 0:0 is refused (docs/semantics.md); all tests that make one are called "char".
compare() {
  local refused
  join <(awk '$2 == "ok" { print $1 }' "$2") "$3" > "$scratch/passes"
  refused=$(awk '$1 ~ /::char$/ && $2 == "FAILED" && /EPERM$/' "$scratch/passes" | wc -l)
  awk '$2 == "FAILED" && !($1 ~ /::char$/ && /EPERM$/)' "$scratch/passes" > "$scratch/worse"
  while read -r line; do fail "pjdfstest, $1: $line"; done < "$scratch/worse"
  # A test that the suite itself leaves out here (it knows no limit of links for FUSE) is told, no failure.
  awk '$2 == "skipped" { $2 = "-"; print "pjdfstest  left out: " $0 }' "$scratch/passes"
  printf 'pjdfstest  %-52s %d passed, %d failed, %d refuse device 0:0 (the disk: %d passed, %d failed)\n' "$1" \
    "$(grep -c ' ok' "$3")" "$(wc -l < "$scratch/worse")" "$refused" "$(grep -c ' ok' "$2")" "$(grep -c ' FAILED' "$2")"
}

run_pjdfstest() {
  pjdfstest=$(program pjdfstest "$PJDFSTEST")
  # A user namespace reaches it here.
  install -D -m 755 "$pjdfstest" "$scratch/bin/pjdfstest"
  pjdfstest=$scratch/bin/pjdfstest
  # mount(8) asks a helper to remount a FUSE mount, which is of no interest here: -i asks the kernel.
  printf '#!/bin/sh\nexec %s -i "$@"\n' "$(command -v mount)" > "$scratch/bin/mount"
  chmod 755 "$scratch/bin/mount"
  local remount
  for remount in false true; do
    cat > "$scratch/$([[ $remount == true ]] && echo remount || echo tests).toml" <<TOML
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = $remount
[dummy_auth]
entries = [["nobody", "$(id -gn nobody)"], ["daemon", "$(id -gn daemon)"]]
TOML
  done
  rm -rf "$disk"/{lower,plain}
  mkdir -p "$disk/plain" "$disk/lower/base"
  pjd "$scratch/plain" "$disk/plain"
  while IFS='|' read -r way option; do
    mount_union "$option"
    mkdir "$disk/merged/born"
    pjd "$scratch/born" "$disk/merged/born"
    compare "root, $way, in a directory of the upper" "$scratch/plain" "$scratch/born"
    pjd "$scratch/base" "$disk/merged/base"
    compare "root, $way, in a directory of the lower" "$scratch/plain" "$scratch/base"
    unmount_union "pjdfstest, $way"
  done < <(ways)
  namespaces
}

# The same in user namespaces: what passes on a plain directory there must pass on a mount that was made there.
namespaces() {
  local user=${PLYFS_TEST_USER-} kind enter dir
  [[ -n $user ]] || { echo "pjdfstest  user namespaces: skipped: PLYFS_TEST_USER is not set"; return; }
  for kind in single range; do
    enter=(unshare -Urm)
    [[ $kind == single ]] || enter=(unshare -Urm --map-auto)
    rm -rf "$disk/of-user"
    mkdir -p "$disk/of-user"/{plain,lower/base,upper,work,merged}
    install -m 755 "$mountd" "$scratch/bin/plyfs-mountd"
    chown -R "$user:" "$disk/of-user"
    chmod -R a+rX "$scratch"/*.toml
    cat > "$scratch/in-namespace" <<SH
mount --bind $disk/of-user /mnt && cd /mnt || exit # A socket's path holds 107 bytes.
$scratch/bin/plyfs-mountd -o lowerdir=lower,upperdir=upper,workdir=work merged && mkdir merged/born || exit
for dir in plain merged/base merged/born; do
  echo "== \$dir"; $pjdfstest -c $scratch/tests.toml -p \$dir -s /dev/shm
done
umount merged
SH
    chmod 755 "$scratch/in-namespace"
    su -s /bin/bash "$user" -c "${enter[*]} bash $scratch/in-namespace" > "$scratch/said" 2>&1 || true
    for dir in plain merged/base merged/born; do
      awk -v dir="== $dir" '/^== / { on = $0 == dir; next } on' "$scratch/said" | results "$scratch/${dir##*/}"
    done
    compare "namespace, $kind id, in a directory of the upper" "$scratch/plain" "$scratch/born"
    compare "namespace, $kind id, in a directory of the lower" "$scratch/plain" "$scratch/base"
  done
}

# --- fsx -----------------------------------------------------------------------------------------------------------------
# fsx_config NAME BYTES MAX: every engine; "fixed" files keep their size, so that one of the lower is not cut at the start.
fsx_config() {
  local fixed=false resize='truncate = 3
posix_fallocate = 2
close_open = 1'
  [[ $1 == born ]] || fixed=true resize='truncate = 0'
  cat > "$scratch/$1.toml" <<TOML
flen = $2
blockmode = $fixed
nomsyncafterwrite = $([[ $((RANDOM % 2)) == 0 ]] && echo true || echo false)
[opsize]
max = $3
[weights]
$resize
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 1
fsync = 0.1
fdatasync = 0.1
punch_hole = 3
sendfile = 5
posix_fadvise = 2
copy_file_range = 5
TOML
}

run_fsx() {
  local fsx operations=4000 size file seed
  [[ -z $long ]] || operations=125000
  fsx=$(program fsx "$FSX")
  rm -rf "$disk"/{lower,plain}
  mkdir -p "$disk/plain" "$disk/lower"
  for file in small:30000 medium:1048576 large:33554432; do
    size=${file#*:}
    head -c "$size" /dev/urandom > "$disk/lower/${file%:*}"
  done
  while IFS='|' read -r way option; do
    mount_union "$option"
    fsx_config born 1048576 65536
    fsx_config small 30000 8192
    fsx_config medium 1048576 65536
    # The rest of the file stays the lower's.
    fsx_config large 2097152 65536
    for file in born small medium large; do
      seed=$RANDOM
      if "$fsx" -q -f "$scratch/$file.toml" -N "$operations" -S "$seed" -P "$scratch" "$disk/merged/$file" > "$scratch/said" 2>&1; then
        printf 'fsx        %-52s %d operations\n' "$way, $file" "$operations"
      else
        tail -n 30 "$scratch/said"
        fail "fsx, $way, $file: seed $seed: $(grep -m1 -i 'error\|panick' "$scratch/said" || true)"
      fi
    done
    sha256sum "$disk"/merged/* | sed 's|  .*/|  |' > "$scratch/live"
    cmp -s <(tail -c +2097153 "$disk/lower/large") <(tail -c +2097153 "$disk/merged/large") || fail "fsx, $way: the rest of the large file changed"
    unmount_union "fsx, $way"
    # At rest the upper holds all of it.
    (cd "$disk/upper" && sha256sum --quiet -c "$scratch/live") || fail "fsx, $way: the upper at rest is not what the mount showed"
  done < <(ways)
}

# --- stress-ng -----------------------------------------------------------------------------------------------------------
run_stress() {
  command -v stress-ng >/dev/null || die "suites.sh: stress-ng: missing; apt-get install stress-ng"
  local seconds=1 stressor where passed=0 skipped=() disks=()
  [[ -z $long ]] || seconds=5
  rm -rf "$disk"/{lower,plain}
  mkdir -p "$disk"/{plain,lower/base}
  while IFS='|' read -r way option; do
    [[ -n $long || -z $option ]] || continue
    mount_union "$option"
    passed=0 skipped=() disks=()
    # Those of the class that are about something else: other mounts, descriptors, processes.
    for stressor in $(stress-ng --class 'filesystem?' 2>&1 | sed -n "s/^class 'filesystem' stressors: //p"); do
      case $stressor in bind-mount | binderfs | eventfd | ioprio | procfs | overlayfs | ramfs | swap) continue ;; esac
      for where in merged/base plain; do
        local status=0
        (cd "$disk/$where" && timeout -k 10 "$((seconds + 60))" stress-ng --temp-path . --verify --oomable "--$stressor" 2 --timeout "${seconds}s") \
          > "$scratch/said.${where%/*}" 2>&1 || status=$?
        case $where:$status in
          merged/base:0) grep -q 'skipping stressor\|not implemented' "$scratch/said.merged" && skipped+=("$stressor") || passed=$((passed + 1)); break ;;
          merged/base:[34]) skipped+=("$stressor"); break ;;
          # Only what fails on the mount is asked of the disk.
          plain:0) grep -i 'fail\|error' "$scratch/said.merged" | head -n 5; fail "stress-ng, $way: $stressor" ;;
          plain:*) disks+=("$stressor") ;;
        esac
      done
    done
    printf 'stress-ng  %-52s %d passed; not to be had: %s; fail on the disk too: %s\n' "$way" "$passed" "${skipped[*]:-none}" "${disks[*]:-none}"
    unmount_union "stress-ng, $way"
  done < <(ways)
}

for suite in "${suites[@]}"; do
  case $suite in
    pjdfstest) run_pjdfstest ;;
    fsx) run_fsx ;;
    stress-ng) run_stress ;;
    *) die "suites.sh: no suite called $suite" ;;
  esac
done
# awk, not grep: an empty log is no failure.
awk '/Z (error|warn) / && !/Failed to send FUSE reply/ && ++told <= 5 { print "log   " $0 }' "$scratch/log"
[[ $failed == 0 ]] && echo "the suites find nothing that the disk does better" || { echo "$failed failed"; exit 1; }
