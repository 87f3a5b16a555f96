"""One call from typed inputs to typed outputs: rendered, sent, journaled, parsed, and asked again once if need be.

A bad answer is a value with a reason. Only a failing engine (`EngineError`), a spent budget (`LimitError`) or a disk
that takes no more (`RunError`) raise, and they stop the whole run.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from matrix_dspy.bulk.budget import Budget, Price
from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.bulk.levels import TOP_TOKENS, expect_level, read_levels
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.prompt import Prompt, narrow_schema
from matrix_dspy.bulk.trace import Trace
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, Engine, Message, Request, Sampling
from matrix_dspy.errors import EngineError, LimitError
from matrix_dspy.text import clean_text, clean_value, find_unstorable, replace_surrogates

log = logging.getLogger("matrix_dspy")

T = TypeVar("T")

_SCHEMA_WORDS = re.compile(r"schema|response_format|grammar|structured|guided|json", re.IGNORECASE)
"""What a refusal speaks of when it is the schema that is refused, and not this one request."""

Check = Callable[[dict[str, Any]], str | None]
"""Looks at parsed fields and returns what is wrong with them, as a clause a model can act on, or None."""

Narrow = Mapping[str, Mapping[str, Any]]
"""Output field to JSON-schema keywords that hold for one call, such as `{"plan": {"minItems": 3}}`."""

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
    expected: float | None = None
    """Mean of the levels of the field asked for, by the server's log-probabilities; None where it gives none."""
    thinking: str = ""
    """What was thought before the answer, where the server reports it apart."""
    is_cut_off: bool = False
    """Whether plain text was taken though it ended at the token limit."""

    @property
    def is_ok(self) -> bool:
        """Whether the fields are there."""
        return self.fields is not None


@dataclass(frozen=True, slots=True)
class Turn:
    """An answer that could not be used, and why; shown to the model when it is asked again."""

    answer: str
    problem: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What belongs to one call, whatever its words."""

    key: CallKey
    sampling: SamplingConfig
    check: Check | None = None
    scrub: Scrub | None = None
    expect: str = ""
    keeps_cut_off: bool = False
    narrow: Narrow | None = None


@dataclass(slots=True)
class Runner:
    """Sends calls through one engine, replaying what the journal already holds.

    With `structured`, programs with typed outputs ask for one JSON object and send its schema; a program whose schema
    the server refuses goes on in words, and so does a single call refused for another reason. `longest_text` bounds
    every text in such an object, in characters.
    """

    engine: Engine
    journal: Journal | None = None
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    budget: Budget = field(default_factory=Budget)
    structured: bool = False
    longest_text: int | None = None
    trace: Trace | None = None
    """Called with every answered call that was not private."""
    price: Price | None = None
    """What this engine's tokens cost; None where that is not known."""
    _in_words: set[int] = field(default_factory=set)
    """Prompts, by identity, whose schema the server refused."""
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
        expect: str = "",
        keeps_cut_off: bool = False,
        narrow: Narrow | None = None,
    ) -> Outcome:
        """Ask, and ask again with what was wrong up to `n_again` times; strings in the fields come back cleaned.

        `earlier` are answers to the same inputs that were refused outside of this call. `expect` names an output field
        with levels whose expectation is wanted too. With `keeps_cut_off`, plain text cut off at the token limit is
        taken as it stands. `narrow` are keywords that a schema holds the model to beyond its types;
        `check` must still look at them.
        """
        asked = _Asked(key, sampling, check, scrub, expect, keeps_cut_off, narrow)
        form = self._choose_form(prompt)
        if form is prompt and id(prompt) in self._in_words and self._is_answered(prompt, inputs, asked, earlier):
            form = prompt.structured(self.longest_text)
        outcome = await self._call(form, inputs, asked, earlier, n_again)
        if outcome.reason == "refused by server" and form.schema is not None:
            in_words = await self._call(prompt, inputs, asked, earlier, n_again)
            if in_words.reason != "refused by server" and _SCHEMA_WORDS.search(outcome.detail):
                self._forget_schema(prompt, outcome.detail)
            return in_words
        return outcome

    async def sample(
        self,
        prompt: Prompt,
        inputs: Mapping[str, Any],
        key: CallKey,
        sampling: SamplingConfig,
        n: int,
        *,
        check: Check | None = None,
        n_again: int = 1,
        expect: str = "",
    ) -> list[Outcome]:
        """Return `n` outcomes for the same inputs: in one request where the server can, else by `n` requests.

        An answer of the n that is missing or no good is asked for by itself.
        """

        async def ask(number: int) -> Outcome:
            own = replace(key, sample=number)
            return await self.call(prompt, inputs, own, sampling, check=check, n_again=n_again, expect=expect)

        if n == 1 or not self.engine.supports_n:
            return await gather_all(ask(number) for number in range(n))
        form = self._choose_form(prompt)
        try:
            messages = form.messages(inputs)
        except Exception as error:
            return [Outcome(None, "", "bad input", f"the inputs cannot be put into a prompt: {error}")] * n
        asked = _Asked(replace(key, purpose=f"{key.purpose}*{n}"), sampling, check, None, expect, False)
        completion = await self._complete(form, messages, asked, n)
        outcomes = [read_outcome(form, completion, asked, number) for number in range(min(n, len(completion.texts)))]
        again = [number for number in range(n) if number >= len(outcomes) or not outcomes[number].is_ok]
        outcomes += [Outcome(None, "", "empty")] * (n - len(outcomes))
        for number, outcome in zip(again, await gather_all(map(ask, again)), strict=True):
            outcomes[number] = outcome
        return outcomes

    async def complete(self, request: Request, key: CallKey, scrub: Scrub | None = None) -> Completion:
        """Return the completion of a request, from the journal if it is there, else from the engine.

        Raises:
            EngineError: the engine is down.
            LimitError: the budget is spent; what was in flight has come back.
            RunError: the journal cannot be written.
        """
        digest = hash_request(request, self.engine.model)
        if self.journal is not None and (found := self.journal.find(key, digest)) is not None:
            self.progress.replayed(key.program, found, self.price)
            return found
        if (limit := self.budget.find_limit()) is not None:
            if self.progress.in_flight:
                await self._quiet.wait()  # an error cancels what is in flight, which is paid for already
            raise LimitError(limit)
        self.budget.n_calls += 1
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
        is_journaled = scrub is None and self.journal is not None and self.engine.keeps_journal
        if is_journaled:
            completion = await self.engine.complete_entry(request, str(key), digest)
        else:
            completion = await self.engine.complete(request)
        if completion.down is not None:
            raise EngineError(f"{completion.down}; what was answered is kept, run the same command again")
        if not all(text.isascii() for text in completion.texts):
            completion = replace(completion, texts=tuple(replace_surrogates(text) for text in completion.texts))
        if completion.reasonings:
            kept = () if scrub is not None else tuple(replace_surrogates(text) for text in completion.reasonings)
            completion = replace(completion, reasonings=kept)
        if scrub is not None:
            completion = replace(completion, texts=tuple(scrub(text) for text in completion.texts))
        self.budget.note(completion, self.price)
        self.progress.answered(key.program, completion, self.price)
        if self.journal is not None and not is_journaled:
            self.journal.append(key, digest, request, completion, is_private=scrub is not None)
        if self.trace is not None and scrub is None:
            self.trace(str(key), request, completion)
        return completion

    async def _call(
        self, prompt: Prompt, inputs: Mapping[str, Any], asked: "_Asked", earlier: tuple[Turn, ...], n_again: int
    ) -> Outcome:
        try:
            messages = _build_messages(prompt, inputs, earlier)
        except Exception as error:
            return Outcome(None, "", "bad input", f"the inputs cannot be put into a prompt: {error}")
        outcome = read_outcome(prompt, await self._complete(prompt, messages, asked), asked)
        for again in range(1, n_again + 1):
            if outcome.is_ok or prompt.is_plain or outcome.reason == "refused by server":
                break
            messages = prompt.ask_again(messages, outcome.text, outcome.detail)
            later = replace(asked, key=replace(asked.key, purpose=f"{asked.key.purpose}+{again}"))
            outcome = read_outcome(prompt, await self._complete(prompt, messages, later), asked)
        return outcome

    async def _complete(self, prompt: Prompt, messages: list[Message], asked: "_Asked", n: int = 1) -> Completion:
        return await self.complete(self._build_request(prompt, messages, asked, n), asked.key, asked.scrub)

    def _build_request(self, prompt: Prompt, messages: list[Message], asked: "_Asked", n: int = 1) -> Request:
        sampling, schema = asked.sampling, prompt.schema
        if schema is not None and asked.narrow:
            schema = narrow_schema(schema, asked.narrow)
        drawn = Sampling(
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            prompt.stop,
            self.derive_seed(asked.key),
            n,
            schema,
            TOP_TOKENS if asked.expect else 0,
            sampling.top_k,
            sampling.min_p,
            sampling.repetition_penalty,
            sampling.chat_template_kwargs,
            sampling.priority,
        )
        return Request(messages, drawn)

    def _is_answered(
        self, prompt: Prompt, inputs: Mapping[str, Any], asked: "_Asked", earlier: tuple[Turn, ...]
    ) -> bool:
        """Whether a call was answered with a schema before its program's schema was refused, in an earlier start."""
        if self.journal is None or not len(self.journal):
            return False
        form = prompt.structured(self.longest_text)
        try:
            request = self._build_request(form, _build_messages(form, inputs, earlier), asked)
        except Exception:
            return False
        return self.journal.holds(asked.key, hash_request(request, self.engine.model))

    def _choose_form(self, prompt: Prompt) -> Prompt:
        if not self.structured or id(prompt) in self._in_words:
            return prompt
        return prompt.structured(self.longest_text)

    def _forget_schema(self, prompt: Prompt, detail: str) -> None:
        """Ask in words from now on, and say so once."""
        if id(prompt) not in self._in_words:
            self._in_words.add(id(prompt))
            name = prompt.signature.__name__
            log.warning("the server takes no schema for %s, which is asked in words now (%s)", name, detail[:200])

    def derive_seed(self, key: CallKey) -> int:
        """Return this call's own 31-bit seed, from the run's seed and the key."""
        packed = f"{self.seed}\x1f{key}".encode()
        return int.from_bytes(hashlib.blake2b(packed, digest_size=4).digest(), "big") >> 1


async def gather_all(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all parts, which are paid for whatever becomes of the others, then raise the first error if any did."""
    ends = await asyncio.gather(*parts, return_exceptions=True)
    errors = [end for end in ends if isinstance(end, BaseException)]
    if errors:
        raise errors[0]
    return [end for end in ends if not isinstance(end, BaseException)]


def _build_messages(prompt: Prompt, inputs: Mapping[str, Any], earlier: tuple[Turn, ...]) -> list[Message]:
    messages = prompt.messages(inputs)
    for turn in earlier:
        messages = prompt.ask_again(messages, turn.answer, turn.problem)
    return messages


def read_outcome(prompt: Prompt, completion: Completion, asked: "_Asked", number: int = 0) -> Outcome:
    """Parse the `number`-th text of a completion into an outcome."""
    if completion.error is not None:
        return Outcome(None, "", "refused by server", completion.error)
    text = completion.texts[number]
    is_kept = asked.keeps_cut_off and prompt.is_plain
    is_cut_off = completion.finish_reasons[number] == "length"
    if is_cut_off and not is_kept:
        return Outcome(None, text, "cut off", "the answer was cut off at the token limit; be shorter")
    if not text.strip():
        return Outcome(None, text, "empty", "the answer was empty")
    parsed = prompt.parse(text)
    if parsed.fields is None:
        return Outcome(None, text, "unparsed", parsed.problem)
    fault = next((fault for value in parsed.fields.values() if (fault := find_unstorable(value)) is not None), None)
    if fault is not None:
        return Outcome(None, text, "unparsed", fault)
    fields: dict[str, Any] = {name: clean_value(value) for name, value in parsed.fields.items()}
    for name, value in fields.items():  # what was cleaned away may be what a bound asks for
        if value != parsed.fields[name] and (fault := prompt.find_fault(name, value)) is not None:
            return Outcome(None, text, "unparsed", fault)
    if asked.check is not None and (problem := asked.check(fields)) is not None:
        return Outcome(None, text, "failed check", problem)
    expected = _read_expected(prompt, completion, asked, number) if asked.expect else None
    thinking = clean_text(completion.reasonings[number]) if number < len(completion.reasonings) else ""
    return Outcome(fields, text, expected=expected, thinking=thinking, is_cut_off=is_cut_off)


def _read_expected(prompt: Prompt, completion: Completion, asked: "_Asked", number: int) -> float | None:
    tokens = completion.logprobs[number] if completion.logprobs else None
    if not tokens:
        return None
    levels = read_levels(prompt.signature, asked.expect)
    try:
        return expect_level(levels, tokens, asked.expect)
    except (TypeError, ValueError, KeyError, AttributeError):  # a server's own idea of log-probabilities
        return None
