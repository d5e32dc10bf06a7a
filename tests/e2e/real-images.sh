#!/usr/bin/env bash
# Runs real programs in real images: load, mount, compare, write in two containers at once, and see that nothing below changed.
#
# usage: real-images.sh PLYFS LAYOUT      (as root; LAYOUT from scripts/make-images.sh; PLYFS the built command)
#
# The same is then done as an ordinary user, in a user namespace with one id and in one with a subordinate range. Everything
# lies in a scratch directory that is removed, and whatever was mounted is unmounted, also when a step fails.
set -euo pipefail
plyfs=$(readlink -f "$1") layout=$(readlink -f "$2")
here=$(dirname "$(readlink -f "$0")")
user=plyfs-e2e
[[ ${3-} == in-namespace ]] || scratch=$(mktemp -d /var/tmp/plyfs-e2e.XXXXXX)
passed=0
ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
expect() { local what=$1 want=$2 got; shift 2; got=$("$@" 2>&1) || fail "$what: status $?: $got"
  [[ $got == *"$want"* ]] || fail "$what: expected '$want', got '$got'"; ok "$what"; }

# --- shared by both parts ------------------------------------------------------------------------------------------------
cleanup() {
  for m in "$scratch"/*/mnt/* "$scratch"/mnt/*; do mountpoint -q "$m" 2>/dev/null && { umount "$m" 2>/dev/null || umount -l "$m" || true; }; done
  rm -rf "$scratch"
}
hashed() { (cd "$PLYFS_ROOT" && find layers objects folded -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum); }
run_in() { local root=$1; shift; PATH=$PATH:/usr/sbin:/sbin chroot "$root" "$@"; }

# Programs of the images, in the container mounted at $1; $2 is a port of its own.
python_works() { expect "python in $(basename "$1")" "1.0" run_in "$1" python3 -c 'import numpy, pandas, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))'; }
redis_works() {
  run_in "$1" redis-server --port "$2" --bind 127.0.0.1 --daemonize yes --dir /tmp --pidfile /tmp/pid >/dev/null
  local i; for i in $(seq 50); do run_in "$1" redis-cli -p "$2" ping >/dev/null 2>&1 && break; sleep 0.1; done
  expect "redis answers in $(basename "$1")" PONG run_in "$1" redis-cli -p "$2" ping
  expect "redis writes in $(basename "$1")" OK run_in "$1" redis-cli -p "$2" set plyfs works
  expect "redis saves in $(basename "$1")" OK run_in "$1" redis-cli -p "$2" save
  run_in "$1" redis-cli -p "$2" shutdown nosave || true
}
gcc_works() {
  printf 'int puts(const char *);\nint main(void) { puts("compiled here"); return 0; }\n' > "$1/tmp/hello.c"
  # The image has the compiler without the C library's headers and start files: link by hand against what it runs with.
  cat > "$1/tmp/start.c" <<'C'
int main(void);
__attribute__((noreturn)) void exit(int);
__attribute__((force_align_arg_pointer)) void _start(void) { exit(main()); }
C
  run_in "$1" sh -c 'cd /tmp && gcc -O2 -nostartfiles -nostdlib -o hello hello.c start.c /lib/*-linux-gnu/libc.so.6'
  expect "gcc in $(basename "$1")" "compiled here" run_in "$1" /tmp/hello
}

in_namespace() {
  # Run by the ordinary user, inside a user namespace: $1 says which.
  export PLYFS_ROOT=$scratch/store
  local mnt=$scratch/mnt
  mkdir -p "$mnt"
  for c in sci redis build; do
    mkdir -p "$mnt/$c"; "$plyfs" create "$c" --name "$c-$1" >/dev/null; "$plyfs" mount "$c-$1" "$mnt/$c" >/dev/null
  done
  local id=0:0; [[ $1 == single ]] || id=
  python3 "$here/compare.py" "$layout" sci "$mnt/sci" ${id:+--shown-owner "$id"} || fail "sci is not what its layers say"
  ok "sci equals its layers ($1)"
  python_works "$mnt/sci"; redis_works "$mnt/redis" "$((20000 + RANDOM % 10000))"; gcc_works "$mnt/build"
  chmod 0600 "$mnt/sci/etc/shadow"; mv "$mnt/sci/var/mail" "$mnt/sci/var/mail2"; mknod "$mnt/sci/tmp/pipe" p
  [[ $1 == single ]] || chown 33:33 "$mnt/sci/etc/hostname" 2>/dev/null || { echo h > "$mnt/sci/etc/hostname"; chown 33:33 "$mnt/sci/etc/hostname"; }
  "$plyfs" umount "$mnt/sci"; "$plyfs" mount "sci-$1" "$mnt/sci" >/dev/null
  local group=42; [[ $1 == range ]] || group=0
  [[ $(stat -c '%a %g' "$mnt/sci/etc/shadow") == "600 $group" ]] || fail "shadow after a remount: $(stat -c '%a %g' "$mnt/sci/etc/shadow")"
  [[ $1 == single ]] || [[ $(stat -c %u:%g "$mnt/sci/etc/hostname") == 33:33 ]] || fail "an owner was lost in a remount"
  [[ -p $mnt/sci/tmp/pipe ]] || fail "the pipe was lost in a remount"
  local record; record=$(getfattr --only-values -n user.containers.override_stat "$PLYFS_ROOT"/containers/*/upper/etc/shadow 2>/dev/null || true)
  [[ $1 == range || $record == 0:42:0600* ]] || fail "the record of shadow's owner is '$record'"
  ok "owners survive a remount ($1)"
  "$plyfs" diff "sci-$1" | grep -qx 'A /var/mail2' || fail "diff does not tell the renamed directory"
  "$plyfs" diff "sci-$1" | grep -qx 'C /etc/shadow' || fail "diff does not tell the changed file"
  for c in sci redis build; do "$plyfs" umount "$mnt/$c"; "$plyfs" rm "$c-$1" >/dev/null; done
  printf 'passed %s\n' "$passed"
}
if [[ ${3-} == in-namespace ]]; then scratch=$5; in_namespace "$4"; exit; fi
trap cleanup EXIT

# --- as root -------------------------------------------------------------------------------------------------------------
export PLYFS_ROOT=$scratch/root/store
mnt=$scratch/root/mnt
mkdir -p "$mnt"/{image,sci1,sci2,redis1,redis2,build1,build2}
for i in base redis nginx python sci build node; do "$plyfs" load "oci:$layout:$i" >/dev/null 2>&1 || fail "load $i"; done
ok "seven images load"
base=$(python3 - "$layout" <<'P'
import json, sys
blob = lambda d: json.load(open(f"{sys.argv[1]}/blobs/{d.replace(':', '/')}"))
index = json.load(open(f"{sys.argv[1]}/index.json"))
digest = [m["digest"] for m in index["manifests"] if m["annotations"]["org.opencontainers.image.ref.name"] == "base"][0]
print(blob(blob(digest)["config"]["digest"])["rootfs"]["diff_ids"][0].split(":")[1])
P
)
[[ $(find "$PLYFS_ROOT/layers" -mindepth 1 -maxdepth 1 -name "$base" | wc -l) == 1 ]] || fail "the base layer is not stored once"
"$plyfs" load "oci:$layout:nginx" 2>&1 | grep -q 'already there' || fail "a layer was unpacked again"
ok "shared layers are stored once"
total=$("$plyfs" df --format json | python3 -c 'import json,sys; print([r["SizeBytes"] for r in json.load(sys.stdin) if r["Type"] == "Total"][0])')
[[ $total == "$(du -sB1 "$PLYFS_ROOT" | cut -f1)" ]] || fail "df says $total, du $(du -sB1 "$PLYFS_ROOT" | cut -f1)"
ok "df agrees with du"
for i in base redis nginx python sci build node; do
  "$plyfs" mount "$i" "$mnt/image" >/dev/null
  python3 "$here/compare.py" "$layout" "$i" "$mnt/image" || fail "$i is not what its layers say"
  "$plyfs" umount "$mnt/image"; ok "$i equals its layers"
done
before=$(hashed)
for c in sci redis build; do for n in 1 2; do
  "$plyfs" create $c --name $c$n >/dev/null; "$plyfs" mount $c$n "$mnt/$c$n" >/dev/null
done; done
pids=()
for n in 1 2; do
  ( python_works "$mnt/sci$n"; redis_works "$mnt/redis$n" "$((20000 + n * 1000 + RANDOM % 1000))"; gcc_works "$mnt/build$n" ) & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || fail "two containers at once"; done
passed=$((passed + 10))
package=$scratch/hello; mkdir -p "$package/DEBIAN" "$package/usr/share/plyfs-e2e"
printf 'Package: plyfs-e2e\nVersion: 1\nArchitecture: all\nMaintainer: plyfs\nDescription: a package of the test\n' > "$package/DEBIAN/control"
echo installed > "$package/usr/share/plyfs-e2e/mark"; dpkg-deb -b "$package" "$mnt/build1/tmp/p.deb" >/dev/null
expect "dpkg installs" "Setting up plyfs-e2e" run_in "$mnt/build1" dpkg -i /tmp/p.deb
[[ ! -e $mnt/build2/usr/share/plyfs-e2e ]] || fail "a container sees what another wrote"
ok "containers do not see each other"
for c in sci redis build; do for n in 1 2; do "$plyfs" umount "$mnt/$c$n"; done; done
[[ $(hashed) == "$before" ]] || fail "something below the containers changed"
ok "the lower is bit-identical"

# --- as an ordinary user -------------------------------------------------------------------------------------------------
id -u "$user" >/dev/null 2>&1 || useradd -m "$user"
grep -q "^$user:" /etc/subuid || { echo "$user:700000:65536" >> /etc/subuid; echo "$user:700000:65536" >> /etc/subgid; }
[[ -w /dev/fuse && $(stat -c %a /dev/fuse) == *6 ]] || chmod 666 /dev/fuse
chmod 711 "$scratch"; mkdir -p "$scratch/user"; cp "$plyfs" "$scratch/plyfs"; cp -r "$here" "$scratch/e2e"; chmod -R a+rX "$scratch/e2e" "$scratch/plyfs"
chown "$user:" "$scratch/user"
as_user() { su -s /bin/bash "$user" -c "cd $scratch/user && export PLYFS_ROOT=$scratch/user/store && $*"; }
for i in sci redis build; do as_user "$scratch/plyfs load oci:$layout:$i" >/dev/null 2>&1 || fail "an ordinary user loads $i"; done
ok "an ordinary user loads"
for kind in single range; do
  enter="unshare -Urm"; [[ $kind == single ]] || enter="$scratch/plyfs unshare"
  as_user "$enter bash $scratch/e2e/real-images.sh $scratch/plyfs $layout in-namespace $kind $scratch/user" | tee "$scratch/out" || fail "as an ordinary user ($kind)"
  passed=$((passed + $(sed -n 's/^passed //p' "$scratch/out")))
done
printf '%s passed, 0 failed\n' "$passed"
