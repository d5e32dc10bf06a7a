#!/usr/bin/env bash
# Has every write, sync, rename and removal of plyfs's store fail once, in turn: what was begun leaves nothing, what was there stays whole.
#
# usage: io-errors.sh PLYFS      (strace must be there: it injects the errors)
#
# The N-th such call of each thread fails, for N = 1, 2, ... until a run has no N-th one. A command then fails with one line, or its work
# is done and whole; in both cases fsck finds nothing, and the same command succeeds when it is
# repeated.
set -euo pipefail
trap 'echo "io-errors.sh: line $LINENO ended with $?" >&2' ERR
plyfs=$(readlink -f "${1:?usage: io-errors.sh PLYFS}")
command -v strace >/dev/null || { echo "io-errors.sh: strace: missing; apt-get install strace" >&2; exit 2; }
scratch=$(mktemp -d /var/tmp/plyfs-io-errors.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
failed=0
fail() { printf 'FAIL  %s\n' "$*"; failed=$((failed + 1)); }
ours() { "$plyfs" --root "$scratch/store" "$@"; }
calls=write,pwrite64,writev,copy_file_range,fsync,fdatasync,syncfs,rename,renameat,renameat2,linkat,mkdir,mkdirat,ftruncate,fallocate,unlink,unlinkat,fchmod,symlinkat

"$plyfs" sample >"$scratch/sample.tar"

# whole WHAT: the store is in order, and each image that it lists comes out of it.
whole() {
  local image
  ours images -q >"$scratch/images" 2>&1 || { fail "$1: images: $(tail -n 1 "$scratch/images")"; return; }
  ours fsck >"$scratch/fsck" 2>&1 || { fail "$1: fsck: $(tail -n 3 "$scratch/fsck" | tr '\n' ' ')"; return; }
  for image in $(sort -u "$scratch/images"); do
    ours save "$image" 2>"$scratch/said" | tar -t >/dev/null 2>&1 || fail "$1: $image is listed and not whole: $(head -c 200 "$scratch/said")"
  done
}

# storm WHAT BEFORE IMAGES COMMAND...: BEFORE makes the store as COMMAND finds it; so many images are there when it is done.
storm() {
  local what=$1 before=$2 images=$3 error n status refused=0 done=0
  shift 3
  for error in EIO ENOSPC; do
    for ((n = 1; n < 1000; n++)); do
      rm -rf "$scratch/store"
      "$before"
      status=0
      strace -f -qq -e "trace=$calls" -e "inject=$calls:error=$error:when=$n" -o "$scratch/trace" \
        "$plyfs" --root "$scratch/store" "$@" >"$scratch/out" 2>"$scratch/err" || status=$?
      grep -q INJECTED "$scratch/trace" || break
      if [[ $status == 0 ]]; then
        done=$((done + 1))
      else
        refused=$((refused + 1))
        # A line that could not be written is not missed.
        [[ -s $scratch/err ]] || grep -q 'write(2.*INJECTED' "$scratch/trace" || fail "$what, $error, call $n: $status without a word"
        ! grep -q 'panicked\|internal error' "$scratch/err" || fail "$what, $error, call $n: $(head -c 300 "$scratch/err")"
      fi
      whole "$what, $error, call $n (it ended with $status)"
      if ! ours "$@" >"$scratch/out" 2>&1 && [[ $status != 0 ]]; then
        # A name is taken from its image first. One that is gone cannot be removed again; its image is without a name then, and goes
        # as such images do.
        grep -q 'no such image' "$scratch/out" || fail "$what, $error, call $n: not to be repeated: $(tail -n 1 "$scratch/out")"
        ours image prune -f >/dev/null 2>"$scratch/said" || fail "$what, $error, call $n: prune: $(cat "$scratch/said")"
      fi
      whole "$what again, after $error, call $n"
      [[ $(sort -u "$scratch/images" | wc -l) == "$images" ]] || fail "$what again, after $error, call $n: images: $(cat "$scratch/images")"
    done
    [[ $n -gt 1 ]] || fail "$what, $error: there was no call that could fail"
  done
  printf 'ok    %-28s %4d runs failed in one line, %d succeeded all the same\n' "$what" "$refused" "$done"
}

nothing() { :; }
loaded() { ours load -q -i "$scratch/sample.tar" >/dev/null; }
tagged() { loaded; ours tag plyfs/sample other >/dev/null; }

storm "load" nothing 1 load -q -i "$scratch/sample.tar"
storm "tag" loaded 1 tag plyfs/sample other
storm "rmi of the last name" loaded 0 rmi plyfs/sample
storm "rmi of one of two names" tagged 1 rmi other
storm "gc" loaded 1 gc
storm "create" loaded 1 create plyfs/sample --name one
storm "save" loaded 1 save plyfs/sample -o "$scratch/saved.tar"
[[ $failed == 0 ]] && echo "no failing call breaks the store" || { echo "$failed failed"; exit 1; }
