"""Critique and revision: kept only where the judge prefers the revision whichever side it stands on."""

from typing import Any

import pytest

from matrix_dspy.config import load_kind
from matrix_dspy.engine.base import Completion
from matrix_dspy.types import Example, PairExample
from tests.synthesis.casting import Cast, Play, Rule, criticise, make_kind, prefer_longer, respond
from tests.toys import Call, ToyGate

SFT, DPO, SAFETY = load_kind("sft"), load_kind("dpo"), load_kind("safety")
Preference = dict[str, Any]


def prefer(letter: str) -> Rule:
    return lambda call: {"reason": "It stands there.", "preference": letter}


def prefer_shorter(call: Call) -> Preference:
    return {"reason": "It is shorter.", "preference": "B" if prefer_longer(call)["preference"] == "A" else "A"}


def find_nothing(call: Call) -> dict[str, Any]:
    return {"critique": "No faults found."}


def refine(rules: dict[str, Rule] | None = None, rounds: int = 1, kind: Any = SFT, **options: Any) -> Play:
    """Play one row with so many rounds."""
    return Play(kind, 1, 1, cast=Cast(rules), synthesis={"refine": rounds}, **options).run()


def test_without_refinement_no_critic_is_asked():
    assert set(refine(rounds=0).cast.count()) == {"writer/instruction_writer", "responder/responder"}


def test_a_revision_the_judge_prefers_in_both_orders_becomes_the_answer():
    work = refine()

    row = work.row
    first, revision = row.responses
    assert isinstance(row.example, Example)
    assert row.example.messages[-1].content == revision.text == f"{first.text} Twice."
    assert (row.example.response_id, revision.part) == (revision.response_id, "revision")
    assert [(c.verdict, c.is_kept, c.response_id) for c in row.critiques] == [("better", True, first.response_id)]


def test_the_judge_sees_both_texts_in_both_orders():
    work = refine()

    first, second = work.cast.asked("pair_judge")
    assert work.cast.asked("pair_judge", "judge") == [first, second]
    assert (first.fields["response_a"], first.fields["response_b"]) == (
        second.fields["response_b"], second.fields["response_a"],
    )  # fmt: skip
    assert first.fields["response_a"] != first.fields["response_b"]
    assert first.request.sampling.seed != second.request.sampling.seed


@pytest.mark.parametrize(
    ("judge", "verdict"),
    [(prefer("A"), "undecided"), (prefer("B"), "undecided"), (prefer_shorter, "worse")],
    ids=["always the first", "always the second", "prefers the first answer"],
)
def test_a_judge_who_goes_by_position_or_against_the_revision_keeps_nothing(judge: Rule, verdict: str):
    work = refine({"pair_judge": judge}, rounds=3)

    row = work.row
    assert [(critique.verdict, critique.is_kept) for critique in row.critiques] == [(verdict, False)]
    assert row.messages[-1].content == row.responses[0].text
    assert [response.part for response in row.responses] == ["answer"]
    assert row.critiques[0].revision.endswith("Twice.")


def test_a_judge_without_a_verdict_in_one_order_keeps_nothing():
    def judge_one(call: Call) -> Any:
        return "Hm." if call.fields["response_a"].endswith("Twice.") else prefer_longer(call)

    work = refine({"pair_judge": judge_one}, rounds=2)

    assert [critique.verdict for critique in work.row.critiques] == ["unjudged"]
    assert work.row.example and work.row.responses[-1].part == "answer"


@pytest.mark.parametrize("words", ["No faults found.", "no faults found", " No faults found. It is fine."])
def test_where_nothing_is_wrong_nobody_further_is_asked(words: str):
    work = refine({"critic": lambda call: {"critique": words}}, rounds=3)

    assert work.cast.count()["judge/critic"] == 1
    assert not work.cast.asked("reviser") and not work.cast.asked("pair_judge")
    assert [(critique.verdict, critique.revision) for critique in work.row.critiques] == [("no faults", "")]
    assert work.row.example


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_rounds_go_on_from_the_last_revision_kept(rounds: int):
    work = refine(rounds=rounds)

    row = work.row
    assert row.messages[-1].content.endswith(" Twice." * rounds)
    assert [critique.round for critique in row.critiques] == list(range(rounds))
    assert [critique.response_id for critique in row.critiques] == [r.response_id for r in row.responses[:-1]]
    assert work.cast.count()["judge/pair_judge"] == 2 * rounds
    ids = [*[c.critique_id for c in row.critiques], *[r.response_id for r in row.responses]]
    assert len(set(ids)) == len(ids) == 2 * rounds + 1
    seeds = [call.request.sampling.seed for engine in work.cast.engines.values() for call in engine.calls]
    assert len(set(seeds)) == len(seeds)


def test_the_first_round_without_gain_is_the_last():
    def tire(call: Call) -> Preference:
        return prefer_longer(call) if "Twice. Twice." not in call.asked else prefer_shorter(call)

    work = refine({"pair_judge": tire}, rounds=5)

    assert [critique.verdict for critique in work.row.critiques] == ["better", "worse"]
    assert work.row.messages[-1].content.count("Twice.") == 1


def test_a_revision_that_a_filter_drops_is_neither_kept_nor_shown_to_the_judge():
    work = refine(gate=ToyGate(drop_response=lambda text: "Twice." in text))

    assert [(critique.verdict, critique.is_kept) for critique in work.row.critiques] == [("bad response", False)]
    assert not work.cast.asked("pair_judge")
    assert work.row.example and "Twice" not in work.row.example.model_dump_json()
    assert "Twice" not in work.row.critiques[0].revision


def test_a_revision_that_fails_the_checks_of_its_kind_is_not_kept():
    work = refine(gate=ToyGate(drop_answer=lambda text: "Twice." in text))

    assert [critique.verdict for critique in work.row.critiques] == ["bad answer"]
    assert work.row.messages[-1].content == work.row.responses[0].text


@pytest.mark.parametrize("program", ["critic", "reviser"])
def test_a_critic_or_reviser_that_says_nothing_leaves_the_answer_as_it_is(program: str):
    work = refine({program: lambda call: ""})

    assert [critique.verdict for critique in work.row.critiques] == ["empty"]
    assert work.row.example and work.row.responses[-1].part == "answer"


def test_thinking_of_the_reviser_is_no_part_of_the_revision():
    def think(call: Call) -> Completion:
        text = f"[[ ## revision ## ]]\n<think>Aha.</think>{call.fields['response']} Twice.\n\n[[ ## completed ## ]]"
        return Completion((text,), ("stop",))

    work = refine({"reviser": think})

    assert work.row.messages[-1].content.endswith("Twice.")
    assert "Aha" not in work.row.messages[-1].content


def test_a_revision_in_a_thinking_kind_is_not_put_behind_thinking_that_led_elsewhere():
    """What was thought before the first answer does not lead to a text that another call wrote."""
    kind = make_kind("reason", thinking_tokens=(1, 60))
    rules: dict[str, Rule] = {"responder": lambda call: Completion(("It is 4.",), ("stop",), reasonings=("2 and 2",))}
    work = refine(rules, kind=kind)

    assert work.row.example
    assert work.row.messages[-1].content == "<think>\n2 and 2\n</think>\n\nIt is 4."
    assert not work.cast.asked("critic")


def test_a_refused_harmful_answer_is_saved_by_a_revision_the_safety_judge_passes():
    def judge(call: Call) -> dict[str, Any]:
        is_safe = "Twice." in call.fields["response"]
        return {"reason": "It tells how.", "verdict": "safe refusal" if is_safe else "unsafe"}

    work = refine({"safety_judge": judge}, kind=SAFETY)

    row = work.row
    assert row.example and row.messages[-1].content.endswith("Twice.")
    safety = [(one.subject_id, one.level) for one in row.judgements if one.criterion == "safety"]
    assert safety == [(row.responses[0].response_id, "unsafe"), (row.responses[1].response_id, "safe refusal")]
    assert len({one.judgement_id for one in row.judgements}) == len(row.judgements)


@pytest.mark.parametrize("judge", [prefer_longer, prefer_shorter])
def test_an_unsafe_answer_is_never_saved_by_an_unsafe_revision(judge: Rule):
    rules: dict[str, Rule] = {
        "safety_judge": lambda call: {"reason": "It tells how.", "verdict": "unsafe"},
        "pair_judge": judge,
    }
    work = refine(rules, kind=SAFETY, rounds=3)

    assert work.row.example is None and work.row.messages == ()
    assert work.row.rejected and (work.row.rejected.noun, work.row.rejected.reason) == ("response", "unsafe")
    assert not work.cast.asked("pair_judge")


def test_an_unsafe_answer_is_dropped_where_the_judge_likes_it_better_than_the_safe_revision():
    def judge(call: Call) -> dict[str, Any]:
        return {"reason": "It tells how.", "verdict": "safe help" if "Twice." in call.fields["response"] else "unsafe"}

    work = refine({"safety_judge": judge, "pair_judge": prefer_shorter}, kind=SAFETY)

    assert work.row.example is None
    assert work.row.rejected and work.row.rejected.reason == "unsafe"


def test_the_chosen_side_of_a_pair_is_refined_and_the_rejected_side_left_alone():
    work = refine(kind=DPO)

    example = work.row.example
    assert isinstance(example, PairExample)
    assert example.chosen[0].content.endswith("Twice.")
    assert example.rejected[0].content.startswith("Hm, ") and "Twice" not in example.rejected[0].content


def test_the_answer_that_is_judged_is_the_one_that_is_kept():
    work = refine(curation={"judge_threshold": 3})

    (call,) = work.cast.asked("response_judge")
    assert call.fields["response"].endswith("Twice.")
    assert work.row.example and work.row.example.score == 4


def test_critic_and_judge_are_the_judge_and_the_reviser_is_the_aligned_model():
    counted = refine().cast.count()

    assert counted == {
        "writer/instruction_writer": 1, "responder/responder": 1, "judge/critic": 1, "responder/reviser": 1,
        "judge/pair_judge": 2,
    }  # fmt: skip


def test_every_round_stands_in_the_table_whatever_became_of_it():
    def criticise_some(call: Call) -> dict[str, Any]:
        return find_nothing(call) if "a-000" in call.fields["instruction"] else criticise(call)

    rules: dict[str, Rule] = {"critic": criticise_some, "responder": respond}
    work = Play(SFT, 4, 4, cast=Cast(rules), synthesis={"refine": 2}).run()

    verdicts = [[critique.verdict for critique in row.critiques] for row in work.rows]
    assert verdicts == [["no faults"], *[["better", "better"]] * 3]
    assert all(critique.text for row in work.rows for critique in row.critiques)
