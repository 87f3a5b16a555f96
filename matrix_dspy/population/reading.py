"""Read profiles from the files people have: JSON lines, JSON, CSV, TSV or Parquet, or a folder of JSON files.

In: a path, and where a column's use cannot be guessed, a mapping. Out: cleaned `Profile` rows, and a `Rejected` row
for each that could not be used. A file that cannot be used at all is a `TableError`; a bad row never is.
Who anybody really is stays in memory only: anonymising and checking follow in `agents`.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from matrix_dspy.errors import TableError, boundary, did_you_mean
from matrix_dspy.text import clean_text, one_line
from matrix_dspy.types import Profile, Rejected, make_id

LONGEST_TEXT = 20_000
"""Characters of a name, a description or one past post, counted before cleaning; a longer one drops its row."""
_LONGEST_FACT = 200
_LONGEST_SOURCE = 500
_DEEPEST = 8
"""Levels of a nested value that are read; what lies deeper is left out."""

_USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "name": ("name", "realname", "real_name", "full_name", "fullname", "display_name", "displayname", "person", "user"),
    "description": (
        "description",
        "persona",
        "bio",
        "biography",
        "about",
        "about_me",
        "self_description",
        "profile",
        "user_char",
        "summary",
        "backstory",
    ),
    "history": ("history", "posts", "tweets", "past_posts", "previous_tweets", "messages", "comments", "past_actions"),
    "handle": ("handle", "handles", "username", "user_name", "screen_name", "nickname", "login"),
    "origin": ("origin", "source"),
    "licence": ("licence", "license"),
    "is_invented": ("is_invented", "invented", "is_synthetic", "synthetic", "fictional"),
}
"""Our field to the usual names of its column, compared without regard to capitals, blanks and hyphens."""

_TELLING = {
    "profession",
    "occupation",
    "job",
    "job_title",
    "education",
    "interests",
    "interested_topics",
    "topics",
    "hobbies",
    "skills",
    "personality",
    "mbti",
    "traits",
    "values",
    "beliefs",
    "goals",
    "likes",
    "dislikes",
}
"""Columns that join the description, unless it says the same already."""
_WRAPPERS = ("profiles", "personas", "agents", "users", "data", "rows", "items")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_YES = {"1", "true", "yes", "y"}


@dataclass(frozen=True)
class _Source:
    """A row as it came: its file, its number there from 1, and its columns or the reason it has none."""

    file: str
    number: int
    columns: dict[str, Any] | None
    fault: tuple[str, str] = ("", "")

    @property
    def profile_id(self) -> str:
        return make_id("profile", self.file, self.number)


def read_profiles(
    path: Path,
    columns: Mapping[str, str] | None = None,
    origin: str | None = None,
    licence: str | None = None,
) -> tuple[list[Profile], list[Rejected]]:
    """Return the profiles of a file or folder, and the rows that were dropped with the reason why.

    `columns` maps our field (name, description, history, handle, origin, licence, is_invented) to the file's column;
    what it leaves out is guessed from usual names. Without a column of names, user names serve. A row's own origin and
    licence win over those given here, and without either they are the file's name and "unknown". Columns of no other
    use become facts. Ids come from the file's name and the row's number (in JSON lines, the line), never from text.

    Raises:
        TableError: the file is missing, empty, not of its type, without a usable row, or lacks a column.
    """
    path = Path(path)
    sources = _read_sources(path)
    rows = [_lift_nested(source.columns) for source in sources if source.columns is not None]
    if not sources:
        raise TableError(f"{str(path)!r} holds no rows; give a file with one profile a row")
    if not rows:
        _raise_unusable(path, sources)
    mapping = _map_columns(path, rows, columns or {})
    profiles: list[Profile] = []
    rejected: list[Rejected] = []
    for source in sources:
        result = _build_profile(source, mapping, origin or path.name, licence or "unknown")
        if isinstance(result, Profile):
            profiles.append(result)
        else:
            rejected.append(result)
    if not profiles:
        _raise_unusable(path, sources, rejected)
    return profiles, rejected


def _raise_unusable(path: Path, sources: list[_Source], rejected: Iterable[Rejected] = ()) -> NoReturn:
    reasons = sorted({row.reason for row in rejected} | {source.fault[0] for source in sources if source.fault[0]})
    why = f" ({', '.join(reasons)})" if reasons else ""
    raise TableError(
        f"none of the {len(sources)} rows of {str(path)!r} can be used{why}; "
        "each needs a name, and a description or a history"
    )


def _read_sources(path: Path) -> list[_Source]:
    if not path.exists():
        raise TableError(f"no file or folder {str(path)!r}; give the path of a {', '.join(_SUFFIXES)} file")
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json" and file.is_file())
        if not files:
            raise TableError(f"no .json file in the folder {str(path)!r}; give a file, or a folder of JSON files")
        return [source for file in files for source in _read_file_of_folder(file)]
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise TableError(
            f"cannot tell the type of {str(path)!r} by its ending {path.suffix!r}; "
            f"rename or convert it to one of {', '.join(_SUFFIXES)}"
        )
    with boundary(TableError, f"read {str(path)!r}"):
        data = path.read_bytes()
    if not data.strip(b"\xef\xbb\xbf \t\r\n"):
        raise TableError(f"{str(path)!r} is empty; give a file with one profile a row")
    if suffix == ".json":
        return _read_json(path, data)
    if suffix in (".jsonl", ".ndjson"):
        return list(_read_json_lines(path, data))
    if suffix == ".parquet":
        return list(_read_parquet(path, data))
    return list(_read_separated(path, data, "\t" if suffix == ".tsv" else ","))


def _read_file_of_folder(path: Path) -> list[_Source]:
    """In a folder a broken file is a broken row."""
    with boundary(TableError, f"read {str(path)!r}"):
        data = path.read_bytes()
    try:
        return _read_json(path, data)
    except TableError:
        return [_Source(path.name, 1, None, ("not JSON", f"the file {path.name!r} is not readable as JSON"))]


def _decode(data: bytes) -> str:
    return data.decode("utf-8-sig", errors="replace")


def _read_json(path: Path, data: bytes) -> list[_Source]:
    try:
        value = json.loads(_decode(data))
    except RecursionError as error:
        raise TableError(f"{str(path)!r} is nested too deeply to be read as JSON; flatten it") from error
    except ValueError as error:
        line = getattr(error, "lineno", 0)
        raise TableError(
            f"{str(path)!r} is not readable as JSON (line {line}); mend it, "
            "or name it .jsonl if every line is an object of its own"
        ) from error
    items = value if isinstance(value, list) else _unwrap(value)
    if not items:
        raise TableError(f"{str(path)!r} holds no rows; give a list of objects or one object")
    return [_check_object(path.name, number, item, f"entry {number}") for number, item in enumerate(items, 1)]


def _unwrap(value: Any) -> list[Any]:
    """Return the list inside `{"profiles": [...]}` and the like; anything else is one row."""
    if isinstance(value, dict) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if str(key).lower() in _WRAPPERS and isinstance(inner, list):
            return inner
    return [value]


def _read_json_lines(path: Path, data: bytes) -> Iterator[_Source]:
    for number, line in enumerate(data.split(b"\n"), 1):
        if not (text := _decode(line).strip()):
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            yield _Source(path.name, number, None, ("not JSON", f"line {number} is not readable as JSON"))
        else:
            yield _check_object(path.name, number, value, f"line {number}")


def _check_object(file: str, number: int, value: Any, where: str) -> _Source:
    if isinstance(value, dict):
        return _Source(file, number, {str(key): item for key, item in value.items()})
    return _Source(file, number, None, ("not an object", f"{where} is a {type(value).__name__}, not an object"))


def _read_separated(path: Path, data: bytes, separator: str) -> Iterator[_Source]:
    csv.field_size_limit(sys.maxsize)
    text = _decode(data)
    header = text.partition("\n")[0]
    # a spreadsheet writes semicolons where the comma is the decimal mark
    separator = max((separator, ";", "\t", "|"), key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        for number, row in enumerate(reader, 1):
            if any(isinstance(value, str) and value.strip() for value in row.values()):
                yield _Source(path.name, number, {key: value for key, value in row.items() if key is not None})
    except csv.Error as error:
        kind = path.suffix.lstrip(".").upper()
        raise TableError(f"{str(path)!r} is not readable as {kind} (line {reader.line_num}); mend that line") from error


def _read_parquet(path: Path, data: bytes) -> Iterator[_Source]:
    try:
        table = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TableError(f"{str(path)!r} is not readable as Parquet; write it anew") from error
    for number, row in enumerate(table.iter_rows(named=True), 1):
        yield _Source(path.name, number, row)


def _lift_nested(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the members of a nested persona beside its own columns, where they are free."""
    lifted = dict(row)
    for key, value in row.items():
        if isinstance(value, dict) and _plain(key) in _USUAL_NAMES["description"]:
            for inner, item in value.items():
                lifted.setdefault(str(inner), item)
    return lifted


def _plain(column: str) -> str:
    return re.sub(r"[\s\-]+", "_", column.strip().lower())


def _map_columns(path: Path, rows: list[dict[str, Any]], given: Mapping[str, str]) -> dict[str, list[str]]:
    """Return our field to the file's columns, those given first, the others guessed."""
    known = list(dict.fromkeys(column for row in rows for column in row))
    listed = ", ".join(repr(_shorten_column(column)) for column in known[:30]) or "none"
    for field, column in given.items():
        if field not in _USUAL_NAMES:
            raise TableError(f"cannot map a column to {field!r}; {did_you_mean(field, list(_USUAL_NAMES))}")
        if column not in known:
            raise TableError(f"no column {column!r} in {str(path)!r} for {field!r}; it has {listed}")
    mapping: dict[str, list[str]] = {}
    for field, usual in _USUAL_NAMES.items():
        guesses = [column for name in usual for column in known if _plain(column) == name]
        free = [column for column in guesses if column not in given.values()]
        mapping[field] = [given[field]] if field in given else free
    mapping["name"] = mapping["name"] or mapping["handle"]
    if not mapping["name"]:
        raise TableError(f"no column with names in {str(path)!r}; it has {listed}; say which with --column name=...")
    if not mapping["description"] and not mapping["history"]:
        raise TableError(
            f"no column with descriptions in {str(path)!r}; it has {listed}; say which with --column description=..."
        )
    return mapping


def _shorten_column(column: str) -> str:
    return one_line(clean_text(column))[:60]


def _build_profile(source: _Source, mapping: dict[str, list[str]], origin: str, licence: str) -> Profile | Rejected:
    if source.columns is None:
        return _reject(source, *source.fault)
    row = _lift_nested(source.columns)
    names = [value for column in mapping["name"] if (value := row.get(column)) is not None]
    handles = [item for column in mapping["handle"] for item in _list_texts(row.get(column), is_split=False)]
    descriptions = [row[column] for column in mapping["description"] if row.get(column) is not None]
    posts = [post for column in mapping["history"] for post in _list_texts(row.get(column), is_split=True)]
    tellings = _telling_columns(row, mapping)
    if longest := _find_too_long([*names, *descriptions, *posts, *handles]):
        return _reject(source, "too long", f"a text of {longest:,} characters; at most {LONGEST_TEXT:,} are read")
    name = next((cleaned for value in names if (cleaned := _clean_name(value))), "")
    if not name:
        return _reject(source, "no name", "the row has no name; an invented one will do")
    description = _join_description(descriptions, tellings)
    history = tuple(cleaned for post in posts if (cleaned := clean_text(post)))
    if not description and not history:
        return _reject(source, "no description", "the row has neither a description nor past posts")
    if len(description) > LONGEST_TEXT:
        return _reject(
            source, "too long", f"a text of {len(description):,} characters; at most {LONGEST_TEXT:,} are read"
        )
    return Profile(
        profile_id=source.profile_id,
        name=name,
        description=description,
        history=history,
        handles=tuple(dict.fromkeys(cleaned for handle in handles if (cleaned := one_line(clean_text(handle))))),
        origin=_first_text(row, mapping["origin"]) or origin,
        licence=_first_text(row, mapping["licence"]) or licence,
        is_invented=_first_text(row, mapping["is_invented"]).lower() in _YES,
        facts=_collect_facts(row, mapping),
    )


def _reject(source: _Source, reason: str, detail: str) -> Rejected:
    return Rejected(
        noun="profile",
        id=source.profile_id,
        stage="read",
        reason=reason,
        detail=f"{source.file}, row {source.number}: {detail}",
    )


def _clean_name(value: Any) -> str:
    return "" if isinstance(value, dict | list) else one_line(clean_text(str(value)))


def _find_too_long(values: list[Any]) -> int:
    """Return the length of the longest text if it is over the limit, else 0; nothing is cleaned before."""
    longest = max((_measure(value) for value in values), default=0)
    return longest if longest > LONGEST_TEXT else 0


def _measure(value: Any, depth: int = 0) -> int:
    if isinstance(value, str):
        return len(value)
    if depth >= _DEEPEST:
        return 0
    if isinstance(value, dict):
        return sum(len(str(key)) + _measure(item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return sum(_measure(item, depth + 1) for item in value)
    return len(str(value)) if value is not None and not isinstance(value, int) else 0


def _list_texts(value: Any, is_split: bool) -> list[str]:
    """Return the texts in a list, a JSON list written as text, or a text with one post a line."""
    if isinstance(value, str):
        if len(value) > 100 * LONGEST_TEXT:
            return [value]
        if value.lstrip().startswith("["):
            with suppress(ValueError, RecursionError):
                value = json.loads(value)
        if isinstance(value, str):
            return re.split(r"[\r\n]+", value) if is_split else [value]
    if value is None:
        return []
    items = value if isinstance(value, list | tuple) else [value]
    return [text for item in items if (text := _post_text(item))]


def _post_text(item: Any) -> str:
    if isinstance(item, dict):
        for key in ("text", "content", "body", "full_text"):
            if isinstance(item.get(key), str):
                return item[key]
    return _flatten(item)


def _flatten(value: Any, depth: int = 0) -> str:
    """Return a nested value as readable text: members as "Key: value.", lists side by side."""
    if value is None or depth > _DEEPEST:
        return ""
    if isinstance(value, dict):
        if set(value) <= {"name", "description"} and value:
            return ": ".join(text for item in value.values() if (text := _flatten(item, depth + 1)))
        parts = [f"{_title(key)}: {text}" for key, item in value.items() if (text := _flatten(item, depth + 1))]
        return " ".join(_end_sentence(part) for part in parts)
    if isinstance(value, list | tuple):
        parts = [text for item in value if (text := _flatten(item, depth + 1))]
        is_prose = any(part.endswith((".", "!", "?")) for part in parts)
        return " ".join(_end_sentence(part) for part in parts) if is_prose else ", ".join(parts)
    return str(value).strip()


def _title(key: object) -> str:
    words = "personality type" if str(key).lower() == "mbti" else str(key).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _end_sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", ":", ";")) else text + "."


def _telling_columns(row: dict[str, Any], mapping: dict[str, list[str]]) -> dict[str, Any]:
    used = {column for columns in mapping.values() for column in columns}
    nested = {str(key) for column in mapping["description"] if isinstance(row.get(column), dict) for key in row[column]}
    return {
        column: value
        for column, value in row.items()
        if column not in used
        and column not in nested
        and _plain(column) in _TELLING
        and _measure(value) <= LONGEST_TEXT
    }


def _join_description(values: list[Any], tellings: dict[str, Any]) -> str:
    parts: list[str] = []
    for value in values:
        text = clean_text(_describe(value))
        if text and not any(text in part for part in parts):
            parts.append(text)
    whole = "\n".join(parts)
    for column, value in tellings.items():
        text = clean_text(_flatten(value))
        if text and text.lower() not in whole.lower():
            parts.append(_end_sentence(f"{_title(_shorten_column(column))}: {text}"))
    return clean_text("\n".join(parts))


def _describe(value: Any) -> str:
    """Return a description as text; a nested one has a line for each member but the name."""
    if not isinstance(value, dict):
        return _flatten(value)
    lines = [
        _end_sentence(f"{_title(key)}: {text}")
        for key, item in value.items()
        if _plain(str(key)) not in _USUAL_NAMES["name"] and (text := _flatten(item))
    ]
    return "\n".join(lines)


def _first_text(row: dict[str, Any], columns: list[str]) -> str:
    for column in columns:
        value = row.get(column)
        if value is not None and not isinstance(value, dict | list):
            text = one_line(clean_text(str(value)[:_LONGEST_SOURCE]))
            if text:
                return text
    return ""


def _collect_facts(row: dict[str, Any], mapping: dict[str, list[str]]) -> tuple[tuple[str, str], ...]:
    """Return the columns that are neither name nor text nor source, as far as they are short."""
    used = {column for columns in mapping.values() for column in columns}
    facts = []
    for column, value in row.items():
        is_list = isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)
        if column in used or value is None or (isinstance(value, dict | list) and not is_list):
            continue
        text = one_line(clean_text(_flatten(value))) if _measure(value) <= _LONGEST_FACT else ""
        if text and (name := _shorten_column(column)):
            facts.append((name, text))
    return tuple(facts)
