import math
from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matrix_dspy.errors import ConfigError, TableError
from matrix_dspy.evaluation.bradley_terry import (
    ELO_SCALE,
    Battle,
    Standing,
    rank_models,
    read_verdict,
)
from matrix_dspy.evaluation.intervals import wilson

MODELS = ["ash", "birch", "cedar", "dogwood"]


def zermelo(battles: list[Battle], baseline: str) -> dict[str, float]:
    """Fit by the minorise-maximise iteration of Zermelo (1929): no gradients, no matrices."""
    won: dict[str, float] = defaultdict(float)
    met: dict[tuple[str, str], float] = defaultdict(float)
    for battle in battles:
        won[battle.model_a] += battle.weight * battle.score
        won[battle.model_b] += battle.weight * (1 - battle.score)
        met[battle.model_a, battle.model_b] += battle.weight
        met[battle.model_b, battle.model_a] += battle.weight
    worth = dict.fromkeys(won, 1.0)
    for _ in range(20_000):
        new = {
            one: won[one] / sum(met[one, other] / (worth[one] + worth[other]) for other in worth if (one, other) in met)
            for one in worth
        }
        scale = new[baseline]
        new = {name: value / scale for name, value in new.items()}
        if max(abs(math.log(new[name] / worth[name])) for name in worth) < 1e-13:
            break
        worth = new
    return {name: math.log(value) for name, value in worth.items()}


def draw_battles(n_prompts: int, seed: int, strengths: dict[str, float], ties: float = 0.1) -> list[Battle]:
    """Let every model meet the first, and two of them each other, in both orders, with ties and weights."""
    base = next(iter(strengths))
    generator = np.random.default_rng(seed)
    battles = []
    for prompt in range(n_prompts):
        for one, other in [(name, base) for name in strengths if name != base] + [("birch", "cedar")]:
            for a, b in ((one, other), (other, one)):
                chance = 1 / (1 + math.exp(strengths[b] - strengths[a]))
                score = 0.5 if generator.random() < ties else float(generator.random() < chance)
                weight = 3.0 if score != 0.5 and generator.random() < 0.3 else 1.0
                battles.append(Battle(a, b, score, weight, f"p{prompt}"))
    return battles


TRUE = {"ash": 0.0, "birch": 0.6, "cedar": -0.8, "dogwood": 1.5}


def list_strengths(battles: list[Battle], baseline: str) -> dict[str, float]:
    return {each.model: each.strength for each in rank_models(battles, baseline, n_resamples=1)}


def find(standings: list[Standing], model: str) -> Standing:
    return next(each for each in standings if each.model == model)


@pytest.mark.parametrize("seed", range(5))
def test_strengths_are_those_of_zermelos_iteration(seed: int):
    battles = draw_battles(60, seed, TRUE)

    found = list_strengths(battles, "ash")

    assert found == pytest.approx(zermelo(battles, "ash"), abs=1e-7)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(MODELS), st.sampled_from(MODELS), st.floats(0.05, 0.95), st.sampled_from([1.0, 2.5, 3.0])
        ).filter(lambda drawn: drawn[0] != drawn[1]),
        min_size=1,
        max_size=25,
    )
)
def test_any_battles_that_join_all_models_agree_with_zermelos_iteration(drawn: list[tuple[str, str, float, float]]):
    chain = [(one, other, 0.4, 1.0) for one, other in pairwise(MODELS)]
    battles = [Battle(*each) for each in chain + drawn]

    found = list_strengths(battles, "birch")

    assert found == pytest.approx(zermelo(battles, "birch"), abs=1e-6)
    assert found["birch"] == 0.0


@settings(max_examples=25)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=40).filter(lambda x: 0 < sum(x) < len(x)))
def test_against_the_baseline_alone_the_rate_is_the_share_won(scores: list[float]):
    battles = [Battle("oak", "elm", score, 1.0, str(i)) for i, score in enumerate(scores)]

    found = find(rank_models(battles, "elm", n_resamples=20), "oak")

    assert found.win_rate.value == pytest.approx(100 * sum(scores) / len(scores))
    assert found.elo.value == pytest.approx(1000 + ELO_SCALE * found.strength)
    assert not found.is_regularised


def test_sides_may_be_turned():
    battles = draw_battles(30, 1, TRUE)
    turned = [Battle(each.model_b, each.model_a, 1 - each.score, each.weight, each.prompt) for each in battles]

    assert list_strengths(turned, "ash") == pytest.approx(list_strengths(battles, "ash"))


def test_planted_strengths_lie_within_the_intervals():
    held = dict.fromkeys(TRUE, 0)
    for seed in range(100):
        for each in rank_models(draw_battles(50, seed, TRUE, ties=0.0), "ash", n_resamples=200):
            true = 100 / (1 + math.exp(-TRUE[each.model]))
            held[each.model] += each.win_rate.low - 1e-9 <= true <= each.win_rate.high + 1e-9

    assert held["ash"] == 100
    assert min(held.values()) >= 90


def test_the_baseline_stands_at_half_and_a_thousand_and_the_best_comes_first():
    found = rank_models(draw_battles(40, 0, TRUE), "ash", n_resamples=50)

    base = find(found, "ash")
    assert (base.win_rate.low, base.win_rate.value, base.win_rate.high) == (50, 50, 50)
    assert base.elo.value == 1000
    assert [each.model for each in found] == ["dogwood", "birch", "ash", "cedar"]
    assert found == rank_models(draw_battles(40, 0, TRUE), "ash", n_resamples=50)


def test_ten_to_one_is_four_hundred_points():
    battles = [Battle("oak", "elm", 10 / 11, 1.0, str(i)) for i in range(5)]

    assert find(rank_models(battles, "elm", n_resamples=10), "oak").elo.value == pytest.approx(1400)


def test_both_orders_of_a_prompt_are_drawn_together():
    once = [Battle("oak", "elm", float(i % 3 > 0), 1.0, f"p{i}") for i in range(60)]
    doubled = [*once, *once]
    apart = [Battle(each.model_a, each.model_b, each.score, each.weight) for each in doubled]

    one, two, loose = (find(rank_models(each, "elm"), "oak").win_rate for each in (once, doubled, apart))

    assert (two.low, two.high) == pytest.approx((one.low, one.high))
    assert loose.high - loose.low < 0.85 * (one.high - one.low)


def test_a_model_that_won_everything_is_told_with_doubt():
    battles = [Battle("oak", "elm", 1.0, 1.0, str(i)) for i in range(20)]

    found = find(rank_models(battles, "elm"), "oak")

    assert found.is_regularised
    assert found.win_rate.value == pytest.approx(100 * 20.5 / 21)
    assert 70 < found.win_rate.low < 95 < found.win_rate.value < found.win_rate.high < 100
    assert math.isfinite(found.elo.high)


def test_an_undefeated_model_does_not_move_the_others():
    battles = [Battle("oak", "elm", float(i % 4 > 0), 1.0, str(i)) for i in range(20)]
    undefeated = [Battle("yew", "elm", 1.0, 1.0, str(i)) for i in range(20)]

    alone, beside = (rank_models(each, "elm", n_resamples=200) for each in (battles, battles + undefeated))

    assert find(beside, "oak").win_rate.value == pytest.approx(find(alone, "oak").win_rate.value)
    assert find(beside, "yew").is_regularised
    assert not find(beside, "oak").is_regularised


def test_a_single_prompt_has_a_wide_interval():
    found = find(rank_models([Battle("oak", "elm", 0.5)], "elm"), "oak")

    assert found.win_rate.low < 15
    assert found.win_rate.high > 85


def test_models_that_never_met_the_baselines_circle_are_refused():
    battles = [Battle("oak", "elm", 0.5), Battle("yew", "fir", 0.5)]

    with pytest.raises(TableError, match="no chain of battles joins 'fir' to the baseline 'elm'"):
        rank_models(battles, "elm")


@pytest.mark.parametrize(
    ("battle", "words"),
    [
        (Battle("oak", "oak", 1.0), "one of a model with itself"),
        (Battle("oak", "elm", 1.5), "the score 1.5"),
        (Battle("oak", "elm", float("nan")), "the score nan"),
        (Battle("oak", "elm", 1.0, 0.0), "the weight 0.0"),
        (Battle("oak", "elm", 1.0, float("inf")), "the weight inf"),
    ],
)
def test_a_battle_that_cannot_be_is_refused(battle: Battle, words: str):
    with pytest.raises(TableError, match=words):
        rank_models([battle], "elm")


def test_no_battles_and_an_unknown_baseline_are_refused():
    with pytest.raises(TableError, match="no battles"):
        rank_models([], "elm")
    with pytest.raises(ConfigError, match="the baseline 'fir' is in no battle; choose one of 'elm', 'oak'"):
        rank_models([Battle("oak", "elm", 1.0)], "fir")


def test_much_better_counts_three_times():
    assert [read_verdict(each) for each in ("A>>B", "A>B", "A=B", "B>A", "B>>A")] == [
        (1.0, 3.0),
        (1.0, 1.0),
        (0.5, 1.0),
        (0.0, 1.0),
        (0.0, 3.0),
    ]
    assert read_verdict("B<<A") == read_verdict(" a >> b ") == (1.0, 3.0)
    with pytest.raises(TableError, match="no verdict 'A>>>B'; use one of A>>B, A>B"):
        read_verdict("A>>>B")


def test_nothing_but_ties_leaves_doubt():
    battles = [Battle("oak", "elm", 0.5, 1.0, f"p{i}") for i in range(10)]

    found = find(rank_models(battles, "elm", n_resamples=50), "oak")

    assert found.win_rate.value == 50
    assert found.win_rate.low < 30 and found.win_rate.high > 70
    assert not found.is_regularised


def test_of_few_prompts_the_interval_is_wilsons():
    scores = {"oak": [1.0, 0.5, 0.5, 0.0], "fir": [1.0, 0.5, 0.5, 0.0] * 25}
    battles = [Battle(name, "elm", each, 1.0, f"p{i}") for name, some in scores.items() for i, each in enumerate(some)]

    standings = rank_models(battles, "elm", n_resamples=200)

    few, many = find(standings, "oak").win_rate, find(standings, "fir").win_rate
    expected = wilson(2, 4).scale(100)
    assert (few.low, few.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert many.high - many.low < (few.high - few.low) / 3
