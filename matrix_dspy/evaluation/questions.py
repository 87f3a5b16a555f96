"""What a model is asked in an evaluation: the questions of a benchmark's own file, or of anybody's."""

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from matrix_dspy.curation.benchmarks import read_rows
from matrix_dspy.errors import TableError
from matrix_dspy.text import replace_surrogates
from matrix_dspy.types import make_id

_IDS = ("question_id", "task_id", "key", "uid", "doc_id", "id", "example_id")
_TEXTS = ("turns", "messages", "prompt", "instruction", "question", "input", "text")
_REFERENCES = ("reference", "references", "answer", "reference_answer")
_CATEGORIES = ("category", "cluster", "dataset", "subject", "type")


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `turns` are what the user says, one after the other."""

    question_id: str
    turns: tuple[str, ...]
    category: str = ""
    references: tuple[str, ...] = ()
    """What a right answer is, where the file says so."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row of the file as it stands."""

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


@dataclass(frozen=True, slots=True)
class Questions(Sequence[Question]):
    """The questions of one file, in its order."""

    name: str
    sha256: str
    items: tuple[Question, ...]
    n_in_file: int

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]

    def __len__(self) -> int:
        return len(self.items)


def read_questions(path: Path, *, column: str = "", limit: int | None = None) -> Questions:
    """Read questions from JSONL, JSON, CSV, TSV or Parquet, also .gz: AlpacaEval's, Arena-Hard's, MT-Bench's, IFEval's,
    GSM8K's, HumanEval's, MBPP's, or a file with the column `column`.

    With `limit` only the first so many are taken. Questions without an id are called by a hash of their turns, so that
    those of two files are never taken for each other.

    Raises:
        TableError: the file cannot be read, has no questions, or two with one id.
    """
    if not path.is_file():
        raise TableError(f"no file of questions {str(path)!r}; give JSONL, JSON, CSV or Parquet")
    rows = list(read_rows(path))
    name = column or next((name for name in _TEXTS if any(row.get(name) for row in rows)), "")
    if not rows or not name or all(name not in row for row in rows):
        wanted = repr(column) if column else "any of " + ", ".join(_TEXTS)
        raise TableError(f"{str(path)!r} has no questions: no row with {wanted}; name the column with --column")
    items: dict[str, Question] = {}
    for place, row in enumerate(rows[:limit]):
        item = _read_question(row, name, place, path)
        if not item.question_id:
            item = replace(item, question_id=_make_id(item.turns, items))
        if item.question_id in items:
            raise TableError(f"{str(path)!r} has two questions with the id {item.question_id!r}; give each its own")
        items[item.question_id] = item
    return Questions(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(items.values()), len(rows))


def _make_id(turns: Sequence[str], taken: Container[str]) -> str:
    """Return an id made of what is asked; the same question again has the next number behind it."""
    own = make_id("q", *turns)
    return next(name for n in count(1) if (name := own if n == 1 else f"{own}-{n}") not in taken)


def _read_question(row: dict[str, Any], column: str, place: int, path: Path) -> Question:
    said = _join_input(row) if column == "instruction" else ""
    asked = map(replace_surrogates, [said] if said else map(_read_turn, _as_list(row.get(column))))
    turns = tuple(turn for turn in asked if turn.strip())
    if not turns:
        raise TableError(f"question {place + 1} of {str(path)!r} has no text in {column!r}; mend it, or take it out")
    own_id = replace_surrogates(read_id(row))
    references = next((row[name] for name in _REFERENCES if name != column and row.get(name)), None)
    category = next((str(row[name]) for name in _CATEGORIES if isinstance(row.get(name), str) and row[name]), "")
    known = tuple(replace_surrogates(str(each)) for each in _as_list(references))
    return Question(own_id, turns, replace_surrogates(category), known, row)


def read_id(row: Mapping[str, Any]) -> str:
    """Return a row's own id; empty where it has none."""
    return next((str(row[name]) for name in _IDS if row.get(name) not in (None, "")), "")


def list_texts(row: Mapping[str, Any]) -> list[str]:
    """Return the texts that a row may be known by, without outer blanks: what is asked in it, under any usual name."""
    found = [_join_input(row), *(row.get(name) for name in _TEXTS)]
    return [text.strip() for text in found if isinstance(text, str) and text.strip()]


def _join_input(row: Mapping[str, Any]) -> str:
    """Return what Alpaca's columns ask together; empty where there are not both."""
    parts = [row.get("instruction"), row.get("input")]
    return "\n".join(map(str, parts)) if all(isinstance(part, str) and part.strip() for part in parts) else ""


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _read_turn(turn: Any) -> str:
    """Return what the user says in a turn: text, {"content": ...}, or a message; an assistant's says nothing."""
    if not isinstance(turn, Mapping):
        return "" if turn is None else str(turn)
    if turn.get("role", "user") != "user":
        return ""
    return str(turn.get("content") or "")
