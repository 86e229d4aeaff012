#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh summarise.sh <build tree>
#
# Prints what the last run of CTest skipped, with each reason, and one line about all of it. CTest counts
# programs, and one whose cases were all skipped has passed; this counts the cases of GoogleTest, and every
# other program as one. CTest runs it by itself at the end (CTestCustom.cmake), while its log still has
# the first of these names.

set -eu

log="$1/Testing/Temporary/LastTest.log.tmp"
[ -f "$log" ] || log="$1/Testing/Temporary/LastTest.log"
if [ ! -f "$log" ]; then
  echo "no test has run in $1"
  exit 0
fi

awk '
function number(n) { return n < 1000 ? n "" : number(int(n / 1000)) sprintf(",%03d", n % 1000) }

function skip(name, why) {
  sub(/^[A-Za-z]+(::[a-z_]+)?: /, "", why) # who says it, where it is an Error
  if (why == "") why = "no reason given"
  if (!(why in count)) reason[++reasons] = why
  ++count[why]
  ++skipped
  cases[why] = cases[why] "    " program ": " name "\n"
}

/^[0-9]+\/[0-9]+ Test: / { program = $3; ran = broken = reading = 0; whole = "" }

# GoogleTest: "file:line: Skipped", the reason in any number of lines, "[  SKIPPED ] Suite.Name (0 ms)".
/^\[ RUN      \] / { why = ""; reading = 0 }
/\[       OK \] .* \([0-9]+ ms\)$/ { ++passed; ++ran }
/\[  FAILED  \] .* \([0-9]+ ms\)$/ { ++failed; ++ran; broken = 1 }
/\[  SKIPPED \] .* \([0-9]+ ms\)$/ {
  name = $0
  sub(/^.*\[  SKIPPED \] /, "", name)
  sub(/ \([0-9]+ ms\)$/, "", name)
  skip(name, why)
  ++ran
  reading = 0
}
/^Google Test trace:$/ { reading = 0 }
reading && !/^$/ { why = why (why == "" ? "" : " ") $0 }
/: Skipped$/ { reading = 1; why = "" }

# Other programs: "skipped: " and the reason, before they exit with what CTest takes for a skip.
!ran && /^skipped: / { whole = substr($0, 10) }

/^Test Passed\.$/ && !ran { if (whole != "") skip("all of it", whole); else ++passed }
/^Test (Failed|Timeout)/ && !broken { ++failed }

END {
  if (!passed && !failed && !skipped) exit # ctest -N lists tests and runs none
  # The most frequent reason first.
  for (i = 2; i <= reasons; ++i)
    for (j = i; j > 1 && count[reason[j]] > count[reason[j - 1]]; --j) {
      kept = reason[j]; reason[j] = reason[j - 1]; reason[j - 1] = kept
    }
  if (skipped) print "\nSkipped:"
  for (i = 1; i <= reasons; ++i) printf "  %s\n%s", reason[i], cases[reason[i]]
  line = number(passed + 0) " cases passed" (failed ? ", " number(failed) " failed" : "")
  line = line ", " (skipped ? number(skipped) " skipped: " : "none skipped")
  for (i = 1; i <= reasons; ++i) {
    why = length(reason[i]) > 60 ? substr(reason[i], 1, 57) "..." : reason[i]
    line = line (i > 1 ? ", " : "") why " (" count[reason[i]] ")"
  }
  print "\n" line
}
' "$log"
