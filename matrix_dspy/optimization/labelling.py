"""Label a program's outputs at the terminal, one row after the other; nothing that was answered is ever lost.

Rows come from a file with the program's fields as columns (what `run_program` writes), or from the shipped judged set,
whose labels are not shown: then the agreement with them is said at the end. Labels go to a judged set of the user's
own, one line written and synced for each, and a second start goes on behind the last one.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from matrix_dspy.errors import TableError, boundary
from matrix_dspy.loading import build_program, read_signature
from matrix_dspy.optimization.agreement import bootstrap, measure_kappa
from matrix_dspy.optimization.judged import (
    DIFFICULTIES,
    JUDGES,
    LEVELS,
    QUALITIES,
    JudgedRow,
    RowCheck,
    Split,
    load_judged,
    read_level,
    read_preference,
    read_rows,
)
from matrix_dspy.text import clean_value

Ask = Callable[[str], str]
Tell = Callable[[str], None]
SHARES: tuple[tuple[Split, float], ...] = (("train", 0.43), ("val", 0.67), ("test", 1.0))
"""Upper ends of the splits a row's id falls into."""
HELP = "1 to 5; s to skip, u to take the last label back, q to stop"


class StopLabellingError(Exception):
    """The person has had enough."""


class MoveError(Exception):
    """The person leaves a row without a label."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step
        """Rows to go on: 1 skips the row, 0 asks for it again, -1 takes the last label back."""


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A row waiting for its label."""

    id: str
    inputs: dict[str, Any]
    output: dict[str, Any]
    """Empty where the label is the output: of a judge."""
    known: JudgedRow | None = None
    """The row with its label, where it has one; never shown."""


def label(program: str, out: Path, source: Path | None, ask: Ask, tell: Tell, seed: int = 0) -> int:
    """Ask for labels until there are no more rows or the person stops; returns the number of labels in `out`.

    `ask` shows a question and returns what was typed; EOFError and KeyboardInterrupt end the sitting like `q`.

    Raises:
        TableError: source or `out` cannot be read or written.
    """
    check = RowCheck(program)
    rows = list({row.id: row for row in read_source(program, source)}.values())
    random.Random(seed).shuffle(rows)
    done = read_rows(program, out) if out.is_file() else []
    labelled = {row.id for row in done}
    waiting = [row for row in rows if row.id not in labelled]
    tell(f"{len(waiting):,} of {len(rows):,} rows wait for a label; {HELP}")
    place = 0
    while place < len(waiting):
        _show(waiting[place], f"{place + 1} of {len(waiting)}", tell)
        try:
            answer = _ask_label(program, waiting[place], ask)
        except (StopLabellingError, EOFError, KeyboardInterrupt):
            break
        except MoveError as move:
            place = max(0, place + move.step)
            if move.step < 0 and done and done[-1].id == waiting[place].id:
                _take_back(out)
                done.pop()
            continue
        place += 1
        row = check.read(json.dumps(answer, default=str))
        _append(out, row)
        done.append(row)
    _say_agreement(done, rows, tell)
    return len(done)


def read_source(program: str, source: Path | None) -> Iterator[Unlabelled]:
    """Yield the rows of a file, or of the shipped judged set, without their labels."""
    if source is None:
        for row in load_judged(program).rows:
            shown = {} if program in JUDGES else row.output
            yield Unlabelled(row.id, row.inputs, shown, row)
        return
    signature = read_signature(build_program(program))
    inputs = signature.input_fields
    outputs = {} if program in JUDGES else signature.output_fields
    check = RowCheck(program)
    for place, values in _read_table(source):
        if missing := [name for name in (*inputs, *outputs) if name not in values]:
            raise TableError(
                f"{str(source)!r}, {place}, has no column {missing[0]!r}; "
                f"to label {program} it needs {', '.join([*inputs, *outputs])}"
            )
        given, written = (
            {name: _read_value(values[name], field.annotation) for name, field in fields.items()}
            for fields in (inputs, outputs)
        )
        if None in (*given.values(), *written.values()) or (written and set(map(str, written.values())) == {""}):
            continue  # a row without an answer has nothing to label
        try:
            check.check_fields("input", given)
            if outputs:
                check.check_fields("output", written)
        except ValueError as error:
            raise TableError(f"{str(source)!r}, {place}: {error}") from None
        yield Unlabelled(_make_id(program, given, written), given, written)


def choose_split(inputs: dict[str, Any]) -> Split:
    """Return the split a row falls into by its inputs alone: several outputs for the same inputs stay together."""
    share = int(_hash(inputs)[:8], 16) / 2**32
    return next(split for split, end in SHARES if share < end)


def _make_id(program: str, inputs: dict[str, Any], output: dict[str, Any]) -> str:
    return f"{program}-{_hash([inputs, output])[:10]}"


def _hash(values: Any) -> str:
    packed = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(packed.encode()).hexdigest()


def _read_value(value: Any, annotation: Any) -> Any:
    """Return a value; of a field that is no text, what the JSON text holds that stands for it in a table."""
    if not isinstance(value, str) or annotation is str:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_table(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each row stands, and the row."""
    with boundary(TableError, f"read {str(source)!r}"):
        if source.suffix == ".parquet":
            frame = pl.read_parquet(source, glob=False)
        elif source.suffix == ".csv":
            frame = pl.read_csv(source, infer_schema=False, empty_string_is_null=False, glob=False)
        else:
            lines = source.read_text(encoding="utf-8-sig").split("\n")
            yield from ((f"line {n}", _read_line(source, n, line)) for n, line in enumerate(lines, 1) if line.strip())
            return
        yield from ((f"row {n}", row) for n, row in enumerate(frame.iter_rows(named=True), 1))


def _read_line(source: Path, number: int, line: str) -> dict[str, Any]:
    """Return the row in a line of JSON, be it flat or as in a judged set."""
    try:
        found = orjson.loads(line)
        return {**found["inputs"], **found.get("output", {})} if "inputs" in found else dict(found)
    except (ValueError, TypeError, AttributeError) as error:
        raise TableError(f"{str(source)!r}, line {number}: it is no JSON object ({error})") from None


def _show(row: Unlabelled, place: str, tell: Tell) -> None:
    tell(f"\n=== {place}: {row.id}")
    for title, values in (("given", row.inputs), ("written", row.output)):
        for name, value in clean_value(values).items():  # pyright: ignore[reportAttributeAccessIssue]
            lines = value if isinstance(value, list) else [value]
            tell(f"--- {title}: {name}")
            for line in lines:
                tell(f"{'- ' if isinstance(value, list) else ''}{line}")


def _ask_label(program: str, row: Unlabelled, ask: Ask) -> dict[str, Any]:
    """Return the labelled row as it is written to the file.

    Raises:
        StopLabellingError: the person has had enough.
        MoveError: the row stays without a label.
    """
    levels = tuple(map(str, LEVELS))
    if program == "pair_judge":
        score, output = None, {"preference": _ask_word(ask, "better (a or b): ", ("a", "b"), -1).upper()}
    elif program == "arena_judge":
        words = ("a>>b", "a>b", "a=b", "b>a", "b>>a")
        score, output = None, {"level": _ask_word(ask, f"level ({', '.join(words)}): ", words, -1).upper()}
    elif program == "rating_judge":
        output = {"rating": int(_ask_word(ask, "rating from 1 to 10: ", tuple(map(str, range(1, 11))), -1))}
        score = read_level(program, output)
    else:
        score = int(_ask_word(ask, "score: ", levels, -1))
        output = {"score": score} if program in JUDGES else row.output
    if program == "instruction_rater" and score is not None:
        level = int(_ask_word(ask, "difficulty, 1 very easy to 5 very hard: ", levels, 0))
        reason, harder = _ask_reason(ask, "reason, in one sentence: "), _ask_reason(ask, "reason for the difficulty: ")
        output = {"quality_reason": reason, "quality": QUALITIES[score - 1]}
        output |= {"difficulty_reason": harder, "difficulty": DIFFICULTIES[level - 1]}
    else:
        reason = _ask_reason(ask, "reason, in one sentence: ")
        output = {"reason": reason, **output} if program in JUDGES else output
    split = row.known.split if row.known else choose_split(row.inputs)
    found = {"id": row.id, "split": split, "inputs": row.inputs, "output": output, "reason": reason}
    return found | ({} if score is None else {"score": score})


def _ask_word(ask: Ask, question: str, known: tuple[str, ...], back: int) -> str:
    while True:
        word = ask(question).strip().lower()
        if word in known:
            return word
        _obey(word, back)
        question = f"{HELP.replace('1 to 5', ', '.join(known))}: "


def _ask_reason(ask: Ask, question: str) -> str:
    reason = " ".join(ask(question).split())
    _obey(reason.lower(), 0)
    return reason


def _obey(word: str, back: int) -> None:
    """Do what a letter typed in place of an answer asks for; `back` is where taking back leads from here."""
    if word == "q":
        raise StopLabellingError
    if word in ("s", "u"):
        raise MoveError(1 if word == "s" else back)


def _append(out: Path, row: JudgedRow) -> None:
    """Write one label; it is on the disk when this returns."""
    with boundary(TableError, f"write the label to {str(out)!r}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        is_cut = out.is_file() and out.stat().st_size > 0 and not out.read_bytes().endswith(b"\n")
        with out.open("ab") as file:
            file.write(b"\n" * is_cut)
            file.write(orjson.dumps(row.model_dump(exclude_none=True), option=orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())


def _take_back(out: Path) -> None:
    """Remove the last line of the file."""
    with boundary(TableError, f"take a label out of {str(out)!r}"), out.open("r+b") as file:
        lines = file.read().splitlines(keepends=True)
        file.truncate(sum(map(len, lines[:-1])))


def _say_agreement(done: list[JudgedRow], rows: list[Unlabelled], tell: Tell) -> None:
    known = {row.id: row.known for row in rows if row.known is not None}
    both = [(row, known[row.id]) for row in done if row.id in known]
    tell(f"\n{len(done):,} labels")
    if not both:
        return
    if both[0][0].score is None:
        same = sum(read_preference(own.output) == read_preference(other.output) for own, other in both)
        tell(f"the same preference as the shipped set in {same} of {len(both)}")
        return
    own, other = [row.score or 0 for row, _ in both], [row.score or 0 for _, row in both]
    tell(f"agreement with the shipped set, quadratic-weighted kappa: {bootstrap(measure_kappa, other, own)}")
