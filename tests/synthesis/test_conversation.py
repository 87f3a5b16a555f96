"""What a follow-up must be like, by cases as people and models write them."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.synthesis.conversation import MOST_WORDS, find_follow_up_fault

ASKED = "How do I keep the slugs off my lettuce without poison?"
ANSWER = (
    "Three things work well together. First, water in the morning so the soil is dry by night. Second, lay copper tape "
    "around each bed; slugs will not cross it. Third, set a shallow dish of beer level with the ground and empty it "
    "daily. If none of that is enough, buy nematodes in May, which cost about 12 pounds for 40 square metres."
)
DIALOGUE = [ASKED, ANSWER]
LONGER = [
    *DIALOGUE,
    "What does step 2 cost for a bed of 4 metres?",
    "About 9 pounds: copper tape is sold in rolls of 4 metres.",
]

GOOD = [
    "Why?",
    "Why is that?",
    "How much of it?",
    "And if it rains?  Does that still work?",
    "Can you make that shorter?",
    "The second one sounds good, but my beds are raised and made of old sleepers.",
    "What do I do about the beer when hedgehogs come by at night?",
    "Where can I buy nematodes?",
    "I can only water in the evening because of my shift. What then?",
    "Great, now turn that into a checklist I can pin to the shed.",
    "Okay, but I only have 5 pounds left this month, so leave out whatever costs money.",
    "Perfect, then write it as a notice for the other allotment holders.",
    "Thanks, but copper tape did nothing for me last year.",
    "Sure, but who empties the dish while I am away for two weeks?",
    "Of course the soil is never dry here, we are below the river. Does it help all the same?",
    "Absolutely nothing grows under the tape now, is copper bad for lettuce?",
    "Got it. And how deep do I set the dish?",
    "Put your three points into a table with a column for the price.",
    "You said they will not cross copper. Even when it is wet?",
    "Explain the nematodes to my son, he is eight.",
    "Is 12 pounds per season or for good?",
    "My neighbour swears by coffee grounds instead of beer, is there anything to that?",
    "Here is what I have: 6 raised beds, each 1 by 2 metres. Work out how much tape I need.",
    "Let me know if you see a way without the daily emptying.",
    "Me and my wife are away in May, so can nematodes go on earlier?",
    "That's perfect for the front beds. What about the pots on the balcony?",
    "Thank you. Which of these would you start with in a wet spring?",
    "OK. Rewrite point three without alcohol please.",
    "I tried. Tape came off.",
]
BAD = [
    ("", "empty"),
    ("  \n", "empty"),
    ("Thanks!", "only thanks"),
    ("Thank you so much, this is exactly what I needed.", "only thanks"),
    ("Great, that helps a lot!", "only thanks"),
    ("Perfect, I will try it tomorrow.", "only thanks"),
    ("Okay, I'll do that.", "only thanks"),
    ("Got it, thanks again.", "only thanks"),
    ("Awesome, have a nice day!", "only thanks"),
    ("That's very helpful.", "only thanks"),
    ("Goodbye and thank you for your help with the slugs.", "only thanks"),
    ("Much appreciated, I'll let you know how the copper tape works out.", "only thanks"),
    ("Certainly! Here is a plan for your beds: water in the morning.", "as the assistant"),
    ("Sure! Lay the tape with an overlap of two centimetres.", "as the assistant"),
    ("Of course! I can explain how nematodes work.", "as the assistant"),
    ("Here are some more ways to keep slugs away: coffee grounds, wool, sand.", "as the assistant"),
    ("I'd be happy to help with your copper tape.", "as the assistant"),
    ("Assistant: Copper gives them a small shock.", "as the assistant"),
    ("User: How deep do I set the dish?", "as the assistant"),
    ("As an AI, I cannot see your beds.", "as the assistant"),
    ("Lay the copper tape flat. Is there anything else I can help you with?", "as the assistant"),
    ("I hope this helps with the slugs!", "as the assistant"),
    ("How do I keep slugs off lettuce without poison?", "repeats"),
    ("How do I keep the slugs off my lettuce, without any poison??", "repeats"),
    ("Who won the cup final in Lisbon?", "takes up nothing"),
    ("Recommend some novels set in Norway.", "takes up nothing"),
    ("copper tape " * 90, "180 words"),
]  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_what_a_person_asks_next_passes(text: str):
    assert find_follow_up_fault(text, DIALOGUE) is None


@pytest.mark.parametrize(("text", "fault"), BAD)
def test_what_is_no_next_question_is_refused_with_its_reason(text: str, fault: str):
    found = find_follow_up_fault(text, DIALOGUE)

    assert found is not None and fault in found


def test_the_same_question_about_another_step_is_no_repetition():
    assert find_follow_up_fault("What does step 3 cost for a bed of 4 metres?", LONGER) is None
    assert "repeats" in (find_follow_up_fault("What does step 2 cost for a bed of 4 metres?", LONGER) or "")


def test_only_the_last_answer_counts_as_taken_up():
    later = [*DIALOGUE, "Why copper?", "It gives a tiny shock when touched."]

    assert find_follow_up_fault("Do nematodes survive winters?", DIALOGUE) is None
    assert find_follow_up_fault("Do nematodes survive winters?", later) is not None


WORD = st.text(string.ascii_lowercase, min_size=4, max_size=9)


@given(st.lists(WORD, min_size=3, max_size=30), st.data())
def test_a_question_about_a_telling_word_of_the_answer_passes(found: list[str], data: st.DataObject):
    word = data.draw(st.sampled_from(found))

    assert find_follow_up_fault(f"Zzyzx {word} qwrtp?", [ASKED, " ".join(found)]) is None


@given(st.lists(WORD, min_size=1, max_size=30))
def test_no_earlier_question_passes_whatever_its_case_and_marks(found: list[str]):
    earlier = f"zzyzx {' '.join(found)}?"

    for again in (earlier, earlier.upper(), f"  {earlier.replace(' ', ', ')}!"):
        assert find_follow_up_fault(again, [earlier, ANSWER, "Why?", " ".join(found)]) is not None


@given(st.integers(MOST_WORDS + 1, MOST_WORDS * 3))
def test_what_is_too_long_never_passes(n_words: int):
    assert find_follow_up_fault(" ".join(["copper"] * n_words), DIALOGUE) is not None


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_is_answered_with_nothing_or_one_sentence(text: str, answer: str):
    found = find_follow_up_fault(text, [ASKED, answer])

    assert found is None or (found.startswith("the message ") and "\n" not in found)


@given(st.sampled_from([text for text, _ in BAD[2:]]), st.sampled_from(["", " ", "\n", "  \n"]))
def test_blanks_around_a_message_change_nothing(text: str, blanks: str):
    assert find_follow_up_fault(text, DIALOGUE) == find_follow_up_fault(blanks + text + blanks, DIALOGUE)
