#!/usr/bin/env bash
# Has podman run images of a plyfs store by `plyfs layer-store`, an additional layer store, from a registry that must not be asked for a
# single layer: with the kernel's overlayfs and with plyfs-mountd as mount_program.
#
# usage: layer-store.sh PLYFS MOUNTD LAYOUT      (as root; LAYOUT from scripts/make-images.sh)
#
# Everything lies in a scratch directory, podman's storage and the registry's too, and nothing of it is left, also when a step fails.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/checks.sh"
[ "$(id -u)" = 0 ] || fail "be root"
for tool in podman crun conmon skopeo docker-registry; do command -v $tool >/dev/null || fail "$tool: missing; install the Debian package $tool"; done
if [[ ${PLYFS_E2E_NAMESPACE-} != own ]]; then
  # Nothing that is mounted here shall be seen outside, and control groups shall be of one kind.
  PLYFS_E2E_NAMESPACE=own exec unshare --mount --propagation private "$0" "$@"
fi
umount /sys/fs/cgroup/unified 2>/dev/null || true
plyfs=$(readlink -f "$1") mountd=$(readlink -f "$2") layout=$(readlink -f "$3")
scratch=$(mktemp -d /var/tmp/plyfs-layer-store.XXXXXX)
trap '[ "$BASHPID" != $$ ] || clear_away "$scratch"' EXIT
trap 'exit 143' INT TERM
files=$(ulimit -Hn) processes=$(ulimit -Hu)
limits=(--ulimit "nofile=$((files < 16384 ? files : 16384))" --ulimit "nproc=$((processes < 16384 ? processes : 16384))")
P() { podman --cgroup-manager=cgroupfs --runtime=crun --events-backend=none "$@"; }
R() { P run --cgroups=disabled --network=none "${limits[@]}" "$@"; }
X() { "$plyfs" --root "$scratch/store" "$@"; }

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
  X pull -q --plain-http "$address/$image:1" >/dev/null || fail "plyfs pull $image"
done
layers=$(for image in redis python; do skopeo inspect --raw --tls-verify=false "docker://$address/$image:1"; done |
  python3 -c 'import json, sys; text = sys.stdin.read(); d = json.JSONDecoder(); at = 0
while at < len(text):
    while at < len(text) and text[at].isspace(): at += 1
    if at == len(text): break
    manifest, at = d.raw_decode(text, at)
    print(*(layer["digest"] for layer in manifest["layers"]), sep="\n")')
[[ $(wc -l <<< "$layers") -ge 2 ]] || fail "the manifests name no layers"
asked_for_layers() { local layer; for layer in $layers; do grep -F "GET /v2/" "$scratch/asked" | grep -F "$layer" || true; done; }

# --- the layer store ------------------------------------------------------------------------------------------------------------
mkdir "$scratch/layers"
begin() {
  "$plyfs" --root "$scratch/store" layer-store "$scratch/layers" 2>> "$scratch/layer-store.log" & server=$!
  local i
  for i in $(seq 100); do grep -q " $scratch/layers fuse" /proc/mounts && return; sleep 0.1; done
  fail "the layer store is not mounted: $(cat "$scratch/layer-store.log")"
}
end() {
  kill "$server"
  wait "$server" || fail "the layer store ended with $?: $(cat "$scratch/layer-store.log")"
  ! grep -q " $scratch/layers " /proc/mounts || fail "the layer store is still mounted"
}
begin
first=$(head -n 1 <<< "$layers")
place=$scratch/layers/$(printf %s "$address/redis:1" | base64 -w 0)/$first
same "a layer is a directory with three files" $'blob\ndiff\ninfo' ls "$place"
expect "what is no layer of the store is not there" "No such file" sh -c "ls '$scratch/layers/YQ==/sha256:$(printf x | sha256sum | cut -c1-64)' 2>&1 || true"
expect "a layer cannot be written to" "Read-only" sh -c "touch '$place/diff/x' 2>&1 || true"
expect "nor its files" "Read-only" sh -c "echo x 2>&1 >> '$(find "$place/diff" -type f -size +0 | head -n 1)' || true"
# The layer as its tar makes it, beside the layer as it is shown.
mkdir "$scratch/unpacked"
tar -x --numeric-owner --xattrs --xattrs-include='*' -C "$scratch/unpacked" < "$place/blob"
printed() { (cd "$1" && find . ! -path . -printf '%p %y %m %U:%G %l %Ts\n' | sort && find . -type f -print0 | sort -z | xargs -0 sha256sum); }
find "$scratch/unpacked" -name '.wh.*' | grep -q . && fail "the base layer deletes nothing" # else the comparison would have to translate
[[ $(printed "$scratch/unpacked" | sha256sum) == $(printed "$place/diff" | sha256sum) ]] ||
  fail "the layer differs from its tar: $(diff <(printed "$scratch/unpacked") <(printed "$place/diff") | head -n 5)"
ok "a layer is shown as its tar unpacks"
rm -rf "$scratch/unpacked"

# --- podman -----------------------------------------------------------------------------------------------------------------------
configure() { # configure DIR [LINE-OF-overlay-OPTIONS...]
  mkdir -p "$1"/{graph,run,tmp,home}
  {
    printf '[storage]\ndriver = "overlay"\ngraphroot = "%s"\nrunroot = "%s"\n' "$1/graph" "$1/run"
    printf '[storage.options]\nadditionallayerstores = ["%s:ref"]\n' "$scratch/layers"
    printf '[storage.options.overlay]\nmountopt = ""\n'
    printf '%s\n' "${@:2}"
  } > "$1/storage.conf"
  printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$address" > "$1/registries.conf"
  export CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_REGISTRIES_CONF=$1/registries.conf TMPDIR=$1/tmp HOME=$1/home
}
lent() { find "$scratch/store/lent" -type f | wc -l; }

for form in kernel mountd; do
  own=$scratch/$form
  case $form in
    kernel) configure "$own" ;;
    mountd) configure "$own" "mount_program = \"$mountd\"" ;;
  esac
  before=$(wc -l < "$scratch/registry.log")
  for image in redis python; do P pull -q "$address/$image:1" > "$scratch/pull" 2>&1 || fail "$form: pull $image: $(cat "$scratch/pull" "$scratch/layer-store.log")"; done
  ! grep -i warn "$scratch/pull" || fail "$form: podman is not content"
  tail -n "+$((before + 1))" "$scratch/registry.log" > "$scratch/asked"
  grep -q "GET /v2/redis/manifests" "$scratch/asked" || fail "$form: the registry was not asked for anything"
  same "$form: no layer is fetched" "" asked_for_layers
  size=$(du -s --block-size=1 "$own/graph" | cut -f 1)
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
  P save -q --format oci-archive -o "$scratch/saved.tar" "$address/redis:1" || fail "$form: save"
  same "$form: what podman saves is the image" "$(skopeo inspect --tls-verify=false --config --raw "docker://$address/redis:1")" skopeo inspect --config --raw "oci-archive:$scratch/saved.tar"
  rm "$scratch/saved.tar"
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
  same "$form: what nobody needs goes" 0 sh -c "ls '$scratch/store/layers' | wc -l"
  for image in redis python; do X pull -q --plain-http "$address/$image:1" >/dev/null || fail "plyfs pull $image"; done
done
end
no_mounts_below "$scratch"
[[ ! -s $scratch/layer-store.log ]] || ! grep -i error "$scratch/layer-store.log" || fail "the layer store tells errors"
printf 'passed %s\n' "$passed"
