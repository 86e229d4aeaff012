#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh cmake/bootstrap.sh <preset>...
#
# Installs what each preset needs and this machine lacks, with the system's package manager, then
# runs `cmake --workflow --preset <preset>`. The main ones: `demo` builds and runs the tiny VM,
# `test` builds and passes the tests, `clients` those with QEMU and Debian's cloud kernel, which it
# unpacks under build/. `docs` writes the reference, `report` runs all benchmarks and writes
# bench/report/. `aarch64` and `s390x` cross-compile, with libraries of those machines, which are
# unpacked under build/ too. The others are those of CMakePresets.json.
#
# Installing needs Debian 12 or newer (or a derivative) and root, or sudo. Elsewhere the script says
# what it would have installed and tries with what is there.

set -eu

usage() {
  echo "usage: sh cmake/bootstrap.sh demo|test|docs|clients|lesser|valgrind|shared|release|report|asan|tsan|clang|libcxx|coverage|fuzz|soak|package|aarch64|s390x ..." >&2
  exit 2
}

# packages_for <preset>: Debian's package names.
packages_for() {
  library="g++ cmake ninja-build libexpected-dev libfmt-dev libboost-dev libxxhash-dev linux-libc-dev"
  tests="libgtest-dev libgmock-dev librapidcheck-dev pkg-config gdb"
  case $1 in
    demo) echo "$library" ;;
    docs) echo "$library doxygen doxygen-awesome-css" ;;
    test | shared | lesser) echo "$library $tests" ;;
    valgrind) echo "$library $tests valgrind" ;;
    clients) echo "$library $tests libcli11-dev zlib1g-dev liblzma-dev liblz4-dev libzstd-dev qemu-system-x86 qemu-utils busybox-static" ;;
    asan | tsan | soak) echo "$library $tests ccache" ;;
    coverage) echo "$library $tests ccache gcovr" ;;
    clang) echo "$library $tests ccache clang libclang-rt-dev clang-format clang-tidy" ;;
    libcxx) echo "$library ccache clang-19 libc++-19-dev libc++abi-19-dev" ;;
    fuzz) echo "$library $tests ccache clang libclang-rt-dev" ;;
    release) echo "$library libbenchmark-dev valgrind" ;;
    report) echo "$library libbenchmark-dev libabsl-dev llvm-dev python3-matplotlib" ;;
    aarch64) echo "$library g++-aarch64-linux-gnu qemu-user" ;;
    s390x) echo "cmake ninja-build libexpected-dev g++-s390x-linux-gnu qemu-user" ;;
    package) echo "$library ccache dpkg-dev file lintian mmdebstrap uidmap abigail-tools" ;;
    *) usage ;;
  esac
}

is_installed() {
  dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q '^install ok installed'
}

# quietly <command>...: of what apt and dpkg print, how far they are, and everything if they fail.
quietly() {
  log=$(mktemp)
  { "$@" 2>&1 || echo "bootstrap: failed"; } | tee "$log" | {
    count=0
    all=0
    while read -r line; do
      case $line in
        *" newly installed,"*)
          all=$(echo "$line" | sed 's/.* \([0-9]*\) newly installed,.*/\1/')
          echo "bootstrap: $all packages with what they need"
          ;;
        "Setting up "*)
          count=$((count + 1))
          [ $((count % 20)) != 0 ] && [ $count != "$all" ] || echo "bootstrap: installed $count of $all"
          ;;
      esac
    done
  }
  if grep -qx "bootstrap: failed" "$log"; then
    cat "$log" >&2
    rm "$log"
    exit 1
  fi
  rm "$log"
}

[ $# -gt 0 ] || usage
cd "$(dirname "$0")/.."

wanted=""
for preset in "$@"; do
  wanted="$wanted $(packages_for "$preset")" || exit $?
done

if command -v dpkg-query >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1; then
  missing=""
  for package in $wanted; do
    is_installed "$package" || missing="$missing $package"
  done
  if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
      as_root=""
    elif command -v sudo >/dev/null 2>&1; then
      as_root="sudo"
    else
      echo "bootstrap: these packages are missing, and installing them needs root or sudo:" >&2
      echo "  apt-get install --no-install-recommends$missing" >&2
      exit 1
    fi
    echo "bootstrap: installing$missing"
    # The variable is set behind sudo, which would drop it.
    quietly $as_root env DEBIAN_FRONTEND=noninteractive apt-get update -q
    # shellcheck disable=SC2086  # a list of words
    quietly $as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends $missing
  fi
else
  echo "bootstrap: no apt here, so nothing is installed. What Debian calls" >&2
  echo "  $wanted" >&2
  echo "must be there: a C++20 compiler, CMake 3.25, Ninja, tl::expected, fmt, xxHash and Boost's headers;" >&2
  echo "for tests GoogleTest and RapidCheck, for benchmarks Google Benchmark. Trying with what is installed." >&2
fi

# depends_on <package> <pattern>: the first of the packages that it depends on whose name matches. Such a name
# has a version in it, which differs from one Debian to the next.
depends_on() {
  apt-cache depends "$1" 2>/dev/null | sed -n "s/.*Depends: \\($2\\)\$/\\1/p" | head -n 1
}

# unpack_kernel <directory>: the kernel of linux-image-cloud-amd64, not installed.
unpack_kernel() {
  [ -z "$(ls "$1"/boot/vmlinuz-* 2>/dev/null)" ] || return 0
  package=$(depends_on linux-image-cloud-amd64 'linux-image-[^ ]*')
  mkdir -p "$1/package"
  if [ -z "$package" ] || ! (cd "$1/package" && apt-get download -qq "$package"); then
    echo "bootstrap: no Debian cloud kernel to be had here; the tests that boot one are skipped" >&2
    return 0
  fi
  dpkg-deb -x "$1"/package/*.deb "$1"
  rm -r "$1/package"
}

# apt_for <Debian's architecture> <command>...: apt-get with lists of its own below $root/apt, where it downloads to.
apt_for() {
  (
    cd "$root/apt"
    machine=$1
    shift
    apt-get -qq -o "APT::Architectures::=$machine" -o "Dir::State::Lists=$root/apt/lists" \
      -o "Dir::Cache=$root/apt/cache" -o APT::Sandbox::User=root "$@"
  )
}

# unpack_libraries <Debian's architecture> <package>...: libraries of another machine, as its packages
# have them, under build/sysroot/. They are not installed, and the architecture is not added to dpkg's,
# since that would be a change to the whole system, felt at every upgrade: apt has lists of its own here.
unpack_libraries() {
  root="$PWD/build/sysroot/$1"
  [ ! -e "$root/complete" ] || return 0
  mkdir -p "$root/apt/lists/partial" "$root/apt/cache/archives/partial"
  packages=""
  for package in $(shift && echo "$@"); do
    packages="$packages $package:$1"
  done
  # shellcheck disable=SC2086  # a list of words
  if ! apt_for "$1" update || ! apt_for "$1" download $packages; then
    echo "bootstrap: Debian's packages for $1 are not to be had here:$packages" >&2
    echo "bootstrap: set CMAKE_FIND_ROOT_PATH to where these libraries are, and use the preset" >&2
    exit 77 # by which .ci/run knows this from a failure
  fi
  for package in "$root"/apt/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  rm -r "$root/apt"
  touch "$root/complete"
}

# ccache asks for this before it remembers what was compiled with a precompiled header: its manual, "Precompiled
# headers".
export CCACHE_SLOPPINESS="${CCACHE_SLOPPINESS-pch_defines,time_macros}"

for preset in "$@"; do
  case $preset in
    aarch64) unpack_libraries arm64 libfmt-dev "$(depends_on libfmt-dev 'libfmt[0-9]*')" libgtest-dev libgmock-dev librapidcheck-dev ;;
    s390x) unpack_libraries s390x libgtest-dev libgmock-dev librapidcheck-dev ;;
  esac
  [ "$preset" != clients ] || unpack_kernel build/test/clients/kernel
  cmake --workflow --preset "$preset"
done
