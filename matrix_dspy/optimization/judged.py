"""Judged sets: rows of a program's inputs and one output with a score from 1 to 5, a reason and a split.

The shipped sets lie in `data/judged/<program>.jsonl`, each with its rubric and data card in `<program>.md`; a user's
own file has the same form. A judge's row holds the right verdict as its output; a judge of pairs has a preference or a
level in place of a score. Three judges have no file: `output_judge` learns from the rows of all programs that write,
`arena_judge` from the pairs of `pair_judge` (which is better, by how much is not labelled), and `rating_judge` from the
rows of `response_judge`.
"""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import dspy
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from matrix_dspy.errors import TableError, boundary, did_you_mean
from matrix_dspy.loading import PROGRAMS, build_program, read_signature
from matrix_dspy.text import clean_text, clean_value

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LEVELS = (1, 2, 3, 4, 5)
GOOD = 4
"""Lowest score of an output that does."""
JUDGES = ("response_judge", "pair_judge", "output_judge", "instruction_rater", "arena_judge", "rating_judge")
"""Programs whose outputs are verdicts: tuned to agree with labels, in this order."""
PAIRED = ("pair_judge", "arena_judge")
"""Judges of two responses: asked in both orders."""
BORROWED = {"arena_judge": "pair_judge", "rating_judge": "response_judge"}
"""Judge to the one whose shipped rows it takes."""
RATINGS = {1: 1, 2: 4, 3: 6, 4: 8, 5: 10}
"""Score of `response_judge` to the rating from 1 to 10 whose words say the same."""
QUALITIES = ("very poor", "poor", "average", "good", "excellent")
DIFFICULTIES = ("very easy", "easy", "medium", "hard", "very hard")
_CARD = "\n## Data card"
_TURNED = str.maketrans("AB", "BA")


class JudgedRow(BaseModel):
    """One labelled row."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str = Field(min_length=1)
    split: Split
    inputs: dict[str, Any]
    output: dict[str, Any]
    score: int | None = Field(default=None, ge=1, le=5)
    """How good the output is; of a judge's row the verdict itself; None in a row of two responses."""
    reason: str = ""
    case: str = ""
    """What kind of case the row is: `plain`, or the difficulty it shows."""


@dataclass(frozen=True)
class JudgedSet:
    """All rows of one program, with the rubric they were labelled by."""

    program: str
    rows: tuple[JudgedRow, ...]
    rubric: str
    sha256: str
    """Hash of the rows, for cards."""

    def split(self, name: Split) -> list[JudgedRow]:
        """Return the rows of one split in the order of the file."""
        return [row for row in self.rows if row.split == name]


def judged_folder() -> Path:
    """Return where the shipped sets lie."""
    return Path(__file__).parent.parent / "data" / "judged"


def list_judged() -> list[str]:
    """Return the programs that have a shipped set, in the order of the path."""
    made = {"output_judge", *BORROWED}
    return [name for name in PROGRAMS if name in made or (judged_folder() / f"{name}.jsonl").is_file()]


def list_written() -> list[str]:
    """Return the programs with a shipped set that write, rather than judge."""
    return [name for name in list_judged() if name not in JUDGES]


def load_judged(program: str, path: Path | None = None) -> JudgedSet:
    """Return the judged set of `program`: the shipped one, or a file of the same form.

    The rubric is the text of the `.md` beside the file up to its data card; a user's file without one is judged by the
    shipped rubric.

    Raises:
        ProgramNotFoundError: there is no such program.
        TableError: there is no set for it, or a row does not fit the program; the row is named.
    """
    build_program(program)
    if path is None and program == "output_judge":
        return _join_written()
    if path is None and program in BORROWED:
        return _borrow(program)
    place = path or judged_folder() / f"{program}.jsonl"
    if not place.is_file():
        known = f"shipped are {', '.join(list_judged())}" if path is None else "check the path"
        raise TableError(f"no judged set {str(place)!r} for {program!r}; {known}")
    rows = read_rows(program, place)
    return JudgedSet(program, tuple(rows), _read_rubric(program, place), _hash_rows(rows))


def read_rows(program: str, path: Path) -> list[JudgedRow]:
    """Read and check the rows of a file.

    Raises:
        TableError: a line is no row of this program; the line and the fault are named.
    """
    with boundary(TableError, f"read the judged set {str(path)!r}"):
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would cut at signs that a text may hold
    check = RowCheck(program)
    rows: list[JudgedRow] = []
    seen: set[str] = set()
    splits: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = check.read(line)
        except ValueError as error:
            raise TableError(f"{str(path)!r}, line {number}: {error}") from None
        if row.id in seen:
            raise TableError(f"{str(path)!r}, line {number}: the id {row.id!r} stands there twice; give each its own")
        seen.add(row.id)
        if splits.setdefault(json.dumps(row.inputs, sort_keys=True), row.split) != row.split:
            raise TableError(
                f"{str(path)!r}, line {number}: its inputs stand in another split too; keep rows of the same inputs in "
                "one split, or what is learnt leaks into what is measured"
            )
        rows.append(row)
    return rows


class RowCheck:
    """Reads lines as rows of one program, and says what is wrong with one that is not."""

    def __init__(self, program: str) -> None:
        self.program = program
        signature = read_signature(build_program(program))
        self._fields = {
            "input": {name: _read_type(field) for name, field in signature.input_fields.items()},
            "output": {name: _read_type(field) for name, field in signature.output_fields.items()},
        }

    def read(self, line: str) -> JudgedRow:
        """Return the row a line holds, its texts cleaned; raises ValueError with one sentence."""
        try:
            row = JudgedRow.model_validate(clean_value(json.loads(line)))
        except ValidationError as error:
            raise ValueError(_describe(error)) from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON ({error})") from None
        self.check_fields("input", row.inputs)
        self.check_fields("output", row.output)
        self._check_label(row)
        return row

    def check_fields(self, side: Literal["input", "output"], values: dict[str, Any]) -> None:
        """Raise ValueError, with one sentence, unless the values are those of the program's fields."""
        fields = self._fields[side]
        if set(values) != set(fields):
            raise ValueError(
                f"its {side} has the fields {sorted(values)}; {self.program} has {list(fields)}, all of them are needed"
            )
        for name, adapter in fields.items():
            try:
                adapter.validate_json(json.dumps(values[name], default=str), strict=True)
            except ValidationError as error:
                raise ValueError(f"{side} field {name!r}: {_describe(error)}") from None

    def _check_label(self, row: JudgedRow) -> None:
        if self.program in PAIRED:
            return
        if row.score is None:
            raise ValueError("it has no score; write a number from 1 to 5")
        if self.program in ("response_judge", "output_judge") and row.output["score"] != row.score:
            raise ValueError(f"its score is {row.score} but the verdict in its output says {row.output['score']}")
        if self.program == "rating_judge" and read_level(self.program, row.output) != row.score:
            raise ValueError(f"its score is {row.score} but the rating in its output is {row.output['rating']} of 10")
        if self.program == "instruction_rater" and QUALITIES[row.score - 1] != row.output["quality"]:
            raise ValueError(f"its score is {row.score} but the quality in its output is {row.output['quality']!r}")


def read_level(program: str, output: Mapping[str, Any]) -> int:
    """Return the level from 1 to 5 that a verdict on one response stands for."""
    if program == "instruction_rater":
        return QUALITIES.index(output["quality"]) + 1
    return (int(output["rating"]) + 1) // 2 if program == "rating_judge" else int(output["score"])


def read_preference(output: Mapping[str, Any]) -> str:
    """Return which response a verdict on two prefers, A or B; empty for a tie."""
    if "preference" in output:
        return str(output["preference"])
    level = str(output["level"])
    return "" if "=" in level else level.partition(">")[0]


def is_gold(program: str, row: JudgedRow) -> bool:
    """Whether the row's output may serve as an example to follow."""
    return program in JUDGES or row.score == LEVELS[-1]


def build_example(program: str, row: JudgedRow) -> dspy.Example:
    """Return a row as DSPy takes it: inputs, and the outputs where they may be followed."""
    signature = read_signature(build_program(program))
    values = {name: row.inputs[name] for name in signature.input_fields}
    if is_gold(program, row):
        values |= read_output(program, row)
    return dspy.Example(**values).with_inputs(*signature.input_fields)


def read_output(program: str, row: JudgedRow) -> dict[str, Any]:
    """Return a row's output in the types of the signature."""
    signature = read_signature(build_program(program))
    return {
        name: _read_type(field).validate_python(row.output[name]) for name, field in signature.output_fields.items()
    }


def turn_pair(row: JudgedRow) -> JudgedRow:
    """Return a row of two responses with them in the other order; its reason, which names them, is left out."""
    inputs = {
        "instruction": row.inputs["instruction"],
        "response_a": row.inputs["response_b"],
        "response_b": row.inputs["response_a"],
    }
    output = {"reason": ""} | {
        name: verdict.translate(_TURNED).replace("B=A", "A=B")
        for name, verdict in row.output.items()
        if name in ("preference", "level")
    }
    return row.model_copy(update={"id": f"{row.id}-turned", "inputs": inputs, "output": output, "reason": ""})


def sample_rows(rows: Sequence[JudgedRow], n: int, seed: int) -> list[JudgedRow]:
    """Draw `n` rows so that every score, and of `output_judge` every program, has its share; all rows where n is 0."""
    if not n or n >= len(rows):
        return list(rows)
    generator = random.Random(seed)
    strata: dict[Any, list[JudgedRow]] = {}
    for row in rows:
        key = (row.id.rpartition("-")[0], row.score if row.score is not None else read_preference(row.output))
        strata.setdefault(key, []).append(row)
    queues = [generator.sample(each, len(each)) for each in strata.values()]
    generator.shuffle(queues)
    drawn: list[JudgedRow] = []
    while len(drawn) < n:
        for queue in queues:
            if queue and len(drawn) < n:
                drawn.append(queue.pop())
    return drawn


def _join_written() -> JudgedSet:
    """Return every writer's rows as rows of `output_judge`."""
    rows: list[JudgedRow] = []
    for name in list_written():
        rows += judge_rows(load_judged(name))
    return JudgedSet("output_judge", tuple(rows), "", _hash_rows(rows))


def _borrow(program: str) -> JudgedSet:
    """Return the rows of another judge as rows of this one."""
    lender = load_judged(BORROWED[program])
    lend = _to_level if program in PAIRED else _to_rating
    rows = [lend(row).model_copy(update={"id": row.id.replace(lender.program, program)}) for row in lender.rows]
    return JudgedSet(program, tuple(rows), lender.rubric, _hash_rows(rows))


def _to_level(row: JudgedRow) -> JudgedRow:
    level = "A>B" if row.output["preference"] == "A" else "B>A"
    return row.model_copy(update={"output": {"reason": row.output["reason"], "level": level}})


def _to_rating(row: JudgedRow) -> JudgedRow:
    inputs = {"earlier": [], "known_answers": [], **row.inputs}
    output = {"reason": row.output["reason"], "rating": RATINGS[row.output["score"]]}
    return row.model_copy(update={"inputs": inputs, "output": output})


def judge_rows(judged: JudgedSet) -> list[JudgedRow]:
    """Return a writer's rows as rows of `output_judge`: rubric, inputs and output in, the label out."""
    return [
        row.model_copy(
            update={
                "inputs": {"rubric": judged.rubric, "given": row.inputs, "written": row.output},
                "output": {"reason": row.reason, "score": row.score},
            }
        )
        for row in judged.rows
    ]


def _read_rubric(program: str, path: Path) -> str:
    for place in (path.with_suffix(".md"), judged_folder() / f"{program}.md"):
        if place.is_file():
            with boundary(TableError, f"read the rubric {str(place)!r}"):
                return clean_text(place.read_text(encoding="utf-8-sig").partition(_CARD)[0])
    return read_signature(build_program(program)).instructions


def _hash_rows(rows: Sequence[JudgedRow]) -> str:
    packed = json.dumps([row.model_dump() for row in rows], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(packed.encode()).hexdigest()


def _read_type(field: Any) -> TypeAdapter[Any]:
    return TypeAdapter(field.annotation)


def _describe(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "model_type" and not place:
        return "it is no object with the keys of a row"
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}; {did_you_mean(place, list(JudgedRow.model_fields))}"
    return f"{place + ': ' if place else ''}{first['msg'].lower()}"
