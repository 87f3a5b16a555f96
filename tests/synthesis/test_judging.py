"""Judges: safe or dropped, good enough or dropped, rated or unrated, and never one for the other."""

import math
from typing import Any

import pytest

from matrix_dspy.config import load_kind
from matrix_dspy.engine.base import Completion
from matrix_dspy.synthesis.flow import HOPELESS_START, HOPELESS_WAVE
from matrix_dspy.synthesis.judging import DIFFICULTIES, QUALITIES
from matrix_dspy.types import Example
from tests.synthesis.casting import Cast, Play, Rule, make_kind, rate
from tests.toys import Call, ToyGate, write_fields

SFT, SAFETY, DIALOGUE = load_kind("sft"), load_kind("safety"), load_kind("multiturn")


def judge_as(verdict: str) -> Rule:
    return lambda call: {"reason": f"It is {verdict}.", "verdict": verdict}


def score_as(score: int) -> Rule:
    return lambda call: {"reason": "As it is.", "score": score}


def say_nothing(call: Call) -> str:
    return "I cannot say."


def play(kind: Any, rules: dict[str, Rule], n: int = 1, **options: Any) -> Play:
    return Play(kind, n, n, cast=Cast(rules), **options).run()


@pytest.mark.parametrize("place", range(5))
def test_a_rating_is_the_level_the_rater_named_with_its_sentence(place: int):
    levels = {"quality": QUALITIES[place], "difficulty": DIFFICULTIES[4 - place]}
    reasons = {"quality_reason": "Put well.", "difficulty_reason": "Takes a while."}
    work = play(SFT, {"instruction_rater": lambda call: reasons | levels}, rate=True)

    row = work.row
    assert row.example and row.instruction
    assert (row.example.quality, row.example.difficulty) == (levels["quality"], levels["difficulty"])
    found = {one.criterion: (one.level, one.value, one.reason) for one in row.judgements}
    assert found == {
        "quality": (levels["quality"], place + 1.0, "Put well."),
        "difficulty": (levels["difficulty"], 5.0 - place, "Takes a while."),
    }
    assert {one.subject_id for one in row.judgements} == {row.instruction.instruction_id}
    assert {one.model for one in row.judgements} == {"toy-judge"}


@pytest.mark.parametrize(
    "answer",
    [
        say_nothing,
        lambda call: "",
        lambda call: rate(call) | {"quality": "splendid"},
        lambda call: Completion(error="content policy"),
        lambda call: Completion((write_fields(rate(call)),), ("length",)),
    ],
    ids=["no verdict", "empty", "no such level", "refused", "cut off"],
)
def test_what_cannot_be_rated_is_unrated_never_low_and_kept(answer: Rule):
    work = play(SFT, {"instruction_rater": answer}, rate=True)

    assert work.row.example is not None
    assert (work.row.example.quality, work.row.example.difficulty) == (None, None)
    assert [(one.level, one.value) for one in work.row.judgements] == [("unrated", None)] * 2


def test_no_rating_drops_a_row():
    worst = {"quality": "very poor", "difficulty": "very easy"}
    work = play(SFT, {"instruction_rater": lambda call: rate(call) | worst}, n=6, rate=True)

    assert len(work.kept) == 6 and not work.rejected


def test_without_ratings_nobody_is_asked_for_one():
    assert not play(SFT, {}).cast.asked("instruction_rater")


@pytest.mark.parametrize("score", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("threshold", [1, 3.5, 4, 5])
def test_an_answer_below_the_threshold_is_dropped_and_one_on_it_kept(score: int, threshold: float):
    work = play(SFT, {"response_judge": score_as(score)}, curation={"judge_threshold": threshold})

    row = work.row
    assert (row.example is not None) == (score >= threshold)
    if row.example is not None:
        assert row.example.score == score
    else:
        assert row.rejected and (row.rejected.noun, row.rejected.reason) == ("judgement", "below threshold")
        assert row.rejected.id == row.judgements[0].judgement_id


def test_without_a_threshold_no_answer_is_judged_and_no_score_invented():
    work = play(SFT, {})

    assert not work.cast.asked("response_judge")
    assert work.row.example and work.row.example.score is None


def weigh(*weights: float) -> Rule:
    """Answer with the likeliest score and log-probabilities of all five."""

    def answer(call: Call) -> Completion:
        score = str(1 + max(range(5), key=lambda place: weights[place]))
        text = write_fields({"reason": "So so.", "score": score})
        before, after = text.split(f"\n{score}\n", 1)
        top = [{"token": str(level), "logprob": math.log(w)} for level, w in enumerate(weights, 1) if w]
        tokens = [
            {"token": before + "\n", "logprob": 0.0, "top_logprobs": []},
            {"token": score, "logprob": math.log(max(weights)), "top_logprobs": top},
            {"token": "\n" + after, "logprob": 0.0, "top_logprobs": []},
        ]
        return Completion((text,), ("stop",), logprobs=(tokens,))

    return answer


def test_the_expectation_counts_where_the_server_gives_log_probabilities():
    """The judge says 4, but leans so far to 3 that 3.6 is not reached."""
    judge = weigh(0, 0, 0.45, 0.55, 0)
    kept = play(SFT, {"response_judge": judge}, curation={"judge_threshold": 3.5})
    dropped = play(SFT, {"response_judge": judge}, curation={"judge_threshold": 3.6})

    assert kept.row.example and kept.row.example.score == pytest.approx(3.55)
    assert (kept.row.judgements[0].level, kept.row.judgements[0].value) == ("4", pytest.approx(3.55))
    assert dropped.reasons == {"below threshold": 1}
    assert dropped.row.rejected and "3.55" in dropped.row.rejected.detail


def test_the_judge_is_asked_for_log_probabilities():
    work = play(SFT, {}, curation={"judge_threshold": 3})

    assert work.cast.asked("response_judge")[0].request.sampling.logprobs > 0


@pytest.mark.parametrize(("kind", "curation"), [(SFT, {"judge_threshold": 1}), (SAFETY, {})], ids=["score", "safety"])
def test_a_judge_without_a_verdict_leaves_its_rows_unjudged(kind: Any, curation: dict[str, Any]):
    work = play(kind, {"response_judge": say_nothing, "safety_judge": say_nothing}, n=3, curation=curation)

    assert work.reasons == {"unjudged": 3}
    for row in work.rows:
        assert row.rejected and row.rejected.noun == "judgement"
        assert [(one.level, one.value) for one in row.judgements] == [("unrated", None)]
        assert row.rejected.id == row.judgements[0].judgement_id
        assert row.example is None and row.messages == ()


@pytest.mark.parametrize("n_candidates", [HOPELESS_WAVE, 6 * HOPELESS_START])
def test_a_judge_that_never_gives_a_verdict_stops_the_flow_before_all_is_spent(n_candidates: int):
    cast = Cast({"safety_judge": say_nothing}, latency_s=0.001, concurrency=4)
    work = Play(SAFETY, n_candidates, n_candidates, cast=cast).run()

    assert work.flow.is_hopeless
    assert work.reasons == {"unjudged": min(n_candidates, HOPELESS_START)}
    judged = {call.fields["instruction"] for call in cast.asked("safety_judge")}
    assert len(judged) <= 2 * HOPELESS_START


@pytest.mark.parametrize(
    ("verdict", "end"),
    [("safe refusal", ""), ("safe help", ""), ("unsafe", "unsafe"), ("empty", "empty answer")],
)
def test_only_an_answer_that_the_judge_finds_safe_and_not_empty_is_ever_a_target(verdict: str, end: str):
    work = play(SAFETY, {"safety_judge": judge_as(verdict)}, n=5)

    assert work.reasons == ({end: 5} if end else {})
    assert len(work.kept) == (0 if end else 5)
    assert all(row.messages == () for row in work.rows if end)
    levels = {(one.criterion, one.level, one.value) for row in work.rows for one in row.judgements}
    assert levels == {("safety", verdict, 0.0 if end else 1.0)}


def test_a_refusal_of_a_harmless_look_alike_is_dropped_and_help_with_it_kept():
    def judge(call: Call) -> dict[str, Any]:
        return {"reason": "So.", "verdict": "safe help" if "b-" in call.fields["instruction"] else "safe refusal"}

    kind = make_kind("safety", lookalike_share=0.6)
    work = Play(kind, 40, 40, cast=Cast({"safety_judge": judge}), groups="ab").run()

    refused = [row for row in work.rows if row.is_lookalike and row.candidate.scenario.group_id == "group-a"]
    assert 5 < len([row for row in work.rows if row.is_lookalike]) < 35
    assert refused
    assert work.reasons == {"refusal of a harmless ask": len(refused)}
    assert all(row.example is None for row in refused)


def test_the_answer_of_a_look_alike_is_judged_for_safety_as_well():
    kind = make_kind("safety", lookalike_share=0.9)
    work = play(kind, {"safety_judge": judge_as("unsafe")}, n=8)

    assert work.reasons == {"unsafe": 8}


def test_kinds_without_the_check_ask_no_safety_judge():
    assert not play(SFT, {"safety_judge": judge_as("unsafe")}).cast.asked("safety_judge")


@pytest.mark.parametrize("turn", [0, 1, 2])
def test_every_turn_of_a_dialogue_is_judged_for_safety_since_every_turn_is_learnt(turn: int):
    seen: list[str] = []

    def judge(call: Call) -> dict[str, Any]:
        seen.append(call.fields["instruction"])
        is_bad = call.fields["response"].startswith("Then do this" if turn else "Like this") and (
            turn == 0 or f"part {turn}" in call.fields["response"]
        )
        return {"reason": "So.", "verdict": "unsafe" if is_bad else "safe help"}

    kind = make_kind("multiturn", checks=("safety",))
    work = play(kind, {"safety_judge": judge})
    fine = play(kind, {"safety_judge": judge_as("safe help")})

    assert work.row.example is None and work.reasons == {"unsafe": 1}
    assert work.row.rejected and work.row.rejected.id == work.row.responses[turn].response_id
    assert isinstance(fine.row.example, Example)
    safety = [one for one in fine.row.judgements if one.criterion == "safety"]
    assert {one.subject_id for one in safety} == {response.response_id for response in fine.row.responses}
    assert len({one.judgement_id for one in safety}) == 3


def test_a_later_turn_is_judged_with_the_conversation_it_answers():
    work = play(make_kind("multiturn", checks=("safety",)), {}, curation={"judge_threshold": 1})

    first, second, last = [message.content for message in work.row.messages if message.role == "user"]
    asked = [call.fields["instruction"] for call in work.cast.asked("safety_judge")]
    assert asked.count(first) == 1
    longest = max(asked, key=len)
    assert longest.startswith(f"User: {first}\n\nAssistant: ") and longest.endswith(f"User: {last}")
    assert second in longest
    (scored,) = work.cast.asked("response_judge")
    assert scored.fields["instruction"] == longest
    assert scored.fields["response"] == work.row.messages[-1].content


def test_the_checks_of_a_kind_drop_a_row_with_the_gates_reason():
    work = play(SFT, {}, gate=ToyGate(drop_answer=lambda text: True))

    assert work.row.rejected and (work.row.rejected.noun, work.row.rejected.reason) == ("response", "bad answer")


def test_no_two_calls_of_a_row_share_a_seed_and_no_two_judgements_an_id():
    kind = make_kind("dpo", checks=("safety",), judge_threshold=1)
    work = Play(
        kind, 4, 4, cast=Cast(), rate=True, synthesis={"refine": 3},
        selection={"on": True, "k": 4}, gate=JudgedGate(),
    ).run()  # fmt: skip

    calls = [call for engine in work.cast.engines.values() for call in engine.calls]
    ids = [one.judgement_id for row in work.rows for one in row.judgements]
    responses = [one.response_id for row in work.rows for one in row.responses]
    assert len({call.request.sampling.seed for call in calls}) == len(calls) > 80
    assert len(set(ids)) == len(ids) > 30
    assert len(set(responses)) == len(responses) > 20


class JudgedGate(ToyGate):
    """Has everything scored by the judge."""

    def choose_scorer(self, instruction: str, answer: str) -> Any:
        return "judge"


def test_an_answer_is_scored_once_by_the_judge_however_many_steps_want_its_score():
    kind = make_kind("sft", judge_threshold=2)
    work = Play(kind, 1, 1, cast=Cast(), selection={"on": True, "k": 3}, gate=JudgedGate()).run()

    judged = [call.fields["response"] for call in work.cast.asked("response_judge")]
    answer = work.row.responses[0].text
    assert judged.count(answer) == 1
    assert len(judged) == 4


def test_both_sides_of_a_pair_are_scored_on_one_scale():
    """The threshold's 1 to 5 must not stand beside a reward of 0 to 1."""
    gate = ToyGate()
    work = Play(
        make_kind("dpo", judge_threshold=2), 1, 1, cast=Cast(rejected=lambda call: "Hm."),
        gate=gate, selection={"on": True, "k": 2}, curation={},
    )  # fmt: skip
    gate.scores["Hm."] = 0.2
    work.run()

    example = work.row.example
    assert example is not None
    assert (example.score, example.model_dump()["rejected_score"]) == (0.5, 0.2)


def test_judging_is_the_same_whatever_the_order_of_arrival():
    def judge(call: Call) -> Any:
        return score_as(1 + len(call.fields["response"]) % 5)(call)

    def run(shuffle: int) -> Play:
        cast = Cast({"response_judge": judge}, latency_s=0.002, shuffle=shuffle, concurrency=1 + 7 * shuffle)
        return Play(SFT, 12, 40, cast=cast, rate=True, curation={"judge_threshold": 3}).run()

    works = [run(shuffle) for shuffle in range(3)]
    assert len({str([row.judgements for row in work.rows]) for work in works}) == 1
    assert works[0].kept and works[0].reasons["below threshold"]
