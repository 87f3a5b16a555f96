"""How varied a set of texts is, and which of many candidates make a varied set.

Measures look at texts (words, compression), at vectors where there are any, and at who the texts come from. Nothing
depends on the order of the rows: they are brought into the order of their hashes first, then sampled by the seed.
Several measures grow or shrink with the size of a set: compare sets of equal size, or at least of equal sample size.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from matrix_dspy.engine.embedding import Vectors
from matrix_dspy.errors import ConfigError
from matrix_dspy.text import replace_surrogates, words

DiverseMethod = Literal["mmr", "dpp"]
N_WORDS_SAMPLE = 5_000
"""Texts of which n-grams are counted and which are compressed."""
N_BLEU_SAMPLE = 500
"""Texts compared with each other by self-BLEU, whose value depends on their number."""
N_VECTOR_SAMPLE = 2_000
"""Vectors compared with each other."""
N_CLUSTERS = 20
LEAST_PER_CLUSTER = 5
BLEU_ORDER = 4
BLEU_EPSILON = 0.1
"""Matches counted where there are none (Chen and Cherry 2014, method 1)."""
BANDWIDTH = 0.5
"""Of the DPP's kernel exp((cosine - 1) / bandwidth), by which texts of cosine 0 are alike to 0.14, of 0.9 to 0.82."""
RIDGE = 1e-3
"""Added to the self-similarity of every text in the DPP's kernel: copies can be picked too, last of all."""
LARGEST_POOL: dict[DiverseMethod, int] = {"mmr": 20_000, "dpp": 5_000}
"""Candidates compared with each other; a larger pool is parted at random, and twins may stay in different parts."""
N_DIGITS = 6
"""Digits kept of a measure, fewer than the order of additions in a linear algebra library can change."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a report."""

    name: str
    value: float | None
    """None where the set is too small for it, or what it needs was not given."""
    unit: str
    more_diverse: Literal["higher", "lower"]
    n: int
    """Texts it was measured on."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How the texts spread over groups or occupations."""

    n: int
    """Texts that name one."""
    n_found: int
    """Different ones in the set."""
    share: float | None
    """Of those in the population, the share that is in the set; None where the population is not known."""
    entropy: float | None
    """Of the shares, as a part of the largest possible; None where there is one only."""
    largest: float | None
    """Share of the most frequent one."""


@dataclass(frozen=True, slots=True)
class Diversity:
    """What `measure_diversity` found."""

    n: int
    n_words_sample: int
    n_bleu_sample: int
    n_vector_sample: int
    distinct_1: float | None
    """Different words among all words; `distinct_2` and `distinct_3` the same of runs of words."""
    distinct_2: float | None
    distinct_3: float | None
    compression_ratio: float | None
    """Size before and after zlib at level 9, which sees repeats within 32 KiB."""
    self_bleu: float | None
    """Mean BLEU-4 of each text of a sample against all others of it."""
    vendi: float | None
    """Effective number of different texts in a sample (Friedman and Dieng 2023, cosine kernel)."""
    nearest_distance: float | None
    """Mean of 1 - cosine to the nearest other text of a sample."""
    cluster_entropy: float | None
    """Entropy of k-means clusters as a part of the largest possible."""
    n_clusters: int
    groups: Coverage | None
    occupations: Coverage | None

    def as_rows(self) -> list[Measure]:
        """Return the measures, each with its unit, the direction that is more diverse and the size of its sample."""
        by_words, by_vectors = self.n_words_sample, self.n_vector_sample
        rows = [
            Measure("distinct-1", self.distinct_1, "share of words", "higher", by_words),
            Measure("distinct-2", self.distinct_2, "share of 2-word runs", "higher", by_words),
            Measure("distinct-3", self.distinct_3, "share of 3-word runs", "higher", by_words),
            Measure("compression ratio", self.compression_ratio, "times smaller by zlib", "lower", by_words),
            Measure("self-BLEU", self.self_bleu, "BLEU-4, 0 to 1", "lower", self.n_bleu_sample),
            Measure("Vendi score", self.vendi, "effective texts", "higher", by_vectors),
            Measure("nearest neighbour", self.nearest_distance, "1 - cosine", "higher", by_vectors),
            Measure("cluster entropy", self.cluster_entropy, f"of {self.n_clusters} clusters", "higher", by_vectors),
        ]
        for name, found in (("groups", self.groups), ("occupations", self.occupations)):
            if found is not None:
                rows += [
                    Measure(f"{name} covered", found.share, "share of the population's", "higher", found.n),
                    Measure(f"entropy of {name}", found.entropy, "share of the largest possible", "higher", found.n),
                    Measure(f"largest of {name}", found.largest, "share of texts", "lower", found.n),
                ]
        return rows


def measure_diversity(
    texts: Sequence[str],
    vectors: Vectors | None = None,
    *,
    groups: Sequence[str | None] | None = None,
    occupations: Sequence[str | None] | None = None,
    all_groups: Iterable[str] | None = None,
    all_occupations: Iterable[str] | None = None,
    seed: int = 0,
) -> Diversity:
    """Measure how varied `texts` are.

    `vectors`, `groups` and `occupations` belong to the texts one by one; `all_groups` and `all_occupations` are those
    of the whole population.
    """
    for name, given in (("vectors", vectors), ("groups", groups), ("occupations", occupations)):
        if given is not None and len(given) != len(texts):
            raise ConfigError(f"there are {len(texts)} texts but {len(given)} {name}; give one for each text")
    order = _order_texts(texts)
    by_words = [words(texts[i]) for i in _draw(order, N_WORDS_SAMPLE, seed)]
    by_bleu = [words(texts[i]) for i in _draw(order, N_BLEU_SAMPLE, seed)]
    sample = _draw_vectors(vectors, order, seed)
    n_clusters, cluster_entropy = measure_cluster_entropy(sample, seed)
    return Diversity(
        n=len(texts),
        n_words_sample=len(by_words),
        n_bleu_sample=len(by_bleu),
        n_vector_sample=len(sample),
        distinct_1=measure_distinct(by_words, 1),
        distinct_2=measure_distinct(by_words, 2),
        distinct_3=measure_distinct(by_words, 3),
        compression_ratio=measure_compression([texts[i] for i in _draw(order, N_WORDS_SAMPLE, seed)]),
        self_bleu=measure_self_bleu(by_bleu),
        vendi=measure_vendi(sample),
        nearest_distance=measure_nearest_distance(sample),
        cluster_entropy=cluster_entropy,
        n_clusters=n_clusters,
        groups=None if groups is None else measure_coverage(groups, all_groups),
        occupations=None if occupations is None else measure_coverage(occupations, all_occupations),
    )


def measure_distinct(tokenised: Iterable[Sequence[str]], n_words: int) -> float | None:
    """Return the share of different runs of `n_words` words among all (Li et al. 2016); None without any."""
    counts = Counter(run for tokens in tokenised for run in _list_runs(tokens, n_words))
    return round(len(counts) / counts.total(), N_DIGITS) if counts else None


def measure_compression(texts: Iterable[str]) -> float | None:
    """Return how many times smaller zlib (level 9) makes the texts, one a line; None without text."""
    whole = "\n".join(replace_surrogates(text) for text in texts).encode()
    return round(len(whole) / len(zlib.compress(whole, 9)), N_DIGITS) if whole else None


def measure_self_bleu(tokenised: Sequence[Sequence[str]]) -> float | None:
    """Return the mean BLEU-4 of each text against all others (Zhu et al. 2018); None for fewer than two texts.

    Clipped by the largest count in any other text, which is the largest of all or, for the text that holds it, the
    second largest: so the cost grows with the number of words, not with the number of pairs. Without matches of some
    length, `BLEU_EPSILON` of one is counted; a text that shares no word with any other has 0.
    """
    tokenised = [tokens for tokens in tokenised if tokens]
    if len(tokenised) < 2:
        return None
    lengths = np.sort(np.array([len(tokens) for tokens in tokenised]))
    precisions = np.array([_list_precisions(tokenised, order) for order in range(1, BLEU_ORDER + 1)])
    scores = []
    for tokens, own in zip(tokenised, precisions.T, strict=True):
        shared = math.exp(math.fsum(math.log(value) for value in own) / BLEU_ORDER) if own[0] > 0 else 0.0
        scores.append(shared * _penalise_brevity(len(tokens), lengths))
    return round(math.fsum(scores) / len(scores), N_DIGITS)


def measure_vendi(vectors: Vectors) -> float | None:
    """Return the effective number of different vectors of unit length, from 1 (all alike) to their number.

    The eigenvalues of the similarities are those of the smaller product of the vectors with themselves.
    """
    if not len(vectors):
        return None
    n, n_dims = vectors.shape
    with _one_thread():
        gram = vectors.T @ vectors if n_dims < n else vectors @ vectors.T
        shares = np.linalg.eigvalsh(gram / n)
    shares = shares[shares > 1e-12]
    return round(math.exp(-math.fsum(shares * np.log(shares))), N_DIGITS)


def measure_nearest_distance(vectors: Vectors) -> float | None:
    """Return the mean of 1 - cosine between each vector and the nearest other; None for fewer than two."""
    if len(vectors) < 2:
        return None
    with _one_thread():
        similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    nearest = np.clip(similarity.max(axis=1), -1.0, 1.0)
    return round(1 - math.fsum(nearest) / len(nearest), N_DIGITS) + 0.0


def measure_cluster_entropy(vectors: Vectors, seed: int = 0) -> tuple[int, float | None]:
    """Return the number of k-means clusters and the entropy of their sizes, as a share of the largest possible.

    None where there are too few vectors for two clusters of `LEAST_PER_CLUSTER`; 0 where all are alike.
    """
    n_clusters = min(N_CLUSTERS, len(vectors) // LEAST_PER_CLUSTER)
    if n_clusters < 2:
        return 0, None
    if (n_different := len(np.unique(vectors, axis=0))) < n_clusters:
        if n_different == 1:
            return n_clusters, 0.0
        n_clusters = n_different
    from sklearn.cluster import KMeans

    settings: Any = {"n_init": 1, "random_state": seed}
    with _one_thread():
        labels = KMeans(n_clusters, **settings).fit_predict(vectors)
    return n_clusters, _measure_entropy(Counter(labels.tolist()).values(), n_clusters)


def measure_coverage(names: Sequence[str | None], population: Iterable[str] | None = None) -> Coverage:
    """Return how `names`, one a text or None, spread over those in the population."""
    counts = Counter(name for name in names if name)
    known = None if population is None else {name for name in population if name}
    n, n_all = counts.total(), len(known | counts.keys()) if known else len(counts)
    return Coverage(
        n=n,
        n_found=len(counts),
        share=round(len(known & counts.keys()) / len(known), N_DIGITS) if known else None,
        entropy=_measure_entropy(counts.values(), n_all) if n else None,
        largest=round(max(counts.values()) / n, N_DIGITS) if n else None,
    )


def pick_diverse(
    ids: Sequence[str],
    vectors: Vectors,
    relevance: Sequence[float | None] | None,
    n: int,
    method: DiverseMethod = "mmr",
    diversity: float = 0.5,
) -> list[str]:
    """Return `n` of `ids` (all where there are fewer) that are relevant and unlike each other, in the order picked.

    `relevance` is any number, higher is better: a rating, or minus a rank; what has none counts as average, and
    without any all are equal. `diversity` goes from 0 (relevance alone) to 1 (variety alone). The same rows give the
    same choice in whatever order they come.

    `mmr` is pyversity's maximal marginal relevance. `dpp` is the greedy most probable set of a determinantal point
    process, with a kernel of full rank: pyversity's own kernel is the cosine, by which no more texts can be told apart
    than vectors have dimensions, and beyond them it picks by rounding errors.

    Raises:
        ConfigError: the method is unknown, or ids, vectors and relevance do not fit together.
    """
    if method not in get_args(DiverseMethod):
        raise ConfigError(f"unknown method {method!r}; write 'mmr' or 'dpp'")
    if not 0 <= diversity <= 1:
        raise ConfigError(f"diversity is {diversity}; write a number from 0 to 1")
    if not len(ids) == len(vectors) == (len(ids) if relevance is None else len(relevance)):
        raise ConfigError(f"there are {len(ids)} ids and {len(vectors)} vectors; give one of each, and one relevance")
    if len(set(ids)) < len(ids):
        raise ConfigError("an id stands twice among the candidates; give each once")
    if n <= 0 or not ids:
        return []
    order = sorted(range(len(ids)), key=ids.__getitem__)
    worth = _scale(relevance, len(ids))[order]
    unit = _unit(np.asarray(vectors, dtype=np.float32)[order])
    pick = _pick_mmr if method == "mmr" else _pick_dpp
    with _one_thread():
        picked = [
            (step, int(part[i]))
            for part, share in _part_pool([ids[i] for i in order], n, LARGEST_POOL[method])
            for step, i in enumerate(pick(unit[part], worth[part], share, diversity))
        ]
    return [ids[order[i]] for _, i in sorted(picked)]


def _pick_mmr(unit: np.ndarray, worth: np.ndarray, n: int, diversity: float) -> list[int]:
    from pyversity import Strategy, diversify

    return diversify(unit, worth, n, Strategy.MMR, diversity, normalize=False).indices.tolist()


def _pick_dpp(unit: np.ndarray, worth: np.ndarray, n: int, diversity: float) -> list[int]:
    """Pick what adds most to the determinant of the weighted kernel, one after the other.

    What a text adds is its weight times what the picked ones leave of it; what they take is the sum of squares of its
    row in the kernel's Cholesky factor, which grows by one column a step. Source: Chen, Zhang and Zhou 2018, with
    their weights exp(relevance * (1 - diversity) / diversity) on the squared scale.
    """
    if diversity == 0:
        return np.argsort(-worth, kind="stable")[:n].tolist()
    logs = worth * np.float32((1 - diversity) / diversity)
    left = np.ones(len(unit), dtype=np.float32)
    is_free = np.ones(len(unit), dtype=bool)
    factor = np.zeros((n, len(unit)), dtype=np.float32)
    picked: list[int] = []
    for step in range(n):
        best = int(np.argmax(np.where(is_free, logs + np.log(RIDGE + left), -np.inf)))
        picked.append(best)
        is_free[best] = False
        similarity = np.exp((unit @ unit[best] - 1) / BANDWIDTH)
        factor[step] = (similarity - factor[:step, best] @ factor[:step]) / np.sqrt(RIDGE + left[best])
        left -= factor[step] ** 2
        np.maximum(left, 0, out=left)
    return picked


def _part_pool(ids: Sequence[str], n: int, largest: int) -> Iterator[tuple[np.ndarray, int]]:
    """Part a pool that is too large by the hashes of its ids; give the places of each part and how many to pick."""
    n = min(n, len(ids))
    n_parts = -(-len(ids) // largest)
    shuffled = sorted(range(len(ids)), key=lambda i: (_hash(ids[i]), i)) if n_parts > 1 else range(len(ids))
    bounds = [len(ids) * i // n_parts for i in range(n_parts + 1)]
    for low, high in pairwise(bounds):
        share = n * high // len(ids) - n * low // len(ids)
        yield np.array(sorted(shuffled[low:high])), share


def _scale(relevance: Sequence[float | None] | None, n: int) -> np.ndarray:
    """Bring relevance to 0 to 1; what is no number becomes the mean of those that are."""
    values = np.array([math.nan if value is None else value for value in relevance or [0.0] * n], dtype=np.float64)
    is_known = np.isfinite(values)
    if not is_known.any():
        return np.zeros(n, dtype=np.float32)
    values[~is_known] = math.fsum(sorted(values[is_known])) / is_known.sum()
    low, high = values.min(), values.max()
    return ((values - low) / (high - low) if high > low else np.zeros(n)).astype(np.float32)


def _order_texts(texts: Sequence[str]) -> list[int]:
    """Return the places of the texts in an order that depends on nothing but the texts."""
    hashes = [_hash(text) for text in texts]
    return sorted(range(len(texts)), key=hashes.__getitem__)


def _draw(order: Sequence[int], n: int, seed: int) -> Sequence[int]:
    if len(order) <= n:
        return order
    drawn = np.random.default_rng(seed).choice(len(order), n, replace=False)
    return [order[i] for i in np.sort(drawn)]


def _draw_vectors(vectors: Vectors | None, order: Sequence[int], seed: int) -> Vectors:
    """Return a sample of the vectors, of unit length; a text without words has none."""
    if vectors is None or not len(vectors):
        return np.zeros((0, 1))
    drawn = np.asarray(vectors[np.array(_draw(order, N_VECTOR_SAMPLE, seed))], dtype=np.float64)
    return _unit(drawn[np.linalg.norm(drawn, axis=1) > 1e-12])


def _list_runs(tokens: Sequence[str], n_words: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n_words)), strict=False)


def _list_precisions(tokenised: Sequence[Sequence[str]], order: int) -> list[float]:
    """Return for each text the clipped, smoothed share of its runs of `order` words that other texts have."""
    counted = [Counter(_list_runs(tokens, order)) for tokens in tokenised]
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    """Run of words to its largest count, the text that holds it, and the largest count in any other text."""
    for i, counts in enumerate(counted):
        for run, n in counts.items():
            first, holder, second = most.get(run, (0, -1, 0))
            most[run] = (n, i, first) if n > first else (first, holder, max(second, n))
    found = []
    for i, counts in enumerate(counted):
        n_shared = sum(min(n, most[run][2] if most[run][1] == i else most[run][0]) for run, n in counts.items())
        n_all = max(1, counts.total())
        found.append(n_shared / n_all if n_shared or order == 1 else BLEU_EPSILON / n_all)
    return found


def _penalise_brevity(length: int, lengths: np.ndarray) -> float:
    """Return BLEU's penalty for a text of `length` words, given all lengths, its own among them, in order.

    The reference is the nearest length of another text; of two as near, the shorter.
    """
    place = int(np.searchsorted(lengths, length))
    if place + 1 < len(lengths) and lengths[place + 1] == length:
        return 1.0
    if place > 0 and (place + 1 == len(lengths) or length - lengths[place - 1] <= lengths[place + 1] - length):
        return 1.0  # the nearest is shorter
    return math.exp(1 - float(lengths[place + 1]) / length)


def _measure_entropy(counts: Iterable[int], n_possible: int) -> float | None:
    if n_possible < 2:
        return None
    total = math.fsum(counts)
    shares = sorted(count / total for count in counts)
    return round(-math.fsum(share * math.log(share) for share in shares) / math.log(n_possible), N_DIGITS) + 0.0


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _unit(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-12)


def _one_thread() -> AbstractContextManager[object]:
    """Let linear algebra run in one thread, so that sums are added in the same order on any machine."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)
