#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Runs the benchmarks and writes bench/report/: README.md, and charts.

sh cmake/bootstrap.sh report     all of it, on a quiet machine: at most 25 minutes
bench/report.py --quick          a look, in a few minutes; figures vary
bench/report.py --only NAME      one program again, such as allocator; the others' figures are those of their last run
bench/report.py --no-run         from the figures of the last run (build/release/bench/report/*.json)

Every case runs several times, the cases of a program in random order, so that a busy moment of the machine
does not fall on one of them alone. Shown are medians, and how far the repetitions lie apart.

Needs Debian's python3-matplotlib, so Debian's interpreter, and what the preset `release` has built.
"""

import argparse
import collections
import datetime
import json
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import tempfile

try:
    import matplotlib
except ImportError:
    sys.exit("bench/report.py: matplotlib is missing: sh cmake/bootstrap.sh report")

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  after the choice of a backend
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / "bench" / "report"
BUILD = ROOT / "build" / "release" / "bench"
RAW = BUILD / "report"
OURS = "vmspace"
COMPILER = "g++"  # the preset's

# What a run leaves out: first-fit baselines take minutes to prepare with 100,000 ranges, and pages are
# collapsed for ten seconds a time. (Google Benchmark takes "-" for "all but these".)
LEFT_OUT = {
    "allocator": r"-(churn|window|best_fit|mixed|misfit_.|long_short|odd3|dma32)/(icl|std_map|absl_btree|llvm_interval_map)/100000$",
    "host_memory": r"-random_read",
}
QUICKLY_LEFT_OUT = {
    "allocator": r"^(fill|churn|window|lookup)/.*/(100|1000|10000)$",
    "host_memory": r"^populate/.*/anon$",
    "snapshot": r"^(restore|harvest|zero_test)/",
}


# -- running -------------------------------------------------------------------------------------

def run_benchmark(program, options):
    """The JSON of a program, or nothing if it fails or takes too long."""
    name = program.name.removesuffix("_bench")
    chosen = LEFT_OUT.get(name, ".")
    if options.quick:
        chosen = QUICKLY_LEFT_OUT.get(name, chosen)
    out = RAW / f"{name}.json"
    out.unlink(missing_ok=True)
    print(f"{name} ...", end=" ", flush=True)
    begin = datetime.datetime.now()
    command = [program, f"--benchmark_out={out}", "--benchmark_out_format=json",
               f"--benchmark_repetitions={3 if options.quick else 5}",
               "--benchmark_enable_random_interleaving=true",
               "--benchmark_report_aggregates_only=false",
               f"--benchmark_min_time={0.01 if options.quick else 0.05}",
               f"--benchmark_filter={chosen}"]
    try:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False,
                              timeout=180 if options.quick else 1000)
        failed = f", exit code {done.returncode}: {done.stderr}" if done.returncode else ""
    except subprocess.TimeoutExpired:
        failed = ", took too long"
    print(f"{(datetime.datetime.now() - begin).seconds} s{failed}", flush=True)
    if failed:
        out.unlink(missing_ok=True)


def measure_headers(options):
    """Seconds and preprocessed lines of each umbrella, and of what it may be compared with."""
    umbrellas = sorted(path.name for path in (ROOT / "include" / "vmspace").glob("*.hpp"))
    others = ["<map>", "<string>", "<tl/expected.hpp>"]
    found = {}
    for name in others + [f'"vmspace/{umbrella}"' for umbrella in umbrellas]:
        with tempfile.NamedTemporaryFile("w", suffix=".cpp") as source:
            source.write(f"#include {name}\n")
            source.flush()
            command = [COMPILER, "-std=c++20", "-DVMSPACE_STATIC", f"-I{ROOT / 'include'}", source.name]
            preprocessed = subprocess.run(command + ["-E", "-P"], capture_output=True, check=False)
            if preprocessed.returncode != 0 or b"namespace vmspace" not in preprocessed.stdout and "vmspace" in name:
                continue  # an adapter to what is not here
            times = []
            for _ in range(1 if options.quick else 5):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command + ["-fsyntax-only"], check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
            found[name.strip('"')] = {"lines": preprocessed.stdout.count(b"\n"), "seconds": times}
    (RAW / "headers.json").write_text(json.dumps(found))


# -- what was measured ---------------------------------------------------------------------------

Figure = collections.namedtuple("Figure", "median low high")
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1}


def read_figures(name):
    """By case (workload, implementation, n), in seconds. Where a case says what an operation takes, that."""
    times = collections.defaultdict(list)
    path = RAW / f"{name}.json"
    if not path.exists():
        return {}
    for row in json.loads(path.read_text())["benchmarks"]:
        if row.get("run_type") != "iteration" or row.get("error_occurred"):
            continue
        seconds = row.get("each", row.get("time_per_pair", row["real_time"] * UNITS[row["time_unit"]]))
        times[case_of(row["name"])].append(seconds)
    return {case: Figure(statistics.median(all_), min(all_), max(all_)) for case, all_ in times.items()}


def case_of(name):
    """workload/implementation/n; what else a name has tells how it was run."""
    parts = [part for part in name.split("/")
             if not re.match(r"(iterations|repeats|min_time|threads:1$)|real_time|manual_time|process_time", part)]
    workload, implementation, *rest = parts + [""] * (2 - len(parts))
    return workload, implementation, "/".join(rest)


def order_of(case):
    """Cases as people expect them: 8 before 64."""
    workload, implementation, n = case
    return workload, [(not part.isdigit(), int(part) if part.isdigit() else 0, part)
                      for part in n.split("/")], implementation != OURS, implementation


# -- texts ---------------------------------------------------------------------------------------

def time_text(seconds):
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6), ("ns", 0)):
        if seconds >= size:
            value = seconds / (size or 1e-9)
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return ""


def spread_text(figure):
    """How far the repetitions lie from the median."""
    return f"-{(1 - figure.low / figure.median) * 100:.0f} +{(figure.high / figure.median - 1) * 100:.0f} %"


def table(headings, rows):
    """A Markdown table; columns after the first are numbers."""
    marks = ["---"] + ["--:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [headings, marks, *rows]) + "\n"


def first_line(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip().split("\n")[0] if done.returncode == 0 else "unknown"


def machine():
    cpu = "unknown processor"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = int(re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text())[1]) >> 20
    return f"{cpu}, {os.cpu_count()} CPUs, {memory} GiB; Linux {os.uname().release}"


# -- charts --------------------------------------------------------------------------------------

# Hues that colour-blind people see apart (Okabe and Ito); ours is the dark one, and the thick line.
COLOURS = {OURS: "#0072b2", "std_map": "#d55e00", "icl": "#cc79a7", "absl_btree": "#009e73",
           "llvm_interval_map": "#e69f00", "unordered": "#7f7f7f", "copy": "#d55e00", "lazy": "#cc79a7",
           "lazy_set": "#009e73", "mapped": "#0072b2"}
MARKS = {OURS: "o", "std_map": "s", "icl": "^", "absl_btree": "D", "llvm_interval_map": "v", "unordered": "x",
         "copy": "s", "lazy": "^", "lazy_set": "D", "mapped": "o"}
INK, SOFT, GRID, PAPER = "#1f2328", "#59636e", "#d0d7de", "#ffffff"
# On a dark page the picture goes along: every colour that is not a line's stands for another.
DARK = {INK: "#f0f6fc", SOFT: "#9ea7b3", GRID: "#30363d", PAPER: "#0d1117"}

plt.rcParams.update({
    "svg.fonttype": "none", "svg.hashsalt": OURS, "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": SOFT, "axes.edgecolor": GRID, "xtick.color": SOFT, "ytick.color": SOFT,
    "axes.titlecolor": INK, "axes.titlesize": 11, "grid.color": GRID, "figure.facecolor": PAPER,
    "axes.facecolor": PAPER, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})


def save(figure, name):
    path = REPORT / name
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    rules = "".join(f'[style*="fill: {light}"]{{fill:{dark} !important}}'
                    f'[style*="stroke: {light}"]{{stroke:{dark} !important}}' for light, dark in DARK.items())
    svg = path.read_text()
    svg = re.sub(r"(<svg [^>]*>)", rf"\1\n<style>@media (prefers-color-scheme:dark){{{rules}}}</style>", svg, 1, re.S)
    path.write_text("\n".join(line.rstrip() for line in svg.split("\n")))


def draw_lines(axes, figures, workload):
    """A line for each implementation of a workload, over n, with the spread around it."""
    lines = collections.defaultdict(list)
    for case in sorted(figures, key=order_of):
        if case[0] == workload and case[2].isdigit():
            lines[case[1]].append((int(case[2]), figures[case]))
    for name, points in lines.items():
        n = [at for at, _ in points]
        ours = name == OURS
        axes.plot(n, [f.median for _, f in points], label=name, color=COLOURS.get(name, SOFT),
                  marker=MARKS.get(name, "."), markersize=5, linewidth=2.6 if ours else 1.4, zorder=3 if ours else 2)
        axes.fill_between(n, [f.low for _, f in points], [f.high for _, f in points],
                          color=COLOURS.get(name, SOFT), alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", title=workload)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: time_text(seconds)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, linewidth=0.6)
    axes.tick_params(length=0)


def draw_allocation(figures):
    workloads = [name for name in ("fill", "churn", "window", "lookup") if any(case[0] == name for case in figures)]
    if not workloads:
        return
    figure, all_axes = plt.subplots(1, len(workloads), figsize=(3.1 * len(workloads), 3.9), squeeze=False)
    for axes, workload in zip(all_axes[0], workloads):
        figures_of = figures
        if workload == "fill":  # an iteration is all n of them
            figures_of = {case: Figure(*(value / int(case[2]) for value in found))
                          for case, found in figures.items() if case[0] == "fill" and case[2].isdigit()}
        draw_lines(axes, figures_of, workload)
        axes.set_xlabel("live ranges")
    all_axes[0][0].set_ylabel("time of an operation")
    handles = {label: handle for axes in all_axes[0] for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=len(handles))
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    save(figure, "allocation.svg")


def draw_restore(figures):
    if not any(case[0] == "restore" for case in figures):
        return
    figure, axes = plt.subplots(figsize=(6.6, 3.8))
    draw_lines(axes, figures, "restore")
    axes.set(title="Until a restored guest has touched its first 8 MiB", xlabel="guest memory, full of data")
    ticks = [64, 256, 1024]
    axes.set_xticks(ticks, ["64 MiB", "256 MiB", "1 GiB"])
    axes.xaxis.set_minor_formatter(NullFormatter())
    figure.tight_layout(rect=(0, 0, 0.98, 1))
    figure.subplots_adjust(right=0.7)
    below = float("-inf")  # where the label below is, in points
    for line in sorted(axes.get_lines(), key=lambda line: line.get_ydata()[-1]):
        end = (line.get_xdata()[-1], line.get_ydata()[-1])
        height = axes.transData.transform(end)[1] * 72 / figure.dpi
        lift = max(0, below + 13 - height)
        below = height + lift
        name = {"lazy_set": "lazy, working set"}.get(line.get_label(), line.get_label())
        axes.annotate(f"{name}: {time_text(end[1])}", end, xytext=(8, lift), textcoords="offset points", va="center",
                      color=line.get_color())
    save(figure, "restore_time.svg")


def draw_headers(headers):
    figure, axes = plt.subplots(figsize=(6.6, 0.3 * len(headers) + 0.9))
    names = sorted(headers, key=lambda name: statistics.median(headers[name]["seconds"]))
    values = [statistics.median(headers[name]["seconds"]) for name in names]
    bars = axes.barh(names, values, height=0.65, color=[COLOURS[OURS] if "vmspace" in name else "#7f7f7f" for name in names])
    axes.bar_label(bars, [f"{value:.2f} s, {headers[name]['lines']:,} lines" for name, value in zip(names, values)],
                   padding=4, color=SOFT, fontsize=9)
    axes.set(title="What an include costs", xlim=(0, max(values) * 1.6))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    figure.tight_layout()
    save(figure, "headers.svg")


# -- the page ------------------------------------------------------------------------------------

def figures_table(figures):
    """A row for each case; beside a baseline, how many times ours it takes."""
    rows = []
    for case in sorted(figures, key=order_of):
        workload, implementation, n = case
        ours = figures.get((workload, OURS, n))
        ratio = "" if ours is None or implementation == OURS else f"{figures[case].median / ours.median:.2f}"
        rows.append((f"{workload}{'/' + n if n else ''}", implementation, time_text(figures[case].median),
                     spread_text(figures[case]), ratio))
    return table(["case", "implementation", "median", "spread", "of ours"], rows)


def write_page(options, all_figures, headers):
    when = datetime.date.today().isoformat()
    kind = ("**A quick run, for the shape of the charts; its figures vary.**\n\n" if options.quick else "")
    changed = first_line(["git", "status", "--porcelain", "-uno", "--", "include", "src", "bench/*.cpp", "bench/*.hpp"])
    commit = first_line(["git", "rev-parse", "--short=12", "HEAD"]) + (" with changes" if changed else "")
    page = [f"""# Measured

Written by `sh cmake/bootstrap.sh report` ([`report.py`](../report.py)); do not edit.

{kind}{table(["", ""], [("machine", machine()), ("compiler", first_line([COMPILER, "--version"]) + ", preset release"),
                  ("date", when), ("commit", commit)]).replace("--:", "---")}
Times are medians of several runs in random order, of one operation where the workload says so; the spread is
from the fastest to the slowest run. "Of ours" is the baseline's median over vmspace's, from the same run: above
1, vmspace is faster. Each source in [`bench/`](..) says at its head what its workloads do.
"""]
    charts = [("allocation.svg", "Allocation: time of an operation against live ranges, vmspace and its peers"),
              ("restore_time.svg", "Restore: time until a guest has touched its first 8 MiB, against its size"),
              ("headers.svg", "Compile time: seconds and preprocessed lines of each umbrella header")]
    for name, text in charts:
        if (REPORT / name).exists():
            page.append(f"![{text}]({name})\n")
    if headers:
        page.append("## Compile time\n\nOf a file that includes the header and has nothing else (`-std=c++20 -fsyntax-only`).\n")
        page.append(table(["header", "seconds", "lines"], [
            (f"`{name}`", f"{statistics.median(found['seconds']):.2f}", f"{found['lines']:,}")
            for name, found in sorted(headers.items(), key=lambda item: item[1]["lines"])]))
    page.append("## Instructions\n\nOf our own code alone, which repeat from run to run "
                "([`instructions.txt`](../instructions.txt), [`instructions.sh`](../instructions.sh)).\n")
    counted = [line.split() for line in (ROOT / "bench" / "instructions.txt").read_text().splitlines() if line[0] != "#"]
    page.append(table(["workload", "instructions of an operation"], [(line[0], f"{float(line[3]):,.1f}") for line in counted]))
    for name, figures in all_figures.items():
        page.append(f"## {name}\n\n<details><summary>{len(figures)} cases</summary>\n")
        page.append(figures_table(figures) + "\n</details>\n")
    (REPORT / "README.md").write_text("\n".join(page))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer cases and repetitions")
    parser.add_argument("--no-run", action="store_true", help="write the report from the last run's figures")
    parser.add_argument("--only", metavar="NAME", help="run one program alone, or the headers")
    options = parser.parse_args()
    programs = sorted(BUILD.glob("*_bench"))
    if not programs:
        sys.exit(f"{BUILD} has no benchmarks: sh cmake/bootstrap.sh release")
    RAW.mkdir(exist_ok=True)
    REPORT.mkdir(exist_ok=True)
    if not options.no_run:
        if options.only in (None, "headers"):
            measure_headers(options)
        for program in programs:
            if options.only in (None, program.name.removesuffix("_bench")):
                run_benchmark(program, options)
    found = {program.name.removesuffix("_bench"): read_figures(program.name.removesuffix("_bench")) for program in programs}
    all_figures = {name: figures for name, figures in found.items() if figures}
    if not all_figures:
        sys.exit("no benchmark has figures")
    headers = json.loads((RAW / "headers.json").read_text()) if (RAW / "headers.json").exists() else {}
    draw_allocation(all_figures.get("allocator", {}))
    draw_restore(all_figures.get("snapshot", {}))
    if headers:
        draw_headers(headers)
    write_page(options, all_figures, headers)
    print(f"wrote {REPORT.relative_to(ROOT)}/README.md")
    missing = sorted(name for name, figures in found.items() if not figures)
    if missing:
        sys.exit(f"without figures: {', '.join(missing)}")


if __name__ == "__main__":
    main()
