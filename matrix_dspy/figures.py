"""How a run went, in numbers: for the card, and as `figures.json` for reports."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.crew import Member, Part, is_rehearsal, name_models
from matrix_dspy.curation.filters import read_refusal_version
from matrix_dspy.curation.selection import describe_selection
from matrix_dspy.loading import hash_prompt, load_program
from matrix_dspy.made import Made
from matrix_dspy.report.card import Figures
from matrix_dspy.report.estimate import Estimate, compare_estimate
from matrix_dspy.synthesis.desk import find_part

REFINERS = ("critic", "reviser", "pair_judge")
"""Programs whose calls are the price of refinement."""


@dataclass(frozen=True, slots=True)
class Start:
    """When and with what a start began."""

    began: datetime
    clock: float
    """`time.monotonic()` then."""
    cache: tuple[int, int] | None
    """What the server's prefix cache had found and looked up by then."""
    estimate: Estimate | None


def collect_figures(
    config: Config,
    kind: KindConfig | None,
    name: str,
    made: Made,
    crew: Mapping[Part, Member],
    progress: Progress,
    start: Start,
    seconds: float,
    reason: str,
    n_kept: int,
    cache: tuple[int, int] | None,
) -> Figures:
    """Gather what the card tells of a run."""
    population, main = made.population, crew["main"]
    return Figures(
        config=config,
        kind=kind,
        name=name,
        model=main.engine.model,
        reason=reason,
        began=start.began,
        seconds=seconds,
        n_kept=n_kept,
        n_calls=progress.n_calls,
        n_replayed=progress.n_replayed,
        prompt_tokens=progress.prompt_tokens,
        completion_tokens=progress.completion_tokens,
        cached_tokens=progress.cached_tokens,
        prefix_cache=_subtract(cache, start.cache),
        total_cost=_sum_cost(crew, progress),
        tallies=progress.by_program,
        usage=main.engine.usage,
        has_schemas=main.has_schemas,
        estimate=start.estimate if start.estimate is not None and start.estimate.n == config.n else None,
        profiles=population.profiles if population else [],
        n_read=len(made.profiles),
        n_agents=len(population.agents) if population else 0,
        groups=made.groups,
        scenarios=[closed.scenario for closed in made.closed],
        events=[event for closed in made.closed for event in closed.events],
        n_candidates=len(made.rows),
        examples=made.examples,
        instructions=[row.instruction for row in made.rows if row.example and row.instruction],
        rejected=made.rejected,
    )


def describe_figures(
    figures: Figures,
    command: str,
    made: Made,
    crew: Mapping[Part, Member],
    programs: Mapping[str, str],
    *,
    is_final: bool,
) -> dict[str, Any]:
    """Return what `figures.json` holds; `programs` are the variants used, by name."""
    models = name_models(crew)
    return {
        "command": command,
        "name": figures.name,
        "describe": figures.kind.describe if figures.kind else "",
        "model": figures.model,
        "models": models,
        "reason": figures.reason,
        "is_final": is_final,
        "began": figures.began.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": round(figures.seconds, 3),
        "n_wanted": figures.config.n,
        "n_kept": figures.n_kept,
        "n_candidates": figures.n_candidates,
        "n_profiles_read": figures.n_read,
        "n_calls": figures.n_calls,
        "n_replayed": figures.n_replayed,
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "cached_tokens": figures.cached_tokens,
        "prefix_cache": figures.prefix_cache,
        "cost": figures.total_cost,
        "programs": {
            name: {
                "calls": tally.calls,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "seconds": round(tally.seconds, 3),
                "cost": tally.cost,
                "model": models.get(find_part(name), figures.model),
            }
            for name, tally in figures.tallies.items()
        },
        "program_hashes": {name: hash_prompt(load_program(name, variant))[:16] for name, variant in programs.items()},
        "estimate": _compare(figures),
        "estimate_basis": figures.estimate.basis if figures.estimate else "",
        "benchmarks": _describe_benchmarks(made),
        "refinement": _describe_refinement(figures, made),
        "selection": _describe_selection(made),
        "refusal_version": read_refusal_version(),
    }


def _compare(figures: Figures) -> list[dict[str, Any]]:
    if figures.estimate is None:
        return []
    rows = compare_estimate(figures.estimate, figures.tallies, figures.seconds, figures.total_cost)
    return [
        {
            "what": row.what,
            "low": row.estimated.low,
            "expected": row.estimated.expected,
            "high": row.estimated.high,
            "actual": row.actual,
            "difference": row.difference,
        }
        for row in rows
        if row.what != "seconds" or not figures.n_replayed
    ]


def _describe_benchmarks(made: Made) -> list[dict[str, Any]]:
    if made.curator is None:
        return []
    return [
        {"name": each.name, "items": each.n_items, "has_text": bool(each.items)} for each in made.curator.benchmarks
    ]


def _describe_refinement(figures: Figures, made: Made) -> dict[str, Any] | None:
    """Say what critique and revision brought and what they took."""
    critiques = [critique for row in made.rows for critique in row.critiques]
    if not critiques:
        return None
    tallies = [figures.tallies[name] for name in REFINERS if name in figures.tallies]
    verdicts = Counter(critique.verdict for critique in critiques)
    n_compared = sum(verdicts[verdict] for verdict in ("better", "worse", "undecided"))
    return {
        "rounds": len(critiques),
        "verdicts": dict(sorted(verdicts.items())),
        "kept": verdicts["better"],
        "kept_share": verdicts["better"] / n_compared if n_compared else None,
        "calls": sum(tally.calls for tally in tallies),
        "tokens": sum(tally.prompt_tokens + tally.completion_tokens for tally in tallies),
        "cost": sum(tally.cost for tally in tallies) if figures.total_cost is not None else None,
    }


def _describe_selection(made: Made) -> dict[str, Any] | None:
    if made.curator is None or not made.curator.decisions:
        return None
    rows = {row.candidate.instruction_id: row for row in made.rows if row.instruction is not None}
    categories = {key: row.instruction.category for key, row in rows.items() if row.instruction}
    difficulties = {
        key: next((one.level for one in row.judgements if one.criterion == "difficulty"), None)
        for key, row in rows.items()
    }
    known = {key: level if level != "unrated" else None for key, level in difficulties.items()}
    return describe_selection(made.curator.decisions, categories, known)


def _sum_cost(crew: Mapping[Part, Member], progress: Progress) -> float | None:
    """Return dollars for all calls; None where the price of a model that is paid for is not known."""
    if any(member.price is None and not is_rehearsal(member.spec) for member in crew.values()):
        return None
    if all(member.price is None for member in crew.values()):
        return None
    return sum(tally.cost for tally in progress.by_program.values())


def _subtract(now: tuple[int, int] | None, before: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if now is None or before is None else (now[0] - before[0], now[1] - before[1])
