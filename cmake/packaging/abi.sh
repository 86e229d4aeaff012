#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh cmake/packaging/abi.sh [<commit>|<file>]
#
# Compares the shared library's binary interface with that of a commit, of which it builds one too, or of
# a file: a library, or what abidw wrote of one (*.abi). The default is the last release (tag). Whatever
# changes or goes is an error, unless the SONAME says that programs have to be rebuilt. Additions are none.
#
# Needs the packages that `sh cmake/bootstrap.sh package` installs. Leaves its record of this tree in
# build/package/libvmspace.abi.

set -eu
cd "$(dirname "$0")/../.."
CCACHE_BASEDIR="$PWD"
CCACHE_NOHASHDIR=1
export CCACHE_BASEDIR CCACHE_NOHASHDIR

# Where there is no tag, git describe fails and complains: that there is no release to compare with is no
# error, and is said below.
with=${1:-$(git describe --tags --abbrev=0 2>/dev/null || true)}

# build <tree>: its shared library, with the debug information that abidw reads.
build() {
  (cd "$1" && CCACHE_BASEDIR=$PWD && cmake --preset package >/dev/null && cmake --build build/package --target vmspace)
}

# record <library> <headers> <file>
record() {
  abidw --headers-dir "$2" --drop-private-types --no-corpus-path --no-comp-dir-path --no-show-locs \
    --out-file "$3" "$1"
}

soname() {
  sed -n "s/.*soname='\([^']*\)'.*/\1/p" "$1" | head -n 1
}

build .
new=build/package/libvmspace.abi
record build/package/src/libvmspace.so include "$new"
if [ -z "$with" ]; then
  echo "abi: no release to compare $(soname "$new") with yet; a commit or a file may be given"
  exit 0
fi

old=build/abi/libvmspace.abi
rm -rf build/abi
mkdir -p build/abi
if [ -f "$with" ]; then
  case $with in
    *.abi) cp "$with" "$old" ;;
    *) record "$with" include "$old" ;;
  esac
else
  git worktree prune
  git worktree add --quiet --detach build/abi/tree "$with"
  build build/abi/tree
  record build/abi/tree/build/package/src/libvmspace.so build/abi/tree/include "$old"
  git worktree remove --force build/abi/tree
fi

# 4 is a change, 8 one that breaks programs for certain, 1 and 2 are errors.
status=0
abidiff --no-added-syms "$old" "$new" || status=$?
if [ $((status & 3)) != 0 ]; then
  exit 1
elif [ "$(soname "$old")" != "$(soname "$new")" ]; then
  echo "abi: $(soname "$new") replaces $(soname "$old"): programs have to be rebuilt"
elif [ "$status" != 0 ]; then
  echo "abi: programs that were built with $with no longer fit, and the SONAME is still $(soname "$new")" >&2
  exit 1
else
  echo "abi: $(soname "$new") fits what was built with $with"
fi
