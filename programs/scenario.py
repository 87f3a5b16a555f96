"""The program that closes a stretch of events as a scenario (METHOD 2.6)."""

import dspy

from matrix_dspy.programs.base import Program


class WriteScenario(dspy.Signature):
    """Tell what happened in a group as one scenario, and bring the group's description up to date.

    Summary: one paragraph of 80 to 200 words in the past tense that a stranger could follow: who did what, to what
    end, with what result, what is now at stake or undecided for each person named. Tell how the actions bear on each
    other where they do, and leave them side by side where they do not. Use only the people and facts given; invent no
    names, numbers, outcomes or feelings. Go on from the previous summary without retelling it.

    Group description: at most 80 words in the present tense on what these people are and what occupies them now, for
    others who must judge whether a piece of news concerns this group. Keep what still holds of the old description.
    """

    members: list[str] = dspy.InputField(desc="the members of the group")
    description: str = dspy.InputField(desc="the group's description so far")
    previous_summary: str = dspy.InputField(desc="what happened before; empty at the beginning")
    events: list[str] = dspy.InputField(desc="what happened now, in order, with round numbers")
    summary: str = dspy.OutputField(desc="one paragraph, 80 to 200 words")
    group_description: str = dspy.OutputField(desc="at most 80 words")


class ScenarioWriter(Program):
    """A stretch of events to a summary and the group's new description."""

    signature = WriteScenario
