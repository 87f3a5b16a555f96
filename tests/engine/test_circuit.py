"""Losing the server for a while: a pause for everybody, one line, and on from the same place."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.engine.base import Completion, Engine, Request, Sampling, TransientError
from matrix_dspy.engine.circuit import LOST_IN_A_ROW, Circuit
from matrix_dspy.engine.endpoint import EndpointEngine
from tests.conftest import Server
from tests.engine.test_endpoint import Server as Answering
from tests.engine.test_endpoint import say
from tests.loopback import serve as serve_here

GOOD = Completion(("yes",), ("stop",), 10, 5)


def make_request(number: int = 0) -> Request:
    return Request([{"role": "user", "content": f"question {number}"}], Sampling(seed=number))


class Vanishing(Engine):
    """Loses every connection while `is_gone`; notes attempts, and probes apart."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**{"concurrency": 4, "patience_s": 20.0} | limits)
        self.is_gone = False
        self.n_attempts = 0
        self.n_probes = 0
        self.most_probes = 0
        self._probing = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.n_attempts += 1
        await asyncio.sleep(0.001)
        if self.is_gone:
            raise TransientError("http://there does not answer (connection refused)", retry_after=0.0, is_lost=True)
        return GOOD

    async def probe(self) -> bool:
        self.n_probes += 1
        self._probing += 1
        self.most_probes = max(self.most_probes, self._probing)
        await asyncio.sleep(0.001)
        self._probing -= 1
        return not self.is_gone


async def wait_until(is_true: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_true():
            await asyncio.sleep(0.005)


async def lose(circuit: Circuit, n: int) -> None:
    for _ in range(n):
        circuit.lost("the server does not answer")
    await asyncio.sleep(0)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_three_connections_lost_in_a_row_hold_everything_back_until_the_server_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def work() -> Vanishing:
        async with Vanishing() as engine:
            engine.is_gone = True
            calls = [asyncio.create_task(engine.complete(make_request(n))) for n in range(12)]
            await wait_until(lambda: engine.circuit.n_pauses == 1)
            await asyncio.sleep(0.02)  # those that were under way come back
            n_before = engine.n_attempts
            await asyncio.sleep(0.3)
            assert engine.n_attempts == n_before
            assert engine.circuit.is_open
            engine.is_gone = False
            assert await asyncio.gather(*calls) == [GOOD] * 12
            assert not engine.circuit.is_open
        return engine

    engine = asyncio.run(work())

    assert engine.circuit.n_pauses == 1
    assert engine.most_probes == 1
    assert engine.n_attempts <= 2 * 12
    paused, back = warnings_of(caplog)
    assert paused == "http://there does not answer (connection refused); paused until it is back, nothing is lost"
    assert back.startswith("the server is back after ")


def test_while_paused_nothing_is_sent_but_probes() -> None:
    async def work() -> int:
        async with Vanishing(concurrency=1) as engine:
            engine.is_gone = True
            calls = [asyncio.create_task(engine.complete(make_request(n))) for n in range(20)]
            await wait_until(lambda: engine.circuit.n_pauses == 1)
            await asyncio.sleep(0.2)
            n_attempts = engine.n_attempts
            engine.is_gone = False
            await asyncio.gather(*calls)
            return n_attempts

    assert asyncio.run(work()) <= LOST_IN_A_ROW + 1


def test_connections_lost_now_and_then_hold_nothing_back(caplog: pytest.LogCaptureFixture) -> None:
    n_asked = 0

    async def drop_some(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        nonlocal n_asked
        n_asked += 1
        if n_asked % 5 == 0 and request.transport is not None:
            request.transport.abort()
        return say()

    async def work() -> EndpointEngine:
        async with serve_here(Answering(drop_some)) as url, EndpointEngine(url, concurrency=4) as engine:
            completions = await asyncio.gather(*(engine.complete(make_request(n)) for n in range(60)))
            assert all(completion.is_ok for completion in completions)
        return engine

    engine = asyncio.run(work())

    assert engine.usage.errors > 8
    assert engine.circuit.n_pauses == 0
    assert warnings_of(caplog) == []


def test_an_answer_in_between_begins_the_count_anew() -> None:
    async def work() -> None:
        async def never() -> bool:
            raise AssertionError("nobody is asked")

        circuit = Circuit(never, 1.0)
        for _ in range(5):
            await lose(circuit, LOST_IN_A_ROW - 1)
            circuit.answered()
        assert not circuit.is_open

    asyncio.run(work())


def test_a_server_that_was_only_slow_to_accept_costs_no_word(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async def here() -> bool:
            return True

        circuit = Circuit(here, 1.0)
        for _ in range(LOST_IN_A_ROW):
            circuit.lost("the server does not answer")
        assert circuit.is_open
        assert await circuit.wait() is None
        assert (circuit.is_open, circuit.n_pauses) == (False, 0)

    asyncio.run(work())

    assert warnings_of(caplog) == []


def test_a_second_loss_is_a_second_pause() -> None:
    async def work() -> None:
        answers = iter([False, True, False, True])

        async def probe() -> bool:
            return next(answers)

        circuit = Circuit(probe, 5.0)
        for n_pauses in (1, 2):
            await lose(circuit, LOST_IN_A_ROW)
            assert await circuit.wait() is None
            assert circuit.n_pauses == n_pauses

    asyncio.run(work())


def test_when_patience_ends_every_call_learns_that_the_engine_is_down() -> None:
    async def work() -> list[Completion]:
        async with Vanishing(patience_s=0.4) as engine:
            engine.is_gone = True
            started = time.perf_counter()
            completions = await asyncio.gather(*(engine.complete(make_request(n)) for n in range(12)))
            assert 0.3 < time.perf_counter() - started < 5
            return [*completions, await engine.complete(make_request(99))]

    completions = asyncio.run(work())

    assert all(completion.error is None for completion in completions)
    assert {completion.down for completion in completions} == {
        "http://there does not answer (connection refused) for 0.4 s"
    }


def test_an_engine_that_gave_up_answers_again_when_it_is_opened_anew() -> None:
    async def work() -> Completion:
        engine = Vanishing(patience_s=0.1)
        engine.is_gone = True
        async with engine:
            completions = await asyncio.gather(*(engine.complete(make_request(n)) for n in range(4)))
            assert all(completion.down is not None for completion in completions)
        engine.is_gone = False
        async with engine:
            return await engine.complete(make_request())

    assert asyncio.run(work()) == GOOD


def test_closing_an_engine_ends_its_probing() -> None:
    async def work() -> int:
        async with Vanishing() as engine:
            engine.is_gone = True
            calls = [asyncio.create_task(engine.complete(make_request(n))) for n in range(4)]
            await wait_until(lambda: engine.circuit.n_pauses == 1)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        n_probes = engine.n_probes
        await asyncio.sleep(0.5)
        return engine.n_probes - n_probes

    assert asyncio.run(work()) == 0


def test_a_server_killed_and_started_again_answers_all_and_nothing_is_journaled_twice(
    serve: Callable[..., Server], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = "rehearsal?latency=0.15"
    first = serve(spec)

    async def work() -> EndpointEngine:
        journal = Journal(tmp_path)
        async with EndpointEngine(first.url, concurrency=16, patience_s=60.0) as engine:
            runner = Runner(engine, journal)
            calls = [
                asyncio.create_task(runner.complete(make_request(n), CallKey("stage", f"row-{n:02d}", "call")))
                for n in range(40)
            ]
            await wait_until(lambda: engine.usage.answers > 0)
            first.process.kill()
            first.process.wait()
            await wait_until(lambda: engine.circuit.n_pauses == 1)
            assert not all(call.done() for call in calls)
            await asyncio.to_thread(serve, spec, first.port)
            completions = await asyncio.wait_for(asyncio.gather(*calls), 60)
            assert all(completion.is_ok for completion in completions)
        journal.close()
        return engine

    engine = asyncio.run(work())

    keys = [orjson.loads(line)["key"] for line in (tmp_path / "main.jsonl").read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == 40
    assert engine.circuit.n_pauses == 1
    assert len(warnings_of(caplog)) == 2
    assert engine.limit.in_flight == 0
