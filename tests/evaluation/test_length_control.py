import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from matrix_dspy.errors import TableError
from matrix_dspy.evaluation import length_control
from matrix_dspy.evaluation.length_control import (
    C,
    Difficulty,
    JudgedPair,
    WinRate,
    find_difficulty,
    fit_difficulty,
    measure_win_rate,
    read_difficulty,
)


@dataclass(frozen=True)
class Simulated:
    """Annotations of six models with planted effects, and the truth about the first."""

    by_model: dict[str, list[JudgedPair]]
    difficulty: Difficulty
    rate: float
    """Percent of wins of model `m0` were its answers as long as the reference's."""


def simulate(seed: int, n_prompts: int = 400, n_models: int = 6) -> Simulated:
    """Draw lengths per model, and wins from its quality, the judge's love of length and the prompts' difficulty."""
    generator = np.random.default_rng([seed, 7])
    gamma = generator.normal(0, 1, n_prompts)
    base = generator.lognormal(7, 0.5, n_prompts).astype(int)
    by_model: dict[str, list[JudgedPair]] = {}
    rates: list[float] = []
    for model in range(n_models):
        theta, phi, psi = generator.normal(0, 0.7), generator.uniform(0.3, 1.5), generator.uniform(0.5, 1.5)
        lengths = (base * generator.uniform(0.6, 1.9) * generator.lognormal(0, 0.3, n_prompts)).astype(int)
        longer = lengths - base
        chance = expit(theta + phi * np.tanh(longer / longer.std(ddof=1)) + psi * gamma)
        by_model[f"m{model}"] = pair_up(generator.random(n_prompts) < chance, lengths, base)
        rates.append(100 * float(expit(theta + psi * gamma).mean()))
    names = [f"p{i}" for i in range(n_prompts)]
    return Simulated(by_model, Difficulty(dict(zip(names, gamma.tolist(), strict=True)), "given"), rates[0])


def pair_up(wins: np.ndarray, lengths: np.ndarray, base: np.ndarray) -> list[JudgedPair]:
    rows = zip(wins.tolist(), lengths.tolist(), base.tolist(), strict=True)
    return [JudgedPair(f"p{i}", 1 + float(win), own, other) for i, (win, own, other) in enumerate(rows)]


def draw_lengths(n: int, seed: int = 0, ratio: float = 1.6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    base = generator.lognormal(6.5, 0.5, n).astype(int)
    return (base * ratio * generator.lognormal(0, 0.3, n)).astype(int), base


def build_columns(pairs: list[JudgedPair], gamma: list[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Write the model's columns out once more, from the paper."""
    longer = np.array([pair.n_chars - pair.n_chars_base for pair in pairs], dtype=float)
    columns = [np.ones(len(pairs)), np.tanh(longer / longer.std(ddof=1))]
    if gamma is not None:
        columns.append((np.array(gamma) - np.mean(gamma)) / np.std(gamma))
    return np.stack(columns, axis=1), np.array([pair.preference or 0 for pair in pairs]) - 1


def maximise(columns: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Maximise the penalised likelihood as it is written on paper, knowing only its values."""

    def loss(terms: np.ndarray) -> float:
        odds = columns @ terms
        return float((np.logaddexp(0, odds) - wins * odds).sum() + (terms**2).sum() / (2 * C))

    return minimize(loss, np.zeros(columns.shape[1]), method="BFGS", options={"gtol": 1e-6}).x


def value(rates: WinRate) -> float:
    assert rates.length_controlled is not None, rates.why_not
    return rates.length_controlled.value


# ---- what it must reach


@pytest.mark.parametrize("source", ["given", "left out", "fitted"])
def test_the_true_rate_lies_within_the_interval_as_often_as_it_says(source: str):
    held, errors, raw_errors = 0, [], []
    for seed in range(100):
        made = simulate(seed)
        known = {"given": made.difficulty, "left out": None}
        difficulty = known[source] if source in known else find_difficulty(made.by_model, "m0")

        found = measure_win_rate(made.by_model["m0"], difficulty, n_resamples=200)

        assert found.difficulty == source
        assert found.length_controlled is not None
        held += found.length_controlled.low <= made.rate <= found.length_controlled.high
        errors.append(found.length_controlled.value - made.rate)
        raw_errors.append(found.raw.value - made.rate)
    assert held >= 90
    assert abs(np.mean(errors)) < 1
    assert np.std(errors) < 0.7 * np.std(raw_errors)


def test_a_judge_that_likes_length_alone_gives_a_half():
    lengths, base = draw_lengths(805)
    longer = lengths - base
    chances = expit(2.0 * np.tanh(longer / longer.std(ddof=1)))

    found = measure_win_rate(pair_up(chances, lengths, base))

    assert found.raw.value > 65
    assert value(found) == pytest.approx(50, abs=0.1)


def test_verdicts_drawn_by_length_alone_give_a_half_on_average():
    rates = []
    for seed in range(60):
        lengths, base = draw_lengths(805, seed, ratio=1.2)
        longer = lengths - base
        wins = np.random.default_rng(seed).random(805) < expit(2.0 * np.tanh(longer / longer.std(ddof=1)))
        rates.append(value(measure_win_rate(pair_up(wins, lengths, base), n_resamples=2)))

    assert np.mean(rates) == pytest.approx(50, abs=2)


def test_many_verdicts_drawn_by_length_alone_give_a_half():
    lengths, base = draw_lengths(20_000)
    longer = lengths - base
    wins = np.random.default_rng(0).random(20_000) < expit(2.0 * np.tanh(longer / longer.std(ddof=1)))

    found = measure_win_rate(pair_up(wins, lengths, base), n_resamples=2)

    assert found.raw.value > 65
    assert value(found) == pytest.approx(50, abs=2)


def test_the_longer_answer_always_winning_is_taken_for_length():
    lengths, base = draw_lengths(805, ratio=1.3)

    found = measure_win_rate(pair_up(lengths > base, lengths, base), n_resamples=200)

    assert found.raw.low > 75
    assert value(found) == pytest.approx(50, abs=5)
    assert found.length_controlled is not None
    assert found.length_controlled.low < 50 < found.length_controlled.high


def test_quality_alone_is_left_as_it_is():
    lengths, base = draw_lengths(805)

    found = measure_win_rate(pair_up(np.resize([0.699, 0.701], 805), lengths, base), n_resamples=50)

    assert value(found) == pytest.approx(70, abs=0.1)
    assert found.length_term == pytest.approx(0, abs=0.03)


# ---- agreement with other ways to compute it


@pytest.mark.parametrize("seed", range(4))
def test_the_fit_is_the_maximum_of_the_likelihood(seed: int):
    made = simulate(seed, n_prompts=200, n_models=1)
    pairs = made.by_model["m0"]
    if seed % 2:  # a judge that gives probabilities
        pairs = [replace(pair, preference=1 + abs((pair.preference or 0) - 1 - 0.2)) for pair in pairs]
    columns, wins = build_columns(pairs, list(made.difficulty.values.values()))

    found = measure_win_rate(pairs, made.difficulty, n_resamples=2)

    expected = maximise(columns, wins)
    assert (found.model_term, found.length_term, found.difficulty_term) == pytest.approx(expected, abs=1e-4)
    assert value(found) == pytest.approx(100 * expit(columns[:, [0, 2]] @ expected[[0, 2]]).mean(), abs=1e-3)


def test_resamples_are_fitted_as_scikit_learn_fits_one():
    made = simulate(1, n_prompts=150, n_models=1)
    columns, wins = build_columns(made.by_model["m0"], list(made.difficulty.values.values()))
    counts = np.random.default_rng(0).multinomial(150, np.full(150, 1 / 150), 5).astype(float)

    found = length_control._fit_resamples(columns, wins, counts, np.zeros(3))

    for terms, weights in zip(found, counts, strict=True):
        one = LogisticRegression(C=C, fit_intercept=False, tol=1e-10, max_iter=1000)
        assert terms == pytest.approx(one.fit(columns, wins, sample_weight=weights).coef_[0], abs=1e-4)


def test_resamples_that_fall_apart_by_length_still_have_a_fit():
    columns = np.stack([np.ones(40), np.linspace(-1, 1, 40)], axis=1)
    wins = (columns[:, 1] > 0).astype(float)

    found = length_control._fit_resamples(columns, wins, np.ones((3, 40)), np.zeros(2))

    assert found == pytest.approx(np.tile(maximise(columns, wins), (3, 1)), abs=1e-3)


def test_the_standard_error_is_that_of_a_mean():
    made = simulate(2, n_models=1)
    wins = np.array([pair.preference or 0 for pair in made.by_model["m0"]])

    found = measure_win_rate(made.by_model["m0"], n_resamples=50)

    assert found.standard_error == pytest.approx(100 * wins.std(ddof=1) / math.sqrt(len(wins)))


def test_the_controlled_standard_error_is_that_of_the_delta_method():
    made = simulate(2, n_models=1)
    columns, wins = build_columns(made.by_model["m0"], list(made.difficulty.values.values()))
    equal = columns * [1, 0, 1]

    found = measure_win_rate(made.by_model["m0"], made.difficulty, n_resamples=1000)

    terms = maximise(columns, wins)
    chance, level = expit(columns @ terms), expit(equal @ terms)
    bread = np.linalg.inv((columns * (chance * (1 - chance))[:, None]).T @ columns + np.eye(3) / C)
    slope = (equal * (level * (1 - level))[:, None]).mean(axis=0)
    # what each prompt does to the mean: through the coefficients, and by being one of the prompts
    influence = ((wins - chance)[:, None] * columns) @ bread @ slope + (level - level.mean()) / len(wins)
    assert found.lc_standard_error == pytest.approx(100 * math.sqrt((influence**2).sum()), rel=0.08)


# ---- laws


@settings(max_examples=15)
@given(st.integers(0, 1000))
def test_turning_the_sides_mirrors_every_rate(seed: int):
    pairs = simulate(seed, n_prompts=60, n_models=1).by_model["m0"]
    turned = [JudgedPair(pair.prompt, 3 - (pair.preference or 0), pair.n_chars_base, pair.n_chars) for pair in pairs]

    one, other = measure_win_rate(pairs, n_resamples=20), measure_win_rate(turned, n_resamples=20)

    assert other.raw.value == pytest.approx(100 - one.raw.value)
    assert other.n_wins == one.n_wins_base
    assert value(other) == pytest.approx(100 - value(one), abs=1e-4)


@settings(max_examples=15)
@given(st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_the_prompts_does_not_matter(seed: int, shuffler):
    made = simulate(seed, n_prompts=60, n_models=1)
    pairs = list(made.by_model["m0"])
    shuffler.shuffle(pairs)

    assert value(measure_win_rate(pairs, made.difficulty, n_resamples=2)) == pytest.approx(
        value(measure_win_rate(made.by_model["m0"], made.difficulty, n_resamples=2)), abs=1e-4
    )


def test_the_scale_of_the_difficulty_does_not_matter():
    made = simulate(3, n_models=1)
    scaled = Difficulty({name: 1000 * each - 70 for name, each in made.difficulty.values.items()}, "given")

    one, other = (measure_win_rate(made.by_model["m0"], each, n_resamples=20) for each in (made.difficulty, scaled))

    assert value(other) == pytest.approx(value(one), abs=1e-4)


def test_the_same_seed_gives_the_same_figures():
    pairs = simulate(4, n_models=1).by_model["m0"]

    assert measure_win_rate(pairs, seed=1, n_resamples=50) == measure_win_rate(pairs, seed=1, n_resamples=50)
    assert measure_win_rate(pairs, seed=1, n_resamples=50) != measure_win_rate(pairs, seed=2, n_resamples=50)


def test_two_verdicts_on_a_prompt_are_resampled_together():
    pairs = simulate(5, n_models=1).by_model["m0"]

    once, twice = measure_win_rate(pairs), measure_win_rate([*pairs, *pairs])

    assert twice.standard_error == pytest.approx(once.standard_error)
    assert twice.lc_standard_error == pytest.approx(once.lc_standard_error, rel=0.02)
    assert twice.raw.n == once.raw.n == 400


# ---- counts and coding


def test_ties_and_missing_verdicts_are_counted_apart():
    said = [1, 2, 2, 1.5, 0, 1.7, 1.2, None, float("nan")]
    pairs = [JudgedPair(f"p{i}", each, 100 + i, 103) for i, each in enumerate(said)]

    found = measure_win_rate(pairs)

    assert (found.n_wins, found.n_wins_base, found.n_draws) == (3, 2, 2)
    assert (found.n_total, found.n_unannotated) == (7, 2)
    assert found.raw.value == pytest.approx(100 * np.mean([0, 1, 1, 0.5, 0.5, 0.7, 0.2]))
    assert found.discrete.value == pytest.approx(100 * 4 / 7)
    assert (found.n_shorter, found.n_longer) == (3, 3)
    assert (found.avg_length, found.avg_length_base) == (103, 103)


# ---- what cannot be told


def test_one_prompt_has_a_raw_rate_and_no_controlled_one():
    found = measure_win_rate([JudgedPair("p", 2.0, 100, 50)])

    assert found.raw.value == 100
    assert found.raw.low < 50
    assert found.length_controlled is None
    assert found.lc_standard_error is None
    assert "1 annotated prompts are too few" in found.why_not


@pytest.mark.parametrize(("said", "side"), [(2.0, "the evaluated model"), (1.0, "the reference")])
def test_preferences_all_on_one_side_are_not_laid_to_length(said: float, side: str):
    lengths, base = draw_lengths(100)

    found = measure_win_rate(pair_up(np.full(100, said - 1), lengths, base))

    assert found.length_controlled is None
    assert f"every preference is for {side}" in found.why_not
    assert found.raw.high - found.raw.low > 1


def test_of_nothing_but_ties_no_part_can_be_laid_to_length():
    lengths, base = draw_lengths(100)

    found = measure_win_rate(pair_up(np.full(100, 0.5), lengths, base))

    assert (found.raw.value, found.length_controlled) == (50, None)
    assert found.why_not == "every preference is a tie, so no part of it can be laid to length"


def test_equal_lengths_leave_the_raw_rate():
    base = np.arange(100, 200)
    wins = np.random.default_rng(0).random(100) < 0.7

    found = measure_win_rate(pair_up(wins, base, base))

    assert value(found) == pytest.approx(found.raw.value, abs=0.05)
    assert found.length_term == 0
    assert not found.is_extrapolated


def test_one_and_the_same_difference_cannot_be_told_from_the_model():
    base = np.arange(100, 200)
    wins = np.random.default_rng(0).random(100) < 0.7

    found = measure_win_rate(pair_up(wins, base + 30, base))

    assert found.length_controlled is None
    assert "one side is longer by 30 characters on every prompt" in found.why_not


def test_a_model_that_is_always_longer_is_said_to_be_extrapolated():
    generator = np.random.default_rng(0)
    base = np.arange(100, 300)
    wins = generator.random(200) < 0.7

    always = measure_win_rate(pair_up(wins, base + generator.integers(1, 90, 200), base), n_resamples=20)
    often = measure_win_rate(pair_up(wins, base + generator.integers(-40, 90, 200), base), n_resamples=20)

    assert always.is_extrapolated
    assert not often.is_extrapolated


def test_bad_preferences_are_refused_in_one_sentence():
    with pytest.raises(TableError, match="the preference 3 of the prompt 'p' is not from 1 to 2"):
        measure_win_rate([JudgedPair("p", 3, 1, 1)])
    with pytest.raises(TableError, match="none of the 1 pairs has a preference; ask the judge first"):
        measure_win_rate([JudgedPair("p", None, 1, 1)])
    with pytest.raises(TableError, match="none of the 0 pairs"):
        measure_win_rate([])


# ---- difficulty


def test_fitted_difficulties_follow_the_planted_ones():
    made = simulate(0, n_prompts=200, n_models=12)

    found = fit_difficulty(made.by_model)

    assert found.source == "fitted"
    names = list(made.difficulty.values)
    planted, fitted = ([each.values[name] for name in names] for each in (made.difficulty, found))
    assert np.corrcoef(planted, fitted)[0, 1] > 0.75


def test_a_models_own_verdicts_do_not_reach_its_difficulties():
    made = simulate(1, n_prompts=60)
    other = {**made.by_model, "m0": [replace(pair, preference=2.0) for pair in made.by_model["m0"]]}

    assert find_difficulty(made.by_model, "m0") == find_difficulty(other, "m0")
    assert find_difficulty(made.by_model, "m1") != find_difficulty(other, "m1")


def test_a_prompt_of_that_model_alone_has_the_middle_difficulty():
    made = simulate(1, n_prompts=60)
    made.by_model["m0"].append(JudgedPair("another", 2.0, 30, 40))

    found = fit_difficulty(made.by_model, leave_out="m0")

    assert found.values["another"] == 0.0
    assert measure_win_rate(made.by_model["m0"], found, n_resamples=10).n_total == 61


def test_difficulty_is_fitted_from_five_models_on_and_what_is_given_comes_first():
    made = simulate(2, n_prompts=40, n_models=5)
    four = dict(list(made.by_model.items())[:4])

    silent = [replace(pair, preference=None) for pair in made.by_model["m4"]]
    assert find_difficulty(four, "m0") is None
    assert find_difficulty({**four, "m4": silent}, "m0") is None
    assert find_difficulty(four, "m0", made.difficulty) is made.difficulty
    five = find_difficulty(made.by_model, "m0")
    assert five is not None and five.source == "fitted"
    with pytest.raises(TableError, match="4 models are annotated, and difficulty is fitted from at least 5"):
        fit_difficulty(four)
    assert measure_win_rate(made.by_model["m0"], n_resamples=10).difficulty == "left out"


def test_models_that_no_judge_told_apart_have_no_difficulties():
    by_model = {f"m{i}": [JudgedPair(f"p{j}", 2.0, 10 * i + j, 30) for j in range(30)] for i in range(5)}

    assert find_difficulty(by_model, "m0") is None
    with pytest.raises(TableError, match="every preference of every model is the same"):
        fit_difficulty(by_model)


def test_a_prompt_without_its_difficulty_is_named():
    made = simulate(0, n_prompts=30, n_models=1)
    less = Difficulty(dict.fromkeys(list(made.difficulty.values)[:-2], 1.0), "given")

    with pytest.raises(TableError, match="2 of 30 prompts have no difficulty, the first: 'p28'"):
        measure_win_rate(made.by_model["m0"], less)
    with pytest.raises(TableError, match="the difficulty of 'p3' is no number"):
        measure_win_rate(
            made.by_model["m0"], Difficulty({**made.difficulty.values, "p3": float("inf")}, "given"), n_resamples=2
        )


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_difficulties_are_read_from_json_and_csv(tmp_path: Path):
    as_json = write(tmp_path / "d.json", json.dumps({"Why is it dark, at night?": -0.5, "Name a river.": 2}))
    as_csv = write(
        tmp_path / "d.csv", 'instruction,instruction_difficulty\n"Why is it dark, at night?",-0.5\nName a river.,2\n'
    )
    by_place = write(tmp_path / "places.csv", ",instruction_difficulty\n1,2.0\n0,-0.5\n")
    prompts = ["Why is it dark, at night?", "Name a river."]

    expected = Difficulty({prompts[0]: -0.5, prompts[1]: 2.0}, "given")
    assert read_difficulty(as_json) == expected
    assert read_difficulty(as_csv) == expected
    assert read_difficulty(by_place, prompts) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("d.json", '{"a": 1,', "is no JSON"),
        ("d.json", "[" * 100_000, "is no JSON"),
        ("d.json", "[1, 2]", "is no JSON object"),
        ("d.json", "{}", "holds no difficulties"),
        ("d.json", '{"a": "hard"}', "the difficulty of 'a' in .* is 'hard'; give a number"),
        ("d.json", '{"a": NaN}', "is 'nan'; give a number"),
        ("d.json", '{"a": true}', "is 'True'; give a number"),
        ("d.json", '{"a": 1, "a": 2}', "gives the difficulty of 'a' twice"),
        ("d.csv", "", "has columns none"),
        ("d.csv", "x,y\n1,2\n", "has columns 'x', 'y'"),
        ("d.csv", "index,gamma\n7,0.5\n", "has the index '7', and there are 1 prompts"),
        ("d.csv", "index,gamma\n-1,0.5\n", "has the index '-1'"),
        ("d.csv", "prompt,gamma\na\n", "the difficulty of 'a' in .* is 'None'"),
    ],
)
def test_a_bad_file_of_difficulties_is_refused_in_one_sentence(tmp_path: Path, name: str, text: str, words: str):
    with pytest.raises(TableError, match=words) as caught:
        read_difficulty(write(tmp_path / name, text), ["only"])

    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_of_difficulties_is_refused(tmp_path: Path):
    (tmp_path / "d.json").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(TableError, match=r"no file .*nowhere.json'; give a JSON or CSV file"):
        read_difficulty(tmp_path / "nowhere.json")
    with pytest.raises(TableError, match="could not read difficulties"):
        read_difficulty(tmp_path / "d.json")
