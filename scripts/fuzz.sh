#!/usr/bin/env bash
# Fuzzes what is read from outside: layers, the store's indexes, manifests, configs and names.
#
# usage: scripts/fuzz.sh [SECONDS [TARGET]...]      (10 seconds for each target of fuzz/ unless told)
#
# Guided by coverage, on a stable compiler. cargo-fuzz needs a nightly one, for its sanitizers: it runs the same targets. What was
# found is kept in target/fuzz: corpus/TARGET grows from run to run, TARGET-crash-* is an input that failed.
# Corpora begin with small archives and documents, and with indexes where target/release/plyfs is built.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}
shift || true
read -r -a targets <<<"${*:-documents index tree tar}"
target=${CARGO_TARGET_DIR:-$PWD/target}
found=$target/fuzz
host=$(rustc -vV | sed -n 's/^host: //p')

# Flags for the targets and what they use; with --target build scripts go without.
RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0" \
  cargo build --quiet --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$found/build"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in "${targets[@]}"; do mkdir -p "$found/corpus/$name"; done

# seed TARGET FILE...: puts files into a corpus, by what is in them.
seed() {
  local name=$1 file
  shift
  for file; do
    [[ ! -d $found/corpus/$name ]] || cp "$file" "$found/corpus/$name/seed-$(sha256sum <"$file" | head -c 16)"
  done
}

mkdir -p "$scratch/tree/dir/sub"
(
  cd "$scratch/tree"
  echo one >one
  ln one two
  ln -s ../one dir/link
  mkfifo dir/pipe
  echo hidden >dir/.wh.gone
  echo >dir/sub/.wh..wh..opq
  truncate -s 100K sparse
  echo end >>sparse
  head -c 70000 /dev/urandom >large
)
for format in ustar gnu pax; do
  tar --format="$format" -C "$scratch/tree" --exclude large -cf "$scratch/$format.tar" .
  seed tar "$scratch/$format.tar"
done
for format in gnu pax; do
  tar --format="$format" --sparse -C "$scratch/tree" -cf "$scratch/$format.sparse.tar" sparse dir
  seed tar "$scratch/$format.sparse.tar"
done
digest=sha256:$(sha256sum </dev/null | head -c 64)
descriptor() { printf '{"mediaType":"application/vnd.oci.image.%s","digest":"%s","size":7%s}' "$1" "$digest" "${2-}"; }
cat >"$scratch/manifest" <<JSON
{"schemaVersion":2,"config":$(descriptor config.v1+json),"layers":[$(descriptor layer.v1.tar+gzip)],"annotations":{"a":"b"}}
JSON
cat >"$scratch/index" <<JSON
{"schemaVersion":2,"manifests":[$(descriptor manifest.v1+json ',"platform":{"os":"linux","architecture":"arm","variant":"v7"}')]}
JSON
cat >"$scratch/config" <<JSON
{"os":"linux","architecture":"amd64","config":{"Env":["A=b"],"Cmd":["sh"],"ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":["$digest"]},"history":[{"created":"2020-01-01T00:00:00Z","empty_layer":true}]}
JSON
printf 'host.name:5000/path/to/name:tag@%s' "$digest" >"$scratch/name"
seed documents "$scratch/manifest" "$scratch/index" "$scratch/config" "$scratch/name"
if [[ -x $target/release/plyfs ]]; then
  "$target/release/plyfs" sample | "$target/release/plyfs" --root "$scratch/store" load --quiet >/dev/null
  seed index "$scratch"/store/layers/*/index "$scratch"/store/folded/*
  seed tree "$scratch"/store/layers/*/index "$scratch"/store/folded/*
fi

# Stores are made and removed for each layer: in memory where there is such a place.
[[ ! -w /dev/shm ]] || export TMPDIR=/dev/shm
for name in "${targets[@]}"; do
  "$found/build/$host/release/$name" -max_total_time="$seconds" -max_len=200000 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
    -artifact_prefix="$found/$name-" "$found/corpus/$name" >"$scratch/said" 2>&1 || {
    tail -n 40 "$scratch/said"
    echo "FAIL  $name: the input is kept as $found/$name-*" >&2
    exit 1
  }
  awk -v name="$name" '/ cov: /{ for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
    /number_of_executed_units/ { runs = $2 }
    END { printf "ok    %-10s %8d inputs, %6d edges reached\n", name, runs, cov }' "$scratch/said"
done
