"""The order of the stages, from profiles to a data set, and what is written when.

    profiles -> agents -> groups -> events, scenarios -> instructions -> responses -> examples

Every completion is journaled on arrival and tables are written at the end, so a stopped run is started again with the
same command and pays only for what is missing.
"""

import hashlib
import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from matrix_dspy.bulk.budget import Budget
from matrix_dspy.bulk.folder import RunFolder, read_config, read_run_table, take_lock
from matrix_dspy.bulk.program import open_engine, sends_schemas
from matrix_dspy.bulk.progress import Progress, show_progress
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.bulk.trace import open_trace
from matrix_dspy.config import Config, KindConfig, load_kind
from matrix_dspy.curation.filters import Candidate as Filtered
from matrix_dspy.curation.filters import Filter, apply_filters, build_instruction_filters, build_response_filters
from matrix_dspy.engine.base import Engine
from matrix_dspy.engine.embedding import Embedder, build_embedder
from matrix_dspy.errors import ConfigError, LimitError, RunError, TableError
from matrix_dspy.loading import hash_state, load_program
from matrix_dspy.population.agents import Population, build_population
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.report.card import PROGRAMS_USED, Figures, write_card
from matrix_dspy.report.estimate import FILE as ESTIMATE_FILE
from matrix_dspy.report.estimate import Estimate, read_estimate
from matrix_dspy.report.prices import Price, find_price
from matrix_dspy.simulation.society import Closed, Society, form_groups
from matrix_dspy.synthesis.flow import Flow, build_candidates, make_response_id
from matrix_dspy.synthesis.retrieval import Retriever
from matrix_dspy.text import hide_secrets
from matrix_dspy.types import Group, Profile, Rejected

SHIPPED_PROFILES = Path(__file__).parent / "data" / "profiles" / "composed.jsonl"
QUIET = "the agents' plans are used up and no more scenarios come; take more agents or raise simulation.max_plans"
FAILED = frozenset({"unparsed", "failed check", "cut off", "empty", "refused by server"})
"""Reasons of rows that failed, as against rows that a filter dropped."""
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
        """Whether everything wanted is there."""
        return self.n_kept >= self.n_wanted


@dataclass(slots=True)
class Made:
    """Everything a run has made so far."""

    profiles: list[Profile] = field(default_factory=list)
    population: Population | None = None
    groups: list[Group] = field(default_factory=list)
    closed: list[Closed] = field(default_factory=list)
    flow: Flow | None = None
    rejected: list[Rejected] = field(default_factory=list)
    scenarios_wanted: int = 0
    stop_reason: str = ""
    is_limited: bool = False


def default_folder(config: Config, command: str) -> Path:
    """Return where a run is put when the user does not say."""
    return Path("runs") / f"{config.recipe}-{config.synthesis.kind if command == 'generate' else 'simulation'}"


def _hash_programs() -> dict[str, str]:
    """Return a hash of each program's compiled state: another state is another run."""
    return {f"program_{name}": hash_state(load_program(name))[:16] for name in PROGRAMS_USED}


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


async def _run(
    command: str,
    config: Config,
    path: Path,
    kind: KindConfig | None,
    progress: Progress,
    replay: tuple[Path, ...],
    is_quiet: bool,
) -> Result:
    _check_embedder(config)
    profiles, bad = _load_profiles(config)
    _build_budget(config)  # refuses what cannot be held before anything is opened
    estimate = read_estimate(path)
    engine = _build_engine(config)
    async with engine, open_trace(config.operation.trace_share) as trace:
        has_schemas = sends_schemas(engine, config.lm.structured)
        with RunFolder.open(
            path, command, config, {"main": engine.model}, replay=replay, has_schemas=has_schemas,
            inputs={"profiles_sha256": _hash_files(_profiles_path(config)), **_hash_programs()},
        ) as folder:  # fmt: skip
            if _is_finished(folder, config, kind):
                return Result(path, config.n, config.n, "complete", was_finished=True)
            engine.journal_into(path / "journal", keep_prompts=config.operation.keep_prompts)
            budget = _build_budget(config)
            runner = Runner(
                engine, folder.journal, config.seed, progress, budget,
                structured=has_schemas, longest_text=config.lm.longest_text, trace=trace,
            )  # fmt: skip
            cache_before = await engine.read_prefix_cache()
            job = _Job(config, kind, runner, Made(profiles=profiles, rejected=bad), folder.read_retries())
            started, began = time.monotonic(), datetime.now(UTC)
            with show_progress(progress, is_quiet=is_quiet):
                try:
                    await job.work()
                except LimitError as error:
                    job.made.stop_reason, job.made.is_limited = str(error), True
                except TableError:
                    job.write(folder)  # what was rejected, and why
                    raise
            n_kept = job.write(folder)
            reason = "complete" if n_kept >= config.n else job.made.stop_reason or QUIET
            seconds = time.monotonic() - started
            cache = _subtract(await engine.read_prefix_cache(), cache_before)
            figures = _measure(job, engine, path, reason, began, seconds, n_kept, cache, estimate)
            write_card(folder, figures, command)
            folder.write_state({"reason": reason, "n": config.n, "kept": n_kept})
            return Result(path, n_kept, config.n, reason, is_limited=job.made.is_limited)


class _Job:
    """The stages of one run, in order."""

    def __init__(
        self,
        config: Config,
        kind: KindConfig | None,
        runner: Runner,
        made: Made,
        retries: dict[str, dict[str, int]],
    ) -> None:
        self.config = config
        self.kind = kind
        self.runner = runner
        self.made = made
        self.retries = retries
        self.filters: list[Filter] = []
        self.response_filters: list[Filter] = []

    async def work(self) -> None:
        """Run every stage; what is done so far stands in `made` whatever happens."""
        progress, made = self.runner.progress, self.made
        progress.rejected += len(made.rejected)
        progress.enter("population", len(made.profiles), "profiles")
        population = await build_population(made.profiles, self.config, self.runner)
        made.population = population
        progress.rejected += len(population.rejected)
        if not population.agents:
            (reason, detail), _ = Counter((row.reason, row.detail) for row in population.rejected).most_common(1)[0]
            words = f"{reason} ({detail})" if detail else reason
            raise TableError(f"no profile became an agent, most of them: {words}; see tables/rejected.parquet")
        public = [text for profile in population.profiles for text in (profile.description, *profile.history)]
        self.filters = build_instruction_filters(self.config.curation, made.profiles, self.config.seed, public)
        self.response_filters = build_response_filters(self.filters)
        embedder = self._build_embedder(population)
        made.groups = form_groups(population.agents, self.config, embedder)
        society = Society(population.agents, made.groups, population.histories, self.config, self.runner, embedder)
        if self.kind is None:
            await self._simulate(society, self.config.n)
        else:
            await self._synthesise(society, embedder, self.kind)

    def write(self, folder: RunFolder) -> int:
        """Write all tables, and the data set of a kind; returns how many units were kept."""
        made, population = self.made, self.made.population
        rows = made.flow.rows if made.flow else []
        folder.write_table("profiles", population.profiles if population else [])
        folder.write_table("agents", population.agents if population else [])
        folder.write_table("groups", made.groups)
        folder.write_table("events", [event for closed in made.closed for event in closed.events])
        folder.write_table("scenarios", [closed.scenario for closed in made.closed])
        rejected = [*made.rejected, *(population.rejected if population else [])]
        rejected += [row.rejected for row in rows if row.rejected]
        folder.write_table("rejected", rejected)
        if self.kind is None:
            return len(made.closed)
        folder.write_table("instructions", [row.instruction for row in rows if row.instruction])
        folder.write_table("responses", [row.response for row in rows if row.response])
        return len(folder.write_dataset(self.kind.name, [row.example for row in rows if row.example]))

    def check_instruction(self, row_id: str, text: str, others: Sequence[str]) -> tuple[str, str] | None:
        """Ask the filters on instructions; see `synthesis.flow.Gate`."""
        drop = apply_filters(self.filters, Filtered(row_id, text, tuple(others)))
        return (drop.reason, drop.detail) if drop else None

    def check_response(self, row_id: str, text: str) -> tuple[str, str] | None:
        """Ask the filters on responses; see `synthesis.flow.Gate`."""
        drop = apply_filters(self.response_filters, Filtered(row_id, text))
        return (drop.reason, drop.detail) if drop else None

    async def _simulate(self, society: Society, n_scenarios: int) -> bool:
        """Let the society live until `n_scenarios`; False when it fell quiet before."""
        made = self.made
        made.scenarios_wanted = n_scenarios
        self.runner.progress.enter("simulation", n_scenarios, "scenarios")
        self.runner.progress.kept = min(n_scenarios, len(society.closed))
        n_failures = len(made.rejected)
        try:
            return await society.live(n_scenarios)
        finally:
            made.closed, failures = society.take(n_scenarios)
            known = set(made.rejected)
            made.rejected += [row for row in failures if row not in known]
            self.runner.progress.rejected += len(made.rejected) - n_failures

    async def _synthesise(self, society: Society, embedder: Embedder, kind: KindConfig) -> None:
        """Alternate between living and writing until n rows are kept or nothing more can come."""
        made, config = self.made, self.config
        flow = Flow(config, kind, self.runner, self, n_groups=len(made.groups), retries=self.retries)
        made.flow = flow
        retriever = Retriever(config.synthesis, embedder, config.seed)
        agents = {agent.agent_id: agent for agent in made.population.agents} if made.population else {}
        wanted = config.simulation.scenarios or _plan_scenarios(config, len(agents), len(made.groups))
        while True:
            is_alive = await self._simulate(society, wanted)
            events = {event.event_id: event for closed in made.closed for event in closed.events}
            new = retriever.add([closed.scenario for closed in made.closed])
            flow.offer(build_candidates(new, events, agents, retriever.relevance, config, kind.name))
            self.runner.progress.enter("synthesis", config.n, "rows")
            self.runner.progress.kept = config.n - flow.n_missing
            n_missing = await flow.fill()
            if n_missing <= 0:
                return
            if flow.is_hopeless:
                made.stop_reason = _say_hopeless(flow)
                return
            if not is_alive:
                made.stop_reason = QUIET
                return
            wanted = len(made.closed) + _count_more(flow, made)

    def _build_embedder(self, population: Population) -> Embedder:
        corpus = [
            " ".join((profile.description, *profile.history))
            for profile in sorted(population.profiles, key=lambda profile: profile.profile_id)
        ]
        corpus += [f"{agent.life_goal} {' '.join(agent.plan)}" for agent in population.agents]
        if self.config.synthesis.need:
            corpus.append(self.config.synthesis.need)
        return build_embedder(self.config.embedder, corpus, self.config.seed)


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


def _build_engine(config: Config) -> Engine:
    operation = config.operation
    copies: dict[str, int] = {}
    if operation.data_parallel > 1:
        if operation.ray is not None:
            raise ConfigError("--ray spreads copies of the model itself; leave --data-parallel out")
        copies["data_parallel"] = operation.data_parallel
    return open_engine(
        config.lm.main,
        operation.ray,
        operation.ray_workers,
        concurrency=operation.concurrency,
        timeout_s=operation.timeout_s,
        patience_s=operation.patience_s,
        hedge_s=operation.hedge_s,
        send_seeds=operation.send_seeds,
        **copies,
    )


def _build_budget(config: Config) -> Budget:
    """Return what this start may spend; ConfigError when a limit on money cannot be held for want of a price."""
    operation = config.operation
    price = choose_price(config)
    is_free = config.lm.main.partition("?")[0] == "rehearsal"
    if operation.max_cost is not None and price is None and not is_free:
        raise ConfigError(
            f"no price is known for {hide_secrets(config.lm.main)!r}; give --price-in and --price-out with --max-cost"
        )
    return Budget(operation.max_calls, operation.max_tokens, operation.max_cost, operation.max_time_s, price)


def choose_price(config: Config) -> Price | None:
    """Return the price given in the config, else that of LiteLLM's map, else None."""
    operation = config.operation
    if operation.price_in is not None or operation.price_out is not None:
        return Price(operation.price_in or 0.0, operation.price_out or 0.0)
    return find_price(config.lm.main)


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
        raise RunError(f"{str(path)!r} holds a simulation; retry is for rows of a data set, from synthesis on")
    folder = RunFolder(path)
    retries = folder.read_retries()
    if retries and not folder.read_state():
        return sum(map(len, retries.values()))
    failed = read_run_table(path, "rejected").filter(pl.col("reason").is_in(sorted(FAILED)))
    written = failed.filter(pl.col("noun") == "instruction")["id"].to_list()
    responses = set(failed.filter(pl.col("noun") == "response")["id"].to_list())
    asked = read_run_table(path, "instructions")["instruction_id"].to_list()
    unanswered = [each for each in asked if make_response_id(each, config.seed) in responses]
    lock = take_lock(path)
    try:
        for program, ids in (("instruction_writer", written), ("responder", unanswered)):
            own = retries.setdefault(program, {})
            own.update({each: own.get(each, 0) + 1 for each in ids})
        if written or unanswered:
            folder.write_retries(retries)
            folder.write_state({})
    finally:
        lock.release()
    return len(written) + len(unanswered)


def _plan_scenarios(config: Config, n_agents: int, n_groups: int) -> int:
    """Return how many scenarios to simulate for n rows, one instruction per agent and scenario."""
    synthesis = config.synthesis
    oversample = synthesis.need_oversample if synthesis.need else synthesis.oversample
    return max(1, math.ceil(config.n * oversample * n_groups / n_agents))


def _count_more(flow: Flow, made: Made) -> int:
    """Return how many more scenarios the missing rows need, by what scenarios have yielded so far."""
    per_scenario = max(0.2, (flow.config.n - flow.n_missing) / max(1, len(made.closed)))
    return max(len(made.groups), math.ceil(GROWTH * flow.n_missing / per_scenario))


def _say_hopeless(flow: Flow) -> str:
    """Say which filter dropped everything, with an example."""
    rows = [row.rejected for row in flow.rows if row.rejected]
    (reason, count), *_ = Counter(row.reason for row in rows).most_common(1)
    example = next(row for row in rows if row.reason == reason)
    shown = " ".join(example.raw_text.split())[:120]
    return (
        f"all of {len(rows)} candidates were dropped, {count} for {reason!r} ({example.detail}; for example {shown!r})"
    )


def _subtract(now: tuple[int, int] | None, before: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if now is None or before is None else (now[0] - before[0], now[1] - before[1])


def _measure(
    job: _Job,
    engine: Engine,
    path: Path,
    reason: str,
    began: datetime,
    seconds: float,
    n_kept: int,
    prefix_cache: tuple[int, int] | None,
    estimate: Estimate | None,
) -> Figures:
    made, progress, price = job.made, job.runner.progress, job.runner.budget.price
    population = made.population
    rows = made.flow.rows if made.flow else []
    rejected = [*made.rejected, *(population.rejected if population else [])]
    rejected += [row.rejected for row in rows if row.rejected]
    return Figures(
        config=job.config,
        kind=job.kind,
        name=path.name,
        model=engine.model,
        reason=reason,
        began=began,
        seconds=seconds,
        n_kept=n_kept,
        n_calls=progress.n_calls,
        n_replayed=progress.n_replayed,
        prompt_tokens=progress.prompt_tokens,
        completion_tokens=progress.completion_tokens,
        cached_tokens=progress.cached_tokens,
        prefix_cache=prefix_cache,
        total_cost=price.cost(progress.prompt_tokens, progress.completion_tokens) if price else None,
        tallies=progress.by_program,
        usage=engine.usage,
        has_schemas=job.runner.structured,
        estimate=estimate if estimate is not None and estimate.n == job.config.n else None,
        profiles=population.profiles if population else [],
        n_read=len(made.profiles),
        n_agents=len(population.agents) if population else 0,
        groups=made.groups,
        scenarios=[closed.scenario for closed in made.closed],
        events=[event for closed in made.closed for event in closed.events],
        n_candidates=len(rows),
        examples=[row.example for row in rows if row.example],
        instructions=[row.instruction for row in rows if row.example and row.instruction],
        rejected=rejected,
    )
