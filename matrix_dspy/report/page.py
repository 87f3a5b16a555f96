"""A run as one page that needs nothing but itself: `report.html`, for a reader who knows nothing of the project.

Whatever a model, a profile or a file wrote is text on it: templates escape everything, the plots' data is JSON that
cannot end its element, and the page's own policy lets no script run but the two it names by hash, and fetches nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from matrix_dspy import __version__
from matrix_dspy.bulk.tables import write_text
from matrix_dspy.report.charts import Chart, build_charts
from matrix_dspy.report.gathering import ROLES, gather, say_moment, say_number, say_value
from matrix_dspy.report.samples import (
    collect_dropped,
    collect_leaks,
    collect_revisions,
    collect_samples,
    collect_twins,
    show,
    show_line,
)
from matrix_dspy.text import drop_controls

FILE = "report.html"
MOST_SETTINGS = 300
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_PLOTLY_MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def write_report(run: Path) -> Path:
    """Write `report.html` into the folder of a run, finished or not, and return its path.

    Raises:
        RunError: there is no run there.
        TableError: a table is broken or another run's.
    """
    gathered = gather(run)
    charts = build_charts((gathered.name, gathered))
    values = {
        "g": gathered,
        "samples": collect_samples(gathered),
        "twins": collect_twins(gathered),
        "dropped": collect_dropped(gathered),
        "leaks": collect_leaks(gathered),
        "revisions": collect_revisions(gathered),
        "roles": ROLES,
        "settings": gathered.settings[:MOST_SETTINGS],
    }
    path = run / FILE
    write_text(render_page("report.html.jinja", charts, values), path)
    return path


def render_page(template: str, charts: Mapping[str, Chart], values: Mapping[str, Any]) -> str:
    """Fill a page's template; scripts, style and the plots' data come with it."""
    scripts = [_read_plotly(), _read_text("page.js")]
    hashes = " ".join(f"'sha256-{_hash(script)}'" for script in scripts)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
    context = {
        "policy": f"{policy}base-uri 'none'; form-action 'none'",
        "style": Markup(_read_text("page.css")),
        "scripts": [Markup(script) for script in scripts],
        "data": Markup(dump_json({name: _describe_chart(chart) for name, chart in charts.items()})),
        "charts": charts,
        "version": __version__,
        **values,
    }
    return _build_environment().get_template(template).render(context)


def dump_json(values: Any) -> str:
    """Return values as JSON that stays what it is inside a script element."""
    text = orjson.dumps(values).decode()
    return "".join(_UNSAFE.get(sign, sign) for sign in text)


def _describe_chart(chart: Chart) -> dict[str, Any]:
    """Return a chart for `page.js`; Plotly takes some markup in labels, so theirs is made harmless first."""
    return {
        "across": chart.is_horizontal,
        "x": chart.x_label.translate(_PLOTLY_MARKUP),
        "y": chart.y_label.translate(_PLOTLY_MARKUP),
        "labels": [label.translate(_PLOTLY_MARKUP) for label in chart.labels],
        "edges": chart.edges,
        "series": [
            {"name": show_line(series.name, 60).translate(_PLOTLY_MARKUP), "values": series.values}
            for series in chart.series
        ],
    }


@cache
def _build_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("matrix_dspy.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
        finalize=_drop_marks,
    )
    environment.filters["number"] = say_number
    environment.filters["value"] = say_value
    environment.filters["line"] = show_line
    environment.filters["show"] = show
    environment.filters["percent"] = _say_percent
    environment.filters["seconds"] = say_seconds
    environment.filters["moment"] = say_moment
    environment.filters["dollars"] = _say_dollars
    return environment


def _drop_marks(value: Any) -> Any:
    """Take out what a browser would obey in a text that no filter has been through."""
    return drop_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def say_seconds(seconds: float) -> str:
    """Put a time into words."""
    if seconds < 120:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _say_dollars(dollars: float) -> str:
    return f"${dollars:,.2f}" if dollars >= 0.01 or dollars == 0 else f"${dollars:.2g}"


def _say_percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.1f} %" if 0 < percent < 10 else f"{percent:.0f} %"


def _read_plotly() -> str:
    """Return Plotly's own script, which ships with its Python package."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _read_text(name: str) -> str:
    return (files("matrix_dspy.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
