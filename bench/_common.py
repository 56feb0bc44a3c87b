"""What all benchmarks share: options, the machine's description, tables."""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def main(text: str, measure: Callable[[bool], Figures], show: Callable[[Figures], str]) -> None:
    """Run a benchmark: `measure(quick)`, then print its table, or its figures with --json."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--json", action="store_true", help="print the figures as one object")
    parser.add_argument("--quick", action="store_true", help="small: a trial of the benchmark, not a result")
    options = parser.parse_args()
    # SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        figures = {"machine": describe_machine(), "quick": options.quick, **measure(options.quick)}
    except KeyboardInterrupt:
        sys.exit(130)
    if options.json:
        print(json.dumps(figures))
    else:
        print(text.partition("\n")[0])
        print("Machine:", ", ".join(str(value) for value in figures["machine"].values()))
        print(show(figures), flush=True)


def describe_machine() -> dict[str, str]:
    """Say where and when: figures mean nothing without it."""
    cpus = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "cpu": f"{os.cpu_count()} x {cpus[0] if cpus else platform.machine()}",
        "memory": f"{memory_kib / 2**20:.0f} GiB",
        "kernel": f"Linux {platform.release()}",
        "python": f"Python {platform.python_version()}",
        "load": f"load {os.getloadavg()[0]:.1f} at the start",
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a table; the first column to the left, figures to the right."""
    texts = [list(header), *([f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
    lines = []
    for row in texts:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(["", *lines])


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def drop_caches() -> None:
    """Empty the page cache, as after a boot. The whole machine's: other programs notice."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
