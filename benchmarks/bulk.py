"""CPU per call of the bulk path, against a bare aiohttp loop and `dspy.Predict.acall`, in one run.

    python benchmarks/bulk.py [--calls 4000] [--repeats 5]

A stub server in its own process answers at once. Every path runs in a fresh process, 64 calls in flight, a prompt of
about 14 kB with 3 demos, 4 inputs and 4 typed outputs. The bare loop sends ready messages and reads the JSON; ours
renders, sends, journals and parses; DSPy is as shipped, its cache off. Medians of the repeats.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

IN_FLIGHT = 64
HERE = Path(__file__).parent
FILLER = "The counter was busy from early morning and nobody had time to change the sign on the door. "


def build_program():
    """Return a predictor with 3 demos, 4 inputs and 4 typed outputs."""
    import dspy

    class SortMessage(dspy.Signature):
        """Sort a customer's message and say what to do about it."""

        shop: str = dspy.InputField(desc="the shop")
        rules: list[str] = dspy.InputField(desc="the shop's rules")
        message: str = dspy.InputField(desc="what the customer wrote")
        number: int = dspy.InputField(desc="how many messages the customer has written")
        topic: str = dspy.OutputField(desc="what it is about")
        urgency: int = dspy.OutputField(desc="1 to 5")
        is_complaint: bool = dspy.OutputField(desc="True if the customer complains")
        next_steps: list[str] = dspy.OutputField(desc="what to do")

    program = dspy.Predict(SortMessage)
    answer = {"topic": "opening hours", "urgency": 2, "is_complaint": False, "next_steps": ["answer", "file"]}
    program.demos = [dspy.Example(**build_row(-number), **answer) for number in (1, 2, 3)]
    return program


def build_row(number: int) -> dict[str, object]:
    """Return the inputs of one call; all differ."""
    return {
        "shop": f"Bakery {number}",
        "rules": [f"Rule {i}: {FILLER}" for i in range(8)],
        "message": f"Message {number}. {FILLER * 24}",
        "number": number,
    }


async def run_bare(url: str, n_calls: int) -> float:
    """Time ready messages through aiohttp."""
    import aiohttp
    import dspy

    from matrix_dspy.bulk.prompt import Prompt

    prompt = Prompt.of(build_program())
    bodies = [
        {"model": "stub", "messages": prompt.messages(build_row(i)), "temperature": 0.7, "max_tokens": 256}
        for i in range(n_calls)
    ]
    del dspy
    positions = iter(range(n_calls))

    async def work(session: aiohttp.ClientSession) -> None:
        for position in positions:
            async with session.post(url + "/chat/completions", json=bodies[position]) as reply:
                assert (await reply.json())["choices"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(work(session))
        return time.process_time() - started


async def run_ours(url: str, n_calls: int) -> float:
    """Time inputs to parsed, journaled outputs through the runner."""
    from matrix_dspy.bulk.journal import CallKey, Journal
    from matrix_dspy.bulk.program import for_each
    from matrix_dspy.bulk.prompt import Prompt
    from matrix_dspy.bulk.runner import Runner
    from matrix_dspy.config import SamplingConfig
    from matrix_dspy.engine.spec import build_engine

    rows = [build_row(i) for i in range(n_calls)]
    prompt, sampling = Prompt.of(build_program()), SamplingConfig(max_tokens=256)
    with tempfile.TemporaryDirectory() as folder:
        async with build_engine(url, concurrency=IN_FLIGHT) as engine:
            runner = Runner(engine, Journal(Path(folder)))

            async def work(position: int) -> None:
                key = CallKey("bench", f"row-{position}", "call")
                outcome = await runner.call(prompt, rows[position], key, sampling)
                assert outcome.fields is not None
                assert outcome.fields["urgency"] == 3

            started = time.process_time()
            await for_each(n_calls, IN_FLIGHT, work)
            return time.process_time() - started


async def run_dspy(url: str, n_calls: int) -> float:
    """Time inputs to parsed outputs through `dspy.Predict.acall` as shipped."""
    import dspy

    program = build_program()
    rows = [build_row(i) for i in range(n_calls)]
    lm = dspy.LM("openai/stub", api_base=url, api_key="none", cache=False, max_tokens=256)
    positions = iter(range(n_calls))

    async def work() -> None:
        for position in positions:
            assert (await program.acall(**rows[position])).urgency == 3

    with dspy.context(lm=lm):
        await program.acall(**rows[0])  # the first call loads what DSPy loads lazily
        started = time.process_time()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(work())
        return time.process_time() - started


PATHS = {"bare": run_bare, "ours": run_ours, "dspy": run_dspy}
NAMES = {"bare": "bare aiohttp", "ours": "matrix_dspy", "dspy": "dspy.Predict.acall"}


def measure(path: str, url: str, n_calls: int) -> float:
    """Run one path in a fresh process and return its CPU milliseconds a call."""
    command = [sys.executable, str(HERE / "bulk.py"), "--child", path, "--url", url, "--calls", str(n_calls)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"DSPY_CACHEDIR": "/tmp"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure all paths in turn, several times, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=PATHS)
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    if options.child:
        seconds = asyncio.run(PATHS[options.child](options.url, options.calls))
        print(json.dumps(1000 * seconds / options.calls))
        return
    server = subprocess.Popen([sys.executable, str(HERE / "stub_server.py")], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        rounds = [{path: measure(path, url, options.calls) for path in PATHS} for _ in range(options.repeats)]
    finally:
        server.kill()
    print(f"{options.calls} calls, {IN_FLIGHT} in flight, 0 ms answers, medians of {options.repeats}\n")
    print(f"{'path':20} {'CPU ms/call':>12} {'x bare':>8}")
    medians = {path: statistics.median(one[path] for one in rounds) for path in PATHS}
    for path, value in medians.items():
        print(f"{NAMES[path]:20} {value:12.3f} {value / medians['bare']:8.2f}")
    print(f"\nmatrix_dspy is {medians['dspy'] / medians['ours']:.1f} x cheaper than dspy.Predict.acall")


if __name__ == "__main__":
    main()
