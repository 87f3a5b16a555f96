"""How a training in another process is stopped: by Ctrl-C, by a request to end, by the death of who started it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

_LOOK_EVERY_S = 0.5


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C and a request to end (SIGTERM) break off a wait for another process, as KeyboardInterrupt.

    The handlers of others would not: the event loop's looks afterwards only, and with that of polars a read that has
    begun goes on. Only the main thread is told of signals; in any other this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, _interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def say_aloud(words: str) -> None:
    """Write a line to standard output at once; a reader that is gone is no reason to stop: a step is to be saved."""
    with suppress(OSError):
        sys.stdout.write(f"{words}\n")
        sys.stdout.flush()


def end_with(*starters: int) -> None:
    """Have this process asked to end (SIGTERM), once, when one of the processes that started it is gone."""
    threading.Thread(target=_look_after, args=(starters,), daemon=True).start()


def _look_after(starters: Sequence[int]) -> None:
    # Linux could do it, but would ask once for every thread of the parent's, and the second request stops at once
    parent = os.getppid()
    while all(os.getppid() == pid if pid == parent else _is_there(pid) for pid in starters):
        time.sleep(_LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
