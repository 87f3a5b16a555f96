"""Peak memory against rows, from Parquet to Parquet: it must not grow with the table.

    python benchmarks/memory.py [--largest 1000000] [--again] [--frame]

`run_table` over 1,000 rows, then ten times as many and so on, each size in a fresh process, with an engine that
answers at once. Input comes in row groups of 10,000. MB are resident memory: before the run, at the peak as the kernel
kept it (`ru_maxrss`), and the median of samples taken during the second half (`VmRSS`, Linux only). The peak of the
largest size may be at most 100 MB above that of 10,000 rows; the exit code is 1 if it is more.

`--again` runs every command a second time, when all is replayed from the journal. `--frame` measures `run_program`,
which holds the whole table, for comparison.
"""

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GROUP_ROWS = 10_000
BASE_ROWS = 10_000
GROWTH_MB = 100
SAMPLE_S = 0.05


class Sampler(threading.Thread):
    """Reads this process's resident memory every 50 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._samples: list[float] = []
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            self._samples.append(read_resident_mb())

    def finish(self) -> float:
        """Stop, and return the median of the second half."""
        self._done.set()
        self.join()
        return statistics.median(self._samples[len(self._samples) // 2 :] or [0.0])


def read_resident_mb() -> float:
    """Read `VmRSS` in MB; 0 where there is no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def read_peak_mb() -> float:
    """Read the peak of this process's resident memory, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def build_null_engine() -> Any:
    """Build an engine that answers at once, always the same."""
    from stub_server import ANSWERS

    from matrix_dspy.engine.base import Completion, Engine, Request

    answer = Completion((ANSWERS["short"],), ("stop",), prompt_tokens=400, completion_tokens=20)

    class NullEngine(Engine):
        async def open(self) -> None:
            self.model = "null"

        async def attempt(self, request: Request, n_asked: int) -> Completion:
            await asyncio.sleep(0)  # without it one worker would do all rows and nothing would be in flight
            return answer

    return NullEngine(concurrency=64)


def write_input(path: Path, n_rows: int) -> None:
    """Write the input table, group by group."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from workload import build_row

    schema = pa.schema({"row": pa.int64(), "shop": pa.string(), "message": pa.string()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, n_rows, GROUP_ROWS):
            numbers = range(start, min(start + GROUP_ROWS, n_rows))
            rows = [{"row": number, **build_row("short", number)} for number in numbers]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def run_child(source: Path, out: Path, *, is_frame: bool) -> dict[str, float]:
    """Run the program over the table and measure this process."""
    import polars as pl
    from workload import build_program

    import matrix_dspy

    program, engine = build_program("short"), build_null_engine()
    figures = {"before": read_resident_mb()}
    sampler, started = Sampler(), time.perf_counter()
    sampler.start()
    if is_frame:
        matrix_dspy.run_program(program, pl.read_parquet(source), lm=engine, out=out)
        made = out / "output.parquet"
    else:
        made = matrix_dspy.run_table(program, source, out, lm=engine)
    figures |= {"seconds": time.perf_counter() - started, "sampled": sampler.finish(), "peak": read_peak_mb()}
    answered = pl.scan_parquet(made).filter(pl.col("urgency") == 3).select("row")  # read after the peak was
    return figures | {"rows": answered.unique().select(pl.len()).collect().item()}


def call_self(*arguments: str) -> dict[str, float]:
    """Run a part of this file in a fresh process and read what it prints last."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_size(n_rows: int, n_times: int, mode: list[str]) -> list[dict[str, float]]:
    """Measure one size, `n_times` on the same folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = str(Path(scratch) / "input.parquet"), str(Path(scratch) / "run")
        call_self("--write", source, str(n_rows))
        found = [call_self("--run", source, out, *mode) for _ in range(n_times)]
    for figures in found:
        if figures["rows"] != n_rows:
            raise SystemExit(f"{figures['rows']} of {n_rows} rows have an answer")
    return found


def print_sizes(sizes: list[int], n_times: int, mode: list[str]) -> dict[int, float]:
    """Print the table as it comes; returns the highest peak of every size."""
    print(f"{'rows':>10} {'run':>7} {'seconds':>8} {'rows/s':>8} {'MB before':>10} {'MB sampled':>11} {'MB peak':>8}")
    peaks: dict[int, float] = {}
    for size in sizes:
        for label, one in zip(("first", "again"), measure_size(size, n_times, mode), strict=False):
            speed = f"{one['seconds']:8.1f} {size / one['seconds']:8,.0f}"
            print(f"{size:10,} {label:>7} {speed} {one['before']:10.0f} {one['sampled']:11.0f} {one['peak']:8.0f}")
            sys.stdout.flush()
            peaks[size] = max(peaks.get(size, 0.0), one["peak"])
    return peaks


def main() -> None:
    """Measure every size and print the growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000, help="rows of the largest table, a power of ten")
    parser.add_argument("--again", action="store_true", help="measure a replay of every run too")
    parser.add_argument("--frame", action="store_true", help="measure run_program instead")
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_input(Path(options.write[0]), int(options.write[1]))
        print("{}")
    elif options.run:
        print(json.dumps(run_child(*map(Path, options.run), is_frame=options.frame)))
    else:
        sizes = [10**power for power in range(3, 10) if 10**power <= options.largest]
        peaks = print_sizes(sizes, 1 + options.again, ["--frame"] if options.frame else [])
        growth = peaks[sizes[-1]] - peaks.get(BASE_ROWS, peaks[sizes[0]])
        holds = growth < GROWTH_MB
        print(f"\ngrowth from {BASE_ROWS:,} to {sizes[-1]:,} rows: {growth:.0f} MB, below {GROWTH_MB}: {holds}")
        raise SystemExit(not holds)


if __name__ == "__main__":
    main()
