"""From an instruction that was kept to an answered row: one answer, a pair, a dialogue, or an answer with its thinking.

Every function here buys what one row needs and ends it by `DropRowError` when it is no good.
"""

from collections.abc import Sequence
from typing import Literal

from matrix_dspy.bulk.runner import Outcome
from matrix_dspy.config import KindConfig
from matrix_dspy.synthesis.conversation import find_follow_up_fault
from matrix_dspy.synthesis.desk import Desk
from matrix_dspy.synthesis.gate import Gate
from matrix_dspy.synthesis.row import DropRowError, Row
from matrix_dspy.synthesis.thinking import Thought, find_fault, join_thinking, split_thinking
from matrix_dspy.types import Drop, Instruction, Message, Response, make_id


def make_response_id(instruction_id: str, seed: int, part: str = "answer", number: int = 0) -> str:
    """Return the id of a response: the answer, a later turn's, the rejected side's, a sample's or a revision's."""
    parts = (number,) if part == "answer" else (part, number)
    return make_id("response", instruction_id, *parts, seed)


def make_follow_up_id(instruction_id: str, seed: int, turn: int) -> str:
    """Return the id of a user's later turn."""
    return make_id("follow_up", instruction_id, turn, seed)


async def answer_row(row: Row, desk: Desk, kind: KindConfig, gate: Gate) -> None:
    """Answer a row's instruction as its kind wants it; sets `response` and `messages`."""
    assert row.instruction is not None
    instruction = row.instruction
    outcome = await desk.ask("responder", {"instruction": instruction.text}, instruction.instruction_id)
    response_id = make_response_id(instruction.instruction_id, desk.config.seed)
    response = _read(row, desk, kind, gate, outcome, response_id, "answer")
    set_answer(row, response, kind)
    if kind.shape == "dialogue":
        await _go_on(row, desk, kind, gate)


async def answer_other_side(row: Row, desk: Desk, kind: KindConfig, gate: Gate) -> None:
    """Have the model to be trained answer too; sets `rejected_response` (METHOD 3.3)."""
    assert row.instruction is not None
    instruction = row.instruction
    inputs = {"instruction": instruction.text}
    outcome = await desk.ask("responder", inputs, instruction.instruction_id, part="rejected", purpose="rejected")
    response_id = make_response_id(instruction.instruction_id, desk.config.seed, "rejected")
    row.rejected_response = _read(row, desk, kind, gate, outcome, response_id, "rejected")


def set_answer(row: Row, response: Response, kind: KindConfig) -> None:
    """Make a response the row's answer."""
    assert row.instruction is not None
    text = join_thinking(response.thinking, response.text) if kind.shape == "thinking" else response.text
    row.response = response
    row.messages = (Message(role="user", content=row.instruction.text), Message(role="assistant", content=text))


def build_response(
    instruction: Instruction,
    response_id: str,
    part: Literal["answer", "rejected", "student", "revision"],
    model: str,
    thought: Thought,
    *,
    sample: int = 0,
    turn: int = 0,
    asked: str = "",
) -> Response:
    """Build the row of one response."""
    return Response(
        response_id=response_id,
        instruction_id=instruction.instruction_id,
        part=part,
        sample=sample,
        turn=turn,
        asked=asked,
        model=model,
        text=thought.answer,
        thinking=thought.thinking,
    )


async def _go_on(row: Row, desk: Desk, kind: KindConfig, gate: Gate) -> None:
    """Let the agent ask on and the aligned model answer, up to the turns wanted."""
    assert row.instruction is not None
    instruction = row.instruction
    dialogue = [message.content for message in row.messages]
    for turn in range(1, desk.config.synthesis.turns or kind.turns):
        follow_up = await _write_follow_up(row, desk, gate, dialogue, turn)
        dialogue.append(follow_up)
        outcome = await desk.ask("converser", {"dialogue": dialogue}, instruction.instruction_id, round=turn)
        response_id = make_response_id(instruction.instruction_id, desk.config.seed, "turn", turn)
        response = _read(row, desk, kind, gate, outcome, response_id, "answer", turn=turn, asked=follow_up)
        dialogue.append(response.text)
        row.response = response
    roles: Sequence[Literal["user", "assistant"]] = ("user", "assistant")
    row.messages = tuple(Message(role=roles[place % 2], content=text) for place, text in enumerate(dialogue))


async def _write_follow_up(row: Row, desk: Desk, gate: Gate, dialogue: list[str], turn: int) -> str:
    assert row.instruction is not None
    candidate, instruction_id = row.candidate, row.instruction.instruction_id
    inputs = {
        "profile": candidate.agent.persona,
        "actions": list(candidate.actions),
        "scenario": candidate.scenario.summary,
        "dialogue": dialogue,
    }
    outcome = await desk.ask(
        "follow_up_writer",
        inputs,
        instruction_id,
        round=turn,
        check=lambda fields: find_follow_up_fault(fields["follow_up"], dialogue),
    )
    follow_up_id = make_follow_up_id(instruction_id, desk.config.seed, turn)
    if outcome.fields is None:
        raise DropRowError("follow_up", follow_up_id, Drop(outcome.reason, outcome.detail), outcome.text)
    text = outcome.fields["follow_up"]
    if (drop := gate.check_response(follow_up_id, row.instruction.text, text, is_target=False)) is not None:
        raise DropRowError("follow_up", follow_up_id, drop, text)
    return text


def _read(
    row: Row,
    desk: Desk,
    kind: KindConfig,
    gate: Gate,
    outcome: Outcome,
    response_id: str,
    part: Literal["answer", "rejected"],
    *,
    turn: int = 0,
    asked: str = "",
) -> Response:
    """Turn an outcome into a response that has passed the filters."""
    assert row.instruction is not None
    instruction = row.instruction
    if outcome.fields is None:
        raise DropRowError("response", response_id, Drop(outcome.reason, outcome.detail), outcome.text)
    raw = outcome.fields["response"]
    thought = split_thinking(raw, outcome.thinking, is_wanted=kind.shape == "thinking")
    if (drop := _find_thinking_fault(thought, kind)) is not None:
        raise DropRowError("response", response_id, drop, raw)
    if kind.shape != "thinking":
        thought = Thought("", thought.answer)
    asks = asked or instruction.text
    for text in filter(None, (thought.answer, thought.thinking)):
        drop = gate.check_response(response_id, asks, text, is_target=part == "answer" and text is thought.answer)
        if drop is not None:
            raise DropRowError("response", response_id, drop, raw)
    model = desk.model_of("rejected" if part == "rejected" else "responder")
    response = build_response(instruction, response_id, part, model, thought, turn=turn, asked=asked)
    row.responses.append(response)
    return response


def _find_thinking_fault(thought: Thought, kind: KindConfig) -> Drop | None:
    if kind.shape == "thinking":
        fault = find_fault(thought, *kind.thinking_tokens)
        return None if fault is None else Drop(*fault)
    if not thought.is_closed:
        return Drop("cut off", "the thinking part never ends")
    return None if thought.answer else Drop("empty", "there is nothing after the thinking part")
