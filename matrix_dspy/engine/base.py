"""One request in, one completion out: what every engine promises, with retries and the limit on calls in flight.

An engine implements `attempt`, one try at one request; `Engine.complete` adds the adaptive limit, retries with jitter,
`Retry-After` and a pause while the server is gone. What is wrong with one request comes back as a value on the
completion (`error`); a server that is gone, refuses the key or lacks the model comes back as `down`, and the run stops
instead of its rows failing.
"""

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from matrix_dspy.engine.circuit import Circuit
from matrix_dspy.engine.limit import AdaptiveLimit

Message = dict[str, Any]
"""An OpenAI-style chat message: role and content."""

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
OVERLOAD_STATUS = frozenset({429, 503, 529})
GATEWAY_STATUS = frozenset({502, 504})
"""Statuses of a gateway that reaches no server, or not in time."""
MOST_FAILURES = 6
"""Failures of one request, other than being told to come later, after which it fails if others are answered."""
MOST_GATEWAY_FAILURES = 40
"""The same where a gateway answers: half of its servers may be away for minutes."""
SAID_AFTER = 24
"""Failures in a row that are worth a line."""

log = logging.getLogger("matrix_dspy")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn."""

    temperature: float = 0.7
    top_p: float | None = None
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    seed: int | None = None
    n: int = 1
    """Answers wanted in one request; a server may give fewer."""
    response_schema: dict[str, Any] | None = field(default=None, hash=False)
    """A JSON schema for the answer, for servers that can hold a model to it."""
    logprobs: int = 0
    """Most likely tokens to report at every place of the answer, with log-probabilities; 0 reports none."""
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    chat_template_kwargs: dict[str, Any] | None = field(default=None, hash=False)
    """Switches of the model's own chat template, such as `enable_thinking`."""
    priority: int | None = None
    """Place in the server's queue, lower first, for servers that schedule by priority."""


@dataclass(frozen=True)
class Request:
    """Messages and how to sample."""

    messages: Sequence[Message]
    sampling: Sampling = Sampling()

    @cached_property
    def encoded(self) -> orjson.Fragment:
        """The messages as JSON: encoded once, for the journal's hash and for the wire."""
        return orjson.Fragment(orjson.dumps(self.messages))


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back; exactly one of `texts`, `error` and `down` says something."""

    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    """`stop` or `length`, one for each text."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    logprobs: tuple[Any, ...] | None = None
    """For each text, None or its tokens in order as `{"token", "logprob", "top_logprobs": [{"token", "logprob"}]}`."""
    cached_tokens: int = 0
    """Prompt tokens that the server's prefix cache held already, where it says so."""
    model: str = ""
    """The model as the server calls it in its answer; not journaled."""
    error: str | None = None
    """Why the server will not answer this request, however often it is asked."""
    down: str | None = None
    """Why the engine cannot be used; another row would fare no better."""
    reasonings: tuple[str, ...] = ()
    """What was thought before each text, where the server reports it apart; empty where no text has any."""

    @property
    def is_ok(self) -> bool:
        """Whether there is at least one text."""
        return bool(self.texts)


class TransientError(Exception):
    """One attempt failed in a way that may pass: transport, timeout, 408, 409, 429, 5xx."""

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        is_overload: bool = False,
        is_lost: bool = False,
        is_timeout: bool = False,
        is_gateway: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the server asked us to wait."""
        self.is_overload = is_overload or is_timeout
        """True for 429, 503 and timeouts: the limit should fall when they come in bursts."""
        self.is_lost = is_lost
        """True where nothing answered: the server may be gone."""
        self.may_be_request = is_timeout or not (is_overload or is_lost)
        """True where the request itself may be what the server cannot do."""
        self.most_failures = MOST_GATEWAY_FAILURES if is_gateway else MOST_FAILURES


class RefusedError(Exception):
    """The server will never answer this request (4xx): the row fails, the engine is fine."""


class DownError(Exception):
    """The engine cannot be used at all: wrong key, unknown model, not a model server."""


@dataclass(slots=True)
class Usage:
    """What an engine has done since it was opened."""

    calls: int = 0
    attempts: int = 0
    answers: int = 0
    """Attempts that ended with a text."""
    errors: int = 0
    hedged: int = 0
    """Second copies of slow requests."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine:
    """Base of all engines: an async context manager with one method, `complete`.

    `concurrency` bounds the attempts in flight. `model` is the name of the model without address or dials; it is known
    once the engine was opened. `timeout_s` bounds one attempt. `patience_s` is how long a server that answers nobody is
    waited for before the engine is called down. With `hedge_s`, a request without an answer after that many seconds is
    sent a second time if there is room, and the first answer counts; both copies are counted as attempts. Seeds are
    sent unless `send_seeds` is off.
    """

    supports_response_schema = False
    """Whether the server holds a model to a JSON schema; known once the engine was opened."""
    supports_n = False
    """Whether one request can ask for several answers."""
    keeps_journal = False
    """Whether `complete_entry` writes the journal itself, where the work is done; known after `journal_into`."""

    def __init__(
        self,
        *,
        concurrency: int = 32,
        timeout_s: float = 120.0,
        patience_s: float = 600.0,
        hedge_s: float | None = None,
        send_seeds: bool = True,
    ) -> None:
        self.model = ""
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self.hedge_s = hedge_s
        self.send_seeds = send_seeds
        self.limit = AdaptiveLimit(concurrency)
        self.circuit = Circuit(self.probe, patience_s)
        self.usage = Usage()
        self._last_answer = 0.0
        self._n_failed_in_a_row = 0
        self._jitter = random.Random()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.circuit.stop()
        await self.close()

    async def open(self) -> None:
        """Make connections and learn the model's name; raises EngineError when there is nothing to talk to."""

    async def close(self) -> None:
        """Give back what `open` took."""

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        """Try once. `n_asked` counts earlier attempts at this request, from 0.

        Raises:
            TransientError: another attempt may succeed.
            RefusedError: this request never will.
            DownError: no request will.
        """
        raise NotImplementedError

    async def probe(self) -> bool:
        """Ask a server that seems gone whether it is back; an engine that cannot ask says yes."""
        return True

    async def complete(self, request: Request) -> Completion:
        """Answer one request; failures are values on the completion, never exceptions."""
        started = time.perf_counter()
        usage = self.usage
        usage.calls += 1
        n_asked = n_failed = n_answers = 0
        while True:
            if self.circuit.is_open:
                if (gone := await self.circuit.wait()) is not None:
                    return Completion(down=gone, seconds=time.perf_counter() - started)
                self._last_answer = time.perf_counter()  # the server is back: patience begins anew
            try:
                await self.limit.enter(is_again=n_asked > 0)
                if self.circuit.is_open:  # it opened while this call stood in line
                    self.limit.leave()
                    continue
                try:
                    usage.attempts += 1
                    completion = await self._attempt(request, n_asked)
                finally:
                    self.limit.leave()
                self._note_answer(completion)
                return completion
            except TransientError as error:
                self._note_failure(error)
                n_asked += 1
                if error.may_be_request:
                    n_answers = usage.answers if not n_failed else n_answers
                    n_failed += 1
                wait = self._choose_wait(error, n_asked)
                is_over = time.perf_counter() + wait - max(started, self._last_answer) > self.patience_s
                seconds = time.perf_counter() - started
                if usage.answers > n_answers and (n_failed >= error.most_failures or (is_over and n_failed)):
                    # the server answers others: this request is at fault
                    return Completion(error=f"{error}, {n_failed} times", seconds=seconds)
                if is_over:
                    return Completion(down=str(error), seconds=seconds)
                await asyncio.sleep(wait)
            except RefusedError as error:
                usage.errors += 1
                self.circuit.answered()
                return Completion(error=str(error), seconds=time.perf_counter() - started)
            except DownError as error:
                usage.errors += 1
                return Completion(down=str(error), seconds=time.perf_counter() - started)

    async def _attempt(self, request: Request, n_asked: int) -> Completion:
        """Try once, and with `hedge_s` send a second copy when the first is slow; the first answer counts."""
        if self.hedge_s is None:
            return await self.attempt(request, n_asked)
        copies = [asyncio.create_task(self.attempt(request, n_asked))]
        try:
            done, _ = await asyncio.wait(copies, timeout=self.hedge_s)
            if not done and self.limit.has_room:
                self.usage.hedged += 1
                self.usage.attempts += 1
                async with self.limit:
                    copies.append(asyncio.create_task(self.attempt(request, n_asked)))
                    return await _first_good(copies)
            return await copies[0]
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)  # the loser's failure is nobody's business

    def _note_answer(self, completion: Completion) -> None:
        usage = self.usage
        usage.answers += 1
        usage.prompt_tokens += completion.prompt_tokens
        usage.completion_tokens += completion.completion_tokens
        self._last_answer = time.perf_counter()
        self._n_failed_in_a_row = 0
        self.circuit.answered()
        self.limit.succeeded()

    def _note_failure(self, error: TransientError) -> None:
        self.usage.errors += 1
        self._n_failed_in_a_row += 1
        if self._n_failed_in_a_row == SAID_AFTER and not error.is_lost:
            log.warning("%s, %d times without an answer in between; still trying", error, SAID_AFTER)
        if error.is_lost:
            self.circuit.lost(str(error))
        else:
            self.circuit.answered()
        if error.is_overload:
            self.limit.overloaded()

    def _choose_wait(self, error: TransientError, n_asked: int) -> float:
        """Return the seconds until the next attempt; those told the same second do not come back together."""
        if error.retry_after is None:
            return self._backoff(n_asked)
        return error.retry_after * self._jitter.uniform(1.0, 1.25)

    async def read_prefix_cache(self) -> tuple[int, int] | None:
        """Return prompt tokens found in and looked up by the server's prefix cache so far; None where unknown."""
        return None

    @property
    def prefers_schema(self) -> bool:
        """Whether programs with typed outputs had better ask with a schema than in words."""
        return self.supports_response_schema

    def journal_into(self, folder: Path, *, keep_prompts: bool = False) -> None:
        """Offer a journal's folder to write segments into; most engines leave that to their caller."""

    async def complete_entry(self, request: Request, key: str, digest: str) -> Completion:
        """Answer one request that is known in the journal by `key` and `digest`."""
        return await self.complete(request)

    def _backoff(self, n_asked: int) -> float:
        """Full jitter, doubling from a quarter of a second up to 20."""
        return self._jitter.uniform(0.05, max(0.05, min(20.0, self.patience_s / 4, 0.25 * 2 ** min(n_asked, 10))))


async def _first_good(copies: list[asyncio.Task[Completion]]) -> Completion:
    """Return the first answer; the last failure when none comes."""
    waiting = set(copies)
    while True:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        good = [copy for copy in done if copy.exception() is None]
        if good or not waiting:
            return (good or list(done))[0].result()


def read_reasoning(message: dict[str, Any]) -> str:
    """Return what a message says was thought before it: servers call the field by one of two names."""
    found = message.get("reasoning_content") or message.get("reasoning") or ""
    return found if isinstance(found, str) else ""
