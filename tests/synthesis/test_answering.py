"""Answers of every shape: one, a pair, a dialogue, one with its thinking."""

import asyncio
from typing import Any

import pytest

from matrix_dspy.bulk.runner import Runner
from matrix_dspy.config import load_kind
from matrix_dspy.engine.base import Completion
from matrix_dspy.synthesis.answering import answer_row
from matrix_dspy.synthesis.desk import Desk
from matrix_dspy.types import Example, PairExample
from tests.synthesis.casting import Cast, Play, Rule, ask_on, make_kind, write
from tests.toys import Call, ToyGate

SFT, DPO, DIALOGUE = load_kind("sft"), load_kind("dpo"), load_kind("multiturn")
REASON = make_kind("reason", thinking_tokens=(4, 60))
THOUGHT = "First I look at what is given, then I weigh it."


def reply(text: str, thinking: str = "", finish: str = "stop") -> Rule:
    """Return a rule that always answers the same, with the server's own field where there is thinking."""
    return lambda call: Completion((text,), (finish,), reasonings=(thinking,) if thinking else ())


def play(kind: Any, rules: dict[str, Rule] | None = None, **options: Any) -> Play:
    """Play one row."""
    rejected = options.pop("rejected", None)
    cast = Cast(rules, **({"rejected": rejected} if rejected else {}))
    return Play(kind, 1, 1, cast=cast, **options).run()


def read_end(work: Play) -> tuple[str, str]:
    assert work.row.example is None and work.row.rejected is not None
    return work.row.rejected.noun, work.row.rejected.reason


def test_a_single_answer_is_bought_by_a_direct_call_of_the_instruction_alone():
    work = play(SFT)

    (call,) = work.cast.asked("responder")
    assert isinstance(work.row.example, Example) and work.row.instruction
    assert call.request.messages == [{"role": "user", "content": work.row.instruction.text}]
    assert [message.role for message in work.row.example.messages] == ["user", "assistant"]
    assert work.cast.count() == {"writer/instruction_writer": 1, "responder/responder": 1}


@pytest.mark.parametrize(
    "rule",
    [
        reply(f"<think>{THOUGHT}</think>\n\nTake the third."),
        reply(f"\n<think>\n{THOUGHT}\n</think>Take the third."),
        reply("Take the third.", THOUGHT),
        reply(f"{THOUGHT}\n</think>\n\nTake the third."),
    ],
    ids=["in the text", "in the text on lines of its own", "in a field of its own", "opened in the prompt"],
)
def test_thinking_is_found_wherever_the_server_puts_it_and_stored_one_way(rule: Rule):
    work = play(REASON, {"responder": rule})

    assert isinstance(work.row.example, Example)
    assert work.row.example.messages[-1].content == f"<think>\n{THOUGHT}\n</think>\n\nTake the third."
    assert [(r.thinking, r.text) for r in work.row.responses] == [(THOUGHT, "Take the third.")]


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (reply("Take the third."), "no thinking"),
        (reply(f"<think>{THOUGHT}"), "thinking not closed"),
        (reply(f"<think>{THOUGHT}</think>\n "), "no answer"),
        (reply(f"{THOUGHT}</think>"), "no answer"),
        (reply("<think>Hm.</think>Take the third."), "thinking length"),
        (reply(f"<think>{'on and on ' * 100}</think>Take the third."), "thinking length"),
        (reply("Take the third.", "on and on " * 100), "thinking length"),
        (reply(f"<think>{THOUGHT}</think>Take the", finish="length"), "cut off"),
    ],
    ids=["none", "unclosed", "no answer", "no answer, opened in the prompt", "short", "long", "long in a field", "cut"],
)  # fmt: skip
def test_reasoning_without_closed_thinking_of_a_fit_length_and_an_answer_is_dropped(rule: Rule, reason: str):
    work = play(REASON, {"responder": rule})

    assert read_end(work) == ("response", reason)
    assert work.row.messages == () and work.row.responses == []


@pytest.mark.parametrize("kind", [SFT, DPO, DIALOGUE], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "mark",
    [lambda text: reply(f"<think>{THOUGHT}</think>{text}"), lambda text: reply(text, THOUGHT)],
    ids=["in the text", "in a field"],
)
def test_thinking_is_taken_out_of_kinds_that_do_not_keep_it(kind: Any, mark: Any):
    rules = {"responder": mark("Take the third."), "converser": mark("Then the fourth.")}
    work = play(kind, rules, rejected=mark("Take any."))

    example = work.row.example
    assert example is not None
    assert THOUGHT not in example.model_dump_json() and "think" not in example.model_dump_json()
    assert {response.text for response in work.row.responses} <= {"Take the third.", "Then the fourth.", "Take any."}
    assert not any(response.thinking for response in work.row.responses)


def test_thinking_is_not_shown_to_whoever_goes_on_with_a_dialogue():
    rule = reply(f"<think>{THOUGHT}</think>Take the third.")
    work = play(DIALOGUE, {"responder": rule, "converser": rule})

    later = [*work.cast.asked("converser"), *work.cast.asked("follow_up_writer")]
    assert len(later) == 4
    assert not [call for call in later if THOUGHT in call.text]


@pytest.mark.parametrize("text", [f"<think>{THOUGHT}", f"<think>{THOUGHT}</think>"], ids=["unclosed", "no answer"])
def test_thinking_without_an_answer_is_no_answer_in_any_kind(text: str):
    assert read_end(play(SFT, {"responder": reply(text)}))[0] == "response"


class LeakGate(ToyGate):
    """Finds a leak wherever a text holds the word; notes which texts it was asked about, and as what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Any:
        from matrix_dspy.types import Drop

        self.seen.append((text, is_target))
        return Drop("leak", "it holds a name") if "Zebedee" in text else None


@pytest.mark.parametrize(
    ("kind", "rules", "rejected"),
    [
        (SFT, {"responder": reply("Ask Zebedee.")}, None),
        (REASON, {"responder": reply("Take the third.", f"{THOUGHT} Zebedee knows.")}, None),
        (DPO, {"responder": reply("Ask Zebedee.")}, None),
        (DPO, {}, reply("Ask Zebedee.")),
        (DIALOGUE, {"responder": reply("Ask Zebedee about it.")}, None),
        (DIALOGUE, {"converser": reply("Ask Zebedee about it.")}, None),
        (DIALOGUE, {"follow_up_writer": lambda call: {"follow_up": "Does that hold for Zebedee too?"}}, None),
    ],
    ids=["answer", "thinking", "chosen", "rejected side", "first turn", "later turn", "follow-up"],
)
def test_a_leak_anywhere_in_a_row_drops_it_and_is_stored_nowhere(kind: Any, rules: Any, rejected: Any):
    work = play(kind, rules, rejected=rejected, gate=LeakGate())

    assert read_end(work)[1] == "leak"
    assert work.row.rejected and work.row.rejected.raw_text == ""
    assert not [response for response in work.row.responses if "Zebedee" in response.model_dump_json()]


def test_only_what_is_to_be_learnt_is_checked_as_a_target():
    gate = LeakGate()
    play(DPO, {"responder": reply("Take the third.")}, rejected=reply("Take any."), gate=gate)
    thinking = LeakGate()
    play(REASON, {"responder": reply("Take the third.", THOUGHT)}, gate=thinking)

    assert sorted(gate.seen) == [("Take any.", False), ("Take the third.", True)]
    assert thinking.seen == [("Take the third.", True), (THOUGHT, False)]


def test_the_sides_of_a_pair_are_two_models_answers_to_the_same_direct_call():
    work = play(DPO)

    (chosen,), (rejected,) = work.cast.asked("responder", "responder"), work.cast.asked("responder", "rejected")
    example = work.row.example
    assert isinstance(example, PairExample)
    assert chosen.request.messages == rejected.request.messages
    for call in (chosen, rejected):
        assert (call.request.sampling.temperature, call.request.sampling.top_p) == (0.7, 0.9)
    assert chosen.request.sampling.max_tokens == rejected.request.sampling.max_tokens
    assert chosen.request.sampling.seed != rejected.request.sampling.seed
    assert (example.model, example.rejected_model) == ("toy-responder", "toy-rejected")
    assert example.chosen[0].content.startswith("Like this") and example.rejected[0].content.startswith("Hm, ")
    assert {response.part for response in work.row.responses} == {"answer", "rejected"}


def test_a_compiled_variant_of_the_responder_answers_on_both_sides():
    """Both sides differ by the model alone: sampling set for the responder holds for the rejected side too."""
    work = play(DPO, sampling={"responder": {"temperature": 0.2, "max_tokens": 99}})

    drawn = {(c.request.sampling.temperature, c.request.sampling.max_tokens) for c in work.cast.asked("responder")}
    assert len(work.cast.asked("responder")) == 2
    assert drawn == {(0.2, 99)}


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("bad", "reason"), [(reply("Take the", finish="length"), "cut off"), (reply(" "), "empty")], ids=["cut", "empty"]
)
def test_a_pair_with_a_side_that_is_no_answer_is_dropped_and_both_calls_are_paid(side: str, bad: Rule, reason: str):
    work = play(DPO, {"responder": bad} if side == "chosen" else {}, rejected=bad if side == "rejected" else None)

    assert read_end(work) == ("response", reason)
    assert work.cast.count() == {"writer/instruction_writer": 1, "responder/responder": 1, "rejected/responder": 1}


def test_when_one_side_ends_a_row_the_other_is_still_awaited_and_counted():
    """A call in flight is paid for: it must come back, and be journaled, whatever the other side said."""
    cast = Cast({"responder": reply(" ")})
    cast.engines["rejected"].latency_s = 0.2
    work = Play(DPO, 6, 6, cast=cast).run()

    assert work.reasons == {"empty": 6}
    assert cast.progress.in_flight == 0
    assert cast.progress.n_calls == cast.n_calls == 18
    assert sum(len(row.responses) for row in work.rows) == 6


def test_sides_that_are_alike_make_no_pair():
    same = reply("Take the third.")
    work = play(DPO, {"responder": same}, rejected=same)

    assert read_end(work) == ("response", "alike")


@pytest.mark.parametrize("turns", [2, 3, 4, 5])
def test_a_dialogue_has_the_turns_wanted_and_every_answer_is_to_be_learnt(turns: int):
    work = play(DIALOGUE, synthesis={"turns": turns})

    example = work.row.example
    assert isinstance(example, Example)
    assert [message.role for message in example.messages] == ["user", "assistant"] * turns
    answers = [message.content for message in example.messages if message.role == "assistant"]
    assert [response.text for response in work.row.responses] == answers
    assert len(set(answers)) == turns
    assert [response.turn for response in work.row.responses] == list(range(turns))
    asked = [message.content for message in example.messages if message.role == "user"]
    assert [response.asked for response in work.row.responses] == ["", *asked[1:]]
    assert len({response.response_id for response in work.row.responses}) == turns


def test_without_turns_in_the_config_the_kind_says_how_many():
    kind = make_kind("multiturn", turns=4)

    assert len(play(kind).row.messages) == 8


def test_a_follow_up_is_written_by_the_writer_with_persona_scenario_and_the_dialogue_so_far():
    work = play(DIALOGUE)

    candidate, messages = work.row.candidate, work.row.messages
    calls = work.cast.asked("follow_up_writer")
    assert work.cast.asked("follow_up_writer", "writer") == calls
    assert len(calls) == 2
    for turn, call in enumerate(calls, 1):
        assert call.fields["profile"] == candidate.agent.persona
        assert call.fields["actions"] == list(candidate.actions)
        assert call.fields["scenario"] == candidate.scenario.summary
        assert call.fields["dialogue"] == [message.content for message in messages[: 2 * turn]]
        assert messages[2 * turn - 1].content in call.asked


def test_later_answers_are_given_in_plain_chat_by_the_aligned_model():
    work = play(DIALOGUE)

    calls = work.cast.asked("converser")
    assert work.cast.asked("converser", "responder") == calls
    for turn, call in enumerate(calls, 1):
        so_far = work.row.messages[: 2 * turn + 1]
        assert call.request.messages == [{"role": one.role, "content": one.content} for one in so_far]


def test_the_calls_of_a_dialogue_have_seeds_of_their_own():
    work = play(DIALOGUE, synthesis={"turns": 5})

    seeds = [call.request.sampling.seed for engine in work.cast.engines.values() for call in engine.calls]
    assert len(seeds) == 1 + 5 + 4 == len(set(seeds))


def test_a_bad_follow_up_is_asked_for_once_more_with_what_was_wrong():
    def thank_first(call: Call) -> dict[str, Any]:
        return {"follow_up": "Thank you so much!"} if not call.n_again else ask_on(call)

    work = play(DIALOGUE, {"follow_up_writer": thank_first})

    calls = work.cast.asked("follow_up_writer")
    assert [call.n_again for call in calls] == [0, 1, 0, 1]
    assert "only thanks or approves" in calls[1].asked
    assert len(work.row.messages) == 6


def test_a_follow_up_that_stays_bad_ends_its_row_with_a_reason():
    rules: dict[str, Rule] = {"follow_up_writer": lambda call: {"follow_up": "Certainly! Here is a plan for you."}}
    work = play(DIALOGUE, rules)

    assert read_end(work) == ("follow_up", "failed check")
    assert work.row.rejected and "speaks as the assistant" in work.row.rejected.detail
    assert "Certainly!" in work.row.rejected.raw_text
    assert len(work.cast.asked("follow_up_writer")) == 2
    assert not work.cast.asked("converser")


def test_a_later_answer_cut_off_ends_the_row():
    work = play(DIALOGUE, {"converser": reply("Then do", finish="length")})

    assert read_end(work) == ("response", "cut off")
    assert len(work.cast.asked("converser")) == 1
    assert work.row.messages == ()


def test_where_the_length_filter_is_off_an_answer_cut_off_is_taken_as_it_stands():
    work = play(SFT, {"responder": reply("Take the", finish="length")}, curation={"off": ["length"]})

    assert work.row.messages[-1].content == "Take the"


def test_a_server_that_refuses_one_request_drops_one_row():
    def refuse_one(call: Call) -> Completion:
        if "a-000" in call.fields["instruction"]:
            return Completion(error="content policy")
        return Completion(("Take the third.",), ("stop",))

    work = Play(SFT, 3, 4, cast=Cast({"responder": refuse_one})).run()

    assert work.reasons == {"refused by server": 1}
    assert work.kept == [1, 2, 3]


def test_answering_asks_nobody_but_the_parts_it_needs():
    """A row can be answered at a desk without a judge or a second model."""
    cast = Cast()
    work = Play(SFT, 1, 1, cast=cast).run()
    desk = work.flow.desk
    runners: dict[Any, Runner] = {part: runner for part, runner in desk.runners.items() if part == "responder"}
    row = work.row
    row.responses.clear()

    asyncio.run(answer_row(row, Desk(work.config, runners), SFT, ToyGate()))

    assert len(row.responses) == 1
    assert write(cast.asked("instruction_writer")[0])["instruction"] == row.messages[0].content
