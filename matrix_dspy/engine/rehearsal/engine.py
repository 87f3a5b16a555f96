"""A seeded, rule-based stand-in for a language model: the whole pipeline runs with no key, GPU or network.

It reads nothing but the messages of a request and whether its chat template is told to think. The content of an
answer, its faults included, is a function of (dial seed, messages, sample index), to which thinking only adds;
transport faults and latency also follow how often the request was asked, so that a retry can succeed. What it writes
is typed, on topic and varied, and no more than that: it knows nothing.
"""

import asyncio
import hashlib
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self
from urllib.parse import parse_qsl

import orjson

from matrix_dspy.engine.base import Completion, Engine, Request, Sampling, TransientError
from matrix_dspy.engine.rehearsal.author import Skill, break_answer, cut_answer, refuse, write_answer
from matrix_dspy.engine.rehearsal.prompt import read_prompt
from matrix_dspy.engine.rehearsal.thinking import CLOSE, OPEN
from matrix_dspy.errors import ConfigError, did_you_mean
from matrix_dspy.text import estimate_tokens

MODEL = "rehearsal"
CHARACTERS_A_TOKEN = 4
Thinking = Literal["text", "field"]
_JITTER = 0.3
"""Share by which a call's latency varies to either side."""
_TAIL_FACTOR = 10.0
_CHOICES = {"skill": ("low", "normal"), "thinking": ("field", "text")}
_SHARES = ("tail", "error", "rate", "malformed", "truncated", "refusal")
_YIELD_EVERY = 16
"""Calls between two turns of the event loop when there is no latency."""


@dataclass(frozen=True, slots=True)
class Dials:
    """How a rehearsal behaves; every share lies between 0 and 1."""

    latency: float = 0.0
    """Seconds a call."""
    tail: float = 0.0
    """Share of calls that take ten times the latency."""
    error: float = 0.0
    """Share of attempts that fail with a transport error or a 500."""
    rate: float = 0.0
    """Share of attempts answered by 429."""
    retry_after: float = 0.05
    """Seconds a 429 asks to wait."""
    malformed: float = 0.0
    """Share of contents that are broken."""
    truncated: float = 0.0
    """Share of contents cut in the middle."""
    refusal: float = 0.0
    """Share of contents that refuse."""
    skill: Skill = "normal"
    seed: int = 0
    thinking: Thinking = "text"
    """Where a thinking part goes: before the answer, or into a field of its own as with a reasoning parser."""

    @classmethod
    def from_spec(cls, spec: str) -> Self:
        """Read `rehearsal?latency=0.2&error=0.02`.

        Raises:
            ConfigError: a dial is unknown or its value will not do.
        """
        name, _, query = spec.strip().partition("?")
        if name != MODEL:
            raise ConfigError(f"no rehearsal in {spec!r}; write 'rehearsal' or 'rehearsal?latency=0.2'")
        known = [dial.name for dial in fields(cls)]
        read: dict[str, Any] = {}
        for dial, value in parse_qsl(query, keep_blank_values=True):
            if dial not in known:
                raise ConfigError(f"unknown rehearsal dial {dial!r}; {did_you_mean(dial, known)}")
            read[dial] = _read_dial(dial, value)
        dials = cls(**read)
        if dials.malformed + dials.truncated + dials.refusal > 1 or dials.error + dials.rate > 1:
            raise ConfigError(f"the shares of faults in {spec!r} add up to more than 1; lower one of them")
        return dials


def _read_dial(dial: str, value: str) -> float | int | str:
    if dial in _CHOICES:
        if value not in _CHOICES[dial]:
            raise ConfigError(f"rehearsal dial {dial}={value!r} will not do; choose {' or '.join(_CHOICES[dial])}")
        return value
    try:
        number = int(value) if dial == "seed" else float(value)
    except ValueError:
        kind = "a whole number" if dial == "seed" else "a number"
        raise ConfigError(f"rehearsal dial {dial}={value!r} will not do; write {kind}") from None
    if dial in _SHARES and not 0 <= number <= 1:
        raise ConfigError(f"rehearsal dial {dial}={value!r} will not do; a share lies between 0 and 1")
    if dial in ("latency", "retry_after") and not 0 <= number < 3600:
        raise ConfigError(f"rehearsal dial {dial}={value!r} will not do; write seconds from 0 to 3600")
    return number


@dataclass(frozen=True, slots=True)
class Fault:
    """What the wire does to one attempt."""

    kind: Literal["none", "error", "rate"]
    seconds: float
    """Latency of the attempt."""
    resets: bool = False
    """Whether an error breaks the connection instead of answering 500."""


class RehearsalEngine(Engine):
    """An engine that makes its answers up, at no cost."""

    supports_response_schema = True
    supports_n = True

    def __init__(self, dials: Dials | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.model = MODEL
        self.dials = dials or Dials()
        self._n_since_yield = 0

    @classmethod
    def from_spec(cls, spec: str, **limits: Any) -> Self:
        """Build the engine `rehearsal?...` names; raises ConfigError for a dial that will not do."""
        return cls(Dials.from_spec(spec), **limits)

    @property
    def prefers_schema(self) -> bool:
        """Never: it keeps to the markers by itself."""
        return False

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        started = time.perf_counter()
        body = dump_messages(request.messages)
        fault = draw_fault(self.dials, body, n_asked)
        await self._wait(fault.seconds)
        if fault.kind == "rate":
            raise TransientError("429: too many requests", retry_after=self.dials.retry_after, is_overload=True)
        if fault.kind == "error":
            raise TransientError("connection reset" if fault.resets else "500: internal error")
        texts, reasons = write_completions(self.dials, request.messages, request.sampling, body)
        n_prompt = count_prompt_tokens(request.messages)
        n_written = sum(map(estimate_tokens, texts))
        thoughts: tuple[str, ...] = ()
        if self.dials.thinking == "field":
            thoughts, texts = part_thinking(texts)
        seconds = time.perf_counter() - started
        return Completion(texts, reasons, n_prompt, n_written, seconds, reasonings=thoughts if any(thoughts) else ())

    async def _wait(self, seconds: float) -> None:
        self._n_since_yield += 1
        if seconds > 0:
            await asyncio.sleep(seconds)
        elif self._n_since_yield >= _YIELD_EVERY:
            self._n_since_yield = 0
            await asyncio.sleep(0)


def dump_messages(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes a request is known by: its messages and nothing else."""
    plain = [dict(message) for message in messages]
    try:
        return orjson.dumps(plain, default=str, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # lone surrogates, which orjson refuses
        return json.dumps(plain, default=str).encode()


def draw_fault(dials: Dials, body: bytes, n_asked: int) -> Fault:
    """Decide what the wire does to the `n_asked`-th attempt (from 0) at a request."""
    if not (dials.latency or dials.error or dials.rate):
        return Fault("none", 0.0)
    rng = _generator(dials.seed, "wire", n_asked, body)
    seconds = dials.latency * rng.uniform(1 - _JITTER, 1 + _JITTER) * (_TAIL_FACTOR if rng.random() < dials.tail else 1)
    draw = rng.random()
    if draw < dials.error:
        return Fault("error", seconds, resets=rng.random() < 0.5)
    return Fault("rate" if draw < dials.error + dials.rate else "none", seconds)


def write_completions(
    dials: Dials, messages: Sequence[Mapping[str, Any]], sampling: Sampling, body: bytes | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return `sampling.n` texts, thinking parts included, and why each ended."""
    body = dump_messages(messages) if body is None else body
    is_thinking = (sampling.chat_template_kwargs or {}).get("enable_thinking") is True
    prompt = read_prompt(messages)
    written: list[tuple[str, str]] = []
    for sample in range(sampling.n):
        rng = _generator(dials.seed, "content", sample, body)
        fate = rng.random()
        if fate < dials.refusal:
            text, reason = refuse(rng), "stop"
        else:
            text, reason = (
                write_answer(prompt, rng, dials.skill, sampling.response_schema, is_thinking=is_thinking),
                "stop",
            )
            if fate < dials.refusal + dials.truncated:
                text, reason = cut_answer(text, rng), "length"
            elif fate < dials.refusal + dials.truncated + dials.malformed:
                text = break_answer(text, prompt, rng)
        written.append(_limit(text, reason, sampling))
    return tuple(text for text, _ in written), tuple(reason for _, reason in written)


def part_thinking(texts: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Part texts into thinking parts and answers as a reasoning parser does; what never closes is all thinking."""
    parted = [_part(text) for text in texts]
    return tuple(thought for thought, _ in parted), tuple(answer for _, answer in parted)


def _part(text: str) -> tuple[str, str]:
    if not text.startswith(OPEN):
        return "", text
    thought, _, answer = text.removeprefix(OPEN).partition(CLOSE)
    return thought.strip(), answer.strip()


def count_prompt_tokens(messages: Sequence[Mapping[str, Any]]) -> int:
    """Estimate the tokens of a request, four a message for its role and marks."""
    return sum(4 + estimate_tokens(str(message.get("content") or "")) for message in messages)


def _limit(text: str, reason: str, sampling: Sampling) -> tuple[str, str]:
    found = [place for stop in sampling.stop if stop and (place := text.find(stop)) >= 0]
    if found:
        text, reason = text[: min(found)], "stop"
    if len(text) > (room := sampling.max_tokens * CHARACTERS_A_TOKEN):
        text, reason = text[:room], "length"
    return text, reason


def _generator(seed: int, purpose: str, index: int, body: bytes) -> random.Random:
    digest = hashlib.blake2b(body, digest_size=16, key=f"{seed}/{purpose}/{index}".encode()[:64])
    return random.Random(int.from_bytes(digest.digest(), "big"))
