"""Decontamination: which texts share a run of words with an item of an evaluation set, or are one (METHOD 3.4).

Words are runs of letters and digits in compatibility form, without case; what stands between them does not matter.
Apostrophes, underscores and invisible marks stand inside words and are left out. A letter of a script that is written
without blanks (Chinese, Thai, ...) is a word of its own and counts half. Since a copy may have lost its punctuation,
every benchmark text is known in three readings: as said, with apostrophes and underscores as blanks, and with all
punctuation deleted, where words that have grown together count as many as they were.

Runs are looked up by 64-bit hashes, a few array operations for thousands of texts at once; whatever is found is then
compared word for word, so that a collision of hashes can never drop a row.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Literal

import numpy as np
import polars as pl

from matrix_dspy.bulk.tables import build_frame
from matrix_dspy.curation.base import Candidate, Drop
from matrix_dspy.curation.benchmarks import (
    Benchmark,
    Item,
    find_benchmark_files,
    hash_benchmarks,
    hash_text,
    read_benchmarks,
)
from matrix_dspy.engine.embedding import Embedder
from matrix_dspy.errors import ConfigError
from matrix_dspy.types import Overlap, make_id

__all__ = [
    "Benchmark",
    "BenchmarkSummary",
    "ContaminationFilter",
    "ContaminationIndex",
    "Item",
    "find_benchmark_files",
    "find_overlaps",
    "hash_benchmarks",
    "read_benchmarks",
    "summarise_overlaps",
    "warn_nearest",
]

Field = Literal["instruction", "response"]
Part = Literal["prompt", "answer", "code"]
_Reading = tuple[str, list[int]]
"""A text to take words from, and how many words each of them was where punctuation between them is deleted."""
N_WORDS = 13
"""Words in a run that counts as a leak, as in METHOD 3.4."""
MOST_ITEMS = 20
"""Items named for one text; a phrase that many items share would else fill the table."""
MOST_LOST = 4
"""Words that a run may have lost where a copy lost its punctuation and words grew together."""
MOST_SHARED = 40
"""Words of a shared run that are written down."""
BATCH_CHARS = 2**18
"""Characters hashed at once, so that the arrays stay in the processor's cache."""

_NONE, _LETTER, _LONE, _GONE = 0, 1, 2, 3
"""Classes of characters: between words, in a word, a word by itself, left out."""
_APOSTROPHES = "'‘’‛ʼʹ_"
_LONE_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
# Any odd number of 64 bits has an inverse, which turns differences of prefix sums into hashes.
_BASE = 0x9E3779B97F4A7C15
_MIXER = np.uint64(0xBF58476D1CE4E5B9)
_SPLIT_MARKS = str.maketrans(dict.fromkeys(_APOSTROPHES, " "))


@dataclass(frozen=True, slots=True)
class Match:
    """An item of a benchmark that a text shares words with."""

    benchmark: str
    item: str
    part: Part
    kind: Literal["run of words", "whole text", "hash"]
    n_words: int
    """Words shared; 0 for a hash."""
    shared: str
    """The words shared, the first `MOST_SHARED` of them; empty for whole texts and hashes."""


@dataclass(frozen=True, slots=True)
class _Text:
    """One reading of a text of a benchmark."""

    benchmark: str
    item: str
    part: Part
    words: str = ""
    """Its words, parted by single blanks."""
    worths: tuple[float, ...] | None = None
    """What each word counts; None is 1 for all. More where lost punctuation made one word of several."""

    def count(self, place: int, length: int) -> float:
        """Return what a run of its words counts."""
        return length if self.worths is None else sum(self.worths[place : place + length])


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of `length` words: their hashes, the texts they stand in, and the places there."""

    length: int
    keys: np.ndarray
    texts: np.ndarray
    places: np.ndarray


class _Sieve:
    """Lets through all hashes of runs of one length, and few others; small enough for the processor's cache."""

    def __init__(self, length: int, keys: np.ndarray) -> None:
        self.length = length
        bits = min(max(len(keys) * 16, 2**10).bit_length(), 26)
        self._shift = np.uint64(64 - bits)
        self._has = np.zeros(2**bits, bool)
        self._has[keys >> self._shift] = True

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the places of the hashes let through."""
        return np.flatnonzero(self._has[keys >> self._shift])


class ContaminationIndex:
    """All runs of `n_words` words, whole texts and hashes of evaluation sets; `find` asks for one text.

    A prompt shorter than `n_words` is found only where it is the whole text. Reference answers in words count like
    prompts, if they are that long: who trains on the answers has seen the test too, but "42" says nothing of where it
    came from. Reference code counts only where all of it stands in a text: its parts are what everybody writes (the
    loops of a bubble sort are 31 words).
    """

    def __init__(self, benchmarks: Sequence[Benchmark], n_words: int = N_WORDS) -> None:
        if n_words < 1:
            raise ConfigError(f"a run of {n_words} words is none; give 1 or more")
        self.n_words = n_words
        self._texts: list[_Text] = []
        self._hashes: dict[bytes, list[tuple[str, str]]] = {}
        for benchmark in benchmarks:
            for number, digest in enumerate(benchmark.hashes):
                self._hashes.setdefault(digest, []).append((benchmark.name, str(number)))
        self._add_texts(benchmarks)

    def find(self, row_id: str, field: Field, text: str) -> list[Overlap]:
        """Return what one text shares with the benchmarks, the longest first, `MOST_ITEMS` at the most."""
        return [_build_overlap(row_id, field, match) for match in self.match(text)[:MOST_ITEMS]]

    def match(self, text: str) -> list[Match]:
        """Return every item that `text` shares words with: whole texts first, then the longest runs."""
        return dict(self.match_texts([text])).get(0, [])

    def match_texts(self, texts: Sequence[str]) -> Iterator[tuple[int, list[Match]]]:
        """Give the place and the matches of each text that has any."""
        batch = _Batch(texts)
        hits: dict[int, list[tuple[int, int]]] = {}
        for sieve in self._sieves:
            keys = batch.hash_all_runs(sieve.length)
            near = sieve.find(keys)
            keys = keys[near]
            lows = np.searchsorted(self._keys, keys)
            is_hit = self._keys[np.minimum(lows, len(self._keys) - 1)] == keys
            is_hit[is_hit] = batch.lie_in_one_row(near[is_hit], sieve.length)
            places, lows = near[is_hit], lows[is_hit]
            rows = batch.find_rows(places)
            for row, place, low in zip(
                rows.tolist(), (places - batch.bounds[rows]).tolist(), lows.tolist(), strict=True
            ):
                hits.setdefault(row, []).append((place, low))
        shorts = self._find_short(batch)
        for row, text in enumerate(texts):
            digest = hash_text(text) if self._hashes else b""
            if row in hits or row in shorts or digest in self._hashes:
                words = batch.read_words(row)
                found = [*self._match_runs(words, hits.get(row, ())), *self._match_whole(words, shorts.get(row))]
                found += [Match(name, item, "prompt", "hash", 0, "") for name, item in self._hashes.get(digest, ())]
                if best := _keep_best(found):
                    yield row, best

    def _add_texts(self, benchmarks: Iterable[Benchmark]) -> None:
        readings: list[_Reading] = []
        owners: list[int] = []
        for owner, (benchmark, item, part, text) in enumerate(_list_texts(benchmarks)):
            for reading in _list_readings(text):
                self._texts.append(_Text(benchmark, item, part))
                readings.append(reading)
                owners.append(owner)
        self._short: dict[int, list[int]] = {}
        runs: list[_Runs] = []
        for first, batch in _cut_batches([text for text, _ in readings]):
            worths = batch.weigh_words([counts for _, counts in readings[first : first + batch.n_rows]])
            for row, own in enumerate(np.split(worths, batch.bounds[1:-1])):
                text = self._texts[first + row]
                words, count = " ".join(batch.read_words(row)), None if (own == 1).all() else tuple(own.tolist())
                self._texts[first + row] = replace(text, words=words, worths=count)
            for row, key in batch.hash_short(self.n_words):
                if self._texts[first + row].part == "prompt":
                    self._short.setdefault(key, []).append(first + row)
            for length, places, keys in _list_runs(batch, worths, self.n_words):
                rows = batch.find_rows(places)
                runs.append(_Runs(length, keys, rows + first, places - batch.bounds[rows]))
        self._set_runs(runs, np.array(owners, np.int64))

    def _set_runs(self, runs: Sequence["_Runs"], owners: np.ndarray) -> None:
        """Keep the first place of each run in each text, sorted by the run's hash."""
        by_length: dict[int, list[np.ndarray]] = {}
        for each in runs:
            by_length.setdefault(each.length, []).append(each.keys)
        joined = {length: np.concatenate(keys) for length, keys in by_length.items()}
        self._sieves = [_Sieve(length, keys) for length, keys in sorted(joined.items()) if len(keys)]
        nothing = _Runs(0, np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))
        keys = np.concatenate([each.keys for each in (nothing, *runs)])
        texts = np.concatenate([each.texts for each in (nothing, *runs)])
        places = np.concatenate([each.places for each in (nothing, *runs)])
        order = np.lexsort((places, texts, owners[texts], keys))
        keys, texts, places = keys[order], texts[order], places[order]
        owner = owners[texts]
        is_first = np.ones(len(keys), bool)
        is_first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
        self._keys, self._run_texts, self._run_places = keys[is_first], texts[is_first], places[is_first]

    def _find_short(self, batch: "_Batch") -> dict[int, list[int]]:
        if not self._short:
            return {}
        return {row: self._short[key] for row, key in batch.hash_short(self.n_words) if key in self._short}

    def _match_runs(self, words: list[str], hits: Iterable[tuple[int, int]]) -> Iterator[Match]:
        """Compare word for word from each place where a run was met, and go on as far as the words are equal."""
        known: dict[int, list[str]] = {}
        reached: dict[tuple[int, int], int] = {}
        longest: dict[int, tuple[int, int, int]] = {}
        seen: set[int] = set()
        for start, low in sorted(hits):
            if low in seen:
                continue
            seen.add(low)
            for post in range(low, int(np.searchsorted(self._keys, self._keys[low], "right"))):
                number, place = int(self._run_texts[post]), int(self._run_places[post])
                if start < reached.get((number, start - place), 0):
                    continue
                other = known.setdefault(number, self._texts[number].words.split(" "))
                length = _count_equal(words, start, other, place)
                reached[number, start - place] = start + length
                if self._is_leak(self._texts[number], words, other, place, length):
                    n_words = max(length, int(self._texts[number].count(place, length)))
                    longest[number] = max(longest.get(number, (0, 0, 0)), (n_words, length, -start))
        for number, (n_words, length, start) in longest.items():
            text = self._texts[number]
            if known[number] == words:
                yield Match(text.benchmark, text.item, text.part, "whole text", n_words, "")
            else:
                run = words[-start : length - start]
                yield Match(text.benchmark, text.item, text.part, "run of words", n_words, _show_run(run))

    def _is_leak(self, text: _Text, words: list[str], other: list[str], place: int, length: int) -> bool:
        """Whether a run counts: it is long enough or a whole prompt, and for code all of it."""
        is_all = length == len(other)
        is_long = text.count(place, length) >= self.n_words
        if text.part == "prompt" and is_all and length == len(words):
            return True
        return is_long and (is_all or text.part != "code")

    def _match_whole(self, words: list[str], numbers: Iterable[int] | None) -> Iterator[Match]:
        joined = " ".join(words)
        for number in numbers or ():
            text = self._texts[number]
            if text.words == joined:
                yield Match(text.benchmark, text.item, text.part, "whole text", len(words), "")


class ContaminationFilter:
    """Drops a text that shares a run of words with a benchmark, or is one of its texts; keeps what it found.

    Without `field`, a candidate is a response where its id says so, and else an instruction.
    """

    def __init__(self, index: ContaminationIndex, field: Field | None = None) -> None:
        self.index = index
        self.field: Field | None = field
        self._found: dict[str, Overlap] = {}

    @property
    def overlaps(self) -> list[Overlap]:
        """What was found so far, in the order of ids."""
        return [self._found[key] for key in sorted(self._found)]

    def judge(self, candidate: Candidate) -> Drop | None:
        matches = self.index.match(candidate.text)
        if not matches:
            return None
        said: Field = "response" if candidate.id.startswith("response-") else "instruction"
        for match in matches[:MOST_ITEMS]:
            overlap = _build_overlap(candidate.id, self.field or said, match)
            self._found[overlap.overlap_id] = overlap
        return Drop("contamination", _describe(matches), f"{matches[0].benchmark}/{matches[0].item}")


def find_overlaps(
    frame: pl.DataFrame,
    text_column: str,
    id_column: str,
    index: ContaminationIndex,
    n_workers: int = 2,
    *,
    field: Field = "instruction",
) -> pl.DataFrame:
    """Return a table of `Overlap` rows for all texts of a frame, sorted by id; memory does not grow with the frame.

    The same for any order of rows and any number of workers, which are threads: most of the work is done in arrays.
    """

    def ask(batch: pl.DataFrame) -> list[Overlap]:
        ids, texts = batch[id_column].to_list(), batch[text_column].fill_null("").to_list()
        return [
            _build_overlap(str(ids[row]), field, match)
            for row, matches in index.match_texts(texts)
            for match in matches[:MOST_ITEMS]
        ]

    batches = _cut_frame(frame.select(id_column, text_column), text_column)
    rows: list[Overlap] = []
    with ThreadPoolExecutor(max(n_workers, 1)) as pool:
        while wave := list(islice(batches, 8 * max(n_workers, 1))):
            rows += [row for found in pool.map(ask, wave) for row in found]
    return build_frame(Overlap, rows, sort_by=["overlap_id"])


def warn_nearest(
    frame: pl.DataFrame,
    text_column: str,
    id_column: str,
    benchmarks: Sequence[Benchmark],
    embedder: Embedder,
    threshold: float,
    *,
    field: Field = "instruction",
) -> pl.DataFrame:
    """Return, for each text, the prompt nearest to it by cosine, where that is `threshold` or more.

    A warning that drops nothing: kind `nearest`, with the score. What a score means depends on the embedder; without
    a sentence embedder it says little more than that the same words are used.
    """
    items = [(each.name, item.id, prompt) for each in benchmarks for item in each.items for prompt in item.prompts]
    if not items:
        return build_frame(Overlap, [], sort_by=["overlap_id"])
    known = embedder.embed([prompt for _, _, prompt in items])
    rows: list[Overlap] = []
    for part in frame.select(id_column, text_column).iter_slices(_NEAREST_ROWS):
        scores = embedder.embed(part[text_column].fill_null("").to_list()) @ known.T
        best = scores.argmax(axis=1)
        for row_id, place, score in zip(part[id_column], best, scores.max(axis=1), strict=True):
            if score >= threshold:
                name, item, _ = items[place]
                rows.append(_make_overlap(str(row_id), field, name, item, "nearest", round(float(score), 4)))
    return build_frame(Overlap, rows, sort_by=["overlap_id"])


@dataclass(frozen=True, slots=True)
class BenchmarkSummary:
    """What a report says of one benchmark."""

    benchmark: str
    n_items: int
    n_with_text: int
    n_hash_only: int
    """Items known by their hash: only a whole text equal to theirs is found, up to case and spacing."""
    n_short: int
    """Items with text, but no prompt as long as a run: they are found only where they are the whole text."""
    n_items_hit: int
    n_rows_hit: int
    """Rows dropped for it, instructions and responses; warnings do not count."""
    kinds: Mapping[str, int]
    """Rows by kind of overlap, warnings among them."""
    fields: Mapping[str, int]
    """Rows dropped by field."""
    examples: tuple[Overlap, ...]


def summarise_overlaps(
    benchmarks: Iterable[Benchmark],
    overlaps: Iterable[Overlap],
    n_words: int = N_WORDS,
    n_examples: int = 3,
) -> list[BenchmarkSummary]:
    """Return one summary a benchmark, those without a hit among them, in the order of names."""
    found: dict[str, list[Overlap]] = {}
    for overlap in sorted(overlaps, key=lambda each: each.overlap_id):
        found.setdefault(overlap.benchmark, []).append(overlap)
    ordered = sorted(benchmarks, key=lambda each: each.name)
    return [_summarise(each, found.get(each.name, []), n_words, n_examples) for each in ordered]


def _summarise(benchmark: Benchmark, overlaps: list[Overlap], n_words: int, n_examples: int) -> BenchmarkSummary:
    dropped = [each for each in overlaps if each.kind != "nearest"]
    kinds = {(each.kind, each.field, each.row_id) for each in overlaps}
    rows = {(each.field, each.row_id) for each in dropped}
    n_long = sum(
        any(len(_Batch([prompt]).read_words(0)) >= n_words for prompt in item.prompts) for item in benchmark.items
    )
    n_with_text = sum(bool(item.prompts) for item in benchmark.items)
    return BenchmarkSummary(
        benchmark=benchmark.name,
        n_items=benchmark.n_items,
        n_with_text=n_with_text,
        n_hash_only=len(benchmark.hashes),
        n_short=n_with_text - n_long,
        n_items_hit=len({each.item for each in dropped}),
        n_rows_hit=len(rows),
        kinds=dict(sorted(Counter(kind for kind, _, _ in kinds).items())),
        fields=dict(sorted(Counter(field for field, _ in rows).items())),
        examples=tuple(sorted(overlaps, key=lambda each: each.kind == "nearest")[:n_examples]),
    )


class _Batch:
    """Texts as one array of words; `bounds[row]` to `bounds[row + 1]` are the places of a row's words."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.n_rows = len(texts)
        joined = "\0".join(texts)
        if joined.count("\0") > max(self.n_rows - 1, 0):
            joined = "\0".join(text.replace("\0", " ") for text in texts)
        codes = _fold_text(joined)
        classes = _load_classes()[codes]
        if (is_gone := classes == _GONE).any():
            codes, classes = codes[~is_gone], classes[~is_gone]
        self._codes = codes
        is_edge = np.ones(len(codes) + 1, bool)
        if len(codes) > 1:
            np.not_equal(classes[1:], classes[:-1], out=is_edge[1:-1])
        is_edge[:-1] |= classes == _LONE
        edges = np.flatnonzero(is_edge)
        is_word = classes[edges[:-1]] != _NONE
        self._starts, self._ends = edges[:-1][is_word], edges[1:][is_word]
        self._is_lone = classes[self._starts] == _LONE
        rows = np.searchsorted(self._starts, np.flatnonzero(codes == 0)) if self.n_rows else np.zeros(0, np.int64)
        self.bounds = np.concatenate([[0], rows, [len(self._starts)]])[: self.n_rows + 1]
        self._sums, self._powers = self._sum_words()

    def _sum_words(self) -> tuple[np.ndarray, np.ndarray]:
        """Return prefix sums over the hashes of words, and the factors that make a difference of two a hash."""
        powers, inverses = _load_powers(len(self._codes) + 1)
        letters = _add_up((self._codes.astype(np.uint64) + np.uint64(1)) * powers[: len(self._codes)])
        words = _mix((letters[self._ends] - letters[self._starts]) * inverses[self._starts])
        return _add_up(words * powers[: len(words)]), inverses

    def weigh_words(self, counts: Sequence[Sequence[int]]) -> np.ndarray:
        """Return what each word counts: a half in scripts without blanks, else 1, or what `counts` of its row says."""
        worths = np.where(self._is_lone, 0.5, 1.0)
        for row, own in enumerate(counts):
            if own and len(own) == self.bounds[row + 1] - self.bounds[row]:
                span = slice(self.bounds[row], self.bounds[row + 1])
                worths[span] = np.where(self._is_lone[span], 0.5, own)
        return worths

    def hash_runs(self, n_words: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of all runs that lie within one row, and their hashes."""
        keys = self.hash_all_runs(n_words)
        places = np.flatnonzero(self.lie_in_one_row(np.arange(len(keys)), n_words))
        return places, keys[places]

    def hash_all_runs(self, n_words: int) -> np.ndarray:
        """Return the hashes of all runs by place, those that reach from one row into the next among them."""
        n_runs = max(len(self._starts) - n_words + 1, 0)
        keys = self._sums[n_words : n_words + n_runs] - self._sums[:n_runs]
        keys *= self._powers[:n_runs]
        return _mix(keys)

    def lie_in_one_row(self, places: np.ndarray, n_words: int) -> np.ndarray:
        """Return for each run whether it ends in the row it begins in."""
        return places + n_words <= self.bounds[self.find_rows(places) + 1]

    def hash_short(self, n_words: int) -> list[tuple[int, int]]:
        """Return (row, hash) of the rows with fewer words than a run, but some."""
        counts = np.diff(self.bounds)
        rows = np.flatnonzero((counts > 0) & (counts < n_words))
        begins, ends = self.bounds[rows], self.bounds[rows + 1]
        keys = _mix((self._sums[ends] - self._sums[begins]) * self._powers[begins])
        return list(zip(rows.tolist(), keys.tolist(), strict=True))

    def find_rows(self, places: np.ndarray) -> np.ndarray:
        """Return the rows in which words stand."""
        return np.searchsorted(self.bounds, places, "right") - 1

    def read_words(self, row: int) -> list[str]:
        """Return the words of a row."""
        span = slice(self.bounds[row], self.bounds[row + 1])
        starts, ends = self._starts[span], self._ends[span]
        if not len(starts):
            return []
        text = self._codes[starts[0] : ends[-1]].astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")
        first = starts[0]
        return [text[start:end] for start, end in zip((starts - first).tolist(), (ends - first).tolist(), strict=True)]


_NEAREST_ROWS = 1024
_PART_WORDS = {"prompt": "", "answer": ", its reference answer", "code": ", its reference code"}
_KIND_ORDER = {"whole text": 0, "hash": 1, "run of words": 2}


def _fold_text(text: str) -> np.ndarray:
    """Return the code points of a text in compatibility form without case."""
    if text.isascii():
        return np.frombuffer(text.lower().encode("ascii"), np.uint8)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), "<u4")


@cache
def _load_classes() -> np.ndarray:
    """Return the class of every code point; beyond the planes in use nothing is a word."""
    classes = np.zeros(0x110000, np.uint8)
    for code in (*range(0x34000), *range(0xE0000, 0xE0200)):
        category = unicodedata.category(chr(code))
        if category[0] in "LN" or category == "Mc":
            classes[code] = _LETTER
        elif category in ("Mn", "Me", "Cf"):
            classes[code] = _GONE
    for first, last in _LONE_RANGES:
        lone = classes[first : last + 1]
        lone[lone == _LETTER] = _LONE
    classes[[ord(mark) for mark in _APOSTROPHES]] = _GONE
    return classes


def _load_powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    return _build_powers(max(n, 2**12).bit_length())


@cache
def _build_powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 2^bits powers of the base modulo 2^64, and their inverses."""

    def raise_to_all(base: int) -> np.ndarray:
        factors = np.full(2**bits, base, np.uint64)
        factors[0] = 1
        return np.cumprod(factors, dtype=np.uint64)

    return raise_to_all(_BASE), raise_to_all(pow(_BASE, -1, 2**64))


def _add_up(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums


def _mix(keys: np.ndarray) -> np.ndarray:
    keys = keys ^ (keys >> np.uint64(32))
    keys *= _MIXER
    keys ^= keys >> np.uint64(29)
    return keys


def _list_texts(benchmarks: Iterable[Benchmark]) -> Iterator[tuple[str, str, Part, str]]:
    for benchmark in benchmarks:
        for item in benchmark.items:
            for prompt in item.prompts:
                yield benchmark.name, item.id, "prompt", prompt
            for answer in item.answers:
                yield benchmark.name, item.id, "answer", answer
            for code in item.code:
                yield benchmark.name, item.id, "code", code


def _list_readings(text: str) -> list[_Reading]:
    """Return a text as said, with apostrophes and underscores as blanks, and without any punctuation."""
    plain = unicodedata.normalize("NFKC", text)
    chunks = [_strip_marks(chunk) for chunk in plain.split()]
    bare = " ".join(letters for letters, _ in chunks if letters)
    readings = {plain: [], plain.translate(_SPLIT_MARKS): [], bare: [count for letters, count in chunks if letters]}
    return list(readings.items())


def _strip_marks(chunk: str) -> tuple[str, int]:
    """Return the letters of what stands between two blanks, and how many words they were."""
    if chunk.isascii() and chunk.isalnum():
        return chunk, 1
    classes = _load_classes()
    kinds = [(mark, kind) for mark in chunk if (kind := int(classes[ord(mark)])) != _GONE]
    letters = "".join(mark for mark, kind in kinds if kind != _NONE)
    befores = [_NONE, *(kind for _, kind in kinds)]
    return letters, sum(kind != _NONE and before == _NONE for (_, kind), before in zip(kinds, befores, strict=False))


def _list_runs(batch: _Batch, worths: np.ndarray, n_words: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Give (length, places, hashes) of all runs of `n_words` words, and of shorter ones that count as much.

    A text that lost its punctuation has fewer words: "step-by-step" is one. Up to `MOST_LOST` are made up for.
    """
    sums = np.concatenate([[0.0], np.cumsum(worths)])
    shortest = max(n_words - MOST_LOST, 1)
    for length in range(shortest, n_words + 1):
        places, keys = batch.hash_runs(length)
        if length < n_words:
            is_enough = sums[places + length] - sums[places] >= n_words
            is_enough &= (length == shortest) | (sums[places + length - 1] - sums[places] < n_words)
            places, keys = places[is_enough], keys[is_enough]
        yield length, places, keys


def _cut_batches(texts: Sequence[str]) -> Iterator[tuple[int, _Batch]]:
    """Give (place of the first text, batch) for texts in order."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        if size and size + len(text) > BATCH_CHARS:
            yield first, _Batch(texts[first:place])
            first, size = place, 0
        size += len(text) + 1
    if first < len(texts):
        yield first, _Batch(texts[first:])


def _cut_frame(frame: pl.DataFrame, text_column: str) -> Iterator[pl.DataFrame]:
    """Give slices of about `BATCH_CHARS` characters."""
    for part in frame.iter_slices(2**16):
        ends = part[text_column].str.len_bytes().fill_null(0).cum_sum().to_numpy()
        first = 0
        while first < part.height:
            done = int(ends[first - 1]) if first else 0
            last = max(int(np.searchsorted(ends, done + BATCH_CHARS, "right")), first + 1)
            yield part.slice(first, last - first)
            first = last


def _count_equal(words: Sequence[str], start: int, other: Sequence[str], place: int) -> int:
    length = 0
    for one, two in zip(islice(words, start, None), islice(other, place, None), strict=False):
        if one != two:
            break
        length += 1
    return length


def _show_run(words: Sequence[str]) -> str:
    if len(words) <= MOST_SHARED:
        return " ".join(words)
    return f"{' '.join(words[:MOST_SHARED])} ... ({len(words)} words)"


def _keep_best(matches: Iterable[Match]) -> list[Match]:
    """Keep the best match of each item, in order."""

    def rank(match: Match) -> tuple[int, int, str, str, str, str]:
        return _KIND_ORDER[match.kind], -match.n_words, match.benchmark, match.item, match.part, match.shared

    best: dict[tuple[str, str], Match] = {}
    for match in sorted(matches, key=rank):
        best.setdefault((match.benchmark, match.item), match)
    return list(best.values())


def _describe(matches: Sequence[Match]) -> str:
    first = matches[0]
    of = f"{first.benchmark}/{first.item}" + _PART_WORDS[first.part]
    if first.kind == "run of words":
        said = f"it shares {first.n_words} words with {of}: {first.shared!r}"
    elif first.kind == "hash":
        said = f"it is {of}, known by its hash, up to case and spacing"
    else:
        said = f"it is {of}, word for word"
    names = [f"{match.benchmark}/{match.item}" for match in matches[1:MOST_ITEMS]]
    more = f", and {len(matches) - MOST_ITEMS} more" if len(matches) > MOST_ITEMS else ""
    return said + (f"; also with {', '.join(names)}{more}" if names else "")


def _build_overlap(row_id: str, field: Field, match: Match) -> Overlap:
    return _make_overlap(row_id, field, match.benchmark, match.item, match.kind, None, match.shared)


def _make_overlap(
    row_id: str,
    field: Field,
    benchmark: str,
    item: str,
    kind: Literal["run of words", "whole text", "hash", "nearest"],
    score: float | None = None,
    shared: str = "",
) -> Overlap:
    return Overlap(
        overlap_id=make_id("overlap", row_id, field, benchmark, item, kind),
        row_id=row_id,
        field=field,
        benchmark=benchmark,
        item=item,
        kind=kind,
        score=score,
        shared=shared,
    )
