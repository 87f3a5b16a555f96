"""A finished row as an example in TRL's columns."""

from matrix_dspy.config import KindConfig
from matrix_dspy.synthesis.gate import Gate
from matrix_dspy.synthesis.judging import find_level, find_score
from matrix_dspy.synthesis.row import Row
from matrix_dspy.types import Example, Message, PairExample, Response, make_id


def build_example(row: Row, kind: KindConfig, gate: Gate, seed: int, *, as_pair: bool = True) -> Example | PairExample:
    """Pack a row that is answered: `messages`, or `prompt`, `chosen` and `rejected` for a pair.

    With `as_pair` off, the better side of a pair is packed as a conversation.
    """
    instruction, response = row.instruction, row.response
    assert instruction is not None and response is not None
    sourced = {
        "example_id": make_id("example", response.response_id, 0, seed),
        "instruction_id": instruction.instruction_id,
        "response_id": response.response_id,
        "scenario_id": instruction.scenario_id,
        "agent_id": instruction.agent_id,
        "group_id": instruction.group_id,
        "profile_id": row.candidate.agent.profile_id,
        "kind": instruction.kind,
        "type": instruction.type,
        "category": instruction.category,
        "root_verb": gate.find_root_verb(instruction.text),
        "quality": find_level(row, "quality"),
        "difficulty": find_level(row, "difficulty"),
        "score": find_score(row, response.response_id),
        "model": response.model,
    }
    if kind.shape != "pair" or not as_pair:
        return Example(**sourced, messages=row.messages)
    other = row.rejected_response
    assert other is not None
    return PairExample(
        **sourced,
        prompt=row.messages[:1],
        chosen=(_answer(response),),
        rejected=(_answer(other),),
        rejected_id=other.response_id,
        rejected_model=other.model,
        rejected_score=find_score(row, other.response_id),
    )


def _answer(response: Response) -> Message:
    return Message(role="assistant", content=response.text)
