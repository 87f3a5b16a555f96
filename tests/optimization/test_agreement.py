import math
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from matrix_dspy.optimization.agreement import (
    Interval,
    bootstrap,
    calibrate,
    calibrate_margin,
    calibrate_quality,
    compare,
    describe_agreement,
    describe_noise,
    describe_orders,
    measure_kappa,
    measure_spearman,
    share_of_false_accepts,
)

LEVELS = st.integers(1, 5)
PAIRS = st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=60)


def split(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [one for one, _ in pairs], [other for _, other in pairs]


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def is_constant(values: Sequence[int]) -> bool:
    return len(set(values)) < 2


def draw_normal(n: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).normal(3.0, 1.0, n).tolist()


# ---- kappa and rank correlation


@given(PAIRS)
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[int, int]]):
    labels, scores = split(pairs)

    if is_constant(labels) or is_constant(scores):
        assert measure_kappa(labels, scores) == 0.0
    else:
        expected = cohen_kappa_score(labels, scores, labels=[1, 2, 3, 4, 5], weights="quadratic")
        assert measure_kappa(labels, scores) == pytest.approx(expected)


@given(PAIRS)
def test_kappa_by_its_definition(pairs: list[tuple[int, int]]):
    labels, scores = split(pairs)
    apart = mean([(a - b) ** 2 for a, b in pairs])
    by_chance = mean([(a - b) ** 2 for a in labels for b in scores])

    if not is_constant(labels) and not is_constant(scores):
        assert measure_kappa(labels, scores) == pytest.approx(1 - apart / by_chance)


@given(PAIRS)
def test_spearman_is_that_of_scipy(pairs: list[tuple[int, int]]):
    labels, scores = split(pairs)

    if is_constant(labels) or is_constant(scores):
        assert measure_spearman(labels, scores) == 0.0
    else:
        assert measure_spearman(labels, scores) == pytest.approx(spearmanr(labels, scores).statistic)  # pyright: ignore[reportAttributeAccessIssue]


@given(PAIRS)
def test_both_measures_are_numbers_from_minus_one_to_one_and_take_sides_with_nobody(pairs: list[tuple[int, int]]):
    labels, scores = split(pairs)

    for measure in (measure_kappa, measure_spearman):
        value = measure(labels, scores)
        assert math.isfinite(value) and -1 - 1e-9 <= value <= 1 + 1e-9
        assert value == pytest.approx(measure(scores, labels))


def test_the_ends_of_both_scales():
    up, down = [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]

    for measure in (measure_kappa, measure_spearman):
        assert measure(up, up) == pytest.approx(1.0)
        assert measure(up, down) == pytest.approx(-1.0)


def test_a_judge_that_gives_everything_the_same_agrees_no_better_than_chance():
    assert measure_kappa([1, 2, 3, 4, 5], [4, 4, 4, 4, 4]) == 0.0
    assert measure_kappa([4, 4], [4, 4]) == 0.0
    assert measure_spearman([1, 2, 3], [2, 2, 2]) == 0.0


def test_far_misses_cost_kappa_more_than_near_ones():
    labels = [1, 2, 3, 4, 5] * 4

    near = measure_kappa(labels, [min(5, label + 1) for label in labels])
    far = measure_kappa(labels, [min(5, label + 3) for label in labels])

    assert 0 < far < near < 1


# ---- intervals


@settings(max_examples=25)
@given(PAIRS, st.integers(0, 3))
def test_an_interval_lies_in_order_around_its_value_where_rows_decide(pairs: list[tuple[int, int]], seed: int):
    labels, scores = split(pairs)
    exact = [float(a == b) for a, b in pairs]

    found = bootstrap(mean, exact, seed=seed, n_resamples=200)

    assert found.value == pytest.approx(mean(exact))
    assert found.low <= found.value <= found.high
    assert bootstrap(share_of_false_accepts, labels, scores, n_resamples=50).low >= 0


def test_an_interval_covers_the_truth_as_often_as_it_says():
    n_covered = 0
    for seed in range(200):
        drawn = (np.random.default_rng(seed).random(60) < 0.3).astype(float).tolist()
        found = bootstrap(mean, drawn, seed=seed, n_resamples=300)
        n_covered += found.low <= 0.3 <= found.high

    assert 0.88 <= n_covered / 200 <= 0.99


def test_an_interval_shrinks_with_the_root_of_the_rows():
    small = bootstrap(mean, draw_normal(100), n_resamples=400)
    large = bootstrap(mean, draw_normal(1600), n_resamples=400)

    assert 3 < (small.high - small.low) / (large.high - large.low) < 5.5


def test_an_interval_of_kappa_narrows_and_keeps_its_value():
    labels = [1, 2, 3, 4, 5] * 6
    scores = [min(5, label + (i % 3 == 0)) for i, label in enumerate(labels)]

    once = bootstrap(measure_kappa, labels, scores, n_resamples=100)
    often = bootstrap(measure_kappa, labels * 8, scores * 8, n_resamples=100)

    assert once.value == pytest.approx(often.value) == pytest.approx(measure_kappa(labels, scores))
    assert once.low < often.low < often.value < often.high < once.high


def test_an_interval_follows_its_seed_and_nothing_else():
    values = draw_normal(50)
    random.seed(1)
    first = bootstrap(mean, values, seed=3)
    random.seed(2)
    np.random.seed(2)

    assert bootstrap(mean, values, seed=3) == first
    assert bootstrap(mean, values, seed=4) != first
    assert bootstrap(mean, values, seed=4).value == first.value


def test_columns_are_drawn_together_row_by_row():
    labels = [1, 2, 3, 4, 5] * 8

    found = bootstrap(measure_kappa, labels, labels, n_resamples=50)

    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_one_row_and_no_row_have_an_interval_too():
    assert bootstrap(mean, [0.5]) == Interval(0.5, 0.5, 0.5)
    assert bootstrap(mean, []) == Interval(0.0, 0.0, 0.0)


def test_an_interval_for_the_card_is_rounded_and_reads_well():
    found = Interval(0.123456, -0.1, 0.3)

    assert found.dump() == {"value": 0.1235, "low": -0.1, "high": 0.3}
    assert str(found) == "0.123 [-0.100, 0.300]"


# ---- before and after


def test_a_gain_is_measured_row_by_row():
    before = draw_normal(80)
    after = [value + 0.1 for value in before]

    found = compare(before, after)

    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1) == found.high  # the rows' own spread does not count


def test_no_gain_is_not_taken_for_one():
    rows = np.random.default_rng(5)
    before, after = rows.random(60).tolist(), rows.random(60).tolist()

    found = compare(before, after)

    assert found.low < 0 < found.high
    assert compare(before, before) == Interval(0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=40))
def test_a_gain_turned_round_is_a_loss(pairs: list[tuple[float, float]]):
    before, after = [a for a, _ in pairs], [b for _, b in pairs]

    gain, loss = (compare(*both, n_resamples=300) for both in ((before, after), (after, before)))

    assert gain.value == pytest.approx(-loss.value)
    assert gain.low == pytest.approx(-loss.high)
    assert gain.high == pytest.approx(-loss.low)


def test_a_gain_of_a_smaller_sample_is_less_sure():
    before, after = draw_normal(400, 1), [value + 0.2 for value in draw_normal(400, 2)]

    few, many = compare(before[:25], after[:25]), compare(before, after)

    assert many.high - many.low < few.high - few.low
    assert compare(before, after) == many
    assert compare(before, after, seed=1) != many


def test_rows_that_do_not_match_are_no_comparison():
    with pytest.raises(ValueError):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])
    assert compare([], []) == Interval(0.0, 0.0, 0.0)


# ---- false accepts


def test_false_accepts_are_counted_among_the_bad_rows_alone():
    labels = [1, 2, 3, 3, 4, 5, 5]
    scores = [4, 2, 5, 3, 5, 5, 1]

    assert share_of_false_accepts(labels, scores) == 0.5


def test_without_bad_rows_nothing_was_accepted_falsely():
    assert share_of_false_accepts([4, 5], [5, 5]) == 0.0
    assert share_of_false_accepts([], []) == 0.0


@given(PAIRS)
def test_a_stricter_judge_accepts_no_more(pairs: list[tuple[int, int]]):
    labels, scores = split(pairs)
    stricter = [max(1, score - 1) for score in scores]

    assert 0 <= share_of_false_accepts(labels, stricter) <= share_of_false_accepts(labels, scores) <= 1


# ---- calibration


def assert_rises_within_one(values: Sequence[float]) -> None:
    assert all(0 <= value <= 1 for value in values)
    assert list(values) == sorted(values)


@given(st.lists(st.tuples(LEVELS, st.booleans()), max_size=60))
def test_probabilities_by_level_never_fall(rows: list[tuple[int, bool]]):
    found = calibrate([level for level, _ in rows], [is_right for _, is_right in rows])

    assert len(found) == 5
    assert_rises_within_one(found)


@given(st.lists(st.tuples(LEVELS, LEVELS), max_size=60))
def test_quality_by_level_never_falls(rows: list[tuple[int, int]]):
    found = calibrate_quality(*split(rows))

    assert len(found) == 5
    assert_rises_within_one(found)


@given(st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=60))
def test_a_calibration_says_on_average_what_was_seen(rows: list[tuple[int, bool]]):
    scores, is_right = [level for level, _ in rows], [right for _, right in rows]

    found = calibrate(scores, is_right)

    said = mean([found[score - 1] for score in scores])
    assert said == pytest.approx(mean([float(right) for right in is_right]), abs=1e-3)


def test_a_calibration_worked_out_by_hand():
    # level 2 did better than level 3, so both say the mean of the two
    assert calibrate([1, 1, 2, 2, 3, 3, 5], [False, False, True, False, False, False, True]) == [
        0.0,
        0.25,
        0.25,
        0.625,
        1.0,
    ]
    assert calibrate_quality([1, 3, 5], [1, 3, 5]) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_levels_never_given_lie_between_their_neighbours():
    assert calibrate([2, 2, 4, 4], [False, False, True, True]) == [0.0, 0.0, 0.5, 1.0, 1.0]


MARGINS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), max_size=60)


@given(MARGINS)
def test_a_margin_and_its_reverse_share_all_probability(rows: list[tuple[int, bool]]):
    found = calibrate_margin([margin for margin, _ in rows], [is_right for _, is_right in rows])

    assert list(found) == [-4, -3, -2, -1, 0, 1, 2, 3, 4]
    assert_rises_within_one(list(found.values()))
    assert found[0] == 0.5
    for margin in range(5):
        assert found[margin] + found[-margin] == pytest.approx(1, abs=1.01e-4)  # each is rounded to four places


def test_without_pairs_every_margin_is_a_toss():
    assert set(calibrate_margin([], []).values()) == {0.5}


def test_a_wider_margin_is_surer():
    margins = [1, 1, 1, 1, 3, 3, 3, 3, -1, -1, -3, -3]
    is_right = [True, True, True, False, True, True, True, True, False, True, False, False]

    found = calibrate_margin(margins, is_right)

    assert found[1] == pytest.approx(4 / 6, abs=1e-4)
    assert found[3] == 1.0
    assert found[1] <= found[2] <= found[3] == found[4]


# ---- what the cards say


def test_agreement_for_a_card():
    labels, scores = [1, 2, 3, 4, 5, 5], [1, 2, 3, 5, 5, 4]

    found = describe_agreement(labels, scores)

    assert found["n"] == 6
    assert found["exact"] == pytest.approx(4 / 6, abs=1e-4)
    assert found["kappa"]["value"] == pytest.approx(measure_kappa(labels, scores), abs=1e-4)
    assert found["spearman"]["value"] == pytest.approx(measure_spearman(labels, scores), abs=1e-4)
    assert found["false_accepts"]["value"] == 0.0


def test_agreement_on_no_rows_is_none():
    found = describe_agreement([], [])

    assert (found["n"], found["exact"], found["kappa"]["value"]) == (0, 0.0, 0.0)


def test_a_judge_that_always_takes_the_first_flips_with_the_order():
    n = 40
    is_first_labelled = [i % 2 == 0 for i in range(n)]

    found = describe_orders(is_first_labelled, [not each for each in is_first_labelled])

    assert found["order_flips"]["value"] == 1.0
    assert found["agreement"]["value"] == 0.5
    assert found["both_orders_right"]["value"] == 0.0


def test_orders_worked_out_by_hand():
    found = describe_orders([True, True, False, False], [True, False, True, False])

    assert found["n"] == 4
    assert found["agreement"]["value"] == 0.5
    assert found["both_orders_right"]["value"] == 0.25
    assert found["order_flips"]["value"] == 0.5


@settings(max_examples=15)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_what_is_right_in_both_orders_and_half_the_flips_make_the_agreement(pairs: list[tuple[bool, bool]]):
    one, other = [a for a, _ in pairs], [b for _, b in pairs]

    found = describe_orders(one, other)

    expected = found["both_orders_right"]["value"] + found["order_flips"]["value"] / 2
    assert found["agreement"]["value"] == pytest.approx(expected, abs=2e-4)
    assert describe_orders(other, one)["agreement"]["value"] == found["agreement"]["value"]


def test_no_pairs_say_nothing():
    assert describe_orders([], [])["agreement"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_noise_is_the_spread_of_repeats_of_the_same_row():
    found = describe_noise([[3, 3], [2, 4], [5, 5], [1]])

    assert found["n"] == 3  # a row asked once tells nothing of noise
    assert found["sd"] == pytest.approx(math.sqrt(2) / 3, abs=1e-4)
    assert found["unchanged"] == pytest.approx(2 / 3, abs=1e-4)


def test_without_repeats_there_is_no_noise():
    assert describe_noise([]) == {"n": 0, "sd": 0.0, "unchanged": 1.0}
    assert describe_noise([[4], []]) == {"n": 0, "sd": 0.0, "unchanged": 1.0}
