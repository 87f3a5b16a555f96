"""Tables on disk: Parquet and JSONL, sorted by id, written whole or not at all.

A table names the run it belongs to in its metadata, so that one copied from elsewhere is noticed.
"""

import os
import types
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import orjson
import polars as pl
from pydantic import BaseModel

from matrix_dspy.errors import RunError, TableError, boundary
from matrix_dspy.types import Row

RUN_KEY = "matrix_dspy.run_id"


def build_schema(kind: type[BaseModel]) -> pl.Schema:
    """Return the Polars schema of a row type."""
    return pl.Schema({name: read_dtype(field.annotation) for name, field in kind.model_fields.items()})


def build_frame(kind: type[Row], rows: Iterable[Row], *, sort_by: Sequence[str]) -> pl.DataFrame:
    """Put rows into a frame with the row type's columns, in the order of `sort_by`."""
    frame = pl.DataFrame([row.model_dump() for row in rows], schema=build_schema(kind), orient="row")
    return frame.sort(sort_by, maintain_order=True)


def write_parquet(frame: pl.DataFrame, path: Path, run_id: str = "") -> None:
    """Write a frame to `path`, replacing what was there only when the new file is whole."""
    with replacing(path) as temporary:
        frame.write_parquet(temporary, compression="zstd", metadata={RUN_KEY: run_id})


def write_jsonl(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame as JSON lines in UTF-8, replacing what was there only when the new file is whole."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        for row in frame.iter_rows(named=True):
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def read_table(path: Path, run_id: str | None = None) -> pl.DataFrame:
    """Read a table; with `run_id`, make sure it belongs to that run.

    Raises:
        TableError: there is none, it is broken, or it is another run's.
    """
    if not path.is_file():
        raise TableError(f"no table {str(path)!r}; run the stage that writes it first")
    with boundary(TableError, f"read the table {str(path)!r}"):
        frame = pl.read_parquet(path)
        owner = pl.read_parquet_metadata(path).get(RUN_KEY)
    if run_id is not None and owner != run_id:
        raise TableError(f"the table {str(path)!r} belongs to another run; take it out and run the command again")
    return frame


@contextmanager
def replacing(path: Path):
    """Give a temporary path beside `path`; afterwards it is flushed to disk and takes the name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with boundary(RunError, f"write {str(path)!r}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        with suppress(OSError):  # no such folder, or a file where a folder should be
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process had begun to write; for who holds the folder's lock."""
    for temporary in folder.glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_dtype(annotation: Any) -> pl.DataType:
    """Return the column type for a field's annotation; KeyError when there is none of its own."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return pl.Int64() if all(type(choice) is int for choice in arguments) else pl.String()
    if origin in (Union, types.UnionType):
        return read_dtype(next(inner for inner in arguments if inner is not type(None)))
    if origin in (tuple, list):
        return pl.List(read_dtype(arguments[0]))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return pl.Struct(build_schema(annotation))
    simple: dict[Any, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
    return simple[annotation]
