"""Plots as PNG files for the dataset card, drawn without a display and without dates: same figures, same bytes."""

import logging
import warnings
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.tables import replacing
from matrix_dspy.report.charts import Chart

log = logging.getLogger("matrix_dspy")

FOLDER = "plots"
COLOURS = ("#3a82c4", "#d2782a", "#3f9b6c", "#a868b8")
"""Blue before orange, told apart by every common sort of colour blindness; legible on white and on black."""
INK = "#7a7f87"
"""Grey with a contrast above 4 on both white and black, since the reader's page may be either."""
SHOWN = ("funnel", "length-instruction", "length-answer", "categories", "verbs", "quality", "difficulty", "scores")
"""Charts the card shows, in its order."""
WIDTH = 7.2
"""Inches."""


def write_plots(path: Path, charts: dict[str, Chart]) -> list[Chart]:
    """Write `plots/<name>.png` in folder `path` for the card's charts, and return those written.

    A chart that cannot be drawn is left out with a line in the log: plots never fail a run.
    """
    return [charts[name] for name in SHOWN if _try_plot(charts.get(name), path / FOLDER / f"{name}.png")]


def _try_plot(chart: Chart | None, file: Path) -> bool:
    try:
        if chart is None:
            file.unlink(missing_ok=True)  # of an earlier start, with other figures
        else:
            plot(chart, file)
    except Exception as error:
        log.warning("the plot %s was not drawn: %s", file.name, error)
        return False
    return chart is not None


def plot(chart: Chart, file: Path) -> None:
    """Draw one chart into a PNG file."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    own: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context(own), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signs the font lacks are drawn as boxes
        n_series = len(chart.series)
        height = max(2.2, 0.9 + chart.n_bars * (0.26 + 0.1 * (n_series - 1))) if chart.is_horizontal else 3.0
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        (_draw_across if chart.is_horizontal else _draw_upright)(axes, chart)
        _dress(axes, chart)
        texts: Any = figure.findobj(Text)
        for text in texts:
            text.set_parse_math(False)  # a dollar sign in a label is a dollar sign
        with replacing(file) as temporary:
            figure.savefig(temporary, format="png", dpi=120, transparent=True, metadata={"Software": None})


def _draw_across(axes: Any, chart: Chart) -> None:
    thick = 0.8 / len(chart.series)
    for number, series in enumerate(chart.series):
        places = [place + (number - (len(chart.series) - 1) / 2) * thick for place in range(chart.n_bars)]
        bars = axes.barh(places, series.values, thick * 0.92, color=COLOURS[number % len(COLOURS)], label=series.name)
        axes.bar_label(bars, [_say(value) for value in series.values], padding=3, fontsize=8, color=INK)
    axes.set_yticks(range(chart.n_bars), chart.labels)
    axes.invert_yaxis()
    axes.margins(x=0.1)


def _draw_upright(axes: Any, chart: Chart) -> None:
    is_binned = bool(chart.edges)
    lows = chart.edges[:-1] if is_binned else range(chart.n_bars)
    width = chart.edges[1] - chart.edges[0] if is_binned else 0.8
    n_series = len(chart.series)
    for number, series in enumerate(chart.series):
        own = width * (0.94 if is_binned else 1.0) / n_series
        shift = own * number if is_binned else own * (number - (n_series - 1) / 2)
        align = "edge" if is_binned else "center"
        places = [low + shift for low in lows]
        axes.bar(places, series.values, own, align=align, color=COLOURS[number % len(COLOURS)], label=series.name)
    if not is_binned:
        every = max(1, chart.n_bars // 15)
        axes.set_xticks(range(0, chart.n_bars, every), chart.labels[::every])


def _dress(axes: Any, chart: Chart) -> None:
    axes.set_title(chart.title, loc="left", color=INK, fontsize=11, fontweight="bold")
    axes.set_xlabel(chart.x_label, color=INK)
    axes.set_ylabel(chart.y_label, color=INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.grid(axis="x" if chart.is_horizontal else "y", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    if len(chart.series) > 1:
        axes.legend(frameon=False, labelcolor=INK, fontsize=9)


def _say(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.1f}"
