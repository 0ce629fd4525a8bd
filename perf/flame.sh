#!/usr/bin/env bash
# Where the time goes while one scenario runs: a flame graph of the whole system, kernel included. Needs root and perf.
#
#   sudo perf/flame.sh BINARY [SCENARIO] [OUT.svg] [-- further arguments of perf/run.py]
#
# Samples the CPU clock (a timer, so no hardware counters are needed) 999 times a second on every core. The kernel unwinds
# its own part; for ours build with frame pointers:
#
#   RUSTFLAGS='-C force-frame-pointers=yes' cargo build --release --target-dir target/profile
#
# or set CALL_GRAPH=dwarf, which works with any build that has line tables, at a hundred times the data.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=${1:?"usage: perf/flame.sh BINARY [SCENARIO] [OUT.svg] [-- ARGUMENTS]"}
scenario=${2:-tcp4-1flow-forward-mtu1500}
out=${3:-flame.svg}
shift $(($# < 3 ? $# : 3))
[ "${1:-}" = -- ] && shift

data=$(mktemp "${TMPDIR:-/tmp}/uvpn-perf.XXXXXX")
trap 'rm -f "$data"' EXIT

perf record -o "$data" -q -a -e cpu-clock -F 999 --call-graph "${CALL_GRAPH:-fp}" -- \
    python3 "$here/run.py" --scenario "$scenario" --rounds 1 --seconds 5 --driver uring --mode encrypted --without-control \
    --binary "$binary" "$@"
perf script -i "$data" -F comm,tid,time,event,ip,sym 2>/dev/null | python3 "$here/flame.py" >"$out"
echo "wrote $out"
