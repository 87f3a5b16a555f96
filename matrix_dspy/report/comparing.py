"""Two runs side by side on one page: figures, funnels, lengths, categories, variety, what they share, rows to read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from matrix_dspy.bulk.tables import write_text
from matrix_dspy.curation.base import normalise
from matrix_dspy.errors import RunError
from matrix_dspy.report.charts import build_charts
from matrix_dspy.report.gathering import Gathered, gather, order, say_number, say_value
from matrix_dspy.report.page import render_page, say_seconds
from matrix_dspy.report.samples import LONG, show, show_line

FILE = "comparison.html"
N_PAIRS = 10
"""Categories of which a row of either set is shown."""
MOST_DIFFERENCES = 100


@dataclass(frozen=True, slots=True)
class Shared:
    """What two sets have in common, up to case, spacing and punctuation."""

    n_requests: tuple[int, int]
    """Rows of the first, and of the second set whose request stands in the other."""
    n_rows: tuple[int, int]
    """Those whose answer is the same too."""


def write_comparison(a: Path, b: Path, out: Path | None = None) -> Path:
    """Write a page that sets the runs in folders `a` and `b` side by side, and return its path.

    Without `out` it is `comparison.html` in folder `b`, which is taken for the newer one.

    Raises:
        RunError: there is no run in one of them, or both are the same folder.
        TableError: a table is broken or another run's.
    """
    if a.resolve() == b.resolve():
        raise RunError(f"{str(a)!r} is one and the same run; give two folders to compare")
    one, two = gather(a), gather(b)
    names = _name_sides(one, two)
    values = {
        "names": names,
        "sides": (one, two),
        "figures": list(_compare_figures(one, two)),
        "diversity": _join_rows(((row[0], row[1]) for row in each.diversity) for each in (one, two)),
        "reasons": _compare_reasons(one, two),
        "shared": find_shared(one, two),
        "differences": _compare_settings(one, two),
        "pairs": _pair_rows(one, two),
    }
    path = out or b / FILE
    page = render_page("comparison.html.jinja", build_charts((names[0], one), (names[1], two)), values)
    write_text(page, path)
    return path


def find_shared(one: Gathered, two: Gathered) -> Shared:
    """Count the rows whose request, or request and answer, stands in the other set."""
    asked, whole = (
        [_hash_rows(each, *columns) for each in (one, two)] for columns in (("asked",), ("asked", "answer"))
    )
    return Shared(_count_shared(*asked), _count_shared(*whole))


def _hash_rows(gathered: Gathered, *columns: str) -> list[str]:
    rows = gathered.records.rows.select(pl.col(columns).fill_null("")).iter_rows()
    return ["\x1f".join(map(normalise, texts)) for texts in rows]


def _count_shared(one: list[str], two: list[str]) -> tuple[int, int]:
    either = set(one) & set(two)
    return sum(text in either for text in one), sum(text in either for text in two)


def _name_sides(one: Gathered, two: Gathered) -> tuple[str, str]:
    """Return what the runs are called, told apart where they have the same name."""
    names = show_line(one.name, 40) or "first", show_line(two.name, 40) or "second"
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")


def _compare_figures(one: Gathered, two: Gathered) -> Iterable[tuple[str, str, str]]:
    for name, tell in _FIGURES.items():
        told = [tell(each) for each in (one, two)]
        if any(value is not None for value in told):
            left, right = ("unknown" if value is None else show_line(str(value)) for value in told)
            yield name, left, right


def _median(gathered: Gathered, number: int) -> str | None:
    return f"{gathered.lengths[number].cuts[1]:.0f}" if len(gathered.lengths) > number else None


def _optional(value: Any) -> str | None:
    return None if value is None else say_value(value)


_FIGURES: dict[str, Any] = {
    "model": lambda g: ", ".join(f"{role}: {model}" for role, model in g.models),
    "kind of data": lambda g: g.kind or None,
    "state": lambda g: g.records.status,
    "rows wanted": lambda g: say_value(g.n_wanted),
    "rows kept": lambda g: say_value(g.n_kept),
    "candidates": lambda g: say_value(g.n_candidates),
    "candidates kept": lambda g: f"{100 * g.n_kept / g.n_candidates:.1f} %" if g.n_candidates else None,
    "people": lambda g: say_value(g.society.n_agents) if g.society else None,
    "actions": lambda g: say_value(g.society.n_events) if g.society else None,
    "scenarios": lambda g: say_value(g.society.n_scenarios) if g.society else None,
    "median words of a request": lambda g: _median(g, 0),
    "median words of an answer": lambda g: _median(g, 1),
    "largest group's share of rows": lambda g: f"{100 * g.group_share:.1f} %" if g.group_counts else None,
    "dropped for overlap with evaluation sets": lambda g: (
        say_value(g.n_contaminated) if g.told.benchmarks else "not compared with any"
    ),
    "median score of answers": lambda g: say_number(g.scores[0].cuts[1]) if g.scores else None,
    "tokens in": lambda g: _optional(g.told.prompt_tokens),
    "tokens out": lambda g: _optional(g.told.completion_tokens),
    "dollars": lambda g: _optional(g.told.cost),
    "time of the last start": lambda g: None if g.told.seconds is None else say_seconds(g.told.seconds),
}
"""What is told of either run, by name."""


def _join_rows(sides: Iterable[Iterable[tuple[Any, str]]]) -> list[tuple[Any, str, str]]:
    left, right = (dict(rows) for rows in sides)
    return [(key, left.get(key, ""), right.get(key, "")) for key in dict.fromkeys([*left, *right])]


def _compare_reasons(one: Gathered, two: Gathered) -> list[tuple[tuple[str, str], str, str]]:
    return _join_rows((((row.noun, row.reason), say_value(row.count)) for row in each.reasons) for each in (one, two))


def _compare_settings(one: Gathered, two: Gathered) -> list[tuple[str, str, str]]:
    """Return the settings in which the runs differ."""
    sides = ([*each.settings, *((f"program {name}", value) for name, value in each.hashes)] for each in (one, two))
    return [row for row in _join_rows(sides) if row[1] != row[2]][:MOST_DIFFERENCES]


def _pair_rows(one: Gathered, two: Gathered) -> list[tuple[str, dict[str, str] | None, dict[str, str] | None]]:
    """Return a seeded row of either set for each of the commonest categories."""
    counts: dict[str, int] = {}
    first: list[dict[str, str]] = []
    for each in (one, two):
        keyed: dict[str, str] = {}
        for row_id, category in each.records.rows.select("example_id", "category").iter_rows():
            name = category or "no category"
            counts[name] = counts.get(name, 0) + 1
            if name not in keyed or order(each.seed, row_id) < order(each.seed, keyed[name]):
                keyed[name] = row_id
        first.append(keyed)
    names = sorted(counts, key=lambda name: (-counts[name], name))[:N_PAIRS]
    return [(show_line(name), _read_row(one, first[0].get(name)), _read_row(two, first[1].get(name))) for name in names]


def _read_row(gathered: Gathered, row_id: str | None) -> dict[str, str] | None:
    if row_id is None:
        return None
    row = gathered.records.rows.row(by_predicate=pl.col("example_id") == row_id, named=True)
    texts = {"asked": row["asked"], "answered" if row["rejected"] is None else "chosen": row["answer"]}
    if row["rejected"] is not None:
        texts["rejected"] = row["rejected"]
    return {label: show(text, LONG // 2) for label, text in texts.items()}
