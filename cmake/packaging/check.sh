#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# sh cmake/packaging/check.sh
#
# Checks the Debian packages in build/package/ (`sh cmake/bootstrap.sh package`): lintian finds no error
# and no warning, and in a new root of the distribution that this machine has, with nothing else of ours,
# apt installs them and projects of tests/consume build with them. Needs root, or user namespaces.

set -eu
cd "$(dirname "$0")/../.."

for package in build/package/libvmspace*.deb; do
  [ -f "$package" ] || { echo "check: there are no packages; first: sh cmake/bootstrap.sh package" >&2; exit 1; }
  echo "== $package"
  dpkg-deb --field "$package" Depends
done
lintian --version
lintian --allow-root --info --fail-on error,warning --suppress-tags initial-upload-closes-no-bugs \
  build/package/libvmspace*.deb

# mmdebstrap knows where the distribution is, and throws the root away in the end.
root_script=cmake/packaging/check_in_root.sh
mmdebstrap --quiet --variant=apt --include=g++,cmake,make,pkg-config \
  --customize-hook='mkdir -p "$1/check"' \
  --customize-hook='copy-in build/package/libvmspace*.deb tests/consume '$root_script' /check' \
  --customize-hook='chroot "$1" sh /check/check_in_root.sh' \
  "$(. /etc/os-release && echo "$VERSION_CODENAME")" /dev/null
