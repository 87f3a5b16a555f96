"""How far a run is: counters anybody can read, shown live on a terminal and as plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from matrix_dspy.bulk.budget import Price
from matrix_dspy.engine.base import Completion

log = logging.getLogger("matrix_dspy")

PLAIN_INTERVAL_S = 5.0


@dataclass(slots=True)
class Tally:
    """What one program has been asked so far."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    """Sum of the calls' own times."""
    cost: float = 0.0
    """Dollars, as far as prices are known."""


@dataclass(slots=True)
class Progress:
    """Counters of one run; times are those of this process."""

    stage: str = ""
    kept: int = 0
    wanted: int = 0
    unit: str = "rows"
    rejected: int = 0
    n_calls: int = 0
    """Calls answered by the engine."""
    n_replayed: int = 0
    """Calls answered from the journal."""
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that servers found in their prefix caches, as far as they say so."""
    by_program: dict[str, Tally] = field(default_factory=dict)
    """Answered and replayed calls by program, those asked again included."""
    started: float = field(default_factory=time.monotonic)
    stage_started: float = field(default_factory=time.monotonic)
    on_stage: Callable[[str], None] | None = None

    def enter(self, stage: str, wanted: int, unit: str) -> None:
        """Begin a stage that wants `wanted` units."""
        self.stage, self.wanted, self.unit, self.kept = stage, wanted, unit, 0
        self.stage_started = time.monotonic()
        if self.on_stage is not None:
            self.on_stage(stage)

    def answered(self, program: str, completion: Completion, price: Price | None = None) -> None:
        """Note a call the engine answered."""
        self.n_calls += 1
        self._add(program, completion, price)

    def replayed(self, program: str, completion: Completion, price: Price | None = None) -> None:
        """Note a call the journal answered."""
        self.n_replayed += 1
        self._add(program, completion, price)

    def _add(self, program: str, completion: Completion, price: Price | None) -> None:
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        self.cached_tokens += completion.cached_tokens
        tally = self.by_program.get(program)
        if tally is None:
            tally = self.by_program[program] = Tally()
        tally.calls += 1
        tally.prompt_tokens += completion.prompt_tokens
        tally.completion_tokens += completion.completion_tokens
        tally.cached_tokens += completion.cached_tokens
        tally.seconds += completion.seconds
        if price is not None:
            tally.cost += price.cost(completion.prompt_tokens, completion.completion_tokens)

    def line(self) -> str:
        """Return the state as one plain line."""
        elapsed = max(1e-9, time.monotonic() - self.stage_started)
        rate = self.kept / elapsed
        eta = f", {_say_seconds((self.wanted - self.kept) / rate)} left" if rate > 0 and self.wanted > self.kept else ""
        replayed = f" + {self.n_replayed:,} replayed" if self.n_replayed else ""
        return (
            f"{self.stage}: {self.kept:,}/{self.wanted:,} {self.unit} ({rate:.1f}/s{eta}), {self.rejected:,} rejected, "
            f"{self.n_calls:,} calls{replayed}, {self.in_flight} in flight, "
            f"tokens {self.prompt_tokens:,} in {self.completion_tokens:,} out"
        )

    def figures(self) -> dict[str, Any]:
        """Return the state as numbers."""
        return {
            "stage": self.stage,
            "kept": self.kept,
            "wanted": self.wanted,
            "unit": self.unit,
            "rejected": self.rejected,
            "calls": self.n_calls,
            "replayed": self.n_replayed,
            "in_flight": self.in_flight,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "seconds": round(time.monotonic() - self.started, 2),
        }


class JsonFormatter(logging.Formatter):
    """One JSON object a line: when, how grave, what, and a record's own figures."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        return orjson.dumps(line | getattr(record, "figures", {}), default=str).decode()


def set_up_log(*, is_json: bool = False) -> None:
    """Send the library's messages to standard error, as plain lines or as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if is_json else logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


@contextmanager
def show_progress(progress: Progress, *, is_quiet: bool = False) -> Iterator[None]:
    """Show `progress` on standard error while the block runs: live on a terminal, else as lines of the log."""
    is_json = any(isinstance(handler.formatter, JsonFormatter) for handler in log.handlers)
    if is_quiet:
        yield
    elif sys.stderr.isatty() and not is_json:
        with _show_live(progress):
            yield
    else:
        with _show_lines(progress):
            yield


@contextmanager
def _show_live(progress: Progress) -> Iterator[None]:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(
        console=Console(stderr=True),
        refresh_per_second=4,
        transient=True,
        get_renderable=lambda: Text(progress.line(), overflow="fold"),
    ):
        yield
    _print(progress.line())


@contextmanager
def _show_lines(progress: Progress) -> Iterator[None]:
    import threading

    done = threading.Event()

    def print_lines() -> None:
        while not done.wait(PLAIN_INTERVAL_S):
            _log(progress)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        _log(progress)


def _log(progress: Progress) -> None:
    if log.handlers:
        log.info(progress.line(), extra={"figures": progress.figures()})
    else:
        _print(progress.line())


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _say_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
