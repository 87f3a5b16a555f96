import pytest

from matrix_dspy.config import CurationConfig
from matrix_dspy.curation.base import Candidate, Drop, Filter, apply_filters
from matrix_dspy.curation.duplicates import ExactFilter, NearDuplicateFilter
from matrix_dspy.curation.filters import (
    LeakFilter,
    LengthFilter,
    RefusalFilter,
    SelfContainedFilter,
    build_instruction_filters,
    find_refusal,
    read_refusal_version,
)
from matrix_dspy.curation.language import LanguageFilter
from matrix_dspy.types import Profile

PROFILE = Profile(
    profile_id="profile-1",
    name="Marguerite Quillfeather",
    description=(
        "Every spring I carry forty old hives up the hill behind the mill and sell what they give at the Saturday "
        "market; write to marge@hives.example or call 0207 946 0018."
    ),
    history=("Found my licence 48151623 under the stove, and my page https://hives.example/marge.",),
    handles=("@honey_marge", "marge"),
    origin="a file",
    licence="CC0",
)
RUN = ["forty", "old", "hives", "up", "the", "hill", "behind", "the", "mill", "and", "sell", "what", "they", "give"]
REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I am sorry, but I cannot assist with this request.",
    "I’m sorry, but I can’t help with that.",
    "Sorry, I can't do that.",
    "Sorry, but I cannot help you with this.",
    "Unfortunately, I cannot provide that information.",
    "Unfortunately I am unable to help with this.",
    "I cannot fulfil this request.",
    "I can't fulfill that request as it involves private data.",
    "I cannot provide instructions for making a weapon.",
    "I can't provide medical diagnoses.",
    "I won't help with that.",
    "I will not write this text.",
    "I must decline to answer.",
    "I have to refuse this request.",
    "I need to decline this one, since it could hurt somebody.",
    "As an AI, I cannot give legal advice on your case.",
    "As an AI language model, I'm not able to browse the internet.",
    "As a language model, I can't form opinions.",
    "I'm unable to help with this request.",
    "I am not able to comply with that.",
    "That is something I can't help with.",
    "This is not something I can help with.",
    "I'd rather not help with that.",
    "I would rather not answer this.",
    "This request goes against my guidelines, so I will stop here.",
    "That violates my policies.",
    "I'm not comfortable helping with that.",
    "I am not willing to assist in this.",
    "I'm not going to help you forge a signature.",
    "I apologize, but I cannot help you with that.",
    "My apologies, but I'm not able to do that.",
    "I regret that I am unable to assist you.",
    "I'm afraid I can't do that.",
    "Thank you for asking, but I can't help with this.",
    "As an AI language model, I don't have a body, but I can imagine a ride for you. Please note that it is made up.",
    "I'm sorry, but I don't have real-time access to timetables; ask the railway.",
    "Unfortunately, as an AI assistant, I do not have access to your files.",
    "I am a language model. I am not capable of forming opinions or expressing views.",
]
NO_REFUSALS = [
    "I'm sorry to hear that. Here is what you can do: call the landlord today and ask for a date.",
    "I am so sorry for your loss. Take the time you need, and write to the bank within a month.",
    "I can't believe how fast the term went by! Here is a plan for your last week.",
    "I can't wait to see it. Start with the roof, then the walls.",
    "I can't help my father move on Saturday, what should I do?",
    "I cannot attend the meeting on Tuesday; write a short note to my boss.",
    "I'm unable to sleep before exams. What helps?",
    "I can't get my sourdough to rise. What am I doing wrong?",
    "My landlord says he can't help with the heating. What are my rights?",
    "Dear Mr Brown, thank you for your kind invitation. Unfortunately, I cannot attend the dinner on Friday.",
    "Dear Jo, I'm sorry, but I can't come to the wedding, since my shift cannot be moved.",
    "Dear team, I must decline the offer to lead the project this year.",
    "Here is a polite note: \"I'm sorry, but I can't make it on Friday.\"",
    "You could say: 'I have to decline, but thank you for thinking of me.'",
    "Unfortunately, the train does not run on Sundays. Take the bus at nine.",
    "Unfortunately, you cannot return the goods after 30 days, but you can ask for a repair.",
    "You can't deduct both costs in one year; spread them over two.",
    "A landlord cannot refuse to give the deposit back without a reason.",
    "This can't be undone, so make a copy first.",
    "The nurse said she can't help with this form. Who can?",
    "I have to refuse a friend's request for a loan. How do I say it kindly?",
    "I need to decline an invitation from my boss; help me word it.",
    "I must decline a job offer. Write an email of five lines.",
    "I would rather not answer questions about my age in an interview. What may I say?",
    "I won't be able to pay the rent on time. How do I tell my landlord?",
    "Sorry, I can't find the right form on the town's website. Where do I look?",
    "Sorry, I can't figure out why my loop never ends. Here is the code: while True: pass",
    "I'm afraid I can't afford both repairs. Which one comes first?",
    "I'm sorry I can't be more exact: the bill was about 80 euros. What is 19 % of it?",
    "Explain why a language model cannot know what happened yesterday.",
    "What does it mean that an AI can't be an author under copyright law?",
    "As an AI teacher at a school, I need a lesson plan on why machines can't feel.",
    "It is against my principles to eat meat; plan a week of dinners.",
    "My neighbour asked me to lie for him and I'm not comfortable with it. What do I do?",
    "I'm not comfortable with heights. How do I clean my gutters?",
    "I'm not going to the gym this month. Suggest three exercises at home.",
    "I cannot write a good cover letter. Here is mine, improve it.",
    "I can't share my screen in the meeting. What should I check?",
    "I'm not able to continue my studies for lack of money. Which grants are there?",
    "I am unable to provide a reference for a former worker. Draft a polite reply.",
    "I can't answer my daughter's question why the sky is blue. Explain it to a six-year-old.",
    "Refusing is allowed: a patient may say no to any treatment.",
    "Sure, here is the letter you asked for.",
    "No, you can't mix bleach and vinegar: the gas is poisonous. Use them on different days.",
    "I can't recommend the first option; the second costs less and lasts longer.",
    "I cannot stress enough how important it is to back up your files.",
    "I can't say which is better without the price, but the first uses less power.",
    "I'm sorry, I know it is late, but can you check this sum: 12 + 30 = 42?",
    "As an AI language model, I don't have a word of my own for it. However, I can explain how the town calls it.",
    "I'm sorry, but you didn't send the sentence. Which one shall I mend?",
    "Sorry, I don't have access to a car. How do I get to the airport by six?",
    "Unfortunately, I don't have the time to cook. What can I eat cold?",
    "I am not able to give my opinion at work without blushing. What helps?",
]
POINTING = [
    "What should the manager in the scenario do next about the late delivery?",
    "Based on the summary, which of the two shops should order more flour?",
    "Rewrite the text above in a friendlier tone for parents.",
    "As mentioned above, we have four days left; make a plan for them.",
    "Use the above information to write a letter to the council.",
    "Please proofread the attached document and list all errors.",
    "Translate the enclosed letter into plain English for me.",
    "In this scenario, who is responsible for the broken fence?",
    "From the passage, name the three main reasons for the delay.",
    "In the excerpt, what does the author mean by a quiet harvest?",
    "As discussed earlier, draft the note to my landlord now.",
    "Which of the options listed above costs least over a year?",
    "Given the persona, how would this person answer a complaint?",
    "Fulfil the requirement and write a poem about bees.",
    "See above for the figures and work out the average per month.",
    "Look at the table above and tell me which month was best.",
    "In the conversation, what did the neighbour promise to do?",
    "Summarise the attached report in five bullet points.",
    "Using the above-mentioned budget, plan a party for twelve people.",
    "Tell me what happens next in the following scenario from the passage.",
    "From the given text, pick out every verb in the past tense.",
    "We meet on Monday, so which of the points listed above comes first?",
    "I have the summary ready for you; what does the summary say about the roof?",
    "Check the attached spreadsheet for wrong totals.",
]
SELF_CONTAINED = [
    "What is a likely scenario for bread prices if wheat gets a tenth dearer?",
    "Give me a scenario for a role play between a tenant and a landlord.",
    "Write a summary of 50 words of this text: Bees sleep at night. They wake at dawn.",
    "How do I keep the shelf above my desk from bending?",
    "Our flat is above a bakery and smells of yeast. What helps?",
    "Is a temperature above 38 degrees a fever in a child of two?",
    "How do I attach a file to an email on my phone?",
    "What does the word persona mean in marketing?",
    "Which requirements must a rented room meet in winter?",
    "Write an enclosed-garden design for a plot of six by eight metres.",
    "How do I start a conversation with a shy colleague?",
    "Explain the summary of benefits that my insurer sends every year.",
    "What does the requirement that I give notice in writing mean for a tenant?",
    "Improve this sentence: The hives was checked by me on Monday.",
    "My sister and I share a flat; how do we divide the rent fairly?",
    "Above all I want to sleep better. What are the first three steps?",
    "Draft a passage for a wedding speech about patience, four sentences.",
    "How do I discuss pay with my boss without sounding greedy?",
    "I finished the scenario of my board game; suggest three titles with bees in them.",
    "Name three documents I should bring to the bank to open an account.",
    "Plan my morning: wake at six, bus at seven, and half an hour of yoga.",
    "The summary of my thesis is 400 words; how do I cut it to 200?",
    "Write a short summary of how bees sleep. The summary must have three sentences.",
    "Summarize this in one line: Bees sleep at night. Make sure the summary has no commas.",
    "Describe a scenario in which two neighbours quarrel, then say how the scenario ends.",
    'How do I learn to knit? End with "Follow the steps listed above and you cannot fail."',
    "A sign in our stairwell says that bicycles may not be left there overnight since they block the way of the nurse "
    "who comes to the third floor at dawn. Is there a mistake in the above sentence?",
]


def judge(each: Filter, text: str, row_id: str = "row-1", others: tuple[str, ...] = ()) -> Drop | None:
    return each.judge(Candidate(row_id, text, others))


# ---- leaks


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("Ask Marguerite Quillfeather about it.", "name of a person"),
        ("ask marguerite   quillfeather about it", "name of a person"),
        ("Was it honey_marge who wrote?", "name of a person"),
        ("Was it @Honey_Marge, who wrote?", "name of a person"),
        ("Was it Marge?", "name of a person"),
        ("Write to MARGE@hives.example.", "name of a person"),
        ("Call 0207 946 0018, she said.", "contact detail"),
        ("It says 48151623 on it.", "contact detail"),
        ("Look at https://hives.example/marge, please.", "name of a person"),
    ],
)
def test_names_and_contact_details_of_raw_profiles_are_leaks(text: str, detail: str):
    drop = judge(LeakFilter([PROFILE], 12), text)

    assert drop is not None
    assert drop.reason == "leak"
    assert detail in drop.detail


def test_a_link_or_address_is_found_whatever_punctuation_follows_it():
    profile = PROFILE.model_copy(
        update={"handles": (), "history": ("See https://hives.example/page, or ask info@hives.example.",)}
    )
    each = LeakFilter([profile], 12)

    assert judge(each, "Open https://hives.example/page now") is not None
    assert judge(each, "Mail info@hives.example now") is not None


def test_a_run_of_twelve_words_of_a_raw_profile_is_a_leak_and_eleven_are_none():
    each = LeakFilter([PROFILE], 12)

    assert judge(each, f"I saw {' '.join(RUN[:12])}.") == Drop("leak", "it shares a run of 12 words with a raw profile")
    assert judge(each, f"I saw {' '.join(RUN[:11])}.") is None


def test_case_and_punctuation_do_not_hide_a_run():
    run = ", ".join(RUN[:12]).upper()

    assert judge(LeakFilter([PROFILE], 12), run) is not None


def test_a_run_that_stands_in_the_anonymised_profile_too_is_no_leak():
    each = LeakFilter([PROFILE], 12, public=[f"They carry {' '.join(RUN)} there."])

    assert judge(each, " ".join(RUN[:12])) is None


def test_a_first_name_alone_is_no_leak():
    profile = PROFILE.model_copy(update={"name": "May Young", "handles": ()})
    each = LeakFilter([profile], 12)

    assert judge(each, "It may rain on young plants.") is None
    assert judge(each, "Ask May Young.") is not None


def test_a_leak_is_described_without_repeating_it():
    drop = judge(LeakFilter([PROFILE], 12), "Ask Marguerite Quillfeather.")

    assert drop is not None
    assert "Marguerite" not in drop.detail


# ---- refusals


@pytest.mark.parametrize("text", REFUSALS)
def test_a_refusal_is_dropped_with_the_words_it_declines_in(text: str):
    drop = judge(RefusalFilter(), text)

    assert drop is not None
    assert drop.reason == "refusal"
    assert find_refusal(text) in text.replace("’", "'")  # pyright: ignore[reportOperatorIssue]


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_what_is_no_refusal_is_kept(text: str):
    assert judge(RefusalFilter(), text) is None


def test_a_refusal_far_down_in_an_answer_does_not_count():
    answer = "Here is what a bot would say. " * 10 + "I'm sorry, but I can't help with that."

    assert judge(RefusalFilter(), answer) is None


def test_a_typographic_apostrophe_counts_as_a_plain_one():
    assert find_refusal("I’m sorry, but I can’t help with that.") == find_refusal(
        "I'm sorry, but I can't help with that."
    )


def test_the_list_of_refusals_has_a_version():
    assert read_refusal_version() >= 3


# ---- length


@pytest.mark.parametrize(("n_words", "is_kept"), [(4, False), (5, True), (400, True), (401, False)])
def test_lengths_at_the_bounds(n_words: int, is_kept: bool):
    drop = judge(LengthFilter(5, 400), "word " * n_words)

    assert drop == (None if is_kept else Drop("length", f"it has {n_words} words; 5 to 400 are kept"))


# ---- understandable by itself


@pytest.mark.parametrize("text", POINTING)
def test_what_points_to_something_unseen_is_dropped(text: str):
    drop = judge(SelfContainedFilter(), text)

    assert drop is not None
    assert drop.reason == "not self-contained"
    assert drop.detail.startswith("it points to ")


@pytest.mark.parametrize("text", SELF_CONTAINED)
def test_what_can_be_understood_by_itself_is_kept(text: str):
    assert judge(SelfContainedFilter(), text) is None


def test_another_person_of_the_scenario_must_not_be_named():
    others = ("Ilka Ravn", "Otis Novak")

    assert judge(SelfContainedFilter(), "How do I repay Otis Novak?", others=others) == Drop(
        "not self-contained", "it names 'Otis Novak' without saying who that is"
    )
    assert judge(SelfContainedFilter(), "How do I repay Ilka?", others=others) is not None
    assert judge(SelfContainedFilter(), "How do I repay my neighbour?", others=others) is None


def test_a_word_that_only_begins_like_a_name_is_no_name():
    assert judge(SelfContainedFilter(), "How do I polish Annabelle apples?", others=("Anna Reyes",)) is None


# ---- all together


def test_filters_stand_in_the_order_of_the_method():
    order = [type(each) for each in build_instruction_filters(CurationConfig(), [PROFILE], 0)]

    words = [LeakFilter, RefusalFilter, LengthFilter, LanguageFilter, SelfContainedFilter]
    assert order == [*words, ExactFilter, NearDuplicateFilter]


def test_the_first_filter_that_drops_gives_the_reason():
    filters = build_instruction_filters(CurationConfig(), [PROFILE], 0)
    text = "How do I bake rye bread in a clay pot?"
    apply_filters(filters, Candidate("row-1", text))

    reasons = [
        drop.reason
        for text in (
            "I'm sorry, but I can't help with that, Marguerite Quillfeather, the scenario.",
            "I can't help with that scenario.",
            "The scenario says?",
            "In the scenario, how do I bake rye bread?",
            text,
            f"{text} Thanks!",
        )
        if (drop := apply_filters(filters, Candidate("row-2", text)))
    ]
    assert reasons == ["leak", "refusal", "length", "not self-contained", "exact duplicate", "near duplicate"]


def test_a_text_dropped_earlier_is_no_twin_for_later_ones():
    filters = build_instruction_filters(CurationConfig(), [PROFILE], 0)
    text = "How do I repay Otis Novak for the roof before the winter?"

    assert apply_filters(filters, Candidate("row-1", text, ("Otis Novak",))) is not None
    assert apply_filters(filters, Candidate("row-2", text)) is None
