import math
import random
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.curation.selection import (
    Decision,
    Reason,
    ScoredResponse,
    SelectionSettings,
    choose_pair,
    decide,
    describe_selection,
    draw_control,
    explain_no_pair,
    is_score,
)
from matrix_dspy.errors import ConfigError

DEFAULT = SelectionSettings()
NO_SCORES = [None, math.nan, math.inf, -math.inf, -0.1, 1.1]
maybe_scores = st.one_of(st.floats(0, 1), st.sampled_from(NO_SCORES))
coarse = st.integers(0, 20).map(lambda n: n / 20)


def respond(id_: str, score: float | None, length: int = 100, *, aligned: bool = False) -> ScoredResponse:
    return ScoredResponse(id_, score, length, aligned)


def swing(mean: float, spread: float, k: int = 8) -> list[float]:
    """Scores with exactly this mean and standard deviation."""
    return [mean - spread, mean + spread] * (k // 2)


@pytest.mark.parametrize(
    ("n_passes", "reason"), [(0, "hopeless"), *((n, "teaches") for n in range(1, 8)), (8, "saturated")]
)
def test_of_eight_answers_one_to_seven_must_pass(n_passes, reason):
    decision = decide([1.0] * n_passes + [0.0] * (8 - n_passes), 0.0, "verifier")

    assert decision.reason == reason
    assert decision.is_kept == (reason == "teaches")
    assert decision.mean == n_passes / 8
    assert decision.learnability == pytest.approx(n_passes / 8 * (1 - n_passes / 8))


def test_one_pass_in_sixteen_is_too_even():
    assert decide([1.0] + [0.0] * 15, None, "verifier").reason == "too even"


def test_an_answer_that_passes_some_of_its_tests_fails():
    assert decide([0.9] * 8, None, "verifier").reason == "hopeless"
    assert decide([0.9] * 4 + [1.0] * 4, None, "verifier").mean == 0.5


@pytest.mark.parametrize(
    ("scores", "noise", "reason"),
    [
        (swing(0.5, 0.05), 0.0, "teaches"),
        (swing(0.5, 0.049), 0.0, "too even"),
        (swing(0.5, 0.35), 0.0, "teaches"),
        (swing(0.5, 0.351), 0.0, "too wild"),
        (swing(0.5, 0.2), 0.1, "teaches"),
        (swing(0.5, 0.2), 0.101, "below noise"),
        (swing(0.9, 0.04), 0.0, "saturated"),
        (swing(0.89, 0.04), 0.0, "too even"),
        (swing(0.9, 0.06), 0.0, "teaches"),
        (swing(0.9, 0.06), 0.04, "saturated"),
        (swing(0.1, 0.04), 0.0, "hopeless"),
        (swing(0.11, 0.04), 0.0, "too even"),
        (swing(0.1, 0.06), 0.04, "hopeless"),
        ([0.3] * 8, 0.0, "too even"),
    ],
)
def test_graded_scores_teach_when_they_spread_but_not_wildly(scores, noise, reason):
    assert decide(scores, None, "graded", noise).reason == reason


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.floats(0, 0.3))
def test_what_graded_scores_keep_lies_within_every_bound(scores, noise):
    decision = decide(scores, None, "graded", noise)

    assert decision.spread is not None
    assert decision.mean is not None
    assert decision.learnability == pytest.approx(decision.spread**2)
    is_within = max(0.05, 2 * noise) - 1e-8 <= decision.spread <= 0.35 + 1e-8
    assert decision.is_kept <= is_within
    if decision.reason == "saturated":
        assert decision.mean >= 0.9 - 1e-8
    if decision.reason == "hopeless":
        assert decision.mean <= 0.1 + 1e-8
    if not decision.is_kept and decision.reason != "too wild":
        assert decision.spread <= max(0.05, 2 * noise) + 1e-8


@given(st.lists(maybe_scores, max_size=12), maybe_scores, st.sampled_from(["verifier", "graded"]), st.randoms())
def test_a_decision_does_not_depend_on_the_order_of_the_scores(scores, aligned, kind, dice):
    shuffled = scores[:]
    dice.shuffle(shuffled)

    assert decide(shuffled, aligned, kind) == decide(scores, aligned, kind)


@given(st.lists(maybe_scores, max_size=12), st.sampled_from(["verifier", "graded"]))
def test_what_is_no_score_never_counts_as_a_number(scores, kind):
    decision = decide(scores, None, kind)

    known = [score for score in scores if is_score(score)]
    assert decision.n_scores == len(known)
    if len(known) < 2 or len(scores) - len(known) > len(scores) / 4:
        assert decision == Decision("drop", "no score", None, None, None, len(known))
    else:
        clean = decide(known, None, kind)
        assert (decision.reason, decision.mean, decision.spread) == (clean.reason, clean.mean, clean.spread)


def test_two_missing_of_eight_are_borne_and_three_are_not():
    assert decide([1.0] * 3 + [0.0] * 3 + [math.nan, None], None, "verifier").reason == "teaches"
    assert decide([1.0] * 3 + [0.0] * 2 + [math.nan, None, math.inf], None, "verifier").reason == "no score"


@pytest.mark.parametrize(
    ("scores", "aligned", "kind", "offered"),
    [
        ([0.0] * 8, 1.0, "verifier", True),
        ([0.0] * 8, 0.9, "verifier", False),
        ([0.0] * 8, math.nan, "verifier", False),
        ([0.0] * 8, None, "verifier", False),
        ([1.0] * 8, 1.0, "verifier", False),
        ([0.0] * 7 + [1.0], 1.0, "verifier", False),
        ([0.05] * 8, 0.5, "graded", True),
        ([0.05] * 8, 0.49, "graded", False),
        ([0.3] * 8, 0.9, "graded", False),
    ],
)
def test_the_hopeless_go_to_sft_only_where_the_aligned_model_passes(scores, aligned, kind, offered):
    assert decide(scores, aligned, kind).offer_to_sft is offered


def test_bad_settings_and_inputs_are_named():
    with pytest.raises(ConfigError, match="unknown kind of score 'maybe'"):
        decide([0.1], None, "maybe")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="repeat noise is nan"):
        decide([0.1], None, "graded", math.nan)
    with pytest.raises(ConfigError, match=r"least_spread 0\.4 and most_spread 0\.35"):
        SelectionSettings(least_spread=0.4)
    with pytest.raises(ConfigError, match="most_missing is nan"):
        SelectionSettings(most_missing=math.nan)
    with pytest.raises(ConfigError, match="most_length_ratio"):
        SelectionSettings(most_length_ratio=math.nan)


def test_the_pair_is_the_best_and_the_one_nearest_to_the_margin():
    responses = [respond("a", 0.9), respond("b", 0.85), respond("c", 0.6), respond("d", 0.5), respond("e", 0.2)]

    pair = choose_pair(responses)

    assert pair is not None
    assert [each.id for each in pair] == ["a", "c"]


def test_the_aligned_model_can_win_and_is_never_rejected():
    win = choose_pair([respond("a", 0.5), respond("z", 0.9, aligned=True)])
    lose = choose_pair([respond("a", 0.9), respond("b", 0.7), respond("z", 0.55, aligned=True)])

    assert win is not None
    assert [each.id for each in win] == ["z", "a"]
    assert lose is not None
    assert [each.id for each in lose] == ["a", "b"]


@pytest.mark.parametrize(
    ("high", "low", "is_pair"),
    [(0.5, 0.41, False), (0.5, 0.4, True), (0.9, 0.3, True), (0.9, 0.29, False), (0.5, -0.1, False)],
)
def test_margins_end_at_a_tenth_and_six_tenths(high, low, is_pair):
    assert (choose_pair([respond("a", high), respond("b", low)]) is not None) is is_pair


def test_a_side_more_than_twice_as_long_makes_no_pair():
    assert choose_pair([respond("a", 0.9, 200), respond("b", 0.5, 100)]) is not None
    assert choose_pair([respond("a", 0.9, 201), respond("b", 0.5, 100)]) is None
    assert choose_pair([respond("a", 0.9, 100), respond("b", 0.5, 201)]) is None
    assert choose_pair([respond("a", 0.9, 0), respond("b", 0.5, 0)]) is None


@given(
    st.lists(st.tuples(st.one_of(coarse, st.sampled_from(NO_SCORES)), st.integers(0, 60), st.booleans()), max_size=9),
    st.randoms(),
)
def test_a_pair_keeps_every_rule_whatever_the_order(rows, dice):
    responses = [respond(f"r{i}", *row[:2], aligned=row[2]) for i, row in enumerate(rows)]
    shuffled = responses[:]
    dice.shuffle(shuffled)

    pair = choose_pair(responses)

    assert choose_pair(shuffled) == pair
    known = [each for each in responses if is_score(each.score) and each.length]
    best = max((each.score or 0.0 for each in known), default=0.0)
    fair = [
        (abs(best - (two.score or 0.0) - 0.35), one.id, two.id)
        for one in known
        for two in known
        if one.score == best
        and not two.is_aligned
        and 0.1 - 1e-8 <= best - (two.score or 0.0) <= 0.6 + 1e-8
        and max(one.length, two.length) <= 2 * min(one.length, two.length)
    ]
    if pair is None:
        assert not fair
        assert explain_no_pair(responses) in {
            "no score",
            "margin too small",
            "margin too large",
            "lengths too different",
            "no margin fits",
        }
    else:
        chosen, rejected = pair
        assert (chosen.id, rejected.id) in {(one, two) for _, one, two in fair}
        assert abs(best - (rejected.score or 0.0) - 0.35) == pytest.approx(min(fair)[0])


@pytest.mark.parametrize(
    ("responses", "reason"),
    [
        ([respond("a", 0.9), respond("b", None)], "no score"),
        ([respond("a", 0.9, aligned=True)], "no score"),
        ([respond("a", 0.9), respond("b", 0.85)], "margin too small"),
        ([respond("a", 0.9), respond("b", 0.1)], "margin too large"),
        ([respond("a", 0.9, 300), respond("b", 0.5, 100)], "lengths too different"),
        ([respond("a", 0.9), respond("b", 0.85), respond("c", 0.1)], "no margin fits"),
    ],
)
def test_why_there_is_no_pair_is_said(responses, reason):
    assert choose_pair(responses) is None
    assert explain_no_pair(responses) == reason


def test_equally_good_answers_are_told_apart_by_partner_then_model_then_id():
    tied = [respond("b", 0.9), respond("a", 0.9), respond("z", 0.9, aligned=True), respond("r", 0.55)]
    short = [respond("a", 0.9, 300), respond("b", 0.9, 100), respond("r", 0.55, 100)]

    by_model, by_id, by_partner = choose_pair(tied), choose_pair(tied[:2] + tied[3:]), choose_pair(short)

    assert by_model is not None
    assert by_model[0].id == "z"
    assert by_id is not None
    assert by_id[0].id == "a"
    assert by_partner is not None
    assert by_partner[0].id == "b"


@given(st.sets(st.text(max_size=4), max_size=30), st.integers(0, 40), st.integers(0, 3), st.randoms())
def test_a_control_set_is_a_drawn_part_of_the_wanted_size(ids, n, seed, dice):
    shuffled = sorted(ids)
    dice.shuffle(shuffled)

    drawn = draw_control(shuffled, n, seed)

    assert set(drawn) <= ids
    assert len(drawn) == len(set(drawn)) == min(n, len(ids))
    assert drawn == draw_control(sorted(ids), n, seed)
    assert set(draw_control(ids, n // 2, seed)) <= set(drawn)


def test_a_control_set_is_random_in_its_seed():
    ids = [f"i{i}" for i in range(400)]

    draws = [set(draw_control(ids, 200, seed)) for seed in range(20)]

    assert len({frozenset(drawn) for drawn in draws}) == 20
    share = sum(id_ in drawn for id_ in ids[:100] for drawn in draws) / 2000
    assert 0.45 < share < 0.55


def test_a_selection_is_described_by_reason_learnability_category_and_difficulty():
    decisions = {
        "a": decide([1.0] * 4 + [0.0] * 4, None, "verifier"),
        "b": decide([1.0] * 1 + [0.0] * 7, None, "verifier"),
        "c": decide([0.0] * 8, 1.0, "verifier"),
        "d": decide([None] * 8, 1.0, "verifier"),
    }

    found = describe_selection(
        decisions, {"a": "coding", "b": "writing", "c": "writing"}, {"a": "hard", "b": "easy", "c": "hard"}
    )

    assert "own" in found["label"]
    assert (found["n"], found["n_scored"], found["n_kept"], found["n_offered_to_sft"]) == (4, 3, 2, 1)
    assert found["reasons"] == dict.fromkeys(get_args(Reason), 0) | {"teaches": 2, "hopeless": 1, "no score": 1}
    assert found["learnability"]["counts"] == [1, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert found["learnability"]["edges"][-1] == 0.25
    assert found["category"] == {"writing": (2, 1), "coding": (1, 1), "unknown": (1, 0)}
    assert found["difficulty"] == {"easy": (1, 1), "hard": (2, 1), "unrated": (1, 0)}
    assert list(found["difficulty"]) == ["easy", "hard", "unrated"]


@given(st.integers(0, 60), st.integers(0, 1000))
def test_the_histogram_holds_every_scored_instruction_once(n, seed):
    dice = random.Random(seed)
    decisions = {f"i{i}": decide([dice.random() for _ in range(dice.randint(0, 8))], None, "graded") for i in range(n)}

    found = describe_selection(decisions)

    assert sum(found["learnability"]["counts"]) == found["n_scored"]
    assert sum(found["reasons"].values()) == n
    assert sum(before for before, _ in found["category"].values()) == n


def test_other_bounds_are_kept_too():
    strict = replace(DEFAULT, least_learnability=0.2)

    assert decide([1.0] * 2 + [0.0] * 6, None, "verifier").reason == "teaches"
    assert decide([1.0] * 2 + [0.0] * 6, None, "verifier", settings=strict).reason == "too even"
