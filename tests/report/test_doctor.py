"""What a model server can do, found out by asking it."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from matrix_dspy.engine.base import Completion, Engine, Request, TransientError
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.rehearsal.engine import RehearsalEngine
from matrix_dspy.engine.rehearsal.server import start_rehearsal_server
from matrix_dspy.errors import EngineError
from matrix_dspy.report import doctor
from matrix_dspy.report.doctor import Finding, examine
from tests.loopback import serve

Answer = Callable[[dict[str, Any]], web.Response]
ORDER = ["reached", "answers", "JSON schema", "n samples", "log-probabilities", "seeds", "prefix cache"]


def reply(
    *texts: str, n_cached: int = 0, logprobs: Any = None, reason: str = "stop", model: str = "org/big"
) -> web.Response:
    choices = [
        {"index": i, "message": {"content": text}, "finish_reason": reason, "logprobs": logprobs}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 500, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": n_cached}}
    return web.json_response({"model": model, "choices": choices, "usage": usage})


def answer_all(body: dict[str, Any]) -> web.Response:
    """Do whatever is asked for."""
    text = '{"colour": "red", "number": 3}' if "response_format" in body else f"seeded {body.get('seed')}"
    places = [{"token": "yes", "logprob": -0.1, "top_logprobs": []}]
    n_cached = 480 if "noon" in str(body["messages"]) else 0
    return reply(
        *[text] * body.get("n", 1), n_cached=n_cached, logprobs={"content": places} if "logprobs" in body else None
    )


class Dull:
    """Answers with one text, another each time, and refuses what it is told to."""

    def __init__(self, *refuses: str) -> None:
        self.refuses = refuses
        self.numbers = itertools.count()

    def __call__(self, body: dict[str, Any]) -> web.Response:
        for name in self.refuses:
            if name in body:
                return web.json_response({"error": {"message": f"unknown field {name}"}}, status=400)
        return reply(f"text {next(self.numbers)}", model="org/other")


def make_handler(
    answer: Answer, owner: str = "", metrics: list[tuple[int, int]] | None = None
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "org/big", "owned_by": owner}]})
        if request.path == "/metrics":
            if not metrics:
                return web.Response(status=404)
            hits, queries = metrics.pop(0)
            page = f"vllm:prefix_cache_hits_total {hits}\nvllm:prefix_cache_queries_total {queries}\n"
            return web.Response(text=page)
        return answer(await request.json())

    return handle


async def collect(engine: Engine) -> list[Finding]:
    return [finding async for finding in examine(engine)]


def examine_server(answer: Answer, concurrency: int = 4, **options: Any) -> dict[str, Finding]:
    async def work() -> list[Finding]:
        async with (
            serve(make_handler(answer, **options)) as url,
            EndpointEngine(url, concurrency=concurrency, patience_s=0.3) as engine,
        ):
            return await collect(engine)

    return {finding.what: finding for finding in asyncio.run(work())}


def test_the_rehearsal_is_found_to_do_what_it_does() -> None:
    async def work() -> list[Finding]:
        async with RehearsalEngine.from_spec("rehearsal?latency=0.001", concurrency=4) as engine:
            return await collect(engine)

    findings = asyncio.run(work())

    assert [finding.what for finding in findings[:7]] == ORDER
    good = {finding.what for finding in findings if finding.is_good}
    assert {"reached", "answers", "JSON schema", "n samples", "seeds", "advice"} <= good
    assert {"log-probabilities", "prefix cache"} & good == set()
    assert [finding.what for finding in findings[7:]] == ["1 in flight", "4 in flight", "advice"]


def test_a_server_with_every_ability_is_found_to_have_them() -> None:
    found = examine_server(answer_all, owner="vllm")

    assert list(found)[:7] == ORDER
    assert all(finding.is_good for finding in found.values())
    assert found["reached"].words == "model 'org/big'"
    assert found["JSON schema"].words == "the model is held to it; sent by default"
    assert found["n samples"].words == "3 of 3 in one request"
    assert found["prefix cache"].words == "480 of 500 tokens found again"
    assert "as " not in found["answers"].words


def test_a_schema_held_by_a_server_not_known_for_it_must_be_asked_for() -> None:
    found = examine_server(answer_all, owner="somebody")

    assert found["JSON schema"].words == "the model is held to it; send them with --set lm.structured=on"


def test_a_server_with_no_ability_is_found_to_have_none() -> None:
    found = examine_server(Dull("response_format", "n", "logprobs"))

    bad = {what: finding.words for what, finding in found.items() if not finding.is_good}
    assert list(bad) == ["JSON schema", "n samples", "log-probabilities", "seeds", "prefix cache"]
    assert bad["JSON schema"].startswith("refused; programs ask in words (the server answers 400: unknown field")
    assert bad["n samples"].endswith("unknown field n; each is asked for by itself")
    assert bad["log-probabilities"] == "not given; scores are the numbers written"
    assert bad["seeds"].startswith("the same seed gave different answers")
    assert bad["prefix cache"].startswith("nothing reported (")
    assert "as 'org/other'" in found["answers"].words


def test_abilities_that_are_passed_over_in_silence_are_noticed() -> None:
    found = examine_server(Dull())

    assert found["JSON schema"].words == "ignored; leave lm.structured at auto or off"
    assert found["n samples"].words == "1 of 3 in one request; each is asked for by itself"
    assert not found["log-probabilities"].is_good


def test_a_prefix_cache_is_also_seen_in_the_servers_metrics() -> None:
    found = examine_server(Dull(), metrics=[(100, 1000), (580, 2000)])

    assert found["prefix cache"] == Finding("prefix cache", True, "480 of 1,000 tokens found again")


@pytest.mark.parametrize(
    "page", ['{"colour": "blue", "number": 3}', '{"colour": "red", "number": "3"}', '["red"]', "{", "red"]
)
def test_json_that_does_not_fit_is_no_schema_held_to(page: str) -> None:
    found = examine_server(lambda body: reply(page) if "response_format" in body else answer_all(body))

    assert not found["JSON schema"].is_good


def test_a_model_that_does_not_answer_is_not_tried_further() -> None:
    found = examine_server(lambda body: web.json_response({"error": {"message": "no such chat"}}, status=400))

    assert list(found) == ["reached", "answers"]
    assert found["answers"] == Finding("answers", False, "the server answers 400: no such chat")


def test_a_server_that_goes_down_meanwhile_is_one_clear_error() -> None:
    def fail(body: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "overheated"}, status=500)

    with pytest.raises(EngineError, match="answers 500: overheated"):
        examine_server(fail)


class Crowded(Engine):
    """Answers at a fixed pace, `capacity` at a time."""

    def __init__(self, capacity: int, pace_s: float, **limits: Any) -> None:
        super().__init__(**limits)
        self.model = "crowded"
        self.pace_s = pace_s
        self.capacity = capacity
        self.room: asyncio.Semaphore | None = None

    async def open(self) -> None:
        self.room = asyncio.Semaphore(self.capacity)

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        assert self.room is not None
        async with self.room:
            await asyncio.sleep(self.pace_s)
        return Completion(("hello",), ("stop",), 10, 5, self.pace_s)


def test_the_width_that_still_brings_speed_is_advised() -> None:
    async def work(capacity: int, pace_s: float) -> list[Finding]:
        async with Crowded(capacity, pace_s, concurrency=64) as engine:
            return await collect(engine)

    narrow, wide = asyncio.run(work(4, 0.1)), asyncio.run(work(1000, 0.04))

    assert [finding.what for finding in narrow[7:]] == ["1 in flight", "4 in flight", "16 in flight", "advice"]
    assert narrow[-1].words == "--concurrency 4"
    assert wide[-1].words == "--concurrency 64; more may be better still, try a larger --concurrency here"


def test_no_more_is_in_flight_than_was_allowed() -> None:
    async def work() -> tuple[list[Finding], int]:
        async with Crowded(1000, 0.001, concurrency=3) as engine:
            return await collect(engine), engine.limit.peak

    findings, peak = asyncio.run(work())

    assert [finding.what for finding in findings[7:]] == ["1 in flight", "advice"]
    assert peak <= 3
    assert doctor.WIDTHS[0] == 1


def test_a_passing_fault_is_no_finding() -> None:
    class Stumbling(RehearsalEngine):
        n_calls = 0

        async def attempt(self, request: Request, n_asked: int) -> Completion:
            self.n_calls += 1
            if self.n_calls % 7 == 3 and n_asked == 0:
                raise TransientError("500", retry_after=0.001)
            return await super().attempt(request, n_asked)

    async def work() -> list[Finding]:
        async with Stumbling(concurrency=4) as engine:
            return await collect(engine)

    assert {f.what for f in asyncio.run(work()) if not f.is_good} == {"log-probabilities", "prefix cache"}


def test_a_rehearsal_server_is_found_to_do_what_the_rehearsal_does() -> None:
    async def work() -> list[Finding]:
        runner, port = await start_rehearsal_server("rehearsal")
        try:
            async with EndpointEngine(f"http://127.0.0.1:{port}/v1", concurrency=4) as engine:
                return await collect(engine)
        finally:
            await runner.cleanup()

    found = {finding.what: finding for finding in asyncio.run(work())}

    assert {what for what, finding in found.items() if not finding.is_good} == {"log-probabilities", "prefix cache"}
    assert found["JSON schema"].words == "the model is held to it; send them with --set lm.structured=on"
