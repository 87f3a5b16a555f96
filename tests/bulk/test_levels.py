"""Scores as expectations, from distributions written by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.bulk.levels import MOST_LEVELS, expect_level, read_levels

FIVE = {str(level): float(level) for level in range(1, 6)}
TEN = {str(level): float(level) for level in range(1, 11)}
WORDS = {"very poor": 1.0, "poor": 2.0, "fair": 3.0, "good": 4.0, "very good": 5.0}
Place = str | tuple[str, Mapping[str, float]]
"""A token that is certain, or the token drawn with the shares of all."""


def write_tokens(places: Sequence[Place]) -> tuple[list[dict[str, Any]], str]:
    """Return the tokens as a server reports them, and their text."""
    tokens: list[dict[str, Any]] = []
    for place in places:
        word, shares = (place, {place: 1.0}) if isinstance(place, str) else place
        top = [{"token": each, "logprob": math.log(share)} for each, share in shares.items()]
        tokens.append({"token": word, "logprob": math.log(shares[word]), "top_logprobs": top})
    return tokens, "".join(str(token["token"]) for token in tokens)


def expect(levels: Mapping[str, float], *places: Place) -> float | None:
    tokens, _ = write_tokens(places)
    return expect_level(levels, tokens, "score")


MARKER = ["[[", " ## ", "score", " ## ", "]]", "\n"]
REASON = ["[[ ## reason ## ]]\n", "It", " is", " 5", " of", " 5", ".\n\n"]


def test_a_certain_score_is_itself():
    assert expect(FIVE, *MARKER, ("4", {"4": 1.0}), "\n\n") == 4.0


def test_a_score_that_wavers_is_the_mean_of_its_distribution():
    shares = {"4": 0.5, "3": 0.25, "5": 0.25}
    tilted = {"2": 0.6, "1": 0.3, "5": 0.1}

    assert expect(FIVE, *REASON, *MARKER, ("4", shares), "\n\n", "[[ ## completed ## ]]") == pytest.approx(4.0)
    assert expect(FIVE, *REASON, *MARKER, ("2", tilted), "\n\n") == pytest.approx(0.6 * 2 + 0.3 * 1 + 0.1 * 5)


def test_mass_on_what_is_no_level_is_left_out():
    shares = {"4": 0.4, "2": 0.2, "The": 0.3, "9": 0.1}

    assert expect(FIVE, *MARKER, ("4", shares), "\n") == pytest.approx((0.4 * 4 + 0.2 * 2) / 0.6)


def test_a_score_in_json_is_found_too():
    shares = {"3": 0.5, "4": 0.5}
    head = ['{"', "reason", '":', ' "', "five stars", '",', ' "', "score", '":']

    assert expect(FIVE, *head, " ", ("3", shares), "}") == pytest.approx(3.5)
    spaced = {f" {level}": share for level, share in shares.items()}
    assert expect(FIVE, *head, (" 3", spaced), "}") == pytest.approx(3.5)


def test_a_score_in_quotes_in_json_is_found_too():
    second = {" poor": 0.75, " good": 0.25}
    first = {"very": 0.8, "fair": 0.2}

    mean = expect(WORDS, '{"', "score", '":', ' "', ("very", first), (" poor", second), '"}')

    assert mean == pytest.approx(0.8 * 0.75 * 1 + 0.8 * 0.25 * 5 + 0.2 * 3)


def test_levels_of_several_tokens_share_their_beginning():
    first = {"very": 0.5, "poor": 0.1, "fair": 0.2, "good": 0.2}
    second = {" good": 0.6, " poor": 0.4}

    mean = expect(WORDS, *MARKER, ("very", first), (" good", second), "\n\n")

    assert mean == pytest.approx(0.5 * 0.6 * 5 + 0.5 * 0.4 * 1 + 0.1 * 2 + 0.2 * 3 + 0.2 * 4)


def test_a_beginning_that_was_not_taken_is_shared_evenly():
    mean = expect(WORDS, *MARKER, ("fair", {"fair": 0.6, "very": 0.4}), "\n\n")

    assert mean == pytest.approx(0.6 * 3 + 0.2 * 1 + 0.2 * 5)


def test_a_one_that_may_become_ten_is_decided_by_the_next_token():
    first = {"1": 0.6, "3": 0.4}

    one = expect(TEN, *MARKER, ("1", first), ("\n\n", {"\n\n": 0.75, "0": 0.25}), "[[")
    ten = expect(TEN, *MARKER, ("1", first), ("0", {"0": 0.25, "\n\n": 0.75}), "\n\n")

    assert one == ten == pytest.approx(0.6 * 0.75 * 1 + 0.6 * 0.25 * 10 + 0.4 * 3)


def test_a_ten_of_one_token_is_no_one():
    shares = {"9": 0.5, "10": 0.3, "1": 0.2}

    mean = expect(TEN, *MARKER, ("9", shares), "\n\n")

    assert mean == pytest.approx(0.5 * 9 + 0.3 * 10 + 0.2 * (1 + 10) / 2)


def test_a_one_in_json_ends_at_the_brace():
    mean = expect(TEN, '{"score":', ("1", {"1": 0.5, "10": 0.5}), ("}", {"}": 0.8, "0": 0.2}))

    assert mean == pytest.approx(0.5 * 0.8 * 1 + 0.5 * 0.2 * 10 + 0.5 * 10)


def test_a_one_at_the_very_end_is_a_one():
    assert expect(TEN, *MARKER, ("1", {"1": 0.9, "3": 0.1})) == pytest.approx(0.9 * 1 + 0.1 * 3)


def test_a_one_before_a_mark_of_the_end_is_a_one():
    places = (*MARKER, ("1", {"1": 0.9, "3": 0.1}), "<|im_end|>")

    tokens, _ = write_tokens(places)

    mean = expect_level(TEN, tokens, "score")
    assert mean == pytest.approx(0.9 * 1 + 0.1 * 3)


def test_a_blank_before_the_score_is_passed_over():
    assert expect(FIVE, *MARKER[:-1], " ", ("2", {"2": 0.5, "3": 0.5}), "\n") == pytest.approx(2.5)


def test_a_token_without_alternatives_stands_for_itself():
    tokens = [{"token": "[[ ## score ## ]]\n", "logprob": 0.0}, {"token": "2", "logprob": -0.1, "top_logprobs": []}]

    assert expect_level(FIVE, tokens, "score") == 2.0


def test_where_no_level_has_mass_nothing_is_expected():
    assert expect(FIVE, *MARKER, ("seven", {"seven": 0.9, "eight": 0.1}), "\n") is None


def test_where_the_field_was_not_written_nothing_is_expected():
    assert expect(FIVE, "[[ ## other ## ]]\n", ("2", {"2": 1.0})) is None
    assert expect(FIVE, ("2", {"2": 1.0})) is None
    assert expect(FIVE, *MARKER) is None
    assert expect_level(FIVE, [], "score") is None


def test_another_fields_score_is_not_taken():
    mean = expect(FIVE, "[[ ## high_score ## ]]\n", ("5", {"5": 1.0}), "\n", *MARKER, ("2", {"2": 1.0}), "\n")

    assert mean == 2.0


@given(
    st.dictionaries(st.sampled_from("123456789x "), st.floats(0.001, 1.0), min_size=1),
    st.lists(st.sampled_from(["It is", " 3", "\n", "\u00e9", "\U0001f600", '"']), max_size=6),
    st.booleans(),
)
def test_single_digits_are_weighed_by_their_shares(shares: dict[str, float], before: list[str], is_json: bool):
    drawn = max(shares, key=lambda each: (each != " ", shares[each]))
    total = sum(share for digit, share in shares.items() if digit in FIVE)
    head, tail = (['{"score": '], "}") if is_json else (["[[ ## score ## ]]\n"], "\n")

    mean = expect(FIVE, *before, *head, (drawn, shares), tail)

    blank = shares.get(" ", 0.0) if drawn != " " else 0.0  # may still become any level
    if drawn in FIVE:
        known = sum(FIVE[digit] * share for digit, share in shares.items() if digit in FIVE) + 3 * blank
        assert mean == pytest.approx(known / (total + blank))
    elif mean is not None:
        assert 1 <= mean <= 5


@given(
    st.lists(
        st.tuples(
            st.text(alphabet='0123456789 vgpory"}\n', max_size=4),
            st.dictionaries(st.text(alphabet='0123456789 vgpory"}\n', max_size=4), st.floats(0.001, 1.0), max_size=4),
        ),
        max_size=6,
    ),
    st.sampled_from([FIVE, TEN, WORDS]),
)
def test_whatever_the_tokens_are_the_mean_lies_within_the_levels(
    drawn: list[tuple[str, dict[str, float]]], levels: dict[str, float]
):
    mean = expect(levels, *MARKER, *((word, {word: 0.5} | shares) for word, shares in drawn))

    assert mean is None or min(levels.values()) - 1e-9 <= mean <= max(levels.values()) + 1e-9


class Graded(dspy.Signature):
    """Grade."""

    answer: str = dspy.InputField()
    number: Literal[1, 2, 5] = dspy.OutputField()
    word: Literal["bad", "so so", "good"] = dspy.OutputField()
    bounded: int = dspy.OutputField(ge=0, le=4)
    odd: Literal["yes", 3] = dspy.OutputField()
    free: int = dspy.OutputField()
    half: int = dspy.OutputField(ge=1)
    wide: int = dspy.OutputField(ge=1, le=MOST_LEVELS + 1)
    widest: int = dspy.OutputField(ge=1, le=MOST_LEVELS)
    share: float = dspy.OutputField(ge=0, le=1)
    said: str = dspy.OutputField()
    only: Literal["one"] = dspy.OutputField()


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("number", {"1": 1.0, "2": 2.0, "5": 5.0}),
        ("word", {"bad": 1.0, "so so": 2.0, "good": 3.0}),
        ("bounded", {"0": 0.0, "1": 1.0, "2": 2.0, "3": 3.0, "4": 4.0}),
        ("odd", {"yes": 1.0, "3": 2.0}),
        ("widest", {str(level): float(level) for level in range(1, MOST_LEVELS + 1)}),
    ],
)
def test_levels_are_numbers_or_places_in_the_order_of_the_words(name: str, levels: dict[str, float]):
    assert read_levels(Graded, name) == levels


@pytest.mark.parametrize("name", ["free", "half", "wide", "share", "said", "only"])
def test_a_field_without_levels_is_said_to_have_none(name: str):
    with pytest.raises(ValueError, match=f"the field '{name}' has no levels; a Literal or a bounded int has"):
        read_levels(Graded, name)


def test_a_field_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="no output field 'answer'; there are number, word, "):
        read_levels(Graded, "answer")
