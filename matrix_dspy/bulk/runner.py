"""One call from typed inputs to typed outputs: rendered, sent, journaled, parsed, and asked again once if need be.

A bad answer is a value with a reason. Only a failing engine (`EngineError`), a spent budget (`LimitError`) or a disk
that takes no more (`RunError`) raise, and they stop the whole run.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, Engine, Message, Request, Sampling
from matrix_dspy.errors import EngineError, LimitError
from matrix_dspy.text import clean_value

Check = Callable[[dict[str, Any]], str | None]
"""Looks at parsed fields and returns what is wrong with them, as a clause a model can act on, or None."""

Scrub = Callable[[str], str]
"""Takes out of an answer what must not be written down, before it is journaled or used."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Typed output fields, or the reason there are none; `text` is what the model wrote last."""

    fields: dict[str, Any] | None
    text: str
    reason: str = ""
    """A short fixed word: `unparsed`, `failed check`, `cut off`, `empty`, `refused by server`, `bad input`."""
    detail: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether the fields are there."""
        return self.fields is not None


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer that could not be used, and why; shown to the model when it is asked again."""

    answer: str
    problem: str


@dataclass(slots=True)
class Runner:
    """Sends calls through one engine, replaying what the journal already holds."""

    engine: Engine
    journal: Journal | None = None
    seed: int = 0
    max_calls: int | None = None
    """Calls that may be sent, replayed ones not counted; None is no limit."""
    progress: Progress = field(default_factory=Progress)
    n_sent: int = 0
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is in flight."""

    async def call(
        self,
        prompt: Prompt,
        inputs: Mapping[str, Any],
        key: CallKey,
        sampling: SamplingConfig,
        *,
        check: Check | None = None,
        earlier: tuple[Turn, ...] = (),
        n_again: int = 1,
        scrub: Scrub | None = None,
    ) -> Outcome:
        """Ask, and ask again with what was wrong up to `n_again` times; strings in the fields come back cleaned.

        `earlier` are answers to the same inputs that were refused outside of this call.
        """
        try:
            messages = prompt.messages(inputs)
        except Exception as error:
            return Outcome(None, "", "bad input", f"the inputs cannot be put into a prompt: {error}")
        for turn in earlier:
            messages = prompt.ask_again(messages, turn.answer, turn.problem)
        outcome = await self._ask(prompt, messages, key, sampling, check, scrub)
        for again in range(1, n_again + 1):
            if outcome.is_ok or prompt.is_plain or outcome.reason == "refused by server":
                break
            messages = prompt.ask_again(messages, outcome.text, outcome.detail)
            later = replace(key, purpose=f"{key.purpose}+{again}")
            outcome = await self._ask(prompt, messages, later, sampling, check, scrub)
        return outcome

    async def complete(self, request: Request, key: CallKey, scrub: Scrub | None = None) -> Completion:
        """Return the completion of a request, from the journal if it is there, else from the engine."""
        digest = hash_request(request, self.engine.model)
        if self.journal is not None and (found := self.journal.find(key, digest)) is not None:
            self.progress.replayed(key.program, found)
            return found
        if self.max_calls is not None and self.n_sent >= self.max_calls:
            await self._quiet.wait()  # an error cancels what is in flight, which is paid for already
            raise LimitError(f"the limit of {self.max_calls} calls is reached")
        self.n_sent += 1
        self._quiet.clear()
        self.progress.in_flight += 1
        try:
            return await self._send(request, key, digest, scrub)
        finally:
            self.progress.in_flight -= 1
            if not self.progress.in_flight:
                self._quiet.set()

    async def _send(self, request: Request, key: CallKey, digest: str, scrub: Scrub | None) -> Completion:
        """Have the engine complete a request, and journal what comes back."""
        completion = await self.engine.complete(request)
        if completion.down is not None:
            raise EngineError(f"{completion.down}; what was answered is kept, run the same command again")
        if scrub is not None:
            completion = replace(completion, texts=tuple(scrub(text) for text in completion.texts))
        self.progress.answered(key.program, completion)
        if self.journal is not None:
            self.journal.append(key, digest, request, completion, is_private=scrub is not None)
        return completion

    async def _ask(
        self,
        prompt: Prompt,
        messages: list[Message],
        key: CallKey,
        sampling: SamplingConfig,
        check: Check | None,
        scrub: Scrub | None,
    ) -> Outcome:
        drawn = Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            stop=prompt.stop,
            seed=self.derive_seed(key),
        )
        return read_outcome(prompt, await self.complete(Request(messages, drawn), key, scrub), check)

    def derive_seed(self, key: CallKey) -> int:
        """Return this call's own 31-bit seed, from the run's seed and the key."""
        packed = f"{self.seed}\x1f{key}".encode()
        return int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "big") >> 1


def read_outcome(prompt: Prompt, completion: Completion, check: Check | None = None) -> Outcome:
    """Parse a completion's first text into an outcome."""
    if completion.error is not None:
        return Outcome(None, "", "refused by server", completion.error)
    text = completion.texts[0]
    if completion.finish_reasons[0] == "length":
        return Outcome(None, text, "cut off", "the answer was cut off at the token limit; be shorter")
    if not text.strip():
        return Outcome(None, text, "empty", "the answer was empty")
    parsed = prompt.parse(text)
    if parsed.fields is None:
        return Outcome(None, text, "unparsed", parsed.problem)
    fields: dict[str, Any] = {name: clean_value(value) for name, value in parsed.fields.items()}
    if check is not None and (problem := check(fields)) is not None:
        return Outcome(None, text, "failed check", problem)
    return Outcome(fields, text)
