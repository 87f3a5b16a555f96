"""The plots of a report as plain values, drawn by Plotly on the page and by matplotlib for the card."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from matrix_dspy.report.gathering import Gathered, Spread, Tabled, say_number
from matrix_dspy.report.samples import show_line

N_BINS = 30
MOST_VALUES = 12
"""Different numbers up to which each has a bar of its own."""
LONGEST_LABEL = 34
N_GROUPS = 30


@dataclass(frozen=True, slots=True)
class Series:
    """One set of bars."""

    name: str
    values: tuple[float, ...]
    """Height of each bar, in the order of the chart's labels."""


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars over labels, or over bins of a number."""

    name: str
    """Short, of letters and dashes only: it becomes a file name."""
    title: str
    x_label: str
    y_label: str
    labels: tuple[str, ...]
    series: tuple[Series, ...]
    is_horizontal: bool = False
    """Bars to the right, first label on top."""
    edges: tuple[float, ...] = ()
    """Bounds of the bins, one more than bars; empty where labels are names."""

    @property
    def n_bars(self) -> int:
        """Places for bars along the axis."""
        return len(self.labels)


Side = tuple[str, Gathered]
"""A run and what it is called beside another."""


def build_charts(*sides: Side) -> dict[str, Chart]:
    """Build every chart that the figures of these runs have something for, by name; shares where there are several."""
    charts = [
        _chart_funnel(sides),
        *_chart_lengths(sides),
        _chart_tables(sides, "category", "categories", "The commonest task categories", "task category"),
        _chart_tables(sides, "root verb", "verbs", "The commonest verbs of what is asked for", "verb"),
        _chart_tables(sides, "complexity", "complexity", "Complexity asked for", "level"),
        _chart_tables(sides, "style", "style", "Style of asking", "style"),
        _chart_tables(sides, "quality", "quality", "Quality of instructions, as rated", "level", is_upright=True),
        _chart_tables(
            sides, "difficulty", "difficulty", "Difficulty of instructions, as rated", "level", is_upright=True
        ),
        _chart_tables(sides, "user turns", "turns", "User turns in a conversation", "turns", is_upright=True),
        _chart_scores(sides),
        _chart_groups(sides),
    ]
    return {chart.name: chart for chart in charts if chart is not None}


def _chart_funnel(sides: Sequence[Side]) -> Chart | None:
    """Show how many candidates are left after each step, for all sides in one order of steps."""
    names: list[str] = []
    for _, gathered in sides:
        last = -1
        for step in gathered.steps:
            if step.name in names:
                last = names.index(step.name)
            else:
                last += 1
                names.insert(last, step.name)
    if not names or not any(gathered.n_candidates for _, gathered in sides):
        return None
    series: list[Series] = []
    for side, gathered in sides:
        left, values = {step.name: step.n_left for step in gathered.steps}, []
        before = gathered.n_candidates
        for name in names:
            before = left.get(name, before)
            values.append(_share(before, gathered.n_candidates) if len(sides) > 1 else float(before))
        series.append(Series(side, tuple(values)))
    unit = "share of candidates left, in %" if len(sides) > 1 else "candidates left"
    labels = tuple(map(_label, names))
    return Chart("funnel", "From candidates to kept rows", unit, "", labels, tuple(series), is_horizontal=True)


def _chart_lengths(sides: Sequence[Side]) -> list[Chart]:
    """Build a histogram for each sort of text; chosen and rejected answers share one."""
    sorts: dict[str, list[tuple[str, Spread]]] = {}
    for side, gathered in sides:
        for spread in gathered.lengths:
            sort = (
                "instruction" if spread.name == "instruction" else "thinking" if spread.name == "thinking" else "answer"
            )
            told = spread.name if len(sides) == 1 else f"{side}: {spread.name}"
            sorts.setdefault(sort, []).append((told, spread))
    titles = {"instruction": "Length of instructions", "answer": "Length of answers", "thinking": "Length of thinking"}
    return [_bin(f"length-{sort}", titles[sort], "words", spreads, len(sides)) for sort, spreads in sorts.items()]


def _chart_scores(sides: Sequence[Side]) -> Chart | None:
    named = [
        (spread.name if len(sides) == 1 else f"{side}: {spread.name}", spread)
        for side, gathered in sides
        for spread in gathered.scores
        if not spread.name.startswith("all ")
    ]
    return _bin("scores", "Scores of answers", "score, higher is better", named, len(sides)) if named else None


def _chart_tables(
    sides: Sequence[Side], sort: str, name: str, title: str, what: str, *, is_upright: bool = False
) -> Chart | None:
    found: list[tuple[str, Gathered, Tabled]] = []
    for side, gathered in sides:
        if (tabled := gathered.find(sort)) is not None:
            found.append((side, gathered, tabled))
    if not found:
        return None
    labels = list(dict.fromkeys(label for _, _, tabled in found for label, _ in tabled.counts))
    counted = [
        (side, dict(tabled.whole or tabled.counts), len(gathered.records.rows)) for side, gathered, tabled in found
    ]
    series = tuple(
        Series(
            side,
            tuple(_share(own.get(label, 0), n) if len(sides) > 1 else float(own.get(label, 0)) for label in labels),
        )
        for side, own, n in counted
    )
    unit = _unit(len(sides))
    axes = (what, unit) if is_upright else (unit, "")
    return Chart(name, title, *axes, tuple(map(_label, labels)), series, is_horizontal=not is_upright)


def _chart_groups(sides: Sequence[Side]) -> Chart | None:
    if not any(len(gathered.group_counts) > 1 for _, gathered in sides):
        return None
    n_bars = min(N_GROUPS, max(len(gathered.group_counts) for _, gathered in sides))
    series = [
        Series(side, tuple(_share(n, sum(counts)) for n in (*counts[:n_bars], *[0] * (n_bars - len(counts)))))
        for side, counts in ((side, gathered.group_counts) for side, gathered in sides)
    ]
    labels = tuple(str(number) for number in range(1, n_bars + 1))
    return Chart(
        "groups", "What each group supplied", "groups, largest first", "share of rows, in %", labels, tuple(series)
    )


def _bin(name: str, title: str, unit: str, named: Sequence[tuple[str, Spread]], n_sides: int) -> Chart:
    """Count the values of all series in the same bins, of a round width; the last bin holds everything beyond it."""
    spreads = [spread for _, spread in named]
    everything = pl.concat([spread.values for spread in spreads])
    distinct = everything.unique().sort()
    if len(distinct) <= MOST_VALUES:
        labels = tuple(say_number(value) for value in distinct.to_list())
        counts = [[float((spread.values == value).sum()) for value in distinct.to_list()] for spread in spreads]
        edges: tuple[float, ...] = ()
    else:
        edges = choose_edges(everything)
        labels = tuple(_say_bin(low, high, is_last=high == edges[-1]) for low, high in pairwise(edges))
        counts = [_count_bins(spread.values, edges) for spread in spreads]
    scale = [100 / max(1, sum(own)) if n_sides > 1 else 1.0 for own in counts]
    series = (
        Series(label, tuple(count * factor for count in own))
        for (label, _), own, factor in zip(named, counts, scale, strict=True)
    )
    return Chart(name, title, unit, _unit(n_sides), labels, tuple(series), edges=edges)


def choose_edges(values: pl.Series) -> tuple[float, ...]:
    """Return bounds of at most `N_BINS` bins of a round width, from the least value to the 99th percentile."""
    least, most = float(values.quantile(0.0) or 0.0), float(values.quantile(0.99, "higher") or 0.0)
    is_spread = most - least > 1e-9 * max(abs(least), abs(most))
    width = _round_up((most - least) / (N_BINS - 1)) if is_spread else 1.0
    start, digits = math.floor(least / width), 2 - math.floor(math.log10(width))
    n_bins = min(N_BINS + 1, max(1, math.floor(most / width) - start + 1))
    return tuple(round((start + number) * width, digits) for number in range(n_bins + 1))


def _round_up(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(step * power for step in (1.0, 2.0, 5.0, 10.0) if step * power >= width)


def _count_bins(values: pl.Series, edges: tuple[float, ...]) -> list[float]:
    import numpy as np

    inner = np.asarray(edges[1:-1])
    return (
        np.bincount(np.searchsorted(inner, values.to_numpy(), side="right"), minlength=len(edges) - 1)
        .astype(float)
        .tolist()
    )


def _say_bin(low: float, high: float, *, is_last: bool) -> str:
    return f"{say_number(low)} or more" if is_last else f"{say_number(low)} to {say_number(high)}"


def _unit(n_sides: int) -> str:
    return "share of rows, in %" if n_sides > 1 else "rows"


def _share(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _label(text: str) -> str:
    line = show_line(text)
    return line if len(line) <= LONGEST_LABEL else line[: LONGEST_LABEL - 3] + "..."
