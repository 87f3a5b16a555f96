"""The order of the stages, from profiles to a data set, and what is written when.

    profiles -> agents -> groups -> events, scenarios -> instructions -> responses -> critiques, judgements -> examples

Every completion is journaled on arrival; tables are written at the end, and now and then on the way for who looks. A
stopped run is started again with the same command and pays only for what is missing.
"""

import asyncio
import hashlib
import logging
import math
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import polars as pl

from matrix_dspy.bulk.folder import RunFolder, read_config, read_run_table, take_lock
from matrix_dspy.bulk.progress import Progress, show_progress
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.bulk.trace import open_trace
from matrix_dspy.config import Config, KindConfig, apply_kind, load_kind
from matrix_dspy.crew import (
    Member,
    Part,
    add_usage,
    assign_parts,
    build_budget,
    name_models,
    name_schemas,
    open_crew,
    warn_of_one_model,
)
from matrix_dspy.curation import rewarding
from matrix_dspy.curation.benchmarks import Benchmark, hash_benchmarks
from matrix_dspy.engine.embedding import Embedder, build_embedder
from matrix_dspy.errors import ConfigError, LimitError, RunError, TableError
from matrix_dspy.figures import Start, describe_figures
from matrix_dspy.gates import build_curator, check_language, check_sandbox, check_selection, load_benchmarks
from matrix_dspy.loading import hash_prompt, hash_state, load_program
from matrix_dspy.made import Made
from matrix_dspy.population.agents import Population, build_population
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.report.card import Source, write_card
from matrix_dspy.report.estimate import FILE as ESTIMATE_FILE
from matrix_dspy.report.estimate import read_estimate
from matrix_dspy.simulation.grouping import count_groups
from matrix_dspy.simulation.society import Society, form_groups
from matrix_dspy.synthesis.answering import make_follow_up_id, make_response_id
from matrix_dspy.synthesis.desk import DESK_PARTS, Desk
from matrix_dspy.synthesis.desk import Part as DeskPart
from matrix_dspy.synthesis.flow import REFINED, Flow, build_candidates
from matrix_dspy.synthesis.judging import make_judgement_id
from matrix_dspy.synthesis.retrieval import Retriever
from matrix_dspy.types import Profile, Rejected

log = logging.getLogger("matrix_dspy")

SHIPPED_PROFILES = Path(__file__).parent / "data" / "profiles" / "composed.jsonl"
QUIET = "the agents' plans are used up and no more scenarios come; take more agents or raise simulation.max_plans"
FAILED = frozenset({"unparsed", "failed check", "cut off", "empty", "refused by server", "unjudged"})
"""Reasons of rows that failed, as against rows that a filter dropped."""
MOST_TURNS, MOST_ROUNDS, MOST_SAMPLES = 5, 8, 64
"""Most turns of a dialogue, rounds of refinement and samples of an answer that the config lets through."""
GROWTH = 1.25
"""Spare scenarios asked for when candidates have run out and the society lives on."""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended."""

    path: Path
    n_kept: int
    n_wanted: int
    reason: str
    """`complete`, or why rows are missing."""
    was_finished: bool = False
    """True when there was nothing left to do."""
    is_limited: bool = False
    """True when a limit of the user's stopped the run, which the same command goes on with."""

    @property
    def is_complete(self) -> bool:
        """Whether everything wanted is there, and nothing was left undone."""
        return self.reason == "complete"


def default_folder(config: Config, command: str) -> Path:
    """Return where a run is put when the user does not say."""
    what = load_kind(config.synthesis.kind).name if command == "generate" else "simulation"
    return Path("runs") / f"{config.recipe}-{what}"


def can_start(config: Config) -> bool:
    """Whether every model that a run of this config needs is named."""
    try:
        assign_parts(config, load_kind(config.synthesis.kind))
    except ConfigError:
        return False
    return True


def start_fresh(path: Path) -> Path:
    """Return `path` if it is free, else the first free `path-2`, `path-3`, ...; nothing is ever deleted."""
    candidates = (path.with_name(f"{path.name}-{number}") for number in range(2, 10_000))
    return path if _is_free(path) else next(other for other in candidates if _is_free(other))


def _is_free(path: Path) -> bool:
    """Whether there is no run in a folder; an estimate may be there already."""
    return not path.exists() or {entry.name for entry in path.iterdir()} <= {ESTIMATE_FILE}


async def generate(
    config: Config, path: Path, *, progress: Progress, replay: tuple[Path, ...] = (), is_quiet: bool = False
) -> Result:
    """Simulate a society and make a data set of `config.n` rows from it, in the run folder `path`."""
    kind = load_kind(config.synthesis.kind)
    return await _run("generate", config, path, kind, progress, replay, is_quiet)


async def simulate(
    config: Config, path: Path, *, progress: Progress, replay: tuple[Path, ...] = (), is_quiet: bool = False
) -> Result:
    """Simulate a society until `config.n` scenarios are certain, in the run folder `path`."""
    return await _run("simulate", config, path, None, progress, replay, is_quiet)


SIMULATION_PROGRAMS = (
    *("anonymiser", "privacy_checker", "goal_setter", "planner", "actor", "memory_keeper", "intra_router"),
    *("inter_router", "reception_router", "scenario_writer"),
)


def list_programs_used(config: Config, kind: KindConfig | None) -> dict[str, str]:
    """Return the programs a run may call, each with its variant."""
    names = list(SIMULATION_PROGRAMS)
    if kind is not None:
        names += ["instruction_writer", "responder"]
        names += ["follow_up_writer", "converser"] if kind.shape == "dialogue" else []
        names += ["critic", "reviser", "pair_judge"] if config.synthesis.refine and kind.shape in REFINED else []
        names += ["safety_judge"] if "safety" in kind.checks else []
        is_judged = config.curation.judge_threshold is not None or config.selection.on
        names += ["response_judge"] if is_judged else []
        names += ["instruction_rater"] if config.synthesis.rate else []
    return {name: kind.programs.get(name, "default") if kind else "default" for name in names}


async def _run(
    command: str,
    config: Config,
    path: Path,
    kind: KindConfig | None,
    progress: Progress,
    replay: tuple[Path, ...],
    is_quiet: bool,
) -> Result:
    config = config if kind is None else apply_kind(config, kind)
    _check_embedder(config)
    parts = assign_parts(config, kind)
    warn_of_one_model(parts, kind)
    profiles, bad = _load_profiles(config)
    if len(profiles):  # people who drop out may still make the groups too many
        count_groups(len(profiles), config.simulation.n_groups, config.simulation.max_group_size)
    if kind is not None:
        check_language(config)
        if config.synthesis.refine and kind.shape not in REFINED:
            log.warning("--refine does nothing for kind %r: conversations and reasoning are not revised", kind.name)
    benchmarks = load_benchmarks(config) if kind is not None else []
    check_sandbox(config, kind)
    check_selection(config, kind)
    build_budget(config, parts)  # refuses what cannot be held before anything is opened
    programs = list_programs_used(config, kind)
    inputs = _hash_inputs(config, kind, programs)
    estimate = read_estimate(path)
    async with AsyncExitStack() as stack:
        crew = await stack.enter_async_context(open_crew(config, parts))
        trace = await stack.enter_async_context(open_trace(config.operation.trace_share))
        reward, calibration = await stack.enter_async_context(_open_scorer(config, crew))
        main = crew["main"]
        folder = stack.enter_context(
            RunFolder.open(
                path, command, config, name_models(crew), replay=replay, has_schemas=main.has_schemas,
                inputs=inputs | name_schemas(crew),
            )
        )  # fmt: skip
        if _is_finished(folder, config, kind):
            return Result(path, config.n, config.n, "complete", was_finished=True)
        main.engine.journal_into(path / "journal", keep_prompts=config.operation.keep_prompts)
        runner = Runner(
            main.engine, folder.journal, config.seed, progress, build_budget(config, parts),
            structured=main.has_schemas, longest_text=config.lm.longest_text, trace=trace, price=main.price,
        )  # fmt: skip
        made = Made(profiles=profiles, bad=bad)
        job = _Job(config, kind, crew, runner, made, folder, benchmarks, reward, calibration)
        start = Start(datetime.now(UTC), time.monotonic(), await main.engine.read_prefix_cache(), estimate)
        teller = _Teller(command, job, start, programs)
        with show_progress(progress, is_quiet=is_quiet):
            await _work(job, teller)
        return await teller.finish()


async def _work(job: "_Job", teller: "_Teller") -> None:
    """Do the job while its tables and card are brought up to date now and then."""
    refreshing = asyncio.create_task(teller.refresh())
    try:
        await job.work()
    except LimitError as error:
        job.made.stop_reason, job.made.is_limited = str(error), True
    except TableError:
        job.made.write(job.folder, job.kind)  # what was rejected, and why
        raise
    finally:
        refreshing.cancel()
        await asyncio.gather(refreshing, return_exceptions=True)


class _Teller:
    """Writes down how far a run is: tables, data set, figures and card."""

    def __init__(self, command: str, job: "_Job", start: Start, programs: Mapping[str, str]) -> None:
        self.command, self.job, self.start = command, job, start
        self.hashes = {name: hash_prompt(load_program(name, variant))[:16] for name, variant in programs.items()}

    async def refresh(self) -> None:
        """Write every `refresh_s` seconds for as long as the run goes on."""
        while seconds := self.job.config.operation.refresh_s:
            await asyncio.sleep(seconds)
            if self.job.made.population is None:
                continue
            try:
                await self._tell("", is_final=False)
            except RunError as error:
                log.warning("the run goes on, but how far it is could not be written: %s", error)

    async def finish(self) -> Result:
        """Write everything for the last time and say how the run ended."""
        job = self.job
        config, made = job.config, job.made
        if made.flow is not None:
            made.flow.finish()
        n_kept = made.write(job.folder, job.kind)
        is_whole = n_kept >= config.n and not made.is_limited
        reason = "complete" if is_whole else made.stop_reason or QUIET
        await self._tell(reason, is_final=True, n_kept=n_kept)
        job.folder.write_state({"reason": reason, "n": config.n, "kept": n_kept})
        return Result(job.folder.path, n_kept, config.n, reason, is_limited=made.is_limited)

    async def _tell(self, reason: str, *, is_final: bool, n_kept: int | None = None) -> None:
        job = self.job
        cache = await job.crew["main"].engine.read_prefix_cache()
        if n_kept is None:
            n_kept = job.made.write(job.folder, job.kind)
        told = describe_figures(
            self.command, job.config, job.kind, job.folder.path.name, job.made, job.crew, job.runner.progress,
            self.start, self.hashes, reason, n_kept, cache, is_final=is_final,
        )  # fmt: skip
        job.folder.write_figures(told)
        main = job.crew["main"]
        source = Source(job.config, job.kind.name if job.kind else "", add_usage(job.crew), main.has_schemas)
        await asyncio.to_thread(write_card, job.folder.path, source, self.command)


class _Job:
    """The stages of one run, in order."""

    def __init__(
        self,
        config: Config,
        kind: KindConfig | None,
        crew: Mapping[Part, Member],
        runner: Runner,
        made: Made,
        folder: RunFolder,
        benchmarks: list[Benchmark],
        reward: rewarding.Scorer | None,
        calibration: rewarding.Calibration | None,
    ) -> None:
        self.config = config
        self.kind = kind
        self.crew = crew
        self.runner = runner
        self.made = made
        self.folder = folder
        self.benchmarks = benchmarks
        self.reward = reward
        self.calibration = calibration

    async def work(self) -> None:
        """Run every stage; what is done so far stands in `made` whatever happens."""
        progress, made = self.runner.progress, self.made
        progress.rejected += len(made.bad)
        progress.enter("population", len(made.profiles), "profiles")
        population = await build_population(made.profiles, self.config, self.runner)
        made.population = population
        progress.rejected += len(population.rejected)
        if not population.agents:
            (reason, detail), _ = Counter((row.reason, row.detail) for row in population.rejected).most_common(1)[0]
            words = f"{reason} ({detail})" if detail else reason
            raise TableError(f"no profile became an agent, most of them: {words}; see tables/rejected.parquet")
        embedder = self._build_embedder(population)
        public = [text for profile in population.profiles for text in (profile.description, *profile.history)]
        made.curator = build_curator(
            self.config, self.kind, made.profiles, public, embedder, self.benchmarks, self.reward, self.calibration
        )
        made.groups = form_groups(population.agents, self.config, embedder)
        society = Society(population.agents, made.groups, population.histories, self.config, self.runner, embedder)
        if self.kind is None:
            await self._simulate(society, self.config.n)
        else:
            await self._synthesise(society, embedder, self.kind)

    async def _simulate(self, society: Society, n_scenarios: int) -> bool:
        """Let the society live until `n_scenarios`; False when it fell quiet before."""
        made = self.made
        made.scenarios_wanted = n_scenarios
        self.runner.progress.enter("simulation", n_scenarios, "scenarios")
        self.runner.progress.kept = min(n_scenarios, len(society.closed))
        n_failures = len(made.bad)
        try:
            return await society.live(n_scenarios)
        finally:
            made.closed, failures = society.take(n_scenarios)
            known = set(made.bad)
            made.bad += [row for row in failures if row not in known]
            self.runner.progress.rejected += len(made.bad) - n_failures

    async def _synthesise(self, society: Society, embedder: Embedder, kind: KindConfig) -> None:
        """Alternate between living and writing until n rows are kept or nothing more can come."""
        made, config = self.made, self.config
        assert made.curator is not None
        desk = Desk(config, self._assign_runners(), kind.programs, self.folder.read_retries())
        flow = Flow(config, kind, desk, made.curator, n_groups=len(made.groups))
        made.flow = flow
        retriever = Retriever(config.synthesis, embedder, config.seed)
        agents = {agent.agent_id: agent for agent in made.population.agents} if made.population else {}
        wanted = config.simulation.scenarios or _plan_scenarios(config, flow.wanted, len(agents), len(made.groups))
        while True:
            is_alive = await self._simulate(society, wanted)
            events = {event.event_id: event for closed in made.closed for event in closed.events}
            new = retriever.add([closed.scenario for closed in made.closed])
            flow.offer(build_candidates(new, events, agents, retriever.relevance, config, kind.name))
            self.runner.progress.enter("synthesis", flow.wanted, "rows")
            self.runner.progress.kept = flow.wanted - flow.n_missing
            n_missing = await flow.fill()
            if n_missing <= 0:
                return
            if flow.is_hopeless:
                made.stop_reason = _say_hopeless(flow)
                return
            if not is_alive:
                made.stop_reason = f"{QUIET}; about {_count_more(flow, made):,} more scenarios would fill the set"
                return
            wanted = len(made.closed) + _count_more(flow, made)

    def _assign_runners(self) -> dict[DeskPart, Runner]:
        """Return a runner for every part; all share journal, budget and counters."""
        main = self.runner
        by_engine = {id(main.engine): main}
        for member in self.crew.values():
            if id(member.engine) not in by_engine:
                by_engine[id(member.engine)] = replace(
                    main, engine=member.engine, structured=member.has_schemas, price=member.price, _in_words=set()
                )
        return {part: by_engine[id(self.crew[part].engine)] for part in DESK_PARTS if part in self.crew}

    def _build_embedder(self, population: Population) -> Embedder:
        corpus = [
            " ".join((profile.description, *profile.history))
            for profile in sorted(population.profiles, key=lambda profile: profile.profile_id)
        ]
        corpus += [f"{agent.life_goal} {' '.join(agent.plan)}" for agent in population.agents]
        if self.config.synthesis.need:
            corpus.append(self.config.synthesis.need)
        return build_embedder(self.config.embedder, corpus, self.config.seed)


@asynccontextmanager
async def _open_scorer(
    config: Config, crew: Mapping[Part, Member]
) -> AsyncIterator[tuple[rewarding.Scorer | None, rewarding.Calibration | None]]:
    """Open what scores answers for selection, and refuse a judge that was never measured (METHOD 3.6)."""
    selection = config.selection
    if not selection.on:
        if selection.reward_model:
            log.warning("the reward model is not asked: rows are scored only where they are selected; add --select")
        yield None, None
        return
    asks_reward = bool(selection.reward_model) and selection.scorer in ("auto", "reward")
    if selection.scorer == "judge" or (selection.scorer == "auto" and not asks_reward):
        yield None, rewarding.load_calibration(crew["judge"].engine.model, force=selection.force)
    elif not asks_reward:
        yield None, None
    else:
        async with rewarding.build_scorer(selection.reward_model) as reward:
            yield reward, None


def _load_profiles(config: Config) -> tuple[list[Profile], list[Rejected]]:
    """Read the profiles and draw as many as agents are wanted, the same for the same seed."""
    profiles, bad = read_profiles(_profiles_path(config), config.population.columns)
    n_agents = config.population.n_agents
    if len(profiles) > n_agents:
        profiles = random.Random(config.seed).sample(profiles, n_agents)
    return sorted(profiles, key=lambda profile: profile.profile_id), bad


def _profiles_path(config: Config) -> Path:
    return Path(config.population.profiles) if config.population.profiles else SHIPPED_PROFILES


def _hash_files(path: Path) -> str:
    """Hash a file, or the files of a folder by name."""
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _hash_inputs(config: Config, kind: KindConfig | None, programs: Mapping[str, str]) -> dict[str, str]:
    """Hash everything a run reads: people, kind, evaluation sets, compiled states."""
    inputs = {"profiles_sha256": _hash_files(_profiles_path(config))}
    inputs |= {f"program_{name}": hash_state(load_program(name, variant))[:16] for name, variant in programs.items()}
    if kind is not None:
        inputs["kind"] = hashlib.sha256(orjson.dumps(kind.model_dump(), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    if kind is not None and config.curation.benchmarks:
        inputs["benchmarks"] = hash_benchmarks(Path(config.curation.benchmarks), config.curation.benchmark_columns)
    return inputs


def _is_finished(folder: RunFolder, config: Config, kind: KindConfig | None) -> bool:
    """Whether an earlier start completed this very run and its files are still there."""
    state = folder.read_state()
    made = [folder.path / "tables" / "rejected.parquet"]
    if kind is not None:
        made += [folder.path / "dataset" / f"{kind.name}.{ending}" for ending in ("parquet", "jsonl")]
    return state.get("reason") == "complete" and state.get("n") == config.n and all(file.is_file() for file in made)


def _check_embedder(config: Config) -> None:
    """Refuse a missing embedding model before anything is paid for."""
    _, _, path = config.embedder.partition(":")
    if path and not Path(path).exists():
        raise ConfigError(f"no embedding model at {path!r}; give the path of a sentence-transformers folder")


def mark_retries(path: Path) -> int:
    """Mark the failed rows of the run in folder `path` to be asked for anew; returns how many there are.

    When an earlier retry was interrupted, its marks stand and no others are made.

    Rows fail when a model's answer could not be used or the server refused the request; rows that a filter dropped
    did not fail. From synthesis on only: what happened in a simulation has had its consequences.

    Raises:
        RunError: there is no run there, or another process works on it.
    """
    command, config = read_config(path)
    if command != "generate":
        what = "a simulation" if command == "simulate" else f"a run of {command}"
        raise RunError(f"{str(path)!r} holds {what}; retry is for rows that generate made, from synthesis on")
    folder = RunFolder(path)
    retries = folder.read_retries()
    if retries and not folder.read_state():
        return sum(map(len, retries.values()))
    failed = read_run_table(path, "rejected").filter(pl.col("reason").is_in(sorted(FAILED)))
    ids = dict(zip(failed["id"].to_list(), failed["noun"].to_list(), strict=True))
    again = [("instruction_writer", each) for each, noun in ids.items() if noun == "instruction"]
    for instruction_id in read_run_table(path, "instructions")["instruction_id"].to_list():
        again += [(purpose, instruction_id) for purpose in _find_failed(instruction_id, config.seed, ids)]
    lock = take_lock(path)
    try:
        for purpose, instruction_id in again:
            own = retries.setdefault(purpose, {})
            own[instruction_id] = own.get(instruction_id, 0) + 1
        if again:
            folder.write_retries(retries)
            folder.write_state({})
    finally:
        lock.release()
    return len({instruction_id for _, instruction_id in again})


def _find_failed(instruction_id: str, seed: int, failed: Mapping[str, str]) -> Iterator[str]:
    """Give the purposes of the calls that failed for an instruction; ids follow from the instruction's own."""
    answer_id = make_response_id(instruction_id, seed)
    if answer_id in failed:
        yield "responder"
    if make_response_id(instruction_id, seed, "rejected") in failed:
        yield "rejected"
    if any(make_response_id(instruction_id, seed, "turn", turn) in failed for turn in range(1, MOST_TURNS)):
        yield "converser"
    if any(make_follow_up_id(instruction_id, seed, turn) in failed for turn in range(1, MOST_TURNS)):
        yield "follow_up_writer"
    later = {"turn": range(1, MOST_TURNS), "revision": range(MOST_ROUNDS), "student": range(MOST_SAMPLES)}
    numbered = ((part, number) for part, numbers in later.items() for number in numbers)
    judged = [answer_id, *(make_response_id(instruction_id, seed, part, number) for part, number in numbered)]
    if any(make_judgement_id(each, "score", seed) in failed for each in judged):
        yield "response_judge"
    if any(make_judgement_id(each, "safety", seed) in failed for each in judged):
        yield "safety_judge"


def _plan_scenarios(config: Config, n_rows: int, n_agents: int, n_groups: int) -> int:
    """Return how many scenarios to simulate for so many rows, one instruction per agent and scenario."""
    synthesis = config.synthesis
    oversample = synthesis.need_oversample if synthesis.need else synthesis.oversample
    return max(1, math.ceil(n_rows * oversample * n_groups / n_agents))


def _count_more(flow: Flow, made: Made) -> int:
    """Return how many more scenarios the missing rows need, by what scenarios have yielded so far."""
    per_scenario = max(0.2, (flow.wanted - flow.n_missing) / max(1, len(made.closed)))
    return max(len(made.groups), math.ceil(GROWTH * flow.n_missing / per_scenario))


def _say_hopeless(flow: Flow) -> str:
    """Say which filter dropped everything, with an example."""
    rows = [row.rejected for row in flow.rows if row.rejected]
    (reason, count), *_ = Counter(row.reason for row in rows).most_common(1)
    example = next(row for row in rows if row.reason == reason)
    shown = " ".join(example.raw_text.split())[:120]
    said = "; ".join(filter(None, (example.detail, shown and f"for example {shown!r}")))
    return f"all of {len(rows)} candidates were dropped, {count} for {reason!r} ({said})"
