"""The card of a trained model, and the plot of its loss.

In: a training's folder, what it is and how it ended. Out: `README.md` with the front matter the Hub knows, `loss.png`.
"""

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_dspy import __version__
from matrix_dspy.bulk.tables import replacing, write_text
from matrix_dspy.text import clean_text, one_line
from matrix_dspy.training.folder import METRICS, read_lines, read_record
from matrix_dspy.training.settings import Stage, TrainingConfig

log = logging.getLogger("matrix_dspy")

CARD = "README.md"
PLOT = "loss.png"
_STYLES = (("#3a82c4", ""), ("#d2782a", "o"))
"""Colour and marker of the training loss and of the held-out loss."""
_INK = "#7a7f87"
_LONGEST_CHAIN = 10


def write_card(out: Path, record: dict[str, Any], result: dict[str, Any]) -> None:
    """Write the card of a finished training."""
    environment = Environment(
        loader=PackageLoader("matrix_dspy.training", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"cell": _cell, "figure": _figure}
    settings = TrainingConfig.model_validate(record["settings"]).describe(record["stage"])
    settings["chat_template"] = Path(settings["chat_template"]).name  # the card names no folders
    text = environment.get_template("model.md.jinja").render(
        front=_build_front(record),
        name=out.resolve().name,
        r=record,
        p=record["prepared"],
        source=record["prepared"]["source"],
        d=result,
        settings=_flatten(settings),
        chain=list_chain(record),
        is_rehearsed=any(stage["is_rehearsed"] for stage in list_chain(record)),
        has_plot=(out / PLOT).is_file(),
        version=__version__,
    )
    write_text(text, out / CARD)


def list_chain(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages that a model went through here, the last first."""
    source, model = record["prepared"]["source"], record["model"]
    last = {
        "stage": record["stage"],
        "model": model["name"],
        "data": source["name"],
        "kind": source["kind"],
        "sha256": source["sha256"],
        "is_rehearsed": "rehearsal" in source["models"],
        "card": f"{model['name']}/{CARD}" if model["stages"] else "",
    }
    return [last, *model["stages"]][:_LONGEST_CHAIN]


def find_stages(model: Path) -> list[dict[str, Any]]:
    """Return the stages that a model in a folder went through here; none where it is not one of ours."""
    try:
        record = read_record(model) if model.is_dir() else None
        return list_chain(record) if record else []
    except (RuntimeError, KeyError, TypeError):
        return []


def _build_front(record: dict[str, Any]) -> str:
    """Return the front matter as the Hub reads it; what is a folder here and no name there is marked so."""
    model, source = record["model"], record["prepared"]["source"]
    local = "  # a folder, not a name on the Hub"
    tags = ["trl", record["stage"], "matrix_dspy", "synthetic"]
    if record["settings"]["method"] != "full":
        tags.append("lora")
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"base_model: {_name_for_hub(model['name'])}{local if model['is_local'] else ''}",
        "datasets:",
        f"- {_name_for_hub(source['name'])}{local}",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    return "\n".join(lines)


def _name_for_hub(name: str) -> str:
    """Return a name as one of the Hub's, quoted: letters, digits, - _ . and one slash."""
    plain = re.sub(r"[^\w./-]+", "-", name, flags=re.ASCII).strip("-./") or "unnamed"
    return json.dumps("/".join(plain.split("/")[-2:])[:96])


def _cell(value: Any) -> str:
    """Put a value into a Markdown table cell without letting it become markup."""
    plain = one_line(clean_text(str(value)))
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>|#" else sign for sign in plain)


def _figure(value: Any) -> str:
    """Write a number for people; an absent one is a dash."""
    if value is None or value == "":
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def _flatten(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def write_loss_plot(out: Path, stage: Stage) -> None:
    """Draw the loss of every step, and the held-out loss; a plot that cannot be drawn is left out, with a line."""
    try:
        _plot(out, stage)
    except Exception as error:
        log.warning("the plot %s was not drawn: %s", PLOT, error)


def _plot(out: Path, stage: Stage) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_lines(out / METRICS)
    own: Any = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")}
    with matplotlib.rc_context(own), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for name, label, colour, marker in (("loss", "training", *_STYLES[0]), ("eval_loss", "held out", *_STYLES[1])):
            points = [(line["step"], line[name]) for line in metrics if line.get(name) is not None]
            if points:
                steps, losses = zip(*points, strict=True)
                axes.plot(steps, losses, label=label, color=colour, marker=marker, linewidth=1.2, markersize=4)
        axes.set_xlabel("step", color=_INK)
        axes.set_ylabel("loss" if stage == "sft" else "DPO loss", color=_INK)
        axes.tick_params(colors=_INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        axes.legend(frameon=False, labelcolor=_INK)
        with replacing(out / PLOT) as temporary:
            figure.savefig(temporary, format="png", dpi=120, transparent=True, metadata={"Software": None})
