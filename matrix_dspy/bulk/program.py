"""Any DSPy program over any Polars frame, in bulk and resumable: `run_program`.

A program with one predictor runs on a template (`Prompt`); one with several, or with control flow of its own, runs
through its `acall` on the same engine and journal, slower.
"""

import asyncio
import contextvars
import functools
import gc
import inspect
import json
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import dspy
import polars as pl
from pydantic import ValidationError

from matrix_dspy.bulk.folder import take_lock
from matrix_dspy.bulk.journal import CallKey, Journal
from matrix_dspy.bulk.levels import read_levels
from matrix_dspy.bulk.progress import Progress
from matrix_dspy.bulk.prompt import Prompt
from matrix_dspy.bulk.runner import Outcome, Runner
from matrix_dspy.bulk.streaming import Batch, TableWriter, read_slices, slice_frame, stream_rows
from matrix_dspy.bulk.tables import build_frame, read_dtype, remove_leftovers
from matrix_dspy.config import SamplingConfig
from matrix_dspy.engine.base import Completion, Engine, Request
from matrix_dspy.engine.lm import build_lm
from matrix_dspy.engine.spec import build_engine
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary, did_you_mean
from matrix_dspy.loading import read_signature
from matrix_dspy.programs.base import Program
from matrix_dspy.text import clean_value, strip_custom_types
from matrix_dspy.types import Rejected, Structured

T = TypeVar("T")
STAGE = "program"
_EXTRAS = ("top_k", "min_p", "repetition_penalty", "chat_template_kwargs", "priority")


def run_program(
    program: dspy.Module,
    frame: pl.DataFrame,
    *,
    lm: str | Engine = "rehearsal",
    out: str | Path | None = None,
    n: int = 1,
    expect: str = "",
    temperature: float = 0.7,
    top_p: float | None = None,
    max_tokens: int = 1024,
    concurrency: int = 32,
    seed: int = 0,
    structured: Structured = "auto",
    ray: str | None = None,
    **sampling: Any,
) -> pl.DataFrame:
    """Run `program` on every row and return the frame with its output columns, `model` and `error` added.

    Columns named like the program's inputs are its inputs. Rows keep their order; a row without a usable answer has
    nulls and says why in `error`. With `out`, a folder, every completion is journaled there, a second call with the
    same program, rows and model pays only for what is missing, and `output.parquet` and `rejected.parquet` are
    written. Works inside a running event loop (a notebook) too.

    With `n` above 1 every row comes back n times with a column `sample`; the answers are asked for in one request
    where the server can do that. `expect` names an output field with levels (a `Literal`, a bounded int) and adds
    `<field>_expected`, its mean under the model's log-probabilities, null where the server gives none. `structured`
    says whether a JSON schema of the outputs is sent: `auto` does so where the server is known to hold the model to
    it. With `ray`, the address of a Ray cluster ("" starts one here), calls are spread over its machines. `sampling`
    takes what else `SamplingConfig` knows: top_k, min_p, repetition_penalty, chat_template_kwargs, priority.

    A `dspy.Predict`, a `dspy.ChainOfThought` or one of this package's programs runs on a template. Any other module
    runs through its own `aforward` or `forward`: its inputs are the parameters of that method and its outputs those of
    its only predictor, or both stand in a class attribute `signature` (`"question -> answer"`).

    Raises:
        ConfigError: an argument is of the wrong kind, or a module's inputs and outputs cannot be known.
        TableError: an input column is missing, or an output column is there already.
        EngineError: the model cannot be reached.
        RunError: another process works on `out`, or it cannot be written.
    """
    if not isinstance(frame, pl.DataFrame):
        raise TableError(f"run_program takes a polars.DataFrame, not a {type(frame).__name__}; collect or convert it")
    drawn = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens} | sampling
    job = _build_job(program, frame.clear(), lm, concurrency, ray, drawn, seed, n, expect, structured)
    made: list[pl.DataFrame] = []
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            run_async(job.run(slice_frame(frame), Path(scratch), made.append))
    else:
        run_async(job.run(slice_frame(frame), Path(out), made.append))
    return pl.concat(made) if made else job.empty


def run_table(
    program: dspy.Module,
    source: str | Path,
    out: str | Path,
    *,
    lm: str | Engine = "rehearsal",
    n: int = 1,
    expect: str = "",
    temperature: float = 0.7,
    top_p: float | None = None,
    max_tokens: int = 1024,
    concurrency: int = 32,
    seed: int = 0,
    structured: Structured = "auto",
    ray: str | None = None,
    **sampling: Any,
) -> Path:
    """Run `program` on every row of the Parquet file `source`, in memory that does not grow with its rows.

    As `run_program` with `out`, but rows are streamed from disk and to disk; returns the path of `output.parquet` in
    the folder `out`.

    Raises:
        TableError: `source` is no Parquet file, or lacks an input column.
        ConfigError, EngineError, RunError: as `run_program`.
    """
    empty, slices = read_slices(Path(source))
    drawn = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens} | sampling
    job = _build_job(program, empty, lm, concurrency, ray, drawn, seed, n, expect, structured)
    run_async(job.run(slices, Path(out)))
    return Path(out) / "output.parquet"


def _build_job(
    program: Any,
    empty: pl.DataFrame,
    lm: Any,
    concurrency: int,
    ray: str | None,
    sampling: dict[str, Any],
    seed: int,
    n: int,
    expect: str,
    structured: Structured,
) -> "_Job":
    if not isinstance(program, dspy.Module):
        raise ConfigError(
            f"run_program takes a dspy.Module, not {program!r:.80}; wrap a signature as dspy.Predict(...)"
        )
    if not isinstance(lm, str | Engine):
        raise ConfigError(f"lm is a {type(lm).__name__}; write it as for --lm, such as 'http://127.0.0.1:8000/v1'")
    for name, number in (("concurrency", concurrency), ("n", n)):
        if not isinstance(number, int):
            raise ConfigError(f"{name} must be a whole number, not {number!r}")
        if number < 1:
            raise ConfigError(f"{name} must be at least 1, not {number}")
    if structured not in get_args(Structured):
        raise ConfigError(f"structured = {structured!r} does not do; write auto, on or off")
    try:
        drawn = SamplingConfig.model_validate(sampling)
    except ValidationError as error:
        fault = error.errors()[0]
        known = f"sampling has {', '.join(SamplingConfig.model_fields)}"
        hint = known if fault["type"] == "extra_forbidden" else fault["msg"]
        raise ConfigError(f"{fault['loc'][0]} = {fault['input']!r} does not do: {hint}") from error
    engine = open_engine(lm, ray, concurrency=concurrency) if isinstance(lm, str) else lm
    return _Job(program, empty, engine, drawn, seed, n, expect, structured)


def open_engine(spec: str, ray: str | None = None, n_workers: int | None = None, **limits: Any) -> Engine:
    """Return the engine of `spec`, spread over a Ray cluster where `ray` is its address ("" starts one here)."""
    if ray is None:
        return build_engine(spec, **limits)
    from matrix_dspy.bulk.ray import RayEngine

    return RayEngine(spec, address=ray, n_workers=n_workers, **limits)


def sends_schemas(engine: Engine, structured: Structured) -> bool:
    """Whether programs with typed outputs are asked with a JSON schema on an open engine."""
    return engine.prefers_schema if structured == "auto" else structured == "on"


@contextmanager
def calm_garbage() -> Iterator[None]:
    """Spare the garbage collector the million objects that libraries made at import; it is a tenth of a call."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, from plain code or from inside a running loop."""
    if not _is_in_loop():
        with calm_garbage():
            return asyncio.run(work)
    box: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            box.append(asyncio.run(work))
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,))
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return box[0]


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def for_each(n: int, width: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Await `work(0)` to `work(n - 1)`, started in order, at most `width` at a time; the first error stops all."""
    positions = iter(range(n))

    async def worker() -> None:
        for position in positions:
            await work(position)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(n, width)):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise first_error(errors) from None


def first_error(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first plain error inside nested groups."""
    error = errors.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error


class _Job:
    """One call of `run_program` or `run_table`."""

    def __init__(
        self,
        program: dspy.Module,
        empty: pl.DataFrame,
        engine: Engine,
        sampling: SamplingConfig,
        seed: int,
        n: int,
        expect: str,
        structured: Structured,
    ) -> None:
        self.program = program
        self.engine = engine
        self.sampling = sampling
        self.seed = seed
        self.n = n
        self.expect = expect
        self.structured: Structured = structured
        self.signature = _read_signature(program)
        self.is_plain = _is_plain(program)
        self.inputs = list(self.signature.input_fields) if self.is_plain else _read_inputs(program, self.signature)
        self.outputs = list(self.signature.output_fields)
        fields = self.signature.input_fields.items()
        self.nullable = {name for name, field in fields if type(None) in get_args(field.annotation)}
        self._threads = ThreadPoolExecutor(min(64, engine.concurrency), thread_name_prefix="matrix-dspy-row")
        self._check_extras()
        self._check_columns(empty.columns)
        self._dtypes = {name: _choose_dtype(self.signature.output_fields[name].annotation) for name in self.outputs}
        self.empty = self._build_result(Batch(empty, 0))

    async def run(
        self, frames: Iterable[pl.DataFrame], folder: Path, keep: Callable[[pl.DataFrame], None] | None = None
    ) -> None:
        """Work through all rows; `keep` is given every finished batch too."""
        with boundary(RunError, f"make the folder {str(folder)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = take_lock(folder)
        remove_leftovers(folder)
        journal = Journal(folder / "journal")
        tables: list[TableWriter] = []
        try:
            async with self.engine:
                self.engine.journal_into(journal.folder)
                output = TableWriter(folder / "output.parquet", self.empty)
                rejected = TableWriter(folder / "rejected.parquet", build_frame(Rejected, [], sort_by=("id",)))
                tables += [output, rejected]
                runner = Runner(self.engine, journal, seed=self.seed, progress=Progress())
                runner.structured = sends_schemas(self.engine, self.structured)

                def finish(batch: Batch[list[Outcome]]) -> None:
                    self._reject_misfits(batch)
                    result = self._build_result(batch)
                    output.append(result)
                    if rows := self._list_rejected(batch):
                        rejected.append(build_frame(Rejected, rows, sort_by=("id",)))
                    if keep is not None:
                        keep(result)

                await self._stream(runner, frames, finish)
            for table in tables:
                table.commit()
        finally:
            for table in tables:
                table.abandon()
            self._threads.shutdown(wait=False, cancel_futures=True)
            journal.close()
            lock.release()

    async def _stream(
        self, runner: Runner, frames: Iterable[pl.DataFrame], finish: Callable[[Batch[list[Outcome]]], None]
    ) -> None:
        ask = self._ask_template(runner) if self.is_plain else self._ask_module(runner)

        async def work(batch: Batch[list[Outcome]], place: int) -> list[Outcome]:
            inputs = {name: _strip(batch.values(name)[place]) for name in self.inputs}
            empty = next((name for name, value in inputs.items() if value is None and name not in self.nullable), None)
            if empty is not None:
                return [Outcome(None, "", "bad input", f"column {empty!r} is null")] * self.n
            return await ask(batch.first + place, inputs)

        try:
            await stream_rows(frames, 2 * self.engine.concurrency, work, finish)
        except BaseExceptionGroup as errors:
            raise first_error(errors) from None

    def _ask_template(self, runner: Runner) -> Callable[[int, dict[str, Any]], Awaitable[list[Outcome]]]:
        prompt = Prompt.of(self.program)

        async def ask(position: int, inputs: dict[str, Any]) -> list[Outcome]:
            key = CallKey(STAGE, f"row-{position:09d}", "call")
            if self.n > 1:
                return await runner.sample(prompt, inputs, key, self.sampling, self.n, expect=self.expect)
            return [await runner.call(prompt, inputs, key, self.sampling, expect=self.expect)]

        return ask

    def _ask_module(self, runner: Runner) -> Callable[[int, dict[str, Any]], Awaitable[list[Outcome]]]:
        row: contextvars.ContextVar[list[int]] = contextvars.ContextVar("row")
        engine = _JournaledEngine(runner, row, self.sampling)
        drawn = {name: getattr(self.sampling, name) for name in ("temperature", "top_p", "max_tokens")}
        lm = build_lm(engine, is_open=True, **drawn)
        quiet = {"disable_history": True, "trace": None, "max_trace_size": 0, "warn_on_type_mismatch": False}
        call = self._call_async if hasattr(self.program, "aforward") else self._call_in_thread

        async def ask(position: int, inputs: dict[str, Any]) -> list[Outcome]:
            row.set([position, 0])
            try:
                with dspy.context(lm=lm, **quiet):
                    prediction = await call(inputs)
                return [Outcome({name: clean_value(getattr(prediction, name)) for name in self.outputs}, "")]
            except Exception as error:
                if engine.fault is not None:
                    raise engine.fault from error
                raw = getattr(error, "lm_response", "") or ""
                return [Outcome(None, raw, "failed", " ".join(str(error).split())[:300] or type(error).__name__)]

        return ask

    async def _call_async(self, inputs: dict[str, Any]) -> Any:
        return await self.program.acall(**inputs)

    async def _call_in_thread(self, inputs: dict[str, Any]) -> Any:
        """Call a module that knows only `forward`; its LM calls come back to this loop."""
        call = functools.partial(contextvars.copy_context().run, self.program, **inputs)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _check_extras(self) -> None:
        if not self.is_plain and (self.n > 1 or self.expect):
            raise ConfigError(
                f"n and expect need a program of one call; {type(self.program).__name__} has a method of its own"
            )
        if self.expect:
            try:
                read_levels(self.signature, self.expect)
            except ValueError as error:
                raise ConfigError(f"cannot expect {self.expect!r}: {error}") from error

    def _check_columns(self, columns: list[str]) -> None:
        for name in self.inputs:
            if name not in columns:
                raise TableError(f"the frame has no column {name!r}; {did_you_mean(name, columns)}")
        added = [*self.outputs, "model", "error"]
        added += ["sample"] if self.n > 1 else []
        added += [f"{self.expect}_expected"] if self.expect else []
        for name in added:
            if name in columns and name not in self.inputs:
                raise TableError(f"the frame has a column {name!r} already; drop or rename it first")

    def _reject_misfits(self, batch: Batch[list[Outcome]]) -> None:
        """Reject values that their columns do not hold, such as a number of thirty digits."""
        for name, dtype in self._dtypes.items():
            outcomes = [outcome for made in batch.results for outcome in made or () if outcome.fields is not None]
            if _holds(name, dtype, outcomes):
                continue
            for made in batch.results:
                for place, outcome in enumerate(made or ()):
                    if made is not None and outcome.fields is not None and not _holds(name, dtype, [outcome]):
                        problem = f"the value of {name!r} does not fit a column of type {dtype}"
                        made[place] = Outcome(None, outcome.text, "unparsed", problem)

    def _build_result(self, batch: Batch[list[Outcome]]) -> pl.DataFrame:
        outcomes = [outcome for made in batch.results for outcome in made or ()]
        columns: list[pl.Series] = []
        for name in self.outputs:
            values = [None if outcome.fields is None else outcome.fields[name] for outcome in outcomes]
            columns.append(_build_series(name, self._dtypes[name], values))
        if self.expect:
            means = [outcome.expected for outcome in outcomes]
            columns.append(pl.Series(f"{self.expect}_expected", means, dtype=pl.Float64))
        if self.n > 1:
            columns.append(pl.Series("sample", list(range(self.n)) * len(batch.results), dtype=pl.Int64))
        errors = [None if outcome.is_ok else f"{outcome.reason}: {outcome.detail}" for outcome in outcomes]
        columns.append(pl.Series("model", [self.engine.model] * len(outcomes), dtype=pl.String))
        columns.append(pl.Series("error", errors, dtype=pl.String))
        frame = batch.frame
        if self.n > 1:
            frame = frame[[place for place in range(len(frame)) for _ in range(self.n)]]
        return frame.with_columns(columns)

    def _list_rejected(self, batch: Batch[list[Outcome]]) -> list[Rejected]:
        return [
            Rejected(
                noun="row", id=f"row-{batch.first + place:09d}" + (f".{sample}" if self.n > 1 else ""), stage=STAGE,
                reason=outcome.reason, detail=outcome.detail, raw_text=outcome.text,
            )
            for place, made in enumerate(batch.results)
            for sample, outcome in enumerate(made or ())
            if not outcome.is_ok
        ]  # fmt: skip


class _JournaledEngine(Engine):
    """Gives a row's calls, in their order within the row, to the runner, so that they are journaled and replayed."""

    def __init__(self, runner: Runner, row: contextvars.ContextVar[list[int]], sampling: SamplingConfig) -> None:
        super().__init__(concurrency=runner.engine.concurrency)
        self.model = runner.engine.model
        self.supports_response_schema = runner.engine.supports_response_schema
        self.fault: Exception | None = None
        self._runner = runner
        self._row = row
        self._extras = {name: getattr(sampling, name) for name in _EXTRAS}

    async def complete(self, request: Request) -> Completion:
        place = self._row.get()
        key = CallKey(STAGE, f"row-{place[0]:09d}", "call", sample=place[1])
        place[1] += 1
        # DSPy's own LM layer drops or refuses options of vLLM's
        request = replace(request, sampling=replace(request.sampling, **self._extras))
        try:
            return await self._runner.complete(request, key)
        except Exception as error:
            self.fault = error  # DSPy would wrap it and take it for the row's
            raise


def _is_plain(program: dspy.Module) -> bool:
    """Whether calling the program is nothing but calling its one predictor."""
    kind: Any = type(program)
    plain = (dspy.Predict, dspy.ChainOfThought, Program)
    return len(program.predictors()) == 1 and any(
        kind.forward is known.forward and getattr(kind, "aforward", None) is getattr(known, "aforward", None)
        for known in plain
    )


def _read_signature(program: dspy.Module) -> type[dspy.Signature]:
    """Return the signature whose fields are the program's: the one it declares, or its only predictor's."""
    declared: Any = getattr(type(program), "signature", None)
    if isinstance(declared, str):
        make: Any = dspy.Signature
        return make(declared)
    predictors = program.predictors()
    if len(predictors) == 1:
        return read_signature(program)
    if not (isinstance(declared, type) and issubclass(declared, dspy.Signature)):
        raise ConfigError(
            f"{type(program).__name__} has {len(predictors)} predictors; "
            "give the class an attribute `signature` that names its own inputs and outputs"
        )
    return declared


def _read_inputs(program: dspy.Module, signature: type[dspy.Signature]) -> list[str]:
    """Return the inputs of a module with a method of its own: the declared ones, else the method's parameters."""
    if getattr(type(program), "signature", None) is not None:
        return list(signature.input_fields)
    kind: Any = type(program)
    method = getattr(kind, "aforward", None) or kind.forward
    _, *named = inspect.signature(method).parameters.values()
    parameters = [parameter for parameter in named if parameter.kind is not parameter.VAR_POSITIONAL]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return list(signature.input_fields)
    return [parameter.name for parameter in parameters]


def _strip(value: Any) -> Any:
    """Take DSPy's custom-type marks out of an input, so that text cannot become an image to fetch."""
    if isinstance(value, str):
        return strip_custom_types(value) if "<<CUSTOM-TYPE" in value else value
    if isinstance(value, pl.Series):
        return [_strip(item) for item in value.to_list()]
    if isinstance(value, list):
        return [_strip(item) for item in value]
    if isinstance(value, dict):
        return {key: _strip(item) for key, item in value.items()}
    return value


def _choose_dtype(annotation: Any) -> pl.DataType:
    """Return the column type of an output; what has none of its own becomes JSON text."""
    try:
        return read_dtype(annotation)
    except (KeyError, TypeError):
        return pl.String()


def _holds(name: str, dtype: pl.DataType, outcomes: list[Outcome]) -> bool:
    """Whether a column takes what was made of its field."""
    try:
        _build_series(name, dtype, [outcome.fields[name] for outcome in outcomes if outcome.fields is not None])
    except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError, RecursionError):
        return False
    return True


def _build_series(name: str, dtype: pl.DataType, values: list[Any]) -> pl.Series:
    """Put output values into a column; a text column takes what is no text as JSON."""
    plain = [_plain(value) for value in values]
    if dtype == pl.String:
        plain = [
            v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False, allow_nan=False) for v in plain
        ]
    return pl.Series(name, plain, dtype=dtype, strict=True)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
