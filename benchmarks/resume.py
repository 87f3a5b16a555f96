"""What a kill costs: `kill -9` at many moments, the same command again, and a count of what was paid for twice.

    python benchmarks/resume.py [--kills 10] [--rows 2500] [--in-flight 64]

A child runs `run_program(..., out=FOLDER)` against a stub server that takes 100 to 300 ms a call. At a drawn moment,
30 to 70 % through, it is killed with everything it started, and the same command is run to its end. The stub counts
answers to bodies it had answered before, those to the killed process included, read or not. Must hold after every
kill: at most as many answers repeated as may be in flight, no row lost or doubled, and `output.parquet` byte for byte
as that of a run that was never killed. The exit code is 1 if one of them does not.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stub_server import Dials, read_stats, run_stub

DIALS = Dials(latency=0.2, jitter=0.5)
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Job:
    """One command: so many rows, so many in flight."""

    n_rows: int
    in_flight: int

    def start(self, url: str, folder: Path) -> subprocess.Popen[bytes]:
        """Start the command in a process group of its own."""
        child = ["--child", url, str(folder), "--rows", str(self.n_rows), "--in-flight", str(self.in_flight)]
        return subprocess.Popen([sys.executable, __file__, *child], start_new_session=True)

    def finish(self, url: str, folder: Path) -> None:
        """Run the command to its end."""
        if code := self.start(url, folder).wait():
            raise SystemExit(f"the command ended with {code}")


@dataclass(frozen=True, slots=True)
class Kill:
    """What one kill cost."""

    at: int
    """Requests the server had got when the process was killed."""
    in_flight: int
    repeated: int
    lost: int
    doubled: int
    is_same: bool

    def holds(self, in_flight: int) -> bool:
        """Whether nothing was lost and no more repeated than may be."""
        return self.repeated <= in_flight and not self.lost and not self.doubled and self.is_same


def run_child(url: str, folder: str, job: Job) -> None:
    """Run the program over the rows."""
    import polars as pl
    from workload import build_program, build_row

    import matrix_dspy

    frame = pl.DataFrame([{"row": number, **build_row("short", number)} for number in range(job.n_rows)])
    matrix_dspy.run_program(build_program("short"), frame, lm=url, out=folder, concurrency=job.in_flight)


def kill_at(job: Job, url: str, folder: Path, n_requests: int) -> tuple[int, int]:
    """Kill the command once the server has got so many requests; returns requests and those in flight then."""
    process = job.start(url, folder)
    while read_stats(url)["requests"] < n_requests:
        if process.poll() is not None:
            raise SystemExit(f"the command ended with {process.returncode} before it could be killed")
        time.sleep(POLL_S)
    os.killpg(process.pid, signal.SIGKILL)
    stats = read_stats(url)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit("the command had ended before it was killed")
    return stats["requests"], stats["in_flight"]


def measure_kill(job: Job, n_requests: int, whole: bytes) -> Kill:
    """Kill a run, finish it, and count."""
    with tempfile.TemporaryDirectory() as scratch, run_stub(DIALS) as url:
        folder = Path(scratch) / "run"
        at, in_flight = kill_at(job, url, folder, n_requests)
        time.sleep(2 * DIALS.latency)  # what was in flight is answered, to nobody
        job.finish(url, folder)
        lost, doubled = count_rows(folder / "output.parquet", job.n_rows)
        is_same = (folder / "output.parquet").read_bytes() == whole
        return Kill(at, in_flight, read_stats(url)["repeated"], lost, doubled, is_same)


def count_rows(table: Path, n_rows: int) -> tuple[int, int]:
    """Count rows that are missing or have no answer, and rows that stand there more than once."""
    import polars as pl

    frame = pl.read_parquet(table)
    answered = frame.filter(pl.col("topic").is_not_null() & pl.col("error").is_null())
    return n_rows - answered["row"].n_unique(), len(frame) - frame["row"].n_unique()


def run_unbroken(job: Job) -> bytes:
    """Run the command without a kill and return the bytes of its table."""
    with tempfile.TemporaryDirectory() as scratch, run_stub(DIALS) as url:
        folder = Path(scratch) / "run"
        job.finish(url, folder)
        stats = read_stats(url)
        if stats["requests"] != job.n_rows or stats["peak"] > job.in_flight:
            raise SystemExit(f"the unbroken run is not as it should be: {stats}")
        return (folder / "output.parquet").read_bytes()


def print_kills(kills: Iterable[Kill], in_flight: int) -> bool:
    """Print what each kill cost as it comes; returns whether all bounds hold."""
    print(f"{'killed at request':>18} {'in flight':>10} {'repeated':>9} {'lost':>5} {'doubled':>8} {'same table':>11}")
    worst, holds = 0, True
    for kill in kills:
        same = "yes" if kill.is_same else "NO"
        counts = f"{kill.at:18} {kill.in_flight:10} {kill.repeated:9} {kill.lost:5} {kill.doubled:8}"
        print(f"{counts} {same:>11}", flush=True)
        worst, holds = max(worst, kill.repeated), holds and kill.holds(in_flight)
    print(f"\nmost repeated: {worst}, at most {in_flight} allowed; all bounds hold: {'yes' if holds else 'NO'}")
    return holds


def main() -> None:
    """Kill several runs and print what each kill cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, default=2500)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    job = Job(options.rows, options.in_flight)
    if options.child:
        url, folder = options.child
        run_child(url, folder, job)
        return
    draws = random.Random(options.seed)
    whole = run_unbroken(job)
    print(f"{job.n_rows} rows, {job.in_flight} in flight, 100 to 300 ms a call")
    moments = (round(job.n_rows * draws.uniform(0.3, 0.7)) for _ in range(options.kills))
    raise SystemExit(not print_kills((measure_kill(job, moment, whole) for moment in moments), job.in_flight))


if __name__ == "__main__":
    main()
