"""What one start may spend, by itself and with calls in flight."""

import asyncio
import time
from pathlib import Path

import pytest

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.engine.base import Completion, Engine, Request
from matrix_dspy.errors import LimitError
from matrix_dspy.report.prices import Price

GOOD = Completion(("yes",), ("stop",), 100, 50)
PRICE = Price(10.0, 100.0)
"""0.006 dollars for each of `GOOD`."""


class Steady(Engine):
    """Answers everything with `GOOD` after a while, and counts."""

    def __init__(self, latency_s: float = 0.0) -> None:
        super().__init__(concurrency=8)
        self.model = "steady"
        self.latency_s = latency_s
        self.n_asked = self.n_answered = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.n_asked += 1
        await asyncio.sleep(self.latency_s)
        self.n_answered += 1
        return GOOD


def make_call(number: int) -> tuple[Request, CallKey]:
    return Request([{"role": "user", "content": str(number)}]), CallKey("stage", f"row-{number}", "call")


def spend_one_by_one(engine: Engine, budget: Budget, timeout_s: float = 20) -> str:
    """Send calls, each after the other, until the limit; returns what it says."""

    async def work() -> None:
        runner = Runner(engine, budget=budget, price=PRICE)
        for number in range(1000):
            await runner.complete(*make_call(number))

    with pytest.raises(LimitError) as caught:
        asyncio.run(asyncio.wait_for(work(), timeout_s))
    return str(caught.value)


@pytest.mark.parametrize(
    ("budget", "n_calls", "words"),
    [
        (Budget(max_calls=3), 3, "the limit of 3 calls is reached"),
        (Budget(max_tokens=301), 3, "the limit of 301 tokens is reached"),
        (Budget(max_tokens=300), 2, "the limit of 300 tokens is reached"),
        (Budget(max_cost=0.015), 3, "the limit of 0.015 dollars is reached"),
        (Budget(max_calls=9, max_tokens=600), 4, "the limit of 600 tokens is reached"),
    ],
)
def test_a_limit_ends_the_run_with_its_own_name(budget: Budget, n_calls: int, words: str) -> None:
    engine = Steady()

    assert spend_one_by_one(engine, budget) == words
    assert engine.n_asked == budget.n_calls == n_calls
    assert (budget.prompt_tokens, budget.completion_tokens) == (100 * n_calls, 50 * n_calls)


def test_time_runs_out() -> None:
    started = time.monotonic()

    words = spend_one_by_one(Steady(0.01), Budget(max_time_s=0.3))

    assert words == "the limit of 0.3 seconds is reached"
    assert 0.25 < time.monotonic() - started < 5


def test_a_limit_reached_before_the_first_call_ends_the_run_too() -> None:
    engine = Steady()

    assert spend_one_by_one(engine, Budget(max_time_s=0.0), 2.0) == "the limit of 0 seconds is reached"
    assert engine.n_asked == 0


def test_no_limit_is_none_and_no_price_is_no_cost() -> None:
    budget = Budget()
    for _ in range(100):
        budget.note(GOOD)

    assert budget.find_limit() is None
    assert budget.cost == 0.0


def test_the_cost_is_that_of_all_tokens_noted() -> None:
    budget = Budget()
    budget.note(GOOD, PRICE)
    budget.note(GOOD, PRICE)

    assert budget.cost == pytest.approx(2 * (100 * 10.0 + 50 * 100.0) / 1e6)


def test_what_is_in_flight_comes_back_and_is_kept_before_the_run_ends(tmp_path: Path) -> None:
    engine = Steady(0.1)

    async def work() -> None:
        journal = Journal(tmp_path)
        runner = Runner(engine, journal, budget=Budget(max_calls=5))
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(12):
                    tasks.create_task(runner.complete(*make_call(number)))
        finally:
            journal.close()

    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(asyncio.wait_for(work(), 20))

    assert caught.group_contains(LimitError)
    assert (engine.n_asked, engine.n_answered) == (5, 5)
    assert len((tmp_path / "main.jsonl").read_bytes().splitlines()) == 5


def test_a_later_start_replays_for_nothing_and_has_a_budget_of_its_own(tmp_path: Path) -> None:
    def start(n: int) -> tuple[Budget, Engine]:
        engine, budget = Steady(), Budget(max_tokens=450)

        async def work() -> None:
            journal = Journal(tmp_path)
            runner = Runner(engine, journal, budget=budget)
            try:
                for number in range(n):
                    await runner.complete(*make_call(number))
            finally:
                journal.close()

        asyncio.run(asyncio.wait_for(work(), 20))
        return budget, engine

    for n in (3, 6):
        budget, engine = start(n)
        assert (budget.n_calls, engine.usage.calls) == (3, 3)
    with pytest.raises(LimitError, match="the limit of 450 tokens"):
        start(10)


def test_a_refused_request_is_a_call_and_no_tokens() -> None:
    budget = Budget(max_tokens=10)
    budget.note(Completion(error="no"))

    assert budget.find_limit() is None
