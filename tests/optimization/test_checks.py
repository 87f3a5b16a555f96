from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matrix_dspy.loading import PROGRAMS
from matrix_dspy.optimization.checks import Fault, find_faults
from matrix_dspy.optimization.judged import JUDGES, list_judged, load_judged, read_output
from matrix_dspy.programs.modulator import Delivery

SETS = [name for name in list_judged() if name != "output_judge"]


def say(program: str, inputs: dict[str, Any], output: dict[str, Any]) -> list[str]:
    return [fault.words for fault in find_faults(program, inputs, output)]


def words(n: int, word: str = "word") -> str:
    return " ".join([word] * n)


# ---- what holds for every program


@pytest.mark.parametrize("mark", ["[[ ## action ## ]]", "[[## action", "<|im_end|>", "<|endoftext"])
def test_the_marks_of_a_prompt_are_fatal(mark: str):
    for program in PROGRAMS:
        faults = find_faults(program, {}, {"text": f"Fine so far. {mark}"})
        assert faults == [Fault("text holds the marks of a prompt", is_fatal=True)]


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
def test_an_empty_text_is_fatal(blank: str):
    for program in PROGRAMS:
        assert find_faults(program, {}, {"text": blank}) == [Fault("text is empty", is_fatal=True)]


@pytest.mark.parametrize(
    "text", ["if a < b | c", "f <| g x", "[[1, 2], [3]]", "## Heading", "m[[2]]", "a <- b | c", "| a | b |"]
)
def test_code_and_markdown_are_no_marks_of_a_prompt(text: str):
    assert say("responder", {"instruction": "x"}, {"response": text}) == []


def test_a_fatal_fault_spares_the_other_checks():
    assert say("actor", {}, {"action": "", "step_done": True}) == ["action is empty"]


@pytest.mark.parametrize("program", ["responder", "planner", *JUDGES])
def test_a_program_without_rules_has_no_faults(program: str):
    assert say(program, {"instruction": "x"}, {"response": "Fine.", "score": 3}) == []


# ---- actor

PERSONA = "Name: Ana Brito\nDescription: Ana bakes.\nPersonality: Calm.\nLife goal: A shop."
MEMORY = ["Before: I bought an oven.", "Round 1: Ana Brito sold forty rolls at the station before the first train."]
ACT = {"persona": PERSONA, "memory": MEMORY}


def check_action(action: str, **changes: Any) -> list[str]:
    return say("actor", ACT | changes, {"action": action, "step_done": True})


def test_an_act_told_as_asked_passes():
    assert check_action("Ana Brito rented the stall by the school for six months at 80 a month.") == []
    assert check_action("Ana rented the stall.") == []
    assert check_action(f"Ana {words(79, 'baked')}") == []


@pytest.mark.parametrize(("n", "is_fatal"), [(81, False), (160, False), (161, True)])
def test_a_long_act_is_a_fault_and_one_of_twice_the_length_is_of_no_use(n: int, is_fatal: bool):
    faults = find_faults("actor", ACT, {"action": f"Ana {words(n - 1, 'baked')}", "step_done": True})

    assert faults == [Fault(f"the action has {n} words, at most 80 are wanted", is_fatal)]


def test_an_act_begins_with_the_persons_name():
    fault = "the action does not begin with the person's name, Ana Brito"

    assert check_action("In the morning Ana Brito baked.") == [fault]
    assert check_action("She baked.") == [fault]
    assert check_action("She baked.", persona="Description: nameless") == []


def test_a_persona_with_a_blank_name_is_no_error():
    assert check_action("Ana baked.", persona="Name:  \nDescription: x") == []


@pytest.mark.parametrize("action", ["Ana said that I baked.", "Ana went to my shop.", "Ana knew I've won."])
def test_an_act_in_the_first_person_is_a_fault(action: str):
    assert check_action(action) == ["the action is told in the first person"]


@pytest.mark.parametrize(
    "action",
    [
        'Ana wrote "I want my money" on the door.',
        "Ana wrote 'I want my money' on the door.",
        "Ana wrote \u201cI want my money\u201d on the door.",
        "Ana wrote \u2018I can't pay\u2019 on the door.",
        "Ana dug the mine and met Imre.",
    ],
)
def test_what_stands_in_quotation_marks_is_not_told_in_the_first_person(action: str):
    assert check_action(action) == []


def test_apostrophes_do_not_hide_the_first_person():
    assert check_action("Ana took the bakers' flour while I held the neighbours' door.") == [
        "the action is told in the first person"
    ]


def test_an_act_that_is_remembered_is_a_repetition():
    (fault,) = check_action("Ana Brito sold forty rolls at the station before the second train.")

    assert fault.startswith("the action repeats what is remembered: 'Ana Brito sold forty rolls")
    assert check_action("Ana Brito sold forty loaves to the school and was paid at once.") == []


# ---- routers

MEMBERS = {"members": ["0: Ana", "1: Bo", "2: Cy", "3: Di", "4: Ed"], "action": "Ana told Bo."}
GROUPS = {"groups": ["0: a", "1: b", "2: c", "3: d", "4: e"], "action": "Ana told Bo."}


def route(program: str, inputs: dict[str, Any], receivers: list[int]) -> list[Fault]:
    return find_faults(program, inputs, {"reason": "She said so.", "receivers": receivers})


@pytest.mark.parametrize("receivers", [[], [0], [4, 0], [0, 1, 2, 3, 4]])
def test_members_that_are_there_may_be_chosen(receivers: list[int]):
    assert route("intra_router", MEMBERS, receivers) == []


@pytest.mark.parametrize("number", [-1, 5, 99])
def test_a_member_that_is_not_there_is_fatal(number: int):
    fault = Fault(f"there is no number {number} in members, which run from 0 to 4", is_fatal=True)

    assert route("intra_router", MEMBERS, [0, number]) == [fault]


def test_a_number_given_twice_is_a_fault():
    assert route("intra_router", MEMBERS, [1, 1]) == [Fault("a number stands there twice")]


@pytest.mark.parametrize("receivers", [[], [4], [0, 1, 2]])
def test_up_to_three_groups_may_be_chosen(receivers: list[int]):
    assert route("inter_router", GROUPS, receivers) == []


def test_a_fourth_group_is_a_fault_and_one_that_is_not_there_is_fatal():
    assert route("inter_router", GROUPS, [0, 1, 2, 3]) == [Fault("4 groups are chosen, at most 3 are allowed")]
    assert route("inter_router", GROUPS, [5])[0].is_fatal
    assert route("inter_router", GROUPS, [2, 2]) == [Fault("a number stands there twice")]


@given(st.lists(st.integers(-3, 8), max_size=8))
def test_receivers_are_fatal_exactly_where_a_number_is_unknown(receivers: list[int]):
    is_fatal = any(fault.is_fatal for fault in route("intra_router", MEMBERS, receivers))

    assert is_fatal == (not set(receivers) <= set(range(5)))


EVENTS = {"members": ["0: Ana", "1: Bo"], "events": ["0: fire", "1: flood"]}


def deliver(*entries: tuple[int, list[int]]) -> list[str]:
    return say("reception_router", EVENTS, {"deliveries": [{"event": e, "members": m} for e, m in entries]})


def test_one_entry_for_each_event_in_order_passes():
    assert deliver((0, []), (1, [0, 1])) == []


@pytest.mark.parametrize(
    "entries", [[], [(0, [])], [(1, []), (0, [])], [(0, []), (0, []), (1, [])], [(0, []), (1, []), (2, [])]]
)
def test_entries_left_out_doubled_or_out_of_order_are_a_fault(entries: list[tuple[int, list[int]]]):
    assert deliver(*entries) == ["there must be one entry for each event from 0 to 1, in order"]


def test_a_delivery_to_nobody_that_is_there_is_fatal():
    deliveries = [Delivery(event=0, members=[2]), Delivery(event=1, members=[])]

    faults = find_faults("reception_router", EVENTS, {"deliveries": deliveries})

    assert faults == [Fault("there is no member 2; they run from 0 to 1", is_fatal=True)]


# ---- scenario_writer

SCENE = {
    "members": ["Ana Brito: Ana, 33, bakes.", "Al Cox: Al, 50, mills.", "Bo Dahl: Bo drives."],
    "description": "Three people of one village.",
    "previous_summary": "",
    "events": [
        "Round 1: Ana Brito sold 90 rolls at 3 crowns and also met half of her debt of 310,000 crowns.",
        "Round 1: Al Cox priced a wheel at 1.1 million crowns; 300,000 are there, twenty sacks are not.",
    ],
}
DESCRIPTION = "Bakers and millers."


def check_scenario(summary: str, description: str = DESCRIPTION, n_words: int = 100, **changes: Any) -> list[str]:
    padded = f"{summary} {words(n_words - len(summary.split()))}"
    return say("scenario_writer", SCENE | changes, {"summary": padded, "group_description": description})


def test_a_scenario_told_as_asked_passes():
    assert check_scenario("Ana sold her rolls, and Al priced a wheel.") == []


@pytest.mark.parametrize("n", [80, 200])
def test_a_summary_of_the_length_asked_for_passes(n: int):
    assert check_scenario("Ana and Al.", n_words=n) == []


@pytest.mark.parametrize("n", [79, 201])
def test_a_summary_too_short_or_too_long_is_a_fault(n: int):
    assert check_scenario("Ana and Al.", n_words=n) == [f"the summary has {n} words, 80 to 200 are wanted"]


def test_a_description_of_more_than_eighty_words_is_a_fault():
    assert check_scenario("Ana and Al.", words(80)) == []
    assert check_scenario("Ana and Al.", words(81)) == ["the group description has 81 words, at most 80 are wanted"]


@pytest.mark.parametrize(
    "number",
    ["90", "310,000", "155,000", "270", "800,000", "20", "87", "93", "30", "33", "50", "1.1"],
)
def test_numbers_of_the_events_and_what_one_sum_makes_of_them_are_no_inventions(number: str):
    # 155,000 is half of 310,000; 270 is 90 times 3; 800,000 is what 300,000 lack of 1.1 million; 20 stands in letters
    assert check_scenario(f"Ana and Al had {number} crowns.") == []


@pytest.mark.parametrize("number", ["68", "311,000", "1.2", "1784", "12.5.1"])
def test_a_number_out_of_nowhere_is_a_fault(number: str):
    assert check_scenario(f"Ana and Al had {number} crowns.") == [
        f"the summary has a number the events do not hold: {number}"
    ]


def test_somebody_who_acted_must_not_be_left_out():
    assert check_scenario("Ana sold rolls.") == ["the summary leaves out Al, who acted"]
    assert check_scenario("They sold rolls.") == [
        "the summary leaves out Ana, who acted",
        "the summary leaves out Al, who acted",
    ]


def test_a_name_inside_another_word_is_no_mention():
    assert check_scenario("Ana met Alma.") == ["the summary leaves out Al, who acted"]
    assert check_scenario("Ana met her.", events=["Round 1: Ana Brito met Alma in Bologna."]) == []
    assert check_scenario("Ana met Al's wife.") == []


@pytest.mark.parametrize("member", ["", ":", " : x", "Dr. Cox: mills", "Ana, 33: bakes"])
def test_members_of_any_form_are_no_error(member: str):
    assert all(words.startswith("the summary ") for words in check_scenario("Ana and Al.", members=[member]))


# ---- instruction_writer

PROFILE = "Name: Ana Brito\nDescription: Ana bakes."
SIMPLE = {"profile": PROFILE, "actions": [], "scenario": "x", "requirement": "Type: simple\nCategory: planning"}
SPECIALISED = SIMPLE | {"requirement": "Type: specialised\nCategory: planning"}
ASKED = "How many loaves do I bake for a market of two hundred people if half of them buy one each?"


def check_instruction(text: str, inputs: dict[str, Any] = SIMPLE) -> list[str]:
    return say("instruction_writer", inputs, {"instruction": text})


def test_an_instruction_written_as_asked_passes():
    assert check_instruction(ASKED) == []
    assert check_instruction(f"{ASKED} {words(30)}", SPECIALISED) == []


def test_a_simple_one_has_sixty_words_at_the_most():
    assert check_instruction(words(60)) == []
    assert check_instruction(words(61)) == ["it has 61 words, a simple one at most 60"]


@pytest.mark.parametrize(("n", "is_good"), [(39, False), (40, True), (250, True), (251, False)])
def test_a_specialised_one_has_forty_to_two_hundred_and_fifty(n: int, is_good: bool):
    expected = [] if is_good else [f"it has {n} words, a specialised one 40 to 250"]

    assert check_instruction(words(n), SPECIALISED) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Plan what the manager in the scenario does next.", "it is not self-contained: it points to 'the scenario'"),
        ("I am a baker with two ovens. Plan my week.", "it introduces the person instead of asking"),
        ("As a baker I need a plan for my week.", "it introduces the person instead of asking"),
        ("My name is hard to spell, so invent a shop sign.", "it introduces the person instead of asking"),
        ("Write a sign that says Ana Brito bakes here.", "it names the person who asks"),
        ("Write a sign with my number 0207 946 0018.", "it holds a contact detail or a long number: '0207 946 0018'"),
        (
            "Write a sign with ana@bread.example on it.",
            "it holds a contact detail or a long number: 'ana@bread.example'",
        ),
    ],
)
def test_an_instruction_that_breaks_one_rule(text: str, fault: str):
    assert check_instruction(text) == [fault]


def test_an_instruction_that_declines_is_of_no_use():
    faults = find_faults("instruction_writer", SIMPLE, {"instruction": "I'm sorry, but I can't help with that."})

    assert [(fault.words[:11], fault.is_fatal) for fault in faults] == [("it declines", True)]


def test_a_name_that_is_part_of_another_word_is_no_name():
    inputs = SIMPLE | {"profile": "Name: Ana\nDescription: x"}

    assert check_instruction("Plan a bed for bananas and anaemones.", inputs) == []


# ---- critic and reviser

ANSWER = {"instruction": "Name three bees.", "response": "The bumblebee is a bee. It can't sting at all."}


def check_critique(critique: str) -> list[str]:
    return say("critic", ANSWER, {"critique": critique})


@pytest.mark.parametrize(
    "critique",
    [
        "No faults found.",
        " No faults found. \n",
        'Two bees are missing after "The bumblebee is a bee".',
        "False: 'sting at all'. Say that queens can.",
        "False: \u201cIt can't sting at all\u201d.",
        "False: 'It can't sting at all.' Say that queens can.",
        '"nowhere" is wrong, and "a bee." is not enough.',
    ],
)
def test_a_critique_that_quotes_or_finds_nothing_passes(critique: str):
    assert check_critique(critique) == []


@pytest.mark.parametrize(
    "critique",
    [
        "Two bees are missing.",
        'It says "three wasps", which is wrong.',
        "The critic's view is that the bees' names aren't there.",
        '"" and " . " are no quotes.',
        "No faults found. Well done!",
    ],
)
def test_a_critique_that_quotes_no_words_of_the_response_is_a_fault(critique: str):
    assert check_critique(critique) == ["it quotes no words of the response"]


REVISED = ANSWER | {"critique": 'Two bees are missing after "a bee".'}


def check_revision(revision: str, **changes: Any) -> list[str]:
    return say("reviser", REVISED | changes, {"revision": revision})


def test_a_revision_that_mends_passes():
    assert check_revision("Bumblebee, honeybee and mason bee.") == []


@pytest.mark.parametrize(
    "mention",
    ["critique", "first answer", "previous answer", "earlier answer", "revised version", "As you pointed out"],
)
def test_a_revision_must_not_mention_what_the_reader_has_not_seen(mention: str):
    (fault,) = check_revision(f"{mention}: bumblebee, honeybee and mason bee.")

    assert fault == f"it mentions what the reader has not seen: {mention!r}"


def test_a_revision_that_changes_nothing_is_a_fault_unless_nothing_was_wrong():
    same = f" {ANSWER['response']}\n"

    assert check_revision(same) == ["it is the first answer unchanged"]
    assert check_revision(same, critique="No faults found.") == []


def test_a_revision_must_not_grow_beyond_twice_the_length_and_eighty_words():
    response = words(10, "bee")

    assert check_revision(words(100), response=response) == []
    assert check_revision(words(101), response=response) == ["it is more than twice as long as the first answer"]


# ---- any text at all

ANY = st.text(st.sampled_from("Ana 19.,:'\"\u201c\u2018<|[#\n\u0664") | st.characters(), max_size=80)


@given(ANY, ANY)
def test_no_text_given_or_written_is_an_error(given_text: str, text: str):
    several = [given_text, f"Round 1: {given_text}", "9" * 400]
    for program, inputs, output in (
        ("actor", {"persona": f"Name: {given_text}", "memory": several}, {"action": text}),
        (
            "scenario_writer",
            {"members": several, "description": given_text, "previous_summary": "", "events": several},
            {"summary": f"{text} {'8' * 400}", "group_description": text},
        ),
        ("instruction_writer", SIMPLE | {"profile": f"Name: {given_text}"}, {"instruction": text}),
        ("critic", {"instruction": "x", "response": given_text}, {"critique": text}),
        ("reviser", {"instruction": "x", "response": given_text, "critique": given_text}, {"revision": text}),
    ):
        assert all(fault.words for fault in find_faults(program, inputs, output))


# ---- the shipped sets


@pytest.mark.parametrize("name", SETS)
def test_no_row_to_follow_has_a_fatal_fault(name: str):
    rows = [row for row in load_judged(name).rows if name in JUDGES or row.score == 5]
    fatal = {
        row.id: fault.words
        for row in rows
        for output in (row.output, read_output(name, row))
        for fault in find_faults(name, row.inputs, output)
        if fault.is_fatal
    }

    assert fatal == {}


@pytest.mark.parametrize("name", [name for name in SETS if name not in JUDGES])
def test_faults_are_rare_among_the_best_and_commoner_among_the_rest(name: str):
    rows = load_judged(name).rows
    has_fault = [(row.score or 0, bool(find_faults(name, row.inputs, row.output))) for row in rows]

    best = [is_faulty for score, is_faulty in has_fault if score == 5]
    rest = [is_faulty for score, is_faulty in has_fault if score < 5]
    assert sum(best) / len(best) <= 0.12
    assert sum(best) / len(best) <= sum(rest) / len(rest)
