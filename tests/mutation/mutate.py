#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
#
# What the tests would miss: breaks the library on purpose, one small break at a time, and looks
# whether a test fails.
#
#   tests/mutation/mutate.py                       every break of every file beside this script
#   tests/mutation/mutate.py allocator             the breaks of allocator.toml
#   tests/mutation/mutate.py allocator -k align    those whose name or file contains "align"
#   tests/mutation/mutate.py -n                    only checks that the texts are still there
#
# No part of CTest: .ci/full runs all of it, which takes an hour, and whoever changes the code or its tests a
# part of it. It works on a copy of the tree, as git knows it with what is not committed yet, under
# build/mutation: the tree itself is never touched, whatever happens. The copy is built with the
# preset `test`, first unbroken, where every test must pass.
#
# Each break is one of:
#   caught     a test failed, crashed or hung, or the code no longer compiles
#   SURVIVED   every test passed: a test is missing, or the break changes nothing that matters (then
#              it does not belong in the list)
#   STALE      the text is not in the file exactly once: the code has changed, so must the break
# The exit status is 1 when any break survived or is stale, 2 when the unbroken tree fails.
#
# To add a break, add to a .toml file here (a new file for a new layer):
#
#   [[break]]
#   name = "a window's last address is left out"
#   file = "include/vmspace/allocator/detail/bplus_tree.hpp"
#   find = "inner.key[slot] > request.max()"
#   with = "inner.key[slot] >= request.max()"
#   tests = ["interval_tree_test", "interval_tree_model_test"]
#
# `find` is exact text, with ''' ''' for several lines, and must occur once. `tests` are names
# of CTest, built and run in this order until one fails, so the quickest come first; a filter of
# GoogleTest may follow a colon: "mapping_test:Mapping.*". A table [default] gives what a break
# leaves out: `file` or `tests`.

import argparse
import fcntl
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib

here = pathlib.Path(__file__).resolve().parent
root = here.parents[1]
copy = root / "build" / "mutation"


def load(names):
    """The breaks of the files of these names, or of all, with their defaults filled in."""
    files = [here / f"{name}.toml" for name in names] or sorted(here.glob("*.toml"))
    breaks = []
    for path in files:
        with path.open("rb") as file:
            content = tomllib.load(file)
        for item in content["break"]:
            item = content.get("default", {}) | item
            missing = {"name", "file", "find", "with", "tests"} - item.keys()
            if missing:
                sys.exit(f"{path.name}: {item.get('name', item)}: no {', '.join(sorted(missing))}")
            breaks.append(item)
    return breaks


def update_copy():
    """Makes the copy what the tree is, without touching what is the same, and configures it."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, capture_output=True).stdout
    wanted = {name for name in os.fsdecode(names).split("\0") if name and (root / name).is_file()}
    for name in wanted:
        source, target = root / name, copy / name
        if target.is_file() and source.read_bytes() == target.read_bytes():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    for path in copy.rglob("*"):
        relative = path.relative_to(copy)
        if path.is_file() and relative.parts[0] != "build" and str(relative) not in wanted:
            path.unlink()
    # Nothing precompiled: each break changes a header, and few tests are built after it.
    subprocess.run(["cmake", "--preset", "test", "-DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON"], cwd=copy,
                   env=environment(), check=True, stdout=subprocess.DEVNULL)


def environment():
    # RapidCheck need not look for the smallest example of what is broken on purpose.
    return os.environ | {"CCACHE_BASEDIR": str(copy), "CCACHE_NOHASHDIR": "1",
                         "RC_PARAMS": "noshrink=1"}


def build(targets, jobs):
    command = ["cmake", "--build", "--preset", "test", "-j", str(jobs), "--target", *targets]
    return subprocess.run(command, cwd=copy, env=environment(), capture_output=True, text=True)


@functools.cache
def commands():
    """What CTest runs, by the names of the tests that are built."""
    shown = subprocess.run(["ctest", "--preset", "test", "--show-only=json-v1"], cwd=copy, check=True,
                           capture_output=True).stdout
    return {test["name"]: test["command"] for test in json.loads(shown)["tests"]
            if "command" in test}


def run(test, seconds):
    """How the test failed, or None."""
    target, _, chosen = test.partition(":")
    command = commands()[target] + ([f"--gtest_filter={chosen}"] if chosen else [])
    # Read as it comes, and only the names kept: a test that hangs may print without end.
    with subprocess.Popen(command, cwd=copy / "build", env=environment(), text=True, errors="replace",
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        hung = threading.Event()

        def end():
            hung.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end)
        timer.start()
        first = None
        for line in process.stdout:
            if first is None and line.startswith("[  FAILED  ] "):
                first = line.split("]")[1].split(" (")[0].strip()
        status = process.wait()
        timer.cancel()
    if hung.is_set():
        return f"{target} hangs"
    if status == 0:
        return None
    return f"{target}: {first or f'ended with {status}'}"


def caught_by(tests, limits, jobs):
    for test in tests:
        if build([test.partition(":")[0]], jobs).returncode != 0:
            return "the compiler"
        if failure := run(test, limits[test]):
            return failure
    return None


def try_break(item, limits, jobs):
    path = copy / item["file"]
    original = path.read_text()
    try:
        path.write_text(original.replace(item["find"], item["with"]))
        return caught_by(item["tests"], limits, jobs)
    finally:
        path.write_text(original)


def is_stale(item):
    path = root / item["file"]
    return not path.is_file() or path.read_text().count(item["find"]) != 1


def main():
    parser = argparse.ArgumentParser(description="Breaks the library on purpose; see the top.")
    parser.add_argument("names", nargs="*", metavar="file", help="a .toml here, without .toml")
    parser.add_argument("-k", metavar="text", default="", help="only breaks with this in name or file")
    parser.add_argument("-n", action="store_true", help="only look for texts that are gone")
    parser.add_argument("-j", type=int, default=os.cpu_count(), metavar="jobs")
    arguments = parser.parse_args()

    breaks = [item for item in load(arguments.names)
              if arguments.k in item["name"] or arguments.k in item["file"]]
    stale = [item for item in breaks if is_stale(item)]
    good = [item for item in breaks if item not in stale]
    for item in stale:
        print(f"STALE     {item['file']}: {item['name']}", flush=True)
    if arguments.n or not good:
        return 1 if stale else 0

    copy.mkdir(parents=True, exist_ok=True)
    lock = open(copy.with_suffix(".lock"), "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"another run works in {copy}")
    update_copy()
    tests = sorted({test for item in good for test in item["tests"]})
    built = build(sorted({test.partition(":")[0] for test in tests}), arguments.j)
    if built.returncode != 0:
        print(built.stdout[-4000:], "the unbroken tree does not build")
        return 2
    limits = {}  # seconds after which a test hangs, by what it takes unbroken
    for test in tests:
        began = time.monotonic()
        if failure := run(test, 600):
            print(f"fails without a break: {failure}")
            return 2
        limits[test] = 30 + 10 * (time.monotonic() - began)

    survived = 0
    for item in good:
        began = time.monotonic()
        by = try_break(item, limits, arguments.j)
        survived += by is None
        print(f"{'caught' if by else 'SURVIVED':9} {item['file']}: {item['name']}"
              f" ({f'{by}, ' if by else ''}{time.monotonic() - began:.0f} s)", flush=True)
    print(f"{len(good) - survived} caught, {survived} survived, {len(stale)} stale")
    return 1 if survived or stale else 0


if __name__ == "__main__":
    sys.exit(main())
