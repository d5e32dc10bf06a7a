#!/bin/bash
# Counts the requests that the kernel sends to the daemon of one FUSE mount while a command runs, by kind.
#
#   benches/requests.sh MOUNT COMMAND [ARGUMENT...]
#
# Needs root and the kernel's tracefs. What nobody waits for (RELEASE, FORGET) is work of the daemon's all the same.
set -euo pipefail
mount=${1:?which mount?}
shift
tracing=/sys/kernel/tracing
[ -d $tracing/events/fuse ] || { echo "no FUSE events in $tracing: mount tracefs there (mount -t tracefs tracefs $tracing)" >&2; exit 1; }
connection=$(stat -c %d "$mount")
own=$tracing/instances/plyfs-requests-$$
mkdir "$own"
trap 'echo 0 > "$own/events/fuse/fuse_request_send/enable"; rmdir "$own"' EXIT
# 64 bytes for each of a million requests, for each processor.
echo $((64 << 10)) > "$own/buffer_size_kb"
echo "connection == $connection" > "$own/events/fuse/fuse_request_send/filter"
echo 1 > "$own/events/fuse/fuse_request_send/enable"
status=0
"$@" || status=$?
echo 0 > "$own/tracing_on"
lost=$(cat "$own"/per_cpu/cpu*/stats | awk '/overrun/ {sum += $2} END {print sum + 0}')
[ "$lost" = 0 ] || { echo "$lost requests did not fit into the trace" >&2; exit 1; }
sed -n 's/.*(FUSE_\([A-Z0-9]*\)).*/\1/p' "$own/trace" | sort | uniq -c | sort -rn | awk '{print $2, $1; sum += $1} END {print "all", sum + 0}' | column -t
exit $status
