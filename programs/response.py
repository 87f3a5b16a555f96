"""Programs that answer in plain chat: an instruction, or the last turn of a conversation.

Training responses must look like what the model says to people: the instruction is the user turn, the completion is
the response, and no field markers stand in either.
"""

from typing import Any

import dspy

from matrix_dspy.programs.base import Program


class PlainChat(dspy.Adapter):
    """Lay a signature with one input and one output out as bare user and assistant turns.

    Demos become earlier turns. The signature's instructions become a system message only when they are not empty.
    """

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict]:
        (asked,), (answered,) = signature.input_fields, signature.output_fields
        messages = [{"role": "system", "content": signature.instructions}] if signature.instructions.strip() else []
        for demo in demos:
            if asked in demo and answered in demo:
                messages += [{"role": "user", "content": demo[asked]}, {"role": "assistant", "content": demo[answered]}]
        return [*messages, {"role": "user", "content": inputs[asked]}]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        (answered,) = signature.output_fields
        return {answered: completion.strip()}


class Respond(dspy.Signature):
    """ """

    instruction: str = dspy.InputField(desc="the user's message")
    response: str = dspy.OutputField(desc="the assistant's answer")


class Responder(Program):
    """Instruction to response, by a direct call without any prompt around it."""

    signature = Respond
    adapter = PlainChat()


class PlainDialogue(dspy.Adapter):
    """Lay a list of turns out as user and assistant turns, the user's first."""

    has_turns = True
    """A template cannot hold a conversation: every row is laid out by itself."""

    def format(
        self, signature: type[dspy.Signature], demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict]:
        (asked,) = signature.input_fields
        messages = [{"role": "system", "content": signature.instructions}] if signature.instructions.strip() else []
        roles = ("user", "assistant")
        return messages + [{"role": roles[place % 2], "content": turn} for place, turn in enumerate(inputs[asked])]

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        (answered,) = signature.output_fields
        return {answered: completion.strip()}


class Converse(dspy.Signature):
    """ """

    dialogue: list[str] = dspy.InputField(desc="the turns so far, user and assistant in turn, the user's last")
    response: str = dspy.OutputField(desc="the assistant's answer")


class Converser(Program):
    """Conversation to the assistant's next turn, by a direct call without any prompt around it."""

    signature = Converse
    adapter = PlainDialogue()
