#!/usr/bin/env bash
# What plyfs-mountd refuses, as root and as an ordinary user: one line on standard error, an exit status, and nothing left.
#
# usage: refusals.sh MOUNTD      (as root)
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"
[ "$(id -u)" = 0 ] || fail "be root"
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
scratch=$(mktemp -d /var/tmp/plyfs-refusals.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
chmod 755 "$scratch"
install -m 755 "$1" "$scratch/plyfs-mountd"
cd "$scratch"

# refused WHO WHAT TEXT OPTIONS: the line holds the text.
refused() {
  local code=0 lines
  "${as[@]}" "$scratch/plyfs-mountd" -o "$4" "$dir/merged" > out 2> err || code=$?
  [[ $code == 1 ]] || fail "$1: $2: status $code: $(cat err)"
  [[ ! -s out ]] || fail "$1: $2: standard output: $(cat out)"
  lines=$(wc -l < err)
  [[ $lines == 1 && $(cat err) == "plyfs-mountd: "*"$3"* ]] || fail "$1: $2: expected one line with '$3', got: $(cat err)"
  [[ $(mounts_below "$scratch" | wc -l) == "${mounted:-0}" ]] || fail "$1: $2: mounted: $(mounts_below "$scratch")"
  [[ $(pgrep -fc "__mountd.*$dir/" || true) == "${mounted:-0}" ]] || fail "$1: $2: a daemon is left"
  ok "$1: $2: $(cut -c 15- err | sed "s#$scratch#...#g")"
}

for who in root user; do
  dir=$scratch/$who
  mkdir -p "$dir"/{lower,other,upper,work,merged,closed/inside}
  echo content > "$dir/closed/inside/file"
  as=()
  if [[ $who == user ]]; then
    as=(setpriv --reuid=nobody --regid=65534 --clear-groups --inh-caps=-all --)
    chown -R 65534:65534 "$dir"
  fi
  echo content > "$dir/lower/file"
  lowers() { find "$dir"/{lower,closed} \( -type f -printf '%p %m %U %s %T@ ' -exec sha256sum {} \; -o -printf '%p %m %U %T@\n' \) | sort | sha256sum; }
  before=$(lowers)
  L=lowerdir=$dir/lower,upperdir=$dir/upper
  refused $who "an unknown option" "unknown option 'metacopie=on'" "$L,workdir=$dir/work,metacopie=on"
  refused $who "an option without a value" "upperdir" "lowerdir=$dir/lower,upperdir=,workdir=$dir/work"
  refused $who "no workdir" "needs workdir=DIR" "$L"
  refused $who "a workdir that is not there" "workdir $dir/none: No such file or directory; create it first" "$L,workdir=$dir/none"
  refused $who "a layer that is not there" "lowerdir $dir/none: No such file or directory" "lowerdir=$dir/lower:$dir/none"
  if [[ $who == user ]]; then
    chmod 0 "$dir/closed"
    refused $who "a layer that cannot be read" "$dir/closed" "lowerdir=$dir/lower:$dir/closed"
    chmod 755 "$dir/closed"
    # A directory somewhere inside is nobody's affair until somebody looks into it.
    chmod 0 "$dir/closed/inside"
    "${as[@]}" "$scratch/plyfs-mountd" -o "lowerdir=$dir/closed" "$dir/merged" || fail "$who: a layer with a closed directory"
    expect "$who: a closed directory in a layer is closed in the mount" "Permission denied" "${as[@]}" sh -c "ls '$dir/merged/inside' 2>&1 || true"
    same "$who: what is beside it can be listed" inside "${as[@]}" ls "$dir/merged"
    "${as[@]}" fusermount3 -u "$dir/merged"
    chmod 755 "$dir/closed/inside"
    for _ in $(seq 100); do pgrep -f "__mountd.*$dir/" >/dev/null || break; sleep 0.1; done
  fi
  mkdir "$dir/first"
  [[ $who == root ]] || chown 65534:65534 "$dir/first"
  "${as[@]}" "$scratch/plyfs-mountd" -o "$L,workdir=$dir/work" "$dir/first" || fail "$who: the first mount of an upper"
  mounted=1 refused $who "an upper that is in use" "another mount uses it; unmount that one first" "$L,workdir=$dir/work"
  if [[ $who == root ]]; then umount "$dir/first"; else "${as[@]}" fusermount3 -u "$dir/first"; fi
  for _ in $(seq 100); do pgrep -f "__mountd.*$dir/" >/dev/null || break; sleep 0.1; done
  as=(unshare --mount --propagation private sh -c 'mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"' sh "${as[@]}")
  refused $who "no /dev/fuse" "cannot open /dev/fuse: No such file or directory; load the module (modprobe fuse)" "$L,workdir=$dir/work"
  same "$who: no layer was changed" "$before" lowers
done
printf 'passed %s\n' "$passed"
