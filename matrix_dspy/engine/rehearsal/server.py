"""The rehearsal engine over the OpenAI chat protocol, for testing any client without a model.

`/v1/chat/completions`, `/v1/models`, `/health`, and `/stats` with what the server has been asked. Binds 127.0.0.1
unless told otherwise; nothing is logged and nothing is stored beyond hashes of requests.
"""

import asyncio
import hashlib
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from aiohttp import web

from matrix_dspy.engine.base import Sampling
from matrix_dspy.engine.rehearsal.engine import (
    MODEL,
    Dials,
    Fault,
    count_prompt_tokens,
    draw_fault,
    dump_messages,
    part_thinking,
    write_completions,
)
from matrix_dspy.errors import EngineError, describe_os_error
from matrix_dspy.text import estimate_tokens

LARGEST_BODY_BYTES = 64 * 2**20
MOST_SAMPLES = 128


@dataclass(slots=True)
class Stats:
    """What the server has been asked and has answered."""

    requests: int = 0
    completed: int = 0
    """Answers with status 200."""
    repeated: int = 0
    """Answers with status 200 to a request that had one before."""
    in_flight: int = 0
    peak_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors_429: int = 0
    errors_500: int = 0
    """Failed attempts, connection resets included."""


class BadRequestError(Exception):
    """The body is no chat request."""


class RehearsalServer:
    """The handlers of one server; `write` and `model` may be overridden."""

    model = MODEL

    def __init__(self, spec: str) -> None:
        self.dials = Dials.from_spec(spec)
        self.stats = Stats()
        self._asked: dict[bytes, int] = {}
        self._answered: set[bytes] = set()

    def write(
        self, messages: list[dict[str, Any]], sampling: Sampling, packed: bytes
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the texts of an answer and why each ended."""
        return write_completions(self.dials, messages, sampling, packed)

    def build_app(self) -> web.Application:
        """Return the application with its routes."""
        app = web.Application(client_max_size=LARGEST_BODY_BYTES)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/health", self.check_health)
        app.router.add_get("/stats", self.show_stats)
        return app

    async def list_models(self, _: web.Request) -> web.Response:
        """Name the one model."""
        return _answer({"object": "list", "data": [{"id": self.model, "object": "model", "owned_by": "matrix_dspy"}]})

    async def check_health(self, _: web.Request) -> web.Response:
        """Say that the server is up."""
        return _answer({"status": "ok"})

    async def show_stats(self, _: web.Request) -> web.Response:
        """Give the counters."""
        return _answer(asdict(self.stats))

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat request, with the faults the dials ask for."""
        stats = self.stats
        stats.requests += 1
        stats.in_flight += 1
        stats.peak_in_flight = max(stats.peak_in_flight, stats.in_flight)
        try:
            return await self._complete(request, await request.read())
        except BadRequestError as error:
            return _refuse(400, str(error), "invalid_request_error")
        finally:
            stats.in_flight -= 1

    async def _complete(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        body = _read_body(raw)
        if body.get("model", self.model) != self.model:
            words = f"the model {body['model']!r} does not exist; there is {self.model!r}"
            return _refuse(404, words, "model_not_found")
        messages, sampling = _read_messages(body), _read_sampling(body)
        known = hashlib.blake2b(raw, digest_size=12).digest()
        n_asked = self._asked.get(known, 0)
        self._asked[known] = n_asked + 1
        packed = dump_messages(messages)
        fault = draw_fault(self.dials, packed, n_asked)
        if fault.seconds:
            await asyncio.sleep(fault.seconds)
        if fault.kind != "none":
            return self._fail(request, fault)
        texts, reasons = self.write(messages, sampling, packed)
        n_prompt, n_written = count_prompt_tokens(messages), sum(map(estimate_tokens, texts))
        self._count(known, n_prompt, n_written)
        answers = [_build_message(text, is_parted=self.dials.thinking == "field") for text in texts]
        return _answer(_build_completion(self.model, known, answers, reasons, n_prompt, n_written))

    def _fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.kind == "rate":
            self.stats.errors_429 += 1
            wait = {"Retry-After": f"{self.dials.retry_after:g}"}
            return _refuse(429, "too many requests", "rate_limit_error", wait)
        self.stats.errors_500 += 1
        if fault.resets and request.transport is not None:
            request.transport.abort()
        return _refuse(500, "the rehearsal was asked to fail now and then", "server_error")

    def _count(self, known: bytes, n_prompt: int, n_written: int) -> None:
        self.stats.completed += 1
        self.stats.repeated += known in self._answered
        self._answered.add(known)
        self.stats.prompt_tokens += n_prompt
        self.stats.completion_tokens += n_written


async def start_rehearsal_server(spec: str, host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, int]:
    """Start a server in the running loop and return its runner (to `cleanup`) and its port.

    Raises:
        ConfigError: `spec` is no rehearsal.
        EngineError: the port cannot be had.
    """
    return await start_server(RehearsalServer(spec), host, port)


async def start_server(server: RehearsalServer, host: str = "127.0.0.1", port: int = 0) -> tuple[web.AppRunner, int]:
    """Start a server in the running loop and return its runner and its port; raises EngineError for a taken port."""
    runner = web.AppRunner(server.build_app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=4096)
    try:
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise EngineError(
            f"could not listen on {host}:{port}: {describe_os_error(error)}; give another --port"
        ) from error
    addresses: list[Any] = list(runner.addresses)
    return runner, int(addresses[0][1])


def serve_rehearsal(spec: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until interrupted; prints one line with the address when ready."""
    asyncio.run(serve(RehearsalServer(spec), "rehearsal, a rule-based stand-in", host, port))


async def serve(server: RehearsalServer, words: str, host: str, port: int) -> None:
    """Serve until interrupted; `words` say what it is, beside the address."""
    runner, found = await start_server(server, host, port)
    print(f"{words}: --lm http://{host}:{found}/v1", flush=True)  # noqa: T201
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await runner.cleanup()


def _read_body(raw: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body is no JSON object")
    return body


def _read_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(turn, dict) for turn in messages):
        raise BadRequestError("'messages' must be a list of at least one message")
    return messages


def _read_sampling(body: Mapping[str, Any]) -> Sampling:
    stop = body.get("stop") or []
    n, limit = body.get("n") or 1, body.get("max_completion_tokens") or body.get("max_tokens") or 4096
    if not isinstance(n, int) or not 1 <= n <= MOST_SAMPLES:
        raise BadRequestError(f"'n' must be a number from 1 to {MOST_SAMPLES}")
    if not isinstance(limit, int) or limit < 1:
        raise BadRequestError("'max_tokens' must be a positive number")
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else None
    if stops is None or not all(isinstance(each, str) for each in stops):
        raise BadRequestError("'stop' must be a string or a list of strings")
    temperature, seed = body.get("temperature", 1.0), body.get("seed")
    switches = body.get("chat_template_kwargs")
    return Sampling(
        temperature=temperature if isinstance(temperature, int | float) else 1.0,
        seed=seed if isinstance(seed, int) else None,
        max_tokens=limit,
        stop=stops,
        n=n,
        response_schema=_read_schema(body.get("response_format")),
        chat_template_kwargs=switches if isinstance(switches, dict) else None,
    )


def _read_schema(response_format: Any) -> dict[str, Any] | None:
    if not isinstance(response_format, dict) or response_format.get("type") != "json_schema":
        return None
    nested = response_format.get("json_schema")
    schema = nested.get("schema") if isinstance(nested, dict) else None
    return schema if isinstance(schema, dict) else None


def _build_message(text: str, *, is_parted: bool) -> dict[str, Any]:
    """Return the assistant's message, its thinking part in the fields that servers with a reasoning parser use."""
    if not is_parted:
        return {"role": "assistant", "content": text}
    (thought,), (answer,) = part_thinking((text,))
    told = {"reasoning_content": thought, "reasoning": thought} if thought else {}
    return {"role": "assistant", "content": answer or (None if thought else "")} | told


def _build_completion(
    model: str, known: bytes, answers: list[dict[str, Any]], reasons: tuple[str, ...], n_prompt: int, n_written: int
) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{known.hex()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {"index": i, "message": message, "finish_reason": reason, "logprobs": None}
            for i, (message, reason) in enumerate(zip(answers, reasons, strict=True))
        ],
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_written,
            "total_tokens": n_prompt + n_written,
        },
    }


def _answer(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _refuse(status: int, message: str, kind: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = orjson.dumps({"error": {"message": message, "type": kind, "code": status}})
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)
