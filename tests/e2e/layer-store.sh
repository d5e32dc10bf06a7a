#!/usr/bin/env bash
# Has podman run images of a plyfs store by `plyfs layer-store`, an additional layer store, from a registry that must not be asked for a
# single layer: with the kernel's overlayfs and with plyfs-mountd as mount_program, as root and as an ordinary user.
#
# usage: layer-store.sh PLYFS MOUNTD LAYOUT [root] [user]      (as root; LAYOUT from scripts/make-images.sh; both unless told)
#
# Everything lies in a scratch directory, podman's storage and the registry's too, and nothing of it is left, also when a step fails. The
# ordinary user is $PLYFS_TEST_USER (plyfs-ci); it needs a range in /etc/subuid and /etc/subgid.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"
files=$(ulimit -Hn) processes=$(ulimit -Hu)
limits=(--ulimit "nofile=$((files < 16384 ? files : 16384))" --ulimit "nproc=$((processes < 16384 ? processes : 16384))")
P() { podman --cgroup-manager=cgroupfs --runtime=crun --events-backend=none "$@"; }
R() { P run --cgroups=disabled --network=none "${limits[@]}" "$@"; }
X() { "$plyfs" --root "$own/store" "$@"; }
# Where podman sees the layers: an ordinary user's has a user and mount namespace of its own.
inside() { if [[ $who == root ]]; then "$@"; else podman unshare "$@"; fi; }

begin() {
  local i serve=("$plyfs" --root "$own/store" layer-store "$own/layers")
  [[ $who == root ]] || serve=(podman unshare "${serve[@]}")
  "${serve[@]}" 2>> "$own/layer-store.log" & server=$!
  for i in $(seq 100); do inside grep -q " $own/layers fuse" /proc/mounts && return; sleep 0.1; done
  fail "the layer store is not mounted: $(cat "$own/layer-store.log")"
}
end() {
  if [[ $who == root ]]; then kill "$server"; else inside umount "$own/layers"; fi
  wait "$server" || fail "the layer store ended with $?: $(cat "$own/layer-store.log")"
  ! inside grep -q " $own/layers " /proc/mounts || fail "the layer store is still mounted"
}
asked_for_layers() { local layer; for layer in $layers; do grep -F "GET /v2/" "$own/asked" | grep -F "$layer" || true; done; }

lent() { find "$own/store/lent" -type f | wc -l; }

configure() { # configure DIR [LINE-OF-overlay-OPTIONS...]
  mkdir -p "$1"/{graph,run,tmp,home} "$own/r" # podman refuses a long one
  chmod 700 "$own/r"
  {
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrootless_storage_path = "%s"\nrunroot = "%s"\n' "$1/graph" "$1/graph" "$1/run"
    printf '[storage.options]\nadditionallayerstores = ["%s:ref"]\n' "$own/layers"
    printf '[storage.options.overlay]\nmountopt = ""\n'
    printf '%s\n' "${@:2}"
  } > "$1/storage.conf"
  printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$address" > "$1/registries.conf"
  export XDG_RUNTIME_DIR=$own/r CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_REGISTRIES_CONF=$1/registries.conf TMPDIR=$1/tmp HOME=$1/home
}

part() {
  local image first place form dir before size
  mkdir "$own/layers"
  configure "$own/kernel"
  cd "$own"
  for image in redis python; do X pull -q --plain-http "$address/$image:1" >/dev/null || fail "plyfs pull $image"; done
  layers=$(for image in redis python; do
    skopeo inspect --raw --tls-verify=false "docker://$address/$image:1" | python3 -c 'import json, sys
print(*(layer["digest"] for layer in json.load(sys.stdin)["layers"]), sep="\n")'
  done)
  [[ $(wc -l <<< "$layers") -ge 2 ]] || fail "the manifests name no layers"
  begin
  first=$(head -n 1 <<< "$layers")
  place=$own/layers/$(printf %s "$address/redis:1" | base64 -w 0)/$first
  same "a layer is a directory with three files" $'blob\ndiff\ninfo' inside ls "$place"
  expect "what is no layer of the store is not there" "No such file" inside sh -c "ls '$own/layers/YQ==/sha256:$(printf x | sha256sum | cut -c1-64)' 2>&1 || true"
  expect "a layer cannot be written to" "Read-only" inside sh -c "touch '$place/diff/x' 2>&1 || true"
  expect "nor its files" "Read-only" inside sh -c "echo x 2>&1 >> \"\$(find '$place/diff/usr' -type f -size +0 | head -n 1)\" || true"
  # The layer as its tar makes it, beside the layer as it is shown; whiteouts would have to be translated, but the base has none.
  inside mkdir "$own/unpacked"
  # An ordinary user's tar can make no devices.
  local without=none/
  [[ $who == root ]] || without=dev/
  inside tar -x --exclude="$without*" --numeric-owner --xattrs --xattrs-include='*' -C "$own/unpacked" -f "$place/blob"
  same "the base layer deletes nothing" "" inside find "$own/unpacked" -name '.wh.*'
  printed() { inside sh -c "cd '$1' && find . ! -path . ! -path './$without*' -printf '%p %y %m %U:%G %l %Ts\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum"; }
  printed "$own/unpacked" > "$own/unpacked.list"
  printed "$place/diff" > "$own/shown.list"
  [[ -s $own/shown.list ]] || fail "the layer is empty"
  diff "$own/unpacked.list" "$own/shown.list" > "$own/differs" || fail "the layer differs from its tar: $(head -n 5 "$own/differs")"
  ok "a layer is shown as its tar unpacks"
  inside rm -rf "$own/unpacked"

  for form in kernel mountd; do
    dir=$own/$form
    case $form in
      kernel) configure "$dir" ;;
      mountd) configure "$dir" "mount_program = \"$mountd\"" ;;
    esac
    before=$(wc -l < "$(dirname "$own")/registry.log")
    for image in redis python; do P pull -q "$address/$image:1" > "$own/pull" 2>&1 || fail "$form: pull $image: $(cat "$own/pull" "$own/layer-store.log")"; done
    ! grep -i warn "$own/pull" || fail "$form: podman is not content"
    tail -n "+$((before + 1))" "$(dirname "$own")/registry.log" > "$own/asked"
    grep -q "GET /v2/redis/manifests" "$own/asked" || fail "$form: the registry was not asked for anything"
    same "$form: no layer is fetched" "" asked_for_layers
    size=$(inside du -s --block-size=1 "$dir/graph" | cut -f 1)
    ((size < 4 << 20)) || fail "$form: podman's storage holds $size bytes"
    ok "$form: podman's storage holds the documents alone ($size bytes)"
    same "$form: the layers are lent" "$(sort -u <<< "$layers" | wc -l)" lent
    expect "$form: redis runs" "Redis server v=" R --rm "$address/redis:1" redis-server --version
    expect "$form: python runs" 'Fraction(1, 2)' R --rm "$address/python:1" python3 -c 'import fractions, json, sqlite3; print(repr(fractions.Fraction(2, 4)))'
    expect "$form: owners are the image's" "640 0:42" R --rm "$address/redis:1" stat -c '%a %u:%g' /etc/shadow
    R --name changed "$address/redis:1" sh -c 'echo more >> /etc/passwd; rm -rf /etc/apt; mkdir /etc/apt; touch /etc/apt/new'
    expect "$form: what a container changed is told" "A /etc/apt/new" sh -c "podman --events-backend=none diff changed; :"
    P commit -q changed localhost/changed >/dev/null || fail "$form: commit"
    same "$form: a commit has the change alone" new R --rm localhost/changed ls /etc/apt
    P rm -f changed >/dev/null
    P save -q --format oci-archive -o "$own/saved.tar" "$address/redis:1" || fail "$form: save"
    same "$form: what podman saves is the image" "$(skopeo inspect --tls-verify=false --config --raw "docker://$address/redis:1")" skopeo inspect --config --raw "oci-archive:$own/saved.tar"
    rm "$own/saved.tar"
    # Takes every layer's tar together and hashes it.
    expect "$form: no layer was changed" "nothing is wrong" X fsck
    # Images that are in use elsewhere outlive their names here, and a restart of the layer store.
    for image in redis python; do X rmi "$address/$image:1" >/dev/null || fail "rmi $image"; done
    X gc > /dev/null
    end
    begin
    expect "$form: containers run when the store has the layers alone" "Redis server v=" R --rm "$address/redis:1" redis-server --version
    P rmi -f -a >/dev/null 2>&1 || fail "$form: rmi"
    same "$form: the layers are given back" 0 lent
    X gc > /dev/null
    same "$form: what nobody needs goes" 0 sh -c "ls '$own/store/layers' | wc -l"
    for image in redis python; do X pull -q --plain-http "$address/$image:1" >/dev/null || fail "plyfs pull $image"; done
  done
  end
  no_mounts_below "$own"
  [[ ! -s $own/layer-store.log ]] || ! grep -i error "$own/layer-store.log" || fail "the layer store tells errors"
  printf 'passed %s\n' "$passed"
}

if [[ ${1-} == --part ]]; then
  who=$2 own=$3 plyfs=$4 mountd=$5 address=$6
  part
  exit
fi
[ "$(id -u)" = 0 ] || fail "be root"
for tool in podman crun conmon skopeo docker-registry; do command -v $tool >/dev/null || fail "$tool: missing; install the Debian package $tool"; done
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  # Nothing that is mounted here shall be seen outside, and control groups shall be of one kind.
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
umount /sys/fs/cgroup/unified 2>/dev/null || true
layout=$(readlink -f "$3") user=${PLYFS_TEST_USER:-plyfs-ci}
scratch=$(mktemp -d /var/tmp/plyfs-layers.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
chmod 755 "$scratch"
mkdir "$scratch/bin"
plyfs=$scratch/bin/plyfs mountd=$scratch/bin/plyfs-mountd
install -m 755 "$1" "$plyfs"
install -m 755 "$2" "$mountd"
shift 3
[ $# -gt 0 ] || set -- root user

# --- a registry with two images, which the store has as well -------------------------------------------------------------------
cat > "$scratch/registry.yml" <<C
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: "$scratch/registry"}}
http: {addr: "127.0.0.1:0"}
C
docker-registry serve "$scratch/registry.yml" > "$scratch/registry.log" 2>&1 &
for i in $(seq 600); do
  address=$(sed -n 's/.*listening on \(127[0-9.:]*\).*/\1/p' "$scratch/registry.log")
  [[ -n $address ]] && break
  sleep 0.1
done
[[ -n $address ]] || fail "the registry does not start: $(cat "$scratch/registry.log")"
for image in redis python; do
  skopeo copy -q --dest-tls-verify=false "oci:$layout:$image" "docker://$address/$image:1" || fail "push $image"
done

for who; do
  own=$scratch/$who
  mkdir "$own"
  printf -- '-- %s\n' "$who"
  case $who in
    root) "$0" --part root "$own" "$plyfs" "$mountd" "$address" ;;
    user)
      chown "$user:" "$own"
      setpriv --reuid "$user" --regid "$user" --init-groups env -u XDG_RUNTIME_DIR -u DBUS_SESSION_BUS_ADDRESS "$0" --part user "$own" "$plyfs" "$mountd" "$address"
      ;;
    *) fail "$who: no part; there are root and user" ;;
  esac
done
