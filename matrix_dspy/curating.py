"""A data set of anybody's through the same filters as a run's own rows, with reasons, card and report.

The result does not depend on the order of the rows or on the number of workers: every row's rank is a hash of itself,
and an earlier rank wins over its twin.
"""

import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import polars as pl
from rapidfuzz.distance import Levenshtein

from matrix_dspy.bulk.folder import RunFolder
from matrix_dspy.config import Config, KindConfig, apply_kind, load_kind
from matrix_dspy.curation.base import Candidate
from matrix_dspy.curation.benchmarks import Benchmark, hash_benchmarks
from matrix_dspy.curation.code import check_code
from matrix_dspy.curation.contamination import ContaminationIndex, find_overlaps
from matrix_dspy.curation.duplicates import find_duplicates
from matrix_dspy.curation.filters import LengthFilter, RefusalFilter, SelfContainedFilter, read_refusal_version
from matrix_dspy.curation.language import LanguageFilter, is_english
from matrix_dspy.curation.tagging import find_root_verb
from matrix_dspy.delivery.reading import DataRow, Dataset, Fault, ShownTurn, read_dataset
from matrix_dspy.engine.embedding import build_embedder
from matrix_dspy.errors import ConfigError
from matrix_dspy.gates import check_language, check_sandbox, find_nearest, load_benchmarks
from matrix_dspy.report.card import write_curated_card
from matrix_dspy.report.page import write_report
from matrix_dspy.synthesis.thinking import Thought, find_fault, split_thinking
from matrix_dspy.types import Drop, Example, Instruction, Message, Overlap, PairExample, Rejected, Response, make_id

log = logging.getLogger("matrix_dspy")

STAGE = "curation"
CHUNK = 500
"""Rows a worker looks at before it answers."""
TELL_S = 20.0
"""Seconds between two words on how far it is."""


Verdict = tuple[Drop | None, Drop | None, str | None]
"""Why the instruction and why the answer of a row is dropped, and the instruction's root verb."""


@dataclass(slots=True)
class Item:
    """One row of the data set on its way."""

    id: str
    """Hash of file name, own id and words: the same wherever the row stands."""
    source: str
    row: DataRow
    drop: Drop | None = None
    is_answers_fault: bool = False
    """Whether it was the answer that was dropped, not the instruction."""
    root_verb: str | None = None

    @property
    def instruction_id(self) -> str:
        """Id of its instruction."""
        return f"instruction-{self.id}"

    @property
    def response_id(self) -> str:
        """Id of its response."""
        return f"response-{self.id}"


@dataclass(frozen=True, slots=True)
class Curated:
    """What became of a data set."""

    path: Path
    n_read: int
    n_kept: int
    reasons: Mapping[str, int]
    """Dropped rows by reason, most frequent first."""
    n_contaminated: int
    """Rows that share something with an evaluation set, whatever they were dropped for."""
    report: Path = field(default_factory=Path)

    def lines(self) -> Iterator[str]:
        """Yield what a terminal shows."""
        yield f"{self.n_kept:,} of {self.n_read:,} rows kept: {self.path}"
        for reason, count in self.reasons.items():
            yield f"dropped:  {count:,}, {reason}"
        if self.n_contaminated:
            yield f"contaminated, for this reason or another: {self.n_contaminated:,}"
        if self.n_read and not self.n_kept:
            (reason, count), *_ = self.reasons.items()
            yield f"nothing is left; most rows ({count:,}) were dropped for {reason!r}"
        yield f"card:     {self.path}/README.md"
        yield f"report:   {self.report}"


def curate_files(
    sources: Sequence[Path], path: Path, config: Config, columns: Mapping[str, str], n_workers: int | None = None
) -> Curated:
    """Filter the rows of data files and write what is kept and what is not into the run folder `path`.

    Raises:
        TableError: a file cannot be read, or holds no conversations or pairs.
        ConfigError: a filter or a benchmark cannot be set up.
        RunError: the folder holds another run, or cannot be written.
    """
    started, began = time.monotonic(), datetime.now(UTC)
    datasets = [read_dataset(source, columns) for source in sources]
    shape = _find_shape(datasets)
    kind = _choose_kind(config, shape)
    config = apply_kind(config, kind)
    check_language(config)
    check_sandbox(config, kind)
    benchmarks = load_benchmarks(config)
    items, faults = _read_items(datasets)
    if n_tools := sum(bool(item.row.others.get("tools")) for item in items):
        log.warning("%s rows bring tools, which this data set does not keep", f"{n_tools:,}")
    models = sorted({item.row.model for item in items if item.row.model}) or ["unknown"]
    inputs = {f"source_{place}": _hash_file(source) for place, source in enumerate(sources)}
    if config.curation.benchmarks:
        inputs["benchmarks"] = hash_benchmarks(Path(config.curation.benchmarks), config.curation.benchmark_columns)
    config = config.model_copy(update={"n": max(1, len(items)), "recipe": "curate"})
    with RunFolder.open(path, "curate", config, {"main": ", ".join(models)[:200]}, inputs=inputs) as folder:
        _judge_texts(items, config, kind, shape, n_workers or os.cpu_count() or 1)
        _drop_duplicates(items, config, n_workers or os.cpu_count() or 1)
        overlaps = _drop_contaminated(items, config, benchmarks, n_workers or os.cpu_count() or 1)
        kept = [item for item in items if item.drop is None]
        _write_tables(folder, items, faults, overlaps, config, kind, shape)
        reasons = Counter(item.drop.reason for item in items if item.drop)
        reasons += Counter(fault.reason for _, fault in faults)
        n_read = len(items) + len(faults)
        told = _describe(folder, config, kind, models, benchmarks, began, time.monotonic() - started, n_read, len(kept))
        folder.write_figures(told)
        folder.write_state({"reason": "complete", "n": config.n, "kept": len(kept)})
    write_curated_card(path)
    hit = {overlap.row_id.partition("-")[2] for overlap in overlaps if overlap.kind != "nearest"}
    return Curated(path, n_read, len(kept), dict(reasons.most_common()), len(hit), write_report(path))


def _find_shape(datasets: Sequence[Dataset]) -> str:
    """Return the shape that all files are of."""
    if len({dataset.shape for dataset in datasets}) > 1:
        raise ConfigError("some files hold conversations and some hold pairs; curate them apart")
    return datasets[0].shape


def _choose_kind(config: Config, shape: str) -> KindConfig:
    """Return the kind that was asked for, which must be of the rows' shape, or else the usual one of that shape."""
    usual = "dpo" if shape == "pair" else "sft"
    is_asked = "kind" in config.synthesis.model_fields_set
    kind = load_kind(config.synthesis.kind if is_asked else usual)
    if (kind.shape == "pair") != (shape == "pair"):
        held = "pairs" if shape == "pair" else "conversations"
        raise ConfigError(f"the rows are {held}, and kind {kind.name!r} is not; give --kind {usual}, or none")
    return kind


def _read_items(datasets: Sequence[Dataset]) -> tuple[list[Item], list[tuple[str, Fault]]]:
    """Read every file, in an order that hangs on the rows alone."""
    items: list[Item] = []
    faults: list[tuple[str, Fault]] = []
    seen: Counter[str] = Counter()
    for dataset in datasets:
        for batch in dataset.read_batches():
            faults += [(dataset.name, fault) for fault in batch.faults]
            for row in batch.rows:
                turns = [f"{turn.role}:{turn.content}" for turn in (*row.messages, *row.chosen, *row.rejected)]
                key = make_id("row", dataset.name, row.id, *turns).partition("-")[2]
                seen[key] += 1
                key = key if seen[key] == 1 else make_id("row", key, seen[key]).partition("-")[2]
                items.append(Item(key, dataset.name, row))
    return sorted(items, key=lambda item: item.id), faults


def _judge_texts(items: Sequence[Item], config: Config, kind: KindConfig, shape: str, n_workers: int) -> None:
    """Ask every filter that looks at one row by itself, in worker processes where there is enough to do."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    settings = (config, kind, shape)
    if n_workers == 1 or len(chunks) == 1:
        _set_up_worker(*settings)
        found = map(_judge_chunk, ([item.row for item in chunk] for chunk in chunks))
        _note(chunks, found)
        return
    # forked workers would inherit threads of libraries in the middle of their work
    with ProcessPoolExecutor(
        n_workers, mp_context=get_context("spawn"), initializer=_set_up_worker, initargs=settings
    ) as pool:
        _note(chunks, pool.map(_judge_chunk, [[item.row for item in chunk] for chunk in chunks]))


def _note(chunks: Sequence[Sequence[Item]], found: Iterable[list[Verdict]]) -> None:
    n_rows, n_seen, told = sum(map(len, chunks)), 0, time.monotonic()
    for chunk, verdicts in zip(chunks, found, strict=True):
        n_seen += len(chunk)
        if time.monotonic() - told > TELL_S and n_seen < n_rows:
            told = time.monotonic()
            log.warning("%s of %s rows looked at", f"{n_seen:,}", f"{n_rows:,}")
        for item, (asked, answered, verb) in zip(chunk, verdicts, strict=True):
            item.drop, item.is_answers_fault = asked or answered, asked is None and answered is not None
            item.root_verb = verb


class _Worker:
    """The filters of one process."""

    def __init__(self, config: Config, kind: KindConfig, shape: str) -> None:
        self.kind, self.shape, self.off = kind, shape, config.curation.off
        self.runs_tests = config.curation.run_tests
        curation = config.curation
        self.refusal = RefusalFilter()
        self.length = LengthFilter(curation.min_words, curation.max_words)
        spoken = config.synthesis.language
        self.language = None if "language" in self.off else LanguageFilter(spoken)
        self.is_english = is_english(spoken)
        self.contained = SelfContainedFilter()

    def judge_instruction(self, row: DataRow) -> Drop | None:
        """Return why an instruction is dropped by what it holds itself, in the order of METHOD 3.4."""
        asked = Candidate("", _first_ask(row))
        drop = self._ask("refusal", self.refusal, asked)
        drop = drop or self._ask("length", self.length, asked)
        drop = drop or self._ask("language", self.language, asked)
        return drop or self._ask("self-contained", self.contained, asked)

    def judge_answer(self, row: DataRow) -> Drop | None:
        """Return why an answer is dropped."""
        answered, drop = row.response, None
        if "safety" not in self.kind.checks:
            drop = self._ask(
                "refusal",
                self.refusal,
                Candidate("", split_thinking(answered, is_wanted=self.kind.shape == "thinking").answer),
            )
        if drop is None and self.language is not None and answered:
            drop = self.language.judge_response(row.instruction, answered)
        return drop or self._check_kind(row, answered)

    def _split(self, answered: str) -> Thought:
        return split_thinking(answered, is_wanted=self.kind.shape == "thinking")

    def _ask(self, name: str, each: Any, candidate: Candidate) -> Drop | None:
        return None if name in self.off else each.judge(candidate)

    def _check_kind(self, row: DataRow, answered: str) -> Drop | None:
        if not answered.strip():
            return Drop("empty", "there is no answer")
        if any(isinstance(turn, ShownTurn) for turn in row.messages):
            return Drop("other weight", "a turn of it has weight 0, which this data set could not say")
        if "code" in self.kind.checks and (drop := check_code(answered, runs_tests=self.runs_tests).drop) is not None:
            return drop
        if self.kind.shape == "thinking" and (fault := find_fault(self._split(answered), *self.kind.thinking_tokens)):
            return Drop(*fault)
        if self.shape == "pair":
            other = "\n\n".join(turn.content for turn in row.rejected)
            alike = Levenshtein.normalized_similarity(answered, other)
            if alike > self.kind.most_alike:
                return Drop("alike", f"its sides are {alike:.3f} alike; at most {self.kind.most_alike:g} is kept")
        return None


_worker: _Worker | None = None


def _set_up_worker(config: Config, kind: KindConfig, shape: str) -> None:
    global _worker
    _worker = _Worker(config, kind, shape)


def _judge_chunk(rows: Sequence[DataRow]) -> list[Verdict]:
    assert _worker is not None
    verdicts: list[Verdict] = []
    for row in rows:
        asked = _worker.judge_instruction(row)
        answered = _worker.judge_answer(row) if asked is None else None
        verdicts.append((asked, answered, find_root_verb(_first_ask(row)) if _worker.is_english else None))
    return verdicts


def _first_ask(row: DataRow) -> str:
    """Return the first user turn: what is called the instruction."""
    return next((turn.content for turn in row.messages if turn.role == "user"), row.instruction)


def _drop_duplicates(items: Sequence[Item], config: Config, n_workers: int) -> None:
    """Among the rows still there, keep the first by rank of each set of twins."""
    curation = config.curation
    left = [item for item in items if item.drop is None]
    if not left:
        return
    is_real = config.embedder != "tfidf" or curation.tfidf_semantic
    asked = [_first_ask(item.row) for item in left]
    embed = build_embedder(config.embedder, asked, config.seed) if is_real else None
    found = find_duplicates(
        asked,
        [item.id for item in left],
        list(range(len(left))),  # sorted by a hash of each row
        n_shingle=curation.shingle_words,
        threshold=None if "near duplicate" in curation.off else curation.near_duplicate,
        seed=config.seed,
        exact="exact duplicate" not in curation.off,
        embed=None if "semantic duplicate" in curation.off else embed,
        semantic_threshold=curation.semantic_duplicate,
        n_workers=n_workers if len(left) > 10 * CHUNK else 1,
    )
    by_id = {item.id: item for item in left}
    for row in found.iter_rows(named=True):
        by_id[row["id"]].drop = Drop(row["reason"], row["detail"], f"instruction-{row['twin']}", row["score"])


def _drop_contaminated(
    items: Sequence[Item], config: Config, benchmarks: Sequence[Benchmark], n_workers: int
) -> list[Overlap]:
    """Look at every row, dropped or not, and drop what shares something with an evaluation set."""
    if not benchmarks:
        return []
    index = ContaminationIndex(benchmarks)
    asked = _list_turns(items, is_answer=False)
    answered = _list_turns(items, is_answer=True)
    frames = [
        find_overlaps(asked, "text", "id", index, n_workers, field="instruction"),
        find_overlaps(answered, "text", "id", index, n_workers, field="response"),
    ]
    rows = [row for frame in frames for row in frame.iter_rows(named=True)]
    overlaps = list({row["overlap_id"]: Overlap(**row) for row in rows}.values())
    first: dict[str, Overlap] = {}
    for overlap in sorted(overlaps, key=lambda each: (each.field, each.kind != "whole text", -len(each.shared))):
        first.setdefault(overlap.row_id.partition("-")[2], overlap)
    for item in items:
        if item.drop is None and (overlap := first.get(item.id)) is not None:
            item.drop = Drop("contamination", _say_overlap(overlap), f"{overlap.benchmark}/{overlap.item}")
            item.is_answers_fault = overlap.field == "response"
    return overlaps + find_nearest(
        _list_turns([i for i in items if i.drop is None], is_answer=False), config, benchmarks
    )


def _list_turns(items: Sequence[Item], *, is_answer: bool) -> pl.DataFrame:
    """Return every user's or every assistant's turn by itself, under its row's id: a short one is found as a whole."""
    ids: list[str] = []
    texts: list[str] = []
    for item in items:
        turns = (*item.row.messages, *item.row.chosen, *item.row.rejected)
        own = [turn.content for turn in turns if (turn.role == "assistant") == is_answer]
        ids += [item.response_id if is_answer else item.instruction_id] * len(own)
        texts += own
    return pl.DataFrame({"id": ids, "text": texts}, schema={"id": pl.String, "text": pl.String})


def _say_overlap(overlap: Overlap) -> str:
    what = f"the run {overlap.shared!r}" if overlap.shared else f"its {overlap.kind}"
    return f"its {overlap.field} shares {what} with {overlap.benchmark}, item {overlap.item}"


def _write_tables(
    folder: RunFolder,
    items: Sequence[Item],
    faults: Sequence[tuple[str, Fault]],
    overlaps: Sequence[Overlap],
    config: Config,
    kind: KindConfig,
    shape: str,
) -> None:
    folder.write_table(
        "instructions", [_build_instruction(item, rank, config, kind) for rank, item in enumerate(items)]
    )
    folder.write_table("responses", [_build_response(item) for item in items])
    rejected = [
        Rejected(
            noun="response" if item.is_answers_fault else "instruction",
            id=item.response_id if item.is_answers_fault else item.instruction_id,
            stage=STAGE,
            reason=item.drop.reason,
            detail=item.drop.detail,
            raw_text=item.row.response if item.is_answers_fault else _first_ask(item.row),
            twin=item.drop.twin,
            score=item.drop.score,
        )
        for item in items
        if item.drop is not None
    ]
    rejected += [
        Rejected(
            noun="row", id=f"{name}/{fault.number}", stage=STAGE, reason=fault.reason, detail=fault.detail, raw_text=""
        )
        for name, fault in faults
    ]
    folder.write_table("rejected", rejected)
    folder.write_table("overlaps", overlaps)
    examples = [_build_example(item, kind, shape) for item in items if item.drop is None]
    folder.write_dataset(kind.name, examples, PairExample if shape == "pair" else Example)


def _build_instruction(item: Item, rank: int, config: Config, kind: KindConfig) -> Instruction:
    return Instruction(
        instruction_id=item.instruction_id,
        scenario_id="",
        agent_id="",
        group_id="",
        rank=rank,
        kind=kind.name,
        type=None,
        category="",
        complexity="",
        style="",
        language=config.synthesis.language,
        text=_first_ask(item.row),
    )


def _build_response(item: Item) -> Response:
    return Response(
        response_id=item.response_id,
        instruction_id=item.instruction_id,
        part="answer",
        sample=0,
        model=item.row.model,
        text=item.row.response,
    )


def _build_example(item: Item, kind: KindConfig, shape: str) -> Example | PairExample:
    sourced: dict[str, Any] = {
        "example_id": f"example-{item.id}",
        "instruction_id": item.instruction_id,
        "response_id": item.response_id,
        "scenario_id": "",
        "agent_id": "",
        "group_id": "",
        "profile_id": f"{item.source}/{item.row.id}",
        "kind": kind.name,
        "type": None,
        "category": "",
        "root_verb": item.root_verb,
        "model": item.row.model,
    }
    if shape != "pair":
        return Example(**sourced, messages=_copy(item.row.messages))
    return PairExample(
        **sourced,
        prompt=_copy(item.row.messages),
        chosen=_copy(item.row.chosen),
        rejected=_copy(item.row.rejected),
        rejected_id=f"response-{item.id}-rejected",
        rejected_model="",
    )


def _copy(turns: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(turns)


def _hash_file(path: Path) -> str:
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _describe(
    folder: RunFolder,
    config: Config,
    kind: KindConfig,
    models: Sequence[str],
    benchmarks: Sequence[Benchmark],
    began: datetime,
    seconds: float,
    n_read: int,
    n_kept: int,
) -> dict[str, Any]:
    return {
        "command": "curate",
        "name": folder.path.name,
        "describe": "a data set from elsewhere, put through the filters",
        "model": ", ".join(models)[:200],
        "models": {"main": ", ".join(models)[:200]},
        "reason": "complete",
        "is_final": True,
        "began": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "n_wanted": n_read,
        "n_kept": n_kept,
        "n_candidates": n_read,
        "benchmarks": [{"name": each.name, "items": each.n_items, "has_text": bool(each.items)} for each in benchmarks],
        "refusal_version": read_refusal_version(),
    }
