"""An estimate of calls, tokens, money and time: numbers get ranges and reasons, and are told, kept and compared.

Where the numbers come from is `matrix_dspy.planning`'s business.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from matrix_dspy.bulk.progress import Tally
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.config import Config
from matrix_dspy.engine.rehearsal.engine import MODEL, Dials
from matrix_dspy.errors import RunError, boundary
from matrix_dspy.population import agents as population
from matrix_dspy.report.prices import Price
from matrix_dspy.simulation import communication as simulation
from matrix_dspy.synthesis import flow as synthesis
from matrix_dspy.text import hide_secrets

FILE = "estimate.json"

TOKENS_PER_SECOND = 40.0
"""Tokens a request is answered with in a second when nothing better is known; an assumption, stated as such."""
TOKENIZER_DOUBT = 0.15
"""Share by which a real tokenizer's count may differ from four characters a token."""
SHORT_ANSWERS, LONG_ANSWERS = 0.5, 2.5
"""How much less or more than the rehearsal a real model may write."""
ASKED_AGAIN = 0.15
"""Share of calls that a real model may have to be asked again."""
LOW_YIELD = 0.7
"""Share of candidates that may be left of a real model's where all of the rehearsal's are."""
CHAINS = {population.STAGE: 4, simulation.STAGE: 3, synthesis.STAGE: 2}
"""Calls that wait for one another: of a profile, of a round (action, routing, summary), of a row."""


@dataclass(slots=True)
class Load:
    """What one program was or will be asked."""

    calls: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    seconds: float = 0.0
    """Sum of the calls' own times."""

    def add(self, other: "Load", times: float = 1.0) -> None:
        """Add another load `times` over."""
        self.calls += times * other.calls
        self.prompt_tokens += times * other.prompt_tokens
        self.completion_tokens += times * other.completion_tokens
        self.seconds += times * other.seconds

    def scale(self, times: float) -> "Load":
        """Return the load `times` over."""
        scaled = Load()
        scaled.add(self, times)
        return scaled

    def multiply(self, times: float) -> None:
        """Make the load `times` as large."""
        self.add(self.scale(times - 1))


@dataclass(slots=True)
class Forecast:
    """The numbers of an estimate before they have ranges."""

    basis: str
    """What was measured."""
    is_real: bool
    """Whether a real model was measured, not a rehearsal."""
    loads: dict[tuple[str, str], Load] = field(default_factory=dict)
    """By stage and program."""
    noise: dict[str, float] = field(default_factory=dict)
    """Share by which chance may have moved a program's sample."""
    doubt: float = 0.0
    """Share by which everything may be off beside that."""
    n_expected: int = 0
    n_rounds: float = 1.0
    seconds_per_call: float = 0.0
    """What a rehearsed call took with all that is around it."""
    notes: list[str] = field(default_factory=list)


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
        return _add_up(self.stages)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of estimate beside actual."""

    what: str
    estimated: Range
    actual: float
    difference: float | None
    """Percent by which the expected value is above the actual one; None when the actual one is 0."""


def _add_up(stages: Sequence[StageEstimate]) -> StageEstimate:
    return StageEstimate(
        "total",
        Range.sum(stage.calls for stage in stages),
        Range.sum(stage.prompt_tokens for stage in stages),
        Range.sum(stage.completion_tokens for stage in stages),
    )


def is_rehearsal(lm: str) -> bool:
    """Whether what stands behind `--lm` is the rehearsal, whatever its dials."""
    return lm.partition("?")[0] == MODEL


def tell_estimate(
    forecast: Forecast,
    config: Config,
    command: str,
    *,
    price: Price | None,
    others: Mapping[str, Price | None] | None = None,
    tokens_per_second: float | None = None,
) -> Estimate:
    """Put ranges around a forecast, count money and time, and say what all of it rests on.

    `others` are the prices of programs that another model than `--lm` answers, None where that is not known.
    """
    stages = _build_stages(forecast, config)
    money, priced = _count_money(stages, config, price, others or {})
    seconds, timed = _count_seconds(forecast, config, tokens_per_second)
    return Estimate(
        command=command,
        model=hide_secrets(config.lm.main),
        n=config.n,
        n_expected=forecast.n_expected,
        stages=stages,
        seconds=seconds,
        money=money,
        currency="USD",
        basis=forecast.basis,
        assumptions=(*forecast.notes, _say_range(forecast, config), priced, timed),
    )


def _build_stages(forecast: Forecast, config: Config) -> tuple[StageEstimate, ...]:
    """Return a line for each program; one that two stages use has one line."""
    merged: dict[str, Load] = defaultdict(Load)
    stage_of: dict[str, str] = {}
    for (stage, program), load in forecast.loads.items():
        merged[program].add(load)
        stage_of[program] = stage
    return tuple(_build_stage(name, stage_of[name], load, forecast, config) for name, load in merged.items())


def _build_stage(program: str, stage: str, load: Load, forecast: Forecast, config: Config) -> StageEstimate:
    noise = forecast.doubt + forecast.noise.get(program, 0.0)
    counts = (load.calls, load.prompt_tokens, load.completion_tokens)
    if forecast.is_real or is_rehearsal(config.lm.main):
        return StageEstimate(program, *(Range.around(count, noise) for count in counts))
    most = (1 + noise + ASKED_AGAIN) / (LOW_YIELD if stage == synthesis.STAGE else 1.0)
    calls = Range.around(load.calls, noise, most - 1)
    prompt = Range.around(load.prompt_tokens, noise + TOKENIZER_DOUBT, most * (1 + TOKENIZER_DOUBT) - 1)
    written = load.completion_tokens
    longest = min(LONG_ANSWERS * written * most, config.sampling_of(program).max_tokens * calls.high)
    return StageEstimate(program, calls, prompt, Range(SHORT_ANSWERS * written, written, max(written, longest)))


def _count_money(
    stages: Sequence[StageEstimate], config: Config, price: Price | None, others: Mapping[str, Price | None]
) -> tuple[Range | None, str]:
    """Return what the tokens cost, and where the price is from."""
    own = Price(0.0, 0.0) if price is None and is_rehearsal(config.lm.main) else price
    if price is None and own is not None and all(each == own for each in others.values()):
        return Range(0.0, 0.0, 0.0), "A rehearsal costs nothing."
    prices = {stage.program: others.get(stage.program, own) for stage in stages}
    if any(found is None for found in prices.values()):
        lm = next((spec for spec in (config.lm.main, *config.lm.parts.values()) if not is_rehearsal(spec)), "")
        return None, f"No price is known for {hide_secrets(lm)!r}; give --price-in and --price-out."
    ends = ("low", "expected", "high")
    amounts = (
        sum(
            found.cost(getattr(stage.prompt_tokens, end), getattr(stage.completion_tokens, end))
            for stage in stages
            if (found := prices[stage.program]) is not None
        )
        for end in ends
    )
    money = Range(*amounts)
    if price is None:
        return money, "Prices are those of each model."
    said = f"Price: {price.prompt:g} in and {price.completion:g} out a million tokens ({price.source})"
    cached = f"; prompt tokens found in a cache would cost {price.cached:g}" if price.cached is not None else ""
    models = ", other models by their own prices" if others else ""
    return money, f"{said}{cached}{models}."


def _count_seconds(forecast: Forecast, config: Config, tokens_per_second: float | None) -> tuple[Range, str]:
    """Return the time of the whole run, and what it rests on."""
    if is_rehearsal(config.lm.main):
        return _count_own_seconds(forecast, config)
    at_once = f"{config.operation.concurrency} requests at a time"
    if forecast.is_real and not tokens_per_second:
        expected = _spread(forecast, config, lambda load: load.seconds)
        return Range.around(expected, 0.3, 0.5), f"Time: seconds a call as in the measured run, {at_once}."
    speed = tokens_per_second or TOKENS_PER_SECOND
    expected = _spread(forecast, config, lambda load: load.completion_tokens / speed)
    source = "as given" if tokens_per_second else "an assumption"
    said = f"Time: {speed:g} tokens a second and request ({source}), {at_once}; reading prompts is not counted."
    return Range(SHORT_ANSWERS * expected, expected, LONG_ANSWERS * expected), said


def _count_own_seconds(forecast: Forecast, config: Config) -> tuple[Range, str]:
    """Return the time of a rehearsal: what this machine takes for it, or its latency where that is more."""
    dials = Dials.from_spec(config.lm.main)
    latency = dials.latency * (1 + 9 * dials.tail) * (1 + dials.error + dials.rate)
    waiting = _spread(forecast, config, lambda load: load.calls * latency)
    working = sum(load.calls for load in forecast.loads.values()) * forecast.seconds_per_call
    said = f"Time: {1000 * forecast.seconds_per_call:.1f} ms a call on this machine, as the sample took."
    return Range.around(max(waiting, working), 0.6, 1.0), said


def _spread(forecast: Forecast, config: Config, time_of: Callable[[Load], float]) -> float:
    """Spread each stage's work over the calls in flight, but not below its longest chain of calls."""
    work: dict[str, float] = defaultdict(float)
    n_calls: dict[str, float] = defaultdict(float)
    for (stage, _), load in forecast.loads.items():
        work[stage] += time_of(load)
        n_calls[stage] += load.calls
    total = 0.0
    for stage, seconds in work.items():
        n_links = CHAINS.get(stage, 1) * (forecast.n_rounds if stage == simulation.STAGE else 1)
        total += max(seconds / config.operation.concurrency, n_links * seconds / max(1.0, n_calls[stage]))
    return total


def _say_range(forecast: Forecast, config: Config) -> str:
    if is_rehearsal(config.lm.main):
        return "The range is the sample's own noise and what scaling was measured to miss."
    if forecast.is_real:
        return "The range is the measured run's noise; another model or another need is not in it."
    return (
        f"Range: a rehearsal played the model; a real one may be asked again ({ASKED_AGAIN:.0%} of calls), keep fewer "
        f"candidates (down to {LOW_YIELD:.0%}), count prompts {TOKENIZER_DOUBT:.0%} otherwise, and write "
        f"{SHORT_ANSWERS:g} to {LONG_ANSWERS:g} times as much, up to each program's max_tokens."
    )


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
