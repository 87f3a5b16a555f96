"""Programs of one agent: who it is, what it plans, what it does, what it remembers (METHOD 2.1, 2.2).

Inputs run from what never changes for an agent to what is new in this round, so that the prompts of one agent extend
each other and a prefix cache serves nearly all of them.
"""

import dspy

from matrix_dspy.programs.base import Program


class SetGoal(dspy.Signature):
    """Work out what kind of person this is and what they want from life.

    Read the description and the history, which is the better witness: what somebody did says more than what they say
    of themselves. Personality: two or three sentences on how this person decides, works with others and meets trouble,
    each resting on something in the profile; strengths and weaknesses, no praise. Life goal: one sentence naming
    something concrete this person could reach within some years, whose progress others could see, and that fits their
    means. Avoid goals anyone could have ("be happy", "make a difference"). If the history is empty, rely on the
    description alone and invent no past.
    """

    name: str = dspy.InputField(desc="the person's name")
    description: str = dspy.InputField(desc="who the person is")
    history: list[str] = dspy.InputField(desc="past posts or actions, oldest first; may be empty")
    personality: str = dspy.OutputField(desc="two or three sentences")
    life_goal: str = dspy.OutputField(desc="one sentence, concrete")


class MakePlan(dspy.Signature):
    """Plan the next steps of this person toward their life goal.

    Write 3 to 8 steps in the order they will be taken. A step is one thing the person can do in days or a few weeks
    with the means they have: it starts with a verb, names what is done with whom or with what, and takes at most
    twenty words ("Ask two neighbours with vans what they charge for a Saturday"). Let steps involve other people now
    and then (ask, show, agree, sell, teach), since others may come to hear of them. Build on what the memory says has
    happened already; do not plan again what is done.
    """

    persona: str = dspy.InputField(desc="name, description, personality and life goal")
    memory: list[str] = dspy.InputField(desc="what the person remembers, oldest first; may be empty")
    plan: list[str] = dspy.OutputField(desc="3 to 8 steps in order")


class Act(dspy.Signature):
    """Write the one thing this person does now.

    If there are observations, react to them: take in all of them together, and do what this person would do about them
    with their own goal in mind. Refusing, or answering with a counter-offer, is an act too. If none of them concerns
    the person, or if there are none, carry out the current step of the plan, as far as one go at it would get.

    The action is one finished act in the world: an announcement, an agreement, a purchase, a piece of work, a
    calculation, a talk with a stated outcome. No small talk, no mere intention, no thoughts only. Write it in the
    third person and past tense, beginning with the person's name, in at most 80 words, with the concrete details
    (amounts, places, materials, reasons) that make it believable. Keep to what the memory says has happened; do not
    repeat an action remembered. Then say whether the current step is done: True if, after this action, the person
    would go on to the next step.
    """

    persona: str = dspy.InputField(desc="name, description, personality and life goal")
    plan: list[str] = dspy.InputField(desc="all steps in order")
    memory: list[str] = dspy.InputField(desc="what the person remembers, oldest first")
    round: int = dspy.InputField(desc="the present round; memories carry theirs")
    step: str = dspy.InputField(desc="the current step of the plan; empty when the plan is used up")
    observations: list[str] = dspy.InputField(desc="what the person has just come to know; may be empty")
    recalled: list[str] = dspy.InputField(desc="older memories that bear on this; may be empty")
    action: str = dspy.OutputField(desc="what the person does, at most 80 words, third person")
    step_done: bool = dspy.OutputField(desc="True if the current step is finished by this")


class SummariseMemory(dspy.Signature):
    """Fold a person's older memories into one short account they could go on from.

    At most 120 words, in the third person. Keep what will matter later: what was achieved, promised, owed, refused or
    learnt, with names, amounts and round numbers; what is still open. Leave out moods and repetitions. Add nothing.
    """

    persona: str = dspy.InputField(desc="name, description, personality and life goal")
    memories: list[str] = dspy.InputField(desc="the memories to fold, oldest first")
    memory_summary: str = dspy.OutputField(desc="at most 120 words")


class GoalSetter(Program):
    """Anonymous profile to personality and life goal."""

    signature = SetGoal


class Planner(Program):
    """Persona and memory to an ordered plan."""

    signature = MakePlan


class Actor(Program):
    """Persona, plan, memory and what was observed to one action."""

    signature = Act


class MemoryKeeper(Program):
    """Older memories to one summary."""

    signature = SummariseMemory
