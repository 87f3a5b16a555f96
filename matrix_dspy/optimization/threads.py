"""Threads of a compile run: a plain map over rows, quiet around what optimizers print, an end to what they leave."""

import contextlib
import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

WORKERS_END_S = 300.0
"""Seconds to wait for an optimizer's workers; each ends with the call it is in."""


def map_threads(work: Callable[[Any], Any], items: Sequence[Any], n_threads: int) -> list[Any]:
    """Run `work` on all items in threads that see the caller's context; the first BaseException ends it."""
    with ThreadPoolExecutor(n_threads) as threads:
        futures = [threads.submit(contextvars.copy_context().run, work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


@contextlib.contextmanager
def quiet(path: Path) -> Iterator[None]:
    """Send what DSPy's optimizers print, draw and log to a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    loggers = [logging.getLogger(name) for name in ("dspy", "gepa", "optuna")]
    before = [(each.handlers[:], each.propagate) for each in loggers]
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for each in loggers:
            each.handlers, each.propagate = [handler], False
        try:
            yield
        finally:
            for each, (handlers, propagate) in zip(loggers, before, strict=True):
                each.handlers, each.propagate = handlers, propagate
            handler.close()


def wait_for_workers(before: set[threading.Thread]) -> None:
    """Wait until threads an optimizer left behind have given up: they would take calls kept for measuring."""
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(timeout=WORKERS_END_S)
