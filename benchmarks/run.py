"""Speed and memory against peers, interleaved in one process: medians and their ratios.

    python benchmarks/run.py [CASE ...] [--repeats 7]

Every round runs each variant once, so what else the machine does meets all alike; freed memory is kept for
all of them, as `imagen` does. Writes
benchmarks/results/<device>.json, one entry a case, and the table of README.md from it; cases that are not
named keep their last results. A case whose peer is not installed is left out and says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case  # the file beside this one

from imagen_nodes.cli.process import keep_freed_memory

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
MARKS = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def clock_of(device: torch.device) -> str:
    """CPU time, which other work hardly changes, where one thread does it all; else wall-clock time."""
    one = device.type == "cpu" and torch.get_num_threads() == 1
    return "CPU time" if one else "wall-clock time"


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Time of one call."""
    clock = time.process_time if clock_of(device) == "CPU time" else time.perf_counter
    started = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - started


@torch.no_grad()
def measure(
    make: Callable[[torch.device], Case], repeats: int, device: torch.device
) -> dict[str, Any]:
    """Medians of interleaved runs after one round that does not count, and their ratios."""
    case = make(device)
    timed = {name: lambda run=run: seconds_of(run, device) for name, run in case.runs.items()}
    timed |= case.measured
    times: dict[str, list[float]] = {name: [] for name in timed}
    for round_ in range(repeats + 1):
        for name, run in timed.items():
            taken = run()
            if round_:
                times[name].append(taken)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    result: dict[str, Any] = {
        "about": case.about,
        "unit": case.unit,
        "clock": case.clock or clock_of(device),
        "commit": commit(),
        "rounds": repeats,
        "medians": medians,
        **case.facts,
    }
    if case.against:
        base = medians[case.against]
        result["against"] = case.against
        result["times_as_fast"] = {name: base / taken for name, taken in medians.items()}
    return result


def commit() -> str:
    """The commit that is measured."""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=HERE, check=False
    ).stdout.strip()


def about_machine(device: torch.device) -> dict[str, Any]:
    """What the figures hold for."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
        cpu = names[0] if names else cpu
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, each beside the peer's and as a ratio to it."""
    lines = ["| | median | times as fast |", "|---|---|---|"]
    for result in results.values():
        lines.append(f"| *{result['about']}* ({result['clock']}) | | |")
        ratios = result.get("times_as_fast", {})
        for name, taken in result["medians"].items():
            ratio = f"{ratios[name]:.2f}" if name in ratios else ""
            lines.append(f"| {name} | {taken:.3g} {result['unit']} | {ratio} |")
    return "\n".join(lines)


def write_readme(found: dict[str, Any]) -> None:
    """Put the table between its marks."""
    text = README.read_text("utf-8")
    before, rest = text.split(MARKS[0])
    machine = f"{found['device']}, threads: {found['threads']}, torch {found['torch']}"
    made = f"{MARKS[0]}\n{machine}; ratios to the run marked 1.00:\n\n{table(found['results'])}\n"
    README.write_text(before + made + MARKS[1] + rest.split(MARKS[1])[1], "utf-8")


def main() -> None:
    """Measure the cases that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    path = HERE / "results" / f"{device.type}.json"
    known = json.loads(path.read_text("utf-8"))["results"] if path.exists() else {}
    for name in options.cases or CASES:
        try:
            known[name] = measure(CASES[name], options.repeats, device)
            print(json.dumps({name: known[name]}, indent=1), flush=True)
        except ModuleNotFoundError as error:
            print(f"{name}: left out, {error.name} is not installed", flush=True)
        gc.collect()
    found = {**about_machine(device), "results": {k: known[k] for k in CASES if k in known}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    write_readme(found)


if __name__ == "__main__":
    main()
