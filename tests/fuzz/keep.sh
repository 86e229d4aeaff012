#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh tests/fuzz/keep.sh [<target>...]
#
# Adds to the seeds of each target, in tests/fuzz/corpus/, inputs that run.sh has found and that together
# reach every branch which it has reached and no seed does: few, each for many. libFuzzer itself would keep
# one also for each number of times that a branch is taken, some hundreds a target.

set -eu
cd "$(dirname "$0")/../.."
folder=build/clang/tests/fuzz
[ $# != 0 ] || set -- $(sed -n 's/^vmspace_fuzz(\([a-z_]*\) .*/\1/p' tests/fuzz/CMakeLists.txt)

for target; do
  seeds=tests/fuzz/corpus/$target
  before=$(ls "$seeds" | wc -l)
  "$folder/$target" -set_cover_merge=1 -use_counters=0 "$seeds" "$folder/found/$target" >"$folder/found/$target.log" 2>&1 || {
    cat "$folder/found/$target.log"
    exit 1
  }
  echo "$target: $(($(ls "$seeds" | wc -l) - before)) inputs added to $before"
done
