#!/usr/bin/env bash
# Builds real images with shared layers out of Debian packages, as one OCI layout: DIR/oci.
#
#   scripts/make-images.sh [DIR [IMAGE...]]      DIR is /tmp/images unless given; all images unless some are named
#
#   base     a minimal Debian                                1 layer
#   redis    base + redis-server                             2 layers
#   nginx    base + nginx                                    2 layers
#   python   base + Python with pip                          2 layers
#   build    base + gcc, make, git, perl                     2 layers
#   sci      python + numpy, pandas, scipy; then flask       5 layers, whiteouts in the last
#   node     base + Node.js with npm, webpack, eslint        3 layers, many small files, files of user 1000
#
# Run again, it builds what is missing. Needs root, a Debian mirror, and the packages mmdebstrap, buildah, skopeo.
set -euo pipefail

dir=${1:-/tmp/images}
shift || true
all=(base redis nginx python build sci node)
wanted=("${@:-${all[@]}}")

die() { echo "make-images.sh: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "$1 is missing; install it with: apt-get install $2"; }

[ "$(id -u)" = 0 ] || die "root is needed, to make files of every owner"
need mmdebstrap mmdebstrap
need buildah buildah
need skopeo skopeo
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# A storage of its own, so that nothing of the machine's own containers is touched.
printf '[storage]\ndriver = "overlay"\ngraphroot = "%s/graph"\nrunroot = "%s/run"\n' "$dir" "$dir" >"$dir/storage.conf"
printf '{"default":[{"type":"insecureAcceptAnything"}]}\n' >"$dir/policy.json"
export CONTAINERS_STORAGE_CONF=$dir/storage.conf

from() { buildah from --signature-policy "$dir/policy.json" "$1"; }
inside() { local container=$1; shift; buildah run --isolation chroot "$container" -- "$@"; }
commit() { buildah commit --quiet --rm --signature-policy "$dir/policy.json" "$1" "localhost/$2" >/dev/null; }
built() { buildah images --quiet "localhost/$1" >/dev/null 2>&1; }

# with_packages NAME PARENT PACKAGE...: one layer of Debian packages.
with_packages() {
  local name=$1 parent=$2 container
  shift 2
  built "$name" && return
  image "$parent"
  container=$(from "localhost/$parent")
  inside "$container" sh -ec "
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --no-install-recommends $* >/dev/null 2>&1 || { echo 'cannot install $*' >&2; exit 1; }
    rm -rf /var/lib/apt/lists/*"
  commit "$container" "$name"
}

build_base() {
  local container
  [ -f "$dir/base.tar" ] || mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$dir/base.tar"
  container=$(from scratch)
  buildah add --quiet "$container" "$dir/base.tar" / >/dev/null
  buildah config --cmd /bin/bash --env LANG=C.UTF-8 --label org.opencontainers.image.title=base "$container"
  commit "$container" base
}

build_sci() {
  local container
  with_packages sci.numbers python python3-numpy python3-pandas python3-scipy
  with_packages sci.web sci.numbers python3-flask python3-requests
  container=$(from localhost/sci.web)
  inside "$container" rm -rf /usr/share/doc /usr/share/man
  commit "$container" sci
}

build_node() {
  local container app=$dir/app
  with_packages node.runtime base nodejs npm webpack eslint
  mkdir -p "$app"
  echo 'require("http").createServer((q, a) => a.end("hello\n")).listen(8080);' >"$app/index.js"
  container=$(from localhost/node.runtime)
  buildah add --quiet --chown 1000:1000 "$container" "$app" /app >/dev/null
  buildah config --workingdir /app --entrypoint '["node", "index.js"]' --user 1000:1000 --port 8080 "$container"
  commit "$container" node
}

# image NAME: builds it, and first what it stands on, unless it is there.
image() {
  built "$1" && return
  case $1 in
    base) build_base ;;
    redis) with_packages redis base redis-server ;;
    nginx) with_packages nginx base nginx-light ;;
    python) with_packages python base python3 python3-pip python3-venv ;;
    build) with_packages build base gcc libc6-dev make git perl ;;
    sci) build_sci ;;
    node) build_node ;;
    *) die "$1: no such image; there are ${all[*]}" ;;
  esac
}

for name in "${wanted[@]}"; do
  skopeo inspect --raw "oci:$dir/oci:$name" >/dev/null 2>&1 && { echo "$name: is there"; continue; }
  image "$name"
  buildah push --quiet --format oci --signature-policy "$dir/policy.json" "localhost/$name" "oci:$dir/oci:$name"
  echo "$name: built"
done
du -sh "$dir/oci"
