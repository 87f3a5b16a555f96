import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.intervals import (
    Interval,
    bootstrap,
    bootstrap_mean,
    draw_counts,
    number_clusters,
    wilson,
)

SHARES = st.lists(st.floats(0, 1), min_size=2, max_size=30)


def draw(n: int, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).exponential(1.0, n).tolist()


@given(st.integers(1, 400), st.data())
def test_wilson_is_that_of_scipy(n: int, data: st.DataObject):
    n_hits = data.draw(st.integers(0, n))

    found = wilson(n_hits, n)

    expected = stats.binomtest(n_hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize(("n_hits", "n"), [(0, 0), (3, 2), (-1, 5), (float("nan"), 5)])
def test_a_share_of_more_than_there_are_is_refused(n_hits: float, n: int):
    with pytest.raises(TableError, match="there must be at least one"):
        wilson(n_hits, n)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_a_bootstrap_of_a_mean_is_that_of_scipy(method):
    values = draw(60)

    found = bootstrap_mean(values, method=method, n_resamples=20_000)

    name = {"percentile": "percentile", "bca": "BCa"}[method]
    other = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=name, rng=np.random.default_rng(1))
    low, high = other.confidence_interval
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_the_interval_of_a_mean_holds_it_as_often_as_it_says():
    held = [
        found.low <= 1 <= found.high
        for seed in range(300)
        for found in [bootstrap_mean(draw(80, seed), n_resamples=300, method="bca")]
    ]

    assert 0.90 <= np.mean(held) <= 0.98


def test_rows_of_one_cluster_are_drawn_together():
    values = draw(40)
    fourfold = [value for value in values for _ in range(4)]
    clusters = [i for i in range(40) for _ in range(4)]

    once = bootstrap_mean(values, seed=3)
    together = bootstrap_mean(fourfold, clusters=clusters, seed=3)
    apart = bootstrap_mean(fourfold, seed=3)

    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert together.n == 40
    assert apart.high - apart.low < 0.7 * (once.high - once.low)


def test_clusters_of_several_sizes_are_weighted_by_their_rows():
    values, clusters = [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]

    found = bootstrap_mean(values, clusters=clusters, n_resamples=400)

    # two clusters are drawn as aa, ab, ba or bb
    assert (found.value, found.low, found.high) == (0.75, 0.0, 1.0)


@given(SHARES, st.integers(0, 5))
def test_an_interval_within_bounds_holds_its_figure_and_stays_within(values: list[float], seed: int):
    found = bootstrap_mean(values, bounds=(0.0, 1.0), seed=seed, n_resamples=50)

    assert 0 <= found.low <= found.high <= 1
    assert found.value == pytest.approx(np.mean(values))


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_values_all_the_same_have_the_doubt_of_a_share(value: float):
    found = bootstrap_mean([value] * 10, bounds=(0.0, 1.0))

    expected = wilson(value * 10, 10)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.high - found.low > 0.2


def test_a_single_prompt_has_an_interval_only_within_bounds():
    assert bootstrap_mean([7.0], bounds=(1.0, 10.0)).low == pytest.approx(1 + 9 * wilson(2 / 3, 1).low)

    with pytest.raises(TableError, match="no interval from 1 prompt; give at least 2"):
        bootstrap_mean([7.0])


def test_the_same_seed_gives_the_same_interval_and_another_another():
    values = draw(50)

    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_resamples_done_in_parts_are_the_same_as_at_once(monkeypatch):
    values = draw(50)
    whole = bootstrap_mean(values, n_resamples=100, method="bca")

    monkeypatch.setattr("matrix_dspy.evaluation.intervals._MOST_CELLS", 50 * 7)

    parts = bootstrap_mean(values, n_resamples=100, method="bca")
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=1e-12)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_counts_of_a_resample_sum_to_the_clusters(n: int, n_resamples: int, seed: int):
    counts = draw_counts(n, n_resamples, np.random.default_rng(seed))

    assert counts.shape == (n_resamples, n)
    assert (counts.sum(axis=1) == n).all()


def test_any_weighted_statistic_can_be_resampled():
    values = np.array(draw(200))

    def spread(weights: np.ndarray) -> np.ndarray:
        means = weights @ values / weights.sum(axis=1)
        return np.sqrt(weights @ values**2 / weights.sum(axis=1) - means**2)

    found = bootstrap(spread, 200, n_resamples=500)

    assert found.value == pytest.approx(values.std())
    assert found.low < found.value < found.high


def test_bad_values_are_refused_in_one_sentence():
    with pytest.raises(TableError, match="no values to take a mean of"):
        bootstrap_mean([])
    with pytest.raises(TableError, match="value 2 of 2 is nan; leave out what was not scored"):
        bootstrap_mean([1.0, float("nan")])
    with pytest.raises(TableError, match=r"the value 1\.5 is not between 0\.0 and 1\.0"):
        bootstrap_mean([0.5, 1.5], bounds=(0.0, 1.0))
    with pytest.raises(TableError, match="2 values have 1 clusters"):
        bootstrap_mean([0.5, 1.5], clusters=["a"])
    with pytest.raises(ConfigError, match="0 resamples give no interval"):
        bootstrap_mean([1, 2, 3], n_resamples=0)
    with pytest.raises(ConfigError, match="a confidence of 95 is not between 0 and 1"):
        wilson(1, 2, confidence=95)


def test_clusters_are_numbered_in_the_order_they_come():
    numbers, n = number_clusters(["b", "a", "b", "c"])

    assert (numbers.tolist(), n) == ([0, 1, 0, 2], 3)


@settings(max_examples=20)
@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_a_scaled_interval_keeps_what_it_rests_on(value: float, below: float, above: float):
    found = Interval(value, value - below, value + above, 7).scale(100)

    assert found == Interval(value * 100, (value - below) * 100, (value + above) * 100, 7)
    assert found.dump()["n"] == 7


def test_no_interval_shows_a_minus_zero():
    assert str(Interval(-1e-9, -1e-9, 0.5, 3)) == "0.000 [0.000, 0.500]"
    assert "-0.0" not in str(Interval(-1e-9, -1e-9, 0.5, 3).dump())
