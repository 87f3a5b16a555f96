"""How far a judge may be trusted: agreement with labels, with intervals, and scores mapped to probabilities.

Kappa and Spearman are tested against scikit-learn and SciPy; intervals are percentile bootstraps over rows (Efron and
Tibshirani 1993); calibration is isotonic regression (Zadrozny and Elkan 2002).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from matrix_dspy.optimization.judged import GOOD, LEVELS

N_RESAMPLES = 1000
CONFIDENCE = 0.95
LEAST_KAPPA = 0.5
"""Quadratic-weighted kappa below which a judge may not be used as a metric; 0.41 to 0.60 is called moderate."""
LEAST_ROWS = 24
"""Held-out rows of a program a judge was measured on before it may serve as its metric."""
LEAST_PAIRS = 100
"""Held-out pairs a calibrated judge was asked, each in both orders (METHOD 3.6)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval."""

    value: float
    low: float
    high: float

    def dump(self) -> dict[str, float]:
        """Return it rounded, for a card."""
        return {name: round(getattr(self, name), 4) + 0.0 for name in ("value", "low", "high")}  # + 0.0: no minus zero

    def __str__(self) -> str:
        value, low, high = (round(each, 3) + 0.0 for each in (self.value, self.low, self.high))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def measure_kappa(labels: Sequence[int], scores: Sequence[int]) -> float:
    """Return the quadratic-weighted kappa of two lists of levels from 1 to 5; 0 where it is not defined.

    With quadratic weights Cohen's kappa has a closed form in means and variances (Fleiss and Cohen 1973), a hundred
    times faster than a table of counts, which a bootstrap needs.
    """
    if len(set(labels)) < 2 or len(set(scores)) < 2:
        return 0.0  # one of the two says the same of everything, and agrees no better than chance
    one, other = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    by_chance = one.var() + other.var() + (one.mean() - other.mean()) ** 2
    return float(1 - ((one - other) ** 2).mean() / by_chance)


def measure_spearman(labels: Sequence[float], scores: Sequence[float]) -> float:
    """Return the rank correlation of two lists; 0 where one of them is constant."""
    if len(set(labels)) < 2 or len(set(scores)) < 2:
        return 0.0
    return float(np.corrcoef(_rank(labels), _rank(scores))[0, 1])


def _rank(values: Sequence[float]) -> np.ndarray:
    """Return ranks from 1 up, equal values sharing their mean; several times faster than SciPy's on short lists."""
    _, places, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[places]


def bootstrap(
    measure: Callable[..., float], *columns: Sequence[Any], seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Interval:
    """Return `measure(*columns)` with its percentile interval over resampled rows."""
    arrays = [np.asarray(column) for column in columns]
    n_rows = len(arrays[0])
    if n_rows == 0:
        return Interval(0.0, 0.0, 0.0)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, n_rows, (n_resamples, n_rows))
    values = [measure(*(array[rows].tolist() for array in arrays)) for rows in drawn]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(measure(*(array.tolist() for array in arrays)), float(low), float(high))


def compare(before: Sequence[float], after: Sequence[float], seed: int = 0, n_resamples: int = 10_000) -> Interval:
    """Return the mean gain from `before` to `after`, row by row, with its paired bootstrap interval."""
    gains = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    if not len(gains):
        return Interval(0.0, 0.0, 0.0)
    drawn = np.random.default_rng(seed).integers(0, len(gains), (n_resamples, len(gains)))
    low, high = np.quantile(gains[drawn].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(gains.mean()), float(low), float(high))


def share_of_false_accepts(labels: Sequence[int], scores: Sequence[int]) -> float:
    """Return the share of bad rows (label below 4) that the judge scores 4 or 5; 0 without bad rows."""
    bad = [score for label, score in zip(labels, scores, strict=True) if label < GOOD]
    return sum(score >= GOOD for score in bad) / len(bad) if bad else 0.0


def calibrate(scores: Sequence[float], is_right: Sequence[bool]) -> list[float]:
    """Return for each level from 1 to 5 the probability of being right, never falling, by isotonic regression."""
    return _fit_isotonic(scores, [float(right) for right in is_right], LEVELS)


def calibrate_quality(scores: Sequence[int], labels: Sequence[int]) -> list[float]:
    """Return for each level from 1 to 5 the expected label, as a share from 0 to 1, never falling."""
    return _fit_isotonic(scores, [(label - 1) / 4 for label in labels], LEVELS)


def calibrate_margin(margins: Sequence[int], is_right: Sequence[bool]) -> dict[int, float]:
    """Return the probability that the first of two is better, by the difference of their scores (from -4 to 4).

    Each pair is read in both directions, so that no difference means one half; without pairs every one does.
    """
    both = [*margins, *(-margin for margin in margins)]
    right = [*map(float, is_right), *(1 - float(each) for each in is_right)]
    levels = range(-4, 5)
    if not both:
        return dict.fromkeys(levels, 0.5)
    return dict(zip(levels, _fit_isotonic(both, right, levels), strict=True))


def _fit_isotonic(scores: Sequence[float], targets: Sequence[float], levels: Sequence[int]) -> list[float]:
    from sklearn.isotonic import IsotonicRegression

    if not scores:
        return [0.0 for _ in levels]
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(list(scores), list(targets))
    return [round(float(value), 4) for value in fitted.predict(list(levels))]


def describe_agreement(labels: Sequence[int], scores: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Return kappa, Spearman and false accepts with their intervals, for a card."""
    return {
        "n": len(labels),
        "kappa": bootstrap(measure_kappa, labels, scores, seed=seed).dump(),
        "spearman": bootstrap(measure_spearman, labels, scores, seed=seed).dump(),
        "false_accepts": bootstrap(share_of_false_accepts, labels, scores, seed=seed).dump(),
        "exact": round(float(np.mean(np.asarray(labels) == np.asarray(scores))), 4) if len(labels) else 0.0,
    }


def describe_orders(preferred: Sequence[float], preferred_turned: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Return how a judge of pairs does when asked in both orders: agreement, flips, and a tie counted as a half.

    `preferred` and `preferred_turned` say of each pair whether the labelled response was chosen in the first order and
    in the other, a half where neither was.
    """
    scores = [(one + other) / 2 for one, other in zip(preferred, preferred_turned, strict=True)]
    flips = [float(one != other) for one, other in zip(preferred, preferred_turned, strict=True)]
    return {
        "n": len(scores),
        "agreement": bootstrap(_mean, scores, seed=seed).dump(),
        "both_orders_right": bootstrap(_mean, [float(score == 1) for score in scores], seed=seed).dump(),
        "order_flips": bootstrap(_mean, flips, seed=seed).dump(),
    }


def describe_noise(repeats: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return how far a judge's repeated scores of the same rows lie apart: standard deviation and share unchanged."""
    spreads = [float(np.std(scores, ddof=1)) for scores in repeats if len(scores) > 1]
    same = [len(set(scores)) == 1 for scores in repeats if len(scores) > 1]
    return {
        "n": len(spreads),
        "sd": round(float(np.mean(spreads)), 4) if spreads else 0.0,
        "unchanged": round(float(np.mean(same)), 4) if same else 1.0,
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
