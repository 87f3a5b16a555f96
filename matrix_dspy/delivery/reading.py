"""Read a data set of anybody's: a run's, or a file of conversations or preference pairs in a layout people use.

In: a run folder, a folder of data files or one file (JSONL, JSON, CSV, TSV, Parquet; all but Parquet also as .gz), in
TRL's, ShareGPT's, Alpaca's or OpenAI's columns or as prompts with responses. Out: batches of `DataRow`, one form for
all, with a `Fault` for each row that cannot be used. Nothing is held but one batch, whatever the size of the file.
"""

import csv
import gzip
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import orjson

from matrix_dspy.errors import TableError, boundary, did_you_mean
from matrix_dspy.text import clean_text, one_line, replace_surrogates
from matrix_dspy.types import Message, make_id

Shape = Literal["conversation", "pair"]
Turns = tuple[Message, ...]
FIELDS = ("messages", "prompt", "response", "chosen", "rejected", "id", "system", "model")
"""What a column can be named for."""
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
BATCH_ROWS = 1_000

_N_PEEKED = 200
"""Rows looked at to learn the layout."""
_CHUNK = 1 << 20
_LARGEST_ROW = 64 << 20
"""Characters of one entry of a JSON list; more is no row."""
_MOST_SHOWN = 30
_PROMPTS = ("prompt", "question", "query", "instruction", "input", "problem")
_RESPONSES = ("completion", "response", "answer", "output", "solution")
_IDS = ("example_id", "id", "uid", "row_id", "question_id", "prompt_id", "key", "task_id")
_MODELS = ("model", "generator", "model_id", "chosen_model")
_WRAPPERS = ("data", "rows", "examples", "train", "conversations", "items", "instances")
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
}


class ShownTurn(Message):
    """An assistant turn that is shown and not learnt: OpenAI's files give it weight 0."""


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a data set in the form that all layouts are brought to."""

    id: str
    """The row's own id where it has one, else a hash of its turns: never its place in the file."""
    messages: Turns
    """The conversation; of a pair the prompt."""
    chosen: Turns = ()
    rejected: Turns = ()
    model: str = ""
    """Who answered, where a column says so; of a pair the chosen side."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """Columns of no other use, as they came."""

    @property
    def instruction(self) -> str:
        """What was asked: everything that is not the assistant's, system turns included."""
        return "\n\n".join(turn.content for turn in self.messages if turn.role != "assistant")

    @property
    def response(self) -> str:
        """What was answered: everything the assistant said, of a pair on the chosen side."""
        return "\n\n".join(turn.content for turn in self.chosen or self.messages if turn.role == "assistant")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a row cannot be used."""

    file: str
    number: int
    """The line of a JSONL file, else the how many-th row, from 1."""
    reason: str
    """A short fixed word to count by."""
    detail: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows in the order of the file, and what stood between them that is no row."""

    rows: list[DataRow]
    faults: list[Fault]


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows are laid out: a name, a shape, and a reader of one row's turns."""

    name: str
    shape: Shape
    read: Callable[[Mapping[str, Any]], tuple[Turns, Turns, Turns]]
    columns: frozenset[str]
    """Columns that the turns are read from."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set on disk whose layout is known; rows are read when asked for."""

    source: Path
    files: tuple[Path, ...]
    layout: Layout
    columns: tuple[str, ...]
    """Columns found in the first rows."""
    id_column: str | None
    model_column: str | None

    @property
    def shape(self) -> Shape:
        """Whether rows are conversations or preference pairs."""
        return self.layout.shape

    @property
    def name(self) -> str:
        """The folder's name, or the file's without its endings."""
        name = self.source.resolve().name
        if self.source.is_file():
            name = name.removesuffix(".gz").removesuffix(_read_ending(self.source))
        return name or "dataset"

    def read_batches(self, n_rows: int = BATCH_ROWS, *, unique_ids: bool = False) -> Iterator[Batch]:
        """Give the rows in batches of at most `n_rows` rows and faults.

        Two rows of one id, as two of the same text have, can be told apart with `unique_ids`: the second ends in -2,
        the third in -3. That costs memory for every id; without it nothing is held.

        Raises:
            TableError: a file breaks off, or at the end not one row could be used.
        """
        faults: Counter[str] = Counter()
        n_good, example = 0, ""
        n_seen: Counter[str] = Counter()
        for found in _take_batches(chain.from_iterable(map(_read_raw, self.files)), n_rows):
            batch = Batch([], [])
            for raw in found:
                row = raw if isinstance(raw, Fault) else self._build_row(raw)
                if isinstance(row, Fault):
                    example = example or row.detail
                    faults[row.reason] += 1
                    batch.faults.append(row)
                else:
                    batch.rows.append(_number(row, n_seen) if unique_ids else row)
            n_good += len(batch.rows)
            yield batch
        if not n_good:
            raise TableError(
                f"none of the {faults.total():,} rows of {str(self.source)!r} can be used, most of them: "
                f"{faults.most_common(1)[0][0]} ({example}); it has columns {_list_columns(self.columns)}"
            )

    def read_rows(self, *, unique_ids: bool = False) -> Iterator[DataRow]:
        """Give the rows that can be used, one by one."""
        return chain.from_iterable(batch.rows for batch in self.read_batches(unique_ids=unique_ids))

    def _build_row(self, raw: "_Raw") -> DataRow | Fault:
        try:
            messages, chosen, rejected = self.layout.read(raw.columns)
            _check_turns(messages, chosen, rejected, self.shape)
        except _BadRowError as error:
            return Fault(raw.file, raw.number, error.reason, error.detail)
        own = raw.columns.get(self.id_column) if self.id_column else None
        model = raw.columns.get(self.model_column) if self.model_column else None
        used = {*self.layout.columns, self.id_column, self.model_column}
        return DataRow(
            id=str(own) if isinstance(own, str | int) and str(own).strip() else _hash_turns(messages, chosen, rejected),
            messages=messages,
            chosen=chosen,
            rejected=rejected,
            model=model if isinstance(model, str) else "",
            others={name: value for name, value in raw.columns.items() if name not in used},
        )


@dataclass(frozen=True, slots=True)
class _Raw:
    file: str
    number: int
    columns: dict[str, Any]


class _BadRowError(ValueError):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def read_dataset(source: Path, columns: Mapping[str, str] | None = None) -> Dataset:
    """Find the data files of a run folder, a folder or a file, and learn their layout from the first rows.

    `columns` names the columns of fields (messages; prompt, response; chosen, rejected; id, system, model) that cannot
    be guessed.

    Raises:
        TableError: there is nothing to read, or no layout fits its columns.
    """
    source = Path(source)
    files = find_data_files(source)
    raws: list[_Raw] = []
    faults: list[Fault] = []
    for found in islice(chain.from_iterable(map(_read_raw, files)), _N_PEEKED):
        raws.append(found) if isinstance(found, _Raw) else faults.append(found)
    if not raws:
        why = f"; the first: {faults[0].detail}" if faults else ""
        raise TableError(f"{str(source)!r} holds no rows with columns{why}; give a file of conversations or pairs")
    known = tuple(dict.fromkeys(name for raw in raws for name, value in raw.columns.items() if value is not None))
    given = _check_columns(columns or {}, known, source)
    layout = _find_layout(known, given, [raw.columns for raw in raws])
    if layout is None:
        raise TableError(
            f"no conversations or pairs in {str(source)!r}; it has columns {_list_columns(known)}; "
            "say which is which with --column prompt=... --column response=..."
        )
    plain = _plain_names(known)
    return Dataset(
        source=source,
        files=files,
        layout=layout,
        columns=known,
        id_column=given.get("id") or _first(plain, _IDS, layout.columns),
        model_column=given.get("model") or _first(plain, _MODELS, layout.columns),
    )


def find_data_files(source: Path) -> tuple[Path, ...]:
    """Return the files that hold the rows of a run folder, of a folder of data files, or the file itself.

    Raises:
        TableError: there are none.
    """
    if source.is_dir():
        is_run = (source / "dataset").is_dir() or (source / "run.toml").is_file()
        folder = source / "dataset" if is_run else source
        entries = folder.iterdir() if folder.is_dir() else ()
        found = sorted(path for path in entries if path.is_file() and _read_ending(path) in SUFFIXES)
        # a run holds every set twice, as Parquet and as JSONL
        chosen = [path for path in found if path.suffix == ".parquet"] or found if is_run else found
        if chosen:
            return tuple(chosen)
        what = "a data set yet; finish the run first" if is_run else f"a {', '.join(SUFFIXES)} file"
        raise TableError(f"the folder {str(source)!r} does not hold {what}")
    if not source.is_file():
        raise TableError(f"no file or folder {str(source)!r}; give a run folder or a {', '.join(SUFFIXES)} file")
    if _read_ending(source) not in SUFFIXES:
        raise TableError(
            f"cannot tell the type of {str(source)!r} by its ending; "
            f"rename or convert it to one of {', '.join(SUFFIXES)}"
        )
    return (source,)


def _read_ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes[-1:] == [".gz"]:
        return suffixes[0] if len(suffixes) == 2 and suffixes[0] != ".parquet" else ""
    return suffixes[-1] if suffixes else ""


def _take_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _read_raw(path: Path) -> Iterator[_Raw | Fault]:
    """Give the rows of one file as mappings of columns."""
    ending = _read_ending(path)
    readers = {".parquet": _read_parquet, ".json": _read_json, ".csv": _read_separated, ".tsv": _read_separated}
    with boundary(TableError, f"read {str(path)!r}"):
        yield from readers.get(ending, _read_json_lines)(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_json_lines(path: Path) -> Iterator[_Raw | Fault]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if text:
                yield _parse_object(text, path.name, number)


def _parse_object(text: bytes, file: str, number: int) -> _Raw | Fault:
    try:
        value = orjson.loads(text)
    except ValueError:
        try:  # what Python itself writes: NaN, halves of surrogate pairs
            value = json.loads(text.decode("utf-8", "replace"), parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return Fault(file, number, "not JSON", f"row {number} is not readable as JSON")
    return _check_object(value, file, number)


def _check_object(value: Any, file: str, number: int) -> _Raw | Fault:
    if isinstance(value, dict):
        return _Raw(file, number, value)
    return Fault(file, number, "not an object", f"row {number} is a {type(value).__name__}, not an object")


def _read_json(path: Path) -> Iterator[_Raw | Fault]:
    """Read a list of objects piece by piece, the list in a wrapper such as `{"data": [...]}`, or lines of objects."""
    with _open(path) as file:
        start = file.peek(1)[:64] if isinstance(file, io.BufferedReader | gzip.GzipFile) else b""  # type: ignore[attr-defined]
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace")
        if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            yield from _read_list(text, path)
            return
        first = text.readline(_LARGEST_ROW)
    value = _parse_object(first.encode("utf-8", "replace"), path.name, 1)
    if isinstance(value, _Raw) and not (len(value.columns) == 1 and _is_wrapper(value.columns)):
        yield from _read_json_lines(path)
        return
    with _open(path) as file:
        try:
            whole = json.loads(file.read().decode("utf-8-sig", "replace"), parse_constant=lambda _: None)
        except (ValueError, RecursionError) as error:
            raise TableError(f"{str(path)!r} is not readable as JSON; name it .jsonl if it has a row a line") from error
    items = next(iter(whole.values())) if isinstance(whole, dict) and _is_wrapper(whole) else [whole]
    for number, item in enumerate(items, 1):
        yield _check_object(item, path.name, number)


def _is_wrapper(value: dict[str, Any]) -> bool:
    name, inner = next(iter(value.items()), ("", None))
    is_list = isinstance(inner, list) and all(isinstance(item, dict) for item in inner[:5])
    # one conversation by itself is a row, not a wrapper
    return len(value) == 1 and name.lower() in _WRAPPERS and is_list and not (inner and {"from", "role"} & {*inner[0]})


def _read_list(file: io.TextIOWrapper, path: Path) -> Iterator[_Raw | Fault]:
    """Decode the entries of a JSON list one after the other, holding no more than one and a chunk."""
    decoder = json.JSONDecoder(parse_constant=lambda _: None)
    buffer, place, number, is_end = file.read(_CHUNK).lstrip()[1:], 0, 0, False
    while True:
        while place < len(buffer) and buffer[place] in " \t\r\n,":
            place += 1
        if place < len(buffer) and buffer[place] == "]":
            return
        value, end = None, len(buffer)
        try:
            if place < len(buffer):
                value, end = decoder.raw_decode(buffer, place)
        except RecursionError as error:
            raise TableError(f"row {number + 1:,} of {str(path)!r} is nested too deeply to be read") from error
        except ValueError:
            pass  # it may go on beyond what was read
        if end < len(buffer):
            number, place = number + 1, end
            yield _check_object(value, path.name, number)
            continue
        if is_end or len(buffer) - place > _LARGEST_ROW:
            raise TableError(f"{str(path)!r} is not readable as a JSON list after row {number:,}; mend it")
        more = file.read(max(_CHUNK, len(buffer) - place))
        buffer, place, is_end = buffer[place:] + more, 0, not more


def _read_separated(path: Path) -> Iterator[_Raw | Fault]:
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        header = text.readline()
        separator = max("\t" if _read_ending(path) == ".tsv" else ",", ";", "\t", "|", key=header.count)
        reader = csv.DictReader(chain([header], text), delimiter=separator)
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    words = f"row {number} has more cells than the header has columns"
                    yield Fault(path.name, number, "too many cells", words)
                elif any(value and value.strip() for value in row.values()):
                    yield _Raw(path.name, number, dict(row))
        except csv.Error as error:
            raise TableError(
                f"{str(path)!r} is not readable as CSV (line {reader.line_num}); mend that line"
            ) from error


def _read_parquet(path: Path) -> Iterator[_Raw | Fault]:
    import polars as pl
    import pyarrow.parquet as pq

    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            for row in frame.iter_rows(named=True):
                number += 1
                yield _Raw(path.name, number, row)


def _check_columns(given: Mapping[str, str], known: tuple[str, ...], source: Path) -> dict[str, str]:
    for name, column in given.items():
        if name not in FIELDS:
            raise TableError(f"cannot map a column to {name!r}; {did_you_mean(name, list(FIELDS))}")
        if column not in known:
            raise TableError(f"no column {column!r} in {str(source)!r} for {name!r}; it has {_list_columns(known)}")
    for one, other in (("prompt", "response"), ("chosen", "rejected")):
        if other in given and one not in given:
            raise TableError(f"a column for {other!r} needs one for {one!r} beside it; it has {_list_columns(known)}")
    return dict(given)


def _list_columns(known: Iterable[str]) -> str:
    names = [repr(one_line(clean_text(str(name)))[:60]) for name in known]
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return (", ".join(names[:_MOST_SHOWN]) or "none") + more


def _plain_names(known: Iterable[str]) -> dict[str, str]:
    """Return columns by their names without regard to capitals, blanks and hyphens."""
    plain: dict[str, str] = {}
    for name in known:
        plain.setdefault("_".join(str(name).replace("-", " ").split()).lower(), name)
    return plain


def _first(plain: Mapping[str, str], names: Iterable[str], taken: Iterable[str] = ()) -> str | None:
    return next((plain[name] for name in names if name in plain and plain[name] not in taken), None)


def _find_layout(known: tuple[str, ...], given: Mapping[str, str], rows: list[dict[str, Any]]) -> Layout | None:
    """Return the first layout whose columns are there; pairs go first, since they may hold their chosen side twice."""
    plain = {**_plain_names(known), **given}
    system = plain.get("system")
    chosen, rejected, messages = plain.get("chosen"), plain.get("rejected"), plain.get("messages")
    prompt = given.get("prompt") or _first(plain, _PROMPTS)
    response = given.get("response") or (None if {"chosen", "messages"} & given.keys() else _first(plain, _RESPONSES))
    turns = plain.get("conversations") or plain.get("conversation")
    if "response" in given and prompt:
        return _lay_out_texts("prompt and response", prompt, given["response"], system)
    if chosen and rejected and "messages" not in given:
        return _lay_out_pair(plain, given, chosen, rejected, turns, prompt, system)
    if {"preferred_output", "non_preferred_output"} <= plain.keys() and "input" in plain:
        return _lay_out_openai_pair(plain)
    if messages:
        return _lay_out_messages("messages", messages, system)
    if turns:
        return _lay_out_messages("ShareGPT", turns, system)
    if "instruction" in plain and "output" in plain and "prompt" not in given:
        return _lay_out_alpaca(plain)
    if prompt and response:
        label = plain.get("label") if any(isinstance(row.get(plain.get("label", "")), bool) for row in rows) else None
        return _lay_out_texts(f"{prompt} and {response}", prompt, response, system, label)
    return None


def _lay_out_messages(name: str, column: str, system: str | None) -> Layout:
    def read(row: Mapping[str, Any]) -> tuple[Turns, Turns, Turns]:
        return _read_system(row, system) + _read_turns(row.get(column)), (), ()

    return Layout(name, "conversation", read, _used(column, system))


def _lay_out_texts(name: str, prompt: str, response: str, system: str | None, label: str | None = None) -> Layout:
    def read(row: Mapping[str, Any]) -> tuple[Turns, Turns, Turns]:
        if label and row.get(label) is False:
            raise _BadRowError("labelled bad", "its label says that the answer is a bad one")
        asked = _read_system(row, system) + _read_side(row.get(prompt), "user")
        return asked + _strip(_read_side(row.get(response), "assistant"), asked), (), ()

    return Layout(name, "conversation", read, _used(prompt, response, system, label))


def _lay_out_alpaca(plain: Mapping[str, str]) -> Layout:
    columns = [plain.get(name) for name in ("instruction", "input", "output", "system", "history")]
    instruction, given, output, system, history = columns

    def read(row: Mapping[str, Any]) -> tuple[Turns, Turns, Turns]:
        asked = _read_alpaca_prompt(row, instruction, given, system, history)
        return asked + _read_side(row.get(output or ""), "assistant"), (), ()

    return Layout("Alpaca", "conversation", read, _used(*columns))


def _read_alpaca_prompt(
    row: Mapping[str, Any], instruction: str | None, given: str | None, system: str | None, history: str | None
) -> Turns:
    past: list[Message] = []
    for pair in _read_list_value(row.get(history)) if history and row.get(history) else []:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise _BadRowError("no turns", "its history is no list of pairs")
        past += [*_read_side(pair[0], "user"), *_read_side(pair[1], "assistant")]
    asked = [text for column in (instruction, given) if column and (text := row.get(column))]
    if not all(isinstance(text, str) for text in asked):
        raise _BadRowError("not text", "its instruction or input is no text")
    # what LLaMA-Factory and Stanford's own training make of the two columns
    return (*_read_system(row, system), *past, *_read_side("\n".join(asked), "user"))


def _lay_out_pair(
    plain: Mapping[str, str],
    given: Mapping[str, str],
    chosen: str,
    rejected: str,
    turns: str | None,
    prompt: str | None,
    system: str | None,
) -> Layout:
    """TRL's with or without a prompt, ShareGPT's and Alpaca's (as LLaMA-Factory has them)."""
    is_alpaca = "instruction" in plain and "prompt" not in plain
    asked_in = given.get("prompt") or plain.get("prompt") or turns or prompt
    names = (plain.get("instruction"), plain.get("input"), system, plain.get("history"))

    def read(row: Mapping[str, Any]) -> tuple[Turns, Turns, Turns]:
        one, other = (_read_side(row.get(column), "assistant") for column in (chosen, rejected))
        if is_alpaca and "prompt" not in given:
            asked = _read_alpaca_prompt(row, *names)
        elif asked_in and row.get(asked_in) is not None:
            asked = _read_system(row, system) + _read_side(row.get(asked_in), "user")
        else:
            asked = _read_system(row, system) + _shared_start(one, other)
        return asked, _strip(one, asked), _strip(other, asked)

    name = "Alpaca pairs" if is_alpaca else "ShareGPT pairs" if asked_in == turns and turns else "pairs"
    used = (*names, chosen, rejected) if is_alpaca else (asked_in, system, chosen, rejected)
    return Layout(name, "pair", read, _used(*used))


def _lay_out_openai_pair(plain: Mapping[str, str]) -> Layout:
    columns = [plain[name] for name in ("input", "preferred_output", "non_preferred_output")]

    def read(row: Mapping[str, Any]) -> tuple[Turns, Turns, Turns]:
        asked, chosen, rejected = (row.get(column) for column in columns)
        asked = asked.get("messages") if isinstance(asked, dict) else asked
        return _read_turns(asked), _read_turns(chosen), _read_turns(rejected)

    return Layout("OpenAI preference pairs", "pair", read, _used(*columns))


def _used(*columns: str | None) -> frozenset[str]:
    return frozenset(column for column in columns if column)


def _read_system(row: Mapping[str, Any], column: str | None) -> Turns:
    text = row.get(column) if column else None
    return (Message(role="system", content=_read_text(text)),) if isinstance(text, str) and text.strip() else ()


def _read_side(value: Any, role: Literal["user", "assistant"]) -> Turns:
    """Read a prompt or one side: a text, one turn or several."""
    if isinstance(value, dict):
        return (_read_turn(value),)
    if isinstance(value, list | tuple) or _looks_like_turns(value):
        return _read_turns(value)
    if value is None:
        raise _BadRowError("empty", f"it has no text of the {role}'s")
    return (Message(role=role, content=_read_text(value)),)


def _looks_like_turns(value: Any) -> bool:
    """Whether a text is a list of turns as JSON, which is how a CSV file holds one."""
    if not isinstance(value, str) or not value.lstrip().startswith("[{"):
        return False
    try:
        first = orjson.loads(value)[0]
    except ValueError:
        return False
    return isinstance(first, dict) and bool({"role", "from"} & first.keys())


def _read_list_value(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, list | tuple):
        raise _BadRowError("no turns", "its turns are no list")
    return list(value)


def _read_turns(value: Any) -> Turns:
    return tuple(map(_read_turn, _read_list_value(value)))


def _read_turn(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise _BadRowError("no turns", f"a turn of it is a {type(turn).__name__}, not an object")
    said = turn.get("role") or turn.get("from")
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise _BadRowError("other role", f"a turn of it is by {one_line(clean_text(str(said)))[:60]!r}")
    if turn.get("tool_calls"):
        raise _BadRowError("other role", "a turn of it calls a tool")
    text = _read_text(turn["content"] if "content" in turn else turn.get("value"))
    thinking = turn.get("reasoning_content") or turn.get("thinking")
    if role == "assistant" and isinstance(thinking, str) and thinking.strip():
        text = f"<think>\n{replace_surrogates(thinking.strip())}\n</think>\n\n{text}"
    if role == "assistant" and turn.get("weight") is not None:
        return _weigh(text, turn["weight"])
    return Message(role=role, content=text)


def _weigh(text: str, weight: Any) -> Message:
    """Return an assistant turn of a weight, which OpenAI knows two of."""
    if weight not in (0, 1):
        raise _BadRowError("other weight", f"a turn of it has weight {one_line(str(weight))[:60]!r}, not 0 or 1")
    return Message(role="assistant", content=text) if weight else ShownTurn(role="assistant", content=text)


def _read_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = "".join(map(_read_part, value))
    if value is None:
        raise _BadRowError("empty", "a turn of it has no text")
    if not isinstance(value, str):
        if isinstance(value, bool | dict) or not isinstance(value, int | float):
            raise _BadRowError("not text", f"a turn of it is a {type(value).__name__}, not a text")
        value = str(value)
    return replace_surrogates(value)


def _read_part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        raise _BadRowError("not text", "a turn of it holds more than text")
    return text


def _shared_start(one: Turns, other: Turns) -> Turns:
    """Return the turns that both sides begin with, up to the last that is not the assistant's."""
    n_shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    asked = [i for i, turn in enumerate(one[:n_shared]) if turn.role != "assistant"]
    return one[: asked[-1] + 1] if asked else ()


def _strip(side: Turns, asked: Turns) -> Turns:
    """Take the prompt off a side that begins with it."""
    return side[len(asked) :] if asked and side[: len(asked)] == asked else side


def _check_turns(messages: Turns, chosen: Turns, rejected: Turns, shape: Shape) -> None:
    if any(not turn.content.strip() and turn.role != "system" for turn in (*messages, *chosen, *rejected)):
        raise _BadRowError("empty", "a turn of it has no text")
    if all(turn.role != "user" for turn in messages):
        raise _BadRowError("no question", "it has no turn of a user's")
    for side in (chosen, rejected) if shape == "pair" else (messages,):
        if all(turn.role != "assistant" for turn in side):
            raise _BadRowError("no answer", "it has no turn of an assistant's")


def _number(row: DataRow, n_seen: Counter[str]) -> DataRow:
    n_seen[row.id] += 1
    count = n_seen[row.id]
    return row if count == 1 else replace(row, id=f"{row.id}-{count}")


def _hash_turns(messages: Turns, chosen: Turns, rejected: Turns) -> str:
    parts = [[[turn.role, turn.content] for turn in side] for side in (messages, chosen, rejected)]
    return make_id("row", orjson.dumps(parts).decode())
