#!/usr/bin/env bash
# Runs real images as OCI bundles, by crun and runc, as root and as an ordinary user.
#
# usage: bundle.sh PLYFS LAYOUT      (as root; LAYOUT from scripts/make-images.sh; PLYFS the built command)
#
# What was mounted is unmounted and the scratch directory removed, also when a step fails. crun refuses hosts that have both
# versions of control groups: there it runs in a mount namespace without the second.
set -euo pipefail
plyfs=$(readlink -f "$1") layout=$(readlink -f "$2")
if [[ ${3-} != inside ]]; then
  exec unshare --mount "$0" "$plyfs" "$layout" inside
fi
user=plyfs-ci
umount /sys/fs/cgroup/unified 2>/dev/null || true # only of this namespace
passed=0
ok() { passed=$((passed + 1)); printf 'ok    %s\n' "$*"; }
fail() { printf 'FAIL  %s\n' "$*" >&2; exit 1; }
# gives STATUS OUTPUT WHAT COMMAND...: the command ends so and prints that (a part of it).
gives() { local status=$1 want=$2 what=$3 got code=0; shift 3; got=$("$@" 2>&1) || code=$?
  [[ $code == "$status" && $got == *"$want"* ]] || fail "$what: expected status $status and '$want', got $code and '$got'"; ok "$what"; }

scratch=$(mktemp -d /var/tmp/plyfs-bundle.XXXXXX)
chmod 755 "$scratch"
mkdir -p "$scratch"/{tmp,user/tmp,volume}
export PLYFS_ROOT=$scratch/store TMPDIR=$scratch/tmp
cleanup() {
  local id m
  for id in $("$plyfs" ps -aq); do "$plyfs" rm -f "$id" >/dev/null || true; done
  for m in "$scratch"/*/rootfs; do mountpoint -q "$m" && "$plyfs" umount --lazy "$m"; done
  rm -rf "$scratch"
}
trap cleanup EXIT
hashed() { (cd "$PLYFS_ROOT" && find layers objects folded -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum); }
runtimes=()
for runtime in crun runc; do
  PATH=$PATH:/usr/sbin command -v $runtime >/dev/null && { runtimes+=("$runtime"); continue; }
  printf 'plyfs e2e/bundle.sh: %s is not installed; apt-get install %s\n' $runtime $runtime >> "${PLYFS_SKIPS:-/dev/stderr}"
  [[ ${PLYFS_NO_SKIP:-} != 1 ]] || fail "$runtime is not installed"
done
for image in base redis python; do "$plyfs" load -q "oci:$layout:$image" >/dev/null || fail "load $image"; done
before=$(hashed)

# no_trace WHAT: nothing is mounted, no container, no temporary file is left.
no_trace() {
  [[ -z $("$plyfs" ps -aq) ]] || fail "$1: a container is left: $("$plyfs" ps -a)"
  ! grep -q "$scratch" /proc/self/mountinfo || fail "$1: a mount is left: $(grep "$scratch" /proc/self/mountinfo)"
  [[ -z $(ls -A "$scratch/tmp") ]] || fail "$1: files are left: $(ls -A "$scratch/tmp")"
  ok "nothing is left: $1"
}

# What every runtime and every user can do; plyfs_as is the command that runs plyfs.
common() {
  local as=$1 runtime=$2; shift 2
  run() { "${plyfs_as[@]}" run --rm --runtime "$runtime" "$@"; }
  gives 7 "42" "$as, $runtime: python, exit status" run python python3 -c 'import sys; print(6*7); sys.exit(7)'
  gives 0 "v=7" "$as, $runtime: redis" run redis redis-server --version
  gives 143 "" "$as, $runtime: killed by a signal" run base sh -c 'sh -c "kill -TERM \$\$"; exit $?'
  gives 0 "one two" "$as, $runtime: variables" env GIVEN=two "${plyfs_as[@]}" run --rm --runtime "$runtime" -e A=one -e GIVEN base sh -c 'echo $A $GIVEN'
  gives 0 "from here" "$as, $runtime: standard input" bash -c 'echo from here | "$@"' - "${plyfs_as[@]}" run --rm -i --runtime "$runtime" base cat
  gives 0 "/usr/lib" "$as, $runtime: directory" run -w /usr/lib base pwd
  gives 0 "uid=33(www-data) gid=33(www-data)" "$as, $runtime: user by name" run -u www-data base id
  gives 125 "no user 'nobody-here'" "$as, $runtime: unknown user" run -u nobody-here base id
  gives 0 "in the volume" "$as, $runtime: volume" run -v "$scratch/volume:/data" base cat /data/file
  gives 1 "Read-only file system" "$as, $runtime: volume, read-only" run -v "$scratch/volume:/data:ro" base touch /data/new
  gives 1 "Read-only file system" "$as, $runtime: root, read-only" run --read-only base touch /new
  gives 0 "lo" "$as, $runtime: a network of its own" run base sh -c 'tail -n +3 /proc/net/dev | cut -d: -f1'
  gives 0 "CapBnd:	00000000a80425fb" "$as, $runtime: capabilities" run base grep CapBnd /proc/self/status
  gives 125 "plyfs: " "$as, $runtime: a name that is no image" run not/an-image
  gives 127 "" "$as, $runtime: a command that is not there" run base no-such-command
  gives 127 "" "$as, $runtime: a path that is not there" run base /no/such/command
  gives 126 "" "$as, $runtime: a command that is no program" run base /etc/passwd
  gives 1 "" "$as, $runtime: a command that ends with 1" run base false
  gives 0 "/made/for/this" "$as, $runtime: a directory that is not there is made" run -w /made/for/this base pwd
  # A named volume: the image's content first, then what is written, whoever runs.
  gives 0 "bash.bashrc" "$as, $runtime: a named volume has the image's content" run -v kept-$runtime:/etc base ls /etc
  gives 0 "640 0:42" "$as, $runtime: with its owners and modes" run -v kept-$runtime:/v base stat -c '%a %u:%g' /v/shadow
  gives 0 "" "$as, $runtime: it is written" run -u 33 -v kept-$runtime:/v base sh -c 'test ! -w /v/passwd'
  gives 0 "" "$as, $runtime: by root" run -v kept-$runtime:/v base sh -c 'echo lasting > /v/new'
  gives 0 "lasting" "$as, $runtime: and lasts" run -v kept-$runtime:/v:ro base cat /v/new
  gives 0 "kept-$runtime" "$as, $runtime: it is listed" "${plyfs_as[@]}" volume ls -q
  gives 0 "kept-$runtime" "$as, $runtime: it is removed" "${plyfs_as[@]}" volume rm kept-$runtime
  gives 125 "no/such/dir" "$as, $runtime: a directory that is not there is refused" run -v /no/such/dir:/x base true
  gives 0 "uid=33(www-data) gid=42(shadow) groups=42(shadow)" "$as, $runtime: user and group" run -u 33:shadow base id
  gives 0 "[]" "$as, $runtime: a variable that is not set is not passed on" env -u NOT_SET_HERE "${plyfs_as[@]}" run --rm --runtime "$runtime" -e NOT_SET_HERE base sh -c 'echo "[$(env | grep NOT_SET_HERE)]"'
  gives 0 "instead of echo" "$as, $runtime: another entrypoint" run --entrypoint echo base instead of echo
  gives 0 "terminal" "$as, $runtime: a terminal" script -qec "$(printf '%q ' "${plyfs_as[@]}") run --rm -it --runtime $runtime base sh -c 'test -t 0 -a -t 1 && echo terminal'" /dev/null
}
echo "in the volume" > "$scratch/volume/file"

# Redis for a while: it answers, and ends by the signal that plyfs gets.
serves() {
  local as=$1 runtime=$2 port=$((20000 + RANDOM % 10000)) pid i code=0
  "${plyfs_as[@]}" run --rm --net=host --runtime "$runtime" redis redis-server --port $port --save '' >"$scratch/out" 2>&1 & pid=$!
  for i in $(seq 100); do grep -q 'Ready to accept' "$scratch/out" && break; sleep 0.1; done
  exec 5<>/dev/tcp/127.0.0.1/$port || fail "$as, $runtime: redis does not listen: $(cat "$scratch/out")"
  printf 'PING\r\n' >&5; read -r -t 10 answer <&5; exec 5>&-
  [[ $answer == +PONG* ]] || fail "$as, $runtime: redis answered '$answer'"
  kill -TERM $pid
  wait $pid || code=$?
  grep -q 'Received SIGTERM' "$scratch/out" || fail "$as, $runtime: redis did not get the signal: $(cat "$scratch/out")"
  [[ $code == 0 ]] || fail "$as, $runtime: redis ended with $code"
  ok "$as, $runtime: redis serves, and ends by a signal"
}

plyfs_as=("$plyfs")
for runtime in "${runtimes[@]}"; do
  common root "$runtime"
  serves root "$runtime"
  no_trace "root, $runtime"
  # Without --rm the container stays, with what was written.
  "$plyfs" run --name kept --runtime "$runtime" base sh -c 'echo kept > /srv/file'
  gives 0 "A /srv/file" "root, $runtime: a container stays" "$plyfs" diff kept
  gives 125 "kept" "root, $runtime: its name is taken" "$plyfs" run --name kept --runtime "$runtime" base true
  # Its bundle, run by hand.
  "$plyfs" bundle kept "$scratch/kept" -- cat /srv/file >/dev/null
  gives 0 "kept" "root, $runtime: bundle of a container" env "PATH=$PATH:/usr/sbin" $runtime --root "$scratch/state" run --bundle "$scratch/kept" one
  "$plyfs" umount "$scratch/kept/rootfs"; rm -r "$scratch/kept"; "$plyfs" rm kept >/dev/null
  "$plyfs" bundle python "$scratch/image" -- python3 -c 'open("/new", "w")' >/dev/null
  gives 1 "Read-only file system" "root, $runtime: bundle of an image" env "PATH=$PATH:/usr/sbin" $runtime --root "$scratch/state" run --bundle "$scratch/image" two
  gives 1 "there already" "root, $runtime: a bundle is not overwritten" "$plyfs" bundle python "$scratch/image"
  "$plyfs" umount "$scratch/image/rootfs"; rm -r "$scratch/image" "$scratch/state"
  no_trace "root, $runtime, bundles"
done
[[ $(hashed) == "$before" ]] || fail "something below the containers changed"
ok "the lower is bit-identical"

# As an ordinary user, in the user namespace that plyfs makes.
id -u $user >/dev/null 2>&1 || useradd -m $user
grep -q "^$user:" /etc/subuid || { echo "$user:2000000:65536" >> /etc/subuid; echo "$user:2000000:65536" >> /etc/subgid; }
cp "$plyfs" "$scratch/plyfs"; chmod 755 "$scratch/plyfs"; chown -R $user: "$scratch/user" "$scratch/volume"
plyfs=$scratch/plyfs
export PLYFS_ROOT=$scratch/user/store TMPDIR=$scratch/user/tmp
plyfs_as=(setpriv --reuid=$user --regid=$user --init-groups env "HOME=$scratch/user" "$plyfs")
root_cleanup() { "${plyfs_as[@]}" ps -aq | xargs -r "${plyfs_as[@]}" rm -f >/dev/null || true; cleanup; }
trap root_cleanup EXIT
cd "$scratch/user"
for image in base redis python; do "${plyfs_as[@]}" load -q "oci:$layout:$image" >/dev/null || fail "$user: load $image"; done
for runtime in "${runtimes[@]}"; do
  common $user "$runtime"
  serves $user "$runtime"
  # What is closed to the user outside of the namespace.
  "${plyfs_as[@]}" run --name closed --runtime "$runtime" base sh -c 'mkdir /closed && echo x > /closed/f && chown -R 33:33 /closed && chmod 700 /closed'
  gives 1 "plyfs unshare" "$user, $runtime: diff of what is closed tells the way" "${plyfs_as[@]}" diff closed
  gives 0 "A /closed/f" "$user, $runtime: diff in the namespace" "${plyfs_as[@]}" unshare "$plyfs" diff closed
  gives 0 closed "$user, $runtime: it is removed" "${plyfs_as[@]}" rm closed
  gives 0 "" "$user, $runtime: and deleted" "${plyfs_as[@]}" unshare "$plyfs" ps -aq
  [[ -z $(ls -A "$PLYFS_ROOT/trash") ]] || fail "$user, $runtime: trash is left"
  [[ -z $("${plyfs_as[@]}" ps -aq) && -z $(ls -A "$TMPDIR") ]] || fail "$user, $runtime: something is left: $(ls -A "$TMPDIR")"
  ok "nothing is left: $user, $runtime"
done
printf '%s passed, 0 failed\n' "$passed"
