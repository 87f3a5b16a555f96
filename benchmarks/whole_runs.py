"""Seconds and peak memory of whole commands on the rehearsal engine.

    python benchmarks/whole_runs.py [--repeats 3]

Each command runs in a process of its own, into a temporary folder; medians of the repeats. `import typer` alone, in
the same run, is the floor for `--help`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CLI = Path(__file__).parent.parent / "cli.py"
COMMANDS = {
    "import typer (floor)": ["-c", "import typer"],
    "--help": [str(CLI), "--help"],
    "generate (tiny, 200 rows)": [str(CLI), "generate", "-q", "--out", "{out}"],
    "simulate (paper, 1,000 scenarios)": [
        *(str(CLI), "simulate", "-q", "--recipe", "paper", "--scenarios", "1000", "--out", "{out}"),
    ],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run one command; returns seconds and peak resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(part.format(out=f"{folder}/run") for part in arguments)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def main() -> None:
    """Measure every command and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{'command':36} {'seconds':>8} {'peak MB':>8}   medians of {options.repeats}")
    for name, arguments in COMMANDS.items():
        found = [measure(arguments) for _ in range(options.repeats)]
        seconds, memory = (statistics.median(values) for values in zip(*found, strict=True))
        print(f"{name:36} {seconds:8.2f} {memory:8.0f}")


if __name__ == "__main__":
    main()
