"""Programs that write and rate instructions (METHOD 3.1, 3.2, 3.5)."""

from typing import Literal

import dspy

from matrix_dspy.programs.base import Program


class WriteInstruction(dspy.Signature):
    """Write the message this person, in this situation, would type to an AI assistant.

    Find one thing the person really needs help with now because of what they did and what has happened, and ask for it
    in their own words, as people write when they want something done: directly, without greeting, without introducing
    themselves, without explaining that they are a persona or in a scenario. The assistant knows nothing but the
    message, so it must be understandable by itself: never point to "the scenario", "the summary", "the above" or a
    file that is not there; explain who people are instead of naming them; when something is to be worked on (a text,
    figures, code, a list), put it into the message. Ask for something an assistant can do in writing.

    Fulfil the requirement exactly: kind and category of the task, complexity, style of asking, language, length. Make
    the request specific to this person's work, place and means; a request anyone could have typed is a failure. Use
    details from the actions and the situation, changing names of people into roles.

    Type simple means one goal of everyday or early professional life. Type specialised means a task from the person's
    own field, of the sort an experienced colleague would be asked, with what it takes to do it given in the message.
    """

    profile: str = dspy.InputField(desc="who is asking")
    actions: list[str] = dspy.InputField(desc="what the person did in this situation, oldest first")
    scenario: str = dspy.InputField(desc="what happened around the person")
    requirement: str = dspy.InputField(desc="what the message must be like")
    instruction: str = dspy.OutputField(desc="the message, and nothing else")


class RateInstruction(dspy.Signature):
    """Rate a message to an AI assistant for its quality and its difficulty.

    Quality is how well it asks: excellent is clear, specific, complete and well put; good lacks a detail; average can
    be answered but leaves much open; poor is unclear or misses needed information; very poor cannot be answered.
    Difficulty is what a good answer takes: very easy is everyday knowledge, easy some thought, medium some knowledge of
    a field or several steps, hard solid expertise or many constraints, very hard an expert's long work. The two are
    independent: a simple question can be excellent. Give the reason before each level, in one sentence.
    """

    instruction: str = dspy.InputField(desc="the message to rate")
    quality_reason: str = dspy.OutputField(desc="one sentence")
    quality: Literal["very poor", "poor", "average", "good", "excellent"] = dspy.OutputField(desc="the level")
    difficulty_reason: str = dspy.OutputField(desc="one sentence")
    difficulty: Literal["very easy", "easy", "medium", "hard", "very hard"] = dspy.OutputField(desc="the level")


class WriteFollowUp(dspy.Signature):
    """Write what this person types next to the assistant, having read its last answer.

    Stay the person: their situation, means, tone and aims. Take up something the last answer really says and go on
    from there: ask for what is missing or unclear in it, bring in a fact it did not know, say what would not work here
    and why, ask to change, apply or check a part of it. Ask for one thing. Do not thank, praise or say goodbye, do not
    answer for the assistant, do not repeat an earlier question, and do not explain who you are. The assistant knows
    nothing but the conversation, so explain people instead of naming them. At most 60 words.
    """

    profile: str = dspy.InputField(desc="who is asking")
    actions: list[str] = dspy.InputField(desc="what the person did in this situation, oldest first")
    scenario: str = dspy.InputField(desc="what happened around the person")
    dialogue: list[str] = dspy.InputField(desc="the conversation so far, the person and the assistant in turn")
    follow_up: str = dspy.OutputField(desc="the person's next message, and nothing else")


class InstructionWriter(Program):
    """Persona, own actions, scenario and requirement to one instruction."""

    signature = WriteInstruction


class InstructionRater(Program):
    """Instruction to quality and difficulty in five levels each."""

    signature = RateInstruction


class FollowUpWriter(Program):
    """Persona, own actions, scenario and conversation to the person's next message."""

    signature = WriteFollowUp
