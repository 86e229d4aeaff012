#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh dead_link_test.sh <cmake/docs>
#
# A page that links to a file that is not in the sources, even to one that no page of the reference would be
# made of, has a dead link there.

set -eu
docs=$1
tree=$(mktemp -d)
trap 'rm -r "$tree"' EXIT
mkdir -p "$tree/.github" "$tree/tests"
touch "$tree/README.md" "$tree/tests/there.cpp" "$tree/index.html"
cat >"$tree/.github/PAGE.md" <<'PAGE'
# A page
[a test](../tests/there.cpp), [a folder](../tests), [one that was moved](../tests/moved.cpp)
PAGE

awk -v root="$tree" -v names=/dev/null -f "$docs/names.awk" -f "$docs/page_filter.awk" "$tree/.github/PAGE.md" \
  >"$tree/page.html"
cd "$tree"
status=0
found=$(awk -f "$docs/check_links.awk" ./*.html) || status=$?
expected="./page.html: dead link: tests/moved.cpp"
if [ "$found" != "$expected" ] || [ $status = 0 ]; then
  printf 'expected: %s\nfound: %s, exit status %s\n' "$expected" "$found" $status >&2
  exit 1
fi
