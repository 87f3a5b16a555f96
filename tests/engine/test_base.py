import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from matrix_dspy.engine.base import (
    MOST_FAILURES,
    Completion,
    DownError,
    Engine,
    RefusedError,
    Request,
    TransientError,
)

REQUEST = Request([{"role": "user", "content": "hello"}])
GOOD = Completion(("yes",), ("stop",), 10, 5)


class Flaky(Engine):
    """Raises what `plan` holds, one after the other, then answers; notes when it was asked."""

    def __init__(self, *plan: Exception, **limits: Any) -> None:
        super().__init__(**limits)
        self.plan = list(plan)
        self.asked: list[tuple[int, float]] = []

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        self.asked.append((n_asked, time.perf_counter()))
        if self.plan:
            raise self.plan.pop(0)
        return GOOD

    def waits(self) -> list[float]:
        times = [moment for _, moment in self.asked]
        return [later - earlier for earlier, later in pairwise(times)]


class Overloaded(Engine):
    """Takes at most `capacity` at a time and answers 429 beyond that."""

    def __init__(self, capacity: int, **limits: Any) -> None:
        super().__init__(**limits)
        self.capacity = capacity
        self.in_flight = 0
        self.peak = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        if self.in_flight >= self.capacity:
            raise TransientError("429", retry_after=0.002, is_overload=True)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(0.002)
        finally:
            self.in_flight -= 1
        return GOOD


def complete(engine: Engine, n: int = 1) -> list[Completion]:
    async def work() -> list[Completion]:
        async with engine:
            return await asyncio.gather(*(engine.complete(REQUEST) for _ in range(n)))

    return asyncio.run(work())


def test_a_good_answer_passes_unchanged_and_is_counted():
    engine = Flaky()

    assert complete(engine, 3) == [GOOD] * 3
    usage = engine.usage
    assert (usage.calls, usage.attempts, usage.errors) == (3, 3, 0)
    assert (usage.prompt_tokens, usage.completion_tokens) == (30, 15)


def test_a_passing_fault_is_tried_again_until_it_passes():
    engine = Flaky(TransientError("reset"), TransientError("500"))

    (completion,) = complete(engine)

    assert completion == GOOD
    assert [n_asked for n_asked, _ in engine.asked] == [0, 1, 2]
    assert (engine.usage.calls, engine.usage.attempts, engine.usage.errors) == (1, 3, 2)


def test_the_wait_a_server_asks_for_is_honoured_with_a_little_spread():
    engine = Flaky(TransientError("429", retry_after=0.2), TransientError("429", retry_after=0.1))

    complete(engine)

    first, second = engine.waits()
    assert 0.2 <= first < 0.35
    assert 0.1 <= second < 0.2


def test_a_server_that_asks_for_no_wait_gets_none():
    engine = Flaky(*(TransientError("429", retry_after=0.0) for _ in range(20)))

    complete(engine)

    assert sum(engine.waits()) < 0.5


def test_waits_are_spread_and_double():
    engine = Engine()

    waits = [[engine._backoff(n) for _ in range(200)] for n in range(1, 12)]

    for n, drawn in enumerate(waits, start=1):
        longest = min(20.0, 0.25 * 2**n)
        assert all(0.05 <= wait <= longest for wait in drawn)
        assert max(drawn) > 0.8 * longest
        assert min(drawn) < 0.3 * longest


def test_requests_told_the_same_second_do_not_come_back_together():
    engine = Flaky(*(TransientError("429", retry_after=0.2) for _ in range(8)), concurrency=8)

    complete(engine, 8)

    moments = sorted(moment for n_asked, moment in engine.asked if n_asked == 1)
    assert len(moments) == 8
    assert moments[-1] - moments[0] > 0.01


def test_a_request_is_given_up_for_down_when_patience_ends():
    engine = Flaky(*(TransientError(f"fault {n}", retry_after=0.02) for n in range(1000)), patience_s=0.1)

    (completion,) = complete(engine)

    assert completion.down is not None and completion.down.startswith("fault ")
    assert (completion.is_ok, completion.error) == (False, None)
    assert completion.seconds < 0.2
    assert 2 <= len(engine.asked) <= 6


def test_a_wait_longer_than_patience_is_not_begun():
    engine = Flaky(TransientError("429", retry_after=3600.0), patience_s=1.0)

    started = time.perf_counter()
    (completion,) = complete(engine)

    assert completion.down == "429"
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize(
    ("error", "field"), [(RefusedError("no such field"), "error"), (DownError("wrong key"), "down")]
)
def test_a_lasting_fault_is_a_value_at_once(error: Exception, field: str):
    engine = Flaky(error)

    (completion,) = complete(engine)

    assert getattr(completion, field) == str(error)
    assert completion.texts == ()
    assert len(engine.asked) == 1
    assert engine.usage.errors == 1


def test_an_engine_without_an_attempt_says_so():
    with pytest.raises(NotImplementedError):
        complete(Engine())


def test_never_more_are_in_flight_than_the_width():
    engine = Overloaded(capacity=10**6, concurrency=5)

    assert complete(engine, 60) == [GOOD] * 60

    assert engine.peak == engine.limit.peak == 5
    assert engine.limit.in_flight == 0


def test_a_burst_of_overloads_narrows_the_stream_and_all_get_through():
    engine = Overloaded(capacity=4, concurrency=32, patience_s=30.0)

    completions = complete(engine, 200)

    assert completions == [GOOD] * 200
    assert engine.limit.bound < 32


def test_sprinkled_errors_do_not_narrow_the_stream():
    class Sprinkled(Flaky):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            if len(self.asked) % 12 == 5:
                self.plan.append(TransientError("503", retry_after=0.001, is_overload=True))
            return await super().attempt(request, n_asked)

    engine = Sprinkled(concurrency=16)

    completions = complete(engine, 400)

    assert completions == [GOOD] * 400
    assert engine.usage.errors > 20
    assert engine.limit.bound == 16


def test_faults_that_are_no_overload_do_not_narrow_the_stream():
    engine = Flaky(*(TransientError("500", retry_after=0.001) for _ in range(200)), concurrency=16, patience_s=30.0)

    complete(engine, 16)

    assert engine.limit.bound == 16


@pytest.mark.parametrize("where", ["attempt", "wait", "line"])
def test_a_cancelled_request_gives_its_place_back(where: str):
    class Slow(Engine):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            if where == "wait":
                raise TransientError("429", retry_after=30.0)
            await asyncio.sleep(30)
            return GOOD

    async def work() -> Engine:
        engine = Slow(concurrency=1)
        tasks = [asyncio.create_task(engine.complete(REQUEST)) for _ in range(3 if where == "line" else 1)]
        await asyncio.sleep(0.01)
        for task in reversed(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        return engine

    assert asyncio.run(work()).limit.in_flight == 0


def test_a_waiting_retry_leaves_its_place_to_others():
    class First(Flaky):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            if request.messages[0]["content"] == "busy" and n_asked == 0:
                raise TransientError("429", retry_after=0.2)
            return GOOD

    async def work() -> list[str]:
        engine, order = First(concurrency=1), []

        async def ask(name: str) -> None:
            await engine.complete(Request([{"role": "user", "content": name}]))
            order.append(name)

        await asyncio.gather(ask("busy"), *(ask(f"other {n}") for n in range(3)))
        return order

    assert asyncio.run(work())[-1] == "busy"


def test_an_engine_is_closed_when_its_block_ends():
    class Closing(Flaky):
        is_closed = False

        async def close(self) -> None:
            self.is_closed = True

    async def work(inside: Callable[[], None]) -> Closing:
        engine = Closing()
        try:
            async with engine:
                inside()
        except ZeroDivisionError:
            pass
        return engine

    assert asyncio.run(work(lambda: None)).is_closed
    assert asyncio.run(work(lambda: print(1 / 0))).is_closed  # noqa: T201


class Poisoned(Engine):
    """Fails at requests that say `poison` in the way it is told to, after a little while; answers all others."""

    def __init__(self, make_fault: Callable[[], Exception], **limits: Any) -> None:
        super().__init__(**{"concurrency": 4, "patience_s": 20.0} | limits)
        self.make_fault = make_fault
        self.n_poison = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        await asyncio.sleep(0.002)
        if request.messages[0]["content"] == "poison":
            self.n_poison += 1
            raise self.make_fault()
        return GOOD


def ask_beside_others(engine: Engine, n_others: int) -> Completion:
    """Ask a poisoned request while others are answered, one after the other."""

    async def work() -> Completion:
        async with engine:
            bad = asyncio.create_task(engine.complete(Request([{"role": "user", "content": "poison"}])))
            for _ in range(n_others):
                assert await engine.complete(REQUEST) == GOOD
            return await asyncio.wait_for(bad, 10)

    return asyncio.run(work())


@pytest.mark.parametrize(
    "make_fault",
    [
        lambda: TransientError("500: boom", retry_after=0.0),
        lambda: TransientError("slow", retry_after=0, is_timeout=True),
    ],
    ids=["500", "timeout"],
)
def test_a_request_that_alone_fails_again_and_again_is_the_rows_error(make_fault: Callable[[], Exception]):
    engine = Poisoned(make_fault)

    completion = ask_beside_others(engine, 60)

    assert completion.error == f"{make_fault()}, {MOST_FAILURES} times"
    assert completion.down is None
    assert engine.n_poison == MOST_FAILURES


def test_a_request_told_to_come_later_is_asked_until_it_is_answered():
    left = [TransientError("429", retry_after=0.001, is_overload=True) for _ in range(10 * MOST_FAILURES)]

    class Busy(Poisoned):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            if left and request.messages[0]["content"] == "poison":
                await asyncio.sleep(0)
                raise left.pop()
            return GOOD

    assert ask_beside_others(Busy(lambda: KeyError()), 200) == GOOD
    assert left == []


def test_a_connection_lost_again_and_again_is_not_the_rows_error():
    n_lost = 0

    class Dropping(Poisoned):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            nonlocal n_lost
            await asyncio.sleep(0.001)
            if request.messages[0]["content"] == "poison" and n_lost < 3 * MOST_FAILURES:
                n_lost += 1
                raise TransientError("reset", retry_after=0.0, is_lost=True)
            return GOOD

    assert ask_beside_others(Dropping(lambda: KeyError()), 300) == GOOD
    assert n_lost == 3 * MOST_FAILURES


def test_a_server_that_answers_nobody_makes_no_row_fail():
    engine = Poisoned(lambda: TransientError("500: boom", retry_after=0.002), patience_s=0.3)

    async def work() -> list[Completion]:
        async with engine:
            poison = Request([{"role": "user", "content": "poison"}])
            return await asyncio.gather(*(engine.complete(poison) for _ in range(8)))

    completions = asyncio.run(work())

    assert engine.n_poison > 8 * MOST_FAILURES
    assert {completion.error for completion in completions} == {None}
    assert {completion.down for completion in completions} == {"500: boom"}


class Slow(Engine):
    """Takes as long for its n-th attempt as `waits` say, and answers with n; an exception is raised instead."""

    def __init__(self, *waits: float | tuple[float, Exception], **limits: Any) -> None:
        super().__init__(**{"hedge_s": 0.05, "concurrency": 4, "patience_s": 5.0} | limits)
        self.waits = list(waits)
        self.n_attempts = self.n_cancelled = 0

    async def attempt(self, request: Request, n_asked: int) -> Completion:
        wait = self.waits[self.n_attempts] if self.n_attempts < len(self.waits) else 0.0
        self.n_attempts += 1
        name = str(self.n_attempts)
        try:
            await asyncio.sleep(wait[0] if isinstance(wait, tuple) else wait)
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if isinstance(wait, tuple):
            raise wait[1]
        return Completion((name,), ("stop",), 10, 5)


def test_a_slow_request_is_sent_again_and_the_faster_answer_counts():
    engine = Slow(30.0, 0.01)

    (completion,) = complete(engine)

    assert completion.texts == ("2",)
    assert (engine.usage.calls, engine.usage.attempts, engine.usage.hedged) == (1, 2, 1)
    assert (engine.usage.answers, engine.usage.errors, engine.n_cancelled) == (1, 0, 1)
    assert engine.limit.in_flight == 0


def test_the_first_copy_may_still_win():
    engine = Slow(0.2, 30.0)

    (completion,) = complete(engine)

    assert completion.texts == ("1",)
    assert (engine.usage.hedged, engine.limit.in_flight) == (1, 0)


def test_a_second_copy_that_fails_leaves_the_first_to_answer():
    engine = Slow(0.3, (0.01, TransientError("500")))

    (completion,) = complete(engine)

    assert (completion.texts, engine.usage.errors) == (("1",), 0)


def test_when_both_copies_fail_the_request_is_tried_again():
    engine = Slow((0.15, TransientError("500", retry_after=0.0)), (0.01, TransientError("502", retry_after=0.0)))

    (completion,) = complete(engine)

    assert completion.texts == ("3",)
    assert (engine.usage.attempts, engine.usage.errors, engine.limit.in_flight) == (3, 1, 0)


def test_a_quick_request_is_sent_once():
    engine = Slow(0.0, hedge_s=5.0)

    complete(engine)

    assert (engine.usage.attempts, engine.usage.hedged) == (1, 0)


def test_without_room_no_second_copy_is_sent():
    engine = Slow(0.3, 0.3, concurrency=2)

    completions = complete(engine, 2)

    assert [completion.texts for completion in completions] == [("1",), ("2",)]
    assert (engine.usage.attempts, engine.usage.hedged, engine.limit.peak) == (2, 0, 2)


def test_a_cancelled_request_cancels_both_of_its_copies():
    engine = Slow(30.0, 30.0)

    async def work() -> None:
        call = asyncio.create_task(engine.complete(REQUEST))
        while engine.n_attempts < 2:
            await asyncio.sleep(0.005)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(work(), 10))

    assert (engine.n_cancelled, engine.limit.in_flight) == (2, 0)


def test_a_retry_goes_before_what_was_never_tried():
    order: list[str] = []

    class One(Engine):
        async def attempt(self, request: Request, n_asked: int) -> Completion:
            name = str(request.messages[0]["content"])
            order.append(name)
            await asyncio.sleep(0.01)
            if name == "again" and n_asked == 0:
                raise TransientError("429", retry_after=0.0)
            return GOOD

    async def work() -> None:
        engine = One(concurrency=1)
        names = ["again", *(f"new {n}" for n in range(6))]
        await asyncio.gather(*(engine.complete(Request([{"role": "user", "content": name}])) for name in names))

    asyncio.run(work())

    assert order[:4] == ["again", "new 0", "again", "new 1"]
