"""What a run will take before it is started: calls, tokens, money and time, each as a range.

A small rehearsal of the same recipe is run in a temporary folder, or a finished run of the user's is read. Either is
measured by program and scaled by what drives each program: profiles, agents and groups by the round, or rows.
"""

import math
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from matrix_dspy import pipeline
from matrix_dspy.bulk.folder import read_config, read_run, read_run_table
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, OperationConfig, SelectionConfig, apply_kind, load_kind
from matrix_dspy.crew import Part, assign_parts, choose_price
from matrix_dspy.engine.embedding import Embedder, build_embedder
from matrix_dspy.engine.rehearsal.engine import MODEL, Dials, count_prompt_tokens
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import MatrixError, RunError, boundary
from matrix_dspy.gates import check_language, check_selection
from matrix_dspy.loading import load_program
from matrix_dspy.population import agents as population
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.report.estimate import Estimate, Forecast, Load, is_rehearsal, tell_estimate
from matrix_dspy.report.prices import Price
from matrix_dspy.simulation import communication as simulation
from matrix_dspy.simulation.grouping import count_groups
from matrix_dspy.simulation.society import form_groups
from matrix_dspy.synthesis.desk import STAGE, find_part
from matrix_dspy.types import Profile

Command = Literal["generate", "simulate"]

SAMPLE_CALLS = 2500
"""Calls a rehearsed sample is made for: 5 s on 2 cores."""
LEAST_AGENTS = 40
"""Agents below which a sample is not cut, so that there are groups to send news to; rounds are cut instead."""
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
TAIL_SHARE = 0.3
"""How much of what groups did beyond a sample's last closing is counted: in most runs they do less, in many nothing."""
TAIL_DOUBT, GROUPS_DOUBT = 0.4, 0.5
"""Rounds that this may be off by, and that groups of other sizes would need more or less."""
SHORT_DOUBT = 0.3
"""Share by which rounds may cost more than the few that a very short run has had."""
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
    action_length: float
    """Mean length of an action, in characters."""
    is_rehearsed: bool
    is_quiet: bool
    """Whether it ended because nobody had anything left to do."""
    name: str = ""
    """Of its folder, where it is a run of the user's."""
    seconds: float = 0.0
    """Wall time where this process has run it."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be estimated, and what is known of it."""

    config: Config
    size: Size
    group_sizes: Sequence[int]
    """Those of a part of the groups, where not all are known."""
    is_exact: bool
    """Whether these are the groups there will be."""
    is_whole: bool
    """Whether the measured run was the planned one itself."""


async def estimate_run(
    config: Config,
    command: Command = "generate",
    *,
    tokens_per_second: float | None = None,
    from_run: Path | None = None,
    sample_calls: int = SAMPLE_CALLS,
) -> Estimate:
    """Estimate what a run of `config` takes.

    Without `from_run` a sample of about `sample_calls` calls is rehearsed in a temporary folder, which is gone
    afterwards; with it, that finished run's journal says what a call takes. Money follows from `operation.price_in`
    and `price_out`, else from LiteLLM's price map.

    Raises:
        RunError: `from_run` holds no finished run of the same command.
        ConfigError, TableError: what the run itself would be refused for.
    """
    kind = load_kind(config.synthesis.kind) if command == "generate" else None
    parts = assign_parts(config, kind)
    if kind is not None:
        config = apply_kind(config, kind)
        check_language(config)
        check_selection(config, kind)
    n_profiles = len(_draw_profiles(config, config.population.n_agents))
    census = None
    if from_run is not None:
        measured = _read_other(from_run, command)
    else:
        sample = shrink_config(config, command, n_profiles, sample_calls)
        measured = await _rehearse(sample, command)
        if sample.population.n_agents < n_profiles:
            census = await _take_census(config, n_profiles)
    forecast = scale_run(measured, config, n_profiles, census)
    return tell_estimate(
        forecast,
        config,
        command,
        price=choose_price(config),
        others=_price_others(config, parts, forecast),
        tokens_per_second=tokens_per_second,
    )


def _price_others(config: Config, parts: Mapping[Part, str], forecast: Forecast) -> dict[str, Price | None]:
    """Return the price of each program that another model than `main` answers; a rehearsal's is nothing."""
    others: dict[str, Price | None] = {}
    for stage, program in forecast.loads:
        spec = parts.get(find_part(program) if stage == STAGE else "main", parts["main"])
        if spec != parts["main"]:
            others[program] = Price(0.0, 0.0) if is_rehearsal(spec) else choose_price(config, spec)
    return others


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
        is_structured = config.lm.structured == "on"
        runner = Runner(
            engine, seed=config.seed, progress=progress, structured=is_structured, longest_text=config.lm.longest_text
        )
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


def shrink_config(config: Config, command: Command, n_profiles: int, sample_calls: int = SAMPLE_CALLS) -> Config:
    """Return the config of a sample: fewer agents and rows by one factor, and if need be fewer rounds."""
    agents, rounds = _choose_shares(config, command, n_profiles, sample_calls)
    n_agents = max(1, round(n_profiles * agents))
    share = n_agents / n_profiles * rounds
    small = _take_share(config, n_agents / n_profiles, n_agents)
    scenarios = config.simulation.scenarios
    changes: dict[str, Any] = {
        "n": max(1, round(config.n * share)),
        "embedder": "tfidf",  # only similarities hang on it, and a model would take longer than the sample
        "lm": config.lm.model_copy(update=dict.fromkeys(config.lm.parts, "") | {"main": _rehearsed(config.lm.main)}),
        "curation": config.curation.model_copy(update={"benchmarks": ""}),
        "selection": _rehearse_selection(config.selection),
        "population": config.population.model_copy(update={"n_agents": n_agents}),
        "simulation": small.simulation.model_copy(
            update={"scenarios": None if scenarios is None else max(1, round(scenarios * share))}
        ),
        "operation": OperationConfig(),
    }
    return config.model_copy(update=changes)


def _rehearse_selection(selection: SelectionConfig) -> SelectionConfig:
    """Return a selection that needs no model but the sample's: where a reward model would score, the judge does."""
    scorer = "judge" if selection.reward_model and selection.scorer in ("auto", "reward") else selection.scorer
    return selection.model_copy(update={"reward_model": "", "scorer": scorer, "force": True})


def _take_share(config: Config, share: float, n_agents: int) -> Config:
    """Return a config with a share of the groups, where their number is given, but enough to hold `n_agents`."""
    n_groups, most = config.simulation.n_groups, config.simulation.max_group_size
    if n_groups is None or share >= 1:
        return config
    n_groups = min(n_agents, max(-(-n_agents // most), round(n_groups * share)))
    return config.model_copy(update={"simulation": config.simulation.model_copy(update={"n_groups": n_groups})})


def _choose_shares(config: Config, command: Command, n_profiles: int, sample_calls: int) -> tuple[float, float]:
    """Return the shares of agents and of rounds that fit into so many calls."""
    made = config.simulation
    n_groups = count_groups(n_profiles, made.n_groups, made.max_group_size)
    n_rows = config.n if command == "generate" else 0
    wanted = _count_wanted(config, command, Size(config.n, n_profiles, n_profiles, n_groups))
    n_rounds = (wanted / n_groups + 1) * made.rounds_per_scenario
    once, living = 4 * n_profiles, CALLS_A_TURN[made.communication] * n_profiles * n_rounds + 2 * n_rows
    agents = min(1.0, max(sample_calls / (once + living), LEAST_AGENTS / n_profiles))
    rounds = min(1.0, max(sample_calls / agents - once, 0.0) / living)
    return agents, max(rounds, min(1.0, LEAST_ROUNDS / n_rounds))


def _rehearsed(lm: str) -> str:
    """Return the rehearsal that stands in for a model: of a rehearsal, what is left without the dials of the wire."""
    if not is_rehearsal(lm):
        return MODEL
    dials = Dials.from_spec(lm)
    kept = ("malformed", "truncated", "refusal", "skill", "seed")
    return f"{MODEL}?" + "&".join(f"{name}={getattr(dials, name)}" for name in kept)


# --- measuring ----------------------------------------------------------------------------------------------------


def measure_run(path: Path, name: str = "", seconds: float = 0.0) -> Measured:
    """Read from a finished run's journal and tables what an estimate needs.

    Raises:
        RunError: there is no finished run in that folder.
    """
    command, config = read_config(path)
    model = read_run(path)["identity"]["models"].get("main", "")
    calls = _read_calls(path / "journal")
    try:
        tables = {noun: read_run_table(path, noun) for noun in ("agents", "groups", "events", "scenarios", "rejected")}
        state = orjson.loads((path / "ended.json").read_bytes())
    except (MatrixError, OSError, orjson.JSONDecodeError) as error:
        raise RunError(f"{str(path)!r} holds no finished run to measure ({error}); finish it first") from error
    rejected, scenarios = tables["rejected"], tables["scenarios"]
    n_profiles = len({call.id for call in calls if call.stage == population.STAGE})
    n_duplicates = len(rejected.filter((rejected["noun"] == "instruction") & rejected["reason"].is_in(DUPLICATES)))
    return Measured(
        command="generate" if command == "generate" else "simulate",
        config=config,
        size=Size(config.n, n_profiles, len(tables["agents"]), len(tables["groups"])),
        group_sizes=tables["groups"]["agent_ids"].list.len().to_list(),
        calls=calls,
        n_kept=state.get("kept", 0),
        n_scenarios=len(scenarios),
        last_closed=max(scenarios["closed_round"].to_list(), default=0),
        n_candidates=int(scenarios["agent_ids"].list.len().sum()),
        n_duplicates=n_duplicates,
        action_length=statistics.fmean(tables["events"]["action"].str.len_chars().to_list() or [0]),
        is_rehearsed=model == MODEL,
        is_quiet=str(state.get("reason", "")).startswith(pipeline.QUIET),
        name=name,
        seconds=seconds,
    )


def _read_other(path: Path, command: Command) -> Measured:
    measured = measure_run(path, name=path.resolve().name)
    if measured.command != command:
        raise RunError(
            f"{str(path)!r} holds a run of {measured.command}; an estimate of {command} needs one of its own"
        )
    if not measured.n_scenarios or not measured.size.n_groups or (command == "generate" and not measured.n_kept):
        raise RunError(f"the run in {str(path)!r} has kept nothing to measure by; take another one")
    if measured.size.n_profiles < measured.size.n_agents:
        raise RunError(f"the run in {str(path)!r} replayed calls of another run; estimate from that one")
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
    program = program.partition("*")[0]
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


def scale_run(measured: Measured, config: Config, n_profiles: int, census: Census | None = None) -> Forecast:
    """Scale a measured run to a run of `config` with so many profiles; a census says what groups they form."""
    target = _lay_out(measured, config, n_profiles, census)
    forecast = Forecast(basis=_say_basis(measured, target), is_real=bool(measured.name) and not measured.is_rehearsed)
    steady = _find_steady(measured)
    scenarios, extent = _choose_extent(measured, target, steady, forecast.notes)
    forecast.n_rounds = max(1.0, measured.last_closed + extent)
    forecast.n_expected = _expect_rows(measured, target, scenarios, forecast.notes)
    forecast.doubt = _doubt(measured, target, extent, forecast.notes)
    for (stage, program), calls in _group_calls(measured.calls).items():
        if program == "response_judge" and not _is_judged(config):
            continue  # the sample was scored by a judge, the run is by another scorer
        if stage == population.STAGE:
            load = _scale_population(program, calls, measured, target, census)
        elif stage == simulation.STAGE:
            load = _scale_simulation(calls, measured, target, steady, extent)
            if program == "inter_router":
                _correct_shortlist(load, measured, target)
        else:
            load = _sum_calls(calls).scale(forecast.n_expected / max(1, measured.n_kept))
        forecast.loads[stage, program] = load
        forecast.noise[program] = 0.0 if target.is_whole else 1 / math.sqrt(len(calls))
    _count_duplicates(measured, target, forecast)
    forecast.seconds_per_call = _time_call(measured)
    return forecast


def _is_judged(config: Config) -> bool:
    """Whether a run asks the judge for scores."""
    selection = config.selection
    is_auto = selection.scorer == "auto" and not selection.reward_model
    by_judge = selection.on and (selection.scorer == "judge" or is_auto)
    return config.curation.judge_threshold is not None or by_judge


def _lay_out(measured: Measured, config: Config, n_profiles: int, census: Census | None) -> Target:
    had = (measured.size.n_agents, measured.size.n_profiles)
    n_agents, n_asked = (census.n_agents, census.n_profiles) if census else had
    n_agents = max(1, round(n_profiles * n_agents / max(1, n_asked)))
    n_groups = count_groups(n_agents, config.simulation.n_groups, config.simulation.max_group_size)
    size = Size(config.n, n_profiles, n_agents, n_groups)
    wanted = {_count_wanted(each, measured.command, size) for each in (measured.config, config)}
    sizes = census.group_sizes if census else measured.group_sizes
    is_exact = sum(sizes) == n_agents and (is_rehearsal(config.lm.main) or bool(measured.name))
    return Target(config, size, sizes, is_exact, measured.size == size and len(wanted) == 1)


def _doubt(measured: Measured, target: Target, extent: float, notes: list[str]) -> float:
    """Return the share by which everything may be off, beside the noise of single programs."""
    if target.is_whole:
        return 0.01
    n_had = measured.last_closed
    doubt = MODEL_DOUBT + (TAIL_DOUBT + (0.0 if target.is_exact else GROUPS_DOUBT)) / max(1.0, n_had + extent)
    if extent > n_had / 4 and n_had < LEAST_ROUNDS:
        notes.append(f"The measured run had only {n_had} rounds; memories and prompts grow in later ones.")
        doubt += SHORT_DOUBT * min(1.0, extent / max(1, n_had)) * (1 - n_had / LEAST_ROUNDS)
    return doubt


def _time_call(measured: Measured) -> float:
    """Return the seconds a call takes with all that is around it, where this process has made it, else by itself."""
    n_calls = max(1, len(measured.calls))
    return (measured.seconds or sum(call.seconds for call in measured.calls)) / n_calls


def _say_basis(measured: Measured, target: Target) -> str:
    what = f"the run {measured.name!r}" if measured.name else "a rehearsal"
    had = f"{what} of {measured.size.n_agents:,} agents with {measured.n_kept:,} kept"
    return had if target.is_whole else f"{had}, for {target.size.n_agents:,} agents and {target.size.n:,} to keep"


def _count_wanted(config: Config, command: Command, size: Size) -> float:
    """Return how many scenarios are asked for at first."""
    if command == "simulate":
        return size.n
    if config.simulation.scenarios is not None:
        return config.simulation.scenarios
    made = config.synthesis
    oversample = made.need_oversample if made.need else made.oversample
    pool = config.curation.diverse_pool if config.curation.diverse else 1.0
    return max(1.0, math.ceil(size.n * pool) * oversample * size.n_groups / size.n_agents)


def _find_steady(measured: Measured) -> range:
    """Return the last rounds in which nearly everybody took part."""
    turns = _count_by_round(call for call in measured.calls if call.program == "actor" and not call.is_again)
    busiest = max(turns.values(), default=0)
    end = max((round_ for round_, n_turns in turns.items() if n_turns >= 0.9 * busiest), default=0)
    return range(end - math.ceil(STEADY_SHARE * end) + 1, end + 1)


def _expect_lifetime(measured: Measured, target: Target, steady: range) -> float:
    """Return how many rounds an agent's plans last."""
    late = [call for call in measured.calls if call.stage == simulation.STAGE and call.round in steady]
    n_plans = sum(call.program == "planner" and not call.is_again for call in late)
    n_turns = sum(call.program == "actor" and not call.is_again for call in late)
    return target.config.simulation.max_plans * n_turns / n_plans if n_plans else math.inf


def _count_by_round(calls: Iterable[Call]) -> dict[int, int]:
    counts: dict[int, int] = defaultdict(int)
    for call in calls:
        counts[call.round] += 1
    return dict(counts)


def _choose_extent(measured: Measured, target: Target, steady: range, notes: list[str]) -> tuple[float, float]:
    """Return how many scenarios there will be, and how many rounds more or fewer than measured that takes."""
    size, sample, config = target.size, measured.size, target.config
    had = measured.n_scenarios * size.n_groups / max(1, sample.n_groups)
    wanted = math.ceil(_count_wanted(config, measured.command, size))
    if measured.is_quiet and wanted >= had:
        notes.append("The measured society fell quiet before everything wanted was there; so will this one.")
        return had, 0.0
    if target.is_whole or not measured.last_closed:
        return had, 0.0
    asked = math.ceil(_count_wanted(measured.config, measured.command, sample))
    wanted *= max(1.0, measured.n_scenarios / asked)  # more were needed than planned
    share = size.n_groups / len(target.group_sizes)
    slowness = measured.last_closed / count_rounds(measured.group_sizes, measured.n_scenarios, measured.config)
    needed = count_rounds(target.group_sizes, wanted / share, config) * max(1.0, slowness)
    lifetime = max(measured.last_closed, _expect_lifetime(measured, target, steady))
    if needed > lifetime:
        notes.append(f"The agents' plans last for about {lifetime:.0f} rounds; the society falls quiet then.")
        needed, wanted = lifetime, min(wanted, share * _count_closings(target.group_sizes, lifetime, config))
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


def _expect_rows(measured: Measured, target: Target, scenarios: float, notes: list[str]) -> int:
    """Return how many rows or scenarios the run ends with."""
    size = target.size
    if measured.command == "simulate":
        return min(size.n, round(scenarios))
    n_asked = len({call.id for call in measured.calls if call.program == "instruction_writer"})
    offered = scenarios * measured.n_candidates / max(1, measured.n_scenarios)
    expected = min(size.n, round(offered * measured.n_kept / max(1, n_asked)))
    if expected < size.n:
        notes.append(f"About {expected:,} of {size.n:,} rows are to be expected; take more agents for more.")
    return expected


def _scale_population(
    program: str, calls: Sequence[Call], measured: Measured, target: Target, census: Census | None
) -> Load:
    """Scale by profiles, from the census where there is one."""
    if census is not None:
        return census.loads.get(program, Load()).scale(target.size.n_profiles / census.n_profiles)
    return _sum_calls(calls).scale(target.size.n_profiles / measured.size.n_profiles)


def _scale_simulation(calls: Sequence[Call], measured: Measured, target: Target, steady: range, extent: float) -> Load:
    """Scale by agents or groups, and by rounds: what is cut are the last ones, what is added are steady ones."""
    ended, tail = measured.last_closed, 1.0 if target.is_whole or measured.is_quiet else TAIL_SHARE
    load, late = Load(), Load()
    for call in calls:
        one = Load(1, call.prompt_tokens, call.completion_tokens, call.seconds)
        load.add(one, tail if call.round > ended else min(1.0, max(0.0, ended + extent - call.round + 1)))
        if call.round in steady:
            late.add(one)
    load.add(late, max(0.0, extent) / max(1, len(steady)))
    is_of_group = calls[0].id.partition("-")[0] in ("group", "scenario")
    size, sample = target.size, measured.size
    return load.scale(size.n_groups / sample.n_groups if is_of_group else size.n_agents / sample.n_agents)


def _correct_shortlist(load: Load, measured: Measured, target: Target) -> None:
    """Lengthen the prompts of the router between groups where the run shows it more groups than the sample had."""
    shown = min(measured.config.simulation.shortlist, measured.size.n_groups - 1)
    to_show = min(target.config.simulation.shortlist, target.size.n_groups - 1)
    if shown < 1 or shown == to_show or not load.calls:
        return
    inputs = {"groups": [], "action": "x" * round(measured.action_length)}
    messages = Prompt.of(load_program("inter_router")).messages(inputs)
    listed = max(0.0, load.prompt_tokens - load.calls * count_prompt_tokens(messages))
    load.prompt_tokens += listed * (to_show - shown) / shown


def _count_duplicates(measured: Measured, target: Target, forecast: Forecast) -> None:
    """Let the instruction writer be asked for more where a larger set holds more twins.

    The chance that a candidate has a twin grows with the rows there are, as c k / (1 + c k), so that n rows take
    n (1 + c n / 2) candidates; in a rehearsed run of 10,000 rows with a need these were 1.7 n, by c from 1,000 1.75 n.
    """
    if target.is_whole or (STAGE, "instruction_writer") not in forecast.loads or not measured.n_kept:
        return
    pairs = forecast.n_expected / measured.n_kept
    met = measured.n_duplicates / measured.n_kept
    forecast.loads[STAGE, "instruction_writer"].multiply((1 + met * pairs) / (1 + met))
    chance = (math.sqrt(measured.n_duplicates) + 1) / measured.n_kept
    forecast.noise["instruction_writer"] += max(0.0, pairs - 1) * chance / (1 + met * pairs)
