"""A run's folder: what it is (`run.toml`), what it paid for (`journal/`), what it made (`tables/`, `dataset/`).

`run.toml` is written first and compared on every later start: `[operation]` may change and `n` may grow, any other
change stops with the key's name. One process at a time holds the folder.
"""

import hashlib
import platform
import tomllib
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import orjson
import polars as pl
import tomli_w
from filelock import BaseFileLock, FileLock, Timeout

from matrix_dspy import __version__
from matrix_dspy.bulk.journal import Journal
from matrix_dspy.bulk.tables import build_frame, read_table, remove_leftovers, write_jsonl, write_parquet, write_text
from matrix_dspy.config import Config
from matrix_dspy.errors import RunError, TableError, boundary
from matrix_dspy.text import hide_secrets
from matrix_dspy.types import NOUNS, Example, PairExample, Row, Sourced

RETRIES = "retries.json"
CONTRACT = 1
"""Version of the folder's layout."""
_ID_COLUMNS = {"rejected": ("noun", "id", "stage", "reason", "detail")}


class RunFolder:
    """One run on disk; a context manager that holds the lock and the journal while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal: Journal | None = None
        self.run_id = ""
        self._lock: BaseFileLock | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        command: str,
        config: Config,
        models: dict[str, str],
        *,
        inputs: dict[str, str] | None = None,
        replay: tuple[Path, ...] = (),
        has_schemas: bool = False,
    ) -> Self:
        """Take the folder for a run of `config`, making it if it is not there.

        `models` are the models' own names per role; `inputs` are hashes of the files the run reads, by name; `replay`
        are other run folders whose journals are read too; `has_schemas` says that prompts are those that go with JSON
        schemas.

        Raises:
            RunError: another process holds it, it holds another run, or it cannot be written.
        """
        folder, replay = cls(path), find_replays(replay, path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{str(path)!r} is a file; give another folder with --out")
        with boundary(RunError, f"open the run folder {str(path)!r}"):
            path.mkdir(parents=True, exist_ok=True)
            folder._lock = take_lock(path)
            try:
                identity = _build_identity(command, config, models) | {"inputs": inputs or {}}
                if has_schemas:
                    identity["schemas"] = _drop_none({"longest_text": config.lm.longest_text, "sent": True})
                folder._compare_or_write(identity, config, replay)
                folder.run_id = hash_identity(identity)
                for place in (path, path / "tables", path / "dataset"):
                    remove_leftovers(place)
                places = tuple(_journal_of(other) for other in replay)
                folder.journal = Journal(path / "journal", replay=places, keep_prompts=config.operation.keep_prompts)
            except BaseException:
                folder._lock.release()
                raise
        return folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.journal is not None:
            self.journal.close()
        if self._lock is not None:
            self._lock.release()

    def write_table(self, noun: str, rows: Iterable[Row]) -> None:
        """Write `tables/<noun>.parquet`, sorted by id."""
        kind = NOUNS[noun]
        sort_by = _ID_COLUMNS.get(noun) or (next(iter(kind.model_fields)),)
        write_parquet(build_frame(kind, rows, sort_by=sort_by), self.path / "tables" / f"{noun}.parquet", self.run_id)

    def write_dataset(
        self,
        name: str,
        rows: Sequence[Example | PairExample],
        shape: type[Sourced] = Example,
        place: str = "dataset",
    ) -> pl.DataFrame:
        """Write `<place>/<name>.parquet` and `.jsonl`, sorted by id, with the texts first, and return the frame."""
        frame = build_frame(shape, rows, sort_by=("example_id",))
        texts = [column for column in shape.model_fields if column not in Sourced.model_fields]
        frame = frame.select("example_id", *texts, *(name for name in Sourced.model_fields if name != "example_id"))
        write_parquet(frame, self.path / place / f"{name}.parquet", self.run_id)
        write_jsonl(frame, self.path / place / f"{name}.jsonl")
        return frame

    def write_card(self, text: str) -> None:
        """Write the dataset card, `README.md`."""
        write_text(text, self.path / "README.md")

    def write_figures(self, figures: dict[str, Any]) -> None:
        """Write `figures.json`: what the tables do not say of how the run went."""
        write_text(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() + "\n", self.path / "figures.json")

    def write_state(self, state: dict[str, Any]) -> None:
        """Note how the last start ended, in `ended.json`."""
        write_text(orjson.dumps(state, option=orjson.OPT_INDENT_2).decode() + "\n", self.path / "ended.json")

    def read_retries(self) -> dict[str, dict[str, int]]:
        """Return how often failed rows were asked for anew, by program and instruction id."""
        path = self.path / RETRIES
        if not path.is_file():
            return {}
        with boundary(RunError, f"read {str(path)!r}"):
            return orjson.loads(path.read_bytes())

    def write_retries(self, retries: dict[str, dict[str, int]]) -> None:
        """Note in `retries.json` how often failed rows are asked for anew."""
        write_text(
            orjson.dumps(retries, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode(), self.path / RETRIES
        )

    def read_state(self) -> dict[str, Any]:
        """Return how the last start ended; empty when none has."""
        try:
            return orjson.loads((self.path / "ended.json").read_bytes())
        except (OSError, orjson.JSONDecodeError):
            return {}

    def _compare_or_write(self, identity: dict[str, Any], config: Config, replay: tuple[Path, ...]) -> None:
        path = self.path / "run.toml"
        if path.exists():
            old = _read_run(path)
            _refuse_changes(old, identity, config, self.path)
        elif any(self.path.glob("journal/*.jsonl")) or (self.path / "tables").exists():
            raise RunError(f"{str(self.path)!r} holds tables but no run.toml; give another folder with --out")
        document = {
            **_begin_document(config.n, identity),
            "operation": _drop_none(config.operation.model_dump()),
            "start": {
                "lm": hide_secrets(config.lm.main),
                "lms": {part: hide_secrets(spec) for part, spec in config.lm.parts.items()},
                "profiles": config.population.profiles,
                "benchmarks": config.curation.benchmarks,
                "reward_model": hide_secrets(config.selection.reward_model),
                "replay": [str(other.absolute()) for other in replay],
            },
        }
        write_text(tomli_w.dumps(document), path)


def write_made_run(path: Path, n: int, identity: dict[str, Any]) -> None:
    """Write the `run.toml` of a folder that was made out of other runs, with no start of its own."""
    write_text(tomli_w.dumps(_begin_document(n, identity)), path / "run.toml")


def _begin_document(n: int, identity: dict[str, Any]) -> dict[str, Any]:
    return {"contract": CONTRACT, "n": n, "identity": identity, "versions": _list_versions()}


def take_lock(path: Path, option: str = "--out") -> BaseFileLock:
    """Take a folder for this process; the lock goes with the process, however it ends.

    Raises:
        RunError: another process has it, or it cannot be written.
    """
    lock = FileLock(path / ".lock", timeout=0)
    with boundary(RunError, f"open the folder {str(path)!r}"):
        try:
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is working on {str(path)!r}; wait for it, or give another folder with {option}"
            ) from error
    return lock


def read_run_id(path: Path) -> str:
    """Return the id of the run in a folder.

    Raises:
        RunError: there is no run there.
    """
    return hash_identity(read_run(path)["identity"])


def read_run(path: Path) -> dict[str, Any]:
    """Return the contents of a folder's `run.toml`.

    Raises:
        RunError: there is no run there.
    """
    if not (path / "run.toml").is_file():
        raise RunError(f"no run in {str(path)!r}; it has no run.toml")
    return _read_run(path / "run.toml")


def read_run_table(path: Path, noun: str) -> pl.DataFrame:
    """Read `tables/<noun>.parquet` of the run in folder `path`, refusing another run's table."""
    if noun not in NOUNS:
        raise TableError(f"no table {noun!r}; there are {', '.join(NOUNS)}")
    return read_table(path / "tables" / f"{noun}.parquet", read_run_id(path))


def _read_run(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RunError(f"could not read {str(path)!r}: {error}; start anew with --fresh") from error
    if document.get("contract") != CONTRACT or not isinstance(document.get("identity"), dict):
        raise RunError(f"{str(path)!r} was written by another version of matrix_dspy; start anew with --fresh")
    return document


def _build_identity(command: str, config: Config, models: dict[str, str]) -> dict[str, Any]:
    """Return everything a run is, and nothing of how the work is done."""
    parts = config.model_dump(exclude={"n", "operation", "lm"}, mode="json")
    # where a file lies is an address; what it is called goes into ids, what it holds into `inputs`
    parts["population"]["profiles"] = Path(config.population.profiles).name
    parts["curation"]["benchmarks"] = Path(config.curation.benchmarks).name
    parts["selection"]["reward_model"] = Path(config.selection.reward_model).name
    sampling = {name: config.sampling_of(name).model_dump() for name in config.sampling}
    return _drop_none({"command": command, **parts, "sampling": sampling, "models": models})


def read_config(path: Path) -> tuple[str, Config]:
    """Return the command and the config of the run in a folder, as it was started last but without its limits.

    Raises:
        RunError: there is no run there, or its config can no longer be read.
    """
    run = read_run(path)
    values = {key: value for key, value in run["identity"].items() if key in Config.model_fields}
    start = run.get("start", {})
    if "operation" not in run:
        raise RunError(f"{str(path)!r} was put together out of other runs and was never started; name one of those")
    operation = {key: value for key, value in run["operation"].items() if not key.startswith("max_")}
    values |= {"n": run["n"], "operation": operation, "lm": {"main": start.get("lm", "rehearsal")}}
    values["lm"] |= start.get("lms", {})
    if "schemas" in run["identity"]:
        values["lm"] |= {"structured": "on", "longest_text": run["identity"]["schemas"].get("longest_text")}
    else:
        values["lm"]["structured"] = "off"
    values["population"]["profiles"] = start.get("profiles", "")
    values["curation"]["benchmarks"] = start.get("benchmarks", "")
    values["selection"]["reward_model"] = start.get("reward_model", "")
    with boundary(RunError, f"read the config of {str(path)!r}"):
        return run["identity"]["command"], Config.model_validate(values)


def read_replay(path: Path) -> tuple[Path, ...]:
    """Return the other runs whose completions the last start of the run in a folder replayed too."""
    return tuple(Path(other) for other in read_run(path).get("start", {}).get("replay", []))


def find_replays(runs: tuple[Path, ...], own: Path) -> tuple[Path, ...]:
    """Return `runs` and the runs that those replayed themselves, as far as they are still there, each once."""
    found: dict[Path, Path] = {}
    waiting = list(runs)
    while waiting:
        run = waiting.pop(0)
        if run.absolute() not in (*found, own.absolute()):
            found[run.absolute()] = run
            earlier = read_replay(run) if (run / "run.toml").is_file() else ()
            waiting += [other for other in earlier if (other / "journal").is_dir()]
    return tuple(found.values())


def _drop_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_none(inner) for key, inner in value.items() if inner is not None}
    return value


def hash_identity(identity: dict[str, Any]) -> str:
    """Return the id of a run: a hash of everything it is."""
    return hashlib.blake2b(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS), digest_size=8).hexdigest()


def _refuse_changes(old: dict[str, Any], identity: dict[str, Any], config: Config, path: Path) -> None:
    before, now = _flatten(old["identity"]), _flatten(identity)
    fresh = "" if identity.get("command") == "curate" else ", or start anew with --fresh"
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise RunError(
                f"{str(path)!r} holds a run with {key} = {before.get(key)!r}, not {now.get(key)!r}; "
                f"give another folder with --out{fresh}"
            )
    if config.n < old["n"]:
        raise RunError(
            f"{str(path)!r} holds a run with n = {old['n']}, which may grow but not shrink to {config.n}; "
            "give another folder with --out"
        )


def _flatten(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{before}{key}.") if isinstance(value, dict) else {before + key: value}
    return flat


def _journal_of(other: Path) -> Path:
    if not (other / "journal").is_dir():
        raise RunError(f"no journal in {str(other)!r}; --from takes a run folder")
    return other / "journal"


def _list_versions() -> dict[str, str]:
    found = {name: version(name) for name in ("dspy", "polars", "pydantic", "scikit-learn", "rensa")}
    return {"matrix_dspy": __version__, "python": platform.python_version(), **found}
