import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.config import Config, SimulationConfig
from matrix_dspy.errors import ConfigError
from matrix_dspy.simulation import grouping
from matrix_dspy.simulation.grouping import cluster, count_groups
from matrix_dspy.simulation.society import form_groups
from tests.toys import ToyEmbedder, make_agent


def draw_unit_vectors(n: int, n_dims: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, n_dims))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 40))
    max_size = draw(st.integers(1, 10))
    return n, draw(st.integers(-(-n // max_size), n)), max_size


def find_least_cost(costs: np.ndarray, max_size: int) -> float:
    n_rows, n_groups = costs.shape
    best = np.inf
    for labels in itertools.product(range(n_groups), repeat=n_rows):
        sizes = np.bincount(labels, minlength=n_groups)
        if sizes.min() >= 1 and sizes.max() <= max_size:
            best = min(best, costs[range(n_rows), labels].sum())
    return float(best)


@given(shapes(), st.integers(0, 10**6))
@settings(max_examples=60)
def test_every_group_is_filled_and_none_is_too_large(shape: tuple[int, int, int], seed: int):
    n, n_groups, max_size = shape

    sizes = np.bincount(cluster(draw_unit_vectors(n, 6, seed), n_groups, max_size, seed), minlength=n_groups)

    assert sizes.sum() == n
    assert len(sizes) == n_groups
    assert sizes.min() >= 1
    assert sizes.max() <= max_size


@given(shapes())
@settings(max_examples=30)
def test_people_who_are_all_alike_are_divided_too(shape: tuple[int, int, int]):
    n, n_groups, max_size = shape

    sizes = np.bincount(cluster(np.ones((n, 3)) / 3**0.5, n_groups, max_size, 0), minlength=n_groups)

    assert len(sizes) == n_groups
    assert 1 <= sizes.min() <= sizes.max() <= max_size


@given(shapes(), st.integers(0, 10**6))
@settings(max_examples=60)
def test_the_greedy_assignment_keeps_the_bounds_too(shape: tuple[int, int, int], seed: int):
    n, n_groups, max_size = shape
    costs = np.random.default_rng(seed).random((n, n_groups)) ** 4

    sizes = np.bincount(grouping._assign_greedily(costs, max_size), minlength=n_groups)

    assert sizes.sum() == n
    assert len(sizes) == n_groups
    assert 1 <= sizes.min() <= sizes.max() <= max_size


def test_who_would_lose_most_by_waiting_is_assigned_first_by_the_greedy_assignment():
    costs = np.array([[0.0, 1.0], [0.0, 9.0]])

    assert grouping._assign_greedily(costs, 1).tolist() == [1, 0]


def test_more_agents_than_the_exact_assignment_takes_are_divided_within_the_bounds():
    n = grouping.EXACT_UP_TO + 1

    sizes = np.bincount(cluster(draw_unit_vectors(n, 8, 0), n // 5, 10, 0), minlength=n // 5)

    assert 1 <= sizes.min() <= sizes.max() <= 10


@given(st.integers(2, 6), st.integers(1, 3), st.integers(1, 4), st.integers(0, 10**6))
@settings(max_examples=40)
def test_the_exact_assignment_costs_the_least_there_is(n: int, n_groups: int, max_size: int, seed: int):
    n_groups = min(n, max(n_groups, -(-n // max_size)))
    costs = np.random.default_rng(seed).random((n, n_groups))

    labels = grouping._assign_exactly(costs, max_size)

    assert np.bincount(labels, minlength=n_groups).max() <= max_size
    assert costs[range(n), labels].sum() == pytest.approx(find_least_cost(costs, max_size))


def test_the_same_seed_gives_the_same_groups():
    vectors = draw_unit_vectors(60, 8, 1)

    assert np.array_equal(cluster(vectors, 12, 10, 5), cluster(vectors, 12, 10, 5))


def test_another_seed_gives_other_groups():
    vectors = draw_unit_vectors(60, 8, 1)

    assert not np.array_equal(cluster(vectors, 12, 10, 5), cluster(vectors, 12, 10, 6))


def test_a_thousand_people_are_divided_into_two_hundred_groups_within_seconds():
    started = time.perf_counter()

    sizes = np.bincount(cluster(draw_unit_vectors(1000, 384, 0), 200, 10, 0), minlength=200)

    assert time.perf_counter() - started < 10
    assert len(sizes) == 200
    assert 1 <= sizes.min() <= sizes.max() <= 10


@pytest.mark.parametrize("seed", range(5))
def test_planted_clusters_are_found(seed: int):
    generator = np.random.default_rng(seed)
    planted = np.repeat(np.arange(6), [10, 2, 5, 9, 1, 4])
    points = np.eye(12)[planted] + generator.normal(scale=0.02, size=(len(planted), 12))
    points /= np.linalg.norm(points, axis=1, keepdims=True)

    found = cluster(points, 6, 10, seed)

    assert len(set(zip(planted.tolist(), found.tolist(), strict=True))) == 6


def test_without_a_wish_there_is_one_group_for_every_five_agents():
    assert count_groups(1000, None, 10) == 200
    assert count_groups(1, None, 10) == 1
    assert count_groups(40, None, 10) == 8


def test_without_a_wish_there_are_never_too_few_groups_to_hold_everybody():
    assert count_groups(12, None, 2) == 6


def test_as_many_groups_as_agents_and_as_few_as_hold_them_are_allowed():
    assert count_groups(20, 20, 10) == 20
    assert count_groups(20, 2, 10) == 2


def test_more_groups_than_agents_are_refused():
    with pytest.raises(ConfigError, match=r"^21 groups cannot be formed from 20 agents; give fewer groups"):
        count_groups(20, 21, 10)


def test_too_few_groups_to_hold_the_agents_are_refused():
    with pytest.raises(ConfigError, match=r"^2 groups of at most 10 cannot hold 21 agents; give at least 3$"):
        count_groups(21, 2, 10)


def test_groups_hold_everybody_once_and_are_named_in_the_order_of_their_first_agent():
    agents = [make_agent(f"P{number:02d}") for number in range(17)]
    config = Config(simulation=SimulationConfig(n_groups=4))

    groups = form_groups(list(reversed(agents)), config, ToyEmbedder())

    assert sorted(i for group in groups for i in group.agent_ids) == [agent.agent_id for agent in agents]
    firsts = [group.agent_ids[0] for group in groups]
    assert firsts == sorted(firsts)
    assert groups == form_groups(agents, config, ToyEmbedder())
