"""Pauses every call while a server is gone, and lets them go on when it is back.

A connection that fails now and then is the retries' business. When several fail in a row and nothing is answered in
between, the server counts as gone: nothing is sent any more but one probe at a time, and one plain line says so.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

log = logging.getLogger("matrix_dspy")

LOST_IN_A_ROW = 3
"""Connections lost without an answer in between that make a server gone."""
FIRST_PROBE_S, LONGEST_PROBE_S = 0.1, 5.0
"""Wait before the second probe (the first comes at once) and the longest between two."""


class Circuit:
    """Open while the server is gone; `probe` says whether it is back."""

    def __init__(self, probe: Callable[[], Awaitable[bool]], patience_s: float) -> None:
        self.patience_s = patience_s
        self.n_pauses = 0
        self.given_up: str | None = None
        """Why the last pause ended without the server."""
        self._probe = probe
        self._n_lost = 0
        self._watch: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._watch is not None

    def answered(self) -> None:
        """Note that the server answered, whatever it said."""
        self._n_lost = 0

    def lost(self, words: str) -> None:
        """Note a connection that failed; `words` name the server and the failure."""
        self._n_lost += 1
        if self._n_lost >= LOST_IN_A_ROW and self._watch is None:
            self.given_up = None
            self._closed.clear()
            self._watch = asyncio.create_task(self._wait_for_server(words))

    async def wait(self) -> str | None:
        """Return when calls may go out again; the reason when patience ended while this call was held back."""
        if self._watch is None:
            return None
        await self._closed.wait()
        return self.given_up

    def stop(self) -> None:
        """Stop probing."""
        if self._watch is not None:
            self._watch.cancel()

    async def _wait_for_server(self, words: str) -> None:
        began, pause = time.monotonic(), 0.0
        is_said = False
        try:
            while not await self._probe():
                if not is_said:
                    self.n_pauses += 1
                    log.warning("%s; paused until it is back, nothing is lost", words)
                    is_said = True
                if (left := self.patience_s - (time.monotonic() - began)) <= 0:
                    self.given_up = f"{words} for {self.patience_s:g} s"
                    return
                pause = min(LONGEST_PROBE_S, max(FIRST_PROBE_S, 2 * pause))
                await asyncio.sleep(min(pause, left))
            if is_said:
                log.warning("the server is back after %.0f s; going on", time.monotonic() - began)
        finally:
            self._n_lost = 0
            self._watch = None
            self._closed.set()
