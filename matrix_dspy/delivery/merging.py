"""Merge runs of one kind into one data set without the copies they share.

In: run folders, or folders merged before. Out: a folder with `dataset/<kind>.parquet` and `.jsonl`, what was dropped in
`tables/rejected.parquet` with its twin and score, a card that names the parents, and `figures.json`. The order in which
the runs are named changes nothing: rows are judged by their own rank within their run, then by run and id.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from matrix_dspy import __version__
from matrix_dspy.bulk.folder import hash_identity, read_run, read_run_id, take_lock, write_made_run
from matrix_dspy.bulk.tables import build_frame, read_table, write_jsonl, write_parquet, write_text
from matrix_dspy.config import CurationConfig
from matrix_dspy.curation.duplicates import find_duplicates
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary
from matrix_dspy.types import Rejected, make_id

FIGURES = "figures.json"
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True, slots=True)
class Parent:
    """A run that went into a merge, as the card and `figures.json` name it."""

    run_id: str
    kind: str
    recipe: str
    seed: int
    models: tuple[str, ...]
    """Models that wrote its rows."""
    licences: tuple[str, ...]
    """Licences of the profiles that its people came from."""
    data_sha256: str
    """First 16 hexadecimal digits of the hash of its Parquet file."""
    n_rows: int
    n_kept: int = 0


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge made."""

    path: Path
    merge_id: str
    kind: str
    n_rows: int
    n_dropped: dict[str, int]
    """Rows that were dropped, by reason."""
    parents: tuple[Parent, ...]
    grandparents: tuple[Parent, ...]
    """What parents that were merged themselves were merged from."""
    settings: dict[str, Any]

    @property
    def n_read(self) -> int:
        """How many rows the parents have."""
        return sum(parent.n_rows for parent in self.parents)


@dataclass(frozen=True, slots=True)
class _Run:
    parent: Parent
    frame: pl.DataFrame
    shape: str
    grandparents: tuple[Parent, ...] = ()
    """Of a merged set, what it was merged from."""


def merge(
    runs: Sequence[Path],
    out: Path,
    *,
    n_shingle: int | None = None,
    threshold: float | None = None,
    seed: int = 0,
    n_workers: int = 1,
) -> Merged:
    """Put the data sets of `runs` into the new folder `out`, without exact and near duplicates among instructions.

    Of two rows alike the one with the lower rank within its run stays. `n_shingle` and `threshold` are those of the
    near-duplicate filter, as shipped where they are not given (METHOD 3.4); `seed` is that of its permutations.

    Raises:
        ConfigError: there are fewer than two runs, they hold different kinds or shapes of data, or a setting makes no
            sense.
        RunError: a folder holds no run, or `out` holds something else.
        TableError: a data set is not there or cannot be read.
    """
    if len(runs) < 2:
        raise ConfigError(f"merge takes two runs or more, not {len(runs)}")
    shipped = CurationConfig()
    settings = {
        "n_shingle": shipped.shingle_words if n_shingle is None else n_shingle,
        "threshold": shipped.near_duplicate if threshold is None else threshold,
        "seed": seed,
    }
    out = Path(out)
    loaded = sorted((_load(Path(path)) for path in runs), key=lambda run: (run.parent.run_id, run.parent.data_sha256))
    _check_alike(loaded)
    parents = [run.parent for run in loaded]
    identity = _build_identity(parents, settings)
    merge_id = hash_identity(identity)
    _refuse_other(out, merge_id)
    frame = _rank(loaded)
    texts = [_join_questions(turns) for turns in frame[_turns_column(frame)]]
    drops = find_duplicates(texts, frame["example_id"], frame["_place"], n_workers=n_workers, **settings)
    kept = frame.filter(~pl.col("_place").is_in(drops["row"].implode()))
    n_kept: dict[int, int] = dict(kept.group_by("_run").len().iter_rows())
    merged = Merged(
        path=out,
        merge_id=merge_id,
        kind=parents[0].kind,
        n_rows=kept.height,
        n_dropped=dict(sorted(drops.group_by("reason").len().iter_rows())),
        parents=tuple(replace(parent, n_kept=n_kept.get(number, 0)) for number, parent in enumerate(parents)),
        grandparents=tuple(parent for run in loaded for parent in run.grandparents),
        settings=settings,
    )
    with boundary(RunError, f"write {str(out)!r}"):
        out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    try:
        _write(merged, identity, kept, _list_rejected(frame, texts, drops))
    finally:
        lock.release()
    return merged


def _load(path: Path) -> _Run:
    """Load a run's data set and what is known of it; or a set that was merged before."""
    figures = _read_figures(path)
    run_id = figures["merge_id"] if figures else read_run_id(path)
    files = sorted((path / "dataset").glob("*.parquet"))
    if len(files) != 1:
        what = "no data set yet; finish the run first" if not files else f"{len(files)} data sets, and merge takes one"
        raise TableError(f"{str(path)!r} holds {what}")
    frame, kind = read_table(files[0], run_id), files[0].stem
    shape = next((name for name in ("chosen", "messages") if name in frame.columns), "")
    if not shape or not {"example_id", "model"} <= set(frame.columns) or not frame.height:
        words = "no rows" if shape and not frame.height else "no examples in TRL's columns"
        raise TableError(f"{str(files[0])!r} holds {words}; take it out of the merge")
    models = sorted(
        {
            *frame["model"].drop_nulls(),
            *frame.get_column("rejected_model", default=pl.Series([], dtype=pl.String)).drop_nulls(),
        }
    )
    if figures:
        grandparents = tuple(_read_parent(each) for each in (*figures["parents"], *figures["grandparents"]))
        licences = sorted({licence for each in grandparents for licence in each.licences})
        recipe, seed = "merge", figures["settings"]["seed"]
    else:
        grandparents, licences = (), _read_licences(path, run_id)
        identity = read_run(path)["identity"]
        recipe, seed = identity.get("recipe", ""), identity.get("seed", 0)
        frame = _add_rank(frame, path, run_id)
    with files[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    parent = Parent(run_id, kind, recipe, seed, tuple(models), tuple(licences), digest, frame.height)
    return _Run(parent, frame, "pairs" if shape == "chosen" else "conversations", grandparents)


def _read_figures(path: Path) -> dict[str, Any] | None:
    """Return the figures of a folder that a merge made, else None."""
    if not (path / FIGURES).is_file():
        return None
    with boundary(RunError, f"read {str(path / FIGURES)!r}"):
        found = orjson.loads((path / FIGURES).read_bytes())
    return found if isinstance(found, dict) and found.get("command") == "merge" else None


def _read_parent(found: dict[str, Any]) -> Parent:
    with boundary(RunError, "read the parents of a merged set"):
        return Parent(**{**found, "models": tuple(found["models"]), "licences": tuple(found["licences"])})


def _read_licences(path: Path, run_id: str) -> list[str]:
    table = path / "tables" / "profiles.parquet"
    return sorted(set(read_table(table, run_id)["licence"])) if table.is_file() else []


def _add_rank(frame: pl.DataFrame, path: Path, run_id: str) -> pl.DataFrame:
    """Join each example's rank among its run's candidates, where the run's instructions are there."""
    table = path / "tables" / "instructions.parquet"
    if not table.is_file():
        return frame
    ranks = read_table(table, run_id).select("instruction_id", pl.col("rank").alias("_rank"))
    return frame.join(ranks, on="instruction_id", how="left", maintain_order="left")


def _check_alike(loaded: list[_Run]) -> None:
    shapes = sorted({(run.parent.kind, run.shape) for run in loaded})
    if len(shapes) > 1:
        words = " and ".join(f"{kind!r} ({shape})" for kind, shape in shapes)
        raise ConfigError(f"cannot merge different kinds of data, {words}; merge runs of one kind")


def _refuse_other(out: Path, merge_id: str) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{str(out)!r} is a file; give another folder with --out")
    figures = _read_figures(out)
    if (
        out.is_dir()
        and {path.name for path in out.iterdir()} - {".lock"}
        and (figures or {}).get("merge_id") != merge_id
    ):
        raise RunError(f"{str(out)!r} holds something else; give another folder with --out")


def _rank(loaded: list[_Run]) -> pl.DataFrame:
    """Put all rows under each other in the order in which they are judged, with ids that are unique among them."""
    frames = []
    for number, run in enumerate(loaded):
        ordered = run.frame.sort("example_id", maintain_order=True)
        rank = pl.col("_rank") if "_rank" in ordered.columns else pl.lit(None, pl.Int64)
        source = pl.col("run_id") if "run_id" in ordered.columns else pl.lit(run.parent.run_id)
        ordered = ordered.with_columns(
            pl.coalesce(rank, pl.int_range(pl.len(), dtype=pl.Int64)).alias("_rank"),
            source.alias("run_id"),
            pl.lit(number).alias("_run"),
        )
        frames.append(ordered)
    with boundary(ConfigError, "merge data sets whose columns differ in type"):
        whole = pl.concat(frames, how="diagonal")
    # runs of one seed and other models, or a sampling model asked twice, give one id to different rows
    hashes = [
        _hash_turns(row) if is_shared else ""
        for row, is_shared in zip(
            whole.select(_turn_columns(whole)).iter_rows(), whole["example_id"].is_duplicated(), strict=True
        )
    ]
    whole = whole.with_columns(pl.Series("_hash", hashes, dtype=pl.String))
    n_versions = pl.struct("run_id", "_hash").n_unique().over("example_id")
    whole = whole.with_columns((n_versions > 1).alias("_clashes"))
    whole = whole.sort("_rank", "run_id", "example_id", "_hash", "_run", maintain_order=True)
    ids = [
        make_id("example", run_id, own, digest) if clashes else own
        for run_id, own, digest, clashes in whole.select("run_id", "example_id", "_hash", "_clashes").iter_rows()
    ]
    return whole.with_columns(pl.Series("example_id", ids, dtype=pl.String)).with_row_index("_place")


def _hash_turns(turns: tuple[Any, ...]) -> str:
    return hashlib.blake2b(orjson.dumps(turns), digest_size=8).hexdigest()


def _turn_columns(frame: pl.DataFrame) -> list[str]:
    return [name for name in ("messages", "prompt", "chosen", "rejected") if name in frame.columns]


def _turns_column(frame: pl.DataFrame) -> str:
    return "prompt" if "prompt" in frame.columns else "messages"


def _join_questions(turns: list[dict[str, str]]) -> str:
    return "\n\n".join(turn["content"] for turn in turns if turn["role"] != "assistant")


def _list_rejected(frame: pl.DataFrame, texts: list[str], drops: pl.DataFrame) -> list[Rejected]:
    runs = frame["run_id"]
    return [
        Rejected(
            noun="example",
            id=drop["id"],
            stage="merge",
            reason=drop["reason"],
            detail=f"{drop['detail']}; from run {runs[drop['row']]}",
            raw_text=texts[drop["row"]],
            twin=drop["twin"],
            score=drop["score"],
        )
        for drop in drops.iter_rows(named=True)
    ]


def _build_identity(parents: Sequence[Parent], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what the merge is, as a run's `run.toml` says it."""
    models = sorted({model for parent in parents for model in parent.models})
    return {
        "command": "merge",
        "recipe": "merge",
        "seed": settings["seed"],
        "models": {"main": ", ".join(models)[:200]},
        "synthesis": {"kind": parents[0].kind},
        "settings": settings,
        "parents": [asdict(parent) for parent in parents],
    }


def _write(merged: Merged, identity: dict[str, Any], kept: pl.DataFrame, rejected: list[Rejected]) -> None:
    hidden = [name for name in kept.columns if name.startswith("_")]
    frame = kept.drop(hidden).sort("example_id", maintain_order=True)
    write_parquet(frame, merged.path / "dataset" / f"{merged.kind}.parquet", merged.merge_id)
    write_jsonl(frame, merged.path / "dataset" / f"{merged.kind}.jsonl")
    dropped = build_frame(Rejected, rejected, sort_by=("noun", "id", "stage", "reason", "detail"))
    write_parquet(dropped, merged.path / "tables" / "rejected.parquet", merged.merge_id)
    figures = {"command": "merge", "version": __version__, "n_read": merged.n_read, **asdict(merged)}
    del figures["path"]
    figures |= {"describe": f"rows of {len(merged.parents)} runs, each kept once"}
    figures |= {"models": identity["models"], "reason": "complete", "is_final": True}
    figures |= {"n_candidates": merged.n_read, "n_kept": merged.n_rows, "n_wanted": merged.n_rows}
    write_made_run(merged.path, merged.n_rows, identity)
    write_text(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode() + "\n", merged.path / FIGURES)
    write_text(_render_card(merged), merged.path / "README.md")


def _render_card(merged: Merged) -> str:
    environment = Environment(
        loader=PackageLoader("matrix_dspy.delivery", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["cell"] = _cell
    models = {model for parent in merged.parents for model in parent.models}
    return environment.get_template("merge.md.jinja").render(
        m=merged,
        version=__version__,
        is_rehearsal="rehearsal" in models,
        size=next((name for bound, name in _SIZES if merged.n_rows < bound), "n>1M"),
    )


def _cell(text: object) -> str:
    """Put a value into a Markdown table cell without letting it become markup."""
    plain = " ".join(str(text).split())
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>|#" else sign for sign in plain)
