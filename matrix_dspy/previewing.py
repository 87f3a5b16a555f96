"""A few rows of a kind in seconds, shown and not kept."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.tables import read_table
from matrix_dspy.config import Config
from matrix_dspy.pipeline import generate


async def make_preview(config: Config) -> list[str]:
    """Run a config in a temporary folder and return its rows as lines for a terminal."""
    with tempfile.TemporaryDirectory(prefix="matrix-dspy-preview-") as folder:
        path = Path(folder) / "run"
        result = await generate(config, path, progress=Progress(), is_quiet=True)
        files = sorted((path / "dataset").glob("*.parquet"))
        lines = [line for file in files for line in _describe(read_table(file))]
    if not result.is_complete:
        lines.append(f"{result.n_kept} of {result.n_wanted} rows: {result.reason}")
    return lines


def _describe(frame: pl.DataFrame) -> Iterator[str]:
    for number, row in enumerate(frame.iter_rows(named=True), 1):
        rated = ", ".join(f"{name} {row[name]}" for name in ("quality", "difficulty") if row[name])
        yield f"--- {number}: {row['kind']}, {row['type']}, {row['category']}{', ' + rated if rated else ''}"
        for column in ("messages", "prompt", "chosen", "rejected"):
            for message in row.get(column) or []:
                yield f"{message['role'] if column in ('messages', 'prompt') else column}:"
                yield from (f"    {line}" for line in message["content"].splitlines())
