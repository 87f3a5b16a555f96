import threading

import pytest

from matrix_dspy.optimization.metering import BudgetSpent
from matrix_dspy.optimization.threads import map_threads, wait_for_workers


def test_results_keep_the_order_of_the_items() -> None:
    assert map_threads(lambda number: number * 2, list(range(50)), 8) == [number * 2 for number in range(50)]


def test_what_ends_one_item_ends_the_rest_that_waits() -> None:
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            raise BudgetSpent("no call is left")
        return number

    with pytest.raises(BudgetSpent):
        map_threads(work, list(range(10_000)), 1)

    assert len(begun) < 10_000


def test_only_workers_begun_since_are_waited_for() -> None:
    ended = threading.Event()
    before = set(threading.enumerate())
    worker = threading.Thread(target=ended.wait, name="ThreadPoolExecutor-test", args=(0.2,))
    worker.start()

    wait_for_workers(before)

    assert not worker.is_alive()
