"""Read other tools' JSON files entry by entry, so that whatever is wrong with one is one sentence that says where.

In: a JSON list of objects or JSON lines. Out: an `Entry` for each, whose getters check the type of a field. NaN, which
Python's json writes and JSON does not have, is read as a missing number.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from matrix_dspy.bulk.tables import replacing
from matrix_dspy.errors import TableError, boundary
from matrix_dspy.text import replace_surrogates

_REQUIRED: Any = object()
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a file, and where it stands there."""

    values: Mapping[str, Any]
    where: str
    """Such as `row 3 of 'annotations.json'`."""

    def get_text(self, *names: str, default: str = _REQUIRED) -> str:
        """Return the text of the first of `names` that is there; TableError where it is missing or no text."""
        name, value = self._find(names, default)
        if value is default and default is not _REQUIRED:
            return default
        if not isinstance(value, str):
            raise TableError(f"{self.where} has {name!r}: {show(value)}, which is no text; write a text")
        return replace_surrogates(value)

    def get_number(self, *names: str) -> float | None:
        """Return the number of the first of `names` that is there, None where it is missing, null or NaN."""
        name, value = self._find(names, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TableError(f"{self.where} has {name!r}: {show(value)}, which is no number; write a number or null")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isinf(number):
            raise TableError(f"{self.where} has {name!r}: {show(value)}, which is out of range; write a number or null")
        return None if math.isnan(number) else number

    def require(self, *names: str) -> None:
        """Raise TableError where none of `names` is there, whatever its value."""
        if not any(name in self.values for name in names):
            self._find(names, _REQUIRED)

    def get_whole(self, *names: str) -> int:
        """Return the whole number of the first of `names` that is there; TableError where it is missing or another."""
        name, value = self._find(names, _REQUIRED)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TableError(f"{self.where} has {name!r}: {show(value)}, which is no whole number; write one")
        return value

    def get_list(self, *names: str, default: Sequence[Any] = _REQUIRED) -> list[Any]:
        """Return the list of the first of `names` that is there; TableError where it is missing or no list."""
        name, value = self._find(names, default)
        if not isinstance(value, list | tuple):
            raise TableError(f"{self.where} has {name!r}: {show(value)}, which is no list; write a list")
        return list(value)

    def get_object(self, *names: str) -> "Entry":
        """Return the object of the first of `names` that is there; TableError where it is missing or no object."""
        name, value = self._find(names, _REQUIRED)
        return as_entry(value, f"{name!r} in {self.where}")

    def list_others(self, known: Iterable[str]) -> dict[str, Any]:
        """Return the fields that are not in `known`, as they came."""
        names = set(known)
        return {name: value for name, value in self.values.items() if name not in names}

    def _find(self, names: Sequence[str], default: Any) -> tuple[str, Any]:
        name = next((name for name in names if name in self.values), None)
        if name is not None and (self.values[name] is not None or default is _REQUIRED):
            return name, self.values[name]
        if default is _REQUIRED:
            wanted = " or ".join(map(repr, names))
            has = ", ".join(map(repr, list(self.values)[:12])) or "no fields"
            raise TableError(f"{self.where} lacks {wanted}; it has {has[:300]}")
        return names[0], default


def as_entry(value: Any, where: str) -> Entry:
    """Return an object as an entry; TableError where it is none."""
    if not isinstance(value, dict):
        raise TableError(f"{where} is {show(value)}, which is no object; write one with named fields")
    return Entry(cast("dict[str, Any]", value), where)


def read_entries(path: Path) -> list[Entry]:
    """Read a JSON list of objects, or with the ending .jsonl JSON lines (empty lines skipped).

    Raises:
        TableError: no such file, not whole, not JSON, or something other than objects.
    """
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        return [
            as_entry(_parse(line, f"line {number} of {str(path)!r}"), f"line {number} of {str(path)!r}")
            for number, line in enumerate(text.split("\n"), 1)
            if line.strip()
        ]
    whole = _parse(text, repr(str(path)))
    if not isinstance(whole, list):
        raise TableError(f"{str(path)!r} holds {show(whole)}, which is no list; write a list of objects")
    return [as_entry(value, f"row {number} of {str(path)!r}") for number, value in enumerate(whole, 1)]


def read_object(path: Path) -> Entry:
    """Read a file of one JSON object; TableError as for `read_entries`."""
    return as_entry(_parse(read_text(path), repr(str(path))), repr(str(path)))


def read_text(path: Path) -> str:
    """Read a text file in UTF-8; TableError where there is none or it is not UTF-8."""
    if not path.is_file():
        raise TableError(f"no file {str(path)!r}; check the path")
    with boundary(TableError, f"read {str(path)!r}"):
        try:
            return path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise TableError(f"{str(path)!r} is no text in UTF-8; unpack it, or write it again") from error


def write_list(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a JSON list of objects, one to some lines, whole or not at all."""
    text = json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False)
    _write(text + "\n", path)


def write_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write JSON lines, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    _write("".join(lines), path)


def write_object(value: Mapping[str, Any], path: Path) -> None:
    """Write one JSON object, whole or not at all."""
    _write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def show(value: Any) -> str:
    """Return the start of a value for an error message."""
    if value is None:
        return "null"
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 200 else "a very large number"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        what = "breaks off in the middle" if is_cut else "is no JSON"
        raise TableError(f"{where} {what} ({error.msg}, line {error.lineno}); write the file again") from error
    except (ValueError, RecursionError) as error:
        raise TableError(f"{where} cannot be read ({str(error)[:100]}); write the file again") from error


def _write(text: str, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(replace_surrogates(text), encoding="utf-8")
