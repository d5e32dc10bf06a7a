#!/usr/bin/env bash
# Uppers that fuse-overlayfs wrote, shown by plyfs-mountd: as a layer, and taken over as the upper, as root, in a user namespace, and of an
# ordinary user with records of owners and modes (xattr_permissions=2).
#
# usage: fuse-overlayfs.sh MOUNTD [PROGRAM...]      (as root; PROGRAM is /usr/bin/fuse-overlayfs unless told)
#
# What plyfs-mountd shows is compared with what the program itself shows when it mounts its upper again.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"
mountd=$(readlink -f "$1")
shift
[ $# -gt 0 ] || set -- /usr/bin/fuse-overlayfs
[ "$(id -u)" = 0 ] || fail "be root"
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$mountd" "$@"
fi
if [[ ${PLYFS_E2E_PART-} == '' ]]; then
  user=${PLYFS_TEST_USER:-plyfs-ci}
  public=$(mktemp -d /var/tmp/plyfs-fuse-overlayfs.XXXXXX)
  trap 'rm -rf "$public"' EXIT
  chmod 755 "$public"
  install -m 755 "$mountd" "$public/plyfs-mountd"
  for program; do
    [[ -x $program ]] || fail "$program: missing; install the Debian package fuse-overlayfs"
    install -m 755 "$program" "$public/fuse-overlayfs"
    for who in root user recorded; do
      export PLYFS_E2E_PART=$who
      case $who in
        root) "$0" "$mountd" "$program" ;;
        user) unshare -Urm --propagation private "$0" "$mountd" "$program" ;;
        # With a range of ids: what is recorded are owners that the namespace has.
        recorded)
          setpriv --reuid "$user" --regid "$user" --init-groups unshare --map-root-user --map-auto --mount --propagation private \
            "$0" "$public/plyfs-mountd" "$public/fuse-overlayfs"
          ;;
      esac
    done
  done
  exit
fi

program=$1 who=$PLYFS_E2E_PART
scratch=$(mktemp -d /var/tmp/plyfs-fuse-overlayfs.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
cd "$scratch"
mkdir -p lower/{keep,gone/sub,anew/sub,moved} upper work theirs ours
for f in keep/a keep/b gone/x gone/sub/y anew/old anew/sub/z moved/q top rm ren back; do echo $f > lower/$f; done
shown() { (cd "$1" && find . ! -path . -printf '%p %y %m %U:%G %l\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
changed() { # changed NAME: no lower may change
  local now
  now=$(shown lower | sha256sum)
  [[ ${before:=$now} == "$now" ]] || fail "$1: the lower changed"
}
changed start
mounted() { "$1" -o "$2" "$3" 2>/dev/null || fail "$1 -o $2 $3"; }
unmounted() { umount "$1"; for i in $(seq 100); do pgrep -f "$scratch/$1\$" >/dev/null || return 0; sleep 0.1; done; }
layers="lowerdir=$scratch/lower,upperdir=$scratch/upper,workdir=$scratch/work" records=
if [[ $who == recorded ]]; then
  records=,xattr_permissions=2
  layers+=$records
fi
mounted "$program" "$layers" "$scratch/theirs"
(cd theirs && rm rm keep/a back && rm -rf gone anew && mkdir anew && echo n > anew/new && mv ren renamed && mv moved moved2 &&
  echo more >> top && mkdir fresh && echo f > fresh/f && chmod 4711 fresh/f && ln -s f fresh/link && echo again > back)
if [[ $who == recorded ]]; then
  (cd theirs && chown 33:42 fresh/f moved2/q && chmod 2750 fresh/f && chown 7:8 fresh && chmod 1777 fresh && ln fresh/f fresh/hard && mkfifo fresh/pipe &&
    chmod 4755 top && chown 5:6 anew)
fi
unmounted theirs
mounted "$program" "$layers" "$scratch/theirs"
shown theirs > theirs.shown
unmounted theirs
name="$who, $("$program" --version 2>/dev/null | sed -n 's/.*version \([0-9.]*\).*/\1/p' | head -n 1)"
find upper -name '.wh.*' > spelled
[[ $who != recorded ]] || getfattr -R -h -d -m '^user\.(containers|fuseoverlayfs)\.override_stat' upper 2>/dev/null | grep '33:42' >/dev/null || fail "$name: nothing is recorded"

mounted "$mountd" "lowerdir=$scratch/upper:$scratch/lower$records" "$scratch/ours"
shown ours > ours.shown
unmounted ours
diff theirs.shown ours.shown > differs || fail "$name: as a layer: $(cat differs)"
ok "$name: its upper is shown alike as a layer ($(wc -l < spelled) names in .wh. form)"

mounted "$mountd" "$layers" "$scratch/ours"
shown ours > ours.shown
diff theirs.shown ours.shown > differs || fail "$name: as the upper: $(cat differs)"
(cd ours && rm keep/b && echo ours >> renamed && rm -rf anew && mkdir anew)
[[ $who != recorded ]] || (cd ours && chown 9:10 renamed && chmod 4700 renamed && chown 11:12 anew && mkfifo -m 600 anew/pipe && chown 13:14 anew/pipe)
shown ours > ours.shown
unmounted ours
mounted "$mountd" "$layers" "$scratch/ours"
shown ours > again.shown
unmounted ours
diff ours.shown again.shown > differs || fail "$name: after a remount: $(cat differs)"
ok "$name: its upper is taken over, and written"
# 1.x has another name for records, and does without those that it does not know by it.
if [[ $name != "recorded, 1."* ]]; then
  mounted "$program" "$layers" "$scratch/theirs"
  shown theirs > theirs.shown
  unmounted theirs
  diff ours.shown theirs.shown > differs || fail "$name: it shows our upper otherwise: $(cat differs)"
  ok "$name: it shows the upper as we left it"
fi
changed "$name"
no_mounts_below "$scratch"
