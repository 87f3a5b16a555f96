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
    rows = list(read_source(program, source))
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
        if answer == "undo":
            place = max(0, place - 1)
            if done and done[-1].id == waiting[place].id:
                _take_back(out)
                done.pop()
            continue
        place += 1
        if answer is not None:
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
    inputs = list(signature.input_fields)
    outputs = [] if program in JUDGES else list(signature.output_fields)
    for values in _read_table(source):
        if missing := [name for name in (*inputs, *outputs) if values.get(name) is None]:
            if missing[0] in values:
                continue  # a row without an answer has nothing to label
            raise TableError(
                f"{str(source)!r} has no column {missing[0]!r}; "
                f"to label {program} it needs {', '.join([*inputs, *outputs])}"
            )
        given, written = ({name: values[name] for name in names} for names in (inputs, outputs))
        yield Unlabelled(_make_id(program, given, written), given, written)


def choose_split(row_id: str) -> Split:
    """Return the split a row falls into, by its id alone."""
    share = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=4).digest(), "big") / 2**32
    return next(split for split, end in SHARES if share < end)


def _make_id(program: str, inputs: dict[str, Any], output: dict[str, Any]) -> str:
    packed = json.dumps([inputs, output], sort_keys=True, default=str)
    return f"{program}-{hashlib.sha256(packed.encode('utf-8', 'replace')).hexdigest()[:10]}"


def _read_table(source: Path) -> Iterator[dict[str, Any]]:
    with boundary(TableError, f"read {str(source)!r}"):
        if source.suffix == ".parquet":
            yield from pl.read_parquet(source).iter_rows(named=True)
        elif source.suffix == ".csv":
            yield from pl.read_csv(source, infer_schema=False).iter_rows(named=True)
        else:
            for line in source.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    found = orjson.loads(line)
                    yield {**found.get("inputs", {}), **found.get("output", {})} if "inputs" in found else found


def _show(row: Unlabelled, place: str, tell: Tell) -> None:
    tell(f"\n=== {place}: {row.id}")
    for title, values in (("given", row.inputs), ("written", row.output)):
        for name, value in clean_value(values).items():  # pyright: ignore[reportAttributeAccessIssue]
            lines = value if isinstance(value, list) else [value]
            tell(f"--- {title}: {name}")
            for line in lines:
                tell(f"{'- ' if isinstance(value, list) else ''}{line}")


def _ask_label(program: str, row: Unlabelled, ask: Ask) -> dict[str, Any] | str | None:
    """Return the labelled row, None for one skipped, or `undo`."""
    if program == "pair_judge":
        word = _ask_word(ask, "better (a or b): ", ("a", "b"))
        return word if word in ("undo", None) else _build(row, {"preference": str(word).upper()}, None, ask)
    word = _ask_word(ask, "score: ", tuple(map(str, LEVELS)))
    if word in ("undo", None):
        return word
    score = int(str(word))
    if program == "instruction_rater":
        level = _ask_word(ask, "difficulty, 1 very easy to 5 very hard: ", tuple(map(str, LEVELS)))
        if level in ("undo", None):
            return level
        output = {"quality": QUALITIES[score - 1], "difficulty": DIFFICULTIES[int(str(level)) - 1]}
        return _build(row, output, score, ask)
    return _build(row, {"score": score} if program in JUDGES else row.output, score, ask)


def _build(row: Unlabelled, output: dict[str, Any], score: int | None, ask: Ask) -> dict[str, Any]:
    """Ask for the reason and return the row as it is written to the file."""
    reason = " ".join(ask("reason, in one sentence: ").split())
    if "quality" in output:
        harder = " ".join(ask("reason for the difficulty: ").split())
        output = {"quality_reason": reason, "quality": output["quality"], "difficulty_reason": harder, **output}
    elif output is not row.output:
        output = {"reason": reason, **output}
    split = row.known.split if row.known else choose_split(row.id)
    found = {"id": row.id, "split": split, "inputs": row.inputs, "output": output, "reason": reason}
    return found | ({} if score is None else {"score": score})


def _ask_word(ask: Ask, question: str, words: tuple[str, ...]) -> str | None:
    while True:
        word = ask(question).strip().lower()
        if word in words:
            return word
        if word == "q":
            raise StopLabellingError
        if word in ("s", "u"):
            return None if word == "s" else "undo"
        question = f"{HELP.replace('1 to 5', ', '.join(words))}: "


def _append(out: Path, row: JudgedRow) -> None:
    """Write one label; it is on the disk when this returns."""
    with boundary(TableError, f"write the label to {str(out)!r}"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as file:
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
        same = sum(own.output["preference"] == other.output["preference"] for own, other in both)
        tell(f"the same preference as the shipped set in {same} of {len(both)}")
        return
    own, other = [row.score or 0 for row, _ in both], [row.score or 0 for _, row in both]
    tell(f"agreement with the shipped set, quadratic-weighted kappa: {bootstrap(measure_kappa, other, own)}")
