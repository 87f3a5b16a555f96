"""How strong models are, from battles between them: Bradley and Terry's model by maximum likelihood.

P(a beats b) = 1 / (1 + exp(s_b - s_a)); a tie is half a win for either, and a verdict of much better counts as three
battles, as in Arena-Hard v0.1 (arXiv 2406.11939 §4). Strengths are told against a baseline: the chance to beat it in
percent, and an Elo-like scale on which it has 1,000 and ten to one is 400. Intervals are bootstraps over prompts, both
orders of a pair and all its weight together (Arena-Hard resamples single battles).

Models that won, or lost, all their battles with the others have no finite maximum-likelihood strength (Ford 1957).
Then, and in resamples where that happens, half a battle won by either side is added to every such pair that met; other
pairs are left as they are, and the result says of which models that holds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.intervals import CONFIDENCE, N_RESAMPLES, Interval, number_clusters, resample, wilson

STRONG_WEIGHT = 3.0
"""How many battles a verdict of much better counts as. Arena-Hard v0.1: 3."""
ELO_SCALE = 400 / math.log(10)
"""Elo points to one unit of strength (natural log-odds)."""
ELO_BASELINE = 1000.0
PRIOR = 0.5
"""Battles won by each side, added to a pair that met where no finite maximum exists without them."""
LEAST_PROMPTS = 10
"""Prompts of a model from which its interval is a bootstrap's; fewer may be in no resample at all."""
_MOST_STEPS = 100
_LONGEST_STEP = 2.0
_CLOSE = 1e-10

VERDICTS: dict[str, tuple[float, float]] = {
    "A>>B": (1.0, STRONG_WEIGHT),
    "A>B": (1.0, 1.0),
    "A=B": (0.5, 1.0),
    "B>A": (0.0, 1.0),
    "B>>A": (0.0, STRONG_WEIGHT),
}
"""Five-level verdict to A's score and its weight."""
_SAME_AS = {"A<<B": "B>>A", "A<B": "B>A", "B=A": "A=B", "B<A": "A>B", "B<<A": "A>>B"}


@dataclass(frozen=True, slots=True)
class Battle:
    """One comparison of two models' answers."""

    model_a: str
    model_b: str
    score: float
    """1 where A won, 0 where B did, 0.5 for a tie; between them for a judge that is not sure."""
    weight: float = 1.0
    """How many battles it counts as."""
    prompt: str = ""
    """What both answered; battles of one prompt are resampled together. Empty: it stands alone."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a model stands against the baseline."""

    model: str
    win_rate: Interval
    """Percent of battles against the baseline it is expected to win."""
    elo: Interval
    strength: float
    """Natural log-odds of beating the baseline."""
    n_battles: int
    is_regularised: bool
    """Whether its strength against the baseline would not be finite without the battles added (`PRIOR`)."""


def read_verdict(verdict: str) -> tuple[float, float]:
    """Return A's score and the weight of a five-level verdict such as `A>>B`.

    Raises:
        TableError: it is none of the five.
    """
    plain = "".join(verdict.split()).upper()
    plain = _SAME_AS.get(plain, plain)
    if plain not in VERDICTS:
        raise TableError(f"no verdict {verdict[:40]!r}; use one of {', '.join(VERDICTS)}")
    return VERDICTS[plain]


def rank_models(
    battles: Sequence[Battle], baseline: str, *, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> list[Standing]:
    """Return where each model stands, the best first; the baseline stands at exactly 50 % and 1,000.

    Where a model's strength is finite only for the battles added, it has fewer than `LEAST_PROMPTS`, or every resample
    gives the same (nothing but ties), resampling would know too little doubt: Wilson's interval over its prompts is
    given then.

    Raises:
        ConfigError: the baseline fought no battle.
        TableError: a battle cannot be, or nothing joins a model to the baseline.
    """
    models, numbers, table = _tabulate(battles)
    anchor = _find_anchor(models, baseline)
    wins = table.sum(axis=0)
    met = (wins + wins.T) > 0
    _check_joined(met, models, anchor)
    strengths = _fit(wins[None], met, anchor)[0]
    lows, highs = np.zeros(len(models)), np.zeros(len(models))
    if len(table) > 1:

        def measure(weights: np.ndarray) -> np.ndarray:
            return _fit(_weigh(weights, table), met, anchor)

        drawn = resample(measure, len(table), seed=seed, n_resamples=n_resamples)
        lows, highs = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    reached = _close(wins[None] > 0)[0]
    is_finite = reached[anchor] & reached[:, anchor]
    n_prompts = (table.sum(axis=2) + table.sum(axis=1) > 0).sum(axis=0)
    found: list[Standing] = []
    for i, model in enumerate(models):
        n, strength = int(n_prompts[i]), float(strengths[i])
        if i != anchor and (not is_finite[i] or n < LEAST_PROMPTS or np.isclose(lows[i], highs[i])):
            share = wilson(float(expit(strength)) * n, n)
            lows[i], highs[i] = logit(share.low), logit(share.high)
        interval = Interval(strength, float(lows[i]), float(highs[i]), n)
        found.append(
            Standing(
                model=model,
                win_rate=_change(interval, lambda each: float(100 * expit(each))),
                elo=_change(interval, lambda each: ELO_BASELINE + ELO_SCALE * each),
                strength=strength,
                n_battles=int(numbers[i]),
                is_regularised=not is_finite[i],
            )
        )
    return sorted(found, key=lambda each: (-each.strength, each.model))


def _change(interval: Interval, unit: Callable[[float], float]) -> Interval:
    return Interval(unit(interval.value), unit(interval.low), unit(interval.high), interval.n)


def _find_anchor(models: list[str], baseline: str) -> int:
    if baseline not in models:
        raise ConfigError(f"the baseline {baseline!r} is in no battle; choose one of {', '.join(map(repr, models))}")
    return models.index(baseline)


def _tabulate(battles: Sequence[Battle]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the models by name, how many battles each fought, and (n_prompts, n_models, n_models) weights of wins."""
    for battle in battles:
        _check_battle(battle)
    models = sorted({name for battle in battles for name in (battle.model_a, battle.model_b)})
    if not models:
        raise TableError("no battles; let a judge compare some answers first")
    places = {name: i for i, name in enumerate(models)}
    prompts, n_prompts = number_clusters([battle.prompt or ("", i) for i, battle in enumerate(battles)])
    a = np.array([places[battle.model_a] for battle in battles])
    b = np.array([places[battle.model_b] for battle in battles])
    scores = np.array([battle.score for battle in battles], dtype=float)
    weights = np.array([battle.weight for battle in battles], dtype=float)
    table = np.zeros((n_prompts, len(models), len(models)))
    np.add.at(table, (prompts, a, b), weights * scores)
    np.add.at(table, (prompts, b, a), weights * (1 - scores))
    return models, np.bincount(np.concatenate([a, b]), minlength=len(models)), table


def _check_battle(battle: Battle) -> None:
    what = f"the battle of {battle.model_a!r} and {battle.model_b!r}"
    if battle.model_a == battle.model_b:
        raise TableError(f"{what} is one of a model with itself; leave it out")
    if not 0 <= battle.score <= 1:  # also refuses what is no number
        raise TableError(f"{what} has the score {battle.score!r}; give 1, 0.5 or 0, or a number between")
    if not 0 < battle.weight < math.inf:
        raise TableError(f"{what} has the weight {battle.weight!r}; give a number above 0")


def _check_joined(met: np.ndarray, models: Sequence[str], anchor: int) -> None:
    reached = _close(met[None])[0, anchor]
    if not reached.all():
        lost = models[int(np.flatnonzero(~reached)[0])]
        raise TableError(
            f"no chain of battles joins {lost!r} to the baseline {models[anchor]!r}; let it meet one that is joined"
        )


def _weigh(weights: np.ndarray, table: np.ndarray) -> np.ndarray:
    n_prompts, n_models, _ = table.shape
    return (weights @ table.reshape(n_prompts, -1)).reshape(-1, n_models, n_models)


def _close(steps: np.ndarray) -> np.ndarray:
    """Return which model reaches which over any number of steps, (n, n_models, n_models) bool."""
    reached = steps | np.eye(steps.shape[1], dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(steps.shape[1])))):
        counts = reached.astype(np.float32)
        reached = np.greater(counts @ counts, 0)
    return reached


def _fit(wins: np.ndarray, met: np.ndarray, anchor: int) -> np.ndarray:
    """Return strengths (n, n_models) of tables of wins (n, n_models, n_models) by Newton's method, the anchor's 0.

    Pairs that met, (n_models, n_models) bool, of models no chain of wins joins both ways get `PRIOR`.
    """
    reached = _close(wins > 0)
    wins = wins + PRIOR * (met & ~(reached & reached.transpose(0, 2, 1)))
    n, n_models, _ = wins.shape
    games = wins + wins.transpose(0, 2, 1)
    won = wins.sum(axis=2)
    free = [i for i in range(n_models) if i != anchor]
    strengths = np.zeros((n, n_models))
    for _ in range(_MOST_STEPS):
        chance = expit(strengths[:, :, None] - strengths[:, None, :])
        slope = won - (games * chance).sum(axis=2)
        pull = games * chance * (1 - chance)
        bend = np.eye(n_models) * pull.sum(axis=2)[:, :, None] - pull
        step = np.linalg.solve(bend[:, free][:, :, free], slope[:, free, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True, initial=0.0)
        strengths[:, free] += step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max(initial=0.0) < _CLOSE:
            break
    return strengths
