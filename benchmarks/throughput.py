"""Rows per second and CPU of the bulk path, beside a bare aiohttp loop and DSPy as shipped.

    python benchmarks/throughput.py [--repeats 5] [--repeats-dspy 1] [--only zero ours bare] [--quick]

A stub server in its own process plays the model; every cell of the table is a fresh client process against a fresh
stub, and the cells of one repeat are taken in turn, so that a drift of the machine hits all alike. In one repeat all
clients meet the same delays and faults. Timed after imports and one warm call; CPU is the client's own.

The bare loop is the yardstick: workers that send ready messages with `session.post(json=...)` and `reply.json()`,
nothing parsed, written down or retried. Ours renders, sends, retries, journals to disk, parses, and every row is
checked; `run_table` is the same from Parquet to Parquet. DSPy, its cache off, renders, retries and parses. The bare
loop cannot retry, so it has no cell with faults.

A perfect client keeps every slot busy while a row can be asked, asks a failed row again the moment it may, and costs no
CPU; what it would need is simulated against the very draws the stub makes.
"""

import argparse
import asyncio
import contextlib
import gc
import heapq
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stub_server import Dials, run_stub

AT_ONCE = Dials()
FAULTS = Dials(latency=0.2, rate=0.04, error=0.02)


@dataclass(frozen=True, slots=True)
class Load:
    """How many rows, how many in flight, and how the server behaves."""

    n_rows: int
    in_flight: int
    dials: Dials = AT_ONCE
    size: str = "short"

    @property
    def has_faults(self) -> bool:
        """Whether some calls must be sent again."""
        return bool(self.dials.rate or self.dials.error)


LOADS = {
    "flat256": Load(2000, 256, Dials(latency=0.2)),
    "tail": Load(500, 64, Dials(latency=0.2, tail=0.05, tail_latency=2.0)),
    "zero": Load(4000, 64),
    "zero14kB": Load(2000, 64, size="long"),
    "faults": Load(2500, 64, FAULTS),
    "faults+wait": Load(2500, 64, replace(FAULTS, retry_after=1.0)),
}
PATHS = {
    "bare": "bare aiohttp",
    "acall": "dspy.Predict.acall",
    "batch": "dspy.Predict.batch",
    "ours": "matrix_dspy",
    "table": "matrix_dspy.run_table",
}
DSPY_PATHS = ("acall", "batch")
BLOCKS = {
    "rate": ("rows/s", "{:,.0f}"),
    "cpu": ("CPU s per 1,000 rows", "{:.3f}"),
    "rate_x_bare": ("rows/s as a multiple of bare", "{:.2f}"),
    "cpu_x_bare": ("CPU as a multiple of bare", "{:.2f}"),
    "of_ceiling": ("rows/s as a share of in flight / latency", "{:.2f}"),
    "of_perfect": ("rows/s as a share of a perfect client's", "{:.2f}"),
    "failed": ("rows without an answer", "{:.0f}"),
}
TARGETS = (
    ("flat256", "rate_x_bare", ">=", 0.92),
    ("flat256", "cpu_x_bare", "<=", 2.2),
    ("tail", "rate_x_bare", ">=", 0.96),
    ("zero", "rate", ">=", 3000.0),
    ("faults", "rate", ">=", 200.0),
    ("faults+wait", "of_perfect", ">=", 0.85),
)

Cell = dict[str, float]
Work = Callable[[int], Awaitable[None]]


@contextlib.contextmanager
def measure() -> Iterator[Cell]:
    """Time the block: `seconds` by the clock, and `cpu` of this process."""
    cell: Cell = {}
    clock, cpu = time.perf_counter(), time.process_time()
    yield cell
    cell |= {"seconds": time.perf_counter() - clock, "cpu": time.process_time() - cpu}


async def run_workers(n: int, width: int, work: Work) -> None:
    """Await `work(0)` to `work(n - 1)`, `width` at a time."""
    positions = iter(range(n))

    async def worker() -> None:
        for position in positions:
            await work(position)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(worker())


async def run_bare(load: Load, url: str, program: Any, rows: list[dict[str, Any]]) -> Cell:
    """Send ready messages and read the JSON."""
    import aiohttp

    from matrix_dspy.bulk.prompt import Prompt

    prompt = Prompt.of(program)
    sampling = {"model": "stub", "temperature": 0.7, "max_tokens": 256}
    bodies = [{**sampling, "messages": prompt.messages(row)} for row in rows]
    gc.freeze()  # the yardstick must not pay for the garbage of imports it does not use

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(position: int) -> None:
            async with session.post(url + "/chat/completions", json=bodies[position]) as reply:
                assert (await reply.json())["choices"]

        await ask(load.n_rows)
        with measure() as cell:
            await run_workers(load.n_rows, load.in_flight, ask)
    return cell


async def run_ours(load: Load, url: str, program: Any, rows: list[dict[str, Any]]) -> Cell:
    """From inputs to checked, journaled outputs, as `run_program` goes."""
    from workload import check_fields

    from matrix_dspy.bulk.journal import CallKey, Journal
    from matrix_dspy.bulk.program import for_each
    from matrix_dspy.bulk.prompt import Prompt
    from matrix_dspy.bulk.runner import Runner
    from matrix_dspy.config import SamplingConfig
    from matrix_dspy.engine.spec import build_engine

    prompt, sampling = Prompt.of(program), SamplingConfig(max_tokens=256)
    gc.freeze()  # as `run_program` does
    with tempfile.TemporaryDirectory() as folder:
        async with build_engine(url, concurrency=load.in_flight) as engine:
            journal = Journal(Path(folder))
            runner = Runner(engine, journal)

            async def ask(position: int) -> None:
                key = CallKey("bench", f"row-{position:09d}", "call")
                check_fields((await runner.call(prompt, rows[position], key, sampling)).fields)

            await ask(load.n_rows)
            with measure() as cell:
                await for_each(load.n_rows, 2 * load.in_flight, ask)
                journal.close()
    return cell


async def run_table(load: Load, url: str, program: Any, rows: list[dict[str, Any]]) -> Cell:
    """From Parquet to Parquet through the public function, connecting and closing included."""
    import polars as pl

    import matrix_dspy

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        frame = pl.DataFrame(rows)
        frame[: load.n_rows].write_parquet(folder / "rows.parquet")
        frame[load.n_rows :].write_parquet(folder / "warm.parquet")
        options: dict[str, Any] = {"lm": url, "concurrency": load.in_flight, "max_tokens": 256}
        matrix_dspy.run_table(program, folder / "warm.parquet", folder / "warm", **options)
        with measure() as cell:
            made = matrix_dspy.run_table(program, folder / "rows.parquet", folder / "run", **options)
        n_answered = pl.read_parquet(made).filter(pl.col("urgency") == 3).height
    return cell | {"failed": load.n_rows - n_answered}


async def run_acall(load: Load, url: str, program: Any, rows: list[dict[str, Any]]) -> Cell:
    """From inputs to checked outputs through `dspy.Predict.acall`."""
    import dspy
    from workload import check_fields

    failed = 0

    async def ask(position: int) -> None:
        nonlocal failed
        try:
            check_fields(await program.acall(**rows[position]))
        except Exception:
            failed += 1

    with dspy.context(lm=build_dspy_lm(url)):
        await ask(load.n_rows)
        with measure() as cell:
            await run_workers(load.n_rows, load.in_flight, ask)
    return cell | {"failed": failed}


async def run_batch(load: Load, url: str, program: Any, rows: list[dict[str, Any]]) -> Cell:
    """From inputs to checked outputs through `dspy.Predict.batch`, one thread for every call in flight."""
    import dspy
    from workload import check_fields

    examples = [dspy.Example(**row).with_inputs(*row) for row in rows]
    options = {"num_threads": load.in_flight, "max_errors": load.n_rows, "disable_progress_bar": True}
    with dspy.context(lm=build_dspy_lm(url)):
        program(**rows[load.n_rows])
        with measure() as cell:
            made = program.batch(examples[: load.n_rows], provide_traceback=False, **options)
            answered = [prediction for prediction in made if prediction is not None]
            for prediction in answered:
                check_fields(prediction)
    return cell | {"failed": load.n_rows - len(answered)}


def build_dspy_lm(url: str) -> Any:
    """Build DSPy's own LM as shipped, but for its cache."""
    import dspy

    return dspy.LM("openai/stub", api_base=url, api_key="none", cache=False, max_tokens=256)


RUNS = {"bare": run_bare, "ours": run_ours, "table": run_table, "acall": run_acall, "batch": run_batch}


def run_child(path: str, name: str, n_rows: int, url: str) -> None:
    """Measure one cell in this process and print it."""
    from workload import build_program, build_row

    load = replace(LOADS[name], n_rows=n_rows)
    rows = [build_row(load.size, number) for number in range(n_rows + 1)]  # the last is the warm call's
    print(json.dumps(asyncio.run(RUNS[path](load, url, build_program(load.size), rows))))


def measure_cell(path: str, name: str, load: Load, seed: int) -> Cell:
    """Measure one cell in a fresh process against a fresh stub."""
    with run_stub(replace(load.dials, seed=seed), load.size) as url:
        child = ["--child", path, name, str(load.n_rows), url]
        env = os.environ | {"DSPY_CACHEDIR": tempfile.gettempdir()}
        command = [sys.executable, __file__, *child]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise SystemExit(f"{name}, {PATHS[path]}: {done.stderr[-2000:]}")
    cell = json.loads(done.stdout.splitlines()[-1])
    n_answered = load.n_rows - cell.get("failed", 0)
    return cell | {"rate": n_answered / cell["seconds"], "cpu": 1000 * cell["cpu"] / load.n_rows}


def simulate_perfect(load: Load, seed: int) -> float:
    """Return the seconds a perfect client needs for the load; 0 without latency."""
    fates = replace(load.dials, seed=seed).draw_fates()
    next(fates)  # the warm call's
    free, again = [0.0] * load.in_flight, list[float]()
    n_fresh, ended = load.n_rows, 0.0
    while n_fresh or again:
        now = heapq.heappop(free)
        if again and (again[0] <= now or not n_fresh):
            now = max(now, heapq.heappop(again))
        else:
            n_fresh -= 1
        kind, seconds = next(fates)
        heapq.heappush(free, now + seconds)
        ended = max(ended, now + seconds)
        if kind != "answer":
            wait = load.dials.retry_after if kind == "rate" else None
            heapq.heappush(again, now + seconds + (wait or 0.0))
    return ended


def measure_repeat(paths: list[str], loads: dict[str, Load], seed: int) -> dict[tuple[str, str], Cell]:
    """Measure every cell once, in turn, and relate it to the bare loop and to a perfect client."""
    found: dict[tuple[str, str], Cell] = {}
    for name, load in loads.items():
        cells = {path: measure_cell(path, name, load, seed) for path in paths if path != "bare" or not load.has_faults}
        bare, perfect = cells.get("bare"), simulate_perfect(load, seed)
        for path, cell in cells.items():
            if bare is not None:
                cell |= {"rate_x_bare": cell["rate"] / bare["rate"], "cpu_x_bare": cell["cpu"] / bare["cpu"]}
            if perfect:
                cell["of_perfect"] = cell["rate"] * perfect / load.n_rows
                cell["of_ceiling"] = cell["rate"] * load.dials.latency / load.in_flight
            found[name, path] = cell
        if perfect:
            found[name, "perfect"] = {"rate": load.n_rows / perfect}
    return found


def measure_repeats(
    paths: list[str], loads: dict[str, Load], n_repeats: int, n_dspy: int
) -> list[dict[tuple[str, str], Cell]]:
    """Measure everything several times, each repeat with delays and faults of its own."""
    repeats: list[dict[tuple[str, str], Cell]] = []
    for seed in range(n_repeats):
        chosen = [path for path in paths if path not in DSPY_PATHS or seed < n_dspy]
        repeats.append(measure_repeat(chosen, loads, seed))
        print(f"repeat {seed + 1} of {n_repeats} done", file=sys.stderr)
    return repeats


def find_medians(repeats: list[dict[tuple[str, str], Cell]]) -> dict[tuple[str, str], Cell]:
    """Return the median of every figure of every cell."""
    medians: dict[tuple[str, str], Cell] = {}
    for place in dict.fromkeys(place for one in repeats for place in one):
        cells = [one[place] for one in repeats if place in one]
        medians[place] = {figure: statistics.median(cell[figure] for cell in cells) for figure in cells[0]}
    return medians


def print_blocks(medians: dict[tuple[str, str], Cell], names: list[str]) -> None:
    """Print one block for each figure: paths down, loads across."""
    for figure, (title, form) in BLOCKS.items():
        if not any(cell.get(figure) for cell in medians.values()):
            continue
        print(f"\n{title:40}" + "".join(f"{name:>13}" for name in names))
        for path, label in [*PATHS.items(), ("perfect", "perfect client (simulated)")]:
            values = [medians.get((name, path), {}).get(figure) for name in names]
            if any(value is not None for value in values):
                cells = ("-" if value is None else form.format(value) for value in values)
                print(f"  {label:38}" + "".join(f"{cell:>13}" for cell in cells))


def print_targets(medians: dict[tuple[str, str], Cell]) -> None:
    """Print what was aimed at, and whether it holds."""
    print("\ntargets of matrix_dspy")
    for name, figure, sign, bound in TARGETS:
        value = medians.get((name, "ours"), {}).get(figure)
        if value is not None:
            holds = value >= bound if sign == ">=" else value <= bound
            title, form = BLOCKS[figure]
            print(f"  {name:12} {title:42} {form.format(value):>8} {sign} {bound:<8,g} {'yes' if holds else 'NO'}")


def shrink(load: Load) -> Load:
    """Return the load with a tenth of its rows, at least two for every slot."""
    return replace(load, n_rows=max(load.n_rows // 10, 2 * load.in_flight))


def main() -> None:
    """Measure all cells in turn, several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--repeats-dspy", type=int, default=1, help="repeats of the DSPy paths, which are slow")
    parser.add_argument("--only", nargs="+", choices=[*LOADS, *PATHS], default=[], help="loads, paths or both")
    parser.add_argument("--quick", action="store_true", help="one repeat of a tenth of the rows; too few for targets")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        path, name, n_rows, url = options.child
        run_child(path, name, int(n_rows), url)
        return
    loads = {name: load for name, load in LOADS.items() if name in options.only} or LOADS
    paths = [path for path in PATHS if path in options.only] or list(PATHS)
    if options.quick:
        loads, options.repeats = {name: shrink(load) for name, load in loads.items()}, 1
    options.repeats_dspy = min(options.repeats_dspy, options.repeats)
    title = f"medians of {options.repeats} (DSPy's of {options.repeats_dspy}), {os.cpu_count()} cores"
    title += f", load {os.getloadavg()[0]:.1f} before"
    medians = find_medians(measure_repeats(paths, loads, options.repeats, options.repeats_dspy))
    print(title)
    print_blocks(medians, list(loads))
    if not options.quick:
        print_targets(medians)


if __name__ == "__main__":
    main()
