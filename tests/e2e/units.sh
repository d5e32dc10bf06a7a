#!/usr/bin/env bash
# Has systemd-analyze read the units in contrib, with a program that is there in the place of the installed plyfs.
#
# usage: units.sh PLYFS
set -euo pipefail
plyfs=$(readlink -f "$1") contrib=$(dirname "$(readlink -f "$0")")/../../contrib
if ! command -v systemd-analyze >/dev/null; then
  printf 'plyfs e2e/units.sh: %s\n' "systemd-analyze is not installed; apt-get install systemd" >> "${PLYFS_SKIPS:-/dev/stderr}"
  [[ ${PLYFS_NO_SKIP:-} != 1 ]] || exit 1
  exit 0
fi
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
units=("$contrib"/*/*.service)
for unit in "${units[@]}"; do sed "s#=/usr/local/bin/plyfs #=$plyfs #" "$unit" > "$scratch/${unit##*/}"; done
[[ $(grep -l "^ExecStart=$plyfs " "$scratch"/*.service | wc -l) == "${#units[@]}" ]] || { echo "FAIL  a unit does not start plyfs" >&2; exit 1; }
said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify "$scratch"/*.service 2>&1) || { printf 'FAIL  %s\n' "$said" >&2; exit 1; }
[[ -z $said ]] || { printf 'FAIL  %s\n' "$said" >&2; exit 1; }
# Every command that a unit runs is one of plyfs.
for unit in "$scratch"/*.service; do
  read -r -a words < <(sed -n 's/^ExecStart=//p' "$unit")
  for word in "${words[@]:1}"; do case $word in snapshotter | layer-store) "$plyfs" "$word" --help >/dev/null; echo "ok    ${unit##*/}: $word" ;; esac; done
done
