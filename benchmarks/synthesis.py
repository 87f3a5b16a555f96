"""Row-level flow against stage after stage, with one model that writes and another, as slow, that answers.

    python benchmarks/synthesis.py [--rows 400] [--latency 0.2] [--concurrency 16]

A small society is rehearsed first. Then the same candidates are turned into the same rows twice: by the flow, in which
a row is answered while others are still being written, and in two stages, all instructions before all answers. Filters,
prompts and models are the same; the ratio of the two times is the figure.
"""

import argparse
import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from matrix_dspy.bulk.program import for_each
from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import Config, KindConfig, apply_kind, load_kind, load_recipe
from matrix_dspy.engine.embedding import build_embedder
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.gates import Curator, build_curator
from matrix_dspy.pipeline import SHIPPED_PROFILES
from matrix_dspy.population.agents import build_population
from matrix_dspy.population.reading import read_profiles
from matrix_dspy.simulation.society import Society, form_groups
from matrix_dspy.synthesis.desk import DESK_PARTS, Desk, Part
from matrix_dspy.synthesis.flow import Flow, build_candidates
from matrix_dspy.synthesis.retrieval import Retriever
from matrix_dspy.synthesis.row import Candidate, Row


async def rehearse(config: Config, n_candidates: int) -> tuple[list[Candidate], int]:
    """Let a society live until there are enough candidates; returns them and the number of groups."""
    profiles, _ = read_profiles(SHIPPED_PROFILES, {})
    async with build_engine("rehearsal") as engine:
        runner = Runner(engine, seed=config.seed)
        population = await build_population(profiles[: config.population.n_agents], config, runner)
        embedder = build_embedder("tfidf", [profile.description for profile in population.profiles], config.seed)
        groups = form_groups(population.agents, config, embedder)
        society = Society(population.agents, groups, population.histories, config, runner, embedder)
        n_scenarios = -(-n_candidates * len(groups) // len(population.agents)) + len(groups)
        await society.live(n_scenarios)
    closed, _ = society.take(n_scenarios)
    events = {event.event_id: event for each in closed for event in each.events}
    agents = {agent.agent_id: agent for agent in population.agents}
    ranked = Retriever(config.synthesis, embedder, config.seed).add([each.scenario for each in closed])
    candidates = build_candidates(ranked, events, agents, {}, config, "sft")
    return candidates[:n_candidates], len(groups)


def make_curator(config: Config, kind: KindConfig) -> Curator:
    """Build the filters anew: they remember what they have seen."""
    return build_curator(config, kind, [], [], build_embedder("tfidf", ["a text"], 0), [])


def make_desk(config: Config, writer: Runner, responder: Runner) -> Desk:
    """Return a desk where one model writes and the other does the rest."""
    runners: dict[Part, Runner] = dict.fromkeys(DESK_PARTS, responder)
    runners["writer"] = writer
    return Desk(config, runners)


Job = tuple[Config, KindConfig, list[Candidate], int, Desk]


def make_flow(job: Job) -> Flow:
    """Return a flow with its candidates."""
    config, kind, candidates, n_groups, desk = job
    flow = Flow(config, kind, desk, make_curator(config, kind), n_groups)
    flow.offer(candidates)
    return flow


async def time_flow(job: Job) -> tuple[float, int]:
    """Return seconds and rows kept, row by row."""
    flow = make_flow(job)
    started = time.perf_counter()
    await flow.fill()
    return time.perf_counter() - started, sum(row.example is not None for row in flow.rows)


async def time_stages(job: Job) -> tuple[float, int]:
    """Return seconds and rows kept, one stage after the other."""
    flow, desk = make_flow(job), job[-1]
    started = time.perf_counter()
    while flow.n_missing > 0 and (wave := flow._take_wave()):
        flow.wave = wave
        await do_all(wave, desk.runner_of("writer"), flow._write)
        kept = [row for row in wave if flow._check_instruction(row)]
        await do_all(kept, desk.runner_of("responder"), flow._answer)
        flow._keep(wave)
        flow.wave = []
    return time.perf_counter() - started, sum(row.example is not None for row in flow.rows)


async def do_all(rows: Sequence[Row], runner: Runner, work: Callable[[Row], Coroutine[Any, Any, None]]) -> None:
    """Do a stage for all rows, as many at once as the model takes."""
    await for_each(len(rows), 2 * runner.engine.concurrency, lambda place: work(rows[place]))


async def measure(n_rows: int, latency: float, concurrency: int) -> None:
    """Run both and print the ratio."""
    kind = load_kind("sft")
    changes = {"n": n_rows, "synthesis.rate": False, "synthesis.group_share": 1.0, "population.privacy_check": False}
    config = apply_kind(load_recipe("tiny", changes), kind)
    candidates, n_groups = await rehearse(config, int(1.3 * n_rows))
    print(
        f"{len(candidates)} candidates, {n_rows} rows wanted, {latency} s a call, {concurrency} calls at once a model"
    )
    seconds: dict[str, float] = {}
    for name, run in (("stage after stage", time_stages), ("row by row", time_flow)):
        spec = f"rehearsal?latency={latency}"
        async with (
            build_engine(spec, concurrency=concurrency) as one,
            build_engine(spec, concurrency=concurrency) as two,
        ):
            desk = make_desk(config, Runner(one, seed=0), Runner(two, seed=0))
            seconds[name], n_kept = await run((config, kind, candidates, n_groups, desk))
            print(f"{name:18} {seconds[name]:7.2f} s, {n_kept} rows, calls: {one.usage.calls} and {two.usage.calls}")
    print(f"row by row is {seconds['stage after stage'] / seconds['row by row']:.2f} times as fast")


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=16)
    given = parser.parse_args()
    asyncio.run(measure(given.rows, given.latency, given.concurrency))


if __name__ == "__main__":
    main()
