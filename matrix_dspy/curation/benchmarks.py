"""Read evaluation sets from the files people have, so that nothing of them gets into training data.

In: a folder or one file of JSON lines, JSON, CSV, TSV, Parquet or hashes, plain or gzipped.
Out: one `Benchmark` a file, with its prompts and its reference answers.
A hash list is a `.txt` of sha256 sums, one a line, of texts that may not be passed on, made as `hash_text` makes them.
"""

import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from matrix_dspy.errors import ConfigError, TableError, boundary, did_you_mean
from matrix_dspy.text import count_words, drop_controls, one_line

EVERY_FILE = "*"
"""In place of a file's name, where the user names one column for all files."""
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_PROMPTS = (
    "prompt",
    "prompts",
    "question",
    "instruction",
    "problem",
    "turns",
    "goal",
    "behavior",
    "behaviour",
    "query",
    "problem_statement",
    "task",
    "text",
    "input",
    "messages",
    "conversation",
    "conversations",
    "user_prompt",
    "ctx",
    "context",
    "content",
)
"""Usual names of the column with the prompt, first choice first."""
_COMPANIONS = {"instruction": ("input", "context")}
"""Columns that hold a second part of the prompt, where the first stands under the name before."""
_ANSWERS = (
    "answer",
    "answers",
    "solution",
    "reference",
    "references",
    "reference_answer",
    "reference_answers",
    "best_answer",
    "ground_truth",
    "target",
    "output",
)
_CODE = ("canonical_solution", "code", "solutions", "gold_patch", "patch")
_IDS = ("task_id", "question_id", "problem_id", "prompt_id", "item_id", "example_id", "key", "id", "uid", "qid", "idx")
_WRAPPERS = ("data", "rows", "examples", "items", "questions", "instances", "problems", "prompts", "test")
_ANSWERERS = {"assistant", "gpt", "chatgpt", "model", "bot", "ai"}
_HASH = re.compile(r"[0-9a-fA-F]{64}")
_LONGEST_ID = 100
_DEEPEST = 8
"""Levels of a nested value that are read; what lies deeper is left out."""


@dataclass(frozen=True, slots=True)
class Item:
    """One task of an evaluation set."""

    id: str
    """Its own id where it has one that no other item has, else its number from 0."""
    prompts: tuple[str, ...]
    """What is asked, one text a turn."""
    answers: tuple[str, ...] = ()
    """Reference answers in words."""
    code: tuple[str, ...] = ()
    """Reference solutions in code."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """An evaluation set: its items with their text, or the hashes of texts that may not be passed on."""

    name: str
    """The file's name without endings, after the folders it lies in."""
    items: tuple[Item, ...] = ()
    hashes: tuple[bytes, ...] = ()
    """sha256 sums; the place in the list is the item's id."""
    prompt_column: str = ""
    answer_columns: tuple[str, ...] = ()
    """Columns with answers, in words or code."""

    @property
    def n_items(self) -> int:
        """Items with text and items known by their hash only."""
        return len(self.items) + len(self.hashes)


def read_benchmarks(folder: Path, columns: Mapping[str, str] | None = None) -> list[Benchmark]:
    """Return the evaluation sets below a folder, in the order of their names.

    The column of prompts is guessed from usual names. `columns` names it instead: file name, with or without endings,
    to column, `outer.inner` for a nested one; the name "*" stands for all other files that have such a column. Lists
    of texts and of messages are several turns. Reference answers are read as well, where a column has a usual name.
    Files of other types are left out; `find_benchmark_files` lists them.

    Raises:
        TableError: nothing can be read there, or a file has no text or no column of prompts.
        ConfigError: `columns` names a file or a column that there is not.
    """
    files, _ = find_benchmark_files(folder)
    names = _name_files(Path(folder), files)
    chosen = _match_columns(names, columns or {})
    benchmarks = [_read_file(path, names[path], chosen.get(path), (columns or {}).get(EVERY_FILE)) for path in files]
    shared = (columns or {}).get(EVERY_FILE)
    if shared is not None and all(each.prompt_column != shared for each in benchmarks):
        raise ConfigError(f"no benchmark below {str(folder)!r} has a column {shared!r}; name one that is there")
    return sorted(benchmarks, key=lambda each: each.name)


def find_benchmark_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder that are read, and those left out: of another type, or text without a hash.

    Raises:
        TableError: there is no such folder, or no file in it to read.
    """
    folder = Path(folder)
    if not folder.exists():
        raise TableError(f"no file or folder {str(folder)!r}; give the folder that holds the benchmark files")
    with boundary(TableError, f"list the benchmarks below {str(folder)!r}"):
        found = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    files: list[Path] = []
    skipped: list[Path] = []
    for path in found:
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        (files if _is_benchmark(path) else skipped).append(path)
    if not files:
        raise TableError(f"no benchmark below {str(folder)!r}; give {', '.join(_SUFFIXES)} files, plain or as .gz")
    return files, skipped


def hash_benchmarks(folder: Path, columns: Mapping[str, str] | None = None) -> str:
    """Return 16 hex digits that change with the files that are read, their names, or the columns named."""
    folder = Path(folder)
    files, _ = find_benchmark_files(folder)
    total = hashlib.sha256(json.dumps(sorted((columns or {}).items())).encode())
    for path in files:
        total.update(f"{path.relative_to(folder.parent if folder.is_file() else folder).as_posix()}\0".encode())
        with boundary(TableError, f"read {str(path)!r}"), path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def hash_text(text: str) -> bytes:
    """Return the sha256 sum that hash lists hold: of the text in small letters, white space folded to single blanks."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8", "surrogatepass")).digest()


def _is_benchmark(path: Path) -> bool:
    kind = _read_kind(path)
    return kind in _SUFFIXES and (kind != ".txt" or any(_HASH.fullmatch(line) for line in _read_lines(path)))


def _read_kind(path: Path) -> str:
    """Return the ending that says the type, without `.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _strip_endings(path: Path) -> str:
    name = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    return name[: -len(_read_kind(path))]


def _name_files(folder: Path, files: Iterable[Path]) -> dict[Path, str]:
    """Return each file's name for reports; files that differ only in their endings keep them."""
    short = {path: (path.relative_to(folder).parent / _strip_endings(path)).as_posix() for path in files}
    times = Counter(short.values())
    return {
        path: _clean_id(name if times[name] == 1 else (Path(name).parent / path.name).as_posix())
        for path, name in short.items()
    }


def _match_columns(names: Mapping[Path, str], columns: Mapping[str, str]) -> dict[Path, str]:
    chosen: dict[Path, str] = {}
    for key, column in columns.items():
        if key == EVERY_FILE:
            continue
        paths = [path for path, name in names.items() if key in (name, path.name, _strip_endings(path))]
        if not paths:
            raise ConfigError(
                f"no benchmark {key!r} to take the column {column!r} of; {did_you_mean(key, [*names.values()])}"
            )
        chosen |= dict.fromkeys(paths, column)
    return chosen


def _read_file(path: Path, name: str, column: str | None, shared: str | None) -> Benchmark:
    if _read_kind(path) == ".txt":
        if column is not None:
            raise ConfigError(f"the hash list {str(path)!r} has no columns; name none for it")
        return Benchmark(name, hashes=tuple(_read_hashes(path)))
    rows = list(read_rows(path))
    known = list(dict.fromkeys(key for row in rows for key in row))
    listed = ", ".join(map(repr, known[:20])) + (", ..." if len(known) > 20 else "")
    if not rows or not known:
        raise TableError(f"the benchmark {str(path)!r} holds no rows; give one item a row, or take the file out")
    if column is not None and all(_look_up(row, column) is None for row in rows):
        raise ConfigError(f"the benchmark {str(path)!r} has no column {column!r}; it has {listed}")
    if column is None and shared is not None and any(_look_up(row, shared) is not None for row in rows):
        column = shared
    column = column if column is not None else _guess_prompt(rows, known)
    if column is None:
        raise TableError(
            f"cannot tell which column of the benchmark {str(path)!r} is the prompt; it has {listed}: "
            f"name one of them with --set 'curation.benchmark_columns={{{json.dumps(path.name)} = \"...\"}}', "
            "or take the file out"
        )
    columns = [column, *(_find_columns(known, _COMPANIONS.get(_fold(column), ())))]
    answers = tuple(each for each in _find_columns(known, (*_ANSWERS, *_CODE)) if each not in columns)
    items = tuple(_build_items(rows, columns, answers, _guess_id(rows, known)))
    if not any(item.prompts for item in items):
        raise TableError(
            f"the column {column!r} of the benchmark {str(path)!r} holds no text; name another of {listed}, "
            "or take the file out"
        )
    return Benchmark(name, items, prompt_column=column, answer_columns=answers)


def _build_items(
    rows: Iterable[Mapping[str, Any]], columns: Iterable[str], answers: Iterable[str], id_column: str | None
) -> Iterator[Item]:
    for number, row in enumerate(rows):
        turns = [turn for column in columns for turn in _read_turns(_look_up(row, column))]
        replies = [text for is_asked, text in turns if not is_asked]
        code: list[str] = []
        for column in answers:
            texts = [text for _, text in _read_turns(_look_up(row, column))]
            (code if _fold(column) in _CODE else replies).extend(texts)
        yield Item(
            str(number) if id_column is None else _clean_id(row[id_column]),
            _keep_texts(text for is_asked, text in turns if is_asked),
            _keep_texts(replies),
            _keep_texts(code),
        )


def _keep_texts(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _read_turns(value: Any, depth: int = 0, is_asked: bool = True) -> Iterator[tuple[bool, str]]:
    """Give (whether it is asked rather than answered, text) for each text in a cell."""
    if depth > _DEEPEST or value is None:
        return
    if isinstance(value, str):
        inner = _parse_cell(value) if depth == 0 else None
        if inner is None:
            yield is_asked, value
        else:
            yield from _read_turns(inner, depth + 1, is_asked)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _read_turns(part, depth + 1, is_asked)
    elif isinstance(value, Mapping):
        asks = is_asked and str(value.get("role", value.get("from"))).lower() not in _ANSWERERS
        for key in ("content", "value", "text", "prompt", "question", "messages", "turns"):
            if value.get(key):
                yield from _read_turns(value[key], depth + 1, asks)
                return


def _parse_cell(text: str) -> list[Any] | dict[str, Any] | None:
    """Return the list or mapping that a cell of a CSV file holds as JSON, if it does hold texts."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    parts = value if isinstance(value, list) else [value]
    is_turns = bool(parts) and all(isinstance(part, str) for part in parts)
    is_messages = bool(parts) and all(isinstance(part, dict) and {"role", "from"} & set(part) for part in parts)
    return value if is_turns or is_messages else None


def _guess_prompt(rows: list[dict[str, Any]], known: list[str]) -> str | None:
    named = [column for column in _find_columns(known, _PROMPTS) if _has_text(rows, column)]
    if named:
        return named[0]
    texts = [column for column in known if _has_text(rows, column) and _fold(column) not in (*_IDS, *_ANSWERS, *_CODE)]
    return texts[0] if len(texts) == 1 else None


def _has_text(rows: Iterable[Mapping[str, Any]], column: str) -> bool:
    return any(count_words(text) for row in rows for is_asked, text in _read_turns(row.get(column)) if is_asked)


def _guess_id(rows: list[dict[str, Any]], known: list[str]) -> str | None:
    """Return the first usual column that tells the items apart."""
    for column in _find_columns(known, _IDS):
        values = [row.get(column) for row in rows]
        ids = {_clean_id(value) for value in values if isinstance(value, str | int)}
        if len(ids) == len(values) and all(0 < len(each) <= _LONGEST_ID for each in ids):
            return column
    return None


def _clean_id(value: object) -> str:
    return one_line(drop_controls(str(value)))


def _find_columns(known: Iterable[str], usual: Iterable[str]) -> list[str]:
    """Return the columns that have one of the usual names, in the order of those."""
    folded = {_fold(column): column for column in reversed(list(known))}
    return [folded[name] for name in usual if name in folded]


def _fold(column: str) -> str:
    return re.sub(r"[\s-]+", "_", column.strip().lower())


def _look_up(row: Mapping[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _read_bytes(path: Path) -> bytes:
    with boundary(TableError, f"read {str(path)!r}"):
        data = path.read_bytes()
        try:
            return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TableError(f"{str(path)!r} is no whole gzip file; fetch it again, or take it out") from error


def _read_text(path: Path) -> str:
    try:
        return _read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"{str(path)!r} is not UTF-8 text; convert it, or take it out") from error


def _read_lines(path: Path) -> list[str]:
    text = _read_bytes(path).decode("utf-8-sig", "replace")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _read_hashes(path: Path) -> Iterator[bytes]:
    for number, line in enumerate(_read_lines(path), start=1):
        if not _HASH.fullmatch(line):
            raise TableError(
                f"entry {number} of the hash list {str(path)!r} is no sha256 sum; give 64 hex digits a line"
            )
        yield bytes.fromhex(line)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Give the rows of a JSONL, JSON, CSV, TSV or Parquet file, also .gz; TableError when it is none."""
    kind = _read_kind(path)
    if kind in (".jsonl", ".ndjson"):
        yield from _read_json_lines(path)
    elif kind == ".json":
        yield from _read_json(path)
    elif kind == ".parquet":
        data = _read_bytes(path)
        yield from _to_rows(path, "Parquet", lambda: pl.read_parquet(io.BytesIO(data)))
    elif data := _read_text(path).strip().encode():
        separator = "\t" if kind == ".tsv" else ","
        yield from _to_rows(path, kind[1:].upper(), lambda: pl.read_csv(data, separator=separator, infer_schema=False))


def _to_rows(path: Path, kind: str, read: Callable[[], pl.DataFrame]) -> list[dict[str, Any]]:
    try:
        return read().to_dicts()
    except Exception as error:  # Polars raises its own and whatever the decoders below it raise
        why = one_line(str(error).split("\n")[0])
        raise TableError(f"{str(path)!r} is not {kind} ({why}); mend it, or take the file out") from error


def _read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            yield _as_row(_parse_json(line, path, f"line {number} of "))


def _read_json(path: Path) -> Iterator[dict[str, Any]]:
    value = _parse_json(_read_text(path), path, "")
    if isinstance(value, dict):
        value = _unwrap(value)
    for row in value if isinstance(value, list) else []:
        yield _as_row(row)


def _unwrap(value: dict[str, Any]) -> list[Any]:
    """Return the rows of a mapping: those under a usual name, a row a value, or a list a column."""
    for name in _WRAPPERS:
        inner = value.get(name)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict | str):
            return [row["row"] if isinstance(row, dict) and isinstance(row.get("row"), dict) else row for row in inner]
    if value and all(isinstance(row, dict) for row in value.values()):
        return [{"id": key, **row} for key, row in value.items()]
    lists = {key: column for key, column in value.items() if isinstance(column, list)}
    n_rows = max((len(column) for column in lists.values()), default=0)
    whole = {key: column for key, column in lists.items() if len(column) == n_rows}
    return [{key: column[i] for key, column in whole.items()} for i in range(n_rows)]


def _as_row(value: Any) -> dict[str, Any]:
    return {str(key): inner for key, inner in value.items()} if isinstance(value, dict) else {"text": value}


def _parse_json(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{place}{str(path)!r} is not JSON; mend it, or take the file out") from error
