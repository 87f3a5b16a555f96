"""LM calls of a compile run: counted where they are sent, journaled the moment they are answered, never over budget.

An optimizer's run is replayed, not restored: its calls are found again by role, words and how often they were asked,
so that after a kill the same command goes through the same steps and pays only for what is missing.
"""

import asyncio
import contextvars
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import dspy

from matrix_dspy.bulk.journal import CallKey, Journal, hash_request
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, Engine, Request
from matrix_dspy.engine.lm import build_lm
from matrix_dspy.errors import EngineError, RunError, boundary

T = TypeVar("T")
STAGE = "compile"
_ROLLOUT: contextvars.ContextVar[int] = contextvars.ContextVar("rollout", default=0)


class BudgetSpent(BaseException):
    """The budget is used up. No `Exception`: optimizers catch those and go on."""


class Meter:
    """Counts the calls of all roles and says when the budget, less what is kept back, is spent.

    `sent` survives kills in a file of one byte a call, written before the call goes out.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.budget = budget
        self.kept_back = 0
        """Calls the phases still to come will need."""
        self.by_role: Counter[str] = Counter()
        """Calls of each role that this run of the optimizer took, replayed ones included."""
        self.tokens_by_role: Counter[tuple[str, str]] = Counter()
        """Prompt and completion tokens, by (role, "in" or "out")."""
        self.is_spent = False
        """Whether a call was refused."""
        self.down: str | None = None
        """Why an engine cannot be used."""
        self._lock = threading.Lock()
        with boundary(RunError, f"write to {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "sent", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.n_lost = 0
        """Calls that were sent before and whose answers a kill took."""

    @property
    def n_sent(self) -> int:
        """Calls ever sent, those lost in a kill included."""
        return os.fstat(self._file).st_size

    @property
    def n_taken(self) -> int:
        """Calls this run of the optimizer took, replayed or sent."""
        return sum(self.by_role.values())

    @property
    def room(self) -> int:
        """Calls still open to the phase that is running."""
        return self.budget - self.kept_back - self.n_lost - self.n_taken

    def take(self, role: str, *, is_replay: bool) -> None:
        """Count one call; raises BudgetSpent where there is no room for it."""
        with self._lock:
            if self.room <= 0 or (not is_replay and self.n_sent >= self.budget):
                self.is_spent = True
                raise BudgetSpent(f"the budget of {self.budget:,} calls is spent")
            self.by_role[role] += 1
            if not is_replay:
                os.write(self._file, b".")

    def note(self, role: str, completion: Completion) -> None:
        """Add up a completion's tokens."""
        with self._lock:
            self.tokens_by_role[role, "in"] += completion.prompt_tokens
            self.tokens_by_role[role, "out"] += completion.completion_tokens

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class MeteredEngine(Engine):
    """An engine in one role of a compile run: every call goes through the meter and the journal.

    With `is_memo` a request that was answered before is answered from memory and not counted again: for judges, whose
    verdict on the same words is asked for many times.
    """

    def __init__(self, inner: Engine, role: str, meter: Meter, journal: Journal, *, is_memo: bool = False) -> None:
        super().__init__(concurrency=inner.concurrency)
        self.inner = inner
        self.role = role
        self.meter = meter
        self.journal = journal
        self.is_memo = is_memo
        self.model = inner.model
        self.supports_response_schema = inner.supports_response_schema
        self._n_asked: Counter[str] = Counter()
        self._memo: dict[str, asyncio.Future[Completion]] = {}

    async def complete(self, request: Request) -> Completion:
        """Answer a request from the journal or from the engine behind.

        Raises:
            BudgetSpent: no call is left.
            EngineDown: the engine cannot be used.
        """
        digest = hash_request(request, self.model)
        if self.is_memo:
            return await self._remember(request, digest)
        known = f"{digest}-{_ROLLOUT.get()}"
        sample = self._n_asked[known]
        self._n_asked[known] += 1
        return await self._ask(request, digest, known, sample)

    async def _remember(self, request: Request, digest: str) -> Completion:
        if digest not in self._memo:
            self._memo[digest] = asyncio.ensure_future(self._ask(request, digest, digest, 0))
        try:
            return await asyncio.shield(self._memo[digest])
        except BaseException:
            self._memo.pop(digest, None)  # a refused call may be let through later
            raise

    async def _ask(self, request: Request, digest: str, known: str, sample: int) -> Completion:
        key = CallKey(STAGE, known, self.role, sample=sample)
        found = self.journal.find(key, digest)
        self.meter.take(self.role, is_replay=found is not None)
        completion = found or await self._send(request, key, digest)
        self.meter.note(self.role, completion)
        return completion

    async def _send(self, request: Request, key: CallKey, digest: str) -> Completion:
        seed = int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=4).digest(), "big") >> 1
        seeded = Request(request.messages, replace(request.sampling, seed=seed))
        completion = await self.inner.complete(seeded)
        if completion.down is not None:
            self.meter.down = completion.down
            raise EngineDown(completion.down)
        self.journal.append(key, digest, request, completion)
        return completion


class EngineDown(BaseException):
    """The server is gone or refuses the key. No `Exception`, for the reason `BudgetSpent` is none."""


class MeteredLM(dspy.LM):
    """A `dspy.LM` that tells its engine which of DSPy's rollouts a call belongs to."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mark = _ROLLOUT.set(kwargs.get("rollout_id", self.kwargs.get("rollout_id")) or 0)
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _ROLLOUT.reset(mark)


class EngineRoom:
    """A thread with the one event loop that the engines of a compile run live in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: list[Engine] = []
        threading.Thread(target=self._loop.run_forever, name="matrix-dspy-compile", daemon=True).start()

    def open(self, engine: Engine) -> None:
        """Open an engine; raises EngineError where there is nothing to talk to."""
        self._run(engine.open())
        self._open.append(engine)

    def build_lm(self, engine: MeteredEngine, sampling: SamplingConfig) -> dspy.LM:
        """Return a `dspy.LM` in a role, with a program's sampling."""
        return self._run(_build_lm(engine, sampling))

    def close(self) -> None:
        """Close what was opened and end the thread."""
        for engine in self._open:
            engine.circuit.stop()
            self._run(engine.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _build_lm(engine: MeteredEngine, sampling: SamplingConfig) -> dspy.LM:
    return build_lm(
        engine,
        is_open=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        kind=MeteredLM,
    )


def raise_if_down(meter: Meter) -> None:
    """Raise EngineError where an engine has said it cannot be used."""
    if meter.down is not None:
        raise EngineError(f"{meter.down}; the same command goes on from here")
