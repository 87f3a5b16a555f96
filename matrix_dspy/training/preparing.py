"""A data set as tokens on disk, and a line for every row that was left out.

In: a run folder or a file of anybody's in a layout that delivery/reading.py knows. Out: `rows.parquet` with token ids
and what is learnt of them (SFT: input_ids, labels; DPO: prompt_ids, chosen_ids, rejected_ids), `left_out.jsonl`, and a
`Prepared` that the training and its card go by. Nothing is held but a batch, whatever the size of the data.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from matrix_dspy.delivery.reading import DataRow, Dataset, Fault, ShownTurn, find_data_files, read_dataset
from matrix_dspy.errors import ConfigError, RunError, TableError, boundary, describe_os_error
from matrix_dspy.training.encoding import ChatEncoder, Encoded, Tools, Turns, Unfit
from matrix_dspy.training.settings import Stage, TrainingConfig

ROWS = "rows.parquet"
LEFT_OUT = "left_out.jsonl"
COLUMNS: dict[Stage, list[str]] = {
    "sft": ["input_ids", "labels"],
    "dpo": ["prompt_ids", "chosen_ids", "rejected_ids"],
}
_WORDS = {"conversation": "conversations", "pair": "preference pairs"}
_OTHER: dict[Stage, Stage] = {"sft": "dpo", "dpo": "sft"}
_MOST_MODELS = 20


@dataclass(frozen=True, slots=True)
class Source:
    """What a training learns from, as its card names it."""

    path: str
    name: str
    kind: str
    """A run's kind of data, else the layout of the file."""
    sha256: str
    """Of the data files, one after the other."""
    n_rows: int = 0
    """Rows and faults read."""
    models: tuple[str, ...] = ()
    """Models that wrote the rows, as far as a column says so."""

    @property
    def is_rehearsed(self) -> bool:
        """Whether any row was written by the rehearsal engine."""
        return "rehearsal" in self.models


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set as tokens."""

    source: Source
    n_train: int
    n_eval: int
    n_tokens: int
    """Of the rows trained on; of a pair both sides with the prompt."""
    n_learnt: int
    """Tokens of those that count in the loss."""
    longest: int
    """Tokens of the longest row."""
    limit: int
    """Tokens a row may have."""
    n_cut: int
    left_out: dict[str, int]
    """Rows that were left out, by reason."""
    held_out_up_to: float
    """Rows whose place by hash is up to this are held out."""
    samples: tuple[dict[str, Any], ...] = ()
    """Held-out prompts that the model is looked at with: id, prompt and prompt_ids."""
    notes: tuple[str, ...] = ()
    """Sentences for the user and the card."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Prepared":
        """Build it from what `to_json` returned."""
        source = Source(**{**values["source"], "models": tuple(values["source"]["models"])})
        return cls(**{**values, "source": source, "samples": tuple(values["samples"]), "notes": tuple(values["notes"])})


@dataclass(slots=True)
class _Counts:
    """What is counted while rows pass."""

    left_out: Counter[str] = field(default_factory=Counter)
    example: str = ""
    n_rows: int = 0
    n_cut: int = 0
    n_without_tools: int = 0
    """Rows that bring tools and are trained on without."""
    longest: int = 0
    models: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that is trained on or held out."""

    id: str
    place: float
    columns: dict[str, list[int]]
    n_tokens: int
    n_learnt: int


def read_source(path: Path, stage: Stage) -> tuple[Dataset, Source]:
    """Find the data set of a run folder or a file, and make sure that it is one for the stage.

    Raises:
        ConfigError: it is of the wrong kind.
        TableError: there is none.
    """
    files = find_data_files(path)
    is_run = (path / "run.toml").is_file()
    if is_run and len(files) > 1:
        names = ", ".join(file.stem for file in files)
        raise ConfigError(f"{str(path)!r} holds several data sets ({names}); give one of its files under dataset/")
    try:
        dataset = read_dataset(path)
    except TableError as error:
        words, advice, _ = str(error).partition("; say which is which")
        if not advice:
            raise
        advice = "write it in TRL's columns with export --column prompt=... --column response=... first"
        raise TableError(f"{words}; {advice}") from error
    kind = next(iter(files)).stem if is_run else dataset.layout.name
    wanted = "conversation" if stage == "sft" else "pair"
    if dataset.shape != wanted:
        raise ConfigError(
            f"{str(path)!r} holds {_WORDS[dataset.shape]} (kind {kind!r}), and train {stage} takes {_WORDS[wanted]}; "
            f"use train {_OTHER[stage]}, or give another data set"
        )
    digest = hashlib.sha256()
    for file in files:
        with boundary(TableError, f"read {str(file)!r}"), file.open("rb") as opened:
            _update(digest, opened)
    return dataset, Source(str(path), dataset.name, kind, digest.hexdigest())


def _update(digest: Any, file: BinaryIO) -> None:
    while block := file.read(1 << 20):
        digest.update(block)


def prepare(
    config: TrainingConfig, stage: Stage, found: tuple[Dataset, Source], encoder: ChatEncoder, out: Path, limit: int
) -> Prepared:
    """Encode a data set into `out`; `limit` is how many tokens a row may have.

    A row's place is the hash of its id and the seed, in [0, 1): rows below `eval_share` are held out, whatever their
    order and whatever other rows there are. Where none is, the one of lowest place is.

    Raises:
        ConfigError: no row is left to train on.
        TableError: the data breaks off.
        RunError: the folder cannot be written.
    """
    dataset, source = found
    counts = _Counts()
    places: list[tuple[float, int, int]] = []
    lowest: list[tuple[float, int, DataRow]] = []
    try:
        # nothing here is taken for whole before train.json stands beside it
        with _Writer(out / ROWS, stage) as writer, (out / LEFT_OUT).open("wb") as lines:
            for row, kept in _encode(config, stage, dataset, encoder, limit, counts, lines):
                writer.add(kept)
                places.append((kept.place, kept.n_tokens, kept.n_learnt))
                if config.n_samples and config.eval_share:
                    entry = (-kept.place, len(places), row)
                    add = heapq.heappush if len(lowest) < config.n_samples else heapq.heappushpop
                    add(lowest, entry)
    except OSError as error:
        raise RunError(f"could not write {str(out)!r}: {describe_os_error(error)}") from error
    if counts.left_out.total() == counts.n_rows:
        common = counts.left_out.most_common(1)[0][0] if counts.left_out else "there are none"
        raise ConfigError(
            f"none of the {counts.n_rows:,} rows of {source.path!r} can be trained on, most of them: {common} "
            f"({counts.example}); see {str(out / LEFT_OUT)!r}"
        )
    border = _find_border([place for place, _, _ in places], config.eval_share)
    trained = [(n_tokens, n_learnt) for place, n_tokens, n_learnt in places if place > border]
    if not trained:
        # rows of one id or text stand in one place, which no share below it divides
        advice = "set eval_share=0: all rows share one id or text" if len({place for place, *_ in places}) == 1 else ""
        raise ConfigError(
            f"all {len(places):,} rows would be held out; {advice or f'lower eval_share = {config.eval_share}'}"
        )
    shown = sorted(((-minus, row.id, number, row) for minus, number, row in lowest if -minus <= border), key=_order)
    return Prepared(
        source=Source(
            source.path,
            source.name,
            _name_kind(counts.kinds) or source.kind,
            source.sha256,
            counts.n_rows,
            tuple(name for name, _ in counts.models.most_common(_MOST_MODELS)),
        ),
        n_train=len(trained),
        n_eval=len(places) - len(trained),
        n_tokens=sum(n for n, _ in trained),
        n_learnt=sum(n for _, n in trained),
        longest=counts.longest,
        limit=limit,
        n_cut=counts.n_cut,
        left_out=dict(sorted(counts.left_out.items())),
        held_out_up_to=border,
        samples=tuple(_build_sample(row, encoder, limit) for *_, row in shown),
        notes=_note_tools(counts.n_without_tools),
    )


def _order(entry: tuple[float, str, int, DataRow]) -> tuple[float, str, int]:
    return entry[:3]


def _find_border(places: list[float], share: float) -> float:
    if not share or len(places) < 2:
        return -1.0
    below = [place for place in places if place < share]
    return max(below) if below else min(places)


def _name_kind(kinds: Counter[str]) -> str:
    return ", ".join(sorted(kinds)[:5])


def _build_sample(row: DataRow, encoder: ChatEncoder, limit: int) -> dict[str, Any]:
    turns = row.messages
    while turns and turns[-1].role == "assistant":
        turns = turns[:-1]
    prompt = [turn.model_dump() for turn in turns]
    ids = encoder.encode_prompt(turns, _read_tools(row, encoder))
    return {"id": row.id, "prompt": prompt, "prompt_ids": ids[-limit:]}


def _note_tools(n_rows: int) -> tuple[str, ...]:
    return (f"{n_rows:,} rows bring tools, which are not shown",) if n_rows else ()


def _read_tools(row: DataRow, encoder: ChatEncoder) -> Tools:
    """Return a row's tools; none where the chat template shows none, or what the row calls tools is something else."""
    found = _parse_tools(row)
    is_list = isinstance(found, list) and all(isinstance(tool, dict) for tool in found)
    return drop_none(found) if is_list and encoder.shows_tools else ()


def _parse_tools(row: DataRow) -> Any:
    """Return the column of tools; files with columns of one type hold it as JSON."""
    found = row.others.get("tools")
    if isinstance(found, str):
        with suppress(ValueError):
            found = orjson.loads(found)
    return found


def drop_none(value: Any) -> Any:
    """Take out what a table has only because other rows have it."""
    if isinstance(value, dict):
        return {key: drop_none(each) for key, each in value.items() if each is not None}
    return [drop_none(each) for each in value] if isinstance(value, list) else value


def _encode(
    config: TrainingConfig,
    stage: Stage,
    dataset: Dataset,
    encoder: ChatEncoder,
    limit: int,
    counts: _Counts,
    lines: BinaryIO,
) -> Iterator[tuple[DataRow, _Row]]:
    """Give the rows that can be trained on, and write a line for each that cannot."""
    encode = _encode_conversations if stage == "sft" else _encode_pairs
    for batch in dataset.read_batches():
        counts.n_rows += len(batch.rows) + len(batch.faults)
        left: list[tuple[str, Unfit]] = [_from_fault(fault) for fault in batch.faults]
        for row, found in zip(batch.rows, encode(batch.rows, encoder), strict=True):
            _count_origin(row, counts)
            fitted = found if isinstance(found, Unfit) else _fit(found, limit, config.too_long, counts)
            if isinstance(fitted, Unfit):
                left.append((row.id, fitted))
                continue
            counts.n_without_tools += bool(_parse_tools(row)) and not _read_tools(row, encoder)
            n_tokens = sum(map(len, fitted.values())) + (len(fitted["prompt_ids"]) if stage == "dpo" else 0)
            n_tokens = len(fitted["input_ids"]) if stage == "sft" else n_tokens
            yield row, _Row(row.id, place_row(row.id, config.seed), fitted, n_tokens, _count_learnt(fitted))
        for row_id, unfit in left:
            counts.left_out[unfit.reason] += 1
            counts.example = counts.example or unfit.detail
            line = {"id": row_id, "reason": unfit.reason, "detail": unfit.detail}
            lines.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def place_row(row_id: str, seed: int) -> float:
    """Return where a row stands by the hash of its id, in [0, 1)."""
    digest = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def _from_fault(fault: Fault) -> tuple[str, Unfit]:
    return f"{fault.file}:{fault.number}", Unfit(fault.reason, fault.detail)


def _count_origin(row: DataRow, counts: _Counts) -> None:
    for model in (row.model, row.others.get("rejected_model")):
        if isinstance(model, str) and model:
            counts.models[model] += 1
    kind = row.others.get("kind")
    if isinstance(kind, str) and kind and (kind in counts.kinds or len(counts.kinds) < 5):
        counts.kinds[kind] += 1


def _encode_conversations(rows: Sequence[DataRow], encoder: ChatEncoder) -> list[dict[str, list[int]] | Unfit]:
    encoded = encoder.encode([row.messages for row in rows], [_read_tools(row, encoder) for row in rows])
    return [each if isinstance(each, Unfit) else _label(row, each) for row, each in zip(rows, encoded, strict=True)]


def _label(row: DataRow, encoded: Encoded) -> dict[str, list[int]] | Unfit:
    answers = [turn for turn in row.messages if turn.role == "assistant"]
    shown = {number for number, turn in enumerate(answers) if isinstance(turn, ShownTurn)}
    if len(shown) == len(answers):
        return Unfit("nothing to learn", "all its assistant turns have weight 0")
    return {"input_ids": encoded.ids, "labels": encoded.labels(shown)}


def _encode_pairs(rows: Sequence[DataRow], encoder: ChatEncoder) -> list[dict[str, list[int]] | Unfit]:
    sides: list[Turns] = [(*row.messages, *side) for row in rows for side in (row.chosen, row.rejected)]
    encoded = encoder.encode(sides, [tools for row in rows for tools in [_read_tools(row, encoder)] * 2])
    return [_join_sides(row, encoded[2 * number], encoded[2 * number + 1]) for number, row in enumerate(rows)]


def _join_sides(row: DataRow, chosen: Encoded | Unfit, rejected: Encoded | Unfit) -> dict[str, list[int]] | Unfit:
    for side in (row.chosen, row.rejected):
        if len(side) != 1 or side[0].role != "assistant":
            return Unfit("several turns", f"a side of it has {len(side)} turns, not one answer")
    if row.chosen[0].content.strip() == row.rejected[0].content.strip():
        return Unfit("same sides", "its chosen and its rejected answer are the same")
    if isinstance(chosen, Unfit):
        return chosen
    if isinstance(rejected, Unfit):
        return rejected
    (start, end), (other_start, other_end) = chosen.turns[-1], rejected.turns[-1]
    if chosen.ids[:start] != rejected.ids[:other_start]:
        return Unfit("template", "the chat template shows the prompt differently before its two answers")
    return {
        "prompt_ids": chosen.ids[:start],
        "chosen_ids": chosen.ids[start:end],
        "rejected_ids": rejected.ids[other_start:other_end],
    }


def _fit(columns: dict[str, list[int]], limit: int, too_long: str, counts: _Counts) -> dict[str, list[int]] | Unfit:
    """Cut a row that is too long, or say that it is."""
    prompt = columns.get("prompt_ids", [])
    sides = [columns[name] for name in columns if name != "prompt_ids"]
    n_tokens = len(prompt) + max(map(len, sides))
    counts.longest = max(counts.longest, n_tokens)
    if n_tokens <= limit:
        return columns
    if too_long == "drop":
        return Unfit("too long", f"it has {n_tokens:,} tokens, and {limit:,} are allowed")
    room = limit - len(prompt)
    cut = {name: ids if name == "prompt_ids" else ids[: max(room, 0)] for name, ids in columns.items()}
    if not _count_learnt(cut) or cut.get("chosen_ids") == cut.get("rejected_ids", []):
        return Unfit("too long", f"of its {n_tokens:,} tokens the first {limit:,} hold nothing to learn")
    counts.n_cut += 1
    return cut


def _count_learnt(columns: dict[str, list[int]]) -> int:
    if "labels" in columns:
        return sum(label >= 0 for label in columns["labels"])
    return len(columns["chosen_ids"]) + len(columns["rejected_ids"])


class _Writer:
    """Writes rows into a Parquet file, some thousands of tokens at a time; whole or not at all."""

    def __init__(self, path: Path, stage: Stage) -> None:
        import pyarrow as pa

        names = COLUMNS[stage]
        tokens = pa.list_(pa.int32())
        self._schema = pa.schema([("id", pa.string()), ("place", pa.float64()), *((name, tokens) for name in names)])
        self._path = path
        self._rows: list[_Row] = []

    def __enter__(self) -> "_Writer":
        import pyarrow.parquet as pq

        self._file = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._file.close()

    def add(self, row: _Row) -> None:
        self._rows.append(row)
        if len(self._rows) == 1_000:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            columns = {name: [row.columns[name] for row in self._rows] for name in self._rows[0].columns}
            ids, places = [row.id for row in self._rows], [row.place for row in self._rows]
            self._file.write_table(pa.table({"id": ids, "place": places, **columns}, schema=self._schema))
        self._rows.clear()


def read_rows(out: Path, stage: Stage, border: float, *, is_eval: bool) -> Any:
    """Return the rows that are trained on, or those held out, as a `datasets.Dataset` in memory, in the data's order.

    Raises:
        RunError: they cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset as Table

    with boundary(RunError, f"read {str(out / ROWS)!r}"):
        table = pq.read_table(out / ROWS)
        table = table.filter(pa.array((table["place"].to_numpy() <= border) == is_eval))
    return Table(table.select(COLUMNS[stage]).combine_chunks())
