#!/usr/bin/env bash
# Builds real images with shared layers, out of Debian, PyPI and npm packages, as one OCI layout: DIR/oci.
#
#   scripts/make-images.sh [DIR [IMAGE...]]      DIR is /tmp/images unless given; all images unless some are named
#
#   base     a minimal Debian                          1 layer
#   redis    base + redis-server                       2 layers
#   nginx    base + nginx                              2 layers
#   python   base + Python with pip                    2 layers
#   build    base + gcc, make, git, perl               2 layers
#   sci      python + numpy, pandas, scipy, flask      4 layers, whiteouts in the last
#   node     base + Node.js + an application           3 layers, many small files
#
# Run again, it builds what is missing. Needs root and the network, and mmdebstrap, buildah, skopeo; for sci also
# python3 with pip, for node also npm.
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
    apt-get -qq install --no-install-recommends $* >/dev/null
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
  local container wheels=$dir/wheels
  local install="pip install --quiet --no-cache-dir --no-index --find-links /wheels --break-system-packages"
  need python3 python3
  image python
  mkdir -p "$wheels"
  # For the Python of the image, whatever this machine's is.
  python3 -m pip download --quiet --dest "$wheels" --only-binary :all: --python-version 3.11 \
    numpy pandas scipy flask requests
  built sci.numbers || {
    container=$(from localhost/python)
    buildah run --isolation chroot --volume "$wheels:/wheels:ro" "$container" -- \
      sh -ec "$install --root-user-action=ignore numpy pandas scipy"
    commit "$container" sci.numbers
  }
  container=$(from localhost/sci.numbers)
  buildah run --isolation chroot --volume "$wheels:/wheels:ro" "$container" -- \
    sh -ec "$install --root-user-action=ignore flask requests; rm -rf /usr/share/doc /usr/share/man"
  commit "$container" sci
}

build_node() {
  local container
  need npm npm
  mkdir -p "$dir/npm"
  npm install --silent --ignore-scripts --no-audit --no-fund --prefix "$dir/npm" \
    webpack eslint jest typescript react react-dom express lodash >/dev/null
  with_packages node.runtime base nodejs
  container=$(from localhost/node.runtime)
  buildah add --quiet "$container" "$dir/npm/node_modules" /app/node_modules >/dev/null
  buildah config --workingdir /app --entrypoint '["node"]' --user 1000:1000 --port 8080 "$container"
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
