import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.engine.limit import DECREASE, AdaptiveLimit


async def hold(limit: AdaptiveLimit, until: asyncio.Event) -> None:
    async with limit:
        await until.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def with_timeout() -> None:
        await asyncio.wait_for(work(), 5)

    asyncio.run(with_timeout())


@pytest.mark.parametrize("maximum", [0, -1])
def test_a_width_below_one_is_refused(maximum: int):
    with pytest.raises(ValueError, match=f"must be at least 1, not {maximum}"):
        AdaptiveLimit(maximum)


def test_no_more_are_let_in_than_the_bound():
    async def work() -> None:
        limit, until = AdaptiveLimit(3), asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, until)) for _ in range(10)]
        await settle()
        assert limit.in_flight == 3

        until.set()
        await asyncio.gather(*tasks)

        assert (limit.in_flight, limit.peak) == (0, 3)

    run(work)


def test_those_who_wait_are_let_in_in_their_order():
    async def work() -> None:
        limit, order = AdaptiveLimit(1), []

        async def enter(number: int) -> None:
            async with limit:
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(enter(number) for number in range(20)))

        assert order == list(range(20))

    run(work)


def test_an_error_inside_gives_the_place_back():
    async def work() -> None:
        limit = AdaptiveLimit(1)
        for _ in range(3):
            with pytest.raises(KeyError):
                async with limit:
                    raise KeyError

        assert limit.in_flight == 0

    run(work)


def test_a_cancelled_holder_gives_its_place_to_the_next():
    async def work() -> None:
        limit, until = AdaptiveLimit(1), asyncio.Event()
        first, second = (asyncio.create_task(hold(limit, until)) for _ in range(2))
        await settle()

        first.cancel()
        await settle()

        assert limit.in_flight == 1
        until.set()
        await second
        assert limit.in_flight == 0

    run(work)


def test_a_cancelled_waiter_leaves_the_line():
    async def work() -> None:
        limit, until = AdaptiveLimit(1), asyncio.Event()
        tasks = [asyncio.create_task(hold(limit, until)) for _ in range(3)]
        await settle()

        tasks[1].cancel()
        await settle()
        until.set()
        await asyncio.gather(tasks[0], tasks[2])

        assert limit.in_flight == 0

    run(work)


def test_a_waiter_cancelled_in_the_moment_of_its_turn_passes_it_on():
    async def work() -> None:
        limit, until = AdaptiveLimit(1), asyncio.Event()
        until.set()
        await limit.__aenter__()
        second, third = (asyncio.create_task(hold(limit, until)) for _ in range(2))
        await settle()

        await limit.__aexit__(None, None, None)
        second.cancel()
        await asyncio.wait({second, third})

        assert second.cancelled()
        assert not third.cancelled()
        assert limit.in_flight == 0

    run(work)


@given(st.integers(1, 5), st.lists(st.sampled_from(["start", "finish", "cancel", "yield", "bad", "good"]), max_size=60))
@settings(max_examples=60)
def test_whatever_happens_the_bound_holds_and_places_come_back(maximum: int, steps: list[str]):
    async def work() -> None:
        limit = AdaptiveLimit(maximum)
        tasks: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for number, step in enumerate(steps):
            if step == "start":
                until = asyncio.Event()
                tasks.append((asyncio.create_task(hold(limit, until)), until))
            elif step == "yield":
                await settle()
            elif step in ("finish", "cancel") and tasks:
                task, until = tasks[number % len(tasks)]
                until.set() if step == "finish" else task.cancel()
            elif step in ("bad", "good"):
                limit.overloaded() if step == "bad" else limit.succeeded()
            assert 0 <= limit.in_flight <= maximum
        for _, until in tasks:
            until.set()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

        assert limit.in_flight == 0
        assert limit.peak <= maximum
        assert 1 <= limit.bound <= maximum

    run(work)


def test_a_burst_of_overloads_lowers_the_bound_once_per_window():
    limit = AdaptiveLimit(64)
    for _ in range(64):
        limit.overloaded()

    assert limit.bound == 64 * DECREASE


def test_an_overload_that_lasts_lowers_the_bound_to_one_and_no_further():
    limit = AdaptiveLimit(16)
    for _ in range(1000):
        limit.overloaded()

    assert limit.bound == 1.0


def test_sprinkled_errors_do_not_move_the_bound():
    limit = AdaptiveLimit(64)
    for number in range(2000):
        limit.overloaded() if number % 10 == 0 else limit.succeeded()

    assert limit.bound == 64


def test_half_of_the_answers_failing_is_a_burst():
    limit = AdaptiveLimit(64)
    for number in range(200):
        limit.overloaded() if number % 2 == 0 else limit.succeeded()

    assert limit.bound < 64


def test_the_bound_grows_back_by_one_per_as_many_answers_as_it_has_places():
    limit = AdaptiveLimit(16)
    for _ in range(1000):
        limit.overloaded()

    bounds = []
    for _ in range(1 + 2 + 3):
        limit.succeeded()
        bounds.append(limit.bound)

    assert bounds == [2.0, 2.0, 3.0, 3.0, 3.0, 4.0]


def test_the_bound_grows_back_to_the_width_and_no_further():
    limit = AdaptiveLimit(8)
    for _ in range(1000):
        limit.overloaded()

    for _ in range(500):
        limit.succeeded()

    assert limit.bound == 8


def test_a_bound_that_grows_lets_waiters_in():
    async def work() -> None:
        limit, until = AdaptiveLimit(8), asyncio.Event()
        for _ in range(1000):
            limit.overloaded()
        tasks = [asyncio.create_task(hold(limit, until)) for _ in range(4)]
        await settle()
        assert limit.in_flight == 1

        for _ in range(3):
            limit.succeeded()
        await settle()

        assert limit.in_flight == 3
        until.set()
        await asyncio.gather(*tasks)

    run(work)


def test_who_comes_again_goes_before_those_who_come_first():
    async def work() -> None:
        limit, order = AdaptiveLimit(1), []
        await limit.enter()

        async def enter(name: str, *, is_again: bool) -> None:
            await limit.enter(is_again=is_again)
            order.append(name)
            limit.leave()

        tasks = [asyncio.create_task(enter(f"new {n}", is_again=False)) for n in range(3)]
        await settle()
        tasks.append(asyncio.create_task(enter("again", is_again=True)))
        await settle()
        limit.leave()
        await asyncio.gather(*tasks)

        assert order == ["again", "new 0", "new 1", "new 2"]
        assert limit.in_flight == 0

    run(work)


def test_there_is_room_only_while_nobody_waits():
    async def work() -> None:
        limit, until = AdaptiveLimit(2), asyncio.Event()
        assert limit.has_room
        tasks = [asyncio.create_task(hold(limit, until)) for _ in range(3)]
        await settle()
        assert not limit.has_room
        until.set()
        await asyncio.gather(*tasks)
        assert limit.has_room

    run(work)
