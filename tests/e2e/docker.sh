#!/usr/bin/env bash
# Runs dockerd with plyfs-mountd as its fuse-overlayfs, and containerd and mount(8) by way of mount.fuse3.
#
# usage: docker.sh MOUNTD LAYOUT [docker|mount]     (as root; LAYOUT from scripts/make-images.sh; MOUNTD the built program)
#
# The daemons started here have directories and sockets of their own in a scratch directory; that is removed, and whatever was
# mounted or started is taken away, also when a step fails. Those of the machine, if there are any, are left alone.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"
[ "$(id -u)" = 0 ] || fail "be root"
for tool in dockerd:docker.io docker:docker.io containerd:containerd ctr:containerd runc:runc skopeo:skopeo mount.fuse3:fuse3; do
  command -v "${tool%:*}" >/dev/null || fail "${tool%:*}: missing; install the Debian package ${tool#*:}"
done
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  # Nothing that is mounted here shall be seen outside, and control groups shall be of one kind.
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
umount /sys/fs/cgroup/unified 2>/dev/null || true
layout=$(readlink -f "$2")
scratch=$(mktemp -d /var/tmp/plyfs-docker.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
mkdir -p "$scratch"/{bin,sbin,tmp,ns}
install -m 755 "$1" "$scratch/bin/plyfs-mountd"
ln -s plyfs-mountd "$scratch/bin/fuse-overlayfs"
export PATH=$scratch/bin:$PATH TMPDIR=$scratch/tmp

# --- docker -------------------------------------------------------------------------------------------------------------------
export DOCKER_HOST=unix://$scratch/docker.sock DOCKER_CONFIG=$scratch/tmp DOCKER_BUILDKIT=0
files=$(ulimit -Hn)
echo "{}" > "$scratch/daemon.json"
start_docker() {
  dockerd --config-file "$scratch/daemon.json" --data-root "$scratch/data" --exec-root "$scratch/exec" --pidfile "$scratch/docker.pid" -H "$DOCKER_HOST" \
    --iptables=false --bridge=none --storage-driver fuse-overlayfs --default-ulimit "nofile=$((files < 16384 ? files : 16384))" \
    >> "$scratch/docker.log" 2>&1 &
  dockerd=$!
  local i; for i in $(seq 200); do docker info >/dev/null 2>&1 && return; sleep 0.1; done
  fail "dockerd does not answer: $(tail -n 5 "$scratch/docker.log")"
}
stop_docker() { kill "$dockerd"; wait "$dockerd" || true; }
run() { docker run --network none "$@"; }
rows() { tr '\n' ' ' | sed 's/ $//'; }

with_docker() {
start_docker
expect "docker info names the driver" fuse-overlayfs docker info --format '{{.Driver}}'
for image in base redis python; do
  skopeo copy -q "oci:$layout:$image" "docker-archive:$scratch/tmp/$image.tar:$image:latest"
  expect "docker loads $image" "Loaded image: $image:latest" docker load -i "$scratch/tmp/$image.tar"
  rm "$scratch/tmp/$image.tar"
done
before=$(find "$scratch/data/fuse-overlayfs" -path '*/diff/*' -printf '%P %y %m %U:%G %s %l\n' | sort | sha256sum)
expect "the root is a mount by the name" "fuse.fuse-overlayfs" run --rm base grep ' / ' /proc/mounts
run -d --name held base sleep 1000 >/dev/null
expect "the mount is ours" "$scratch/bin/plyfs-mountd" readlink -f "/proc/$(pgrep -n -f "^[^ ]*fuse-overlayfs __mountd .*$scratch/data")/exe"
docker rm -f held >/dev/null

run -d --name cache redis redis-server --bind 127.0.0.1 --dir /tmp >/dev/null
for i in $(seq 50); do docker exec cache redis-cli ping >/dev/null 2>&1 && break; sleep 0.1; done
expect "redis answers" PONG docker exec cache redis-cli ping
expect "redis writes" OK docker exec cache redis-cli set plyfs works
expect "redis saves" OK docker exec cache redis-cli save
docker restart -t 5 cache >/dev/null
for i in $(seq 50); do docker exec cache redis-cli ping >/dev/null 2>&1 && break; sleep 0.1; done
expect "redis has its data after a restart" works docker exec cache redis-cli get plyfs
docker rm -f cache >/dev/null
expect "python runs" 'Fraction(1, 2)' run --rm python python3 -c 'import fractions, json, sqlite3; print(repr(fractions.Fraction(2, 4)))'

mkdir "$scratch/context"
echo copied > "$scratch/context/file"
cat > "$scratch/context/Dockerfile" <<'C'
FROM base
ENV GREETING=hello
RUN mkdir /app && echo "$GREETING" > /app/greeting && chown 33:42 /app/greeting && chmod 4750 /app/greeting && ln /app/greeting /app/link
COPY file /app/
RUN rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/new && mv /usr/share/doc /usr/share/documents
WORKDIR /app
EXPOSE 80
CMD cat greeting file
C
docker build -q --network host -t built "$scratch/context" > "$scratch/build" 2>&1 || fail "build: $(cat "$scratch/build")"
ok "a Dockerfile is built"
expect "what was built runs" $'hello\ncopied' run --rm built
expect "owner, mode and links come through the build" "4750 33:42 2" run --rm built stat -c '%a %u:%g %h' /app/greeting
same "a directory made anew in a build holds what is new alone" new run --rm built ls /etc/apt
expect "a renamed directory comes through the build" copyright run --rm built sh -c 'ls /usr/share/documents/*; ! ls /usr/share/doc 2>/dev/null'

# fuse-overlayfs brings the first of the deleted entries back.
run --name anew base sh -c 'rm -rf /etc/apt && mkdir /etc/apt && touch /etc/apt/new; echo x >> /etc/passwd; mkdir /made; mv /etc/cron.d /etc/cron.moved' >/dev/null
want=$(run --rm base sh -c 'cd /etc/apt && for f in *; do echo "D /etc/apt/$f"; done'; printf '%s\n' 'A /etc/apt/new' 'C /etc/apt')
same "diff tells all that was deleted" "$(sort <<<"$want")" sh -c "docker diff anew | grep /etc/apt | sort"
same "diff tells what was added, changed, moved" "A /made C /etc/passwd A /etc/cron.moved D /etc/cron.d" \
  sh -c "docker diff anew | grep -xE '. (/made|/etc/passwd|/etc/cron\.moved|/etc/cron\.d)' | sort -k2r | tr '\n' ' ' | sed 's/ $//'"
docker commit anew changed >/dev/null
same "a commit holds what is new alone" new run --rm changed ls /etc/apt
expect "a commit holds the rest" $'x\nmoved' run --rm changed sh -c 'tail -n 1 /etc/passwd; test -d /etc/cron.moved && ! test -e /etc/cron.d && echo moved'
docker rm anew >/dev/null

expect "--read-only refuses writes" "Read-only file system" run --rm --read-only base sh -c 'touch /x 2>&1 || true'
mkdir "$scratch/shared"
run --rm -v "$scratch/shared:/data" base sh -c 'echo written > /data/f' >/dev/null
same "a volume holds what was written" written cat "$scratch/shared/f"
run --rm -v named:/etc/apt base true >/dev/null
expect "a named volume begins with the image's content" sources.list run --rm -v named:/v base ls /v
run -d --name files base sleep 1000 >/dev/null
docker cp "$scratch/shared/f" files:/root/in
expect "cp into a container" written docker exec files cat /root/in
stop_docker
start_docker
expect "a container lasts over a restart of dockerd" written sh -c 'docker start files >/dev/null && docker exec files cat /root/in'
docker rm -f files >/dev/null
for image in built changed; do docker rmi -f $image >/dev/null; done
same "no layer of an image was changed" "$before" sh -c "find '$scratch/data/fuse-overlayfs' -path '*/diff/*' -printf '%P %y %m %U:%G %s %l\n' | sort | sha256sum"
no_mounts_below "$scratch/data"
stop_docker
}

# --- mount(8), mount.fuse3 and containerd ------------------------------------------------------------------------------------
with_mount() {
mkdir -p "$scratch"/m/{lower,upper,work,target,own}
echo below > "$scratch/m/lower/f"
dirs="workdir=$scratch/m/work,upperdir=$scratch/m/upper,lowerdir=$scratch/m/lower"
# Helpers of mount(8) lie in /sbin, and it gives them a PATH of its own: ours are put there for this namespace alone.
sbin=$(readlink -f /sbin)
ln -s "$scratch/bin/plyfs-mountd" "$scratch/sbin/mount.fuse3.plyfs"
ln -s "$scratch/bin/plyfs-mountd" "$scratch/sbin/mount.fuse.plyfs"
ln -s "$scratch/bin/plyfs-mountd" "$scratch/sbin/plyfs-mountd"
mount -t overlay -o "ro,lowerdir=$scratch/sbin:$sbin" overlay "$sbin"
expect "mount -t fuse.PROGRAM mounts" below sh -c "mount -t fuse.plyfs-mountd overlay $scratch/m/target -o '$dirs,dev,suid' && cat $scratch/m/target/f"
umount "$scratch/m/target"
no_mounts_below "$scratch/m"
for i in $(seq 100); do pgrep -f "__mountd.*$scratch/m/" >/dev/null || break; sleep 0.1; done
# As containerd calls it for a mount of type fuse3.PROGRAM, with its program by an absolute path.
expect "mount.fuse3 SOURCE TARGET -o OPTIONS -t PROGRAM mounts" below sh -c "mount.fuse3 overlay $scratch/m/target -o '$dirs,dev,suid' -t $scratch/bin/plyfs-mountd && cat $scratch/m/target/f"
umount "$scratch/m/target"
for i in $(seq 100); do pgrep -f "__mountd.*$scratch/m/" >/dev/null || break; sleep 0.1; done
for type in fuse3.plyfs fuse.plyfs; do
  expect "mount -t $type mounts by its helper" "fuse.plyfs below" sh -c "mount -v -t $type overlay $scratch/m/target -o '$dirs' >&2 && echo \$(findmnt -n -o FSTYPE $scratch/m/target) \$(cat $scratch/m/target/f)"
  umount "$scratch/m/target"
  for i in $(seq 100); do pgrep -f "__mountd.*$scratch/m/" >/dev/null || break; sleep 0.1; done
done
expect "mount -f mounts nothing" "not a mount" sh -c "mount -f -t fuse3.plyfs overlay $scratch/m/target -o '$dirs' >&2; mountpoint $scratch/m/target 2>&1 || true"
umount "$sbin"

cat > "$scratch/containerd.toml" <<C
version = 2
root = "$scratch/containerd/root"
state = "$scratch/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$scratch/containerd.sock"
[ttrpc]
  address = "$scratch/containerd.sock.ttrpc"
C
containerd -c "$scratch/containerd.toml" > "$scratch/containerd.log" 2>&1 &
containerd=$!
C() { ctr -a "$scratch/containerd.sock" "$@"; }
for i in $(seq 100); do C version >/dev/null 2>&1 && break; sleep 0.1; done
# containerd's own tree of the image, under a mount of ours, as the container's root.
skopeo copy -q "oci:$layout:base" "oci-archive:$scratch/tmp/base.tar:base"
C images import --base-name plyfs/base "$scratch/tmp/base.tar" >/dev/null
image=$(C images ls -q | head -n 1)
mkdir "$scratch/image"
C images mount "$image" "$scratch/image" >/dev/null
plyfs-mountd -o "lowerdir=$scratch/image,upperdir=$scratch/m/upper,workdir=$scratch/m/work" "$scratch/m/target"
expect "containerd runs a container on a mount" "fuse.plyfs" C run --rm --rootfs "$scratch/m/target" one /bin/sh -c 'echo kept > /root/kept; /bin/grep " / " /proc/mounts'
expect "a second container finds what the first wrote" kept C run --rm --rootfs "$scratch/m/target" two /bin/cat /root/kept
umount "$scratch/m/target"
no_mounts_below "$scratch/m"
umount "$scratch/image"
kill "$containerd"; wait "$containerd" || true
}

for part in ${3:-docker mount}; do "with_$part"; done
printf 'passed %s\n' "$passed"
