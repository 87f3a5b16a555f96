"""The program that judges a response."""

from typing import Literal

import dspy

from matrix_dspy.programs.base import Program


class JudgeResponse(dspy.Signature):
    """Judge how well an answer serves the person who asked, on a scale from 1 to 5.

    5: does all that was asked, correct, fit for use as it stands. 4: does what was asked with a small flaw. 3: useful
    in part; something asked for is missing or doubtful. 2: misses the point, or has an error that would mislead. 1:
    useless, wrong, harmful, or a refusal without need. Refusing to help with something harmful is right and earns a 5
    if it is polite and offers a safe way on. Length, politeness and confident tone earn nothing by themselves. State
    the decisive reason first, then the score.
    """

    instruction: str = dspy.InputField(desc="what was asked")
    response: str = dspy.InputField(desc="the answer to judge")
    reason: str = dspy.OutputField(desc="one or two sentences: what decides the score")
    score: Literal[1, 2, 3, 4, 5] = dspy.OutputField(desc="1 to 5")


class ResponseJudge(Program):
    """Instruction and response to a score from 1 to 5 with its reason."""

    signature = JudgeResponse
