#!/usr/bin/env bash
# Images go to a registry and come from it, between plyfs and skopeo, podman and buildah: each reads what the others wrote.
#
# usage: registry.sh PLYFS LAYOUT [TAG]     (as root; PLYFS is the built command, LAYOUT from scripts/make-images.sh, TAG is
# redis unless told)
#
# The registry is Debian's docker-registry on a port of its own. In all forms: OCI and docker's schema 2, gzip and zstd, an OCI index
# and a docker manifest list; schema 1 is refused. Everything lies in a scratch directory that is removed, also when a check fails.
# Without one of the programs the script is skipped, and told; with PLYFS_NO_SKIP=1 it fails.
set -uo pipefail
plyfs=$(readlink -f "$1") layout=$(readlink -f "$2") tag=${3:-redis}
for program in docker-registry skopeo podman buildah; do
  command -v "$program" >/dev/null && continue
  printf 'skip  %s: not found; install the package %s\n' "$program" "$program"
  [ -z "${PLYFS_SKIPS-}" ] || printf 'registry.sh: %s is not found; install the package %s\n' "$program" "$program" >>"$PLYFS_SKIPS"
  [ -z "${PLYFS_NO_SKIP-}" ]
  exit
done
scratch=$(mktemp -d /var/tmp/plyfs-registry.XXXXXX)
export PLYFS_ROOT=$scratch/store TMPDIR=$scratch/tmp REGISTRY_AUTH_FILE=$scratch/auth.json
mkdir "$TMPDIR" && echo '{}' >"$REGISTRY_AUTH_FILE"
passed=0 failed=0 registry=
cleanup() {
  [ -z "$registry" ] || { kill "$registry" && wait "$registry"; } 2>/dev/null
  buildah "${storage[@]}" rm -a >/dev/null 2>&1
  umount "$scratch"/podman/vfs "$scratch"/podman "$scratch"/podman-run 2>/dev/null
  rm -rf --one-file-system "$scratch"
}
storage=(--root "$scratch/podman" --runroot "$scratch/podman-run" --storage-driver vfs)
trap cleanup EXIT
ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$1"; }
bad() { failed=$((failed + 1)); printf 'FAIL  %s\n%s\n' "$1" "${2-}" | sed '2,$s/^/      | /' >&2; }
# works WHAT COMMAND...
works() { local what=$1 out; shift; if out=$("$@" 2>&1 </dev/null); then ok "$what"; else bad "$what (status $?)" "$out"; fi; }
# same WHAT WANTED COMMAND...: what it prints.
same() { local what=$1 want=$2 out; shift 2; out=$("$@" 2>&1 </dev/null); if [ "$out" = "$want" ]; then ok "$what"; else bad "$what: wanted '$want'" "$out"; fi; }

cat >"$scratch/config.yml" <<YAML
version: 0.1
log: {level: info}
storage: {filesystem: {rootdirectory: $scratch/registry}}
http: {addr: 127.0.0.1:0}
compatibility: {schema1: {enabled: true}}
YAML
# It would take REGISTRY_AUTH_FILE for a setting of its own.
env -u REGISTRY_AUTH_FILE docker-registry serve "$scratch/config.yml" >"$scratch/log" 2>&1 &
registry=$!
host=
for _ in $(seq 200); do
  host=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\)[^0-9].*/\1/p' "$scratch/log" | head -1)
  [ -z "$host" ] || break
  sleep 0.1
done
[ -n "$host" ] || { cat "$scratch/log" >&2; exit 1; }

p() { "$plyfs" "$@"; }
pull() { p pull -q --plain-http "$@"; }
sk() { skopeo "$@"; }
id_of() { p inspect -f '{{.Id}}' "$1"; }
layers_of() { p inspect -f '{{json .RootFS.Layers}}' "$1"; }
# The digest of what the registry has under a name: of its bytes.
raw_digest() { echo "sha256:$(sk inspect --raw --tls-verify=false "docker://$1" | sha256sum | cut -d' ' -f1)"; }

works "the real image loads" p load -q "oci:$layout:$tag"
id=$(id_of "$tag") layers=$(layers_of "$tag")

# --- schema 2, while the registry has no blob that schema 2 cannot name: skopeo, podman and buildah send none twice ------
theirs=$host/theirs/$tag
works "saves both forms" sh -c "'$plyfs' save '$tag' -o '$scratch/docker.tar' && '$plyfs' save '$tag' --format oci-archive -o '$scratch/oci.tar'"
works "skopeo copies the docker archive as schema 2" sk copy -q --dest-tls-verify=false --format v2s2 "docker-archive:$scratch/docker.tar" "docker://$theirs:v2s2"
works "podman loads the docker archive" podman "${storage[@]}" load -q -i "$scratch/docker.tar"
works "buildah pushes it as schema 2" buildah "${storage[@]}" push -q --tls-verify=false --format v2s2 "${id#sha256:}" "docker://$theirs:buildah"
works "skopeo pushes schema 1" sk copy -q --src-tls-verify=false --dest-tls-verify=false --format v2s1 "docker://$theirs:v2s2" "docker://$theirs:v2s1"

# --- they read what we pushed -------------------------------------------------------------------------------------------
for form in gzip zstd; do
  name=$host/ours/$tag:$form
  # A store that knows what is there would push no layer a second time.
  digest=$(PLYFS_ROOT=$scratch/store-$form sh -c "'$plyfs' load -q 'oci:$layout:$tag' >/dev/null && '$plyfs' push -q --plain-http --compression-format $form $tag '$name'")
  same "$form: the digest that was printed is what is there" "$digest" raw_digest "$name"
  works "$form: skopeo copies it, and checks every digest" sk copy -q --src-tls-verify=false "docker://$name" "oci:$scratch/copy:$form"
  works "$form: podman pulls it" podman "${storage[@]}" pull -q --tls-verify=false "$name"
  same "$form: podman has it under the same ID" "${id#sha256:}" podman "${storage[@]}" inspect --format '{{.Id}}' "$name"
  works "$form: buildah takes it" buildah "${storage[@]}" from --name "from-$form" --tls-verify=false --pull "$name"
  works "$form: and runs a program of it" buildah "${storage[@]}" run --isolation chroot "from-$form" -- /bin/sh -c 'test -e /etc/passwd'
done
works "zstd is what travelled" sh -c "skopeo inspect --raw --tls-verify=false 'docker://$host/ours/$tag:zstd' | grep -q tar+zstd"

# --- they read what we saved --------------------------------------------------------------------------------------------
for archive in docker-archive:$scratch/docker.tar oci-archive:$scratch/oci.tar; do
  kind=${archive%%:*}
  works "$kind: skopeo copies it into the registry" sk copy -q --dest-tls-verify=false --format oci "$archive" "docker://$host/saved/$tag:$kind"
  works "$kind: buildah takes it" buildah "${storage[@]}" from --name "from-$kind" "$archive"
done

# --- we read what they pushed -------------------------------------------------------------------------------------------
works "skopeo pushes OCI" sk copy -q --dest-tls-verify=false "oci:$layout:$tag" "docker://$theirs:oci"
works "podman pushes zstd" podman "${storage[@]}" push -q --tls-verify=false --format oci --compression-format zstd "$host/ours/$tag:gzip" "docker://$theirs:zstd"
works "buildah makes an index" sh -c "buildah ${storage[*]} manifest create all && buildah ${storage[*]} manifest add --tls-verify=false all 'docker://$theirs:oci'"
works "and pushes it as an OCI index" buildah "${storage[@]}" manifest push --all --tls-verify=false --format oci all "docker://$theirs:index"
works "buildah makes a list" sh -c "buildah ${storage[*]} manifest create list && buildah ${storage[*]} manifest add --tls-verify=false list 'docker://$theirs:v2s2'"
works "and pushes it as a docker manifest list" buildah "${storage[@]}" manifest push --all --tls-verify=false --format v2s2 list "docker://$theirs:list"
works "the index is one" sh -c "skopeo inspect --raw --tls-verify=false 'docker://$theirs:index' | grep -q image.index.v1"
works "the list is one" sh -c "skopeo inspect --raw --tls-verify=false 'docker://$theirs:list' | grep -q manifest.list.v2"
for form in oci v2s2 zstd buildah index list; do
  export PLYFS_ROOT=$scratch/theirs-$form
  works "$form: we pull it" pull "$theirs:$form"
  same "$form: the layers are what they were" "$layers" layers_of "$theirs:$form"
  case $form in oci | index) same "$form: and the ID" "$id" id_of "$theirs:$form" ;; esac
  same "$form: the digest is what the registry has under the name" "$(raw_digest "$theirs:$form")" p images --digests --format '{{.Digest}}'
  works "$form: by that digest it is here, too" p inspect "$theirs@$(raw_digest "$theirs:$form")"
  works "$form: the registry tells of it without a pull" p manifest inspect -v --plain-http "$theirs:$form"
  works "$form: the store is sound" p fsck -q
done
export PLYFS_ROOT=$scratch/saved
for kind in docker-archive oci-archive; do
  works "$kind: we pull what skopeo copied from it" pull "$host/saved/$tag:$kind"
  same "$kind: it is the image that it was" "$id" id_of "$host/saved/$tag:$kind"
done
podman "${storage[@]}" save -q -o "$scratch/podman.tar" "$host/ours/$tag:gzip"
podman "${storage[@]}" save -q --format oci-archive -o "$scratch/podman-oci.tar" "$host/ours/$tag:gzip"
for archive in podman.tar podman-oci.tar; do
  export PLYFS_ROOT=$scratch/load-$archive
  works "we load podman's $archive" p load -q -i "$scratch/$archive"
  same "it is the image that it was" "$id" p images -q --no-trunc
done

# --- schema 1 -----------------------------------------------------------------------------------------------------------
out=$(pull "$theirs:v2s1" 2>&1)
if [[ $? == 1 && $out == *"schema 1"* ]]; then ok "schema 1 is refused, by name"; else bad "schema 1" "$out"; fi
works "and the store stays sound" p fsck -q
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
