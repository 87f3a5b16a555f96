from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.config import SynthesisConfig
from matrix_dspy.synthesis.retrieval import Retriever, order_by_mmr, rank_evenly
from tests.toys import ToyEmbedder, make_scenario

GROUPS = "abcde"


def order_slowly(relevance: np.ndarray, vectors: np.ndarray, weight: float) -> list[int]:
    order: list[int] = []
    while len(order) < len(relevance):
        best, best_score = -1, -np.inf
        for row in range(len(relevance)):
            if row in order:
                continue
            closest = max([0.0, *(float(np.round(vectors[row] @ vectors[other], 6)) for other in order)])
            score = weight * relevance[row] - (1 - weight) * closest
            if score > best_score:
                best, best_score = row, score
        order.append(best)
    return order


@given(st.integers(1, 12), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]), st.integers(0, 10**6))
def test_the_order_is_that_of_a_plain_search_for_relevance_and_variety(n: int, n_dims: int, weight: float, seed: int):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(n, n_dims))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    relevance = np.round(generator.random(n), 6)

    assert order_by_mmr(relevance, vectors, weight) == order_slowly(relevance, vectors, weight)


def test_an_order_worked_out_by_hand():
    vectors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    relevance = np.array([0.9, 0.8, 0.5])

    # after row 0: row 1 scores 0.7 * 0.8 - 0.3 * 1 = 0.26, row 2 scores 0.7 * 0.5 - 0 = 0.35
    assert order_by_mmr(relevance, vectors, 0.7) == [0, 2, 1]


def test_with_full_weight_on_relevance_the_order_is_by_relevance_and_ties_go_to_the_first():
    vectors = np.eye(4)[[0, 0, 0, 0]]

    assert order_by_mmr(np.array([0.2, 0.9, 0.2, 0.5]), vectors, 1.0) == [1, 3, 0, 2]


def test_without_a_need_groups_take_turns():
    scenarios = [make_scenario(number, group) for group in GROUPS for number in range(4)]

    ranked = rank_evenly(scenarios, 0)

    for turn in range(4):
        own = ranked[turn * 5 : turn * 5 + 5]
        assert Counter(s.group_id for s in own) == {f"group-{group}": 1 for group in GROUPS}
        assert {s.index for s in own} == {turn}


def test_a_group_with_fewer_scenarios_leaves_its_later_turns_to_others():
    scenarios = [make_scenario(0, "a"), *(make_scenario(number, "b") for number in range(3))]

    ranked = rank_evenly(scenarios, 0)

    assert [s.group_id for s in ranked[2:]] == ["group-b", "group-b"]
    assert {s.group_id for s in ranked[:2]} == {"group-a", "group-b"}


def test_every_turn_has_an_order_of_its_own():
    scenarios = [make_scenario(number, group) for group in GROUPS for number in range(6)]

    ranked = [s.group_id for s in rank_evenly(scenarios, 0)]

    assert len({tuple(ranked[turn * 5 : turn * 5 + 5]) for turn in range(6)}) > 1


@given(st.permutations(range(15)))
def test_the_order_in_which_scenarios_come_does_not_matter(order: list[int]):
    scenarios = [make_scenario(number, group) for group in GROUPS for number in range(3)]
    shuffled = [scenarios[position] for position in order]
    by_need = SynthesisConfig(need="honey for the baker")

    assert rank_evenly(shuffled, 1) == rank_evenly(scenarios, 1)
    assert Retriever(by_need, ToyEmbedder(), 0).add(shuffled) == Retriever(by_need, ToyEmbedder(), 0).add(scenarios)


def test_a_need_puts_the_scenarios_nearest_to_it_in_front():
    scenarios = [
        make_scenario(0, "a", summary="The roof was mended before the storm."),
        make_scenario(1, "a", summary="The baker bought honey from the keeper."),
        make_scenario(2, "a", summary="A choir sang in the square."),
    ]
    retriever = Retriever(SynthesisConfig(need="honey for the baker"), ToyEmbedder(), 0)

    ranked = retriever.add(scenarios)

    assert ranked[0] == scenarios[1]
    assert retriever.relevance["scenario-a-001"] == max(retriever.relevance.values())
    assert set(retriever.relevance) == {scenario.scenario_id for scenario in scenarios}


def test_a_copy_of_the_nearest_scenario_comes_behind_another_that_is_near():
    scenarios = [
        make_scenario(0, "a", summary="The baker bought honey."),
        make_scenario(1, "a", summary="The baker bought honey."),
        make_scenario(2, "a", summary="Honey was sold to a baker in the hills."),
    ]
    retriever = Retriever(SynthesisConfig(need="honey baker bought", relevance_weight=0.3), ToyEmbedder(), 0)

    assert [scenario.index for scenario in retriever.add(scenarios)] == [0, 2, 1]


def test_earlier_ranks_stay_in_front_when_more_come_in():
    for need in ("", "honey for the baker"):
        retriever = Retriever(SynthesisConfig(need=need), ToyEmbedder(), 0)
        first = [make_scenario(number, group) for group in GROUPS for number in range(2)]
        later = [make_scenario(2, group, summary="honey for the baker") for group in GROUPS]

        ranked = retriever.add(first)
        added = retriever.add([*later, *first])

        assert retriever.ranked == [*ranked, *added]
        assert {scenario.index for scenario in added} == {2}


def test_what_is_known_already_is_not_ranked_again():
    retriever = Retriever(SynthesisConfig(), ToyEmbedder(), 0)
    scenarios = [make_scenario(0, group) for group in GROUPS]
    retriever.add(scenarios)

    assert retriever.add(scenarios) == []
    assert len(retriever.ranked) == 5


def test_without_a_need_nothing_has_a_relevance():
    retriever = Retriever(SynthesisConfig(), ToyEmbedder(), 0)

    retriever.add([make_scenario(0, "a")])

    assert retriever.relevance == {}
