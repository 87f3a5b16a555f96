"""Programs that criticise a response and revise it."""

import dspy

from matrix_dspy.programs.base import Program


class CritiqueResponse(dspy.Signature):
    """Find what is wrong with an assistant's answer.

    Read the request sentence by sentence and check what the answer makes of each part. Name the faults that matter
    most to the person who asked, worst first, at most five: something asked for that is missing, a false statement, a
    broken limit (length, format, language, audience), advice that would not work or could harm, vagueness where a
    figure or an example was needed, padding. For each, quote the few words concerned and say what should stand there
    instead. Do not praise, and do not invent faults: if nothing is wrong, say exactly "No faults found."
    """

    instruction: str = dspy.InputField(desc="what was asked")
    response: str = dspy.InputField(desc="the answer to criticise")
    critique: str = dspy.OutputField(desc="the faults, worst first, each with its remedy")


class ReviseResponse(dspy.Signature):
    """Write the answer anew so that the critique no longer applies.

    Mend every fault that is justified, ignore one that is not, and keep what was good. The result is read by the
    person who asked, who has seen neither the first answer nor the critique: mention neither, apologise for nothing.
    Keep all limits the request sets. Do not grow longer than the mending needs.
    """

    instruction: str = dspy.InputField(desc="what was asked")
    response: str = dspy.InputField(desc="the first answer")
    critique: str = dspy.InputField(desc="what is wrong with it")
    revision: str = dspy.OutputField(desc="the new answer, and nothing else")


class Critic(Program):
    """Instruction and response to a critique."""

    signature = CritiqueResponse


class Reviser(Program):
    """Instruction, response and critique to a revised response."""

    signature = ReviseResponse
