"""CPU of a judged win rate of 805 pairs in both orders, beside a bare aiohttp loop that sends the same calls.

    python benchmarks/evaluation.py [--pairs 805] [--repeats 5]

A stub server in its own process plays the judge and answers A or B by a hash of what it is asked. Both clients are
fresh processes, taken in turn. The bare loop sends the 1,610 ready messages and reads the JSON of the replies, nothing
else. Ours is the whole evaluation: both sides' answers are read from files, every pair is cleaned, asked in both
orders, journaled and parsed, rates and intervals are computed (with 1,000 refits of the length-controlled one), and all
files are written. Timed after imports, which are told apart, and a warm evaluation of 30 pairs.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from stub_server import Dials, Stub, StubProtocol, build_replies
from workload import FILLER

WORDS = FILLER.split()
VERDICT = (
    "[[ ## reason ## ]]\nAnswer {} keeps to what was asked and can be used as it stands, the other one leaves out the "
    "second part of the request.\n\n[[ ## preference ## ]]\n{}\n\n[[ ## completed ## ]]"
)
IN_FLIGHT = 32
WARM_PAIRS = 30
MOST_CPU = 0.5
"""Seconds per 1,000 calls."""
PATHS = ("bare", "ours")


class JudgeStub(Stub):
    """Answers A or B, by what it is asked."""

    def __init__(self) -> None:
        super().__init__(Dials(), "")
        self._verdicts = [build_replies(VERDICT.format(one, one), None)["answer"] for one in "AB"]

    def receive(self, transport: asyncio.Transport, body: bytes) -> None:
        """Answer a request."""
        self._replies["answer"] = self._verdicts[zlib.crc32(body) & 1]
        super().receive(transport, body)


async def serve() -> None:
    """Serve on a free port of 127.0.0.1 and print it."""
    stub = JudgeStub()
    server = await asyncio.get_running_loop().create_server(partial(StubProtocol, stub), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def list_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return where the questions and both sides' answers stand."""
    return folder / "questions.jsonl", folder / "model.json", folder / "reference.json"


def write_files(folder: Path, n_pairs: int) -> tuple[Path, Path, Path]:
    """Write questions and two sides' answers of about 900 and 1,200 characters."""
    draws = random.Random(n_pairs)

    def write(n_words: int) -> str:
        return " ".join(draws.choices(WORDS, k=max(1, round(draws.gauss(n_words, n_words / 4)))))

    asked = [f"Question {number}: {write(25)}?" for number in range(n_pairs)]
    paths = list_files(folder)
    paths[0].write_text("".join(f"{json.dumps({'instruction': each})}\n" for each in asked), encoding="utf-8")
    for path, n_words in zip(paths[1:], (170, 220), strict=True):
        rows = [{"instruction": each, "output": write(n_words), "generator": path.stem} for each in asked]
        path.write_text(json.dumps(rows), encoding="utf-8")
    return paths


async def run_ours(folder: Path, url: str, n_pairs: int) -> int:
    """Evaluate from file to file; returns the calls that were made."""
    from matrix_dspy.evaluation.answers import Subject
    from matrix_dspy.evaluation.asking import AskOptions
    from matrix_dspy.evaluation.questions import read_questions
    from matrix_dspy.evaluation.winrate import run_winrate

    questions, model, reference = list_files(folder)
    options = AskOptions(concurrency=IN_FLIGHT, is_quiet=True)
    found = await run_winrate(
        Subject.of(str(model)), Subject.of(str(reference)), read_questions(questions), url, folder / "out", options
    )
    assert found.counts["judged"] == n_pairs and found.find("length-controlled win rate").value is not None
    return 2 * n_pairs


async def run_bare(folder: Path, url: str, n_pairs: int) -> int:
    """Send the same messages, which are ready, and read the JSON; returns the calls that were made."""
    import aiohttp

    bodies = build_bodies(folder, n_pairs)
    places = iter(range(len(bodies)))
    gc.freeze()  # as the evaluation does; the yardstick must not pay for imports it does not use
    clock, cpu = time.perf_counter(), time.process_time()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def work() -> None:
            for place in places:
                async with session.post(url + "/chat/completions", json=bodies[place]) as reply:
                    assert (await reply.json())["choices"]

        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(work())
    report(clock, cpu, len(bodies))
    return len(bodies)


def build_bodies(folder: Path, n_pairs: int) -> list[dict[str, Any]]:
    """Build the bodies of all calls, both orders."""
    from matrix_dspy.bulk.prompt import Prompt
    from matrix_dspy.loading import load_program

    prompt = Prompt.of(load_program("pair_judge"))
    questions, *sides = write_files(folder, n_pairs)
    asked = [json.loads(line)["instruction"] for line in questions.read_text("utf-8").splitlines()]
    texts = [[row["output"] for row in json.loads(path.read_text("utf-8"))] for path in sides]
    names = ("response_a", "response_b")
    rows = [
        {"instruction": each, **dict(zip(names, pair, strict=True))}
        for each, *shown in zip(asked, *texts, strict=True)
        for pair in (shown, shown[::-1])
    ]
    return [{"model": "stub", "temperature": 0.0, "max_tokens": 384, "messages": prompt.messages(row)} for row in rows]


def report(clock: float, cpu: float, n_calls: int) -> None:
    """Print what a block of calls took, as JSON."""
    cell = {"seconds": time.perf_counter() - clock, "cpu": 1000 * (time.process_time() - cpu) / n_calls}
    print(json.dumps(cell | {"before": cpu}))


def run_child(path: str, n_pairs: int, url: str) -> None:
    """Measure one path in this process."""
    from matrix_dspy.bulk.program import run_async

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if path == "bare":
            asyncio.run(run_bare(folder, url, n_pairs))
            return
        warm = folder / "warm"
        warm.mkdir()
        write_files(warm, WARM_PAIRS)
        run_async(run_ours(warm, url, WARM_PAIRS))
        write_files(folder, n_pairs)
        clock, cpu = time.perf_counter(), time.process_time()
        n_calls = run_async(run_ours(folder, url, n_pairs))
        report(clock, cpu, n_calls)


def measure(path: str, n_pairs: int) -> dict[str, float]:
    """Measure one path in a fresh process against a fresh server."""
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            command = [sys.executable, __file__, "--child", path, str(n_pairs), url]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])
        finally:
            server.kill()


def main() -> None:
    """Measure both in turn, several times, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=805)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return
    if options.child:
        path, n_pairs, url = options.child
        run_child(path, int(n_pairs), url)
        return
    load = os.getloadavg()[0]
    found = [{path: measure(path, options.pairs) for path in PATHS} for _ in range(options.repeats)]
    medians = {
        path: {key: statistics.median(one[path][key] for one in found) for key in found[0][path]} for path in PATHS
    }
    ratio = statistics.median(one["ours"]["cpu"] / one["bare"]["cpu"] for one in found)
    print(
        f"{options.pairs:,} pairs in both orders, medians of {options.repeats}, {os.cpu_count()} cores, load {load:.1f}"
    )
    print(f"{'':12}{'CPU s per 1,000 calls':>24}{'seconds':>10}{'CPU s of imports':>18}")
    for path, cell in medians.items():
        print(f"  {path:10}{cell['cpu']:>24.3f}{cell['seconds']:>10.2f}{cell['before']:>18.2f}")
    holds = "yes" if medians["ours"]["cpu"] <= MOST_CPU else "NO"
    print(f"ours is {ratio:.2f} times bare; at most {MOST_CPU} CPU s per 1,000 calls: {holds}")


if __name__ == "__main__":
    main()
