#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_output.sh EXPECTED PROGRAM [ARGUMENT]...: runs the program and compares what it prints with the
# file EXPECTED. A program that misses something on this machine exits with 77, and so does this.

set -u
expected=$1
shift
output=$("$@")
status=$?
if [ "$status" -ne 0 ]; then
  printf '%s\n' "$output"
  exit "$status"
fi
printf '%s\n' "$output" | diff -u "$expected" -
