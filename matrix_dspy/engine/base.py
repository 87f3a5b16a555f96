"""One request in, one completion out: what every engine promises, with retries and the limit on calls in flight.

An engine implements `attempt`, one try at one request; `Engine.complete` adds the adaptive limit, retries with jitter
and `Retry-After`. What is wrong with one request comes back as a value on the completion (`error`); a server that is
gone, refuses the key or lacks the model comes back as `down`, and the run stops instead of its rows failing.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from matrix_dspy.engine.limit import AdaptiveLimit

Message = dict[str, Any]
"""An OpenAI-style chat message: role and content."""

RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
OVERLOAD_STATUS = frozenset({429, 503, 529})


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


@dataclass(frozen=True, slots=True)
class Request:
    """Messages and how to sample."""

    messages: Sequence[Message]
    sampling: Sampling = Sampling()


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
    error: str | None = None
    """Why the server will not answer this request, however often it is asked."""
    down: str | None = None
    """Why the engine cannot be used; another row would fare no better."""

    @property
    def is_ok(self) -> bool:
        """Whether there is at least one text."""
        return bool(self.texts)


class TransientError(Exception):
    """One attempt failed in a way that may pass: transport, timeout, 408, 409, 429, 5xx."""

    def __init__(self, message: str, *, retry_after: float | None = None, is_overload: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the server asked us to wait."""
        self.is_overload = is_overload
        """True for 429, 503 and timeouts: the limit should fall when they come in bursts."""


class RefusedError(Exception):
    """The server will never answer this request (4xx): the row fails, the engine is fine."""


class DownError(Exception):
    """The engine cannot be used at all: wrong key, unknown model, not a model server."""


@dataclass(slots=True)
class Usage:
    """What an engine has done since it was opened."""

    calls: int = 0
    attempts: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Engine:
    """Base of all engines: an async context manager with one method, `complete`.

    `concurrency` bounds the attempts in flight. `model` is the name of the model without address or dials; it is known
    once the engine was opened. `patience_s` is how long one request is retried before the engine is called down.
    """

    supports_response_schema = False
    keeps_journal = False
    """Whether `complete_entry` writes the journal itself, where the work is done."""

    def __init__(self, *, concurrency: int = 32, timeout_s: float = 120.0, patience_s: float = 120.0) -> None:
        self.model = ""
        self.concurrency = concurrency
        self.timeout_s = timeout_s
        self.patience_s = patience_s
        self.limit = AdaptiveLimit(concurrency)
        self.usage = Usage()
        self._jitter = random.Random()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    async def complete(self, request: Request) -> Completion:
        """Answer one request; failures are values on the completion, never exceptions."""
        started = time.perf_counter()
        self.usage.calls += 1
        n_asked = 0
        while True:
            try:
                async with self.limit:
                    self.usage.attempts += 1
                    completion = await self.attempt(request, n_asked)
                self.limit.succeeded()
                self.usage.prompt_tokens += completion.prompt_tokens
                self.usage.completion_tokens += completion.completion_tokens
                return completion
            except TransientError as error:
                self.usage.errors += 1
                if error.is_overload:
                    self.limit.overloaded()
                n_asked += 1
                wait = error.retry_after if error.retry_after is not None else self._backoff(n_asked)
                if time.perf_counter() - started + wait > self.patience_s:
                    return Completion(down=str(error), seconds=time.perf_counter() - started)
                # the spread keeps requests that were told the same second from coming back together
                await asyncio.sleep(wait * self._jitter.uniform(1.0, 1.25) if error.retry_after else wait)
            except RefusedError as error:
                self.usage.errors += 1
                return Completion(error=str(error), seconds=time.perf_counter() - started)
            except DownError as error:
                self.usage.errors += 1
                return Completion(down=str(error), seconds=time.perf_counter() - started)

    async def complete_entry(self, request: Request, key: str, digest: str) -> Completion:
        """Answer one request that is known in the journal by `key` and `digest`."""
        return await self.complete(request)

    def _backoff(self, n_asked: int) -> float:
        """Full jitter, doubling from a quarter of a second up to 20."""
        return self._jitter.uniform(0.05, min(20.0, 0.25 * 2**n_asked))
