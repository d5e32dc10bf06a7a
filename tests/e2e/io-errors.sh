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

# whole: the store is in order, and each image that it lists comes out of it.
whole() {
  local image
  ours fsck >"$scratch/fsck" 2>&1 || { fail "$1: fsck: $(tail -n 3 "$scratch/fsck" | tr '\n' ' ')"; return; }
  for image in $(ours images -q | sort -u); do
    ours save "$image" 2>"$scratch/said" | tar -t >/dev/null 2>&1 || fail "$1: $image is listed and not whole: $(head -c 200 "$scratch/said")"
  done
}

# storm WHAT BEFORE COMMAND...: BEFORE makes the store as COMMAND finds it.
storm() {
  local what=$1 before=$2 error n status refused=0 done=0
  shift 2
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
      # A name that is gone cannot be removed again.
      ours "$@" >"$scratch/out" 2>&1 || [[ $status == 0 ]] || grep -q 'no such image' "$scratch/out" || fail "$what, $error, call $n: not to be repeated: $(tail -n 1 "$scratch/out")"
      whole "$what again, after $error, call $n"
    done
    [[ $n -gt 1 ]] || fail "$what, $error: there was no call that could fail"
  done
  printf 'ok    %-28s %4d runs failed in one line, %d succeeded all the same\n' "$what" "$refused" "$done"
}

nothing() { :; }
loaded() { ours load -q -i "$scratch/sample.tar" >/dev/null; }
removed() { loaded; ours tag plyfs/sample other >/dev/null; ours rmi plyfs/sample >/dev/null; }

storm "load" nothing load -q -i "$scratch/sample.tar"
storm "tag" loaded tag plyfs/sample other
storm "rmi of the last name" loaded rmi plyfs/sample
storm "rmi of one of two names" removed rmi other
storm "gc" loaded gc
storm "create" loaded create plyfs/sample --name one
storm "save" loaded save plyfs/sample -o "$scratch/saved.tar"
[[ $failed == 0 ]] && echo "no failing call breaks the store" || { echo "$failed failed"; exit 1; }
