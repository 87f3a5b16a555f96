"""What an evaluation found, on disk and in words: figures with intervals, counts, and what must be said beside them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.tables import remove_leftovers, write_text
from matrix_dspy.errors import RunError, boundary
from matrix_dspy.evaluation.page import FILES, SHARED, build_page
from matrix_dspy.evaluation.page import escape_markdown as escape_markdown
from matrix_dspy.text import drop_controls, one_line

RECORD = "evaluation.json"
JUDGED = "judged.jsonl"
"""One row a judged answer, pair or problem: what the figures are made of."""
PAGE = "README.md"


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
    """winrate, arena, leaderboard, ratings, safety, code, math or ifeval."""
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
        whose = ", ".join(f"{part} {one_line(name)}" for part, name in self.models.items())
        lines = [f"{self.kind}: {whose}" + (f"; judged by {one_line(self.judge)}" if self.judge else "")]
        overall = [figure for figure in self.figures if not figure.group]
        names = [one_line(figure.name) for figure in overall]
        width = max(map(len, names), default=0)
        lines += [f"  {name:{width}}  {figure.words()}" for name, figure in zip(names, overall, strict=True)]
        if counted := {name: count for name, count in self.counts.items() if count}:
            lines.append("  " + ", ".join(f"{name}: {count:,}" for name, count in counted.items()))
        return [drop_controls(line) for line in [*lines, *(f"note: {one_line(note)}" for note in self.notes)]]


def write_evaluation(evaluation: Evaluation, judged: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write evaluation.json, judged.jsonl and README.md into `folder` and return the first's path."""
    from matrix_dspy import __version__

    check_folder(folder, evaluation.kind)
    written = asdict(evaluation) | {"version": __version__}
    with boundary(RunError, f"write the evaluation in {str(folder)!r}"):
        write_judged(judged, folder)
        write_text(orjson.dumps(written, option=orjson.OPT_INDENT_2, default=str).decode() + "\n", folder / RECORD)
        write_text(build_page(evaluation, folder), folder / PAGE)
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
        RunError: there is none in the folder, or what is called so is something else.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"no evaluation in {str(folder)!r}; evaluate first")
    with boundary(RunError, f"read {str(path)!r}"):
        values = orjson.loads(path.read_bytes())
        try:
            kept: dict[str, Any] = {name: value for name, value in values.items() if name != "version"}
            kept["figures"] = [Figure(**figure) for figure in values["figures"]]
            return Evaluation(**kept)
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f"{str(path)!r} is no evaluation of this program; give another folder with --out") from error


def check_folder(folder: Path, kind: str, models: Mapping[str, str] | None = None, questions: str = "") -> None:
    """Refuse a folder that holds something else, before anything is paid for or written over.

    An evaluation that is there already may be done again, on more questions too; where they are given, its models and
    the name of its questions must be the same.

    Raises:
        RunError: it is a file, a run or a model, an evaluation of something else, or holds what no evaluation of this
            kind writes.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{str(folder)!r} is a file; give another folder with --out")
    if (folder / "run.toml").exists() or (folder / "train.json").exists():
        raise RunError(f"{str(folder)!r} holds a run or a model; give another folder with --out")
    if (folder / RECORD).is_file():
        found = read_evaluation(folder)
        if found.kind != kind:
            raise RunError(
                f"{str(folder)!r} holds an evaluation of kind {found.kind!r}; give another folder with --out"
            )
        for part, name in (models or {}).items():
            _refuse_another(folder, part, found.models.get(part, ""), name)
        if questions:
            _refuse_another(folder, "questions", str(found.questions.get("name", "")), questions)
        return
    known = {name.rstrip("/") for name, _ in (*SHARED, *FILES.get(kind, ()))}
    with boundary(RunError, f"look into {str(folder)!r}"):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strange = next((name for name in names if not name.startswith(".") and name not in known), None)
    if strange is not None:
        raise RunError(
            f"{str(folder)!r} holds {strange!r}, which is of no evaluation of kind {kind!r}; "
            "give another folder with --out"
        )


def check_judge(folder: Path, judge: str) -> None:
    """Refuse a folder whose evaluation another model has judged, before this one is asked; RunError then."""
    if (folder / RECORD).is_file():
        _refuse_another(folder, "judge", read_evaluation(folder).judge, judge)


def _refuse_another(folder: Path, part: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise RunError(
            f"{str(folder)!r} holds an evaluation with the {part} {found!r}, not {wanted!r}; "
            "give another folder with --out"
        )


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder and hold it for this process, so that no other evaluates into it meanwhile.

    A folder that was made here and into which nothing came is taken away again.

    Raises:
        RunError: another process has it, or it cannot be written.
    """
    is_new = not folder.exists()
    with boundary(RunError, f"write in the folder {str(folder)!r}"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder)
        remove_leftovers(folder)
    try:
        yield
    finally:
        if is_new and [path.name for path in folder.iterdir()] == [".lock"]:
            with suppress(OSError):
                (folder / ".lock").unlink()
                folder.rmdir()
        lock.release()
