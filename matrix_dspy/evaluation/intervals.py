"""A figure and how sure one may be of it: bootstraps over prompts, and Wilson's interval for shares.

What is resampled is always the prompt, never the row: answers to one prompt, judged in two orders or drawn several
times, stand or fall together. A resample is a row of counts (how often each prompt was drawn), so that a statistic that
takes weights is computed for all resamples at once. Seeded, and the same in every process.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri

from matrix_dspy.errors import ConfigError, TableError

Method = Literal["percentile", "bca"]
Weighted = Callable[[np.ndarray], np.ndarray]
"""A statistic: takes weights of the clusters, (n_resamples, n_clusters), and gives one figure a row."""

N_RESAMPLES = 1000
CONFIDENCE = 0.95
SHARE = (0.0, 1.0)
"""Bounds of a share or a rate."""
_MOST_CELLS = 1 << 17
"""Weights held at once; more resamples are done in parts, which stay in the cache: four times as fast at 1 MiB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval and what it rests on."""

    value: float
    low: float
    high: float
    n: int
    """Prompts, or whatever was resampled or counted."""

    def scale(self, factor: float) -> "Interval":
        """Return it in another unit, such as percent (100); the factor is above 0."""
        return Interval(self.value * factor, self.low * factor, self.high * factor, self.n)

    def dump(self) -> dict[str, float | int]:
        """Return it rounded to four places, for a card or a JSON file."""
        value, low, high = (round(each, 4) + 0.0 for each in (self.value, self.low, self.high))  # + 0.0: no minus zero
        return {"value": value, "low": low, "high": high, "n": self.n}

    def __str__(self) -> str:
        value, low, high = (round(each, 3) + 0.0 for each in (self.value, self.low, self.high))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def wilson(n_hits: float, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the share `n_hits / n` with Wilson's score interval (1927), which holds up at 0, at n and for few.

    `n_hits` need not be whole: ties count as a half.

    Raises:
        TableError: `n` is below 1, or `n_hits` is not between 0 and `n`.
    """
    if n < 1 or not 0 <= n_hits <= n:
        raise TableError(f"no share of {n_hits!r} in {n!r}; there must be at least one, and no more hits than that")
    z = _find_z(confidence)
    share = n_hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if n_hits == 0 else max(0.0, middle - half)
    return Interval(share, min(low, share), max(1.0 if n_hits == n else min(1.0, middle + half), share), n)


def bootstrap(
    measure: Weighted,
    n_clusters: int,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    method: Method = "percentile",
) -> Interval:
    """Return a statistic of weighted clusters with its interval over resamples of them.

    `measure` is called with weights (n_resamples, n_clusters) of float64, all 1 for the figure itself. `percentile` is
    Efron's (1979); `bca` is his bias-corrected and accelerated one (1987), for skewed statistics.

    Raises:
        TableError: there are fewer than two clusters.
    """
    if n_clusters < 2:
        raise TableError(f"no interval from {n_clusters} prompt; give at least 2")
    value = float(measure(np.ones((1, n_clusters)))[0])
    drawn = resample(measure, n_clusters, seed=seed, n_resamples=n_resamples)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if method == "bca":
        tails = _correct_tails(tails, value, drawn, _leave_one_out(measure, n_clusters))
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(low), float(high), n_clusters)


def resample(measure: Weighted, n_clusters: int, *, seed: int = 0, n_resamples: int = N_RESAMPLES) -> np.ndarray:
    """Return the statistic of each resample of clusters, (n_resamples,)."""
    if n_resamples < 1:
        raise ConfigError(f"{n_resamples} resamples give no interval; ask for at least 1, better {N_RESAMPLES:,}")
    generator = np.random.default_rng(seed)
    at_once = max(1, _MOST_CELLS // n_clusters)
    found: list[np.ndarray] = []
    for start in range(0, n_resamples, at_once):
        found.append(measure(draw_counts(n_clusters, min(at_once, n_resamples - start), generator)))
    return np.concatenate(found)


def draw_counts(n_clusters: int, n_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """Return how often each cluster was drawn, (n_resamples, n_clusters) float64; each row sums to `n_clusters`."""
    drawn = generator.integers(0, n_clusters, (n_resamples, n_clusters))
    drawn += np.arange(n_resamples)[:, None] * n_clusters
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_clusters)
    return counts.reshape(n_resamples, n_clusters).astype(float)


def number_clusters(keys: Sequence[Hashable]) -> tuple[np.ndarray, int]:
    """Number the clusters of rows from 0 in the order they first come; returns (n_rows,) numbers and how many."""
    known: dict[Hashable, int] = {}
    numbers = np.fromiter((known.setdefault(key, len(known)) for key in keys), dtype=np.int64, count=len(keys))
    return numbers, len(known)


def bootstrap_mean(
    values: Sequence[float],
    *,
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] | None = None,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
    confidence: float = CONFIDENCE,
    method: Method = "percentile",
) -> Interval:
    """Return the mean of rows with its interval over resampled clusters; without `clusters` each row is its own.

    Where all values are the same, resampling knows no doubt. With `bounds` (the least and greatest a value can be)
    Wilson's interval is given then, and for a single cluster too: no mean within bounds varies more than a share.

    Raises:
        TableError: no values, one that is no number or out of bounds, or a single cluster without bounds.
    """
    array = _check_values(values, bounds)
    numbers, n_clusters = _number(clusters, len(array))
    if bounds is not None and (n_clusters == 1 or np.ptp(array) == 0):
        low, high = bounds
        share = min(1.0, max(0.0, (float(array.mean()) - low) / (high - low)))
        found = wilson(share * n_clusters, n_clusters, confidence)
        value, least, most = (low + each * (high - low) for each in (found.value, found.low, found.high))
        return Interval(value, least, most, n_clusters)
    sums = np.bincount(numbers, weights=array, minlength=n_clusters)
    sizes = np.bincount(numbers, minlength=n_clusters).astype(float)
    return bootstrap(
        lambda weights: (weights @ sums) / (weights @ sizes),
        n_clusters,
        seed=seed,
        n_resamples=n_resamples,
        confidence=confidence,
        method=method,
    )


def _check_values(values: Sequence[float], bounds: tuple[float, float] | None) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if not len(array):
        raise TableError("no values to take a mean of; nothing was scored")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array))[0])
        raise TableError(f"value {row + 1} of {len(array)} is {array[row]}; leave out what was not scored")
    if bounds is not None and (array.min() < bounds[0] or array.max() > bounds[1]):
        bad = float(array.min() if array.min() < bounds[0] else array.max())
        raise TableError(f"the value {bad!r} is not between {bounds[0]} and {bounds[1]}; scale the values first")
    return array


def _number(clusters: Sequence[Hashable] | None, n_rows: int) -> tuple[np.ndarray, int]:
    if clusters is None:
        return np.arange(n_rows), n_rows
    if len(clusters) != n_rows:
        raise TableError(f"{n_rows} values have {len(clusters)} clusters; name one for each value")
    return number_clusters(clusters)


def _find_z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ConfigError(f"a confidence of {confidence!r} is not between 0 and 1; 0.95 is usual")
    return float(ndtri((1 + confidence) / 2))


def _leave_one_out(measure: Weighted, n_clusters: int) -> np.ndarray:
    at_once = max(1, _MOST_CELLS // n_clusters)
    found: list[np.ndarray] = []
    for start in range(0, n_clusters, at_once):
        rows = np.arange(start, min(start + at_once, n_clusters))
        weights = np.ones((len(rows), n_clusters))
        weights[np.arange(len(rows)), rows] = 0.0
        found.append(measure(weights))
    return np.concatenate(found)


def _correct_tails(tails: np.ndarray, value: float, drawn: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Shift the tails for bias (share of resamples below the figure) and skew (third moment of the jackknife)."""
    below = (np.count_nonzero(drawn < value) + np.count_nonzero(drawn == value) / 2) / len(drawn)
    if not 0 < below < 1:
        return tails
    spread = left_out.mean() - left_out
    scale = float((spread**2).sum()) ** 1.5
    skew = float((spread**3).sum()) / (6 * scale) if scale > 0 else 0.0
    bias = float(ndtri(below))
    z = bias + ndtri(tails)
    return ndtr(bias + z / np.maximum(1 - skew * z, 1e-9))
