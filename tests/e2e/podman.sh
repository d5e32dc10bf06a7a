#!/usr/bin/env bash
# Runs podman and buildah with plyfs-mountd as their mount_program: as root, as an ordinary user, and with force_mask.
#
# usage: podman.sh MOUNTD LAYOUT [PART...]     (as root; LAYOUT from scripts/make-images.sh; MOUNTD the built program)
#
# A part is 'root', 'user', 'masked' or 'single'; without any, all are run. Everything lies in a scratch directory with a store of its own
# that is removed, and whatever was mounted or started is taken away, also when a step fails. The ordinary user is $PLYFS_TEST_USER
# (plyfs-ci); it needs a range in /etc/subuid and /etc/subgid.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"

# --- one part, as whoever it is -------------------------------------------------------------------------------------------
# The machine may give little to hand out, and a mix of both versions of control groups, which crun refuses.
files=$(ulimit -Hn) processes=$(ulimit -Hu)
limits=(--ulimit "nofile=$((files < 16384 ? files : 16384))" --ulimit "nproc=$((processes < 16384 ? processes : 16384))")
P() { podman --cgroup-manager=cgroupfs --runtime=crun --events-backend=none "$@"; }
R() { P run --cgroups=disabled --network=none "${limits[@]}" "$@"; }
B() { buildah --storage-driver overlay "$@"; }

configure() { # configure DIR [LINE-OF-overlay-OPTIONS...]: a store of its own below DIR
  # The runtime directory is short: podman's clean-up, by conmon when a container ends, refuses more than 50 characters for
  # .../containers in it, and podman run waits twenty seconds for it.
  mkdir -p "$1"/{home,r,tmp,graph,run}
  chmod 700 "$1/r"
  ((${#1} <= 37)) || fail "$1: too long for podman"
  {
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrootless_storage_path = "%s"\nrunroot = "%s"\n' "$1/graph" "$1/graph" "$1/run"
    printf '[storage.options.overlay]\nmount_program = "%s"\n' "$mountd"
    printf '%s\n' "${@:2}"
  } > "$1/storage.conf"
  export CONTAINERS_STORAGE_CONF=$1/storage.conf XDG_RUNTIME_DIR=$1/r HOME=$1/home TMPDIR=$1/tmp
}

# podman run comes back before podman has cleaned up behind it, in the background: until then rm may fail, and diff sees a mount with
# mapped owners as all changed, whatever the mount_program is.
settled() {
  local i
  for i in $(seq 100); do
    pgrep -f "__mountd.*$own/graph" >/dev/null || break
    sleep 0.1
  done
  sleep 0.2
}
remove() {
  local i
  settled
  # Its clean-up may hold the container's /dev/shm for longer than its root.
  for i in $(seq 100); do mounts_below "$own" | grep -q '/shm$' || break; sleep 0.1; done
  P rm "$1" >/dev/null 2>&1 || ! P container exists "$1"
}

pull() { # pull NAME...: loads images of the layout under localhost/NAME
  local name id
  for name; do
    id=$(P pull -q "oci:$layout:$name" 2>"$TMPDIR/pull") || fail "pull $name: $(cat "$TMPDIR/pull")"
    P tag "$id" "localhost/$name"
  done
  ok "images are pulled: $*"
}

the_program_is_ours() {
  expect "podman info names the program" "plyfs" P info --format '{{json .Store.GraphOptions}}'
  expect "the root is a mount of ours" "fuse.plyfs" R --rm base sh -c 'grep " / " /proc/mounts'
}

redis_and_python() {
  R -d --name cache redis redis-server --port 6379 --bind 127.0.0.1 --dir /tmp >/dev/null
  local i; for i in $(seq 50); do P exec cache redis-cli ping >/dev/null 2>&1 && break; sleep 0.1; done
  expect "redis answers" PONG P exec cache redis-cli ping
  expect "redis writes" OK P exec cache redis-cli set plyfs works
  expect "redis saves" OK P exec cache redis-cli save
  P stop -t 5 cache >/dev/null
  P start cache >/dev/null
  for i in $(seq 50); do P exec cache redis-cli ping >/dev/null 2>&1 && break; sleep 0.1; done
  expect "redis has its data after a restart" works P exec cache redis-cli get plyfs
  P rm -f -t 0 cache >/dev/null
  expect "python runs" 'Fraction(1, 2)' R --rm python python3 -c 'import fractions, json, sqlite3; print(repr(fractions.Fraction(2, 4)))'
}

containerfile() {
  local context=$TMPDIR/context
  mkdir -p "$context"
  echo copied > "$context/file"
  cat > "$context/Containerfile" <<'C'
FROM localhost/base
ENV GREETING=hello
RUN mkdir /app && echo "$GREETING" > /app/greeting && chown 33:42 /app/greeting && chmod 4750 /app/greeting && ln /app/greeting /app/link
COPY file /app/
RUN rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/new && mv /usr/share/doc /usr/share/documents
WORKDIR /app
EXPOSE 80
CMD cat greeting file
C
  P build --isolation=chroot --network=host -q -t built "$context" > "$TMPDIR/build" 2>&1 || fail "build: $(cat "$TMPDIR/build")"
  ok "a Containerfile is built"
  expect "what was built runs" $'hello\ncopied' R --rm built
  expect "owner and mode come through the build" "${owner_bits:-4750} 33:42" R --rm built stat -c '%a %u:%g' /app/greeting
  expect "links come through the build" "2" R --rm built stat -c %h /app/link
  same "a directory made anew in a build holds what is new alone" new R --rm built ls /etc/apt
  expect "a renamed directory comes through the build" copyright R --rm built sh -c 'ls /usr/share/documents/*; ! ls /usr/share/doc 2>/dev/null'
}

a_directory_made_anew() {
  # fuse-overlayfs brings the first of the deleted entries back.
  R --name anew base sh -c 'rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/new; echo x >> /etc/passwd; mkdir /made; mv /etc/cron.d /etc/cron.moved' >/dev/null
  settled
  local want
  want=$(R --rm base sh -c 'cd /etc/apt && for f in *; do echo "D /etc/apt/$f"; done'; printf '%s\n' 'A /etc/apt/new' 'C /etc/apt' | cat)
  same "diff tells all that was deleted" "$(sort <<<"$want")" sh -c "podman --events-backend=none diff anew | grep '/etc/apt' | sort"
  same "diff tells what was added, changed, moved" "A /made C /etc/passwd A /etc/cron.moved D /etc/cron.d" \
    sh -c "podman --events-backend=none diff anew | grep -xE '. (/made|/etc/passwd|/etc/cron\.moved|/etc/cron\.d)' | sort -k2r | tr '\n' ' ' | sed 's/ $//'"
  P commit -q anew changed >/dev/null
  same "a commit holds what is new alone" new R --rm changed ls /etc/apt
  expect "a commit holds the rest" $'x\nmoved' R --rm changed sh -c 'tail -n 1 /etc/passwd; test -d /etc/cron.moved && ! test -e /etc/cron.d && echo moved'
  remove anew
}

with_buildah() {
  local c
  c=$(B from --pull-never localhost/base)
  B run --isolation chroot "$c" sh -c 'rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/new; echo by buildah > /note'
  B copy -q "$c" "$TMPDIR/context/file" /copied >/dev/null
  B config --env BY=buildah --cmd 'cat /note' "$c"
  B commit -q "$c" bybuildah >/dev/null
  B rm "$c" >/dev/null
  same "buildah: a directory made anew holds what is new alone" new R --rm bybuildah ls /etc/apt
  expect "buildah: what was committed runs" "by buildah" R --rm bybuildah
  expect "buildah: copy and config" "copied buildah" R --rm bybuildah sh -c 'echo $(cat /copied) $BY'
  B bud -q --isolation chroot --network host --layers -t buddy "$TMPDIR/context" > "$TMPDIR/build" 2>&1 || fail "buildah bud: $(cat "$TMPDIR/build")"
  same "buildah bud: a directory made anew holds what is new alone" new R --rm buddy ls /etc/apt
}

mapped_ids() { # mapped_ids FIRST: ids from FIRST on stand for 0 and up
  local map=(--uidmap "0:$1:5000" --gidmap "0:$1:5000")
  R "${map[@]}" --name mapped base sh -c 'stat -c %u:%g / /etc /etc/passwd; stat -c %u:%g /etc/shadow; touch /etc/mine; chown 33:42 /etc/mine; echo more >> /etc/shadow; stat -c %u:%g /etc/mine /etc/shadow' > "$TMPDIR/ids" 2>&1 \
    || fail "--uidmap: $(cat "$TMPDIR/ids")"
  settled
  same "--uidmap: owners are as in the image, old and new" "0:0 0:0 0:0 0:42 33:42 0:42" sh -c "tr '\n' ' ' < '$TMPDIR/ids' | sed 's/ $//'"
  expect "--uidmap: the map holds" "$1" R --rm "${map[@]}" base cat /proc/self/uid_map
  settled
  expect "--uidmap: diff tells what was written" "A /etc/mine" P diff mapped
  same "--uidmap: diff tells nothing else" "" sh -c "podman --events-backend=none diff mapped | grep -vxE '. (/etc|/etc/mine|/etc/shadow|/etc/hosts|/etc/hostname|/etc/resolv.conf|/run|/run/.*|/dev|/proc|/sys|/etc/mtab)' || true"
  P commit -q mapped unmapped >/dev/null
  expect "--uidmap: a commit has the container's ids" $'33:42\n0:42' R --rm unmapped stat -c %u:%g /etc/mine /etc/shadow
  remove mapped
  expect "--uidmap with one id: all is its" $'0:0\n0:0\n0:0' R --rm --uidmap "0:$1:1" --gidmap "0:$1:1" base sh -c 'touch /x; stat -c %u:%g /etc/passwd /etc/shadow /x'
}

read_only_and_volumes() {
  expect "--read-only refuses writes" "Read-only file system" R --rm --read-only base sh -c 'touch /x 2>&1 || true'
  expect "--read-only has its temporary directories" fine R --rm --read-only base sh -c 'touch /tmp/x && echo fine'
  mkdir -p "$TMPDIR/shared"
  R --rm -v "$TMPDIR/shared:/data" base sh -c 'echo written > /data/f; ln -s f /data/l' >/dev/null
  same "a volume holds what was written" written cat "$TMPDIR/shared/l"
  R --rm -v "$TMPDIR/shared:/data:O" base sh -c 'echo lost > /data/f; rm /data/l' >/dev/null
  same "an overlay volume does not" written cat "$TMPDIR/shared/l"
  P volume create named >/dev/null
  R --rm -v named:/etc/apt base sh -c 'touch /etc/apt/kept' >/dev/null
  expect "a named volume begins with the image's content" sources.list R --rm -v named:/v base ls /v
  expect "a named volume lasts" kept R --rm -v named:/v base ls /v
  expect "an image is a volume" redis-server R --rm --mount type=image,source=redis,destination=/other base sh -c 'ls /other/usr/bin/redis-server /other/usr/local/bin/redis-server 2>/dev/null || true'
}

files_in_and_out() {
  R -d --name files base sleep 1000 >/dev/null
  echo inside > "$TMPDIR/in"
  P cp "$TMPDIR/in" files:/root/in
  expect "cp into a container" inside P exec files cat /root/in
  P exec files sh -c 'echo outside > /root/out'
  P cp files:/root/out "$TMPDIR/out"
  same "cp out of a container" outside cat "$TMPDIR/out"
  expect "a second container sees none of it" gone R --rm base sh -c 'test -e /root/in || echo gone'
  P kill files >/dev/null
  P wait files >/dev/null || true
  expect "what a killed container wrote is exported" root/out sh -c 'podman --events-backend=none export files | tar -t'
  P rm -f -t 0 files >/dev/null
}

nothing_is_left() { # nothing_is_left BEFORE
  P rm -fa -t 0 >/dev/null
  same "no layer of an image was changed" "$1" layers
  no_mounts_below "$(dirname "$CONTAINERS_STORAGE_CONF")"
}
layers() { P unshare true 2>/dev/null || true; in_store "cd '$(dirname "$CONTAINERS_STORAGE_CONF")/graph/overlay' && for l in $pulled; do find \$l/diff -type f -print0 | sort -z | xargs -0 sha256sum; find \$l/diff -printf '%p %y %m %U:%G %s %l\n' | sort; done | sha256sum"; }
in_store() { if [ "$(id -u)" = 0 ]; then sh -c "$1"; else podman unshare sh -c "$1"; fi; }

part() {
  local name=$1 before
  case $name in
    masked) configure "$own" 'force_mask = "shared"' ;;
    *) configure "$own" ;;
  esac
  cd "$own"
  pull base redis python
  pulled=$(in_store "ls '$own/graph/overlay' | grep -v '^l\$' | tr '\n' ' '")
  before=$(layers)
  the_program_is_ours
  redis_and_python
  if [ "$name" = masked ]; then
    expect "force_mask: owners are as in the image" "640 0:42" R --rm base stat -c '%a %u:%g' /etc/shadow
    expect "force_mask: owners last" "4711 33:42" sh -c "podman --cgroup-manager=cgroupfs --events-backend=none run --rm --cgroups=disabled --network=none ${limits[*]} base sh -c 'touch /x; chown 33:42 /x; chmod 4711 /x; stat -c \"%a %u:%g\" /x'"
    # podman 4.3 records modes without the set-user-ID bit there.
    owner_bits=750 containerfile
  else
    containerfile
    a_directory_made_anew
    with_buildah
    mapped_ids "$([ "$name" = root ] && echo 100000 || echo 1)"
    if [ "$name" = user ]; then
      expect "--userns=keep-id: the user is itself, and files the image's" "$(id -u) 0:42" \
        R --rm --userns=keep-id base sh -c 'echo $(id -u) $(stat -c %u:%g /etc/shadow)'
      R --rm --userns=keep-id -v "$own/home:/home/me" base touch /home/me/mine
      same "--userns=keep-id: what is written is the user's" "$(id -u)" stat -c %u "$own/home/mine"
    fi
    read_only_and_volumes
    files_in_and_out
  fi
  nothing_is_left "$before"
  printf 'passed %s\n' "$passed"
}

if [[ ${1-} == --part ]]; then
  name=$2 own=$3 mountd=$4 layout=$5
  part "$name"
  exit
fi

# --- all parts, as root -----------------------------------------------------------------------------------------------------
[ "$(id -u)" = 0 ] || fail "be root"
for tool in podman buildah crun conmon; do command -v $tool >/dev/null || fail "$tool: missing; install the Debian package $tool"; done
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  # Nothing that is mounted here shall be seen outside, and control groups shall be of one kind.
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
umount /sys/fs/cgroup/unified 2>/dev/null || true
layout=$(readlink -f "$2") user=${PLYFS_TEST_USER:-plyfs-ci}
scratch=$(mktemp -d /var/tmp/plyfs-podman.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
chmod 755 "$scratch"
mkdir "$scratch/bin"
install -m 755 "$1" "$scratch/bin/plyfs-mountd"
mountd=$scratch/bin/plyfs-mountd
shift 2
[ $# -gt 0 ] || set -- root user masked
for name; do
  own=$scratch/$name
  mkdir "$own"
  printf -- '-- %s\n' "$name"
  case $name in
    user | masked)
      chown "$user:" "$own"
      setpriv --reuid "$user" --regid "$user" --init-groups env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS PATH="$PATH" "$0" --part "$name" "$own" "$mountd" "$layout"
      ;;
    *) "$0" --part "$name" "$own" "$mountd" "$layout" ;;
  esac
done
