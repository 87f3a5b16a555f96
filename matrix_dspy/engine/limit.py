"""An adaptive bound on how many calls are in flight: additive increase, multiplicative decrease.

The bound starts at the width the user asked for. It falls when overload answers (429, 503, timeouts) come in a burst,
at most once per window of answers, and grows back by one each time as many answers as the bound have come in.
Single errors sprinkled among successes do not move it: they are the retries' business.
"""

import asyncio
from collections import deque
from types import TracebackType

DECREASE = 0.7
"""Factor on the bound at an overload; between TCP's 0.5 and CUBIC's 0.7."""
BURST_SHARE = 0.25
"""Share of overload answers among the last ones that counts as a burst."""


class AdaptiveLimit:
    """An async context manager that lets at most `bound` holders in, first come first served."""

    def __init__(self, maximum: int) -> None:
        if maximum < 1:
            raise ValueError(f"concurrency must be at least 1, not {maximum}")
        self.maximum = maximum
        self.bound = float(maximum)
        self.in_flight = 0
        self.peak = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._recent: deque[bool] = deque(maxlen=max(8, min(64, maximum)))
        self._since_change = 0

    @property
    def has_room(self) -> bool:
        """Whether another holder would be let in at once."""
        return self.in_flight < int(self.bound) and not self._waiting

    async def enter(self, *, is_again: bool = False) -> None:
        """Wait for a place; who comes again goes before those who come first."""
        if self.has_room:
            self._enter()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if is_again:
            self._waiting.appendleft(turn)
        else:
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give a place back."""
        self.in_flight -= 1
        self._admit()

    async def __aenter__(self) -> None:
        await self.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def succeeded(self) -> None:
        """Note an answer that was no overload."""
        self._note(False)
        if self.bound < self.maximum and self._since_change >= int(self.bound):
            self.bound = min(float(self.maximum), self.bound + 1)
            self._since_change = 0
            self._admit()

    def overloaded(self) -> None:
        """Note a 429, 503 or timeout; lower the bound when they come in a burst."""
        self._note(True)
        full = len(self._recent) == self._recent.maxlen
        if full and self._since_change >= len(self._recent) // 2 and self._share() >= BURST_SHARE:
            self.bound = max(1.0, self.bound * DECREASE)
            self._since_change = 0
            self._recent.clear()

    def _note(self, is_overload: bool) -> None:
        self._recent.append(is_overload)
        self._since_change += 1

    def _share(self) -> float:
        return sum(self._recent) / len(self._recent)

    def _enter(self) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def _admit(self) -> None:
        while self._waiting and self.in_flight < int(self.bound):
            turn = self._waiting.popleft()
            if not turn.done():
                self._enter()
                turn.set_result(None)
