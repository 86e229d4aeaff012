#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh bench/instructions.sh check|record [<program>]
#
# Counts the instructions of build/release/bench/instructions, workload by workload, and compares them with
# bench/instructions.txt (check: fails where one has grown by more than 10 %), or writes that file (record).
# Needs valgrind; a check without it is skipped. Counted are the program's own: its libraries' depend on the
# machine, since libc chooses among several versions of a function by the processor.

set -eu
cd "$(dirname "$0")/.."
mode=${1-}
program=${2-build/release/bench/instructions}
recorded=bench/instructions.txt
case $mode in
  check | record) ;;
  *)
    echo "usage: sh bench/instructions.sh check|record [<program>]" >&2
    exit 2
    ;;
esac
if [ ! -x "$program" ]; then
  echo "$program is missing: sh cmake/bootstrap.sh release" >&2
  exit 1
fi
if [ "$mode" = check ] && ! command -v valgrind >/dev/null; then
  echo "skipped: valgrind is not installed"
  exit 0
fi

out=$(mktemp -d)
trap 'rm -r "$out"' EXIT
# A dump at the end of each call of measured(): figures.1, figures.2, ...
valgrind --tool=callgrind --toggle-collect=measured --dump-after=measured --compress-strings=no \
  --callgrind-out-file="$out/figures" "$program" >"$out/workloads" 2>"$out/log" || {
  cat "$out/log" >&2
  exit 1
}

# own_instructions <dump>: the sum of what the program's own code did. A line after calls= is what the
# callee did, which has lines of its own.
own_instructions() {
  awk -v own="/$(basename "$program")\$" '
    /^ob=/ { is_own = $0 ~ own; next }
    /^calls=/ { is_callee = 1; next }
    /^[0-9+*-]/ { if (!is_callee && is_own) sum += $2; is_callee = 0 }
    END { printf "%.0f\n", sum }' "$1"
}

{
  echo "# Instructions of the main workloads (bench/instructions.cpp), recorded by"
  echo "#   sh bench/instructions.sh record"
  echo "# $(g++ --version | head -n 1), $(uname -m)"
  echo "#"
  echo "# workload operations instructions each"
  number=0
  while read -r name operations; do
    number=$((number + 1))
    echo "$name $operations $(own_instructions "$out/figures.$number")"
  done <"$out/workloads" | awk '{ printf "%-22s %6d %12.0f %12.1f\n", $1, $2, $3, $3 / $2 }'
} >"$out/now"

if [ "$mode" = record ]; then
  cp "$out/now" "$recorded"
  cat "$recorded"
  exit 0
fi

if [ "$(sed -n 3p "$recorded")" != "$(sed -n 3p "$out/now")" ]; then
  echo "Recorded with another compiler or for another machine, so nothing is compared:"
  sed -n '3s/# //p' "$recorded" "$out/now"
  exit 0
fi
awk '
  /^#/ { next }
  FNR == NR { before[$1] = $3; next }
  !($1 in before) { printf "%-22s is not recorded\n", $1; failed = 1; next }
  {
    change = 100 * ($3 / before[$1] - 1)
    mark = change > 10 ? "GREW" : change < -10 ? "shrank: record it" : ""
    if (change > 10) failed = 1
    printf "%-22s %12.0f %12.0f %+7.1f %% %s\n", $1, before[$1], $3, change, mark
    delete before[$1]
  }
  END {
    for (name in before) { printf "%-22s is recorded, and no longer there\n", name; failed = 1 }
    exit failed
  }' "$recorded" "$out/now" || {
  echo "A workload takes over 10 % more instructions than bench/instructions.txt says, or the list differs." >&2
  echo "Where that is meant, accept the new figures, and say why in the commit:" >&2
  echo "  sh bench/instructions.sh record" >&2
  exit 1
}
