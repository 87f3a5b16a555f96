"""Critique and revision: a response is written anew, and kept only where the judge prefers it both ways round."""

import asyncio

from matrix_dspy.config import KindConfig
from matrix_dspy.synthesis.answering import build_response, make_response_id, set_answer
from matrix_dspy.synthesis.desk import Desk
from matrix_dspy.synthesis.gate import Gate
from matrix_dspy.synthesis.judging import check_answer
from matrix_dspy.synthesis.row import Row
from matrix_dspy.synthesis.thinking import Thought, split_thinking
from matrix_dspy.types import Critique, Instruction, Response, make_id

NO_FAULTS = "no faults found"
"""How a critique begins that has nothing to mend."""


async def refine_row(row: Row, desk: Desk, kind: KindConfig, gate: Gate) -> None:
    """Critique and revise the row's answer, keeping a revision only where the judge prefers it in both orders."""
    for number in range(desk.config.synthesis.refine):
        if not await _refine_once(row, desk, kind, gate, number):
            return


async def _refine_once(row: Row, desk: Desk, kind: KindConfig, gate: Gate, number: int) -> bool:
    """One round; returns whether a revision was kept, so that another may follow."""
    assert row.instruction is not None and row.response is not None
    instruction, response = row.instruction, row.response
    asked = {"instruction": instruction.text, "response": response.text}
    criticised = await desk.ask("critic", asked, instruction.instruction_id, round=number)
    if criticised.fields is None:
        return _note_round(row, desk, number, response, "", "", criticised.reason)
    critique = criticised.fields["critique"]
    if critique.strip().lower().startswith(NO_FAULTS):
        return _note_round(row, desk, number, response, critique, "", "no faults")
    revised = await desk.ask("reviser", asked | {"critique": critique}, instruction.instruction_id, round=number)
    if revised.fields is None:
        return _note_round(row, desk, number, response, critique, "", revised.reason)
    text = split_thinking(revised.fields["revision"], revised.thinking, is_wanted=False).answer
    response_id = make_response_id(instruction.instruction_id, desk.config.seed, "revision", number)
    drop = gate.check_response(response_id, instruction.text, text, is_target=True)
    if drop is not None or not text:
        return _note_round(row, desk, number, response, critique, "", drop.reason if drop else "empty")
    thought = Thought(response.thinking, text)
    revision = build_response(instruction, response_id, "revision", desk.model_of("responder"), thought, sample=number)
    if (drop := await check_answer(row, desk, kind, gate, revision)) is not None:
        return _note_round(row, desk, number, response, critique, text, drop.reason)
    verdict = await _compare(row, desk, instruction, response.text, text, number)
    if verdict == "better":
        row.responses.append(revision)
        set_answer(row, revision, kind)
    return _note_round(row, desk, number, response, critique, text, verdict)


async def _compare(row: Row, desk: Desk, instruction: Instruction, first: str, second: str, number: int) -> str:
    """Ask in both orders whether the second text is better: `better`, `worse` or `undecided`."""

    async def prefers_second(is_swapped: bool) -> bool | None:
        a, b = (second, first) if is_swapped else (first, second)
        inputs = {"instruction": instruction.text, "response_a": a, "response_b": b}
        outcome = await desk.ask("pair_judge", inputs, instruction.instruction_id, round=number, sample=int(is_swapped))
        return None if outcome.fields is None else (outcome.fields["preference"] == "A") == is_swapped

    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(prefers_second(is_swapped)) for is_swapped in (False, True)]
    verdicts = [each.result() for each in asked]
    if None in verdicts:
        return "unjudged"
    return "better" if all(verdicts) else "undecided" if any(verdicts) else "worse"


def _note_round(
    row: Row, desk: Desk, number: int, response: Response, critique: str, revision: str, verdict: str
) -> bool:
    is_kept = verdict == "better"
    row.critiques.append(
        Critique(
            critique_id=make_id("critique", response.instruction_id, number, desk.config.seed),
            response_id=response.response_id,
            instruction_id=response.instruction_id,
            round=number,
            text=critique,
            revision=revision,
            is_kept=is_kept,
            verdict=verdict,
        )
    )
    return is_kept
