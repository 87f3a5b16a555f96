"""An estimate of calls, tokens, money and time as a reader sees it: typed, in lines, in JSON, beside what it became.

How one is made is `matrix_dspy.planning`'s business.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from matrix_dspy.bulk.progress import Tally
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import RunError, boundary

FILE = "estimate.json"


@dataclass(frozen=True, slots=True)
class Range:
    """A number that is not known yet."""

    low: float
    expected: float
    high: float

    @classmethod
    def around(cls, expected: float, below: float, above: float | None = None) -> Self:
        """Return `expected` with shares of doubt to both sides; `above` is as large as `below` unless given."""
        return cls(expected * max(0.0, 1 - below), expected, expected * (1 + (below if above is None else above)))

    @classmethod
    def sum(cls, ranges: Iterable["Range"]) -> Self:
        """Add up ranges whose errors may well have the same sign."""
        parts = list(ranges)
        return cls(*(sum(getattr(part, name) for part in parts) for name in ("low", "expected", "high")))

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class StageEstimate:
    """What one program will be asked."""

    program: str
    calls: Range
    prompt_tokens: Range
    completion_tokens: Range


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take, before it is started."""

    command: str
    model: str
    n: int
    """Rows wanted, or scenarios of a simulation."""
    n_expected: int
    """Rows the run is expected to end with; fewer than `n` when the society falls quiet before."""
    stages: tuple[StageEstimate, ...]
    seconds: Range
    money: Range | None
    """None when no price is known."""
    currency: str
    basis: str
    """What was measured to make it."""
    assumptions: tuple[str, ...]
    """Sentences a reader should know before relying on it."""

    @property
    def total(self) -> StageEstimate:
        """All programs together."""
        return StageEstimate(
            "total",
            Range.sum(stage.calls for stage in self.stages),
            Range.sum(stage.prompt_tokens for stage in self.stages),
            Range.sum(stage.completion_tokens for stage in self.stages),
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of estimate beside actual."""

    what: str
    estimated: Range
    actual: float
    difference: float | None
    """Percent by which the expected value is above the actual one; None when the actual one is 0."""


def describe_estimate(estimate: Estimate) -> list[str]:
    """Return the lines a terminal shows."""
    unit = "rows" if estimate.command == "generate" else "scenarios"
    lines = [f"{estimate.command}, {estimate.n:,} {unit}, model {estimate.model}: an estimate", ""]
    lines += [f"{'program':20}{'calls':>10}{'tokens in':>15}{'tokens out':>15}"]
    lines += [_describe_stage(stage) for stage in (*estimate.stages, estimate.total)]
    total = estimate.total
    lines += ["", f"{'':12}{'expected':>12}   low to high"]
    lines += [_describe_range("calls", total.calls, _say_count)]
    lines += [_describe_range("tokens in", total.prompt_tokens, _say_count)]
    lines += [_describe_range("tokens out", total.completion_tokens, _say_count)]
    lines += [_describe_range("time", estimate.seconds, say_seconds), _describe_money(estimate), ""]
    lines += [f"made from {estimate.basis}", *(f"- {sentence}" for sentence in estimate.assumptions)]
    return lines


def compare_estimate(
    estimate: Estimate, by_program: Mapping[str, Tally], seconds: float, money: float | None = None
) -> list[Comparison]:
    """Set an estimate beside what the run became: totals, time and money, then the calls of each program."""
    tallies, total = by_program.values(), estimate.total
    rows = [
        _compare("calls", total.calls, sum(tally.calls for tally in tallies)),
        _compare("prompt tokens", total.prompt_tokens, sum(tally.prompt_tokens for tally in tallies)),
        _compare("completion tokens", total.completion_tokens, sum(tally.completion_tokens for tally in tallies)),
        _compare("seconds", estimate.seconds, seconds),
    ]
    if estimate.money is not None and money is not None:
        rows.append(_compare(estimate.currency, estimate.money, money))
    planned = {stage.program: stage.calls for stage in estimate.stages}
    for program in dict.fromkeys((*planned, *by_program)):
        n_calls = by_program[program].calls if program in by_program else 0
        rows.append(_compare(f"calls of {program}", planned.get(program, Range(0, 0, 0)), n_calls))
    return rows


def to_json(estimate: Estimate) -> str:
    """Return an estimate as JSON that `from_json` reads back."""
    return _ADAPTER.dump_json(estimate, indent=2).decode() + "\n"


def from_json(text: str | bytes) -> Estimate:
    """Read an estimate back.

    Raises:
        RunError: the text is not an estimate.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise RunError(f"not an estimate: {fault['msg'].lower()}; make it again") from error


def write_estimate(estimate: Estimate, folder: Path) -> Path:
    """Write `estimate.json` into a run folder and return where it is."""
    write_text(to_json(estimate), folder / FILE)
    return folder / FILE


def read_estimate(folder: Path) -> Estimate | None:
    """Read the estimate of a run folder; None where none was made.

    Raises:
        RunError: the file cannot be read, or is not an estimate.
    """
    if not (folder / FILE).is_file():
        return None
    with boundary(RunError, f"read the estimate in {str(folder)!r}"):
        return from_json((folder / FILE).read_bytes())


def say_seconds(seconds: float) -> str:
    """Put a time into words no finer than an estimate is."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s" if seconds else "0 s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _describe_stage(stage: StageEstimate) -> str:
    counts = (stage.calls.expected, stage.prompt_tokens.expected, stage.completion_tokens.expected)
    calls, prompt, completion = (_say_count(count) for count in counts)
    return f"{stage.program:20}{calls:>10}{prompt:>15}{completion:>15}"


def _describe_range(what: str, values: Range, say: Callable[[float], str]) -> str:
    return f"{what:12}{say(values.expected):>12}   {say(values.low)} to {say(values.high)}"


def _describe_money(estimate: Estimate) -> str:
    if estimate.money is None:
        return f"{'money':12}{'unknown':>12}   give --price-in and --price-out, in {estimate.currency} a million tokens"
    return _describe_range("money", estimate.money, lambda amount: f"{amount:,.2f} {estimate.currency}")


def _say_count(count: float) -> str:
    """Round to three digits: more would claim more than an estimate knows."""
    digits = len(str(round(count)))
    return f"{round(count, min(0, 3 - digits)):,.0f}"


def _compare(what: str, estimated: Range, actual: float) -> Comparison:
    difference = 100 * (estimated.expected - actual) / actual if actual else None
    return Comparison(what, estimated, actual, difference)


_ADAPTER = TypeAdapter(Estimate)
