#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh tests/fuzz/run.sh [<seconds>] [<target>...]
#
# Fuzzes each target for so long (60 s), after `sh cmake/bootstrap.sh fuzz`; as many at a time as there
# are processors. Starts from the seeds and from what earlier runs have found, which is kept in
# build/clang/tests/fuzz/found/. An input that fails is left there as crash-*, leak-* or timeout-*.
#
# -entropic=0: where an input reaches thousands of edges, counting how rare each one is takes libFuzzer
# longer than the input itself.

set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
[ $# = 0 ] || shift
folder=build/clang/tests/fuzz
[ $# != 0 ] || set -- $(sed -n 's/^vmspace_fuzz(\([a-z_]*\) .*/\1/p' tests/fuzz/CMakeLists.txt)

printf '%s\n' "$@" | xargs -P "$(nproc)" -I '{}' sh -c '
  found=$2/found/{}
  mkdir -p "$found"
  if "$2/{}" -max_total_time="$1" -entropic=0 -timeout=30 -rss_limit_mb=2048 -max_len=4096 \
    -print_final_stats=1 -artifact_prefix="$found/" "$found" tests/fuzz/corpus/{} >"$found.log" 2>&1; then
    sed -n "s/^stat::number_of_executed_units: */{}: inputs /p" "$found.log"
  else
    cat "$found.log"
    echo "{}: FAILED"
    exit 1
  fi' sh "$seconds" "$folder"
