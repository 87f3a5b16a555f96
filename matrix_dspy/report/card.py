"""The dataset card, `README.md` in the run folder: the figures of the report page, counted by the same functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_dspy import __version__
from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.bulk.progress import Tally
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.config import Config, KindConfig
from matrix_dspy.curation.filters import read_refusal_version
from matrix_dspy.engine.base import Usage
from matrix_dspy.loading import hash_prompt, load_program
from matrix_dspy.report.charts import build_charts
from matrix_dspy.report.estimate import Comparison, Estimate, compare_estimate
from matrix_dspy.report.gathering import gather, say_moment, say_number, say_value
from matrix_dspy.report.plots import FOLDER, write_plots
from matrix_dspy.report.records import ProgramTold, RangeTold, Told, read_told
from matrix_dspy.report.samples import choose_rows, show, show_line
from matrix_dspy.types import AnonymousProfile, Event, Example, Group, Instruction, PairExample, Rejected, Scenario

N_SAMPLES = 5
LONGEST_SAMPLE = 2000
"""Characters of a text in the card; the page shows more."""
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
    examples: Sequence[Example | PairExample]
    instructions: Sequence[Instruction]
    rejected: Sequence[Rejected]
    more: Mapping[str, Any] | None = None
    """Further keys of `figures.json`, such as `models`, `benchmarks`, `refinement`, `selection` and `diversity`."""


def write_card(folder: RunFolder, figures: Figures, command: str) -> None:
    """Write the card of a run and its plots, from the tables and `figures.json` just written to the folder."""
    told = _merge(build_told(figures, command), read_told(folder.path))
    name = figures.kind.name if figures.kind else ""
    _write(folder.path, f"{command}.md.jinja", told, name, figures)


def write_curated_card(path: Path) -> Path:
    """Write the card of a folder made by `curate`, from the folder alone, and return its path."""
    files = sorted(file.stem for file in (path / "dataset").glob("*.parquet"))
    return _write(path, "curate.md.jinja", read_told(path), files[0] if files else "*")


def _write(path: Path, template: str, told: Told, name: str, figures: Figures | None = None) -> Path:
    gathered = gather(path, told, has_diversity=bool(told.diversity))
    context = {
        "f": figures,
        "g": gathered,
        "told": told,
        "version": __version__,
        "is_pair": any(spread.name == "rejected answer" for spread in gathered.lengths),
        "samples": choose_rows(gathered.records.rows, N_SAMPLES, gathered.seed),
        "size": _size_category(gathered.n_kept),
        "data_file": f"dataset/{name}.parquet",
        "plots": write_plots(path, build_charts((gathered.name, gathered))),
        "plots_folder": FOLDER,
    }
    write_text(_build_environment().get_template(template).render(context), path / "README.md")
    return path / "README.md"


def build_told(figures: Figures, command: str) -> Told:
    """Return the figures as `figures.json` holds them: `build_told(...).model_dump(mode="json")`."""
    programs = {
        name: ProgramTold(
            calls=tally.calls,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            seconds=tally.seconds,
        )
        for name, tally in figures.tallies.items()
    }
    values: dict[str, Any] = {
        "command": command,
        "name": figures.name,
        "describe": figures.kind.describe if figures.kind else "",
        "model": figures.model,
        "reason": figures.reason,
        "is_final": True,
        "began": figures.began.strftime("%Y-%m-%d %H:%M UTC"),
        "seconds": figures.seconds,
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
        "programs": programs,
        "program_hashes": {name: hash_prompt(load_program(name))[:16] for name in PROGRAMS_USED},
        "estimate": tuple(_tell_comparison(row) for row in _compare(figures)),
        "estimate_basis": figures.estimate.basis if figures.estimate else "",
        "refusal_version": read_refusal_version(),
    }
    return Told.model_validate(values | dict(figures.more or {}))


def _merge(known: Told, noted: Told) -> Told:
    """Let what `figures.json` says go before what the card is given, wherever it says anything."""
    said = {name: value for name, value in noted if value != Told.model_fields[name].get_default()}
    return known.model_copy(update=said)


def _build_environment() -> Environment:
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
    environment.filters["number"] = say_number
    environment.filters["value"] = say_value
    environment.filters["moment"] = say_moment
    return environment


def _tell_comparison(row: Comparison) -> RangeTold:
    low, expected, high = row.estimated.low, row.estimated.expected, row.estimated.high
    return RangeTold(what=row.what, low=low, expected=expected, high=high, actual=row.actual, difference=row.difference)


def _compare(figures: Figures) -> list[Comparison]:
    """Set the estimate beside what the run became; empty where none was made."""
    if figures.estimate is None:
        return []
    rows = compare_estimate(figures.estimate, figures.tallies, figures.seconds, figures.total_cost)
    # the time of earlier starts is not known
    return [row for row in rows if row.what != "seconds" or not figures.n_replayed]


def _size_category(n_rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if n_rows < bound), "1M<n<10M" if n_rows < 10_000_000 else "n>10M")


def _say_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(text: object) -> str:
    """Put a value into a Markdown table cell without letting it become markup."""
    plain = show_line(str(text), 1000)
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#" else c for c in plain)


def _quote(text: str) -> str:
    """Put a text into an indented code block, where nothing is markup."""
    return "\n".join(f"    {line}" for line in show(text, LONGEST_SAMPLE).splitlines()) or "    "
