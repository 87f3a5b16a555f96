"""What a run will take before it is started: calls, tokens, money and time, each as a range.

A small rehearsal of the same recipe is run in a temporary folder, or a finished run of the user's is read. Either is
measured by program and scaled by what drives each program: profiles, agents and groups by the round, or rows.
"""

import math
import random
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from matrix_dspy import pipeline
from matrix_dspy.bulk.folder import read_config, read_run, read_run_table
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, OperationConfig
from matrix_dspy.engine.embedding import Embedder, build_embedder
from matrix_dspy.engine.rehearsal.engine import Dials, count_prompt_tokens
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import MatrixError, RunError, boundary
from matrix_dspy.loading import load_program
from matrix_dspy.population import agents as population
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.report.estimate import Estimate, Range, StageEstimate, describe_estimate
from matrix_dspy.report.prices import Price
from matrix_dspy.simulation import communication as simulation
from matrix_dspy.simulation.grouping import count_groups
from matrix_dspy.simulation.society import form_groups
from matrix_dspy.synthesis import flow as synthesis
from matrix_dspy.types import Profile

Command = Literal["generate", "simulate"]

SAMPLE_CALLS = 4000
"""Calls a rehearsed sample is made for: 5 s on 2 cores."""
LEAST_AGENTS = 40
"""Agents below which a sample is not cut, so that there are groups to send news to; rounds are cut instead."""
TOKENS_PER_SECOND = 40.0
"""Tokens a request is answered with in a second when nothing better is known; an assumption, stated as such."""

CALLS_A_TURN = {"structured": 3.6, "random": 1.4, "none": 1.3}
"""Calls per agent and round, summaries, plans and folded memories included; only the sample's size hangs on it."""
STEADY_SHARE = 0.4
"""Share of a sample's rounds, the last ones, in which a turn costs what it will go on costing."""
LEAST_ROUNDS = 16
"""Rounds a sample has at least where the run has them: by then memories have been folded."""
CENSUS = 1000
"""Profiles up to which all of them are made agents and grouped in rehearsal: 4 s on 2 cores."""

MODEL_DOUBT = 0.04
"""Share by which a program's calls and tokens, scaled from a sample, may be off beside the sample's own noise."""
TAIL_DOUBT, GROUPS_DOUBT = 0.3, 0.5
"""Rounds that groups may be ahead when the quota is full, and that groups of other sizes would need more or less."""
TOKENIZER_DOUBT = 0.15
SHORT_ANSWERS, LONG_ANSWERS = 0.5, 2.5
"""How much less or more than the rehearsal a real model may write."""
ASKED_AGAIN = 0.15
"""Share of calls that a real model may have to be asked again."""
LOW_YIELD = 0.7
"""Share of candidates that a real model's filters may leave where the rehearsal's leave all."""
DUPLICATES = ("exact duplicate", "near duplicate")


@dataclass(frozen=True, slots=True)
class Call:
    """One journaled completion."""

    stage: str
    id: str
    program: str
    round: int
    is_again: bool
    prompt_tokens: int
    completion_tokens: int
    seconds: float


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


@dataclass(frozen=True, slots=True)
class Size:
    """What drives a run's calls."""

    n: int
    n_profiles: int
    n_agents: int
    n_groups: int


@dataclass(frozen=True, slots=True)
class Census:
    """Everybody, rehearsed up to the point where the simulation would begin."""

    n_profiles: int
    n_agents: int
    group_sizes: Sequence[int]
    loads: dict[str, Load]
    """By program."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A finished run, as an estimate reads it."""

    command: Command
    config: Config
    model: str
    size: Size
    group_sizes: Sequence[int]
    calls: Sequence[Call]
    n_kept: int
    n_scenarios: int
    last_closed: int
    """Round at which the last of the scenarios closed."""
    n_candidates: int
    """Candidates the scenarios held, asked or not."""
    n_duplicates: int
    is_quiet: bool
    """Whether it ended because nobody had anything left to do."""
    seconds: float = 0.0
    """Wall time where this process has run it."""


@dataclass(slots=True)
class Plan:
    """A run as scaled from a measured one."""

    size: Size
    group_sizes: Sequence[int]
    """Those of a part of the groups, where not all are known."""
    loads: dict[tuple[str, str], Load] = field(default_factory=dict)
    """By stage and program."""
    rounds: float = 0.0
    n_expected: int = 0
    is_whole: bool = False
    """Whether the measured run was the planned one itself."""
    doubt: float = 0.0
    """Share by which everything may be off beside the noise of single programs."""
    notes: list[str] = field(default_factory=list)


async def estimate_run(
    config: Config,
    command: Command = "generate",
    *,
    tokens_per_second: float | None = None,
    from_run: Path | None = None,
) -> Estimate:
    """Estimate what a run of `config` takes.

    Without `from_run` a sample is rehearsed in a temporary folder, which is gone afterwards; with it, the journal of
    that finished run says what a call takes. Money follows from `operation.price_in` and `price_out`, else from
    LiteLLM's price map.

    Raises:
        RunError: `from_run` holds no finished run of the same command.
        ConfigError, TableError: what the run itself would be refused for.
    """
    profiles = _draw_profiles(config, config.population.n_agents)
    if from_run is not None:
        measured, census = _read_other(from_run, command), None
    else:
        sample = shrink_config(config, command, len(profiles))
        is_of_all = sample.population.n_agents >= len(profiles)
        census = None if is_of_all else await _take_census(config, len(profiles))
        measured = await _rehearse(sample, command)
    plan = scale_run(measured, config, len(profiles), census)
    return _Teller(config, command, measured, plan, pipeline.choose_price(config), tokens_per_second, from_run).tell()


async def plan_lines(
    config: Config,
    command: Command = "generate",
    *,
    tokens_per_second: float | None = None,
    from_run: Path | None = None,
) -> list[str]:
    """Return the lines of an estimate as the command line shows them."""
    made = await estimate_run(config, command, tokens_per_second=tokens_per_second, from_run=from_run)
    return describe_estimate(made)


# --- a sample -----------------------------------------------------------------------------------------------------


async def _rehearse(sample: Config, command: Command) -> Measured:
    """Run a sample with the rehearsal and measure it; nothing of it stays on disk."""
    run = pipeline.generate if command == "generate" else pipeline.simulate
    with tempfile.TemporaryDirectory(prefix="matrix-dspy-estimate-") as folder:
        path = Path(folder) / "run"
        started = time.monotonic()
        await run(sample, path, progress=Progress(), is_quiet=True)
        return measure_run(path, seconds=time.monotonic() - started)


async def _take_census(config: Config, n_profiles: int) -> Census:
    """Rehearse the making of agents and groups, in memory: it says how many agents there are and in what groups."""
    profiles = _draw_profiles(config, min(CENSUS, n_profiles))
    progress = Progress()
    async with build_engine(_rehearsed(config.lm.main)) as engine:
        runner = Runner(engine, None, config.seed, progress=progress)
        people = await population.build_population(profiles, config, runner)
    part = _take_share(config, len(profiles) / n_profiles, len(profiles))
    groups = form_groups(people.agents, part, _fit_embedder(people, config))
    loads = {
        name: Load(tally.calls, tally.prompt_tokens, tally.completion_tokens, tally.seconds)
        for name, tally in progress.by_program.items()
    }
    return Census(len(profiles), len(people.agents), [len(group.agent_ids) for group in groups], loads)


def _fit_embedder(people: population.Population, config: Config) -> Embedder:
    """Fit the embedder as a run fits it, so that the groups come out the same."""
    ordered = sorted(people.profiles, key=lambda profile: profile.profile_id)
    corpus = [" ".join((profile.description, *profile.history)) for profile in ordered]
    corpus += [f"{agent.life_goal} {' '.join(agent.plan)}" for agent in people.agents]
    corpus += [config.synthesis.need] if config.synthesis.need else []
    return build_embedder("tfidf", corpus, config.seed)


def _draw_profiles(config: Config, n: int) -> list[Profile]:
    """Draw `n` profiles as a run draws them."""
    path = Path(config.population.profiles) if config.population.profiles else pipeline.SHIPPED_PROFILES
    profiles, _ = read_profiles(path, config.population.columns)
    drawn = random.Random(config.seed).sample(profiles, n) if len(profiles) > n else profiles
    return sorted(drawn, key=lambda profile: profile.profile_id)


def shrink_config(config: Config, command: Command, n_profiles: int) -> Config:
    """Return the config of a sample: fewer agents and rows by one factor, and if need be fewer rounds."""
    agents, rounds = _choose_shares(config, command, n_profiles)
    n_agents = max(1, round(n_profiles * agents))
    share = n_agents / n_profiles * rounds
    small = _take_share(config, n_agents / n_profiles, n_agents)
    scenarios = config.simulation.scenarios
    changes: dict[str, Any] = {
        "n": max(1, round(config.n * share)),
        "embedder": "tfidf",  # only similarities hang on it, and a model would take longer than the sample
        "lm": config.lm.model_copy(update={"main": _rehearsed(config.lm.main)}),
        "population": config.population.model_copy(update={"n_agents": n_agents}),
        "simulation": small.simulation.model_copy(
            update={"scenarios": None if scenarios is None else max(1, round(scenarios * share))}
        ),
        "operation": OperationConfig(),
    }
    return config.model_copy(update=changes)


def _take_share(config: Config, share: float, n_agents: int) -> Config:
    """Return a config with a share of the groups, where their number is given, but enough to hold `n_agents`."""
    n_groups, most = config.simulation.n_groups, config.simulation.max_group_size
    if n_groups is None or share >= 1:
        return config
    n_groups = min(n_agents, max(-(-n_agents // most), round(n_groups * share)))
    return config.model_copy(update={"simulation": config.simulation.model_copy(update={"n_groups": n_groups})})


def _choose_shares(config: Config, command: Command, n_profiles: int) -> tuple[float, float]:
    """Return the shares of agents and of rounds that fit into `SAMPLE_CALLS`."""
    made = config.simulation
    n_groups = count_groups(n_profiles, made.n_groups, made.max_group_size)
    n_rows = config.n if command == "generate" else 0
    wanted = _count_wanted(config, command, Size(config.n, n_profiles, n_profiles, n_groups))
    n_rounds = (wanted / n_groups + 1) * made.rounds_per_scenario
    once, living = 4 * n_profiles, CALLS_A_TURN[made.communication] * n_profiles * n_rounds + 2 * n_rows
    agents = min(1.0, max(SAMPLE_CALLS / (once + living), LEAST_AGENTS / n_profiles))
    rounds = min(1.0, max(SAMPLE_CALLS / agents - once, 0.0) / living)
    return agents, max(rounds, min(1.0, LEAST_ROUNDS / n_rounds))


def _rehearsed(lm: str) -> str:
    """Return the rehearsal that stands in for a model: of a rehearsal, what is left without the dials of the wire."""
    if not _is_rehearsal(lm):
        return "rehearsal" if lm else ""
    dials = Dials.from_spec(lm)
    kept = ("malformed", "truncated", "refusal", "skill", "seed")
    return "rehearsal?" + "&".join(f"{name}={getattr(dials, name)}" for name in kept)


def _is_rehearsal(lm: str) -> bool:
    return lm.partition("?")[0] == "rehearsal"


# --- measuring ----------------------------------------------------------------------------------------------------


def measure_run(path: Path, seconds: float = 0.0) -> Measured:
    """Read from a finished run's journal and tables what an estimate needs.

    Raises:
        RunError: there is no finished run in that folder.
    """
    command, config = read_config(path)
    model = read_run(path)["identity"]["models"].get("main", "")
    calls = _read_calls(path / "journal")
    try:
        tables = {noun: read_run_table(path, noun) for noun in ("agents", "groups", "scenarios", "rejected")}
        state = orjson.loads((path / "state.json").read_bytes())
    except (MatrixError, OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{str(path)!r} holds no finished run to measure ({error}); finish it first") from error
    rejected, scenarios = tables["rejected"], tables["scenarios"]
    n_profiles = len({call.id for call in calls if call.stage == population.STAGE})
    n_duplicates = len(rejected.filter((rejected["noun"] == "instruction") & rejected["reason"].is_in(DUPLICATES)))
    return Measured(
        command="generate" if command == "generate" else "simulate",
        config=config,
        model=model,
        size=Size(config.n, n_profiles, len(tables["agents"]), len(tables["groups"])),
        group_sizes=tables["groups"]["agent_ids"].list.len().to_list(),
        calls=calls,
        n_kept=state.get("kept", 0),
        n_scenarios=len(scenarios),
        last_closed=max(scenarios["closed_round"].to_list(), default=0),
        n_candidates=int(scenarios["agent_ids"].list.len().sum()),
        n_duplicates=n_duplicates,
        is_quiet=state.get("reason") == pipeline.QUIET,
        seconds=seconds,
    )


def _read_other(path: Path, command: Command) -> Measured:
    measured = measure_run(path)
    if measured.command != command:
        raise RunError(
            f"{str(path)!r} holds a run of {measured.command}; an estimate of {command} needs one of its own"
        )
    if not measured.n_scenarios or not measured.size.n_groups or (command == "generate" and not measured.n_kept):
        raise RunError(f"the run in {str(path)!r} has kept nothing to measure by; take another one")
    return measured


def _read_calls(folder: Path) -> list[Call]:
    """Read a journal's calls; one that stands there twice counts once, a torn line not at all."""
    found: dict[str, Call] = {}
    for segment in sorted(folder.glob("*.jsonl")):
        with boundary(RunError, f"read the journal {str(segment)!r}"), segment.open("rb") as lines:
            for line in lines:
                try:
                    entry = orjson.loads(line)
                    found[entry["key"]] = _read_call(entry)
                except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                    continue
    return list(found.values())


def _read_call(entry: dict[str, Any]) -> Call:
    stage, row_id, round_, purpose, _, _ = entry["key"].split("/")
    program, again, _ = purpose.partition("+")
    return Call(stage, row_id, program, int(round_), bool(again), entry["in"], entry["out"], entry["s"])


def _sum_calls(calls: Iterable[Call]) -> Load:
    load = Load()
    for call in calls:
        load.add(Load(1, call.prompt_tokens, call.completion_tokens, call.seconds))
    return load


def _group_calls(calls: Iterable[Call]) -> dict[tuple[str, str], list[Call]]:
    """Return the calls by stage and program, in the order in which they first came."""
    grouped: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in calls:
        grouped[call.stage, call.program].append(call)
    return grouped


# --- scaling ------------------------------------------------------------------------------------------------------


def scale_run(measured: Measured, config: Config, n_profiles: int, census: Census | None = None) -> Plan:
    """Scale a measured run to a run of `config` with so many profiles; a census says what groups they form."""
    plan = _lay_out(measured, config, n_profiles, census)
    life = _Life(measured)
    scenarios, extent = _choose_extent(measured, config, plan, life)
    plan.rounds = measured.last_closed + extent
    plan.n_expected = _expect_rows(measured, plan, scenarios)
    plan.doubt = _doubt(measured, plan, census)
    for (stage, program), calls in _group_calls(measured.calls).items():
        if stage == population.STAGE:
            load = _scale_population(program, calls, measured, plan, census)
        elif stage == simulation.STAGE:
            load = _scale_simulation(calls, measured, plan, life, extent)
            if program == "inter_router":
                _correct_shortlist(load, measured, config, plan)
        else:
            load = _sum_calls(calls).scale(_scale_rows(program, measured, plan))
        plan.loads[stage, program] = load
    return plan


def _lay_out(measured: Measured, config: Config, n_profiles: int, census: Census | None) -> Plan:
    """Return the sizes of a run, and whether the measured run was this very run."""
    had = (measured.size.n_agents, measured.size.n_profiles)
    n_agents, n_asked = (census.n_agents, census.n_profiles) if census else had
    n_agents = max(1, round(n_profiles * n_agents / max(1, n_asked)))
    n_groups = count_groups(n_agents, config.simulation.n_groups, config.simulation.max_group_size)
    size = Size(config.n, n_profiles, n_agents, n_groups)
    plan = Plan(size, census.group_sizes if census else measured.group_sizes)
    wanted = {_count_wanted(each, measured.command, size) for each in (measured.config, config)}
    plan.is_whole = measured.size == size and len(wanted) == 1
    return plan


def _doubt(measured: Measured, plan: Plan, census: Census | None) -> float:
    if plan.is_whole:
        return 0.0
    is_exact = measured.size.n_agents == plan.size.n_agents or (census and census.n_agents == plan.size.n_agents)
    return MODEL_DOUBT + (TAIL_DOUBT + (0.0 if is_exact else GROUPS_DOUBT)) / max(1.0, plan.rounds)


def _count_wanted(config: Config, command: Command, size: Size) -> float:
    """Return how many scenarios are asked for at first."""
    if command == "simulate":
        return size.n
    if config.simulation.scenarios is not None:
        return config.simulation.scenarios
    made = config.synthesis
    oversample = made.need_oversample if made.need else made.oversample
    return max(1.0, size.n * oversample * size.n_groups / size.n_agents)


class _Life:
    """How a measured society lived, round by round."""

    def __init__(self, measured: Measured) -> None:
        calls = [call for call in measured.calls if call.stage == simulation.STAGE]
        turns = _count_by_round(call for call in calls if call.program == "actor" and not call.is_again)
        busiest = max(turns.values(), default=0)
        end = max((round_ for round_, n_turns in turns.items() if n_turns >= 0.9 * busiest), default=0)
        self.steady = range(end - math.ceil(STEADY_SHARE * end) + 1, end + 1)
        n_plans = sum(call.program == "planner" and call.round in self.steady for call in calls)
        self.plan_rate = n_plans / max(1, sum(turns.get(round_, 0) for round_ in self.steady))
        """New plans a turn."""


def _count_by_round(calls: Iterable[Call]) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for call in calls:
        counts[call.round] += 1
    return dict(counts)


def _choose_extent(measured: Measured, config: Config, plan: Plan, life: _Life) -> tuple[float, float]:
    """Return how many scenarios there will be, and how many rounds more or fewer than measured that takes."""
    size, sample = plan.size, measured.size
    had = measured.n_scenarios * size.n_groups / max(1, sample.n_groups)
    if plan.is_whole or not measured.last_closed:
        return had, 0.0
    asked = math.ceil(_count_wanted(measured.config, measured.command, sample))
    wanted = math.ceil(_count_wanted(config, measured.command, size))
    if measured.is_quiet and wanted >= had:
        plan.notes.append("The sample's society fell quiet before everything wanted was there; so will the run's.")
        return had, 0.0
    wanted *= max(1.0, measured.n_scenarios / asked)  # more were needed than planned
    modelled = count_rounds(measured.group_sizes, measured.n_scenarios, measured.config)
    share = size.n_groups / len(plan.group_sizes)
    needed = count_rounds(plan.group_sizes, wanted / share, config) * max(1.0, measured.last_closed / modelled)
    lifetime = config.simulation.max_plans / life.plan_rate if life.plan_rate else math.inf
    if needed > max(lifetime, measured.last_closed):
        plan.notes.append(f"The agents' plans last for about {lifetime:.0f} rounds; the society falls quiet then.")
        needed = max(lifetime, measured.last_closed)
        wanted = min(wanted, share * _count_closings(plan.group_sizes, needed, config))
    return wanted, needed - measured.last_closed


def count_rounds(group_sizes: Sequence[int], n_scenarios: float, config: Config) -> int:
    """Return after how many rounds groups of these sizes have closed so many scenarios (METHOD 2.6)."""
    round_ = 1
    while _count_closings(group_sizes, round_, config) < n_scenarios:
        round_ += 1
    return round_


def _count_closings(group_sizes: Sequence[int], round_: float, config: Config) -> float:
    simulation = config.simulation
    lengths = Counter(max(simulation.rounds_per_scenario, -(-simulation.min_actions // n)) for n in group_sizes)
    return sum(n_groups * (round_ // length) for length, n_groups in lengths.items())


def _expect_rows(measured: Measured, plan: Plan, scenarios: float) -> int:
    """Return how many rows or scenarios the run ends with."""
    size = plan.size
    if measured.command == "simulate":
        return min(size.n, round(scenarios))
    n_asked = len({call.id for call in measured.calls if call.program == "instruction_writer"})
    kept_share = measured.n_kept / max(1, n_asked)
    offered = scenarios * measured.n_candidates / max(1, measured.n_scenarios)
    expected = min(size.n, round(offered * kept_share))
    if expected < size.n:
        plan.notes.append(f"About {expected:,} of {size.n:,} rows are to be expected; take more agents for more.")
    return expected


def _scale_population(
    program: str, calls: Sequence[Call], measured: Measured, plan: Plan, census: Census | None
) -> Load:
    """Scale by profiles, from the census where there is one."""
    if census is not None:
        return census.loads.get(program, Load()).scale(plan.size.n_profiles / census.n_profiles)
    return _sum_calls(calls).scale(plan.size.n_profiles / measured.size.n_profiles)


def _scale_simulation(calls: Sequence[Call], measured: Measured, plan: Plan, life: _Life, extent: float) -> Load:
    """Scale by agents or groups, and by rounds: what is cut are the last ones, what is added are steady ones."""
    ended = measured.last_closed
    load, steady = Load(), Load()
    for call in calls:
        one = Load(1, call.prompt_tokens, call.completion_tokens, call.seconds)
        is_ahead = call.round > ended  # groups ahead of the last closing are so in any run
        load.add(one, 1.0 if is_ahead else min(1.0, max(0.0, ended + extent - call.round + 1)))
        if call.round in life.steady:
            steady.add(one)
    load.add(steady, max(0.0, extent) / max(1, len(life.steady)))
    is_of_group = calls[0].id.partition("-")[0] in ("group", "scenario")
    size, sample = plan.size, measured.size
    return load.scale(size.n_groups / sample.n_groups if is_of_group else size.n_agents / sample.n_agents)


def _correct_shortlist(load: Load, measured: Measured, config: Config, plan: Plan) -> None:
    """Lengthen the prompts of the router between groups where the run shows it more groups than the sample had."""
    shown = min(measured.config.simulation.shortlist, measured.size.n_groups - 1)
    to_show = min(config.simulation.shortlist, plan.size.n_groups - 1)
    if shown < 1 or shown == to_show:
        return
    action = "x" * 4 * round(load.completion_tokens / load.calls)  # about as long as the router's own answer
    messages = Prompt.of(load_program("inter_router")).messages({"groups": [], "action": action})
    listed = max(0.0, load.prompt_tokens - load.calls * count_prompt_tokens(messages))
    load.prompt_tokens += listed * (to_show - shown) / shown


def _scale_rows(program: str, measured: Measured, plan: Plan) -> float:
    """Return the factor for what is asked per row; duplicates grow with the pairs of rows there are."""
    times = plan.n_expected / max(1, measured.n_kept)
    if program != "instruction_writer" or plan.is_whole:
        return times
    rate = 2 * measured.n_duplicates / max(1, measured.n_kept) ** 2
    return times * _count_tries(rate * plan.n_expected) / _count_tries(rate * measured.n_kept)


def _count_tries(rate: float) -> float:
    """Return candidates per row when the chance of meeting a twin grows to 1 - exp(-rate) by the last row."""
    return math.expm1(min(rate, 2.0)) / min(rate, 2.0) if rate > 1e-9 else 1.0


# --- telling ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Teller:
    """Puts ranges around a plan and says where everything comes from."""

    config: Config
    command: Command
    measured: Measured
    plan: Plan
    price: Price | None
    tokens_per_second: float | None
    from_run: Path | None

    @property
    def is_rehearsed(self) -> bool:
        """Whether the run itself will be a rehearsal."""
        return _is_rehearsal(self.config.lm.main)

    def tell(self) -> Estimate:
        """Return the estimate."""
        stages = self._build_stages()
        money, priced = self._count_money(stages)
        seconds, timed = self._count_seconds()
        return Estimate(
            command=self.command,
            model=self.config.lm.main,
            n=self.config.n,
            n_expected=self.plan.n_expected,
            stages=stages,
            seconds=seconds,
            money=money,
            currency="USD",
            basis=self._say_basis(),
            assumptions=(*self.plan.notes, self._say_range(), priced, *timed),
        )

    def _build_stages(self) -> tuple[StageEstimate, ...]:
        merged: dict[str, Load] = defaultdict(Load)
        stage_of: dict[str, str] = {}
        for (stage, program), load in self.plan.loads.items():
            merged[program].add(load)
            stage_of[program] = stage
        n_sampled: dict[str, int] = defaultdict(int)
        for call in self.measured.calls:
            n_sampled[call.program] += 1
        return tuple(self._build_stage(name, stage_of[name], merged[name], n_sampled[name]) for name in merged)

    def _build_stage(self, program: str, stage: str, load: Load, n_sampled: int) -> StageEstimate:
        noise = 0.01 if self.plan.is_whole else self.plan.doubt + 1 / math.sqrt(n_sampled)
        if self.is_rehearsed or (self.from_run and not _is_rehearsal(self.measured.model)):
            counts = (load.calls, load.prompt_tokens, load.completion_tokens)
            return StageEstimate(program, *(Range.around(count, noise) for count in counts))
        more = (1 + noise + ASKED_AGAIN) / (LOW_YIELD if stage == synthesis.STAGE else 1.0)
        calls = Range(load.calls * max(0.0, 1 - noise), load.calls, load.calls * more)
        prompt = Range.around(load.prompt_tokens, noise + TOKENIZER_DOUBT, more * (1 + TOKENIZER_DOUBT) - 1)
        most = self.config.sampling_of(program).max_tokens * calls.high
        written = load.completion_tokens
        longest = max(written, min(LONG_ANSWERS * written * more, most))
        return StageEstimate(program, calls, prompt, Range(SHORT_ANSWERS * written, written, longest))

    def _count_money(self, stages: Sequence[StageEstimate]) -> tuple[Range | None, str]:
        """Return what the tokens cost, and where the price is from."""
        price = self.price
        if price is None and self.is_rehearsed:
            return Range(0.0, 0.0, 0.0), "A rehearsal costs nothing."
        if price is None:
            return None, f"No price is known for {self.config.lm.main!r}; give --price-in and --price-out."
        ends = ("low", "expected", "high")
        sums = (
            sum(price.cost(getattr(s.prompt_tokens, end), getattr(s.completion_tokens, end)) for s in stages)
            for end in ends
        )
        said = f"Price: {price.prompt:g} in and {price.completion:g} out a million tokens ({price.source})"
        cached = f"; prompt tokens found in a cache would cost {price.cached:g}" if price.cached is not None else ""
        return Range(*sums), f"{said}{cached}."

    def _count_seconds(self) -> tuple[Range, list[str]]:
        """Return the time of the whole run, and what it rests on."""
        if self.is_rehearsed:
            dials, per_call = Dials.from_spec(self.config.lm.main), self._measure_own()
            latency = dials.latency * (1 + 9 * dials.tail) * (1 + dials.error + dials.rate)
            waiting = self._spread(lambda load: load.calls * latency)
            working = sum(load.calls for load in self.plan.loads.values()) * per_call
            said = f"Time: {1000 * per_call:.1f} ms a call on this machine, as the sample took."
            return Range.around(max(waiting, working), 0.5, 1.0), [said]
        if self.from_run and not self.tokens_per_second and not _is_rehearsal(self.measured.model):
            said = "Time: seconds a call as in the measured run, and as many calls at a time as the config says."
            return Range.around(self._spread(lambda load: load.seconds), 0.3, 0.5), [said]
        speed = self.tokens_per_second or TOKENS_PER_SECOND
        source = "as given" if self.tokens_per_second else "an assumption"
        expected = self._spread(lambda load: load.completion_tokens / speed)
        said = (
            f"Time: {speed:g} tokens a second and request ({source}), "
            f"{self.config.operation.concurrency} requests at a time; reading prompts is not counted."
        )
        return Range(SHORT_ANSWERS * expected, expected, LONG_ANSWERS * expected), [said]

    def _measure_own(self) -> float:
        """Return the seconds a rehearsed call takes with all that is around it."""
        n_calls = max(1, len(self.measured.calls))
        if self.measured.seconds:
            return self.measured.seconds / n_calls
        return sum(call.seconds for call in self.measured.calls) / n_calls

    def _spread(self, time_of: Callable[[Load], float]) -> float:
        """Spread each stage's work over the calls in flight, but not below its longest chain of calls."""
        work: dict[str, float] = defaultdict(float)
        n_calls: dict[str, float] = defaultdict(float)
        for (stage, _), load in self.plan.loads.items():
            work[stage] += time_of(load)
            n_calls[stage] += load.calls
        # a round: news, action, then routers and summary side by side; a profile: four calls; a row: two
        links = {population.STAGE: 4.0, simulation.STAGE: 3.0 * self.plan.rounds}
        return sum(
            max(work[stage] / self.config.operation.concurrency, links.get(stage, 2.0) * work[stage] / n_calls[stage])
            for stage in work
            if n_calls[stage]
        )

    def _say_basis(self) -> str:
        size, sample = self.plan.size, self.measured.size
        what = "the run" if self.from_run else "a rehearsal"
        where = f" in {self.from_run}" if self.from_run else ""
        if self.plan.is_whole:
            return f"{what}{where} of the same size ({sample.n_agents:,} agents, {self.measured.n_kept:,} kept)"
        return (
            f"{what}{where} of {sample.n_agents:,} agents and {self.measured.n_kept:,} kept "
            f"for {size.n_agents:,} agents and {self.config.n:,}"
        )

    def _say_range(self) -> str:
        if self.is_rehearsed:
            return "The range is the sample's own noise and what scaling was measured to miss."
        if self.from_run and not _is_rehearsal(self.measured.model):
            return "The range is the measured run's noise; another model or another need is not in it."
        return (
            f"Range: a rehearsal played the model; a real one may be asked again ({ASKED_AGAIN:.0%} of calls), keep "
            f"fewer candidates (down to {LOW_YIELD:.0%}), count prompts {TOKENIZER_DOUBT:.0%} otherwise, and write "
            f"{SHORT_ANSWERS:g} to {LONG_ANSWERS:g} times as much, up to each program's max_tokens."
        )
