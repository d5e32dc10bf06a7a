#!/usr/bin/env bash
# Types the commands in their short form and under their noun, and checks how each ends and what it prints.
#
# usage: commands.sh PLYFS      (as root, so that it may mount; PLYFS is the built command)
#
# What is saved and committed is then read by skopeo, and by podman, which runs it; without them that part is skipped, and told; with
# PLYFS_NO_SKIP=1 it fails. Everything lies in a scratch directory that is removed, also when a check fails.
set -uo pipefail
plyfs=$(readlink -f "$1")
scratch=$(mktemp -d /var/tmp/plyfs-commands.XXXXXX)
export PLYFS_ROOT=$scratch/store
passed=0 failed=0
cleanup() {
  local m
  for m in "$scratch"/mnt*; do mountpoint -q "$m" 2>/dev/null && "$plyfs" umount --lazy "$m"; done
  rm -rf "$scratch"
}
trap cleanup EXIT

ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$1"; }
bad() { failed=$((failed + 1)); printf 'FAIL  %s\n%s\n' "$1" "${2-}" | sed '2,$s/^/      | /' >&2; }

# is WHAT STATUS REGEX COMMAND...: the exit status, and what standard output and standard error hold (grep -E, over all lines).
is() {
  local what=$1 status=$2 pattern=$3 out got
  shift 3
  out=$(set -o pipefail; "$@" 2>&1 </dev/null | tr -d '\0'); got=$?
  if [ "$got" = "$status" ] && grep -qzE -- "$pattern" <<<"$out"; then ok "$what"; else bad "$what (status $got, wanted $status and /$pattern/)" "$out"; fi
}
# both WHAT STATUS REGEX SHORT LONG [ARGUMENT...]: the short and the long form, with the same arguments.
both() {
  local what=$1 status=$2 pattern=$3 short=$4 long=$5
  shift 5
  # shellcheck disable=SC2086 # the forms are several words
  is "$short: $what" "$status" "$pattern" "$plyfs" $short "$@"
  # shellcheck disable=SC2086
  is "$long: $what" "$status" "$pattern" "$plyfs" $long "$@"
}
p() { "$plyfs" "$@"; }
id='[0-9a-f]{12}' sha='sha256:[0-9a-f]{64}'

p sample -o "$scratch/sample.tar"
both "an empty store is headers" 0 '^REPOSITORY +TAG +IMAGE ID +CREATED +SIZE\s*$' images "image ls"
both "loads an archive" 0 'Loaded image: plyfs/sample:latest' load "image load" -q -i "$scratch/sample.tar"
both "one row for each name" 0 "plyfs/sample +latest +$id +.* ago +[0-9.]+[kM]?B" images "image ls"
both "short ids" 0 "^$id\s*$" "images -q" "image ls -q"
both "whole ids" 0 "^$sha\s*$" "images -q --no-trunc" "image ls -q --no-trunc"
both "digests" 0 "REPOSITORY +TAG +DIGEST +IMAGE ID.*$sha" "images --digests" "image list --digests"
both "a template" 0 '^plyfs/sample:latest\s*$' images "image ls" --format '{{.Repository}}:{{.Tag}}'
both "JSON" 0 '"Repository": "plyfs/sample"' images "image ls" --format json
both "an unknown filter is an error" 1 "'colour' is no filter" images "image ls" --filter colour=red
both "names another" 0 '^\s*$' tag "image tag" plyfs/sample again:v1
both "filters by reference" 0 '^again +v1|again +v1' images "image ls" --filter 'reference=again:*'
both "inspects" 0 '"RootFS": \{' inspect "image inspect" plyfs/sample
for field in Id RepoTags RepoDigests Created Author Architecture Os Size RootFS Config.Env Config.Cmd Config.Entrypoint Config.Labels \
  Config.User Config.WorkingDir Config.ExposedPorts Config.Volumes; do
  is "inspect has .$field" 0 '' p inspect -f "{{json .$field}}" plyfs/sample
done
both "lists what is missing after what is there" 1 '"Id".*no such .*: none' inspect "image inspect" plyfs/sample none
both "history" 0 'IMAGE +CREATED +CREATED BY +SIZE +COMMENT.*<missing>' history "image history" plyfs/sample
both "tree" 0 "$id .*plyfs/sample:latest" tree "image tree"
both "saves to a file" 0 '^\s*$' save "image save" plyfs/sample again:v1 -o "$scratch/saved.tar"
both "saves to standard output" 0 manifest.json "save plyfs/sample" "image save plyfs/sample"
both "loads what it saved" 0 'Loaded image: again:v1.*Loaded image: plyfs/sample:latest' load "image load" -q -i "$scratch/saved.tar"

is "create prints an id" 0 '^[0-9a-f]{64}\s*$' p create plyfs/sample --name one
is "container create too" 0 '^[0-9a-f]{64}\s*$' p container create --name two plyfs/sample
is "a name is taken once" 1 'is taken by container' p create plyfs/sample --name one
both "lists containers" 0 "CONTAINER ID +IMAGE +CREATED +STATUS +MOUNT POINT +NAMES.*Not mounted.*one" "ps -a" "container ls -a"
both "lists only mounted ones" 0 'NAMES\s*$' ps "container ls"
both "inspects a container" 0 '"Name": "one"' inspect "container inspect" one
mkdir "$scratch/mnt" "$scratch/mnt-image"
is "mounts a container" 0 "$scratch/mnt" p mount one "$scratch/mnt"
is "mounts an image" 0 "$scratch/mnt-image" p image mount plyfs/sample "$scratch/mnt-image"
both "lists mounts" 0 "$scratch/mnt" mount "container mount"
both "a mounted one is listed" 0 'Mounted +.*/mnt +one' ps "container ls"
echo new >"$scratch/mnt/new" && mkdir "$scratch/mnt/dir"
both "tells changes" 0 'A /dir.*A /new' diff "container diff" one
both "commits a mounted one" 0 "^$sha\s*$" commit "container commit" one committed:live -m 'why' -a 'who' -c 'EXPOSE 80' -c 'CMD ["cat", "/new"]'
both "exports it" 0 "new" "export one" "container export one"
both "a mounted one stays" 1 'is mounted at' rm "container rm" one
is "umount" 0 '^\s*$' p umount "$scratch/mnt"
is "image umount" 0 '^\s*$' p image umount "$scratch/mnt-image"
is "the commit has what was said" 0 '80/tcp' p inspect -f '{{json .Config.ExposedPorts}}' committed:live
is "history tells the commit" 0 'why' p history committed:live
both "an image in use stays, and its user is named" 1 'container (one|two)' rmi "image rm" -f "$(p images -q plyfs/sample)"
is "removes one of several names" 0 '^Untagged: again:v1\s*$' p rmi again:v1
is "removes containers" 0 '^one\s*$' p rm one
is "container rm" 0 '^two\s*$' p container rm two
both "what is not there is an error" 1 'no such container: none' rm "container rm" none
both "with -f it is none" 0 '^\s*$' "rm -f" "container rm -f" none
both "no such image" 1 'no such image: none' rmi "image rm" none
both "with -f it is none" 0 '^\s*$' "rmi -f" "image rm -f" none

both "sizes" 0 'TYPE +TOTAL +ACTIVE +SIZE +RECLAIMABLE.*Images .*Containers ' df "system df"
both "sizes of each" 0 'SHARED SIZE +UNIQUE SIZE +CONTAINERS' "df -v" "system df -v"
is "df adds up to du" 0 "^$(du -s --block-size=1 "$PLYFS_ROOT" | cut -f1)\s*$" sh -c "'$plyfs' df --format '{{.Type}} {{.SizeBytes}}' | sed -n 's/^Total //p'"
both "about this machine" 0 'Store:.*Images:' info "system info"
both "the version" 0 '^plyfs [0-9]' version "system version"
both "collects garbage" 0 'Total reclaimed space: ' gc "system gc"
both "nothing is wrong" 0 'nothing is wrong' fsck "system fsck"
is "prune takes the commit whose name another took" 0 "^Deleted Images:.deleted: $sha..*Total reclaimed space: " p prune -f
is "image prune finds nothing more" 0 '^Total reclaimed space: 0B\s*$' p image prune -f
is "prunes containers" 0 'Total reclaimed space: ' p container prune -f

# --- other tools -----------------------------------------------------------------------------------------------------------
skip() { printf 'skip  %s\n' "$1"; [ -z "${PLYFS_SKIPS-}" ] || printf 'commands.sh: %s\n' "$1" >>"$PLYFS_SKIPS"
  [ -z "${PLYFS_NO_SKIP-}" ] || bad "nothing may be skipped: $1"; }
p save committed:live plyfs/sample -o "$scratch/docker.tar"
p save committed:live --format oci-archive -o "$scratch/oci.tar"
want=$(p inspect -f '{{.Id}}' committed:live)
if command -v skopeo >/dev/null; then
  is "skopeo reads the docker archive" 0 '80/tcp' skopeo inspect --config "docker-archive:$scratch/docker.tar:committed:live"
  is "skopeo reads it as an OCI archive too" 0 '80/tcp' skopeo inspect --config "oci-archive:$scratch/docker.tar:docker.io/library/committed:live"
  is "skopeo copies the OCI archive" 0 '' skopeo copy --quiet "oci-archive:$scratch/oci.tar" "dir:$scratch/dir"
  is "and gets the same image" 0 "$want" sh -c "skopeo inspect --raw 'oci-archive:$scratch/oci.tar'"
else
  skip "skopeo: not found; install the package skopeo"
fi
if command -v podman >/dev/null; then
  podman=(podman --root "$scratch/podman" --runroot "$scratch/podman-run" --storage-driver vfs)
  is "podman loads both images" 0 'committed:live.*sample:latest' "${podman[@]}" load -q -i "$scratch/docker.tar"
  is "under the same ID" 0 "${want#sha256:}" "${podman[@]}" inspect --format '{{.Id}}' localhost/committed:live
  is "podman sees the command" 0 'cat /new' "${podman[@]}" inspect --format '{{join .Config.Cmd " "}}' localhost/committed:live
  is "podman saves it back" 0 '' "${podman[@]}" save -q -o "$scratch/back.tar" localhost/committed:live
  is "and it is the image that it was" 0 "$want" sh -c "'$plyfs' load -q -i '$scratch/back.tar' && '$plyfs' inspect -f '{{.Id}}' localhost/committed:live"
  "${podman[@]}" rmi -af >/dev/null 2>&1
  umount "$scratch"/podman/vfs "$scratch"/podman "$scratch"/podman-run 2>/dev/null
else
  skip "podman: not found; install the package podman"
fi

# shellcheck disable=SC2046 # many ids at once, some twice
is "image rm -f takes many ids at once, also twice" 0 'Untagged: .*Deleted: sha256:' p image rm -f $(p image ls -q) $(p image ls -q)
is "then there is nothing" 0 '^\s*$' p images -q
is "and nothing is wrong" 0 '0 images, 0 layers, 0 objects, 0 containers.*nothing is wrong' p fsck
printf '%d ok, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
