"""Duplicates: equal texts, texts whose shingles overlap, and texts that mean the same (METHOD 3.4).

Two ways to the same answer. The filters look at one candidate after the other, in rank order; `find_duplicates` takes
a whole file, in any order and with any number of workers. In both an earlier rank wins over its twin, and only rows
that were kept can be twins.

A text's shingles are its words and its runs of n neighbouring words, each run without regard to order, the text's two
ends counting as words. So a swapped pair of words costs a text two of its runs and no word, where ordered runs alone
would lose three: the threshold can be higher, and fewer texts that only share a pattern reach it. Scripts written
without blanks are cut into characters. Shingles are kept as 48-bit hashes; MinHash proposes twins, the true Jaccard of
the hashes decides.
"""

import hashlib
import multiprocessing
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import Any, Protocol

import numpy as np
import polars as pl
import rensa

from matrix_dspy.curation.base import Candidate, Drop
from matrix_dspy.engine.embedding import Embedder, TfidfEmbedder
from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.text import list_ranges, replace_surrogates

_rensa: Any = rensa  # a compiled module without types
Hashes = np.ndarray
"""(n,) uint64."""
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, earlier row, score; three arrays of one length."""

MOST_PERMUTATIONS = 192
RECALL = 0.9995
"""Least chance that a pair exactly at the threshold shares a band."""
MOST_ROWS = 2**24
"""Rows one filter can hold, since a row's number has 24 bits in the index."""
SEMANTIC_THRESHOLD = 0.92
"""Cosine from which two texts mean the same. METHOD 3.4."""
CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 4_000_000
BLOCK_ROWS = 4096
"""Rows decided together in `find_duplicates`."""
MOST_PAIRS = 4_000_000
"""Candidate pairs held at a time."""
N_RECENT = 1024
"""Rows in a dictionary before they go into a sorted array, which is much smaller."""
_STEPS = 2048
"""Vectors are rounded to whole multiples of 1/2048: products then add up exactly, in any order, on any machine."""
_LONG_WORD = 64
_MANY_WORDS = 2**20
_HASH_BITS = 48
_EDGE = np.uint64(0x9E3779B97F4A7C15)
"""Stands for the beginning and the end of a text in its runs."""


# ---- filters: one candidate after the other


class ExactFilter:
    """Drops a text equal to an earlier one up to case, punctuation and white space."""

    def __init__(self) -> None:
        self._seen: dict[int, str] = {}
        self._keys: dict[str, int] = {}

    def judge(self, candidate: Candidate) -> Drop | None:
        key = _hash_units(_split_text(candidate.text))
        twin = self._seen.setdefault(key, candidate.id)
        if twin == candidate.id:
            self._keys[candidate.id] = key
            return None
        return Drop("exact duplicate", f"the same as {twin}", twin, 1.0)

    def forget(self, row_id: str) -> None:
        """Let the row be no twin of later ones."""
        if (key := self._keys.pop(row_id, None)) is not None:
            self._seen.pop(key, None)


class NearDuplicateFilter:
    """Drops a text whose shingles overlap an earlier kept one's; MinHash proposes, true Jaccard decides."""

    def __init__(self, n_shingle: int, threshold: float, seed: int = 0) -> None:
        self.n_shingle, self.threshold, self.seed = n_shingle, threshold, seed
        self._bands = plan_bands(threshold)
        self._index = _BandIndex()
        self._ids: list[str] = []
        self._shingles: list[Hashes | None] = []
        """Null for a row that was forgotten."""
        self._numbers: dict[str, int] = {}

    def judge(self, candidate: Candidate) -> Drop | None:
        if candidate.id in self._numbers:
            return None
        sketch = _sketch([candidate.text], self.n_shingle, self._bands, self.seed)
        keys = sketch.bands[0]
        best, twin = 0.0, -1
        for number in self._index.find(keys):
            if (other := self._shingles[number]) is not None:
                score = _measure_overlap(sketch.shingles, other)
                if score > best:
                    best, twin = score, number
        if best >= self.threshold:
            return _describe("near duplicate", self._ids[twin], best)
        self._numbers[candidate.id] = len(self._ids)
        self._index.add(keys)
        self._ids.append(candidate.id)
        self._shingles.append(sketch.shingles)
        return None

    def forget(self, row_id: str) -> None:
        """Let the row be no twin of later ones."""
        if (number := self._numbers.pop(row_id, None)) is not None:
            self._shingles[number] = None


class SemanticFilter:
    """Drops a text whose vector is too close to an earlier kept one's.

    With a real sentence embedder that is a text of the same meaning. With TF-IDF, which sees words and no meaning, it
    is one of the same words, and the detail says so.
    """

    def __init__(self, embed: Embedder, threshold: float = SEMANTIC_THRESHOLD) -> None:
        self.threshold = threshold
        self._embed = embed
        self._vectors, self._squares = np.zeros((0, 0), np.float32), np.zeros(0)
        self._ids: list[str] = []
        self._numbers: dict[str, int] = {}

    def judge(self, candidate: Candidate) -> Drop | None:
        if candidate.id in self._numbers:
            return None
        (vector,), (square,) = _embed_rounded(self._embed, [candidate.text])
        n_kept = len(self._ids)
        known = self._vectors[:n_kept]
        scores = _divide(known @ vector, self._squares[:n_kept] * square) if n_kept else np.zeros(1)
        twin = int(scores.argmax())
        if scores[twin] >= self.threshold:
            return _describe(
                "semantic duplicate", self._ids[twin], float(scores[twin]), isinstance(self._embed, TfidfEmbedder)
            )
        if n_kept == len(self._vectors):
            room = np.zeros((max(n_kept, N_RECENT), len(vector)), np.float32)
            self._vectors = np.vstack([known, room]) if n_kept else room
            self._squares = np.concatenate([self._squares, np.zeros(len(room))])
        self._vectors[n_kept], self._squares[n_kept] = vector, square
        self._numbers[candidate.id] = n_kept
        self._ids.append(candidate.id)
        return None

    def forget(self, row_id: str) -> None:
        """Let the row be no twin of later ones."""
        if (number := self._numbers.pop(row_id, None)) is not None:
            self._vectors[number] = 0.0


class _BandIndex:
    """Which rows share a band with a new one: the newest in a dictionary, the others in a few sorted arrays.

    An entry is a band's number (8 bits), its key (32) and the row (24). Eight bytes an entry is a tenth of what a
    dictionary takes.
    """

    def __init__(self) -> None:
        self._sorted: list[np.ndarray] = []
        self._recent: defaultdict[int, list[int]] = defaultdict(list)
        self._n_rows = 0

    def find(self, keys: np.ndarray) -> list[int]:
        """Return the rows that share at least one of `keys`, one key a band, in order."""
        low = _place_bands(keys)
        rows = set(chain.from_iterable(self._recent.get(key, ()) for key in low.tolist()))
        for entries in self._sorted:
            starts, ends = np.searchsorted(entries, low), np.searchsorted(entries, low + np.uint64(MOST_ROWS))
            for band in np.flatnonzero(ends > starts):
                rows.update((entries[starts[band] : ends[band]] & np.uint64(MOST_ROWS - 1)).tolist())
        return sorted(rows)

    def add(self, keys: np.ndarray) -> None:
        """Add the next row."""
        if self._n_rows >= MOST_ROWS:
            raise ConfigError(f"a filter on near duplicates holds {MOST_ROWS:,} rows at most; use `find_duplicates`")
        for key in _place_bands(keys).tolist():
            self._recent[key].append(self._n_rows)
        self._n_rows += 1
        if self._n_rows % N_RECENT == 0:
            self._settle()

    def _settle(self) -> None:
        entries = np.fromiter((key | row for key, rows in self._recent.items() for row in rows), np.uint64)
        self._recent.clear()
        while self._sorted and len(self._sorted[-1]) <= 4 * len(entries):
            entries = np.concatenate([self._sorted.pop(), entries])
        entries.sort()
        self._sorted.append(entries)


def _place_bands(keys: np.ndarray) -> Hashes:
    bands = np.arange(len(keys), dtype=np.uint64)
    return (bands << np.uint64(56)) | (keys.astype(np.uint64) << np.uint64(24))


def _describe(reason: str, twin: str, score: float, is_tfidf: bool = False) -> Drop:
    if reason == "exact duplicate":
        return Drop(reason, f"the same as {twin}", twin, 1.0)
    if reason == "near duplicate":
        return Drop(reason, f"Jaccard {score:.3f} with {twin}", twin, score)
    note = " of TF-IDF vectors, which see words and no meaning" if is_tfidf else ""
    return Drop(reason, f"cosine {score:.3f} with {twin}{note}", twin, score)


# ---- whole files


def find_duplicates(
    texts: Sequence[str] | pl.Series,
    ids: Sequence[Any] | pl.Series | None = None,
    ranks: Sequence[Any] | pl.Series | None = None,
    *,
    n_shingle: int = 2,
    threshold: float | None = 0.77,
    seed: int = 0,
    exact: bool = True,
    embed: Embedder | None = None,
    semantic_threshold: float = SEMANTIC_THRESHOLD,
    n_workers: int = 1,
) -> pl.DataFrame:
    """Return the rows to drop, in rank order: `row` (position from 0), `id`, `reason`, `twin`, `score`, `detail`.

    The answer is that of `ExactFilter`, `NearDuplicateFilter` and `SemanticFilter` asked in rank order. `ids` are
    positions unless given; `ranks` a hash of id and text, or of the text alone where there are no ids, and equal ranks
    are told apart by it. `threshold` None leaves near duplicates, `exact` False equal texts, `embed` None meanings.
    With `n_workers` above 1, texts are hashed in that many processes.

    Raises:
        TableError: a text or rank is missing, or there are not as many ids or ranks as texts.
        ConfigError: `n_shingle` or `threshold` make no sense.
    """
    texts = texts.to_list() if isinstance(texts, pl.Series) else list(texts)
    names = [str(number) for number in range(len(texts))] if ids is None else [str(each) for each in ids]
    order = _order_rows(texts, None if ids is None else names, ranks)
    ordered = [texts[row] for row in order]
    measures: dict[str, _Measure] = {}
    if exact or threshold is not None:
        sketches = _sketch_all(
            ordered, n_shingle, None if threshold is None else plan_bands(threshold), seed, n_workers
        )
        if exact:
            measures["exact duplicate"] = _Sameness(sketches.keys)
        if threshold is not None:
            measures["near duplicate"] = _Overlap(sketches, threshold)
    if embed is not None:
        measures["semantic duplicate"] = _Meaning(embed, ordered, semantic_threshold)
    found = _decide(list(measures.values()), len(ordered))
    reasons, is_tfidf = list(measures), isinstance(embed, TfidfEmbedder)
    rows = [
        (order[row], names[order[row]], _describe(reasons[which], names[order[twin]], score, is_tfidf))
        for row, which, twin, score in found
    ]
    return pl.DataFrame(
        {
            "row": [row for row, _, _ in rows],
            "id": [replace_surrogates(name) for _, name, _ in rows],
            "reason": [drop.reason for _, _, drop in rows],
            "twin": [replace_surrogates(drop.twin) for _, _, drop in rows],
            "score": [drop.score for _, _, drop in rows],
            "detail": [replace_surrogates(drop.detail) for _, _, drop in rows],
        },
        schema={
            "row": pl.Int64,
            "id": pl.String,
            "reason": pl.String,
            "twin": pl.String,
            "score": pl.Float64,
            "detail": pl.String,
        },
    )


def _order_rows(
    texts: Sequence[str | None], names: list[str] | None, ranks: Sequence[Any] | pl.Series | None
) -> list[int]:
    """Return the rows' positions by rank, then by a hash that is the same wherever the row stands."""
    for what, given in (("ids", names), ("ranks", ranks)):
        if given is not None and len(given) != len(texts):
            raise TableError(f"there are {len(texts)} texts and {len(given)} {what}; give one for each text")
    if (empty := next((row for row, text in enumerate(texts) if text is None), None)) is not None:
        raise TableError(f"row {empty} has no text; leave out rows without one")
    if ranks is None:
        return _sort_by_hash(list(range(len(texts))), texts, names)
    found = ranks.to_list() if isinstance(ranks, pl.Series) else list(ranks)
    if (empty := next((row for row, rank in enumerate(found) if rank is None or rank != rank), None)) is not None:
        raise TableError(f"row {empty} has no rank; give every row one, or none at all")
    order = sorted(range(len(found)), key=found.__getitem__)
    start = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or found[order[end]] != found[order[start]]:
            if end - start > 1:
                order[start:end] = _sort_by_hash(order[start:end], texts, names)
            start = end
    return order


def _sort_by_hash(rows: list[int], texts: Sequence[Any], names: list[str] | None) -> list[int]:
    def hash_row(row: int) -> bytes:
        name = "" if names is None else names[row]
        return hashlib.blake2b(f"{name}\0{texts[row]}".encode(errors="surrogatepass"), digest_size=16).digest()

    return sorted(rows, key={row: hash_row(row) for row in rows}.__getitem__)


class _Measure(Protocol):
    """One way in which a row can be like a kept one; rows are numbers in rank order."""

    def begin(self, rows: np.ndarray) -> None:
        """Note that a block begins: what is kept from now on is found by `find` with `since`."""
        ...

    def find(self, rows: np.ndarray, since: int | None = None) -> Pairs:
        """Return pairs of `rows` with kept rows before them; with `since`, only kept rows of this block from there."""
        ...

    def find_among(self, rows: np.ndarray) -> Pairs | None:
        """Return the pairs within `rows`, or None if there are too many to look at."""
        ...

    def keep(self, rows: np.ndarray) -> None:
        """Let `rows` be twins from now on."""
        ...


def _decide(measures: Sequence[_Measure], n_rows: int) -> list[tuple[int, int, int, float]]:
    """Go through the rows in rank order; return those to drop, each with its measure's number, best twin and score.

    Rows are taken in blocks: first against what was kept before, then among themselves. What is dropped is then held
    against the block's kept rows too, which may be better twins.
    """
    found = []
    for start in range(0, n_rows, BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, n_rows))
        best: list[dict[int, tuple[float, int]]] = [{} for _ in measures]
        undecided = rows
        for each, twins in zip(measures, best, strict=True):
            each.begin(rows)
            _note_best(twins, each.find(undecided))
            undecided = _leave_out(undecided, twins)
        dropped = _leave_out(rows, _settle(measures, undecided).tolist())
        unnamed = dropped
        for each, twins in zip(measures, best, strict=True):
            _note_best(twins, each.find(unnamed, start))
            unnamed = _leave_out(unnamed, twins)
        for row in dropped.tolist():
            which = next(number for number, twins in enumerate(best) if row in twins)
            score, twin = best[which][row]
            found.append((row, which, -twin, score))
    return found


def _settle(measures: Sequence[_Measure], rows: np.ndarray) -> np.ndarray:
    """Keep those of `rows` that are like no kept one before them, and return them.

    All are unlike what was kept before the first of them. Where too many pairs share a band, the rows are halved: the
    second half is held against what the first half keeps.
    """
    pairs = [each.find_among(rows) for each in measures]
    if len(rows) > 1 and any(each is None for each in pairs):
        half, later = len(rows) // 2, rows[len(rows) // 2 :]
        first = _settle(measures, rows[:half])
        for each in measures:
            later = _leave_out(later, each.find(later, int(rows[0]))[0].tolist())
        return np.concatenate([first, _settle(measures, later)])
    earlier: defaultdict[int, list[int]] = defaultdict(list)
    for row, twin, _ in _walk(each for each in pairs if each is not None):
        earlier[row].append(twin)
    dropped: set[int] = set()
    for row in sorted(earlier):
        if any(twin not in dropped for twin in earlier[row]):
            dropped.add(row)
    kept = _leave_out(rows, dropped)
    for each in measures:
        each.keep(kept)
    return kept


def _leave_out(rows: np.ndarray, others: Iterable[int]) -> np.ndarray:
    return rows[~np.isin(rows, np.fromiter(others, np.int64))]


def _walk(pairs: Iterable[Pairs]) -> Iterator[tuple[int, int, float]]:
    for rows, twins, scores in pairs:
        yield from zip(rows.tolist(), twins.tolist(), scores.tolist(), strict=True)


def _note_best(best: dict[int, tuple[float, int]], pairs: Pairs) -> None:
    """Keep for each row its highest score; of equal ones, the earliest twin."""
    for row, twin, score in _walk([pairs]):
        best[row] = max(best.get(row, (score, -twin)), (score, -twin))


def _join(parts: Sequence[Pairs]) -> Pairs:
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    rows, twins, scores = zip(*parts, strict=True)
    return np.concatenate(rows), np.concatenate(twins), np.concatenate(scores)


class _Sameness:
    """Rows of equal keys."""

    def __init__(self, keys: Hashes) -> None:
        self._keys = keys
        self._kept: dict[int, int] = {}

    def begin(self, rows: np.ndarray) -> None:
        """Do nothing: a key has one kept row at the most."""

    def find(self, rows: np.ndarray, since: int | None = None) -> Pairs:
        twins = [self._kept.get(key, -1) for key in self._keys[rows].tolist()]
        return self._pair(rows, np.array(twins, np.int64), since or 0)

    def find_among(self, rows: np.ndarray) -> Pairs | None:
        order = np.argsort(self._keys[rows], kind="stable")
        owners, n_earlier, starts = _count_earlier(rows[order], self._keys[rows][order])
        if n_earlier.sum() > MOST_PAIRS:
            return None
        twins = owners[_spread(starts, n_earlier)]
        return np.repeat(owners, n_earlier), twins, np.ones(len(twins))

    def keep(self, rows: np.ndarray) -> None:
        self._kept.update(zip(self._keys[rows].tolist(), rows.tolist(), strict=True))

    def _pair(self, rows: np.ndarray, twins: np.ndarray, since: int) -> Pairs:
        is_pair = (twins >= since) & (twins < rows)
        return rows[is_pair], twins[is_pair], np.ones(int(is_pair.sum()))


class _Overlap:
    """Rows whose shingles overlap: those that share a band are compared.

    Most bands are shared with nobody and are forgotten at once. Each of the others, a *bucket*, has room for all its
    rows in `_slots` and is filled from the left as rows are kept.
    """

    def __init__(self, sketches: "_Sketches", threshold: float) -> None:
        self._sketches, self._threshold = sketches, threshold
        entries = _find_buckets(sketches.bands)
        self._buckets = (entries & np.uint64(2**32 - 1)).astype(np.int64)
        n_rows = len(sketches.keys)
        sizes = np.bincount((entries >> np.uint64(32)).astype(np.int64), minlength=n_rows)
        self._first = np.concatenate([[0], np.cumsum(sizes)])
        """Where a row's buckets begin in `_buckets`."""
        room = np.bincount(self._buckets)
        self._starts = np.concatenate([[0], np.cumsum(room)])
        self._slots = np.zeros(len(self._buckets), np.int32)
        self._filled = np.zeros(len(room), np.int32)
        self._before = np.zeros(len(room), np.int32)
        """How far a bucket was filled when the block began."""

    def begin(self, rows: np.ndarray) -> None:
        buckets = self._list_buckets(rows)[1]
        self._before[buckets] = self._filled[buckets]

    def find(self, rows: np.ndarray, since: int | None = None) -> Pairs:
        owners, buckets = self._list_buckets(rows)
        low = np.zeros(len(buckets), np.int32) if since is None else self._before[buckets]
        starts, n_slots = self._starts[buckets] + low, self._filled[buckets] - low
        parts = []
        for some in _split(n_slots, MOST_PAIRS):
            twins = self._slots[_spread(starts[some], n_slots[some])].astype(np.int64)
            lefts = np.repeat(owners[some], n_slots[some])
            is_pair = (twins < lefts) & (twins >= (since or 0))
            parts.append(self._compare(lefts[is_pair], twins[is_pair]))
        return _join(parts)

    def find_among(self, rows: np.ndarray) -> Pairs | None:
        owners, buckets = self._list_buckets(rows)
        entries = np.sort((buckets << 32) | owners)
        owners, n_earlier, starts = _count_earlier(entries & (2**32 - 1), entries >> 32)
        if n_earlier.sum() > MOST_PAIRS:
            return None
        return self._compare(np.repeat(owners, n_earlier), owners[_spread(starts, n_earlier)])

    def keep(self, rows: np.ndarray) -> None:
        owners, buckets = self._list_buckets(rows)
        order = np.argsort(buckets, kind="stable")
        owners, buckets = owners[order], buckets[order]
        found, starts, n_rows = np.unique(buckets, return_index=True, return_counts=True)
        places = np.arange(len(buckets)) - np.repeat(starts, n_rows)
        self._slots[self._starts[buckets] + self._filled[buckets] + places] = owners
        self._filled[found] += n_rows.astype(np.int32)

    def _list_buckets(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self._first[rows]
        n_buckets = self._first[rows + 1] - starts
        return np.repeat(rows, n_buckets), self._buckets[_spread(starts, n_buckets)]

    def _compare(self, rows: np.ndarray, twins: np.ndarray) -> Pairs:
        """Return those of the pairs, each once, whose Jaccard reaches the threshold."""
        pairs = _drop_repeats(np.sort((rows << 32) | twins))
        rows, twins = pairs >> 32, pairs & (2**32 - 1)
        sizes = np.diff(self._sketches.starts)
        one, other = sizes[rows], sizes[twins]
        can_reach = np.minimum(one, other) >= self._threshold * np.maximum(one, other)
        rows, twins = rows[can_reach], twins[can_reach]
        parts = []
        for some in _split(sizes[rows] + sizes[twins], MOST_PAIRS):
            scores = self._sketches.measure(rows[some], twins[some])
            is_near = scores >= self._threshold
            parts.append((rows[some][is_near], twins[some][is_near], scores[is_near]))
        return _join(parts)


class _Meaning:
    """Rows whose vectors are close. Every kept row is looked at: work grows with the square of the rows."""

    def __init__(self, embed: Embedder, texts: Sequence[str], threshold: float) -> None:
        self._threshold = threshold
        parts = [_embed_rounded(embed, texts[i : i + CHUNK_ROWS]) for i in range(0, len(texts), CHUNK_ROWS)]
        self._vectors = np.vstack([vectors for vectors, _ in parts] or [np.zeros((0, 1), np.float32)])
        self._squares = np.concatenate([squares for _, squares in parts] or [np.zeros(0)])
        self._kept = np.zeros(len(texts), np.int64)
        self._n_kept = 0

    def begin(self, rows: np.ndarray) -> None:
        """Do nothing: what was kept stands in order."""

    def find(self, rows: np.ndarray, since: int | None = None) -> Pairs:
        kept = self._kept[: self._n_kept]
        kept = kept[np.searchsorted(kept, since or 0) :]
        return _join([self._compare(rows, kept[i : i + CHUNK_ROWS]) for i in range(0, len(kept), CHUNK_ROWS)])

    def find_among(self, rows: np.ndarray) -> Pairs:
        return self._compare(rows, rows)

    def keep(self, rows: np.ndarray) -> None:
        self._kept[self._n_kept : self._n_kept + len(rows)] = rows
        self._n_kept += len(rows)

    def _compare(self, rows: np.ndarray, others: np.ndarray) -> Pairs:
        products = self._vectors[rows] @ self._vectors[others].T
        scores = _divide(products, np.outer(self._squares[rows], self._squares[others]))
        i, j = np.nonzero((scores >= self._threshold) & (others[None, :] < rows[:, None]))
        return rows[i], others[j], scores[i, j]


# ---- sketches


@dataclass(frozen=True, slots=True)
class _Sketches:
    """What is known of some texts, in their order."""

    keys: Hashes
    """Hash of each text's words in order."""
    shingles: Hashes
    """All texts' shingles, one text after the other; each text's ascending and without repeats."""
    starts: np.ndarray
    """(n_texts + 1,) where a text's shingles begin."""
    bands: np.ndarray
    """(n_texts, n_bands) uint32: MinHash values, those of a band hashed into one."""

    def measure(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the Jaccard similarity of each pair of texts."""
        one, other = self._select(rows), self._select(others)
        shared = np.diff(one.multiply(other).tocsr().indptr)
        return shared / (np.diff(one.indptr) + np.diff(other.indptr) - shared)

    def _select(self, rows: np.ndarray) -> Any:
        from scipy.sparse import csr_array

        starts = self.starts[rows]
        sizes = self.starts[rows + 1] - starts
        indices = self.shingles[_spread(starts, sizes)].astype(np.int64)
        pointers = np.concatenate([[0], np.cumsum(sizes)])
        return csr_array((np.ones(len(indices), np.int8), indices, pointers), shape=(len(rows), 2**_HASH_BITS))


def plan_bands(threshold: float) -> tuple[int, int]:
    """Return the number of bands and the MinHash values in each.

    As many values to a band as `MOST_PERMUTATIONS` allow for `RECALL`: the more, the fewer pairs far below the
    threshold are compared in vain; then as few bands as will do. Thresholds below 0.04 miss more.

    Raises:
        ConfigError: `threshold` is no share.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"a near duplicate's threshold lies above 0 and up to 1, not at {threshold!r}")
    for n_values in range(MOST_PERMUTATIONS, 1, -1):
        for n_bands in range(1, MOST_PERMUTATIONS // n_values + 1):
            if 1 - (1 - threshold**n_values) ** n_bands >= RECALL:
                return n_bands, n_values
    return MOST_PERMUTATIONS, 1


def split_units(text: str) -> list[str]:
    """Return what `text` is compared by, in order: words in small letters; signs between digits, as in 3 + 4.

    Of scripts without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese), characters with their marks.
    """
    if text.isascii():
        return _UNIT.findall(text.lower())
    text = unicodedata.normalize("NFKC", text).casefold()
    return (_UNIT if _OTHER_SCRIPTS.search(text) is None else _compile_units()).findall(text)


def _split_text(text: str) -> list[str]:
    return split_units(text) or [unicodedata.normalize("NFKC", text).strip()]


_SIGN = r"(?<=\d)[ ]?[-+*/×÷−^][ ]?(?=\d)"
_UNIT = re.compile(rf"\w+(?:['’]\w+)*|{_SIGN}")
_OTHER_SCRIPTS = re.compile("[\u0300-\u036f\u0590-\u1fff\u2e80-\ua4cf\ua800-\uabff\uf900-\ufaff\U00010000-\U0003ffff]")
r"""Where `\w` alone will not do: scripts with marks that are no letters, and those without blanks."""
_CHARACTER = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\uaa60-\uaa7f"
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts without blanks between words."""


@cache
def _compile_units() -> re.Pattern[str]:
    """Return the pattern of units where marks belong to the letter before them."""
    codes = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    marks = list_ranges(codes)
    letter = rf"(?:[^\W{_CHARACTER}]|[{marks}])"
    return re.compile(rf"[{_CHARACTER}][{marks}]*|{letter}+(?:['’]{letter}+)*|{_SIGN}")


class _WordHashes(dict[str, int]):
    """Word to hash, remembered: few words make up most of any text."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest(), "little")
        if len(word) <= _LONG_WORD:
            self[word] = value
        return value


_word_hashes = _WordHashes()


def _sketch(texts: Sequence[str], n_shingle: int, bands: tuple[int, int] | None, seed: int) -> _Sketches:
    """Sketch some texts; without `bands` only their keys."""
    if n_shingle < 1:
        raise ConfigError(f"a shingle has at least 1 word, not {n_shingle}")
    units = [_split_text(text) for text in texts]
    keys = np.fromiter(map(_hash_units, units), np.uint64, len(texts))
    if bands is None:
        return _Sketches(keys, np.zeros(0, np.uint64), np.zeros(len(texts) + 1, np.int64), np.zeros((0, 0), np.uint32))
    parts = [_shingle(units[i : i + 2**16], n_shingle) for i in range(0, max(1, len(units)), 2**16)]
    shingles = np.concatenate([part for part, _ in parts])
    starts = np.concatenate([[0], np.cumsum(np.concatenate([sizes for _, sizes in parts]))])
    n_bands, n_values = bands
    rows = _rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        shingles, starts.astype(np.uint64), n_bands * n_values, seed
    ).to_rows()
    values = np.fromiter(chain.from_iterable(rows), np.uint64, len(texts) * n_bands * n_values)
    values = values.reshape(len(texts), n_bands, n_values)
    band_keys = np.zeros((len(texts), n_bands), np.uint64)
    for i in range(n_values):
        band_keys = _mix(band_keys + values[:, :, i] + np.uint64(1))
    return _Sketches(keys, shingles, starts, (band_keys >> np.uint64(32)).astype(np.uint32))


def _shingle(units: Sequence[list[str]], n_shingle: int) -> tuple[Hashes, np.ndarray]:
    """Return the shingles of up to 2**16 texts, and how many each has."""
    if len(_word_hashes) > _MANY_WORDS:
        _word_hashes.clear()
    sizes = np.fromiter(map(len, units), np.int64, len(units))
    n_units = int(sizes.sum())
    hashes = np.fromiter(map(_word_hashes.__getitem__, chain.from_iterable(units)), np.uint64, n_units)
    numbers = np.arange(len(units), dtype=np.uint64)
    owners = np.repeat(numbers, sizes)
    found = [_place_shingles(owners, _mix(hashes))]
    if n_shingle > 1:
        owners = np.repeat(numbers, sizes + 2)
        padded = np.full(len(owners), _EDGE)
        padded[np.arange(n_units) + 2 * np.repeat(np.arange(len(units)), sizes) + 1] = hashes
        n_runs = max(0, len(padded) - n_shingle + 1)
        runs = np.zeros(n_runs, np.uint64)
        for i in range(n_shingle):
            runs += padded[i : i + n_runs]  # a sum: the order in a run does not count
        is_inside = owners[:n_runs] == owners[len(owners) - n_runs :]
        found.append(_place_shingles(owners[:n_runs][is_inside], _mix(runs[is_inside] + np.uint64(n_shingle))))
    placed = _drop_repeats(np.sort(np.concatenate(found)))
    n_shingles = np.bincount((placed >> np.uint64(_HASH_BITS)).astype(np.int64), minlength=len(units))
    return placed & np.uint64(2**_HASH_BITS - 1), n_shingles


def _place_shingles(owners: Hashes, hashes: Hashes) -> Hashes:
    return (owners << np.uint64(_HASH_BITS)) | (hashes >> np.uint64(64 - _HASH_BITS))


def _sketch_all(
    texts: Sequence[str], n_shingle: int, bands: tuple[int, int] | None, seed: int, n_workers: int
) -> _Sketches:
    sketch = partial(_sketch, n_shingle=n_shingle, bands=bands, seed=seed)
    chunks = list(_split_texts(texts))
    if n_workers > 1 and len(chunks) > 1:
        # spawned, not forked: Polars and rensa keep threads, which a fork would leave behind
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(n_workers, len(chunks)), mp_context=context) as pool:
            parts = list(pool.map(sketch, chunks))
    else:
        parts = list(map(sketch, chunks))
    if not parts:
        return sketch([])
    sizes = np.concatenate([np.diff(part.starts) for part in parts])
    return _Sketches(
        np.concatenate([part.keys for part in parts]),
        np.concatenate([part.shingles for part in parts]),
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([part.bands for part in parts]),
    )


def _split_texts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut into pieces of a few thousand texts, or fewer long ones."""
    chunk: list[str] = []
    n_characters = 0
    for text in texts:
        chunk.append(text)
        n_characters += len(text)
        if len(chunk) == CHUNK_ROWS or n_characters > CHUNK_CHARACTERS:
            yield chunk
            chunk, n_characters = [], 0
    if chunk:
        yield chunk


def _find_buckets(bands: np.ndarray) -> np.ndarray:
    """Return row << 32 | bucket, sorted, for every band of a row that it shares with another row."""
    n_rows, n_bands = bands.shape
    numbers = np.arange(n_rows, dtype=np.uint64)
    found = []
    n_buckets = 0
    for band in range(n_bands):
        entries = np.sort((bands[:, band].astype(np.uint64) << np.uint64(32)) | numbers)
        keys = entries >> np.uint64(32)
        is_same = keys[1:] == keys[:-1]
        is_shared = np.zeros(n_rows, bool)
        is_shared[1:] |= is_same
        is_shared[:-1] |= is_same
        starts = is_shared.copy()
        starts[1:] &= ~is_same
        buckets = np.cumsum(starts[is_shared]).astype(np.uint64) + np.uint64(n_buckets) - np.uint64(1)
        found.append((entries[is_shared] << np.uint64(32)) | buckets)
        n_buckets += int(starts.sum())
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def _measure_overlap(one: Hashes, other: Hashes) -> float:
    """Return the Jaccard similarity of two texts' shingles."""
    both = np.sort(np.concatenate([one, other]))
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared)


def _hash_units(units: Sequence[str]) -> int:
    text = "\n".join(units).encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _embed_rounded(embed: Embedder, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the texts' vectors in whole steps, and the squares of their lengths."""
    vectors = np.rint(embed.embed(texts) * _STEPS).astype(np.float32)
    return vectors, (vectors.astype(np.float64) ** 2).sum(axis=1)


def _divide(products: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Return cosines from products of vectors and of their squares; 0 with a text that has no vector."""
    lengths = np.sqrt(squares)
    return np.divide(products, lengths, out=np.zeros(lengths.shape), where=lengths > 0)


def _mix(values: Hashes) -> Hashes:
    """Spread each value over 64 bits, so that near values have nothing in common (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _drop_repeats(values: np.ndarray) -> np.ndarray:
    """Return sorted values, each once."""
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _spread(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return start, start + 1, ... for each start, as many as its size, one after the other."""
    ends = np.cumsum(sizes)
    n_all = int(ends[-1]) if len(ends) else 0
    return np.arange(n_all) + np.repeat(starts - (ends - sizes), sizes)


def _count_earlier(owners: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the owners of sorted keys, how many stand before each under the same key, and where those begin."""
    positions = np.arange(len(keys))
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    starts = np.maximum.accumulate(np.where(is_first, positions, 0))
    return owners, positions - starts, starts


def _split(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Cut into slices whose sizes add up to about `most`."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        done = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield slice(start, stop)
        start = stop
