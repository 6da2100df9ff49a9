#!/bin/sh
# Builds and runs the C++ unit tests: run.sh [native] [address] [thread] [aarch64]; without arguments, all four.
# aarch64 needs the Debian packages g++-aarch64-linux-gnu and qemu-user.
set -eu
cd "$(dirname "$0")/../.."
for preset in ${@:-native address thread aarch64}; do
  echo "== $preset"
  cmake --preset "$preset" >/dev/null
  cmake --build "build/$preset"
  ctest --test-dir "build/$preset" --output-on-failure --no-tests=error
done
