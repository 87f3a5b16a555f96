"""The rehearsal over HTTP: OpenAI's chat protocol, its error bodies, its counters and its faults."""

import asyncio
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from matrix_dspy.engine.base import Request, Sampling
from matrix_dspy.engine.endpoint import EndpointEngine
from matrix_dspy.engine.rehearsal.engine import Dials, RehearsalEngine, write_completions
from matrix_dspy.engine.rehearsal.server import start_rehearsal_server
from matrix_dspy.errors import ConfigError, EngineError

Session = aiohttp.ClientSession


def chat(text: str = "What is grease for?", **more: Any) -> dict[str, Any]:
    return {"model": "rehearsal", "messages": [{"role": "user", "content": text}]} | more


def with_server(work: Callable[[Session], Awaitable[Any]], spec: str = "rehearsal") -> Any:
    """Run `work` with a session whose base address is a fresh server."""

    async def run() -> Any:
        runner, port = await start_rehearsal_server(spec, port=0)
        connector = aiohttp.TCPConnector(limit=0)
        try:
            async with Session(f"http://127.0.0.1:{port}", connector=connector) as session:
                return await work(session)
        finally:
            await runner.cleanup()

    return asyncio.run(run())


async def post(session: Session, body: Any) -> tuple[int, Any]:
    async with session.post("/v1/chat/completions", json=body) as reply:
        return reply.status, await reply.json()


async def get(session: Session, path: str) -> Any:
    async with session.get(path) as reply:
        return await reply.json()


def test_an_answer_has_the_shape_of_openai_and_the_words_of_the_engine() -> None:
    async def work(session: Session) -> Any:
        return await post(session, chat(n=2, temperature=0.3, seed=4, top_p=0.9, user="somebody", logit_bias={}))

    status, answer = with_server(work)
    texts, reasons = write_completions(Dials(), chat()["messages"], Sampling(n=2))

    assert status == 200
    assert [choice["message"]["content"] for choice in answer["choices"]] == list(texts)
    assert [choice["finish_reason"] for choice in answer["choices"]] == list(reasons)
    assert (answer["object"], answer["model"]) == ("chat.completion", "rehearsal")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


@pytest.mark.parametrize("limit", [{"max_tokens": 5}, {"max_completion_tokens": 5}])
def test_limits_and_stop_strings_hold(limit: dict[str, Any]) -> None:
    async def work(session: Session) -> Any:
        short = await post(session, chat(**limit))
        return short, await post(session, chat(stop=" ")), await post(session, chat(stop=["\x00", " "]))

    short, stopped, listed = (answer["choices"][0] for _, answer in with_server(work))

    assert (len(short["message"]["content"]), short["finish_reason"]) == (20, "length")
    assert stopped["message"]["content"] == listed["message"]["content"]
    assert " " not in stopped["message"]["content"]


def test_a_json_schema_is_followed() -> None:
    schema = {"type": "object", "properties": {"count": {"type": "integer", "minimum": 3}}, "required": ["count"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}

    async def work(session: Session) -> Any:
        return await post(session, chat(response_format=form))

    _, answer = with_server(work)

    assert '"count"' in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": "hello"}',
        b'{"messages": [5]}',
        b'{"messages": [{"role": "user", "content": "x"}], "n": -1}',
        b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}',
        b'{"messages": [{"role": "user", "content": "x"}], "stop": 7}',
    ],
)
def test_a_body_that_is_no_chat_request_gets_a_400_that_says_why(body: bytes) -> None:
    async def work(session: Session) -> Any:
        async with session.post("/v1/chat/completions", data=body) as reply:
            return reply.status, await reply.json()

    status, answer = with_server(work)

    assert status == 400
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


def test_another_model_is_not_found_and_the_one_model_is_listed() -> None:
    async def work(session: Session) -> Any:
        return await post(session, chat() | {"model": "gpt-x"}), await get(session, "/v1/models")

    (status, answer), models = with_server(work)

    assert status == 404
    assert "gpt-x" in answer["error"]["message"]
    assert [model["id"] for model in models["data"]] == ["rehearsal"]


def test_health_and_stats_tell_what_happened() -> None:
    async def work(session: Session) -> Any:
        for text in ("one", "one", "two"):
            await post(session, chat(text))
        await post(session, {})
        return await get(session, "/health"), await get(session, "/stats")

    health, stats = with_server(work)

    assert health["status"] == "ok"
    assert (stats["requests"], stats["completed"], stats["repeated"], stats["in_flight"]) == (4, 3, 1, 0)
    assert stats["prompt_tokens"] > 0
    assert stats["completion_tokens"] > 0


def test_an_overloaded_server_says_when_to_come_back_and_answers_later() -> None:
    async def work(session: Session) -> Any:
        statuses, waits = [], []
        for _ in range(40):
            async with session.post("/v1/chat/completions", json=chat("the same")) as reply:
                statuses.append(reply.status)
                waits.append(reply.headers.get("Retry-After"))
        return statuses, waits, await get(session, "/stats")

    statuses, waits, stats = with_server(work, "rehearsal?rate=0.5&retry_after=0.25")

    assert set(statuses) == {200, 429}
    assert {wait for wait, status in zip(waits, statuses, strict=True) if status == 429} == {"0.25"}
    assert stats["errors_429"] == statuses.count(429)


def test_errors_are_500s_and_broken_connections() -> None:
    async def work(session: Session) -> Any:
        seen = []
        for i in range(60):
            try:
                status, _ = await post(session, chat(f"number {i}"))
                seen.append(status)
            except aiohttp.ClientError:
                seen.append(0)
        return seen, await get(session, "/stats")

    seen, stats = with_server(work, "rehearsal?error=0.5")

    assert set(seen) == {0, 200, 500}
    assert stats["completed"] == seen.count(200)


def test_256_requests_wait_side_by_side() -> None:
    async def work(session: Session) -> Any:
        started = time.perf_counter()
        replies = await asyncio.gather(*(post(session, chat(f"number {i}")) for i in range(256)))
        return {status for status, _ in replies}, time.perf_counter() - started, await get(session, "/stats")

    statuses, seconds, stats = with_server(work, "rehearsal?latency=1")

    assert statuses == {200}
    assert stats["peak_in_flight"] >= 200
    assert seconds < 20


def test_answers_do_not_depend_on_the_transport() -> None:
    requests = [Request([{"role": "user", "content": f"How do I plan {i} shifts?"}]) for i in range(30)]

    async def over_http() -> list[tuple[str, ...]]:
        runner, port = await start_rehearsal_server("rehearsal?error=0.2&rate=0.2&malformed=0.1", port=0)
        async with EndpointEngine(f"http://127.0.0.1:{port}/v1", "", concurrency=8) as engine:
            completions = await asyncio.gather(*map(engine.complete, requests))
        await runner.cleanup()
        return [completion.texts for completion in completions]

    async def in_process() -> list[tuple[str, ...]]:
        engine = RehearsalEngine.from_spec("rehearsal?malformed=0.1", concurrency=1)
        return [(await engine.complete(request)).texts for request in requests]

    assert asyncio.run(over_http()) == asyncio.run(in_process())


def test_a_bad_dial_or_a_taken_port_is_said_at_once() -> None:
    async def take_twice() -> None:
        runner, port = await start_rehearsal_server("rehearsal", port=0)
        try:
            await start_rehearsal_server("rehearsal", port=port)
        finally:
            await runner.cleanup()

    with pytest.raises(EngineError, match="listen on 127"):
        asyncio.run(take_twice())
    with pytest.raises(ConfigError, match="latncy"):
        with_server(lambda session: get(session, "/health"), "rehearsal?latncy=1")


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serving_prints_its_address_and_ends_cleanly(end: signal.Signals) -> None:
    code = "from matrix_dspy.engine.rehearsal.server import serve_rehearsal; serve_rehearsal('rehearsal', port=0)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    line = process.stdout.readline()
    address = next(word for word in line.split() if word.startswith("http"))

    with urllib.request.urlopen(f"{address}/models", timeout=10) as reply:
        assert reply.status == 200
    process.send_signal(end)
    _, errors = process.communicate(timeout=10)

    assert (process.returncode, errors) == (0, "")
