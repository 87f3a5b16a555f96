"""Reward-aware selection: which instructions can still teach a model, and which pairs of answers show the difference.

Scores come in, decisions go out; no model is asked here. The rules are this project's own (METHOD 3.6) and no paper's:
an instruction teaches when the model to be trained sometimes does well on it and sometimes not.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, TypeGuard, get_args

from matrix_dspy.errors import ConfigError
from matrix_dspy.types import Difficulty

ScoreKind = Literal["verifier", "graded"]
"""`verifier` scores are 1 for a pass and less for a failure; `graded` ones lie anywhere from 0 to 1."""
Reason = Literal["teaches", "saturated", "hopeless", "too even", "too wild", "below noise", "no score"]
LABEL = "reward-aware selection is this project's own method; the paper describes none"
N_BINS = 10
LARGEST_LEARNABILITY = 0.25
"""The variance of scores of which half are 0 and half are 1."""
_TOLERANCE = 1e-9
"""Sums of floats end this near to the bounds they should meet."""


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """The bounds of METHOD 3.6."""

    least_learnability: float = 0.10
    """Of pass/fail scores: p(1 - p), so that 1 to 7 of 8 pass."""
    least_spread: float = 0.05
    """Standard deviation of graded scores."""
    most_spread: float = 0.35
    least_noises: float = 2.0
    """The spread is at least this many times the judge's repeat noise."""
    saturated_mean: float = 0.9
    hopeless_mean: float = 0.1
    aligned_pass: float = 0.5
    """Graded score from which the aligned model's answer is good enough for the SFT pool."""
    most_missing: float = 0.25
    """Share of the scores that may be missing."""
    least_margin: float = 0.10
    most_margin: float = 0.60
    best_margin: float = 0.35
    most_length_ratio: float = 2.0

    def __post_init__(self) -> None:
        for low, high in (
            ("least_spread", "most_spread"),
            ("hopeless_mean", "saturated_mean"),
            ("least_margin", "best_margin"),
            ("best_margin", "most_margin"),
        ):
            if not 0 <= getattr(self, low) <= getattr(self, high) <= 1:
                one, other = getattr(self, low), getattr(self, high)
                raise ConfigError(f"{low} {one} and {high} {other} do not do; write 0 <= {low} <= {high} <= 1")
        for name in ("least_learnability", "aligned_pass", "most_missing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; write a number from 0 to 1")
        if not (self.least_margin > 0 and self.most_length_ratio >= 1 and 0 <= self.least_noises < math.inf):
            raise ConfigError("least_margin must be above 0, most_length_ratio at least 1, least_noises at least 0")


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an instruction is kept, why, and what its scores looked like."""

    verdict: Literal["keep", "drop"]
    reason: Reason
    learnability: float | None
    """Variance of the known scores; of pass/fail scores that is p(1 - p). None without enough scores."""
    mean: float | None
    spread: float | None
    """Standard deviation of the known scores, the root of their learnability."""
    n_scores: int
    """How many of the scores are numbers."""
    offer_to_sft: bool = False
    """The model to be trained has no chance, yet the aligned model's answer passes: better learnt by imitation."""

    @property
    def is_kept(self) -> bool:
        """Whether the instruction can teach."""
        return self.verdict == "keep"


@dataclass(frozen=True, slots=True)
class ScoredResponse:
    """A response with what the choice of a pair needs to know of it."""

    id: str
    score: float | None
    length: int
    """In words or tokens, the same for all."""
    is_aligned: bool = False
    """Written by the aligned model, and so never the rejected side."""


def decide(
    scores: Sequence[float | None],
    aligned: float | None,
    kind: ScoreKind,
    noise: float = 0.0,
    settings: SelectionSettings | None = None,
) -> Decision:
    """Say whether an instruction can teach the model whose k answers got `scores`.

    `aligned` is the score of the aligned model's one answer; `noise` the standard deviation of a judge's repeated
    scores of the same answer, on the same scale (0 for a scorer that always says the same). A score that is no number
    from 0 to 1 counts as missing, never as a number.

    Raises:
        ConfigError: the kind is unknown or the noise is no number.
    """
    settings = settings or SelectionSettings()
    if kind not in get_args(ScoreKind):
        raise ConfigError(f"unknown kind of score {kind!r}; write 'verifier' or 'graded'")
    if not (math.isfinite(noise) and noise >= 0):
        raise ConfigError(f"the judge's repeat noise is {noise}; give its standard deviation, 0 or more")
    known: list[float] = sorted(filter(is_score, scores))
    n_missing = len(scores) - len(known)
    if len(known) < 2 or n_missing > settings.most_missing * len(scores) + _TOLERANCE:
        return Decision("drop", "no score", None, None, None, len(known))
    if kind == "verifier":
        known = [float(is_pass(score)) for score in known]
    mean = math.fsum(known) / len(known)
    learnability = math.fsum((score - mean) ** 2 for score in known) / len(known)
    spread = math.sqrt(learnability)
    if kind == "verifier":
        reason = _judge_passes(mean, learnability, settings)
        passes = is_pass(aligned)
    else:
        reason = _judge_grades(mean, spread, noise, settings)
        passes = is_score(aligned) and aligned >= settings.aligned_pass
    return Decision(
        verdict="keep" if reason == "teaches" else "drop",
        reason=reason,
        learnability=learnability,
        mean=mean,
        spread=spread,
        n_scores=len(known),
        offer_to_sft=reason == "hopeless" and passes,
    )


def is_score(score: float | None) -> TypeGuard[float]:
    """Whether a score is a number from 0 to 1."""
    return score is not None and 0 <= score <= 1


def is_pass(score: float | None) -> bool:
    """Whether a verifier passed the answer: all of its checks, not some."""
    return is_score(score) and score == 1


def _judge_passes(mean: float, learnability: float, settings: SelectionSettings) -> Reason:
    if mean == 1:
        return "saturated"
    if mean == 0:
        return "hopeless"
    return "teaches" if learnability >= settings.least_learnability - _TOLERANCE else "too even"


def _judge_grades(mean: float, spread: float, noise: float, settings: SelectionSettings) -> Reason:
    least = settings.least_noises * noise
    if spread < max(settings.least_spread, least) - _TOLERANCE:
        if mean >= settings.saturated_mean - _TOLERANCE:
            return "saturated"
        if mean <= settings.hopeless_mean + _TOLERANCE:
            return "hopeless"
        return "too even" if spread < settings.least_spread - _TOLERANCE else "below noise"
    return "too wild" if spread > settings.most_spread + _TOLERANCE else "teaches"


def choose_pair(
    responses: Iterable[ScoredResponse], settings: SelectionSettings | None = None
) -> tuple[ScoredResponse, ScoredResponse] | None:
    """Return the chosen and the rejected response of an instruction, or None where no pair will do.

    Chosen is the best of all; where several are equally good, the one with the better partner, then the aligned
    model's, then the lowest id. Rejected is one of the model to be trained whose score lies nearest to the best margin
    below it, then the lowest id. The choice does not depend on the order of `responses`.
    """
    settings = settings or SelectionSettings()
    known = [response for response in responses if is_score(response.score) and response.length > 0]
    if not known:
        return None
    best = max(_score(response) for response in known)
    pairs = [
        (chosen, rejected)
        for chosen in known
        if _score(chosen) == best
        for rejected in known
        if not rejected.is_aligned and _is_fair(chosen, rejected, settings)
    ]
    return min(pairs, key=lambda pair: _rank_pair(pair, settings), default=None)


def explain_no_pair(responses: Iterable[ScoredResponse], settings: SelectionSettings | None = None) -> str:
    """Return in a few fixed words why `choose_pair` finds none."""
    settings = settings or SelectionSettings()
    known = [response for response in responses if is_score(response.score) and response.length > 0]
    own = [response for response in known if not response.is_aligned]
    if len(known) < 2 or not own:
        return "no score"
    best = max(_score(response) for response in known)
    margins = [best - _score(response) for response in own]
    if all(margin < settings.least_margin - _TOLERANCE for margin in margins):
        return "margin too small"
    if all(margin > settings.most_margin + _TOLERANCE or margin == 0 for margin in margins):
        return "margin too large"
    if any(_is_within(margin, settings) for margin in margins):
        return "lengths too different"
    return "no margin fits"


def draw_control(ids: Iterable[str], n: int, seed: int = 0) -> list[str]:
    """Return `n` of `ids` (all of them where there are fewer), drawn at random and sorted.

    Draw from all that were scored, as many as the selection kept: without this comparison no gain may be claimed. A
    smaller draw with the same seed is part of a larger one.
    """
    drawn = sorted(set(ids), key=lambda id_: (blake2b(f"{seed}\x1f{id_}".encode(errors="replace")).digest(), id_))
    return sorted(drawn[: max(0, n)])


def describe_selection(
    decisions: Mapping[str, Decision],
    categories: Mapping[str, str] | None = None,
    difficulties: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return what a report says of a selection: counts by reason, learnability, category and difficulty.

    All three map ids of instructions. Each count by category or difficulty is a pair: before and after.
    """
    kept = [id_ for id_, decision in decisions.items() if decision.is_kept]
    counts = Counter(decision.reason for decision in decisions.values())
    learnability = [each.learnability for each in decisions.values() if each.learnability is not None]
    levels = [*get_args(Difficulty), "unrated"]
    by_category = _count_both({id_: (categories or {}).get(id_) or "unknown" for id_ in decisions}, kept)
    by_difficulty = _count_both({id_: (difficulties or {}).get(id_) or "unrated" for id_ in decisions}, kept)
    return {
        "label": LABEL,
        "n": len(decisions),
        "n_scored": len(decisions) - counts["no score"],
        "n_kept": len(kept),
        "n_offered_to_sft": sum(decision.offer_to_sft for decision in decisions.values()),
        "reasons": {reason: counts[reason] for reason in get_args(Reason)},
        "learnability": _build_histogram(learnability),
        "category": dict(sorted(by_category.items(), key=lambda item: (-item[1][0], item[0]))),
        "difficulty": {level: by_difficulty[level] for level in levels if level in by_difficulty},
    }


def _count_both(names: Mapping[str, str], kept: Iterable[str]) -> dict[str, tuple[int, int]]:
    before, after = Counter(names.values()), Counter(names[id_] for id_ in kept)
    return {name: (n, after[name]) for name, n in before.items()}


def _build_histogram(values: Iterable[float]) -> dict[str, list[float]]:
    """Count in bins of equal width from 0 to the largest learnability; the last bin holds its upper edge."""
    width = LARGEST_LEARNABILITY / N_BINS
    counts = Counter(min(N_BINS - 1, int((value + _TOLERANCE) / width)) for value in values)
    return {
        "edges": [round(width * i, 6) for i in range(N_BINS + 1)],
        "counts": [counts[i] for i in range(N_BINS)],
    }


def _is_fair(chosen: ScoredResponse, rejected: ScoredResponse, settings: SelectionSettings) -> bool:
    longer, shorter = max(chosen.length, rejected.length), min(chosen.length, rejected.length)
    return _is_within(_score(chosen) - _score(rejected), settings) and longer <= settings.most_length_ratio * shorter


def _is_within(margin: float, settings: SelectionSettings) -> bool:
    return settings.least_margin - _TOLERANCE <= margin <= settings.most_margin + _TOLERANCE


def _distance(chosen: ScoredResponse, rejected: ScoredResponse, settings: SelectionSettings) -> float:
    return round(abs(_score(chosen) - _score(rejected) - settings.best_margin), 9)


def _rank_pair(
    pair: tuple[ScoredResponse, ScoredResponse], settings: SelectionSettings
) -> tuple[float, bool, str, str]:
    chosen, rejected = pair
    return _distance(chosen, rejected, settings), not chosen.is_aligned, chosen.id, rejected.id


def _score(response: ScoredResponse) -> float:
    assert response.score is not None
    return response.score
