"""The dataset card, `README.md` in the run folder, written from the run's own figures."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_dspy import __version__
from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.bulk.progress import Tally
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.curation.filters import read_refusal_version
from matrix_dspy.engine.base import Usage
from matrix_dspy.loading import hash_prompt, load_program
from matrix_dspy.report.estimate import Comparison, Estimate, compare_estimate
from matrix_dspy.text import count_words
from matrix_dspy.types import AnonymousProfile, Event, Example, Group, Instruction, Rejected, Scenario

N_SAMPLES = 5
PROGRAMS_USED = (
    *("anonymiser", "privacy_checker", "goal_setter", "planner", "actor", "memory_keeper", "intra_router"),
    *("inter_router", "reception_router", "scenario_writer", "instruction_writer", "responder"),
)
"""What a run of `generate` may call; the other programs are for those who compose their own."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run was and made, as the card tells it."""

    config: Config
    kind: KindConfig | None
    name: str
    model: str
    reason: str
    began: datetime
    seconds: float
    n_kept: int
    n_calls: int
    n_replayed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    prefix_cache: tuple[int, int] | None
    """Prompt tokens the server's prefix cache held and was asked for in the last start, where the server says so."""
    total_cost: float | None
    """Dollars for all calls, those replayed included; None where no price is known."""
    tallies: Mapping[str, Tally]
    usage: Usage
    has_schemas: bool
    estimate: Estimate | None
    profiles: Sequence[AnonymousProfile]
    n_read: int
    n_agents: int
    groups: Sequence[Group]
    scenarios: Sequence[Scenario]
    events: Sequence[Event]
    n_candidates: int
    examples: Sequence[Example]
    instructions: Sequence[Instruction]
    rejected: Sequence[Rejected]


def write_card(folder: RunFolder, figures: Figures, command: str) -> None:
    """Write the card of a run."""
    environment = Environment(
        loader=PackageLoader("matrix_dspy.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["cell"] = _cell
    environment.filters["quote"] = _quote
    environment.filters["count"] = _say_number
    text = environment.get_template(f"{command}.md.jinja").render(_build_context(figures, folder.run_id))
    folder.write_card(text)


def _build_context(figures: Figures, run_id: str) -> dict[str, Any]:
    receivers = [len(event.receiver_ids) for event in figures.events]
    return {
        "f": figures,
        "run_id": run_id,
        "version": __version__,
        "is_rehearsal": figures.model == "rehearsal",
        "licences": Counter(profile.licence for profile in figures.profiles).most_common(),
        "origins": Counter(profile.origin for profile in figures.profiles).most_common(8),
        "n_invented": sum(profile.is_invented for profile in figures.profiles),
        "group_sizes": sorted(Counter(len(group.agent_ids) for group in figures.groups).items()),
        "n_reactions": sum(event.kind == "react" for event in figures.events),
        "mean_receivers": statistics.fmean(receivers) if receivers else 0.0,
        "nobody_share": sum(not count for count in receivers) / len(receivers) if receivers else 0.0,
        "n_abroad": sum(bool(event.group_ids) for event in figures.events),
        "reasons": Counter((row.noun, row.reason) for row in figures.rejected).most_common(),
        "categories": Counter(example.category for example in figures.examples).most_common(),
        "groups_share": _largest_share(figures.examples),
        "instruction_words": _describe([count_words(row.messages[0].content) for row in figures.examples]),
        "response_words": _describe([count_words(row.messages[1].content) for row in figures.examples]),
        "relevance": _describe([row.relevance for row in figures.instructions if row.relevance is not None]),
        "samples": sorted(figures.examples, key=lambda row: row.example_id)[:N_SAMPLES],
        "refusal_version": read_refusal_version(),
        "programs": [(name, hash_prompt(load_program(name))[:16]) for name in PROGRAMS_USED],
        "size": _size_category(figures.n_kept),
        "comparison": _compare(figures),
        "off": _list_off(figures.config),
    }


def _compare(figures: Figures) -> list[Comparison]:
    """Set the estimate beside what the run became; empty where none was made."""
    if figures.estimate is None:
        return []
    rows = compare_estimate(figures.estimate, figures.tallies, figures.seconds, figures.total_cost)
    # the time of earlier starts is not known
    return [row for row in rows if row.what != "seconds" or not figures.n_replayed]


def _list_off(config: Config) -> list[str]:
    """Return the checks that were switched off."""
    off = [f"the filter {name!r}" for name in config.curation.off]
    return off if config.population.privacy_check else ["the privacy check", *off]


def _largest_share(examples: Sequence[Example]) -> float:
    counts = Counter(example.group_id for example in examples)
    return max(counts.values(), default=0) / max(1, len(examples))


def _describe(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return 5th percentile, median and 95th percentile; None without values."""
    if len(values) < 2:
        return None
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return cuts[0], statistics.median(values), cuts[-1]


def _size_category(n_rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if n_rows < bound), "n>1M")


def _say_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(text: object) -> str:
    """Put a value into a Markdown table cell without letting it become markup."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in plain)


def _quote(text: str) -> str:
    """Put a text into an indented code block, where nothing is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    "
