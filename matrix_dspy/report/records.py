"""What a report reads: the files of a run folder, whatever is there of them, and nothing else.

A folder may be unfinished, older than some columns, or made by `curate` without any society; what is missing is empty.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, field_validator

from matrix_dspy.bulk.folder import read_run, read_run_id
from matrix_dspy.bulk.tables import build_schema, read_table
from matrix_dspy.types import NOUNS, PairExample, Sourced

FILE = "figures.json"

Status = Literal["complete", "stopped", "running"]


class ProgramTold(BaseModel):
    """What one program was asked."""

    model_config = ConfigDict(extra="ignore")

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None
    """Dollars, where a price is known."""
    model: str = ""


class BenchmarkTold(BaseModel):
    """An evaluation set that rows were compared with."""

    model_config = ConfigDict(extra="ignore")

    name: str
    items: int = 0
    has_text: bool = True


class RangeTold(BaseModel):
    """One line of the estimate beside what became of it."""

    model_config = ConfigDict(extra="ignore")

    what: str
    low: float
    expected: float
    high: float
    actual: float
    difference: float | None = None


class Told(BaseModel):
    """What the run says of itself in `figures.json`; whatever is missing or unreadable there stands at its default."""

    model_config = ConfigDict(extra="ignore")

    command: str = ""
    name: str = ""
    describe: str = ""
    """One sentence on the kind of data."""
    model: str = ""
    models: dict[str, str] = {}
    reason: str = ""
    """`complete`, or why rows are missing; empty before the end."""
    is_final: bool = False
    began: str = ""
    seconds: float | None = None
    n_wanted: int | None = None
    n_kept: int | None = None
    n_candidates: int | None = None
    n_profiles_read: int | None = None
    n_calls: int | None = None
    n_replayed: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    prefix_cache: tuple[int, int] | None = None
    cost: float | None = None
    programs: dict[str, ProgramTold] = {}
    program_hashes: dict[str, str] = {}
    estimate: tuple[RangeTold, ...] = ()
    estimate_basis: str = ""
    benchmarks: tuple[BenchmarkTold, ...] = ()
    refinement: dict[str, Any] | None = None
    selection: dict[str, Any] | None = None
    diversity: dict[str, Any] | list[Any] | None = None
    occupations: dict[str, float | None] | None = None
    """Share of the population's occupations that have rows, entropy and largest share."""
    refusal_version: int | str | None = None

    @field_validator("*", mode="wrap")
    @classmethod
    def _fall_back(cls, value: Any, handler: ValidatorFunctionWrapHandler, info: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            return cls.model_fields[info.field_name].get_default(call_default_factory=True)


@dataclass(frozen=True, slots=True)
class Records:
    """A run folder as read."""

    path: Path
    run_id: str
    run: dict[str, Any]
    """`run.toml`."""
    told: Told
    status: Status
    reason: str
    """Why rows are missing; empty where none are, or where nobody said."""
    tables: dict[str, pl.DataFrame]
    """By noun, with every column of the row type; empty where the folder has none."""
    rows: pl.DataFrame
    """The data set, every kind in the columns of `ROW_SCHEMA`."""
    has_tables: frozenset[str]
    """Nouns whose table is there."""

    @property
    def identity(self) -> dict[str, Any]:
        """What the run is, as `run.toml` has it."""
        return self.run["identity"]


ROW_SCHEMA = pl.Schema(
    {
        **build_schema(Sourced),
        "asked": pl.String(),
        "turns": pl.List(pl.Struct({"role": pl.String(), "content": pl.String()})),
        "answer": pl.String(),
        "thinking": pl.String(),
        "rejected": pl.String(),
        "rejected_id": pl.String(),
        "rejected_model": pl.String(),
        "rejected_score": pl.Float64(),
        "n_turns": pl.Int64(),
    }
)
"""A row of any kind: `asked` is all user turns, `answer` all assistant turns (of the chosen side) without thinking."""


def read_records(path: Path, told: Told | None = None) -> Records:
    """Read a run folder; `told` takes the place of its `figures.json`.

    Raises:
        RunError: there is no run there.
        TableError: a table is broken or another run's.
    """
    run = read_run(path)
    run_id = read_run_id(path)
    told = told or read_told(path)
    tables = {noun: _read_noun(path, noun, run_id) for noun in NOUNS}
    rows = _read_rows(path, run_id)
    n_made = len(tables["scenarios"]) if run["identity"].get("command") == "simulate" else len(rows)
    status, reason = _read_status(path, run, told, n_made)
    has_tables = frozenset(noun for noun in NOUNS if (path / "tables" / f"{noun}.parquet").is_file())
    return Records(path, run_id, run, told, status, reason, tables, rows, has_tables)


def read_told(path: Path) -> Told:
    """Read `figures.json` of a run folder; nothing is told where there is none."""
    try:
        values = orjson.loads((path / FILE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return Told()
    return Told.model_validate(values) if isinstance(values, dict) else Told()


def _read_noun(path: Path, noun: str, run_id: str) -> pl.DataFrame:
    schema = build_schema(NOUNS[noun])
    file = path / "tables" / f"{noun}.parquet"
    frame = _fit(read_table(file, run_id), schema) if file.is_file() else pl.DataFrame(schema=schema)
    return frame.with_columns(pl.col(pl.String).fill_null(""))


def _fit(frame: pl.DataFrame, schema: pl.Schema) -> pl.DataFrame:
    """Give a frame the columns of a schema; those it lacks, or that cannot be read as such, are null."""
    columns: list[pl.Expr] = []
    for name, dtype in schema.items():
        is_usable = name in frame.columns and _can_cast(frame[name], dtype)
        columns.append(pl.col(name).cast(dtype, strict=False) if is_usable else pl.lit(None, dtype=dtype).alias(name))
    return frame.select(columns) if frame.width else pl.DataFrame(schema=schema)


def _can_cast(values: pl.Series, dtype: pl.DataType) -> bool:
    try:
        values.head(1).cast(dtype, strict=False)
    except pl.exceptions.PolarsError:
        return False
    return True


def _read_rows(path: Path, run_id: str) -> pl.DataFrame:
    frames = [read_table(file, run_id) for file in sorted((path / "dataset").glob("*.parquet"))]
    fitted = [_fit_rows(frame) for frame in frames if "example_id" in frame.columns]
    return pl.concat(fitted) if fitted else pl.DataFrame(schema=ROW_SCHEMA)


def _fit_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Bring conversations and pairs into the same columns."""
    messages = ROW_SCHEMA["turns"]
    if "messages" in frame.columns:
        frame = frame.with_columns(turns=pl.col("messages").cast(messages), rejected=pl.lit(None, pl.String()))
        written = _join("turns", "assistant")
    elif {"prompt", "chosen", "rejected"} <= set(frame.columns):
        frame = _fit(frame, pl.Schema(build_schema(PairExample)))
        frame = frame.with_columns(
            turns=pl.concat_list(pl.col("prompt").cast(messages), pl.col("chosen").cast(messages)),
            rejected=_join("rejected", "assistant"),
        )
        written = _join("chosen", "assistant")
    else:
        return pl.DataFrame(schema=ROW_SCHEMA)
    frame = frame.with_columns(asked=_join("turns", "user"), written=written)
    return _fit(
        frame.with_columns(
            thinking=pl.col("written").str.extract(r"(?s)<think>(.*?)</think>"),
            answer=pl.col("written").str.replace(r"(?s)<think>.*?</think>\s*", ""),
            n_turns=pl.col("turns").list.eval(pl.element().struct.field("role") == "user").list.sum(),
        ),
        ROW_SCHEMA,
    )


def _join(column: str, role: str) -> pl.Expr:
    """Return the texts of one role, parted by empty lines."""
    of_role = pl.element().filter(pl.element().struct.field("role") == role)
    return pl.col(column).list.eval(of_role.struct.field("content")).list.join("\n\n")


def _read_status(path: Path, run: dict[str, Any], told: Told, n_made: int) -> tuple[Status, str]:
    reason, is_over = told.reason, told.is_final
    if not (path / FILE).is_file() and not told.reason:  # a folder of before there was such a file
        state = _read_state(path)
        reason, is_over = str(state.get("reason", "")), state.get("n") == run.get("n") and bool(state)
    if is_over:
        n_wanted = told.n_wanted or run.get("n") or 0
        return ("complete", "") if reason == "complete" or n_made >= n_wanted else ("stopped", reason)
    return ("running", "") if _is_held(path) else ("stopped", reason if reason != "complete" else "")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = orjson.loads((path / "ended.json").read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return state if isinstance(state, dict) else {}


def _is_held(path: Path) -> bool:
    """Whether a process works on the folder."""
    if not (path / ".lock").is_file():
        return False
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # a folder that may only be read
        return False
    lock.release()
    return False
