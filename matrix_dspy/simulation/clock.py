"""Virtual time: which group may go on, decided by rounds and never by seconds (DESIGN 8).

Each group has its own clock, the last round whose closings it has published. An event of a scenario closed at round c
is read by another group at its first boundary at or after c + lookahead, so a group may pass the boundary at round r
as soon as every other group has published all closings up to r - lookahead. A group at rest holds nobody up: it can
only be woken by an event, and then publishes nothing earlier than it would read that event.
"""

import asyncio
import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field


@dataclass(slots=True)
class GroupClock:
    """Where one group stands."""

    group_id: str
    published: int = 0
    """Closings up to this round are known to all."""
    is_resting: bool = False
    is_acting: bool = False
    """In the middle of a scenario."""
    due: int | None = None
    """Round at which the earliest waiting event from outside can be read."""
    length: int = 1
    """Rounds a scenario of the group takes, as far as known."""
    n_done: int = 0
    """Rounds of the scenario under way that are over."""
    waiting: asyncio.Future[bool] | None = field(default=None, repr=False)

    @property
    def floor(self) -> float:
        """Closings up to this round are certain to be published."""
        if not self.is_resting:
            return self.published
        return math.inf if self.due is None else self.due

    @property
    def boundary(self) -> float:
        """Round of the boundary the group stands at, or would wake at."""
        return self.floor

    @property
    def expected_close(self) -> float:
        """Round at which the scenario under way, or the next one, is expected to close."""
        return self.boundary + max(1, self.length - self.n_done)


class VirtualTime:
    """Lets groups pass their boundaries in an order that depends on rounds alone, until a quota is certain."""

    def __init__(self, group_ids: list[str], lookahead: int) -> None:
        self.clocks = {group_id: GroupClock(group_id) for group_id in sorted(group_ids)}
        self.lookahead = lookahead
        self.quota = 0
        self.closings: list[tuple[int, str]] = []
        """(round, group id) of every scenario published so far, in order."""
        self.is_quiet = False

    @property
    def has_quota(self) -> bool:
        """Whether the first `quota` scenarios by (round, group id) are certain."""
        if len(self.closings) < self.quota:
            return False
        return self.quota == 0 or min(c.floor for c in self.clocks.values()) >= self.closings[self.quota - 1][0]

    async def pass_boundary(self, group_id: str) -> bool:
        """Wait until the group may read its mail and begin its next scenario; False when the simulation stands still.

        A group at rest waits here for an event; `clocks[group_id].boundary` is the round it then wakes at.
        """
        clock = self.clocks[group_id]
        clock.is_acting = False
        clock.n_done = 0
        waiting = clock.waiting = asyncio.get_running_loop().create_future()
        self.advance()
        return await waiting

    def publish(self, group_id: str, round_: int, *, is_closing: bool) -> None:
        """Make known that the group has finished a round, with a scenario closing at its end or not."""
        clock = self.clocks[group_id]
        clock.published = round_
        clock.n_done += 1
        if is_closing:
            insort(self.closings, (round_, group_id))
        self.advance()

    def deliver(self, group_id: str, due: int) -> None:
        """Note that an event waits for a group, to be read at its first boundary at or after `due`."""
        clock = self.clocks[group_id]
        clock.due = due if clock.due is None else min(clock.due, due)

    def advance(self) -> None:
        """Let every group go on that may; when none ever can, let all stop."""
        if self.has_quota:
            self._stop()
            return
        ready = self._list_ready()
        for clock in ready:
            if not self._is_surplus(clock):
                self._let_go(clock)
        if any(clock.is_acting or clock.waiting is None for clock in self.clocks.values()):
            return
        if ready:  # what was held back as surplus turns out to be needed
            self._let_go(min(ready, key=lambda clock: (clock.expected_close, clock.group_id)))
        else:
            self.is_quiet = True
            self._stop()

    def _list_ready(self) -> list[GroupClock]:
        """Return the waiting groups that time would let pass."""
        floors = sorted((clock.floor, clock.group_id) for clock in self.clocks.values())
        ready: list[GroupClock] = []
        for clock in self.clocks.values():
            if clock.waiting is None or clock.waiting.done() or (clock.is_resting and clock.due is None):
                continue
            others = floors[1:] if floors[0][1] == clock.group_id else floors
            lowest = others[0][0] if others else math.inf
            if lowest >= clock.boundary - self.lookahead:
                ready.append(clock)
        return ready

    def _let_go(self, clock: GroupClock) -> None:
        if clock.is_resting:
            assert clock.due is not None
            clock.published = max(clock.published, clock.due)
            clock.is_resting = False
        clock.is_acting = True
        assert clock.waiting is not None
        clock.waiting.set_result(True)

    def _stop(self) -> None:
        for clock in self.clocks.values():
            if clock.waiting is not None and not clock.waiting.done():
                clock.waiting.set_result(False)
            clock.waiting = None  # when all go on later, nobody counts as waiting before it came back

    def _is_surplus(self, clock: GroupClock) -> bool:
        """Whether the group's next scenario is expected to come after the quota is full.

        Only saves calls: the expected first group always goes, and the rest go on if fewer close than expected.
        """
        n_busy = len(self.closings) + len(self.clocks)
        if n_busy < self.quota:
            return False
        mine = (clock.expected_close, clock.group_id)
        before = bisect_left(self.closings, mine)
        for other in self.clocks.values():
            theirs = (other.expected_close, other.group_id)
            if other is not clock and theirs < mine:
                before += 1 + int((mine[0] - 1 - theirs[0]) // other.length)
        return before >= self.quota
