import asyncio
import random
from dataclasses import dataclass, field

import pytest

from matrix_dspy.simulation.clock import VirtualTime

LOOKAHEADS = [0, 1, 3]


@dataclass
class ToyGroup:
    """A group that lives `energy` scenarios by itself and one more whenever it reads an event."""

    group_id: str
    lengths: list[int]
    """Rounds of each of its scenarios, over and over."""
    targets: list[tuple[str, ...]]
    """Who gets an event of each scenario, over and over."""
    energy: int
    mail: list[tuple[int, str]] = field(default_factory=list)
    n_closed: int = 0
    read: list[tuple[int, tuple[tuple[int, str], ...]]] = field(default_factory=list)
    """(boundary, events read there) for every boundary passed."""
    closed: list[int] = field(default_factory=list)


class ToySociety:
    """Groups that follow virtual time and wait at random wherever they could."""

    def __init__(self, groups: list[ToyGroup], lookahead: int, shuffle: int) -> None:
        self.groups = {group.group_id: group for group in groups}
        self.lookahead = lookahead
        self.time = VirtualTime(list(self.groups), lookahead)
        self.random = random.Random(shuffle)

    async def live(self, quota: int) -> bool:
        self.time.quota = quota
        self.time.is_quiet = False
        async with asyncio.TaskGroup() as tasks:
            for group in self.groups.values():
                tasks.create_task(self._run(group))
        return not self.time.is_quiet

    def take(self, quota: int) -> list[tuple[int, str]]:
        closings = sorted((round_, g.group_id) for g in self.groups.values() for round_ in g.closed)
        return closings[:quota]

    def history_up_to(self, last: tuple[int, str]) -> list[object]:
        """Everything read at boundaries that scenarios up to `last` began at."""
        return [
            (group.group_id, boundary, events)
            for group in self.groups.values()
            for boundary, events in group.read
            if events and (boundary + 1, group.group_id) <= last
        ]

    async def _wait(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 2, 5, 20))):
            await asyncio.sleep(0)

    async def _run(self, group: ToyGroup) -> None:
        clock = self.time.clocks[group.group_id]
        while await self.time.pass_boundary(group.group_id):
            due = sorted(item for item in group.mail if item[0] + self.lookahead <= clock.published)
            group.mail = [item for item in group.mail if item not in due]
            clock.due = min((closed + self.lookahead for closed, _ in group.mail), default=None)
            group.read.append((clock.published, tuple(due)))
            group.energy += len(due)
            if group.energy <= 0:
                clock.is_resting = True
                continue
            group.energy -= 1
            await self._live_scenario(group)

    async def _live_scenario(self, group: ToyGroup) -> None:
        clock = self.time.clocks[group.group_id]
        clock.length = group.lengths[group.n_closed % len(group.lengths)]
        for step in range(clock.length):
            await self._wait()
            round_ = clock.published + 1
            is_closing = step == clock.length - 1
            if is_closing:
                for target in group.targets[group.n_closed % len(group.targets)]:
                    self.groups[target].mail.append((round_, group.group_id))
                    self.time.deliver(target, round_ + self.lookahead)
                group.closed.append(round_)
                group.n_closed += 1
            self.time.publish(group.group_id, round_, is_closing=is_closing)


def draw_groups(seed: int) -> list[ToyGroup]:
    generator = random.Random(seed)
    group_ids = [f"g{number}" for number in range(generator.randint(1, 6))]
    return [
        ToyGroup(
            group_id,
            lengths=[generator.choice((1, 1, 1, 2, 3)) for _ in range(4)],
            targets=[
                tuple(other for other in group_ids if other != group_id and generator.random() < 0.15) for _ in range(5)
            ],
            energy=generator.choice((0, 1, 3, 8)),
        )
        for group_id in group_ids
    ]


def make_society(seed: int, lookahead: int, shuffle: int = 0) -> ToySociety:
    return ToySociety(draw_groups(seed), lookahead, shuffle)


def run(society: ToySociety, *quotas: int) -> bool:
    async def live() -> bool:
        is_alive = True
        for quota in quotas:
            is_alive = await asyncio.wait_for(society.live(quota), timeout=10)
        return is_alive

    return asyncio.run(live())


def simple_group(group_id: str, targets: tuple[str, ...] = (), energy: int = 5, length: int = 1) -> ToyGroup:
    return ToyGroup(group_id, [length], [targets], energy)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_an_event_is_read_at_the_first_boundary_lookahead_rounds_after_it_closed(lookahead: int):
    sender, receiver = simple_group("a", ("b",), energy=1), simple_group("b", energy=10)

    run(ToySociety([sender, receiver], lookahead, 0), 100)

    assert [boundary for boundary, events in receiver.read if events] == [1 + lookahead]


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_an_event_waits_for_the_boundary_when_it_comes_amid_a_scenario(lookahead: int):
    sender, receiver = simple_group("a", ("b",), energy=1), simple_group("b", energy=10, length=5)

    run(ToySociety([sender, receiver], lookahead, 0), 100)

    assert [boundary for boundary, events in receiver.read if events] == [5]


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_group_at_rest_is_woken_at_the_round_the_event_is_due(lookahead: int):
    sender, sleeper = simple_group("a", ("b",), energy=1), simple_group("b", energy=0)

    run(ToySociety([sender, sleeper], lookahead, 0), 100)

    assert [boundary for boundary, events in sleeper.read if events] == [1 + lookahead]
    assert sleeper.closed == [2 + lookahead]


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_no_event_is_ever_read_late_or_early_whatever_the_delays(lookahead: int):
    for seed in range(60):
        society = make_society(seed, lookahead, shuffle=seed)
        run(society, 60)

        for group in society.groups.values():
            boundaries = [boundary for boundary, _ in group.read]
            for boundary, events in group.read:
                for closed, _ in events:
                    assert closed + lookahead <= boundary
                    assert not any(closed + lookahead <= other < boundary for other in boundaries)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_no_event_is_left_unread_when_quiet_has_come(lookahead: int):
    for seed in range(60):
        society = make_society(seed, lookahead, shuffle=seed)

        if not run(society, 10**6):
            assert all(not group.mail for group in society.groups.values())


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_group_runs_ahead_of_the_slowest_by_the_lookahead_and_no_more(lookahead: int):
    slow, fast = simple_group("a", energy=30), simple_group("b", energy=30)
    society = ToySociety([slow, fast], lookahead, 0)
    society.time.quota = 1000

    async def live() -> list[int]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(society._run(fast))
            for round_ in (1, 2):
                assert await society.time.pass_boundary("a")
                society.time.publish("a", round_, is_closing=True)
            for _ in range(500):
                await asyncio.sleep(0)
            closed = list(fast.closed)
            society.time._stop()
        return closed

    assert asyncio.run(live()) == list(range(1, 2 + lookahead + 2))


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_hundreds_of_random_schedules_end_and_agree_with_each_other(lookahead: int):
    for seed in range(60):
        quota = random.Random(seed).choice((1, 2, 5, 9, 20, 40))
        societies = [make_society(seed, lookahead, shuffle) for shuffle in range(3)]

        ends = {run(society, quota) for society in societies}
        taken = [society.take(quota) for society in societies]

        assert len(ends) == 1
        assert taken[0] == taken[1] == taken[2]
        if taken[0]:
            histories = [society.history_up_to(taken[0][-1]) for society in societies]
            assert histories[0] == histories[1] == histories[2]


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_a_quota_is_met_by_the_first_by_round_and_group_of_the_unbounded_run(lookahead: int):
    for seed in range(40):
        unbounded, bounded = make_society(seed, lookahead), make_society(seed, lookahead, shuffle=seed + 1)
        run(unbounded, 50)
        run(bounded, 7)

        assert bounded.take(7) == unbounded.take(7)


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
def test_going_on_after_a_quota_equals_an_unbroken_run(lookahead: int):
    for seed in range(60):
        broken, whole = make_society(seed, lookahead, shuffle=seed + 1), make_society(seed, lookahead)

        is_alive = run(broken, 3, 4, 15)

        assert is_alive == run(whole, 15)
        assert broken.take(15) == whole.take(15)
        if len(whole.take(15)) == 15:
            assert broken.history_up_to(whole.take(15)[-1]) == whole.history_up_to(whole.take(15)[-1])


def test_going_on_does_not_take_a_first_group_at_rest_for_quiet():
    resting, lively = simple_group("a", energy=0), simple_group("b", ("a",), energy=20)
    society = ToySociety([resting, lively], 1, 0)

    is_alive = run(society, 2, 12)

    assert is_alive
    assert len(society.take(12)) == 12
    assert resting.closed


def test_a_society_with_nothing_to_do_falls_quiet():
    society = ToySociety([simple_group("a", energy=2), simple_group("b", energy=0)], 3, 0)

    is_alive = run(society, 10)

    assert not is_alive
    assert society.take(10) == [(1, "a"), (2, "a")]


def test_a_lone_group_waits_for_nobody():
    group = simple_group("a", energy=100, length=3)

    assert run(ToySociety([group], 0, 0), 4)
    assert group.closed[:4] == [3, 6, 9, 12]


def test_a_quota_of_nothing_is_met_at_once():
    group = simple_group("a")

    assert run(ToySociety([group], 3, 0), 0)
    assert group.closed == []


@pytest.mark.parametrize("shuffle", range(5))
def test_at_most_one_scenario_a_group_is_lived_beyond_the_quota(shuffle: int):
    groups = [simple_group(f"g{number:02d}", energy=100) for number in range(20)]
    society = ToySociety(groups, 3, shuffle)

    run(society, 30)

    assert sum(len(group.closed) for group in groups) <= 30 + 20
