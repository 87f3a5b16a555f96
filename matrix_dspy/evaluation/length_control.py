"""AlpacaEval 2's length-controlled win rate: how often a model would win if its answers were as long as the other's.

The judge's preference is modelled as (arXiv 2404.04475 §3)

    P(model wins on x) = logistic(theta + phi * tanh(d_x / sd(d)) + psi * gamma_x)

with d_x how many characters longer the model's answer to x is, and gamma_x how hard the prompt is. The
length-controlled win rate is the mean over prompts of that with d_x = 0. `gamma` is given in a file, or fitted over at
least five models' annotations, or left out; the result says which.

Fitted with scikit-learn: a preference p between 0 and 1 counts as a win of weight p and a loss of weight 1-p. The
penalty is L2 with C = 100, on the scale of standardised columns: it only keeps coefficients finite where the data
alone would not (AlpacaEval 0.6 picks an L1 penalty by cross-validation and adds annotations of two gamed models, which
it downloads; neither is done here). Intervals and standard errors are bootstraps over prompts of the whole fit;
AlpacaEval's own `lc_standard_error` is the spread of fitted values over prompts, which leaves the fit's doubt out: on
20 made sets of 805 annotations it was a third of this one on average.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import expit

from matrix_dspy.errors import TableError, boundary
from matrix_dspy.evaluation.intervals import (
    CONFIDENCE,
    N_RESAMPLES,
    SHARE,
    Interval,
    bootstrap_mean,
    number_clusters,
    resample,
)

DifficultySource = Literal["given", "fitted", "left out"]

C = 100.0
"""Inverse strength of the L2 penalty, as scikit-learn has it and AlpacaEval where it does not cross-validate."""
DIFFICULTY_VARIANCE = 1.0
"""Variance of the normal prior on the difficulties in the joint fit; on the scale of log-odds."""
LEAST_MODELS = 5
"""Models whose annotations of the same prompts a difficulty can be fitted from."""
LEAST_PROMPTS = 20
"""Annotated prompts below which three coefficients cannot be fitted."""
TIE = 1.5
_MOST_STEPS = 60
_LONGEST_STEP = 2.0
_CLOSE = 1e-9


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """What a judge said of two answers to one prompt, and how long they are."""

    prompt: str
    """The prompt or its id; rows of the same prompt are resampled together."""
    preference: float | None
    """From 1 (the reference wins) over 1.5 (a tie) to 2 (the evaluated model wins); None where the judge did not say.
    """
    n_chars: int
    """Characters of the evaluated model's answer."""
    n_chars_base: int
    """Characters of the reference's."""


@dataclass(frozen=True, slots=True)
class Difficulty:
    """How hard prompts are, on a scale of its own: higher means that better models win more."""

    values: Mapping[str, float]
    """By prompt, as in `JudgedPair.prompt`."""
    source: DifficultySource


@dataclass(frozen=True, slots=True)
class WinRate:
    """A model's win rates against a reference, in percent, and what they were computed from."""

    raw: Interval
    """The mean preference."""
    discrete: Interval
    """Wins, and ties as a half."""
    length_controlled: Interval | None
    """None where it cannot be told; `why_not` says why."""
    why_not: str
    """Empty where there is a length-controlled rate."""
    difficulty: DifficultySource
    """Whether the prompts' difficulty was given, fitted over models, or left out of the model."""
    standard_error: float
    """Of the raw rate, in percent: the bootstrap's, over prompts."""
    lc_standard_error: float | None
    """Of the length-controlled rate, in percent: the bootstrap's, refitted each time."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    """Annotated pairs."""
    n_unannotated: int
    """Pairs the judge said nothing usable of; they count nowhere else."""
    avg_length: float
    """Mean characters of the evaluated model's answers."""
    avg_length_base: float
    n_longer: int
    """Pairs in which the evaluated model's answer is the longer one."""
    n_shorter: int
    model_term: float | None
    """theta; log-odds of winning at equal length and mean difficulty."""
    length_term: float | None
    """phi; log-odds that a much longer answer gains."""
    difficulty_term: float | None
    """psi, per standard deviation of the difficulty."""

    @property
    def is_extrapolated(self) -> bool:
        """Whether one side's answers are always the longer ones, so that equal length was never seen."""
        return self.n_total > 0 and 0 in (self.n_longer, self.n_shorter) and self.n_longer + self.n_shorter > 0


def measure_win_rate(
    pairs: Sequence[JudgedPair],
    difficulty: Difficulty | None = None,
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> WinRate:
    """Return raw, discrete and length-controlled win rates with intervals over prompts.

    Where no length-controlled rate can be told (too few prompts, every preference on one side, answers that differ by
    the same length everywhere) it is None with the reason; the others are given all the same.

    Raises:
        TableError: nothing is annotated, a preference is not from 1 to 2, or a prompt has no difficulty.
    """
    judged = [pair for pair in pairs if _read_preference(pair) is not None]
    if not judged:
        raise TableError(f"none of the {len(pairs)} pairs has a preference; ask the judge first")
    wins = np.array([_read_preference(pair) for pair in judged], dtype=float) - 1
    discrete = np.where(wins > 0.5, 1.0, np.where(wins < 0.5, 0.0, 0.5))
    prompts = [pair.prompt for pair in judged]
    raw, coarse = (
        bootstrap_mean(each.tolist(), clusters=prompts, bounds=SHARE, seed=seed, n_resamples=n_resamples)
        for each in (wins, discrete)
    )
    lengths = np.array([(pair.n_chars, pair.n_chars_base) for pair in judged], dtype=float)
    longer = lengths[:, 0] - lengths[:, 1]
    hardness = _list_difficulties(judged, difficulty)
    numbers, n_clusters = number_clusters(prompts)
    why_not = _find_obstacle(wins, longer, n_clusters)
    fitted = None if why_not else _control(wins, longer, hardness, numbers, n_clusters, seed, n_resamples)
    terms = fitted.terms if fitted else np.full(3, np.nan)
    return WinRate(
        raw=raw.scale(100),
        discrete=coarse.scale(100),
        length_controlled=fitted.rate if fitted else None,
        why_not=why_not,
        difficulty=difficulty.source if difficulty else "left out",
        standard_error=_find_standard_error(wins, numbers, n_clusters),
        lc_standard_error=fitted.standard_error if fitted else None,
        n_wins=int((discrete == 1).sum()),
        n_wins_base=int((discrete == 0).sum()),
        n_draws=int((discrete == 0.5).sum()),
        n_total=len(judged),
        n_unannotated=len(pairs) - len(judged),
        avg_length=float(lengths[:, 0].mean()),
        avg_length_base=float(lengths[:, 1].mean()),
        n_longer=int((longer > 0).sum()),
        n_shorter=int((longer < 0).sum()),
        model_term=float(terms[0]) if fitted else None,
        length_term=float(terms[1]) if fitted else None,
        difficulty_term=float(terms[2]) if fitted and hardness is not None else None,
    )


def find_difficulty(
    by_model: Mapping[str, Sequence[JudgedPair]], model: str, given: Difficulty | None = None
) -> Difficulty | None:
    """Return the difficulty to measure `model` with: what is given, else fitted over at least five models, else None.

    `by_model` holds the pairs of every annotated model, `model` among them. None too where all judges' preferences of
    the other models are the same, which tells prompts apart as little as none do.
    """
    if given is not None:
        return given
    said = {name: {_read_preference(pair) for pair in pairs} - {None} for name, pairs in by_model.items()}
    n_annotated = sum(map(bool, said.values()))
    others: set[float | None] = set().union(*(each for name, each in said.items() if name != model))
    return fit_difficulty(by_model, leave_out=model) if n_annotated >= LEAST_MODELS and len(others) > 1 else None


def fit_difficulty(by_model: Mapping[str, Sequence[JudgedPair]], *, leave_out: str = "") -> Difficulty:
    """Fit one difficulty a prompt, shared by all models: their model and length terms jointly, psi fixed to 1.

    Source: arXiv 2404.04475 §3.2. `leave_out` names the model that is to be measured with it: its own annotations stay
    out of the fit (the paper keeps them), since otherwise its luck on a prompt passes for the prompt's ease; in 600
    simulations of 400 prompts the 95 % interval held the truth in 95.2 % without them and in 93.3 % with them. The
    difficulties have a normal prior, without which those of prompts that every model wins would not be finite; a
    prompt that only `leave_out` was judged on gets the prior's mean, 0.

    Raises:
        TableError: fewer than five models are annotated, or a preference is not from 1 to 2.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    judged = {
        name: [pair for pair in by_model[name] if _read_preference(pair) is not None] for name in sorted(by_model)
    }
    judged = {name: pairs for name, pairs in judged.items() if pairs}
    if len(judged) < LEAST_MODELS:
        raise TableError(
            f"{len(judged)} models are annotated, and difficulty is fitted from at least {LEAST_MODELS}; "
            "annotate more models, give a file of difficulties, or leave it out"
        )
    values = dict.fromkeys((pair.prompt for pair in judged.pop(leave_out, ())), 0.0)
    rows = [(number, pair) for number, pairs in enumerate(judged.values()) for pair in pairs]
    prompts, n_prompts = number_clusters([pair.prompt for _, pair in rows])
    lengths = np.concatenate([_squash(_list_differences(pairs)) for pairs in judged.values()])
    wins = np.array([_read_preference(pair) for _, pair in rows], dtype=float) - 1
    if np.ptp(wins) == 0:
        raise TableError("every preference of every model is the same; no difficulty can be told from them")
    models = np.array([number for number, _ in rows])
    n_rows, n_models = len(rows), len(judged)
    places = np.arange(n_rows)
    # one penalty for all columns: a column times s is penalised 1/s^2 as much
    spread = math.sqrt(C / DIFFICULTY_VARIANCE)
    design = csr_matrix(
        (
            np.concatenate([np.full(n_rows, spread), spread * lengths, np.ones(n_rows)]),
            (np.tile(places, 3), np.concatenate([models, n_models + models, 2 * n_models + prompts])),
        ),
        shape=(n_rows, 2 * n_models + n_prompts),
    )
    # of the solvers for sparse columns the fastest by far where other processes want the cores too
    fitted = LogisticRegression(
        C=DIFFICULTY_VARIANCE, fit_intercept=False, solver="liblinear", tol=1e-6, max_iter=2000, random_state=0
    )
    _fit_shares(fitted, design, wins)
    names = dict.fromkeys(pair.prompt for _, pair in rows)
    values |= zip(names, map(float, fitted.coef_[0, 2 * n_models :]), strict=True)
    return Difficulty(values, "fitted")


def read_difficulty(path: Path, prompts: Sequence[str] = ()) -> Difficulty:
    """Read difficulties from a JSON object of prompt to number, or a CSV file with a header.

    The CSV has a column `instruction`, `prompt` or `index` (the place in `prompts`, from 0, as in AlpacaEval's
    instruction_difficulty.csv, where the column has no name) and one `instruction_difficulty`, `difficulty` or `gamma`.

    Raises:
        TableError: there is no such file, or it holds no difficulties.
    """
    if not path.is_file():
        raise TableError(f"no file {str(path)!r}; give a JSON or CSV file of difficulties")
    with boundary(TableError, f"read difficulties from {str(path)!r}"):
        text = path.read_text("utf-8-sig")
    found = _read_csv(text, path, prompts) if path.suffix.lower() == ".csv" else _read_json(text, path)
    values: dict[str, float] = {}
    for prompt, value in found:
        if prompt in values:
            raise TableError(f"{str(path)!r} gives the difficulty of {prompt[:60]!r} twice; keep one of them")
        values[prompt] = value
    if not values:
        raise TableError(f"{str(path)!r} holds no difficulties; give prompts with a number each")
    return Difficulty(values, "given")


@dataclass(frozen=True, slots=True)
class _Controlled:
    rate: Interval
    standard_error: float
    terms: np.ndarray


def _control(
    wins: np.ndarray,
    longer: np.ndarray,
    hardness: np.ndarray | None,
    numbers: np.ndarray,
    n_clusters: int,
    seed: int,
    n_resamples: int,
) -> _Controlled:
    """Fit the model, predict at equal length, and do the same for every resample of the prompts."""
    from sklearn.linear_model import LogisticRegression

    columns = [np.ones(len(wins)), _squash(longer)]
    if hardness is not None:
        columns.append(_standardise(hardness))
    design = np.stack(columns, axis=1)
    equal = design.copy()
    equal[:, 1] = 0.0
    model = LogisticRegression(C=C, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=500)
    _fit_shares(model, design, wins)
    start = model.coef_[0]

    def predict(weights: np.ndarray) -> np.ndarray:
        by_row = weights[:, numbers]
        terms = _fit_resamples(design, wins, by_row, start)
        return (by_row * expit(terms @ equal.T)).sum(axis=1) / by_row.sum(axis=1)

    value = float(expit(equal @ start).mean())
    drawn = resample(predict, n_clusters, seed=seed, n_resamples=n_resamples)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    rate = Interval(value, float(low), float(high), n_clusters).scale(100)
    return _Controlled(rate, float(drawn.std(ddof=1)) * 100 if len(drawn) > 1 else 0.0, np.append(start, 0.0)[:3])


def _fit_shares(model, design, wins: np.ndarray) -> None:
    """Fit a scikit-learn classifier to shares: each row once as a win and once as a loss, weighted."""
    from scipy.sparse import issparse, vstack

    twice = vstack([design, design]).tocsr() if issparse(design) else np.concatenate([design, design])
    labels = np.repeat([1, 0], len(wins))
    weights = np.concatenate([wins, 1 - wins])
    kept = weights > 0
    model.fit(twice[kept], labels[kept], sample_weight=weights[kept])


def _fit_resamples(design: np.ndarray, wins: np.ndarray, weights: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Fit the same penalised model to every row of weights at once, by Newton's method; returns (n_resamples, n_terms).

    scikit-learn fits one at a time, and a thousand resamples would take seconds.
    """
    n_terms = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    ridge = np.eye(n_terms) / C
    terms = np.tile(start, (len(weights), 1))
    for _ in range(_MOST_STEPS):
        chance = expit(terms @ design.T)
        slope = (weights * (wins - chance)) @ design - terms / C
        bend = ((weights * chance * (1 - chance)) @ products).reshape(-1, n_terms, n_terms) + ridge
        step = np.linalg.solve(bend, slope[:, :, None])[:, :, 0]
        longest = np.abs(step).max(axis=1, keepdims=True)
        terms += step * np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        if longest.max() < _CLOSE:
            break
    return terms


def _find_obstacle(wins: np.ndarray, longer: np.ndarray, n_prompts: int) -> str:
    """Say why no length-controlled rate can be told, or nothing."""
    if n_prompts < LEAST_PROMPTS:
        return f"{n_prompts} annotated prompts are too few to fit a length term; {LEAST_PROMPTS} are needed"
    if np.ptp(wins) == 0:
        said = {0.0: "for the reference", 1.0: "for the evaluated model", 0.5: "a tie"}.get(float(wins[0]), "the same")
        return f"every preference is {said}, so no part of it can be laid to length"
    if np.ptp(longer) == 0 and longer[0] != 0:
        return f"one side is longer by {abs(longer[0]):.0f} characters on every prompt, so length and model are one"
    return ""


def _find_standard_error(wins: np.ndarray, numbers: np.ndarray, n_clusters: int) -> float:
    """Return the standard error of the mean in percent, by prompts; AlpacaEval's where each prompt has one row."""
    if n_clusters < 2:
        return 0.0
    residuals = np.bincount(numbers, weights=wins - wins.mean(), minlength=n_clusters)
    return 100 * math.sqrt(n_clusters / (n_clusters - 1) * float((residuals**2).sum())) / len(wins)


def _read_preference(pair: JudgedPair) -> float | None:
    value = pair.preference
    if value is None or math.isnan(value):
        return None
    if value == 0:
        return TIE  # how AlpacaEval wrote a tie once
    if not 1 <= value <= 2:
        raise TableError(
            f"the preference {value!r} of the prompt {pair.prompt[:60]!r} is not from 1 to 2; "
            "1 is the reference, 1.5 a tie, 2 the evaluated model"
        )
    return float(value)


def _list_differences(pairs: Sequence[JudgedPair]) -> np.ndarray:
    return np.array([pair.n_chars - pair.n_chars_base for pair in pairs], dtype=float)


def _squash(longer: np.ndarray) -> np.ndarray:
    """Return tanh of the differences in units of their standard deviation; they are not centred, so 0 stays 0."""
    spread = float(longer.std(ddof=1)) if len(longer) > 1 else 0.0
    return np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer))


def _standardise(values: np.ndarray) -> np.ndarray:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 0 else np.zeros(len(values))


def _list_difficulties(pairs: Sequence[JudgedPair], difficulty: Difficulty | None) -> np.ndarray | None:
    if difficulty is None or difficulty.source == "left out":
        return None
    missing = [pair.prompt for pair in pairs if pair.prompt not in difficulty.values]
    if missing:
        raise TableError(
            f"{len(missing)} of {len(pairs)} prompts have no difficulty, the first: {missing[0][:60]!r}; "
            "give all of them, or leave the difficulty out"
        )
    values = np.array([difficulty.values[pair.prompt] for pair in pairs], dtype=float)
    if not np.isfinite(values).all():
        raise TableError(f"the difficulty of {pairs[int(np.argmin(np.isfinite(values)))].prompt[:60]!r} is no number")
    return values


def _read_json(text: str, path: Path) -> list[tuple[str, float]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{str(path)!r} is no JSON: {str(error)[:100]}; write it again") from error
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        raise TableError(f"{str(path)!r} is no JSON object; give prompts with a number each")
    return [(prompt, _read_number(value, prompt, path)) for prompt, value in pairs]


def _read_csv(text: str, path: Path, prompts: Sequence[str]) -> list[tuple[str, float]]:
    try:
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
    except csv.Error as error:
        raise TableError(f"{str(path)!r} is no CSV: {error}; write it again") from error
    columns = list(rows[0]) if rows else []
    key = next((name for name in ("instruction", "prompt", "index", "") if name in columns), None)
    column = next((name for name in ("instruction_difficulty", "difficulty", "gamma") if name in columns), None)
    if key is None or column is None:
        raise TableError(
            f"{str(path)!r} has columns {', '.join(map(repr, columns)) or 'none'}; give 'instruction' or 'index', "
            "and 'instruction_difficulty'"
        )
    found: list[tuple[str, float]] = []
    for row in rows:
        name = row[key] or ""
        found.append(
            (
                name if key in ("instruction", "prompt") else _find_prompt(name, prompts, path),
                _read_number(row[column], name, path),
            )
        )
    return found


def _find_prompt(place: str, prompts: Sequence[str], path: Path) -> str:
    if not place.isdecimal() or int(place) >= len(prompts):
        raise TableError(
            f"{str(path)!r} has the index {place[:60]!r}, and there are {len(prompts)} prompts; count from 0"
        )
    return prompts[int(place)]


def _read_number(value: object, prompt: str, path: Path) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError):
        raise TableError(
            f"the difficulty of {prompt[:60]!r} in {str(path)!r} is {str(value)[:60]!r}; give a number"
        ) from None
    return number
