"""Thinking told apart from its answer, and put before it again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.synthesis.thinking import Thought, find_fault, join_thinking, split_thinking

UNMARKED = st.text(max_size=300).filter(lambda text: "think>" not in text)


@given(UNMARKED, UNMARKED)
def test_what_was_joined_is_split_into_the_same_two_texts(thinking: str, answer: str):
    thought = split_thinking(join_thinking(thinking, answer))

    assert thought == Thought(thinking.strip(), answer.strip())


@given(UNMARKED)
def test_a_text_without_marks_is_all_answer(text: str):
    assert split_thinking(text) == Thought("", text.strip())


@given(UNMARKED.filter(str.strip), UNMARKED)
def test_the_servers_own_field_is_the_thinking_and_the_text_the_answer(thinking: str, answer: str):
    assert split_thinking(answer, thinking) == Thought(thinking.strip(), answer.strip())


@given(UNMARKED)
def test_blank_words_of_a_field_are_no_thinking(text: str):
    assert split_thinking(text, " \n") == split_thinking(text)


@given(UNMARKED, UNMARKED)
def test_thinking_opened_in_the_prompt_ends_at_its_mark(thinking: str, answer: str):
    assert split_thinking(f"{thinking}</think>{answer}") == Thought(thinking.strip(), answer.strip())


@given(UNMARKED)
def test_thinking_that_never_ends_leaves_no_answer(thinking: str):
    thought = split_thinking(f" <think>{thinking}")

    assert (thought.is_closed, thought.answer) == (False, "")


@given(st.text(max_size=300), st.text(max_size=100))
def test_any_text_is_split_without_inventing_a_character(text: str, apart: str):
    thought = split_thinking(text, apart)

    assert thought.answer in text
    assert thought.thinking in (apart if apart.strip() else text)


@given(st.integers(1, 40), st.integers(0, 60), st.integers(0, 80))
def test_bounds_are_kept_on_both_ends(n_tokens: int, least: int, room: int):
    fault = find_fault(Thought("four" * n_tokens, "Take it."), least, least + room)

    assert (fault is None) == (least <= n_tokens <= least + room)
    assert fault is None or (fault[0] == "thinking length" and f"about {n_tokens} tokens" in fault[1])


@pytest.mark.parametrize(
    ("thought", "reason"),
    [
        (Thought("on and on", "", is_closed=False), "thinking not closed"),
        (Thought("", "Take it."), "no thinking"),
        (Thought("on and on", ""), "no answer"),
        (Thought("on and on", "Take it."), None),
    ],
)
def test_each_fault_has_its_reason(thought: Thought, reason: str | None):
    fault = find_fault(thought, 1, 100)

    assert (fault and fault[0]) == reason
