"""What an evaluation found, on disk and in words: figures with intervals, counts, and what must be said beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import RunError, boundary
from matrix_dspy.text import drop_controls, one_line

RECORD = "evaluation.json"
JUDGED = "judged.jsonl"
"""One row a judged answer, pair or problem: what the figures are made of."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its 95 % interval; shares are in percent."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Questions, pairs or problems behind it."""
    unit: str = "%"
    group: str = ""
    """A category of questions, where the figure is of one."""

    def words(self) -> str:
        """Return the figure in words: 62.1 % [58.0, 66.2], n = 805."""
        if self.value is None:
            return "not measured"
        unit = f" {self.unit}" if self.unit else ""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{unit}{interval}, n = {self.n:,}"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured of whom, by whom, on what."""

    kind: str
    """winrate, arena, ratings, safety, code, math or ifeval."""
    models: Mapping[str, str]
    """Part (model, baseline, ...) to the model's name."""
    judge: str = ""
    """The judging model's name; empty where none judged."""
    questions: Mapping[str, Any] = field(default_factory=dict)
    """Name, sha256 and number of the files of questions."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    figures: Sequence[Figure] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was counted beside: ties, order flips, unjudged, missing, cut off."""
    notes: Sequence[str] = ()
    """Sentences a reader of the figures must know."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Question id to its score: ablations pair them and resample them."""
    scored: str = ""
    """Name of the figure whose mean over questions the scores give; empty is the first."""

    def find(self, name: str, group: str = "") -> Figure:
        """Return a figure by name; KeyError when it was not measured."""
        for figure in self.figures:
            if (figure.name, figure.group) == (name, group):
                return figure
        raise KeyError(name)

    @property
    def main(self) -> Figure:
        """The figure that the scores are of."""
        return self.find(self.scored) if self.scored else self.figures[0]

    def lines(self) -> list[str]:
        """Return the result as lines for a terminal, overall figures only."""
        whose = ", ".join(f"{part} {name}" for part, name in self.models.items())
        lines = [f"{self.kind}: {whose}" + (f"; judged by {self.judge}" if self.judge else "")]
        overall = [figure for figure in self.figures if not figure.group]
        width = max((len(figure.name) for figure in overall), default=0)
        lines += [f"  {figure.name:{width}}  {figure.words()}" for figure in overall]
        if counted := {name: count for name, count in self.counts.items() if count}:
            lines.append("  " + ", ".join(f"{name}: {count:,}" for name, count in counted.items()))
        return [drop_controls(line) for line in [*lines, *(f"note: {note}" for note in self.notes)]]


def write_evaluation(evaluation: Evaluation, judged: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write evaluation.json, judged.jsonl and README.md into `folder` and return the first's path."""
    from matrix_dspy import __version__

    check_folder(folder, evaluation.kind)
    written = asdict(evaluation) | {"version": __version__}
    with boundary(RunError, f"write the evaluation in {str(folder)!r}"):
        write_judged(judged, folder)
        write_text(orjson.dumps(written, option=orjson.OPT_INDENT_2, default=str).decode() + "\n", folder / RECORD)
        write_text(_write_page(evaluation), folder / "README.md")
    return folder / RECORD


def write_judged(judged: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write judged.jsonl alone, for an evaluation that comes to no figures, and return its path."""
    path = folder / JUDGED
    with boundary(RunError, f"write {str(path)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text("".join(f"{orjson.dumps(row, default=str).decode()}\n" for row in judged), path)
    return path


def read_evaluation(folder: Path) -> Evaluation:
    """Read an evaluation back.

    Raises:
        RunError: there is none in the folder.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"no evaluation in {str(folder)!r}; evaluate first")
    with boundary(RunError, f"read {str(path)!r}"):
        values = orjson.loads(path.read_bytes())
    values.pop("version", None)
    return Evaluation(**values | {"figures": [Figure(**figure) for figure in values["figures"]]})


def check_folder(folder: Path, kind: str) -> None:
    """Refuse a folder that holds something else.

    Raises:
        RunError: it is a file, a run, or an evaluation of another kind.
    """
    if folder.is_file():
        raise RunError(f"{str(folder)!r} is a file; give another folder with --out")
    if (folder / "run.toml").exists() or (folder / "train.json").exists():
        raise RunError(f"{str(folder)!r} holds a run or a model; give another folder with --out")
    if (folder / RECORD).is_file() and (found := read_evaluation(folder).kind) != kind:
        raise RunError(f"{str(folder)!r} holds an evaluation of kind {found!r}; give another folder with --out")


def _write_page(evaluation: Evaluation) -> str:
    """Return the evaluation as Markdown; names of models and categories are text, never markup."""
    lines = [f"# {evaluation.kind}", ""]
    lines += [f"- {part}: {escape_markdown(name)}" for part, name in evaluation.models.items()]
    if evaluation.judge:
        lines.append(f"- judge: {escape_markdown(evaluation.judge)}")
    lines += [f"- {escape_markdown(key)}: {escape_markdown(value)}" for key, value in {**evaluation.questions, **evaluation.settings}.items()]
    lines += ["", "| figure | of | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for figure in evaluation.figures:
        value = "not measured" if figure.value is None else f"{figure.value:.2f} {figure.unit}".strip()
        interval = "" if figure.low is None or figure.high is None else f"{figure.low:.2f} to {figure.high:.2f}"
        lines.append(f"| {escape_markdown(figure.name)} | {escape_markdown(figure.group or 'all')} | {value} | {interval} | {figure.n:,} |")
    if evaluation.counts:
        lines += ["", "| counted | |", "|---|---|"]
        lines += [f"| {escape_markdown(name)} | {count:,} |" for name, count in evaluation.counts.items()]
    lines += ["", *(f"{escape_markdown(note)}\n" for note in evaluation.notes)]
    return "\n".join(lines).rstrip() + "\n"


def escape_markdown(value: object) -> str:
    """Return a value as one line of text that is no markup, for a Markdown page or a table's cell."""
    text = one_line(str(value))
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|~" else letter for letter in text)
