#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh report.sh <gcovr> <gcov> <build tree>, from the top of the sources
#
# Prints what the tests that ran in the build tree have covered, layer by layer, and writes it line by line
# to report/index.html there. Fails where less than 95 % of the lines were run.

set -eu

gcovr=$1
gcov=$2
build=$3
here=$(dirname "$0")
out="$build/report"
rm -rf "$out"
mkdir "$out"

# Of paths outside the sources gcov itself makes no files: they are the greater part.
status=0
"$gcovr" --config "$here/gcovr.cfg" --root . --gcov-executable "$gcov -r -s '$PWD'" \
  --csv "$out/files.csv" --html-details "$out/index.html" --fail-under-line 95 -j 2 "$build" || status=$?

awk -F , '
function percent(covered, total) { return total ? sprintf("%.1f %%", int(1000 * covered / total) / 10) : "-" }
function row(name, of) {
  printf "%-16s %7d %8s %9s %10s\n", name, line[of], percent(lines[of], line[of]),
         percent(branches[of], branch[of]), percent(functions[of], function_[of])
}
function add(of) {
  line[of] += $2; lines[of] += $3
  branch[of] += $5; branches[of] += $6
  function_[of] += $8; functions[of] += $9
}
NR > 1 {
  split($1, part, "/")
  layer = $1 ~ /^include/ ? part[3] : part[2]
  if (layer ~ /\.hpp$/) layer = "(umbrellas)"
  if (!(layer in line)) order[++layers] = layer
  add(layer)
  add("all")
  left[$1] = $2 - $3
}
END {
  printf "%-16s %7s %8s %9s %10s\n", "layer", "lines", "run", "branches", "functions"
  for (i = 1; i <= layers; ++i) row(order[i], order[i])
  row("all", "all")
}' "$out/files.csv"
echo "line by line: $out/index.html"
exit $status
