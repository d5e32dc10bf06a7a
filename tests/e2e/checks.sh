# Checks that the scripts for runtimes share; to be sourced.
passed=0
ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }

# expect WHAT TEXT COMMAND...: what it says contains the text.
expect() {
  local what=$1 want=$2 got
  shift 2
  got=$("$@" 2>&1) || fail "$what: status $?: $got"
  [[ $got == *"$want"* ]] || fail "$what: expected '$want', got '$got'"
  ok "$what"
}

# same WHAT TEXT COMMAND...: what it says is the text, and nothing more.
same() {
  local what=$1 want=$2 got
  shift 2
  got=$("$@" 2>&1) || fail "$what: status $?: $got"
  [[ $got == "$want" ]] || fail "$what: expected '$want', got '$got'"
  ok "$what"
}

mounts_below() { awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r; }

# no_mounts_below DIR: a mount that a program gives up late may take a moment.
no_mounts_below() {
  local i left=
  for i in $(seq 100); do
    left=$(mounts_below "$1" | grep fuse || true; awk -v dir="$1/" 'index($5, dir) == 1 && / - fuse/ { print $5 }' /proc/self/mountinfo)
    [[ -z $left ]] && break
    sleep 0.1
  done
  [[ -z $left ]] || fail "mounts are left: $left"
  ok "nothing is left mounted"
}

# started_in DIR: the processes that were started for a scratch directory: its name is on their command line or in their environment.
started_in() {
  local pid
  for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    [[ $pid == "$$" || $pid == "$BASHPID" ]] && continue
    if { tr '\0' '\n' < "/proc/$pid/cmdline" | grep -qF -- "$1/" || tr '\0' '\n' < "/proc/$pid/environ" | grep -qF -- "$1/"; } 2>/dev/null; then
      echo "$pid"
    fi
  done
}

# clear_away DIR: ends what was started for the directory, unmounts what is below, and removes it.
clear_away() {
  local dir=$1 signal mount pid
  for signal in TERM KILL; do
    for pid in $(started_in "$dir"); do kill "-$signal" "$pid" 2>/dev/null || true; done
    for _ in $(seq 30); do [[ -z $(started_in "$dir") ]] && break; sleep 0.1; done
  done
  while read -r mount; do umount -l "$mount" 2>/dev/null || true; done < <(mounts_below "$dir")
  rm -rf --one-file-system "$dir"
}
