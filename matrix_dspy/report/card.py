"""The dataset card, `README.md` in the run folder: the figures of the report page, counted by the same functions."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_dspy import __version__
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.config import Config
from matrix_dspy.engine.base import Usage
from matrix_dspy.report.charts import build_charts
from matrix_dspy.report.gathering import gather, say_moment, say_number, say_value
from matrix_dspy.report.plots import FOLDER, write_plots
from matrix_dspy.report.records import Told, read_told
from matrix_dspy.report.samples import choose_rows, show, show_line

N_SAMPLES = 5
LONGEST_SAMPLE = 2000
"""Characters of a text in the card; the page shows more."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the card tells that neither tables nor `figures.json` hold."""

    config: Config
    kind: str
    """Name of the kind of data; empty for a simulation."""
    usage: Usage
    has_schemas: bool


def write_card(path: Path, source: Source, command: str) -> Path:
    """Write the card of a run and its plots, from the tables and `figures.json` just written to the folder."""
    return _write(path, f"{command}.md.jinja", read_told(path), source.kind, source)


def write_curated_card(path: Path) -> Path:
    """Write the card of a folder made by `curate`, from the folder alone, and return its path."""
    files = sorted(file.stem for file in (path / "dataset").glob("*.parquet"))
    return _write(path, "curate.md.jinja", read_told(path), files[0] if files else "*")


def _write(path: Path, template: str, told: Told, name: str, source: Source | None = None) -> Path:
    gathered = gather(path, told, has_diversity=bool(told.diversity))
    has_plots = source is None or source.config.operation.plots
    context = {
        "f": source,
        "g": gathered,
        "told": told,
        "version": __version__,
        "is_pair": any(spread.name == "rejected answer" for spread in gathered.lengths),
        "samples": choose_rows(gathered.records.rows, N_SAMPLES, gathered.seed),
        "size": _size_category(gathered.n_kept),
        "data_file": f"dataset/{name}.parquet",
        "plots": write_plots(path, build_charts((gathered.name, gathered))) if has_plots else [],
        "plots_folder": FOLDER,
    }
    write_text(_build_environment().get_template(template).render(context), path / "README.md")
    return path / "README.md"


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
