"""Whether a model can do what a run asks of it: reached, named, schemas, samples, log-probabilities, seeds, speed.

Every answer comes from asking; nothing is taken from a list of known servers. A few dozen short calls are sent.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from matrix_dspy.engine.base import Completion, Engine, Request, Sampling
from matrix_dspy.errors import EngineError

WIDTHS = (1, 4, 16, 64, 256)
"""Calls in flight that speed is measured at, until more brings little."""
LEAST_GAIN = 1.15
"""Factor in speed that a wider stream must bring to be worth it."""
CALLS_A_WIDTH = 2
"""Calls sent for each place in flight."""
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"], "type": "string"}, "number": {"type": "integer"}},
    "required": ["colour", "number"],
    "additionalProperties": False,
}
_PASSAGE = (
    "The ferry leaves the north pier at seven and comes back at noon, unless the wind is above forty knots. " * 24
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing tried."""

    what: str
    is_good: bool
    words: str


async def examine(engine: Engine) -> AsyncIterator[Finding]:
    """Try an open engine, one thing after the other.

    Raises:
        EngineError: the engine went down meanwhile.
    """
    yield Finding("reached", True, f"model {engine.model!r}")
    first = await _ask(engine, "Say hello in one word.", max_tokens=16)
    yield _describe_first(engine, first)
    if not first.is_ok:
        return
    for look in (_try_schema, _try_samples, _try_logprobs, _try_seeds, _try_prefix_cache):
        yield await look(engine)
    async for finding in _measure_speed(engine):
        yield finding


def _describe_first(engine: Engine, completion: Completion) -> Finding:
    if not completion.is_ok:
        return Finding("answers", False, completion.error or "no text")
    known = f" as {completion.model!r}" if completion.model and completion.model != engine.model else ""
    return Finding("answers", True, f"in {completion.seconds:.2f} s{known}: {completion.texts[0].strip()[:40]!r}")


async def _try_schema(engine: Engine) -> Finding:
    sampling = Sampling(temperature=1.0, max_tokens=64, response_schema=_SCHEMA)
    completion = await _complete(engine, "Write three sentences about the sea.", sampling)
    if completion.error is not None:
        return Finding("JSON schema", False, f"refused; programs ask in words ({completion.error[:120]})")
    if _fits(completion.texts[0]):
        how = "sent by default" if engine.prefers_schema else "send them with --set lm.structured=on"
        return Finding("JSON schema", True, f"the model is held to it; {how}")
    return Finding("JSON schema", False, "ignored; leave lm.structured at auto or off")


def _fits(text: str) -> bool:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict) and found.get("colour") in ("red", "green") and type(found.get("number")) is int


async def _try_samples(engine: Engine) -> Finding:
    completion = await _ask(engine, "Name a town.", n=3, temperature=1.0)
    if len(completion.texts) == 3:
        return Finding("n samples", True, "3 of 3 in one request")
    words = completion.error or f"{len(completion.texts)} of 3 in one request"
    return Finding("n samples", False, f"{words[:120]}; each is asked for by itself")


async def _try_logprobs(engine: Engine) -> Finding:
    completion = await _ask(engine, "Say yes or no.", logprobs=5)
    tokens = completion.logprobs[0] if completion.logprobs else None
    if tokens:
        return Finding("log-probabilities", True, "given; scores can be expectations")
    return Finding("log-probabilities", False, "not given; scores are the numbers written")


async def _try_seeds(engine: Engine) -> Finding:
    sampling = Sampling(temperature=1.0, max_tokens=24, seed=11)
    texts = {(await _complete(engine, "Tell me something about bridges.", sampling)).texts for _ in range(3)}
    if len(texts) == 1:
        return Finding("seeds", True, "the same seed gave the same answer three times")
    return Finding("seeds", False, "the same seed gave different answers; the journal alone makes runs repeatable")


async def _try_prefix_cache(engine: Engine) -> Finding:
    before = await engine.read_prefix_cache()
    first = await _ask(engine, f"{_PASSAGE}\nWhen does it leave?")
    second = await _ask(engine, f"{_PASSAGE}\nWhen does it come back?")
    if second.cached_tokens:
        return Finding("prefix cache", True, f"{second.cached_tokens:,} of {second.prompt_tokens:,} tokens found again")
    after = await engine.read_prefix_cache()
    if before is not None and after is not None and after[0] > before[0]:
        return Finding("prefix cache", True, f"{after[0] - before[0]:,} of {after[1] - before[1]:,} tokens found again")
    return Finding("prefix cache", False, f"nothing reported ({first.seconds:.2f} s, then {second.seconds:.2f} s)")


async def _measure_speed(engine: Engine) -> AsyncIterator[Finding]:
    """Widen the stream until it brings little, and advise the width."""
    best, advised = 0.0, 1
    for width in (each for each in WIDTHS if each <= engine.concurrency):
        calls, tokens, seconds, longest = await _run_width(engine, width)
        speed = calls / seconds
        words = f"{speed:,.1f} calls/s, {tokens / seconds:,.0f} tokens/s, slowest {longest:.2f} s"
        yield Finding(f"{width} in flight", True, words)
        if speed < best * LEAST_GAIN:
            break
        best, advised = speed, width
    is_open_end = advised == max(each for each in WIDTHS if each <= engine.concurrency)
    more = "; more may be better still, try a larger --concurrency here" if is_open_end else ""
    yield Finding("advice", True, f"--concurrency {advised}{more}")


async def _run_width(engine: Engine, width: int) -> tuple[int, int, float, float]:
    """Return calls, tokens written, seconds, and the slowest call's seconds."""
    n_calls = CALLS_A_WIDTH * width
    started = time.perf_counter()
    gate = asyncio.Semaphore(width)

    async def ask(number: int) -> Completion:
        async with gate:
            return await _ask(engine, f"Write two sentences about the number {number}.", max_tokens=64)

    completions = await asyncio.gather(*(ask(number) for number in range(n_calls)))
    tokens = sum(completion.completion_tokens for completion in completions)
    return n_calls, tokens, time.perf_counter() - started, max(completion.seconds for completion in completions)


async def _ask(engine: Engine, words: str, **sampling: Any) -> Completion:
    return await _complete(engine, words, replace(Sampling(max_tokens=24), **sampling))


async def _complete(engine: Engine, words: str, sampling: Sampling) -> Completion:
    completion = await engine.complete(Request([{"role": "user", "content": words}], sampling))
    if completion.down is not None:
        raise EngineError(completion.down)
    return completion
