"""How a run went, in numbers: for the card, and as `figures.json` for reports."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from matrix_dspy.bulk.progress import Progress
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.crew import Member, Part, is_rehearsal, name_models
from matrix_dspy.curation.diversity import measure_coverage
from matrix_dspy.curation.filters import read_refusal_version
from matrix_dspy.curation.selection import describe_selection
from matrix_dspy.made import Made
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


def describe_figures(
    command: str,
    config: Config,
    kind: KindConfig | None,
    name: str,
    made: Made,
    crew: Mapping[Part, Member],
    progress: Progress,
    start: Start,
    hashes: Mapping[str, str],
    reason: str,
    n_kept: int,
    cache: tuple[int, int] | None,
    *,
    is_final: bool,
) -> dict[str, Any]:
    """Return what `figures.json` holds; `hashes` are those of the rendered prompts of the programs used."""
    models, cost = name_models(crew), _sum_cost(crew, progress)
    seconds = time.monotonic() - start.clock
    return {
        "command": command,
        "name": name,
        "describe": kind.describe if kind else "",
        "model": models["main"],
        "models": models,
        "reason": reason,
        "is_final": is_final,
        "began": start.began.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "n_wanted": config.n,
        "n_kept": n_kept,
        "n_candidates": len(made.rows),
        "n_profiles_read": len(made.profiles),
        "n_calls": progress.n_calls,
        "n_replayed": progress.n_replayed,
        "prompt_tokens": progress.prompt_tokens,
        "completion_tokens": progress.completion_tokens,
        "cached_tokens": progress.cached_tokens,
        "prefix_cache": _subtract(cache, start.cache),
        "cost": cost,
        "programs": {
            program: {
                "calls": tally.calls,
                "prompt_tokens": tally.prompt_tokens,
                "completion_tokens": tally.completion_tokens,
                "seconds": round(tally.seconds, 3),
                "cost": tally.cost,
                "model": models.get(find_part(program), models["main"]),
            }
            for program, tally in progress.by_program.items()
        },
        "program_hashes": dict(hashes),
        "estimate": _compare(start.estimate, config, progress, seconds, cost),
        "estimate_basis": start.estimate.basis if start.estimate else "",
        "benchmarks": _describe_benchmarks(made),
        "refinement": _describe_refinement(progress, made, cost),
        "selection": _describe_selection(made),
        "occupations": _describe_occupations(made),
        "refusal_version": read_refusal_version(),
    }


def _compare(
    estimate: Estimate | None, config: Config, progress: Progress, seconds: float, cost: float | None
) -> list[dict[str, Any]]:
    """Set the estimate beside what the run became; empty where none was made for as many rows."""
    if estimate is None or estimate.n != config.n:
        return []
    return [
        {
            "what": row.what,
            "low": row.estimated.low,
            "expected": row.estimated.expected,
            "high": row.estimated.high,
            "actual": row.actual,
            "difference": row.difference,
        }
        for row in compare_estimate(estimate, progress.by_program, seconds, cost)
        if row.what != "seconds" or not progress.n_replayed  # the time of earlier starts is not known
    ]


def _describe_benchmarks(made: Made) -> list[dict[str, Any]]:
    if made.curator is None:
        return []
    return [
        {"name": each.name, "items": each.n_items, "has_text": bool(each.items)} for each in made.curator.benchmarks
    ]


def _describe_occupations(made: Made) -> dict[str, Any] | None:
    """Say how the kept rows spread over the occupations that profiles name: numbers only, for names are raw."""
    named = {profile.profile_id: dict(profile.facts).get("occupation") for profile in made.profiles}
    known = {agent.profile_id for agent in made.population.agents} if made.population else set()
    rows = [named.get(example.profile_id) for example in made.examples]
    if not any(rows):
        return None
    found = measure_coverage(rows, [name for profile_id, name in named.items() if name and profile_id in known])
    return {"covered": found.share, "entropy": found.entropy, "largest": found.largest}


def _describe_refinement(progress: Progress, made: Made, cost: float | None) -> dict[str, Any] | None:
    """Say what critique and revision brought and what they took."""
    critiques = [critique for row in made.rows for critique in row.critiques]
    if not critiques:
        return None
    tallies = [progress.by_program[name] for name in REFINERS if name in progress.by_program]
    verdicts = Counter(critique.verdict for critique in critiques)
    n_compared = sum(verdicts[verdict] for verdict in ("better", "worse", "undecided"))
    return {
        "rounds": len(critiques),
        "verdicts": dict(sorted(verdicts.items())),
        "kept": verdicts["better"],
        "kept_share": verdicts["better"] / n_compared if n_compared else None,
        "calls": sum(tally.calls for tally in tallies),
        "tokens": sum(tally.prompt_tokens + tally.completion_tokens for tally in tallies),
        "cost": sum(tally.cost for tally in tallies) if cost is not None else None,
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
    told = describe_selection(made.curator.decisions, categories, known)
    calibration = made.curator.calibration
    is_uncalibrated = calibration is not None and not calibration.is_calibrated
    return told | {
        "k": made.curator.config.selection.k,
        "scorer": made.curator.config.selection.scorer,
        "is_uncalibrated": is_uncalibrated,
    }


def _sum_cost(crew: Mapping[Part, Member], progress: Progress) -> float | None:
    """Return dollars for all calls; None where the price of a model that is paid for is not known."""
    if any(member.price is None and not is_rehearsal(member.spec) for member in crew.values()):
        return None
    if all(member.price is None for member in crew.values()):
        return None
    return sum(tally.cost for tally in progress.by_program.values())


def _subtract(now: tuple[int, int] | None, before: tuple[int, int] | None) -> tuple[int, int] | None:
    return None if now is None or before is None else (now[0] - before[0], now[1] - before[1])
