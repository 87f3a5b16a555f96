"""Reward-aware selection: what the model to be trained can already do, and what can still teach it (METHOD 3.6, ours).

Off by default. The papers describe no such step.
"""

from collections.abc import Sequence

from matrix_dspy.bulk.runner import gather_all
from matrix_dspy.synthesis.answering import build_response, make_response_id
from matrix_dspy.synthesis.desk import Desk
from matrix_dspy.synthesis.gate import Gate, Scorer, Selected
from matrix_dspy.synthesis.judging import ask_score, note_reward
from matrix_dspy.synthesis.row import Row
from matrix_dspy.synthesis.thinking import split_thinking
from matrix_dspy.types import Response


async def select_row(row: Row, desk: Desk, gate: Gate, *, is_pair: bool) -> tuple[Selected, list[Response]]:
    """Sample answers of the model to be trained, score them beside the aligned model's, and decide.

    Returns the decision and the responses it speaks of, the aligned model's first. Of a dialogue, the answers to the
    instruction are compared. A sample that is no answer counts as one without a score.
    """
    assert row.instruction is not None and row.response is not None
    aligned = row.response if not row.response.turn else row.responses[0]
    responses = [aligned, *await _sample(row, desk, gate)]
    scores, scorer = await _score(row, desk, gate, responses)
    n_missing = 1 + desk.config.selection.k - len(responses)
    texts = [response.text for response in responses] + [""] * n_missing
    selected = gate.select(row.instruction, texts, [*scores, *[None] * n_missing], scorer, is_pair=is_pair)
    return selected, responses


async def _sample(row: Row, desk: Desk, gate: Gate) -> list[Response]:
    """Draw the k samples; one that is no answer, or must not be stored, is left out."""
    assert row.instruction is not None
    instruction = row.instruction
    inputs = {"instruction": instruction.text}
    outcomes = await desk.sample("responder", inputs, instruction.instruction_id, desk.config.selection.k)
    found: list[Response] = []
    for number, outcome in enumerate(outcomes):
        if outcome.fields is None:
            continue
        thought = split_thinking(outcome.fields["response"], outcome.thinking)
        response_id = make_response_id(instruction.instruction_id, desk.config.seed, "student", number)
        if not thought.answer or gate.check_response(response_id, instruction.text, thought.answer, is_target=False):
            continue
        model = desk.model_of("rejected")
        found.append(build_response(instruction, response_id, "student", model, thought, sample=number))
    row.responses += found
    return found


async def _score(row: Row, desk: Desk, gate: Gate, responses: Sequence[Response]) -> tuple[list[float | None], Scorer]:
    """Score the aligned model's answer and the samples by whom the gate names."""
    assert row.instruction is not None
    instruction, texts = row.instruction.text, [response.text for response in responses]
    scorer = gate.choose_scorer(instruction, texts[0])
    if scorer != "judge":
        scores = await gate.score(instruction, texts, texts[0])
        for response, value in zip(responses, scores, strict=True):
            note_reward(row, desk, response, value, scorer, scorer)
        return scores, scorer
    values = await gather_all(ask_score(row, desk, response) for response in responses)
    row.judgements.sort(key=lambda one: one.judgement_id)  # they came in the order of arrival
    return [None if value is None else gate.calibrate(value) for value in values], scorer
