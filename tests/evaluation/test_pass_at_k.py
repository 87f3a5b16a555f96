from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.intervals import wilson
from matrix_dspy.evaluation.pass_at_k import estimate_pass_at_k, measure_pass_at_k


def enumerate_pass_at_k(verdicts: list[bool], k: int) -> Fraction:
    """Go through every choice of k answers, and count those that hold a right one."""
    chosen = [any(some) for some in combinations(verdicts, k)]
    return Fraction(sum(chosen), len(chosen))


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_the_estimate_is_that_of_every_choice_of_k(verdicts: list[bool], data: st.DataObject):
    k = data.draw(st.integers(1, len(verdicts)))

    assert estimate_pass_at_k(len(verdicts), sum(verdicts), k) == pytest.approx(
        float(enumerate_pass_at_k(verdicts, k)), abs=1e-12
    )


@given(st.integers(1, 300), st.data())
def test_the_estimate_is_the_product_of_missing_one_after_another(n: int, data: st.DataObject):
    n_right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    missed = Fraction(1)
    for drawn in range(k):
        missed *= Fraction(max(0, n - n_right - drawn), n - drawn)

    assert estimate_pass_at_k(n, n_right, k) == pytest.approx(float(1 - missed), abs=1e-12)


def test_the_estimate_is_unbiased():
    generator = np.random.default_rng(0)
    n_right = generator.binomial(10, 0.2, 20_000)

    found = np.mean([estimate_pass_at_k(10, int(each), 3) for each in n_right])

    assert found == pytest.approx(1 - 0.8**3, abs=0.005)


@given(st.integers(2, 60), st.data())
def test_more_tries_and_more_right_answers_never_make_it_less(n: int, data: st.DataObject):
    n_right, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))

    here = estimate_pass_at_k(n, n_right, k)

    assert 0 <= here <= estimate_pass_at_k(n, n_right, k + 1) <= 1
    assert here <= estimate_pass_at_k(n, n_right + 1, k)


def test_one_answer_a_problem_is_a_share_with_the_interval_of_one():
    found = measure_pass_at_k({"a": [True], "b": [False], "c": [True], "d": [True]})

    assert found == {1: wilson(3, 4)}


def test_several_answers_are_resampled_by_problem():
    generator = np.random.default_rng(1)
    verdicts = {f"p{i}": (generator.random(8) < 0.1 * (i % 8)).tolist() for i in range(80)}

    found = measure_pass_at_k(verdicts, (1, 4), seed=2)

    assert found[1].value == pytest.approx(np.mean([np.mean(each) for each in verdicts.values()]))
    assert found[1].low < found[1].value < found[1].high < found[4].value
    assert found[1].n == 80
    assert found == measure_pass_at_k(verdicts, (1, 4), seed=2)


def test_all_right_is_not_said_to_be_sure():
    found = measure_pass_at_k({str(i): [True, True] for i in range(10)}, (1, 2))

    assert found[1] == found[2] == wilson(10, 10)
    assert found[1].low < 0.75


@pytest.mark.parametrize(("n", "n_right", "k"), [(5, 2, 0), (5, 2, 6), (0, 0, 1)])
def test_a_k_that_cannot_be_told_is_refused(n: int, n_right: int, k: int):
    with pytest.raises(ConfigError, match=f"pass@{k} cannot be told from {n} answers"):
        estimate_pass_at_k(n, n_right, k)


def test_bad_counts_are_refused_in_one_sentence():
    with pytest.raises(TableError, match="6 of 5 answers cannot be right"):
        estimate_pass_at_k(5, 6, 1)
    with pytest.raises(TableError, match="no problems were scored"):
        measure_pass_at_k({})
    with pytest.raises(ConfigError, match="the problem 'b' has 1 answers; draw more answers"):
        measure_pass_at_k({"a": [True, False], "b": [True]}, (1, 2))
