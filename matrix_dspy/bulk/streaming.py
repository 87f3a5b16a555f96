"""Rows from a table, through many workers, to a table, in order and in bounded memory.

A batch is let go as soon as it and all batches before it are done. Only so many are open at a time that a slow row
holds back no more than a few thousand others.
"""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from matrix_dspy.errors import RunError, TableError, boundary

R = TypeVar("R")

BATCH_ROWS = 1024
"""Rows of a batch, and of a row group on disk."""
SPARE_BATCHES = 4
"""Batches open beyond those the workers themselves reach into."""


@dataclass(slots=True)
class Batch(Generic[R]):
    """A slice of the table with what has been made of its rows."""

    frame: pl.DataFrame
    first: int
    """Position of its first row in the whole table."""
    results: list[R | None] = field(default_factory=list)
    n_left: int = 0
    _values: dict[str, list[Any]] = field(default_factory=dict)

    def values(self, name: str) -> list[Any]:
        """Return a column as Python values."""
        if name not in self._values:
            self._values[name] = self.frame[name].to_list()
        return self._values[name]


class OrderedStream(Generic[R]):
    """Gives out rows one by one and lets finished batches go in order."""

    def __init__(self, frames: Iterable[pl.DataFrame], width: int, finish: Callable[[Batch[R]], None]) -> None:
        self._frames = iter(frames)
        self._finish = finish
        self._most_open = SPARE_BATCHES + -(-width // BATCH_ROWS)
        self._open: deque[Batch[R]] = deque()
        self._rows: Iterator[tuple[Batch[R], int]] = iter(())
        self._n_given = 0
        self._has_room = asyncio.Event()

    async def take(self) -> tuple[Batch[R], int] | None:
        """Return the next row as its batch and its place in it; None when there are no more."""
        while True:
            if (row := next(self._rows, None)) is not None:
                return row
            if len(self._open) < self._most_open:
                if not self._open_batch():
                    return None
                continue
            self._has_room.clear()
            await self._has_room.wait()

    def put(self, batch: Batch[R], place: int, result: R) -> None:
        """Take what was made of a row."""
        batch.results[place] = result
        batch.n_left -= 1
        while self._open and not self._open[0].n_left:
            self._finish(self._open.popleft())
            self._has_room.set()

    def _open_batch(self) -> bool:
        frame = next(self._frames, None)
        if frame is None:
            return False
        batch: Batch[R] = Batch(frame, self._n_given, [None] * len(frame), len(frame))
        self._n_given += len(frame)
        if len(frame):
            self._open.append(batch)
            self._rows = iter([(batch, place) for place in range(len(frame))])
        return True


async def stream_rows(
    frames: Iterable[pl.DataFrame],
    width: int,
    work: Callable[[Batch[R], int], Awaitable[R]],
    finish: Callable[[Batch[R]], None],
) -> None:
    """Await `work` for every row, at most `width` at a time, and `finish` every batch in order; the first error stops.

    The error comes inside an `ExceptionGroup`.
    """
    stream: OrderedStream[R] = OrderedStream(frames, width, finish)

    async def worker() -> None:
        while (row := await stream.take()) is not None:
            stream.put(*row, await work(*row))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(width):
            tasks.create_task(worker())


def slice_frame(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Give a frame in batches."""
    for start in range(0, len(frame), BATCH_ROWS):
        yield frame.slice(start, BATCH_ROWS)


def read_slices(path: Path) -> tuple[pl.DataFrame, Iterator[pl.DataFrame]]:
    """Return an empty frame with a Parquet file's columns, and the file in batches, never read as a whole.

    Raises:
        TableError: there is no such file or it is no Parquet.
    """
    if not path.is_file():
        raise TableError(f"no table {str(path)!r}; give the path of a Parquet file")
    with boundary(TableError, f"read the table {str(path)!r}"):
        try:
            file = pq.ParquetFile(path, memory_map=False)
        except pa.ArrowInvalid as error:
            raise TableError(f"{str(path)!r} is no Parquet file; write one with DataFrame.write_parquet") from error
        empty = _from_arrow(file.schema_arrow.empty_table())

    def slices() -> Iterator[pl.DataFrame]:
        with boundary(TableError, f"read the table {str(path)!r}"):
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield _from_arrow(pa.Table.from_batches([batch]))

    return empty, slices()


class TableWriter:
    """Appends frames to a Parquet file that takes its name when `commit` is called, and else leaves no trace."""

    def __init__(self, path: Path, like: pl.DataFrame) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._schema = _to_arrow(like.clear()).schema
        with boundary(RunError, f"write {str(path)!r}"):
            self._writer: pq.ParquetWriter | None = pq.ParquetWriter(self._temporary, self._schema, compression="zstd")

    def append(self, frame: pl.DataFrame) -> None:
        """Write a frame as one row group."""
        assert self._writer is not None, "the table is open until it is committed"
        with boundary(RunError, f"write {str(self._path)!r}"):
            self._writer.write_table(_to_arrow(frame).cast(self._schema))

    def commit(self) -> None:
        """Flush everything to disk and give the file its name."""
        self._close()
        with boundary(RunError, f"write {str(self._path)!r}"):
            with self._temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self._temporary.replace(self._path)

    def abandon(self) -> None:
        """Take back what was not committed."""
        self._close()
        self._temporary.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._writer is not None:
            with boundary(RunError, f"write {str(self._path)!r}"):
                self._writer.close()
            self._writer = None


def _from_arrow(table: pa.Table) -> pl.DataFrame:
    frame: Any = pl.from_arrow(table)
    return frame


def _to_arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
