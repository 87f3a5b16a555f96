"""Reward-aware selection in the flow: who is sampled, what is scored, which two answers make the pair."""

from collections.abc import Sequence
from typing import Any

import pytest

from matrix_dspy.config import load_kind
from matrix_dspy.engine.base import Completion
from matrix_dspy.synthesis.gate import Scorer, Selected
from matrix_dspy.types import Drop, Example, Instruction, PairExample
from tests.synthesis.casting import Cast, Play, Rule, make_kind
from tests.toys import Call, ToyGate, hash_number

SFT, DPO, SAFETY, DIALOGUE = (load_kind(name) for name in ("sft", "dpo", "safety", "multiturn"))
ON = {"on": True, "k": 4}


class NotingGate(ToyGate):
    """Notes what it was asked to select from, and answers as told."""

    def __init__(self, selected: Selected | None = None, scorer: Scorer = "reward", **predicates: Any) -> None:
        super().__init__(**predicates)
        self.selected = selected
        self.scorer: Scorer = scorer
        self.offers: list[tuple[list[str], list[float | None], Scorer]] = []

    def choose_scorer(self, instruction: str, answer: str) -> Scorer:
        return self.scorer

    def select(
        self, instruction: Instruction, texts: Sequence[str], scores: Sequence[float | None], scorer: Scorer,
        *, is_pair: bool,
    ) -> Selected:  # fmt: skip
        self.offers.append((list(texts), list(scores), scorer))
        return self.selected or super().select(instruction, texts, scores, scorer, is_pair=is_pair)


def vary(call: Call) -> str:
    """Answer another way for every seed."""
    return f"Way {call.request.sampling.seed}."


def play(kind: Any, gate: Any, rules: dict[str, Rule] | None = None, n: int = 1, **options: Any) -> Play:
    cast = Cast(rules, options.pop("rejected", vary))
    return Play(kind, n, n, cast=cast, gate=gate, selection=options.pop("selection", ON), **options).run()


@pytest.mark.parametrize("kind", [SFT, DPO, SAFETY], ids=lambda kind: kind.name)
def test_it_is_off_unless_asked_for(kind: Any):
    gate = NotingGate()
    work = play(kind, gate, selection={}, n=3)

    assert gate.offers == [] and len(work.kept) == 3
    assert {response.part for row in work.rows for response in row.responses} <= {"answer", "rejected"}
    assert not [row for row in work.rows if row.control or row.offered]
    assert not [call for call in work.cast.asked("responder") if call.request.sampling.temperature == 0.9]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_k_samples_are_drawn_of_the_model_to_be_trained_and_set_beside_the_aligned_ones(k: int):
    gate = NotingGate()
    work = play(SFT, gate, selection={"on": True, "k": k})

    (texts, _, _), row = gate.offers[0], work.row
    samples = work.cast.asked("responder", "rejected")
    assert len(samples) == k
    assert {(c.request.sampling.temperature, c.request.sampling.top_p) for c in samples} == {(0.9, 0.95)}
    assert len({call.request.sampling.seed for call in samples}) == k
    assert texts[0] == row.responses[0].text and row.responses[0].part == "answer"
    assert texts[1:] == [response.text for response in row.responses[1:]]
    assert [(r.part, r.sample, r.model) for r in row.responses[1:]] == [
        ("student", i, "toy-rejected") for i in range(k)
    ]


def test_a_pair_of_selection_is_drawn_from_the_samples_and_no_other_rejected_side_is_bought():
    work = play(DPO, NotingGate(Selected(None, 0, 2)))

    example = work.row.example
    assert isinstance(example, PairExample)
    assert len(work.cast.asked("responder", "rejected")) == 4
    assert example.response_id == work.row.responses[0].response_id
    assert example.rejected_id == work.row.responses[2].response_id
    assert (example.model, example.rejected_model) == ("toy-responder", "toy-rejected")


def test_the_better_side_may_be_a_sample_of_the_model_to_be_trained():
    work = play(DPO, NotingGate(Selected(None, 3, 1)))

    example = work.row.example
    assert isinstance(example, PairExample)
    assert example.chosen[0].content == work.row.responses[3].text
    assert example.model == example.rejected_model == "toy-rejected"
    assert example.prompt == work.row.messages[:1]


@pytest.mark.parametrize(
    ("kind", "gate", "rules", "reason"),
    [
        (DPO, NotingGate(Selected(None, 3, 1), drop_answer=lambda text: text.startswith("Way")), {}, "bad answer"),
        (
            make_kind("dpo", checks=("safety",)),
            NotingGate(Selected(None, 3, 1)),
            {
                "safety_judge": lambda call: {
                    "reason": "So.",
                    "verdict": "unsafe" if call.fields["response"].startswith("Way") else "safe help",
                }
            },
            "unsafe",
        ),
    ],
    ids=["checks of the kind", "safety"],
)
def test_a_sample_becomes_the_better_side_only_if_it_passes_what_every_target_passes(
    kind: Any, gate: Any, rules: Any, reason: str
):
    work = play(kind, gate, rules)

    assert work.reasons == {reason: 1}
    assert work.row.rejected and work.row.rejected.id == work.row.responses[3].response_id
    assert work.row.messages == ()


def test_a_sample_that_a_target_filter_drops_is_never_the_better_side():
    class TargetGate(NotingGate):
        def check_response(self, row_id: str, instruction: str, text: str, *, is_target: bool) -> Drop | None:
            return Drop("refusal", "it declines") if is_target and text.startswith("Way") else None

    assert play(DPO, TargetGate(Selected(None, 2, 1))).reasons == {"refusal": 1}
    assert play(DPO, TargetGate(Selected(None, 0, 1))).row.example


@pytest.mark.parametrize("kind", [SFT, DPO], ids=lambda kind: kind.name)
def test_a_sample_that_leaks_is_neither_stored_nor_scored(kind: Any):
    def leak(call: Call) -> str:
        return "Ask Zebedee." if (call.request.sampling.seed or 0) % 2 else vary(call)

    gate = NotingGate(drop_response=lambda text: "Zebedee" in text)
    work = play(kind, gate, rejected=leak, selection={"on": True, "k": 16})

    texts, scores, _ = gate.offers[0]
    n_left_out = texts.count("")
    assert 0 < n_left_out < 16
    assert len(texts) == len(scores) == 17
    assert "Zebedee" not in str(work.row.responses) + str(texts) + str(work.row.example)


@pytest.mark.parametrize(
    "bad", [Completion((" ",), ("stop",)), Completion(("Way",), ("length",)), Completion(("<think>Hm",), ("stop",))]
)
def test_a_sample_that_is_no_answer_counts_as_one_without_a_score(bad: Completion):
    def fail_some(call: Call) -> Any:
        return bad if hash_number(call.request.sampling.seed) % 2 else vary(call)

    gate = NotingGate()
    play(SFT, gate, rejected=fail_some, selection={"on": True, "k": 16})

    (texts, scores, _) = gate.offers[0]
    assert len(texts) == len(scores) == 17
    assert 0 < scores.count(None) == texts.count("") < 16


def test_thinking_of_a_sample_is_not_scored():
    gate = NotingGate()
    play(SFT, gate, rejected=lambda call: f"<think>Hm.</think>{vary(call)}")

    assert all(text.startswith("Way") for text in gate.offers[0][0][1:])


def test_scores_of_a_reward_model_are_noted_as_rewards_and_missing_ones_as_unrated():
    gate = NotingGate()
    gate.scores = {"Like this: How do I go about matter a-000-ada?": None}
    work = play(SFT, gate)

    rewards = [one for one in work.row.judgements if one.criterion == "reward"]
    assert [(one.level, one.value) for one in rewards] == [("unrated", None), *[("0.500", 0.5)] * 4]
    assert [one.subject_id for one in rewards] == [response.response_id for response in work.row.responses]
    assert {one.reason for one in rewards} == {"by reward"}


def test_scores_of_the_judge_are_calibrated_before_selection_and_stored_as_given():
    gate = NotingGate(scorer="judge")
    work = play(SFT, gate, {"response_judge": lambda call: {"reason": "So.", "score": 2}})

    assert gate.offers == [(gate.offers[0][0], [0.25] * 5, "judge")]
    assert [one.value for one in work.row.judgements if one.criterion == "score"] == [2.0] * 5
    assert len(work.cast.asked("response_judge", "judge")) == 5


def test_a_judge_without_a_verdict_gives_no_score():
    gate = NotingGate(scorer="judge")
    play(SFT, gate, {"response_judge": lambda call: "Hm."})

    assert gate.offers[0][1] == [None] * 5


def test_what_cannot_teach_is_dropped_with_the_gates_reason():
    work = play(SFT, NotingGate(Selected(Drop("saturated", "mean score 1.00"))), n=3)

    assert work.reasons == {"saturated": 3}
    assert all(isinstance(row.control, Example) for row in work.rows)


def test_a_hopeless_pair_that_the_aligned_model_passes_is_offered_to_the_sft_pool_and_dropped():
    work = play(DPO, NotingGate(Selected(Drop("hopeless", "mean score 0.00"), is_offered=True)))

    row = work.row
    assert work.reasons == {"hopeless": 1}
    assert isinstance(row.offered, Example)
    assert [message.role for message in row.offered.messages] == ["user", "assistant"]
    assert row.offered.messages[-1].content == row.responses[0].text


def test_every_scored_row_has_its_control_and_of_a_pair_it_is_the_first_sample():
    work = play(DPO, NotingGate(Selected(None, 0, 3)), n=3)

    for row in work.rows:
        assert isinstance(row.control, PairExample) and isinstance(row.example, PairExample)
        assert row.control.rejected_id == row.responses[1].response_id
        assert row.example.rejected_id == row.responses[3].response_id
        assert row.control.chosen == row.example.chosen


def test_the_control_set_is_as_large_as_what_was_kept_and_drawn_from_all_that_was_scored():
    class HalfGate(NotingGate):
        def select(self, instruction: Instruction, texts: Any, scores: Any, scorer: Any, *, is_pair: bool) -> Selected:
            is_kept = hash_number(instruction.text) % 2 == 0
            return Selected(None if is_kept else Drop("saturated", "all pass"))

        def draw_control(self, ids: Sequence[str], n: int) -> list[str]:
            self.drawn_from = list(ids)
            return sorted(ids, key=hash_number)[:n]

    gate = HalfGate()
    work = play(SFT, gate, n=20)

    drawn = work.flow.draw_control()
    assert len(gate.drawn_from) == 20
    assert len(drawn) == len(work.kept) < 20
    assert {row.example is None for row in drawn} == {True, False}


def test_of_a_dialogue_the_answers_to_the_instruction_are_compared():
    gate = NotingGate(Selected(None))
    work = play(DIALOGUE, gate)

    texts = gate.offers[0][0]
    assert texts[0] == work.row.messages[1].content
    assert isinstance(work.row.example, Example) and len(work.row.example.messages) == 6


def test_selection_is_the_same_whatever_the_order_of_arrival():
    def run(shuffle: int) -> Play:
        gate = NotingGate()
        gate.score = lambda instruction, texts, answer: score_all(texts)  # type: ignore[method-assign]
        cast = Cast(None, vary, latency_s=0.003, shuffle=shuffle, concurrency=2 + 9 * shuffle)
        return Play(DPO, 6, 20, cast=cast, gate=gate, selection=ON).run()

    async def score_all(texts: Sequence[str]) -> list[float | None]:
        return [hash_number(text) % 11 / 10 for text in texts]

    works = [run(shuffle) for shuffle in range(3)]
    told = {str([(row.example, row.control, row.responses, row.judgements) for row in w.rows]) for w in works}
    assert len(told) == 1
    assert len(works[0].kept) == 6
