#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What check.sh runs in the new root: installs the packages from /check and builds with them.

set -eu
export DEBIAN_FRONTEND=noninteractive
cd /check

# consumer <project>: configured, built and run as a user's project is.
consumer() {
  echo "== $1"
  cmake -S "consume/$1" -B "build/$1" -D vmspace_source=/usr
  cmake --build "build/$1" --parallel 2
  (cd "build/$1" && ctest --output-on-failure --no-tests=error)
}

apt-get install -y -qq --no-install-recommends ./libvmspace-allocator-dev_*.deb >apt.log 2>&1 || { cat apt.log; exit 1; }
[ ! -e /usr/include/fmt ] && [ ! -e /usr/include/boost ] && [ ! -e /usr/include/vmspace/memory.hpp ]
consumer allocator_only

# The library and its formatters, of which the package only suggests what they need.
apt-get install -y -qq --no-install-recommends ./libvmspace*.deb libfmt-dev >apt.log 2>&1 || { cat apt.log; exit 1; }
consumer find_package
consumer pkg_config

# Nothing of ours is left behind.
apt-get purge -y -qq 'libvmspace*' >apt.log 2>&1 || { cat apt.log; exit 1; }
left=$(find /usr /etc -iname '*vmspace*')
[ -z "$left" ] || { echo "left behind: $left"; exit 1; }
