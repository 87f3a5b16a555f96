"""AlpacaEval's files, read and written: model_outputs.json, annotations.json and leaderboard.csv.

    model_outputs.json  a list of instruction, output, generator, dataset: what a model answered
    annotations.json    a list of instruction, output_1, generator_1, output_2, generator_2, dataset, annotator,
                        preference, price_per_example, time_per_example, raw_completion: what a judge said of pairs
    leaderboard.csv     a row a model: win_rate, standard_error, n_wins, ..., length_controlled_winrate

In annotations `output_1` is the reference's and `output_2` the evaluated model's; `preference` runs from 1 (the
reference wins) over 1.5 (a tie) to 2, and is null where the judge did not say. AlpacaEval 0.6 writes the names of
`PREFIXED`, which are read as well.

The official tool on the same answers, judged anew or with the judge's verdicts as they are:

    alpaca_eval --model_outputs model_outputs.json --reference_outputs reference_outputs.json
    python -c "import json; from alpaca_eval.metrics import get_winrate;
               print(get_winrate(json.load(open('annotations.json'))))"
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from matrix_dspy.bulk.tables import write_text
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.json_files import Entry, read_entries, read_text, write_list
from matrix_dspy.evaluation.length_control import JudgedPair, WinRate

PREFIXED = {
    "price_per_example": "preference_price_per_example",
    "time_per_example": "preference_time_per_example",
    "raw_completion": "preference_raw_completion",
}
"""Field to its name since AlpacaEval 0.6."""
_OUTPUT_FIELDS = ("instruction", "output", "generator", "dataset")
_ANNOTATION_FIELDS = (
    *("instruction", "output_1", "generator_1", "output_2", "generator_2", "dataset", "annotator", "preference"),
    *PREFIXED,
)


@dataclass(frozen=True, slots=True)
class ModelOutput:
    """What a model answered to one instruction."""

    instruction: str
    output: str
    generator: str
    """Who answered."""
    dataset: str = ""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Fields of no other use, as they came."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a judge said of two answers to one instruction."""

    instruction: str
    output_1: str
    """The reference's answer."""
    generator_1: str
    output_2: str
    """The evaluated model's answer."""
    generator_2: str
    preference: float | None
    """From 1 (the reference wins) over 1.5 to 2 (the evaluated model wins); None where the judge did not say."""
    annotator: str = ""
    dataset: str = ""
    price_per_example: float | None = None
    """Dollars."""
    time_per_example: float | None = None
    """Seconds."""
    raw_completion: Any = None
    """Whatever the judge wrote: a text, or what a server sent."""
    others: Mapping[str, Any] = field(default_factory=dict)

    def to_pair(self) -> JudgedPair:
        """Return what the length-controlled win rate needs; lengths in characters, as AlpacaEval counts."""
        return JudgedPair(self.instruction, self.preference, len(self.output_2), len(self.output_1))


@dataclass(frozen=True, slots=True)
class LeaderboardRow:
    """A model's row of a leaderboard; rates in percent, None where a column is missing or empty."""

    name: str
    win_rate: float | None = None
    standard_error: float | None = None
    n_wins: float | None = None
    n_wins_base: float | None = None
    n_draws: float | None = None
    n_total: float | None = None
    discrete_win_rate: float | None = None
    mode: str = "community"
    """Which list of AlpacaEval's it belongs to: minimal, verified, community or dev."""
    avg_length: float | None = None
    """Mean characters of an answer."""
    length_controlled_winrate: float | None = None
    lc_standard_error: float | None = None


_COLUMNS = tuple(each.name for each in fields(LeaderboardRow))[1:]
_COUNTS = frozenset(("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"))


def read_model_outputs(path: Path) -> list[ModelOutput]:
    """Read a model's answers (JSON list, or JSON lines with the ending .jsonl).

    Raises:
        TableError: it cannot be read, a field is missing or of another type, or a model answers an instruction twice.
    """
    found = [
        ModelOutput(
            instruction=entry.get_text("instruction"),
            output=entry.get_text("output"),
            generator=entry.get_text("generator", default=""),
            dataset=entry.get_text("dataset", default=""),
            others=entry.list_others(_OUTPUT_FIELDS),
        )
        for entry in _read_some(path, "answers")
    ]
    _refuse_doubles(((each.generator, each.instruction) for each in found), path, "answers")
    return found


def write_model_outputs(outputs: Iterable[ModelOutput], path: Path) -> None:
    """Write a model's answers as AlpacaEval's `--model_outputs` takes them, whole or not at all."""
    write_list(({**each.others, **{name: getattr(each, name) for name in _OUTPUT_FIELDS}} for each in outputs), path)


def read_annotations(path: Path) -> list[Annotation]:
    """Read a judge's preferences (JSON list, or JSON lines with the ending .jsonl).

    Raises:
        TableError: it cannot be read, a field is missing or of another type, a preference is not from 1 to 2, or a
            judge says something of the same pair twice.
    """
    found = [_read_annotation(entry) for entry in _read_some(path, "preferences")]
    keys = ((each.annotator, each.generator_1, each.generator_2, each.instruction) for each in found)
    _refuse_doubles(keys, path, "preferences")
    return found


def write_annotations(annotations: Iterable[Annotation], path: Path) -> None:
    """Write a judge's preferences with AlpacaEval's published field names, whole or not at all."""
    write_list(
        ({**each.others, **{name: getattr(each, name) for name in _ANNOTATION_FIELDS}} for each in annotations), path
    )


def group_by_model(annotations: Iterable[Annotation]) -> dict[str, list[Annotation]]:
    """Return annotations by the evaluated model (`generator_2`), in the order they first come."""
    found: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        found.setdefault(annotation.generator_2, []).append(annotation)
    return found


def to_pairs(annotations: Sequence[Annotation]) -> list[JudgedPair]:
    """Return one model's annotations as `measure_win_rate` takes them.

    Raises:
        ConfigError: they are of several models, or against several references.
    """
    for side, what in (("generator_2", "models"), ("generator_1", "references")):
        names = sorted({getattr(each, side) for each in annotations})
        if len(names) > 1:
            shown = ", ".join(map(repr, names[:5]))
            raise ConfigError(f"the annotations are of {len(names)} {what} ({shown}); measure one at a time")
    return [each.to_pair() for each in annotations]


def read_leaderboard(path: Path) -> list[LeaderboardRow]:
    """Read a leaderboard; columns that are not AlpacaEval's are left out.

    Raises:
        TableError: it cannot be read, has no `win_rate`, or a value is no number.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise TableError(f"{str(path)!r} is no CSV: {error}; write it again") from error
    header = rows[0] if rows else []
    if "win_rate" not in header[1:]:
        raise TableError(f"{str(path)!r} has no column 'win_rate'; it is to be a leaderboard of AlpacaEval's")
    found: list[LeaderboardRow] = []
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(header):
            raise TableError(f"row {number} of {str(path)!r} has {len(row)} cells, not {len(header)}; write it again")
        cells = dict(zip(header[1:], row[1:], strict=True))
        entry = Entry({name: _read_cell(name, cells.get(name, "")) for name in _COLUMNS}, f"row {number} of {path!s}")
        numbers = {name: entry.get_number(name) for name in _COLUMNS if name != "mode"}
        found.append(LeaderboardRow(name=row[0], mode=entry.get_text("mode", default=""), **numbers))
    _refuse_doubles(((each.name,) for each in found), path, "models")
    return found


def write_leaderboard(rows: Iterable[LeaderboardRow], path: Path) -> None:
    """Write a leaderboard with AlpacaEval's columns, whole or not at all."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("", *_COLUMNS))
    for row in rows:
        writer.writerow((row.name, *(_write_cell(name, getattr(row, name)) for name in _COLUMNS)))
    write_text(file.getvalue(), path)


def rank_row(name: str, rates: WinRate, mode: str = "community") -> LeaderboardRow:
    """Return a model's row; `lc_standard_error` is the bootstrap's, larger than AlpacaEval's (see length_control)."""
    controlled = rates.length_controlled
    return LeaderboardRow(
        name=name,
        win_rate=rates.raw.value,
        standard_error=rates.standard_error,
        n_wins=rates.n_wins,
        n_wins_base=rates.n_wins_base,
        n_draws=rates.n_draws,
        n_total=rates.n_total,
        discrete_win_rate=rates.discrete.value,
        mode=mode,
        avg_length=int(rates.avg_length),
        length_controlled_winrate=controlled.value if controlled else None,
        lc_standard_error=rates.lc_standard_error,
    )


def _read_annotation(entry: Entry) -> Annotation:
    names = {name: (name, other) for name, other in PREFIXED.items()}
    entry.require("preference")
    preference = entry.get_number("preference")
    if preference is not None and preference != 0 and not 1 <= preference <= 2:
        raise TableError(
            f"{entry.where} has the preference {preference!r}, which is not from 1 to 2; "
            "1 is for output_1, 1.5 a tie, 2 for output_2"
        )
    raw = next((entry.values[name] for name in names["raw_completion"] if name in entry.values), None)
    return Annotation(
        instruction=entry.get_text("instruction"),
        output_1=entry.get_text("output_1"),
        generator_1=entry.get_text("generator_1"),
        output_2=entry.get_text("output_2"),
        generator_2=entry.get_text("generator_2"),
        preference=1.5 if preference == 0 else preference,  # AlpacaEval once wrote a tie as 0
        annotator=entry.get_text("annotator", default=""),
        dataset=entry.get_text("dataset", default=""),
        price_per_example=entry.get_number(*names["price_per_example"]),
        time_per_example=entry.get_number(*names["time_per_example"]),
        raw_completion=raw,
        others=entry.list_others((*_ANNOTATION_FIELDS, *PREFIXED.values())),
    )


def _read_some(path: Path, what: str) -> list[Entry]:
    entries = read_entries(path)
    if not entries:
        raise TableError(f"{str(path)!r} holds no {what}; give a file that does")
    return entries


def _refuse_doubles(keys: Iterable[tuple[str, ...]], path: Path, what: str) -> None:
    seen: dict[tuple[str, ...], int] = {}
    for number, key in enumerate(keys, 1):
        if key in seen:
            raise TableError(
                f"rows {seen[key]} and {number} of {str(path)!r} are {what} of the same: "
                f"{', '.join(repr(part[:60]) for part in key if part)}; keep one of them"
            )
        seen[key] = number


def _read_cell(name: str, text: str) -> Any:
    if name == "mode" or not text.strip():
        return text or None
    try:
        return float(text)
    except ValueError:
        return text


def _write_cell(name: str, value: Any) -> Any:
    if value is None:
        return ""
    return int(value) if name in _COUNTS and float(value).is_integer() else value
